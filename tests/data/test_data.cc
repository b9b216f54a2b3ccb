#include <doctest/doctest.h>
#include <sys/resource.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "data/cifar.h"
#include "data/idx.h"
#include "data/load.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using std::filesystem::path;

std::string big_endian(uint32_t value) {
    return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8), static_cast<char>(value)};
}

/// An idx3 file of `count` images whose i-th byte is i % 251.
std::string idx_images(uint32_t count, uint32_t height = 28, uint32_t width = 28) {
    std::string content = big_endian(0x803) + big_endian(count) + big_endian(height) + big_endian(width);
    for (uint32_t i = 0; i < count * height * width; ++i) content += static_cast<char>(i % 251);
    return content;
}

/// An idx1 file of the labels 0, 1, .. 9, 0, ...
std::string idx_labels(uint32_t count) {
    std::string content = big_endian(0x801) + big_endian(count);
    for (uint32_t i = 0; i < count; ++i) content += static_cast<char>(i % 10);
    return content;
}

std::string gzip(const std::string& content) {
    z_stream stream{};
    REQUIRE(deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    std::string packed(deflateBound(&stream, content.size()), '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
    stream.avail_in = static_cast<uInt>(content.size());
    stream.next_out = reinterpret_cast<Bytef*>(packed.data());
    stream.avail_out = static_cast<uInt>(packed.size());
    REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    packed.resize(stream.total_out);
    deflateEnd(&stream);
    return packed;
}

/// A CIFAR record: its label bytes, then a plane of 10 + i, 20 + i and 30 + i, except that the planes' second pixel is 1, 2, 3.
std::string cifar_record(const std::string& labels, int i) {
    std::string record = labels;
    for (int c = 0; c < 3; ++c) {
        std::string plane(1024, static_cast<char>(10 * (c + 1) + i));
        plane[1] = static_cast<char>(c + 1);
        record += plane;
    }
    return record;
}

const path kFashionDir = "/usr/share/datasets/fashion-mnist";

bool fashion_mnist_is_missing() {
    std::error_code error;
    const bool found = std::filesystem::exists(kFashionDir / "train-images-idx3-ubyte.gz", error);
    if (!found) std::fputs("skipping the test on real Fashion-MNIST (`apt install dataset-fashion-mnist` provides it)\n", stderr);
    return !found;
}

TEST_CASE("known_shape_knows_every_set_and_lists_them_for_an_unknown_name") {
    CHECK(known_shape("mnist").flip == false);
    CHECK(known_shape("fashion-mnist").height == 28);
    CHECK(known_shape("fashion-mnist").flip);
    CHECK(known_shape("cifar10").num_train == 50000);
    CHECK(known_shape("cifar100").num_classes == 100);
    CHECK_FALSE(known_shape("svhn").flip);
    for (const char* name : {"mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"}) {
        const std::vector<std::string> names = known_class_names(name);
        CHECK(static_cast<int>(names.size()) == known_shape(name).num_classes);
    }
    const std::vector<std::string> fine = known_class_names("cifar100");
    CHECK(std::is_sorted(fine.begin(), fine.end()));
    check_contains(error_of([] { known_shape("cifar11"); }), {"cifar11", "mnist, fashion-mnist, cifar10, cifar100, svhn, images"});
    check_contains(error_of([] { load_image_set("cifar11", "", Split::train); }), {"cifar11", "cifar100"});
}

TEST_CASE("idx_reader_returns_what_was_written_plain_or_gzipped_whatever_the_name") {
    const TempFolder folder;
    const std::string images = idx_images(3);
    const std::vector<uint8_t> pixels(images.begin() + 16, images.end());
    CHECK(read_idx_images(folder.write("plain", images), 28, 28) == pixels);
    CHECK(read_idx_images(folder.write("plain.gz", images), 28, 28) == pixels);
    CHECK(read_idx_images(folder.write("packed", gzip(images)), 28, 28) == pixels);
    CHECK(read_idx_labels(folder.write("labels.gz", gzip(idx_labels(4))), 10) == std::vector<int32_t>{0, 1, 2, 3});
}

TEST_CASE("idx_reader_joins_gzip_members") {
    const TempFolder folder;
    const std::string images = idx_images(3);
    const path file = folder.write("two", gzip(images.substr(0, 100)) + gzip(images.substr(100)));
    CHECK(read_idx_images(file, 28, 28).size() == 3 * 784);
}

TEST_CASE("idx_reader_names_file_offset_and_expected_magic") {
    const TempFolder folder;
    for (const bool packed : {false, true}) {
        const path file = folder.write("wrong", packed ? gzip(idx_labels(4)) : idx_labels(4));
        check_contains(error_of([&] { read_idx_images(file, 28, 28); }), {file.string(), "at byte 0", "0x00000801", "expected 0x00000803"});
    }
}

TEST_CASE("idx_reader_refuses_every_truncation") {
    const TempFolder folder;
    const std::string images = idx_images(2);
    const std::string packed = gzip(images);
    for (size_t length = 0; length < images.size(); ++length) {
        const path file = folder.write("cut", images.substr(0, length));
        check_contains(error_of([&] { read_idx_images(file, 28, 28); }), {file.string(), "at byte", "expected"});
    }
    for (size_t length = 0; length < packed.size(); ++length) {
        const path file = folder.write("cut.gz", packed.substr(0, length));
        check_contains(error_of([&] { read_idx_images(file, 28, 28); }), {file.string(), "at byte"});
    }
}

TEST_CASE("idx_reader_refuses_bytes_after_the_end") {
    const TempFolder folder;
    const std::string end = std::to_string(16 + 2 * 784);
    check_contains(error_of([&] { read_idx_images(folder.write("long", idx_images(2) + "x"), 28, 28); }), {"at byte " + end, "goes on"});
    check_contains(error_of([&] { read_idx_images(folder.write("long", gzip(idx_images(2) + "x")), 28, 28); }), {"at byte " + end});
    check_contains(error_of([&] { read_idx_images(folder.write("long", gzip(idx_images(2)) + "garbage"), 28, 28); }), {"broken gzip"});
}

TEST_CASE("idx_reader_never_accepts_a_changed_byte_of_a_gzip_file_silently") {
    const TempFolder folder;
    const std::string labels = idx_labels(40);
    const std::string packed = gzip(labels);
    const std::vector<int32_t> good = read_idx_labels(folder.write("good", packed), 10);
    for (size_t i = 0; i < packed.size(); ++i) {
        for (int bit = 0; bit < 8; ++bit) {
            std::string damaged = packed;
            damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
            const path file = folder.write("damaged", damaged);
            INFO("byte " << i << ", bit " << bit);
            try {  // some header bytes (time, system) mean nothing: then the content is the same
                const std::vector<int32_t> read = read_idx_labels(file, 10);
                CHECK(read == good);
            } catch (const InputError& error) {
                check_contains(error.what(), {file.string(), "at byte"});
            }
        }
    }
}

TEST_CASE("idx_reader_reports_a_wrong_crc") {
    const TempFolder folder;
    std::string packed = gzip(idx_labels(40));
    packed[packed.size() - 5] ^= 1;
    check_contains(error_of([&] { read_idx_labels(folder.write("crc", packed), 10); }), {"broken gzip", "incorrect data check"});
}

TEST_CASE("idx_reader_allocates_no_more_than_the_file_can_hold") {
    const TempFolder folder;
    const std::string header = big_endian(0x803) + big_endian(0xffffffff) + big_endian(28) + big_endian(28);
    rusage before{};
    getrusage(RUSAGE_SELF, &before);
    for (const std::string& content : {header + "abc", gzip(header + std::string(100000, 'a'))}) {
        const path file = folder.write("absurd", content);
        check_contains(error_of([&] { read_idx_images(file, 28, 28); }), {"at byte 4", "4294967295 images", "too short"});
    }
    rusage after{};
    getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_maxrss - before.ru_maxrss < 100 * 1024);  // KiB
    check_contains(error_of([&] { read_idx_labels(folder.write("none", big_endian(0x801) + big_endian(0)), 10); }), {"0 labels"});
}

TEST_CASE("idx_reader_refuses_another_image_size_and_labels_out_of_range") {
    const TempFolder folder;
    check_contains(error_of([&] { read_idx_images(folder.write("size", idx_images(2, 32, 28)), 28, 28); }),
                   {"at byte 8", "32x28", "expected 28x28"});
    check_contains(error_of([&] { read_idx_labels(folder.write("labels", idx_labels(10)), 7); }), {"at byte 15", "label 7", "0 to 6"});
}

TEST_CASE("readers_name_a_missing_file_and_a_folder_in_its_place") {
    const TempFolder folder;
    check_contains(error_of([&] { read_idx_images(folder.path() / "absent", 28, 28); }), {"absent", "No such file"});
    check_contains(error_of([&] { read_idx_images(folder.path(), 28, 28); }), {folder.path().string()});
    std::vector<uint8_t> pixels;
    std::vector<int32_t> labels;
    check_contains(error_of([&] { append_cifar10_file(pixels, labels, folder.path() / "absent"); }), {"absent", "No such file"});
}

TEST_CASE("loader_finds_mnist_under_each_customary_name") {
    for (const char* separator : {"-", "."}) {
        for (const char* ending : {"", ".gz"}) {
            const TempFolder folder;
            const std::string tail = std::string("-ubyte") + ending;
            folder.write("t10k-images" + std::string(separator) + "idx3" + tail, gzip(idx_images(5)));
            folder.write("t10k-labels" + std::string(separator) + "idx1" + tail, idx_labels(5));
            const ImageSet set = load_image_set("mnist", folder.path(), Split::test);
            CHECK(set.count() == 5);
            CHECK(set.pixels.size() == 5 * 784);
            CHECK(set.labels[4] == 4);
            CHECK(set.class_names.size() == 10);
            CHECK_FALSE(set.flip);
            check_contains(error_of([&] { load_image_set("mnist", folder.path(), Split::train); }), {"train-images-idx3-ubyte"});
        }
    }
}

TEST_CASE("loader_refuses_images_and_labels_of_different_count") {
    const TempFolder folder;
    folder.write("train-images-idx3-ubyte", idx_images(5));
    const path labels = folder.write("train-labels-idx1-ubyte", idx_labels(4));
    check_contains(error_of([&] { load_image_set("mnist", folder.path(), Split::train); }),
                   {labels.string(), "at byte 4", "4 labels", "5"});
}

TEST_CASE("loader_says_what_it_needs_where_data_is_missing") {
    CHECK(default_data_dir("fashion-mnist") == kFashionDir);
    CHECK(default_data_dir("cifar10").empty());
    check_contains(error_of([] { load_image_set("cifar10", "", Split::train); }), {"--data-dir", "data_batch_1.bin", "test_batch.bin"});
    check_contains(error_of([] { load_image_set("cifar100", "", Split::train); }), {"--data-dir", "train.bin"});
    check_contains(error_of([] { load_image_set("mnist", "", Split::train); }), {"--data-dir", "train-images-idx3-ubyte"});
    const TempFolder folder;
    check_contains(error_of([&] { load_image_set("fashion-mnist", folder.path(), Split::train); }), {"apt install dataset-fashion-mnist"});
    check_contains(error_of([&] { load_image_set("mnist", folder.path() / "no", Split::train); }), {"not a folder"});
}

TEST_CASE("a_known_set_is_a_row_whose_images_may_have_any_size_that_its_files_have") {
    const TempFolder folder;
    folder.write("train-images-idx3-ubyte", idx_images(5, 4, 6));
    folder.write("train-labels-idx1-ubyte", idx_labels(5));
    KnownSet known = known_set("mnist");
    known.name = "oblong";
    known.shape.height = 4;
    known.shape.width = 6;
    known.shape.flip = true;
    const ImageSet set = load_image_set(known, folder.path(), Split::train);
    CHECK(set.name == "oblong");
    CHECK(set.flip);
    CHECK(set.count() == 5);
    CHECK(set.pixels.size() == 5 * 24);

    std::swap(known.shape.height, known.shape.width);  // another order of the same sizes is another image
    check_contains(error_of([&] { load_image_set(known, folder.path(), Split::train); }), {"images of 4x6", "expected 6x4"});
    std::swap(known.shape.height, known.shape.width);
    known.shape.channels = 3;  // an idx file holds one
    check_contains(error_of([&] { load_image_set(known, folder.path(), Split::train); }), {"oblong", "120 bytes", "3x4x6", "360"});
    KnownSet cifar = known_set("cifar10");  // its records hold 3x32x32
    cifar.shape.width = 16;
    folder.write("test_batch.bin", cifar_record({9}, 0));
    check_contains(error_of([&] { load_image_set(cifar, folder.path(), Split::test); }), {"cifar10", "3x32x16"});
}

TEST_CASE("a_set_of_another_size_than_wanted_is_refused_by_name_and_sizes") {
    ImageSet set;
    set.name = "oblong";
    set.channels = 1;
    set.height = 4;
    set.width = 6;
    set.pixels.resize(24);
    set.labels = {0};
    require_size(set, 1, 4, 6);
    for (const std::array<int, 3>& wanted : {std::array{3, 4, 6}, std::array{1, 6, 4}, std::array{1, 6, 6}, std::array{1, 4, 4}})
        check_contains(error_of([&] { require_size(set, wanted[0], wanted[1], wanted[2]); }), {"oblong", "1x4x6"});
    set.labels.push_back(0);
    check_contains(error_of([&] { require_size(set, 1, 4, 6); }), {"oblong", "24 bytes", "48"});
}

TEST_CASE("cifar10_is_read_in_order_with_channels_last_from_either_folder") {
    for (const char* sub : {"", "cifar-10-batches-bin"}) {
        const TempFolder folder;
        for (int i = 1; i <= 5; ++i) {
            folder.write(path(sub) / ("data_batch_" + std::to_string(i) + ".bin"), cifar_record({static_cast<char>(i)}, i));
        }
        folder.write(path(sub) / "test_batch.bin", cifar_record({9}, 0) + cifar_record({8}, 1));
        const ImageSet train = load_image_set("cifar10", folder.path(), Split::train);
        CHECK(train.labels == std::vector<int32_t>{1, 2, 3, 4, 5});
        REQUIRE(train.pixels.size() == 5 * 3072);
        const uint8_t* third = &train.pixels[2 * 3072];
        CHECK(std::vector<int>(third, third + 9) == std::vector<int>{13, 23, 33, 1, 2, 3, 13, 23, 33});
        CHECK(load_image_set("cifar10", folder.path(), Split::test).labels == std::vector<int32_t>{9, 8});

        std::filesystem::remove(folder.path() / sub / "data_batch_4.bin");
        check_contains(error_of([&] { load_image_set("cifar10", folder.path(), Split::train); }), {"no data_batch_4.bin"});
    }
}

TEST_CASE("cifar100_keeps_the_fine_label") {
    const TempFolder folder;
    folder.write("cifar-100-binary/train.bin", cifar_record({19, 99}, 0) + cifar_record({0, 42}, 1));
    CHECK(load_image_set("cifar100", folder.path(), Split::train).labels == std::vector<int32_t>{99, 42});
}

TEST_CASE("cifar_reader_names_file_and_offset_of_the_damage") {
    const TempFolder folder;
    std::vector<uint8_t> pixels;
    std::vector<int32_t> labels;
    const std::string record = cifar_record({3}, 0);
    for (const std::string& content : {std::string(), record.substr(1), record + "x"}) {
        const path file = folder.write("cut.bin", content);
        check_contains(error_of([&] { append_cifar10_file(pixels, labels, file); }),
                       {file.string(), "at byte " + std::to_string(content.size()), "records of 3073 bytes"});
    }
    const path ten = folder.write("ten.bin", record + cifar_record({10}, 0));
    check_contains(error_of([&] { append_cifar10_file(pixels, labels, ten); }), {"at byte 3073", "label 10", "0 to 9"});
    const path coarse = folder.write("coarse.bin", cifar_record({20, 0}, 0));
    check_contains(error_of([&] { append_cifar100_file(pixels, labels, coarse); }), {"at byte 0", "label 20", "0 to 19"});
    const path fine = folder.write("fine.bin", cifar_record({19, 100}, 0));
    check_contains(error_of([&] { append_cifar100_file(pixels, labels, fine); }), {"at byte 1", "label 100", "0 to 99"});
}

TEST_CASE("real_fashion_mnist_has_the_published_counts" * doctest::skip(fashion_mnist_is_missing())) {
    const ImageSet train = load_image_set("fashion-mnist", "", Split::train);
    const ImageSet test = load_image_set("fashion-mnist", "", Split::test);
    CHECK(train.count() == known_shape("fashion-mnist").num_train);
    CHECK(test.count() == known_shape("fashion-mnist").num_test);
    CHECK(train.pixels.size() == 60000 * 784);
    for (int label = 0; label < 10; ++label) {
        CHECK(std::count(train.labels.begin(), train.labels.end(), label) == 6000);
        CHECK(std::count(test.labels.begin(), test.labels.end(), label) == 1000);
    }
}

}  // namespace
}  // namespace jem
