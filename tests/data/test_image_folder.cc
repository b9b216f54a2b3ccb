#include "data/image_folder.h"

#include <doctest/doctest.h>
#include <stb/stb_image_write.h>
#include <sys/resource.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <variant>
#include <vector>

#include "data/load.h"
#include "data/picture.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using std::filesystem::path;

/// A picture of one colour.
std::vector<uint8_t> flat(int height, int width, const std::vector<uint8_t>& colour) {
    std::vector<uint8_t> pixels;
    for (int i = 0; i < height * width; ++i) pixels.insert(pixels.end(), colour.begin(), colour.end());
    return pixels;
}

/// By the ending of the name.
path write_picture(const TempFolder& folder, const path& name, const std::vector<uint8_t>& colour, int height = 8, int width = 8) {
    const path file = folder.write(name, "");
    const std::vector<uint8_t> pixels = flat(height, width, colour);
    const int channels = static_cast<int>(colour.size());
    int written = 0;
    if (file.extension() == ".bmp")
        written = stbi_write_bmp(file.c_str(), width, height, channels, pixels.data());
    else if (file.extension() == ".jpg" || file.extension() == ".JPEG")
        written = stbi_write_jpg(file.c_str(), width, height, channels, pixels.data(), 95);
    else
        written = stbi_write_png(file.c_str(), width, height, channels, pixels.data(), 0);
    REQUIRE(written != 0);
    return file;
}

std::string why_not(const path& file) {
    const auto read = read_picture(file);
    REQUIRE(std::holds_alternative<std::string>(read));
    return std::get<std::string>(read);
}

LoadOptions fit_to(int channels, int size) { return {.channels = channels, .size = size}; }

std::vector<std::string> names_of(const ImageFolder& listed) {
    std::vector<std::string> names;
    for (const path& file : listed.files) names.push_back(file.lexically_relative(listed.root).string());
    return names;
}

TEST_CASE("pictures_of_every_format_and_channel_count_are_read_without_their_transparency") {
    const TempFolder folder;
    for (const char* ending : {".png", ".bmp", ".jpg"}) {
        for (const std::vector<uint8_t>& colour : {std::vector<uint8_t>{90}, {90, 7}, {200, 30, 60}, {200, 30, 60, 7}}) {
            INFO(ending << " of " << colour.size() << " channels");
            const auto read = read_picture(write_picture(folder, std::string("one") + ending, colour, 3, 5));
            REQUIRE(std::holds_alternative<DecodedPicture>(read));
            const auto& p = std::get<DecodedPicture>(read);
            CHECK(p.height == 3);
            CHECK(p.width == 5);
            REQUIRE(p.pixels.size() == static_cast<size_t>(15 * p.channels));
            // what stb writes as BMP and JPEG has three channels always
            CHECK(p.channels == (colour.size() < 3 && std::string(ending) == ".png" ? 1 : 3));
            if (std::string(ending) == ".bmp" && colour.size() % 2 == 0) continue;  // it writes them blended
            for (size_t i = 0; i < p.pixels.size(); ++i) {
                const int wanted = colour.size() < 3 ? colour[0] : colour[i % 3];
                CHECK(std::abs(p.pixels[i] - wanted) <= (std::string(ending) == ".jpg" ? 3 : 0));
            }
        }
    }
}

TEST_CASE("a_picture_cut_anywhere_is_refused") {
    const TempFolder folder;
    for (const char* name : {"a.png", "a.bmp", "a.jpg"}) {
        std::vector<uint8_t> noise(3 * 12 * 9);
        for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<uint8_t>(i * i * 31 % 253);
        const path whole = folder.path() / name;
        if (whole.extension() == ".png") stbi_write_png(whole.c_str(), 12, 9, 3, noise.data(), 0);
        if (whole.extension() == ".bmp") stbi_write_bmp(whole.c_str(), 12, 9, 3, noise.data());
        if (whole.extension() == ".jpg") stbi_write_jpg(whole.c_str(), 12, 9, 3, noise.data(), 90);
        CHECK(std::holds_alternative<DecodedPicture>(read_picture(whole)));
        const std::string content = folder.read(name);
        for (size_t length = 0; length < content.size(); ++length) {
            INFO(name << " of " << length << " in place of " << content.size() << " bytes");
            CHECK_FALSE(why_not(folder.write(std::string("cut_") + name, content.substr(0, length))).empty());
        }
    }
}

TEST_CASE("a_changed_byte_of_a_png_is_refused") {
    const TempFolder folder;
    write_picture(folder, "a.png", {1, 2, 3});
    const std::string content = folder.read("a.png");
    for (size_t i = 0; i < content.size(); ++i) {
        std::string damaged = content;
        damaged[i] = static_cast<char>(damaged[i] ^ 4);
        INFO("byte " << i);
        CHECK_FALSE(why_not(folder.write("b.png", damaged)).empty());
    }
}

/// A PNG that announces `width` x `height` pixels, its checksums right, and holds these, as they are packed.
std::string png_of_size(uint32_t width, uint32_t height, const std::string& packed = "xx") {
    const auto u32 = [](uint32_t v) {
        return std::string{static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)};
    };
    const auto chunk = [&](const std::string& name, const std::string& data) {
        const std::string body = name + data;
        return u32(static_cast<uint32_t>(data.size())) + body +
               u32(static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()))));
    };
    return "\x89PNG\r\n\x1a\n" + chunk("IHDR", u32(width) + u32(height) + std::string("\x08\x02\0\0\0", 5)) + chunk("IDAT", packed) +
           chunk("IEND", "");
}

TEST_CASE("a_picture_that_announces_a_hundred_thousand_rows_is_refused_before_room_is_made") {
    const TempFolder folder;
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    check_contains(why_not(folder.write("huge.png", png_of_size(100'000, 100'000))), {"too many pixels"});
    check_contains(why_not(folder.write("large.png", png_of_size(9000, 9000))), {"9000x9000 pixels", "67108864"});
    for (const auto& [width, height] : {std::pair{0U, 5U}, {0x7fffffffU, 0x7fffffffU}, {0xffffffffU, 1U}})
        CHECK_FALSE(why_not(folder.write("odd.png", png_of_size(width, height))).empty());
    std::string bmp = [&] {
        write_picture(folder, "a.bmp", {1, 2, 3});
        return folder.read("a.bmp");
    }();
    bmp.replace(18, 8, std::string("\xa0\x86\x01\0\xa0\x86\x01\0", 8));
    check_contains(why_not(folder.write("huge.bmp", bmp)), {"100000x100000"});
    getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_maxrss - before.ru_maxrss < 100 * 1024);  // KiB
}

TEST_CASE("a_png_that_unpacks_to_more_or_less_than_it_announces_is_refused_before_it_is_decoded") {
    const TempFolder folder;
    const auto packed = [](size_t zeros) {
        const std::string pixels(zeros, '\0');
        std::string out(compressBound(zeros), '\0');
        uLongf size = out.size();
        REQUIRE(compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(pixels.data()), zeros, 1) == Z_OK);
        return out.substr(0, size);
    };
    const size_t whole = 2 * (1 + 3 * 3);
    CHECK(std::holds_alternative<DecodedPicture>(read_picture(folder.write("a.png", png_of_size(3, 2, packed(whole))))));
    CHECK(std::holds_alternative<DecodedPicture>(read_picture(folder.write("a.png", png_of_size(3, 2, packed(whole + 9))))));
    check_contains(why_not(folder.write("a.png", png_of_size(3, 2, packed(whole - 1)))), {"too few pixels"});
    check_contains(why_not(folder.write("a.png", png_of_size(3, 2, packed(16 << 20)))), {"more pixels than it announces"});
    check_contains(why_not(folder.write("a.png", png_of_size(3, 2, "xxxx"))), {"cannot be unpacked"});
}

TEST_CASE("a_jpeg_whose_tables_size_or_scans_ask_for_too_much_is_refused_before_it_is_decoded") {
    const TempFolder folder;
    write_picture(folder, "a.jpg", {200, 30, 60});
    const std::string good = folder.read("a.jpg");
    std::string counts(16, '\0');
    counts[7] = counts[8] = '\xff';
    const std::string table = std::string("\xff\xc4\x02\x11\x00", 5) + counts + std::string(510, 'x');
    check_contains(why_not(folder.write("b.jpg", good.substr(0, 2) + table + good.substr(2))), {"table of 510 codes"});

    const size_t frame = good.find("\xff\xc0"), scan = good.find("\xff\xda");
    REQUIRE((frame != std::string::npos && scan != std::string::npos));
    std::string large = good;
    large.replace(frame + 5, 4, "\x1f\x40\x1f\x40");
    check_contains(why_not(folder.write("b.jpg", large)), {"more pixels than it can hold"});

    std::string many = good.substr(0, good.size() - 2);
    const std::string once = many.substr(scan);
    for (int i = 0; i < 100; ++i) many += once;
    check_contains(why_not(folder.write("b.jpg", many + "\xff\xd9")), {"more than 100 scans"});
}

TEST_CASE("a_jpeg_that_uses_tables_which_it_never_defines_means_the_same_whatever_lay_in_memory") {
    const TempFolder folder;
    write_picture(folder, "a.jpg", {200, 30, 60});
    std::string bare = folder.read("a.jpg");
    for (size_t at; (at = bare.find("\xff\xc4")) != std::string::npos;)
        bare.erase(at, 2 + size_t{static_cast<uint8_t>(bare[at + 2])} * 256 + static_cast<uint8_t>(bare[at + 3]));
    const size_t scan = bare.find("\xff\xda");
    bare.replace(scan + 2 + static_cast<uint8_t>(bare[scan + 3]), std::string::npos, std::string(20, '\0') + "\xff\xd9");
    folder.write("bare.jpg", bare);
    std::vector<std::string> meanings;
    for (const char fill : {'\0', '\x55', '\xff'}) {
        std::vector<std::string> dirt;
        for (size_t bytes = 1024; bytes <= 65536; bytes += 256) dirt.emplace_back(bytes, fill);
        REQUIRE(dirt.back().back() == fill);
        dirt.clear();
        const auto read = read_picture(folder.path() / "bare.jpg");
        const auto* p = std::get_if<DecodedPicture>(&read);
        meanings.push_back(p ? std::string(p->pixels.begin(), p->pixels.end()) : std::get<std::string>(read));
    }
    CHECK((meanings[1] == meanings[0]));
    CHECK((meanings[2] == meanings[0]));
}

TEST_CASE("what_is_no_picture_is_named_by_what_it_is") {
    const TempFolder folder;
    check_contains(why_not(folder.write("a.png", "")), {"empty"});
    check_contains(why_not(folder.write("a.png", "GIF89a and more")), {"no PNG, JPEG or BMP"});
    check_contains(why_not(folder.path() / "absent.png"), {"No such file"});
    CHECK_FALSE(why_not(folder.path()).empty());
    CHECK_FALSE(why_not(folder.write("a.jpg", "\xff\xd8\xff\xe0 garbage \xff\xda \xff\xd9")).empty());
}

TEST_CASE("a_folder_a_class_is_read_in_the_order_of_names_whatever_the_disk_says") {
    const TempFolder folder;
    write_picture(folder, "b/2.png", {20});
    write_picture(folder, "b/10.bmp", {10});
    write_picture(folder, "Zebra/x.JPEG", {30});
    write_picture(folder, "a/deep/y.png", {40});
    write_picture(folder, "a/z.png", {50});
    folder.write("a/notes.txt", "no image");
    folder.write("labels.csv", "no image");
    folder.write(".hidden/x.png", "no image");
    folder.write("b/.x.png", "no image");
    const ImageFolder listed = list_image_folder(folder.path(), Split::test, Classes::needed);
    CHECK(names_of(listed) == std::vector<std::string>{"Zebra/x.JPEG", "a/z.png", "a/deep/y.png", "b/10.bmp", "b/2.png"});
    CHECK(listed.class_names == std::vector<std::string>{"Zebra", "a", "b"});

    const ImageSet set = load_image_set("images", folder.path(), Split::train, fit_to(1, 8));
    CHECK(set.labels == std::vector<int32_t>{0, 1, 1, 2, 2});
    CHECK(set.num_classes == 3);
    CHECK_FALSE(set.flip);
    require_size(set, 1, 8, 8);
    const std::vector<int> wanted = {30, 50, 40, 10, 20};
    for (size_t i = 0; i < 5; ++i) CHECK(std::abs(set.pixels[i * 64] - wanted[i]) <= 2);
    CHECK(known_shape("images", folder.path()).num_classes == 3);
    CHECK(known_shape("images", folder.path()).num_train == 5);
    CHECK(known_shape("images").num_train == 0);
    CHECK(image_files("images", folder.path()).size() == 10);
}

TEST_CASE("the_folders_train_and_test_are_a_sets_parts_unless_one_alone_is_a_class") {
    const TempFolder folder;
    write_picture(folder, "train/cat/1.png", {1});
    write_picture(folder, "train/dog/1.png", {2});
    write_picture(folder, "train/dog/2.png", {3});
    const auto list = [&](Split split) { return list_image_folder(folder.path(), split, Classes::needed); };
    CHECK(names_of(list(Split::train)).size() == 3);
    check_contains(error_of([&] { list(Split::test); }), {"no folder", "test"});
    write_picture(folder, "test/dog/1.png", {4});
    check_contains(error_of([&] { list(Split::train); }), {"different classes", "test lacks cat"});
    write_picture(folder, "test/emu/1.png", {4});
    check_contains(error_of([&] { list(Split::test); }), {"test lacks cat; train lacks emu"});
    std::filesystem::rename(folder.path() / "test/emu", folder.path() / "test/cat");
    CHECK(names_of(list(Split::test)) == std::vector<std::string>{"cat/1.png", "dog/1.png"});
    CHECK(has_parts(folder.path()));
    CHECK(known_shape("images", folder.path()).num_test == 2);

    const TempFolder vehicles;
    for (const char* name : {"bus/1.png", "train/1.png"}) write_picture(vehicles, name, {1});
    CHECK_FALSE(has_parts(vehicles.path()));
    CHECK(list_image_folder(vehicles.path(), Split::train, Classes::needed).class_names == std::vector<std::string>{"bus", "train"});
}

TEST_CASE("links_lead_to_images_and_classes_but_not_round_in_a_circle") {
    const TempFolder folder, elsewhere;
    write_picture(folder, "a/1.png", {1});
    write_picture(elsewhere, "2.png", {2});
    std::filesystem::create_directory_symlink(elsewhere.path(), folder.path() / "b");
    std::filesystem::create_symlink(elsewhere.path() / "2.png", folder.path() / "a/2.png");
    std::filesystem::create_directory_symlink(folder.path(), folder.path() / "round");
    std::filesystem::create_directory_symlink(folder.path(), folder.path() / "a/up");
    const ImageFolder listed = list_image_folder(folder.path(), Split::train, Classes::needed);
    CHECK(names_of(listed) == std::vector<std::string>{"a/1.png", "a/2.png", "b/2.png"});
    std::filesystem::create_symlink("nowhere", folder.path() / "a/3.png");
    check_contains(error_of([&] { load_image_set("images", folder.path(), Split::train, fit_to(1, 8)); }), {"a/3.png: No such file"});
}

TEST_CASE("a_folder_without_images_or_with_one_class_or_an_empty_one_is_refused") {
    const TempFolder folder;
    const auto list = [&](Classes classes) { return list_image_folder(folder.path(), Split::train, classes); };
    check_contains(error_of([&] { list(Classes::ignored); }), {"no images in", ".png, .jpg, .jpeg and .bmp"});
    folder.write("readme.txt", "x");
    folder.write("cat/animation.gif", "x");
    check_contains(error_of([&] { list(Classes::needed); }), {"no images in"});
    write_picture(folder, "dog/1.png", {1});
    check_contains(error_of([&] { list(Classes::needed); }), {"one class"});
    write_picture(folder, "emu/1.png", {1});
    check_contains(error_of([&] { list(Classes::needed); }), {"class without images", "cat"});
    CHECK(list(Classes::ignored).class_names == std::vector<std::string>{"dog", "emu"});
    write_picture(folder, "stray.png", {1});
    check_contains(error_of([&] { list(Classes::ignored); }), {"stray.png", "beside"});

    const TempFolder alone;
    write_picture(alone, "1.png", {1});
    check_contains(error_of([&] { load_image_set("images", alone.path(), Split::test, fit_to(3, 8)); }), {"one class"});
    LoadOptions options = fit_to(3, 8);
    check_contains(error_of([&] { load_other_set("images:" + alone.path().string(), Split::test, options); }),
                   {"too few images", "1 can be used", "at least 2"});
    options.at_least = 1;
    CHECK(load_other_set("images:" + alone.path().string(), Split::test, options).count() == 1);
    check_contains(error_of([&] { load_image_set("images", alone.path(), Split::test); }), {"--image-size"});
    check_contains(error_of([&] { load_image_set("images", "", Split::test, fit_to(3, 8)); }), {"--data-dir"});
}

TEST_CASE("damaged_images_are_counted_and_named_and_left_out_only_where_asked") {
    const TempFolder folder;
    for (const char* name : {"a/1.png", "a/3.png", "b/1.png", "b/2.png"}) write_picture(folder, name, {static_cast<uint8_t>(name[2])});
    write_picture(folder, "a/3.png", {33});
    for (const char* name : {"a/2.png", "b/0.jpg", "b/3.bmp", "b/4.png"}) folder.write(name, "damaged");
    LoadOptions options = fit_to(1, 8);
    check_contains(error_of([&] { load_image_set("images", folder.path(), Split::train, options); }),
                   {"4 of 8 images", "a/2.png: it is no PNG", "b/0.jpg", "b/3.bmp", "and 1 more", "--skip-damaged"});
    options.skip_damaged = true;
    std::string told;
    options.tell = [&](const std::string& text) { told += text; };
    int64_t last = 0;
    options.progress = [&](int64_t done, int64_t total) { last = done == total ? done : last; };
    const ImageSet set = load_image_set("images", folder.path(), Split::train, options);
    check_contains(told, {"Left out 4 of 8 images", "a/2.png"});
    CHECK(last == 8);
    CHECK(set.labels == std::vector<int32_t>{0, 0, 1, 1});
    require_size(set, 1, 8, 8);
    CHECK(set.pixels[64] == 33);
    for (const char* name : {"b/1.png", "b/2.png"}) folder.write(name, "damaged");
    check_contains(error_of([&] { load_image_set("images", folder.path(), Split::train, options); }), {"no image of class b"});
}

TEST_CASE("another_set_is_fitted_to_the_networks_size_with_its_own_labels") {
    const TempFolder folder;
    std::string record(1, 7);
    record.append(1024, static_cast<char>(200)).append(1024, 100).append(1024, 50);
    folder.write("test_batch.bin", record + record);
    const ImageSet set = load_other_set("cifar10:" + folder.path().string(), Split::test, fit_to(1, 28));
    require_size(set, 1, 28, 28);
    CHECK(set.labels == std::vector<int32_t>{7, 7});
    CHECK(set.pixels[0] == 124);  // .299 * 200 + .587 * 100 + .114 * 50
    check_contains(error_of([] { load_other_set("cifar11:x", Split::test, fit_to(3, 32)); }), {"unknown data set 'cifar11'"});
    check_contains(error_of([] { load_other_set("svhn", Split::test, fit_to(3, 32)); }), {"no folder for data set svhn", "Give svhn:DIR"});
    // What is missing was not asked for by --data-dir.
    const TempFolder empty;
    for (const char* inner : {"", "no"}) {
        const std::string dir = (empty.path() / inner).string();
        const std::string error = error_of([&] { load_other_set("cifar100:" + dir, Split::test, fit_to(3, 32)); });
        check_contains(error, {*inner == 0 ? "no test.bin" : "not a folder", "Give cifar100:DIR", "test.bin"});
        CHECK(error.find("--data-dir") == std::string::npos);
    }

    write_picture(folder, "faces/test/1.png", {9, 9, 9}, 40, 20);
    write_picture(folder, "faces/test/2.png", {8, 8, 8}, 20, 40);
    const ImageSet faces = load_other_set("images:" + (folder.path() / "faces").string(), Split::test, fit_to(3, 16));
    require_size(faces, 3, 16, 16);
    CHECK(faces.name == "faces");
    CHECK(faces.pixels.front() == 9);
    CHECK(faces.pixels.back() == 8);
}

}  // namespace
}  // namespace jem
