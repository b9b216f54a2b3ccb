#include "tools/jem_engine/sheet.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "tests/temp_folder.h"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#include <stb/stb_image.h>

namespace jem {
namespace {

using Rgb = std::array<int, 3>;

struct Picture {
    int width = 0;
    int height = 0;
    std::vector<uint8_t> rgb;  // [height,width,3]

    Rgb at(int x, int y) const {
        const size_t i = static_cast<size_t>((y * width + x) * 3);
        return {rgb[i], rgb[i + 1], rgb[i + 2]};
    }
};

Picture decode(const std::filesystem::path& path) {
    Picture picture;
    int channels = 0;
    uint8_t* data = stbi_load(path.c_str(), &picture.width, &picture.height, &channels, 0);
    REQUIRE(data != nullptr);
    REQUIRE(channels == 3);
    picture.rgb.assign(data, data + static_cast<size_t>(picture.width) * picture.height * 3);
    stbi_image_free(data);
    return picture;
}

float from_byte(int byte) { return static_cast<float>(byte) / 127.5f - 1.0f; }

constexpr Rgb kGap = {235, 235, 235};

TEST_CASE("sheet_keeps_every_byte_value_of_a_grey_image") {
    const TempFolder folder;
    std::vector<float> image;
    for (int i = 0; i < 256; ++i) image.push_back(from_byte(i));
    write_sheet(folder.path() / "grey.png", image, {.count = 1, .height = 16, .width = 16, .channels = 1});
    const Picture picture = decode(folder.path() / "grey.png");
    REQUIRE(picture.width == 16);
    REQUIRE(picture.height == 16);
    for (int i = 0; i < 256; ++i) CHECK(picture.at(i % 16, i / 16) == Rgb{i, i, i});
}

TEST_CASE("sheet_places_scales_and_separates_the_images") {
    const TempFolder folder;
    const SheetLayout layout{.count = 5, .height = 2, .width = 4, .channels = 3, .columns = 3, .scale = 5, .gap = 3};
    std::vector<float> images;
    std::vector<int> bytes;
    for (int i = 0; i < 5 * 2 * 4 * 3; ++i) {
        bytes.push_back((i * 37 + 11) % 256);
        images.push_back(from_byte(bytes.back()));
    }
    write_sheet(folder.path() / "grid.png", images, layout);
    const Picture picture = decode(folder.path() / "grid.png");
    REQUIRE(picture.width == 3 * 20 + 2 * 3);
    REQUIRE(picture.height == 2 * 10 + 3);
    for (int y = 0; y < picture.height; ++y) {
        for (int x = 0; x < picture.width; ++x) {
            const int image = y / 13 * 3 + x / 23;
            Rgb expected = kGap;
            if (x % 23 < 20 && y % 13 < 10 && image < 5) {
                const int first = ((image * 2 + y % 13 / 5) * 4 + x % 23 / 5) * 3;
                expected = {bytes[first], bytes[first + 1], bytes[first + 2]};
            }
            INFO("pixel " << x << "," << y);
            CHECK(picture.at(x, y) == expected);
        }
    }
}

TEST_CASE("sheet_clamps_and_shows_nan_as_magenta") {
    const TempFolder folder;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    write_sheet(folder.path() / "odd.png", {-1.5f, 1.5f, -infinity, infinity, nan, 0.0f},
                {.count = 6, .height = 1, .width = 1, .channels = 1, .columns = 6, .gap = 0});
    const Picture grey = decode(folder.path() / "odd.png");
    const std::vector<Rgb> expected = {{0, 0, 0}, {255, 255, 255}, {0, 0, 0}, {255, 255, 255}, {255, 0, 255}, {128, 128, 128}};
    for (int x = 0; x < 6; ++x) CHECK(grey.at(x, 0) == expected[x]);
    write_sheet(folder.path() / "odd.png", {1.0f, nan, 1.0f}, {.count = 1, .height = 1, .width = 1, .channels = 3});
    CHECK(decode(folder.path() / "odd.png").at(0, 0) == Rgb{255, 0, 255});
}

TEST_CASE("sheet_is_no_wider_than_its_images") {
    const TempFolder folder;
    write_sheet(folder.path() / "few.png", {0, 0}, {.count = 2, .height = 1, .width = 1, .channels = 1, .columns = 10, .gap = 2});
    CHECK(decode(folder.path() / "few.png").width == 4);
}

TEST_CASE("sheet_that_cannot_be_written_is_an_error_and_leaves_nothing") {
    const TempFolder folder;
    const SheetLayout layout{.count = 1, .height = 1, .width = 1, .channels = 1};
    CHECK_THROWS_AS(write_sheet(folder.path() / "absent" / "x.png", {0}, layout), InputError);
    std::filesystem::create_directory(folder.path() / "folder.png");
    CHECK_THROWS_AS(write_sheet(folder.path() / "folder.png", {0}, layout), std::runtime_error);
    CHECK(!std::filesystem::exists(folder.path() / "folder.png.tmp"));
    SheetLayout large = layout;
    large.scale = std::numeric_limits<int>::max();
    large.gap = std::numeric_limits<int>::max();
    CHECK_THROWS_AS(write_sheet(folder.path() / "large.png", {0}, large), InputError);
    CHECK_THROWS_AS(write_sheet(folder.path() / "x.png", {0, 0}, layout), std::logic_error);
}

}  // namespace
}  // namespace jem
