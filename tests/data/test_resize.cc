#include "data/resize.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/files/safetensors.h"

namespace jem {
namespace {

std::vector<uint8_t> bytes_of(const FileTensor& tensor) {
    std::vector<uint8_t> bytes;
    for (const std::byte b : tensor.bytes()) bytes.push_back(static_cast<uint8_t>(b));
    return bytes;
}

TEST_CASE("a_fitted_image_is_pillows_byte_for_byte") {
    const SafetensorsFile golden = SafetensorsFile::read(std::string(JEM_GOLDEN_DIR) + "/images/fitted.safetensors");
    int cases = 0;
    for (const auto& entry : golden.tensors) {
        const std::string& name = entry.first;
        const FileTensor& tensor = entry.second;
        const size_t dot = name.find('.');
        if (dot == std::string::npos) continue;
        INFO(name);
        const FileTensor& source = golden.at(name.substr(0, dot));
        const std::vector<uint8_t> pixels = bytes_of(source), wanted = bytes_of(tensor);
        const Picture picture{.pixels = pixels,
                              .height = static_cast<int>(source.shape[0]),
                              .width = static_cast<int>(source.shape[1]),
                              .channels = static_cast<int>(source.shape[2])};
        std::vector<uint8_t> got(wanted.size());
        fit(got, picture, static_cast<int>(tensor.shape[2]), static_cast<int>(tensor.shape[0]),
            name.ends_with(".top") ? Crop::top : Crop::centre);
        const auto at = std::mismatch(got.begin(), got.end(), wanted.begin()).first - got.begin();
        INFO("first difference at byte " << at << " of " << got.size());
        CHECK(got == wanted);
        ++cases;
    }
    CHECK(cases > 30);
}

TEST_CASE("a_fitted_set_keeps_labels_and_names_and_one_of_that_size_its_bytes") {
    ImageSet set{.name = "made",
                 .channels = 1,
                 .height = 6,
                 .width = 4,
                 .num_classes = 2,
                 .class_names = {"a", "b"},
                 .flip = true,
                 .pixels = std::vector<uint8_t>(2 * 24, 70),
                 .labels = {1, 0}};
    std::fill_n(set.pixels.begin() + 24, 24, 200);
    const ImageSet out = fitted(set, 3, 8);
    CHECK(out.labels == set.labels);
    CHECK(out.class_names == set.class_names);
    CHECK(out.flip);
    require_size(out, 3, 8, 8);
    CHECK(std::count(out.pixels.begin(), out.pixels.begin() + 192, 70) == 192);  // flat stays flat
    CHECK(std::count(out.pixels.begin() + 192, out.pixels.end(), 200) == 192);
    CHECK(fitted(out, 3, 8, Crop::top).pixels == out.pixels);
}

TEST_CASE("an_image_of_one_column_and_a_million_rows_is_fitted_from_the_rows_that_count") {
    std::vector<uint8_t> column(1'000'000, 9);
    column[499'999] = 255;
    std::vector<uint8_t> out(8 * 8);
    fit(out, {.pixels = column, .height = 1'000'000, .width = 1, .channels = 1}, 1, 8, Crop::centre);
    CHECK(out[0] > 200);  // the centre lies between that row and the next
    CHECK(out[7 * 8] < 60);
    fit(out, {.pixels = column, .height = 1, .width = 1'000'000, .channels = 1}, 1, 8, Crop::top);
    CHECK(std::count(out.begin(), out.end(), 9) == 64);
}

TEST_CASE("a_line_that_would_have_two_thousand_million_pixels_is_fitted_from_those_that_count") {
    const int length = 1 << 25;
    const std::vector<uint8_t> line(length, 9);
    for (const Crop crop : {Crop::centre, Crop::top}) {
        std::vector<uint8_t> out(64 * 64);
        fit(out, {.pixels = line, .height = 1, .width = length, .channels = 1}, 1, 64, crop);
        CHECK(std::count(out.begin(), out.end(), 9) == 64 * 64);
    }
}

}  // namespace
}  // namespace jem
