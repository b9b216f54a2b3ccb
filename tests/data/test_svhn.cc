#include "data/svhn.h"

#include <doctest/doctest.h>
#ifdef JEM_HAS_MATIO
#include <matio.h>
#endif

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "data/load.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using std::filesystem::path;

#ifdef JEM_HAS_MATIO
uint8_t pixel(size_t h, size_t w, size_t c, size_t n) { return static_cast<uint8_t>((h * 7 + w * 13 + c * 50 + n * 31) % 251); }

struct Array {
    const char* name;
    matio_classes kind;
    matio_types type;
    std::vector<size_t> sizes;
    std::vector<uint8_t> bytes;
    int flags = 0;
};

Array images(size_t count) {
    Array x{.name = "X", .kind = MAT_C_UINT8, .type = MAT_T_UINT8, .sizes = {32, 32, 3, count}, .bytes = {}};
    for (size_t n = 0; n < count; ++n)
        for (size_t c = 0; c < 3; ++c)
            for (size_t w = 0; w < 32; ++w)
                for (size_t h = 0; h < 32; ++h) x.bytes.push_back(pixel(h, w, c, n));
    return x;
}

Array labels(std::vector<uint8_t> values) {
    const size_t count = values.size();
    return {.name = "y", .kind = MAT_C_UINT8, .type = MAT_T_UINT8, .sizes = {count, 1}, .bytes = std::move(values)};
}

Array real_labels(const std::vector<double>& values) {
    Array y{.name = "y", .kind = MAT_C_DOUBLE, .type = MAT_T_DOUBLE, .sizes = {values.size(), 1}, .bytes = {}};
    y.bytes.resize(values.size() * sizeof(double));
    std::memcpy(y.bytes.data(), values.data(), y.bytes.size());
    return y;
}

path write_mat(const path& file, std::vector<Array> arrays, matio_compression packed = MAT_COMPRESSION_ZLIB) {
    const std::unique_ptr<mat_t, int (*)(mat_t*)> mat(Mat_CreateVer(file.c_str(), nullptr, MAT_FT_MAT5), Mat_Close);
    REQUIRE(mat);
    for (Array& a : arrays) {
        mat_complex_split_t both{a.bytes.data(), a.bytes.data()};
        void* data = a.flags & MAT_F_COMPLEX ? static_cast<void*>(&both) : a.bytes.data();
        const std::unique_ptr<matvar_t, void (*)(matvar_t*)> variable(
            Mat_VarCreate(a.name, a.kind, a.type, static_cast<int>(a.sizes.size()), a.sizes.data(), data, a.flags), Mat_VarFree);
        REQUIRE(variable);
        REQUIRE(Mat_VarWrite(mat.get(), variable.get(), packed) == 0);
    }
    return file;
}

ImageSet read(const path& file) {
    ImageSet set;
    read_svhn_set(set, {file});
    return set;
}

TEST_CASE("svhn_is_read_row_by_row_with_ten_for_the_digit_zero_packed_or_not") {
    const TempFolder folder;
    for (const matio_compression packed : {MAT_COMPRESSION_NONE, MAT_COMPRESSION_ZLIB}) {
        write_mat(folder.path() / "test_32x32.mat", {images(3), labels({10, 1, 9})}, packed);
        const ImageSet set = load_image_set("svhn", folder.path(), Split::test);
        CHECK(set.labels == std::vector<int32_t>{0, 1, 9});
        REQUIRE(set.pixels.size() == 3 * 3072);
        bool same = true;
        for (size_t i = 0; i < set.pixels.size(); ++i) same = same && set.pixels[i] == pixel(i / 96 % 32, i / 3 % 32, i % 3, i / 3072);
        CHECK(same);
        CHECK_FALSE(set.flip);
    }
    check_contains(error_of([&] { load_image_set("svhn", folder.path(), Split::train); }), {"train_32x32.mat"});
    write_mat(folder.path() / "train_32x32.mat", {real_labels({2, 10}), images(2)});
    CHECK(load_image_set("svhn", folder.path(), Split::train).labels == std::vector<int32_t>{2, 0});
}

TEST_CASE("svhn_of_another_class_rank_or_size_is_refused_by_its_header") {
    const TempFolder folder;
    const auto refused = [&](const std::vector<Array>& arrays, const std::vector<std::string>& parts) {
        const path file = write_mat(folder.path() / "odd.mat", arrays, MAT_COMPRESSION_NONE);
        const std::string text = error_of([&] { read(file); });
        check_contains(text, {file.string()});
        check_contains(text, parts);
    };
    Array floats = images(2), flat = images(2), other = images(2), text = images(1), complex = images(2);
    floats.kind = MAT_C_SINGLE;
    floats.type = MAT_T_SINGLE;
    floats.bytes.resize(4 * floats.bytes.size());
    refused({floats, labels({1, 2})}, {"X is of MATLAB's class 7", "uint8"});
    flat.sizes = {32 * 32 * 3, 2};
    refused({flat, labels({1, 2})}, {"X is 3072x2", "32x32x3xN"});
    other.sizes = {32, 3, 32, 2};
    refused({other, labels({1, 2})}, {"X is 32x3x32x2"});
    text.kind = MAT_C_CHAR;
    text.type = MAT_T_UTF8;
    refused({text, labels({1})}, {"X is of MATLAB's class 4"});
    complex.flags = MAT_F_COMPLEX;
    refused({complex, labels({1, 2})}, {"real uint8"});
    refused({images(2), labels({1, 2, 3})}, {"y is of", "3x1", "2x1"});
    refused({images(2), real_labels({1, 2.5})}, {"label 1 is 2.5", "1 to 10"});
    refused({images(2), labels({0, 1})}, {"label 0 is 0"});
    refused({images(2)}, {"no readable variable y"});
    refused({labels({1})}, {"no readable variable X"});
}

TEST_CASE("svhn_cut_anywhere_or_with_a_changed_byte_is_refused_or_means_the_same") {
    const TempFolder folder;
    const std::string whole = [&] {
        write_mat(folder.path() / "whole.mat", {images(2), labels({4, 10})});
        return folder.read("whole.mat");
    }();
    const ImageSet good = read(folder.path() / "whole.mat");
    for (size_t length = 0; length < whole.size(); length += length < 200 || length > whole.size() - 100 ? 1 : 37)
        check_contains(error_of([&] { read(folder.write("cut.mat", whole.substr(0, length))); }), {"cut.mat"});
    for (size_t i = 124; i < whole.size(); i += i < 160 || i > whole.size() - 60 ? 1 : 13) {
        std::string damaged = whole;
        damaged[i] = static_cast<char>(damaged[i] ^ 0x11);
        INFO("byte " << i);
        try {  // a bit of zlib's header may say the same in another way
            const ImageSet set = read(folder.write("damaged.mat", damaged));
            CHECK(set.pixels == good.pixels);
            CHECK(set.labels == good.labels);
        } catch (const InputError& error) {
            check_contains(error.what(), {"damaged.mat"});
        }
    }
    check_contains(error_of([&] { read(folder.write("text.mat", std::string(5000, 'x'))); }), {"text.mat", "MATLAB 5"});
    check_contains(error_of([&] { read(folder.path() / "absent.mat"); }), {"absent.mat", "No such file"});
}

TEST_CASE("svhn_that_announces_more_images_than_it_holds_allocates_nothing_for_them") {
    const TempFolder folder;
    std::string file;
    {
        write_mat(folder.path() / "plain.mat", {images(2), labels({4, 10})}, MAT_COMPRESSION_NONE);
        file = folder.read("plain.mat");
    }
    // 128 of header, tags of the element, of its flags (16 bytes in all), of its sizes: the fourth
    const size_t at = 128 + 8 + 16 + 8 + 12;
    REQUIRE(file[at] == 2);
    for (const char byte : {3, 100, -1}) {
        file[at] = byte;
        file[at + 2] = byte;
        check_contains(error_of([&] { read(folder.write("many.mat", file)); }), {"more than the file holds"});
    }
}

TEST_CASE("svhn_whose_arrays_are_no_plain_ones_or_announce_too_much_is_refused_before_libmatio_sees_it") {
    const TempFolder folder;
    write_mat(folder.path() / "plain.mat", {images(2), labels({4, 10})}, MAT_COMPRESSION_NONE);
    const std::string plain = folder.read("plain.mat");
    const auto refused = [&](size_t at, const std::string& bytes, const std::string& why) {
        std::string file = plain;
        file.replace(at, bytes.size(), bytes);
        check_contains(error_of([&] { read(folder.write("odd.mat", file)); }), {"odd.mat", why});
    };
    const size_t flags = 128 + 8, sizes = flags + 16, name = sizes + 8 + 16, data = name + 8;
    refused(flags + 4, std::string(1, '\0'), "without flags");
    for (const char kind : {1, 2, 3, 5, 16, 17}) refused(flags + 8, std::string(1, kind), "class " + std::to_string(kind));
    refused(sizes + 4, "\xf0\xff\xff\x7f", "without 2 to 8 sizes");
    refused(sizes + 8, "\xff\xff\xff\xff", "beyond any file");
    refused(name, std::string("\1\0\0\0\xff\xff\xff\x7f", 8), "without a name");
    refused(data, std::string("\x0e\0\0\0", 4), "unknown type 14");
    refused(data + 4, "\xff\xff\xff\x7f", "ends before its values");
}
#else
TEST_CASE("a_build_without_libmatio_says_how_to_get_svhn") {
    const TempFolder folder;
    folder.write("test_32x32.mat", "");
    check_contains(error_of([&] { load_image_set("svhn", folder.path(), Split::test); }), {"test_32x32.mat", "libmatio-dev"});
}
#endif

}  // namespace
}  // namespace jem
