#include "engine/files/safetensors.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using std::filesystem::path;

template <class T>
FileTensor raw_tensor(FileType type, const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return make_file_tensor(type, {bytes.begin(), bytes.end()}, {std::ssize(values)});
}

/// One tensor of each type, a scalar, an empty one, and metadata.
SafetensorsFile example() {
    SafetensorsFile file;
    file.metadata = {{"format", "pt"}, {"note", "a \"quoted\" line\nand another"}};
    file.tensors["a.bytes"] = raw_tensor<uint8_t>(FileType::u8, {1, 2, 255});
    file.tensors["b.floats"] = make_file_tensor(std::vector<float>{1.5f, -2.0f, 0.1f, 4.0f, 5.0f, 6.0f}, {2, 3});
    file.tensors["c.doubles"] = make_file_tensor(std::vector<double>{0.1, 1e300}, {2});
    file.tensors["d.scalar"] = make_file_tensor(std::vector<int64_t>{-7}, {});
    file.tensors["e.empty"] = make_file_tensor(std::vector<float>{}, {0, 4});
    file.tensors["f.int32"] = raw_tensor<int32_t>(FileType::i32, {-1, 2});
    file.tensors["g.uint32"] = raw_tensor<uint32_t>(FileType::u32, {4294967295u});
    file.tensors["h.bf16"] = raw_tensor<uint16_t>(FileType::bf16, {0x3f80, 0xc000});
    file.tensors["i.f16"] = raw_tensor<uint16_t>(FileType::f16, {0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x8000, 0x7e00});
    return file;
}

/// The bytes of a file with this header and so many bytes of data.
std::string file_with(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string content(sizeof length, '\0');
    std::memcpy(content.data(), &length, sizeof length);
    return content + header + std::string(data_bytes, 'd');
}

/// The bytes of example() as a file.
std::string example_bytes(const TempFolder& folder) {
    example().write_atomically(folder.path() / "example");
    return folder.read("example");
}

TEST_CASE("safetensors_reader_returns_what_was_written") {
    const TempFolder folder;
    const SafetensorsFile written = example();
    written.write_atomically(folder.path() / "x.safetensors");
    const SafetensorsFile read = SafetensorsFile::read(folder.path() / "x.safetensors");
    CHECK(read.metadata == written.metadata);
    REQUIRE(read.tensors.size() == written.tensors.size());
    for (const auto& named : written.tensors) {
        const std::string& name = named.first;  // clang 14 cannot capture a structured binding, which INFO does
        const FileTensor& tensor = named.second;
        INFO(name);
        REQUIRE(read.has(name));
        CHECK(read.at(name).type == tensor.type);
        CHECK(read.at(name).shape == tensor.shape);
        CHECK(read.at(name).bytes() == tensor.bytes());
    }
    CHECK(!std::filesystem::exists(folder.path() / "x.safetensors.tmp"));
}

TEST_CASE("safetensors_file_without_tensors_is_valid") {
    const TempFolder folder;
    SafetensorsFile().write_atomically(folder.path() / "empty");
    CHECK(folder.read("empty") == file_with("{}      ", 0));
    CHECK(SafetensorsFile::read(folder.path() / "empty").tensors.empty());
}

TEST_CASE("safetensors_writer_aligns_the_data_and_each_tensor_and_is_deterministic") {
    const TempFolder folder;
    const std::string content = example_bytes(folder);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, content.data(), sizeof header_bytes);
    CHECK(header_bytes % 8 == 0);
    CHECK(content[8] == '{');
    CHECK(content == example_bytes(folder));
    // 24 bytes of 64-bit values come first, then 36 of 32-bit ones, then 18 of 16-bit ones, then 3 single bytes
    check_contains(
        content, {R"("c.doubles":{"data_offsets":[0,16])", R"("d.scalar":{"data_offsets":[16,24])", R"("b.floats":{"data_offsets":[24,48])",
                  R"("e.empty":{"data_offsets":[48,48])", R"("f.int32":{"data_offsets":[48,56])", R"("g.uint32":{"data_offsets":[56,60])",
                  R"("h.bf16":{"data_offsets":[60,64])", R"("i.f16":{"data_offsets":[64,78])", R"("a.bytes":{"data_offsets":[78,81])"});
    CHECK(content.size() == 8 + header_bytes + 81);
}

TEST_CASE("safetensors_tensors_are_read_from_the_file_that_was_opened") {
    const TempFolder folder;
    SafetensorsFile file;
    file.tensors["a"] = make_file_tensor(std::vector<float>{1, 2, 3}, {3});
    file.write_atomically(folder.path() / "x");
    const SafetensorsFile opened = SafetensorsFile::read(folder.path() / "x");
    file.tensors["a"] = make_file_tensor(std::vector<float>{4, 5, 6, 7}, {4});
    file.write_atomically(folder.path() / "x");
    CHECK(opened.floats("a") == std::vector<float>{1, 2, 3});
    std::vector<double> last(2);
    read_values(opened.at("a"), 1, std::span(last));
    CHECK(last == std::vector<double>{2, 3});
    opened.write_atomically(folder.path() / "x");
    CHECK(SafetensorsFile::read(folder.path() / "x").floats("a") == std::vector<float>{1, 2, 3});
    const SafetensorsFile whole = SafetensorsFile::read(folder.path() / "x");
    const auto bytes = std::filesystem::file_size(folder.path() / "x");
    std::filesystem::resize_file(folder.path() / "x", bytes - 1);
    check_contains(error_of([&] { whole.floats("a"); }), {"x", "reading stopped before byte " + std::to_string(bytes)});
}

TEST_CASE("safetensors_tensors_are_read_and_written_in_small_pieces") {
    const TempFolder folder;
    const int64_t count = 3'000'001;
    size_t largest = 0;
    SafetensorsFile file;
    file.tensors["a"] = {
        .type = FileType::f32, .shape = {count}, .num_bytes = 4 * count, .read = [&](int64_t first, std::span<std::byte> out) {
            largest = std::max(largest, out.size());
            for (size_t i = 0; i < out.size(); i += 4) {
                const auto value = static_cast<float>(first / 4 + static_cast<int64_t>(i) / 4);
                std::memcpy(&out[i], &value, sizeof value);
            }
        }};
    file.write_atomically(folder.path() / "x");
    CHECK(largest <= 1 << 20);
    const std::vector<double> values = SafetensorsFile::read(folder.path() / "x").doubles("a");
    REQUIRE(std::ssize(values) == count);
    for (size_t i = 0; i < values.size(); ++i)
        if (values[i] != static_cast<double>(i)) {
            FAIL_CHECK("element " << i << " is " << values[i]);
            break;
        }
}

TEST_CASE("safetensors_values_convert_from_any_type_of_their_kind") {
    const SafetensorsFile file = example();
    CHECK(file.floats("b.floats") == std::vector<float>{1.5f, -2.0f, 0.1f, 4.0f, 5.0f, 6.0f});
    CHECK(file.doubles("b.floats")[2] == double{0.1f});
    CHECK(file.doubles("c.doubles") == std::vector<double>{0.1, 1e300});
    CHECK(file.floats("c.doubles")[0] == 0.1f);
    CHECK(file.floats("h.bf16") == std::vector<float>{1.0f, -2.0f});
    const std::vector<double> half = file.doubles("i.f16");
    CHECK(half[0] == 1.0);
    CHECK(half[1] == -2.0);
    CHECK(half[2] == std::ldexp(1.0, -24));
    CHECK(half[3] == 65504.0);
    CHECK(half[4] == -std::numeric_limits<double>::infinity());
    CHECK((half[5] == 0.0 && std::signbit(half[5])));
    CHECK(std::isnan(half[6]));
    CHECK(file.ints("d.scalar") == std::vector<int64_t>{-7});
    CHECK(file.ints("f.int32") == std::vector<int64_t>{-1, 2});
    CHECK(file.ints("g.uint32") == std::vector<int64_t>{4294967295});
    CHECK(file.ints("a.bytes") == std::vector<int64_t>{1, 2, 255});
}

TEST_CASE("safetensors_errors_name_the_file_and_the_tensor") {
    const TempFolder folder;
    example_bytes(folder);
    const SafetensorsFile file = SafetensorsFile::read(folder.path() / "example");
    const std::string where = (folder.path() / "example").string();
    check_contains(error_of([&] { file.at("absent"); }), {where, "\"absent\""});
    check_contains(error_of([&] { file.floats("d.scalar"); }), {where, "\"d.scalar\"", "I64", "floating-point"});
    check_contains(error_of([&] { file.ints("b.floats"); }), {where, "\"b.floats\"", "F32", "integer"});
    check_contains(error_of([&] { SafetensorsFile::read(folder.path() / "absent"); }), {"absent", "No such file"});
    check_contains(error_of([&] { SafetensorsFile::read(folder.path()); }), {folder.path().string()});
}

TEST_CASE("safetensors_reader_refuses_every_truncation_and_every_extension") {
    const TempFolder folder;
    const std::string content = example_bytes(folder);
    for (size_t length = 0; length < content.size(); ++length) {
        INFO("first " << length << " of " << content.size() << " bytes");
        const path file = folder.write("cut", content.substr(0, length));
        check_contains(error_of([&] { SafetensorsFile::read(file); }), {file.string()});
    }
    check_contains(error_of([&] { SafetensorsFile::read(folder.write("long", content + "x")); }), {"1 bytes after the last tensor"});
}

TEST_CASE("safetensors_reader_survives_every_flipped_bit_of_the_header") {
    const TempFolder folder;
    const std::string content = example_bytes(folder);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, content.data(), sizeof header_bytes);
    int num_refused = 0;
    for (size_t i = 0; i < 8 + header_bytes; ++i) {
        for (int bit = 0; bit < 8; ++bit) {
            INFO("byte " << i << ", bit " << bit);
            std::string damaged = content;
            damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
            const path file = folder.write("damaged", damaged);
            try {  // a changed name, for example, is still a valid file; any other exception fails the test
                SafetensorsFile::read(file);
            } catch (const InputError& error) {
                check_contains(error.what(), {file.string()});
                ++num_refused;
            }
        }
    }
    CHECK(num_refused > static_cast<int>(header_bytes));
}

TEST_CASE("safetensors_reader_opens_what_nobody_needs_and_refuses_it_when_somebody_does") {
    const TempFolder folder;
    const auto file = SafetensorsFile::read(folder.write(
        "a",
        file_with(R"({"__metadata__":null,"half":{"dtype":"F4","shape":[3,2],"data_offsets":[8,11]},)"
                  R"("mask":{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[1],"data_offsets":[11,15]}})",
                  15)));
    CHECK(file.metadata.empty());
    CHECK(file.floats("x").size() == 1);
    CHECK(file.at("mask").type == FileType::other);
    for (const char* name : {"mask", "half"}) {
        CHECK(error_of([&] { file.floats(name); }).find("another type") != std::string::npos);
        CHECK(error_of([&] { file.ints(name); }).find("another type") != std::string::npos);
    }
    const path odd = folder.write("odd", file_with(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1));
    CHECK(error_of([&] { SafetensorsFile::read(odd); }).find("do not end with a byte") != std::string::npos);
    const path few = folder.write("few", file_with(R"({"a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,2]}})", 2));
    CHECK(error_of([&] { SafetensorsFile::read(few); }).find("2 bytes, expected 3") != std::string::npos);
}

TEST_CASE("names_of_weights_lose_the_prefixes_of_wrappers_unless_both_are_there") {
    const TempFolder folder;
    SafetensorsFile file;
    for (const char* name : {"module.a", "module._orig_mod.b", "_orig_mod.module.c.module.x", "d", "module.d", "modules.e"})
        file.tensors[name] = make_file_tensor(std::vector<float>{1}, {1});
    file.write_atomically(folder.path() / "weights");
    std::vector<std::string> names;
    for (const auto& entry : SafetensorsFile::read_weights(folder.path() / "weights").tensors) names.push_back(entry.first);
    CHECK(names == std::vector<std::string>{"a", "b", "c.module.x", "d", "module.d", "modules.e"});
}

TEST_CASE("a_file_of_pytorch_is_recognised_and_the_way_to_convert_it_named") {
    const TempFolder folder;
    const std::string zip("PK\x03\x04\0\0\x08\x08\0\0\0\0", 12), pickle("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9 ", 10);
    for (const std::string& start : {zip, pickle}) {
        const path file = folder.write("model.pt", start + std::string(100, 'x'));
        CHECK(error_of([&] { SafetensorsFile::read(file); }).find("tools/convert") != std::string::npos);
    }
}

// In time that grows with the header: the file of a stranger must not hold the program up.
TEST_CASE("a_header_of_a_hundred_thousand_tensors_is_read_in_a_moment") {
    const TempFolder folder;
    std::string header;
    for (int i = 0; i < 100'000; ++i)
        header += (i == 0 ? "{\"t" : ",\"t") + std::to_string(i) + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
    CHECK(SafetensorsFile::read(folder.write("many", file_with(header + "}", 0))).tensors.size() == 100'000);
}

TEST_CASE("safetensors_reader_says_what_is_wrong_with_a_header") {
    const TempFolder folder;
    struct Case {
        std::string header;
        size_t data_bytes;
        std::vector<std::string> expected;
    };
    const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
    const std::vector<Case> cases = {
        {"", 0, {"not JSON"}},
        {"[]", 0, {"not a JSON object"}},
        {"{\"a\"", 0, {"not JSON at its byte 5"}},
        {"{\"\xff\":1}", 0, {"not JSON"}},
        {R"({"a":1e999})", 0, {"out of range"}},
        {"{\"a\":[[[[1]]]]}", 0, {"nested deeper"}},
        {"{" + good + "," + good + "}", 8, {"\"a\" twice"}},
        {R"({"__metadata__":{"k":"1","k":"2"}})", 0, {"\"k\" twice"}},
        {R"({"__metadata__":{"k":1}})", 0, {"__metadata__", "\"k\" is not a string"}},
        {R"({"__metadata__":3})", 0, {"__metadata__", "not an object"}},
        {R"({"a":3})", 0, {"\"a\"", "no dtype"}},
        {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8, {"\"a\"", "no shape"}},
        {R"({"a":{"dtype":"F32","shape":[2]}})", 8, {"\"a\"", "no data_offsets"}},
        {R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8, {"\"a\"", "\"F31\"", "does not know"}},
        {R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", 8, {"\"a\"", "\"7\""}},
        {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, {"\"a\"", "shape is not a list"}},
        {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, {"\"a\"", "shape is not a list"}},
        {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, {"\"a\"", "shape is not a list"}},
        {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", 8, {"\"a\"", "shape is not a list"}},
        {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, {"\"a\"", "overflows"}},
        {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, {"\"a\"", "overflows"}},
        {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, {"\"a\"", "8 bytes, expected 12"}},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, {"\"a\"", "begin <= end"}},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8, {"\"a\"", "begin <= end"}},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8, {"\"a\"", "begin <= end"}},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, {"\"a\"", "begins at byte 4", "gap"}},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, {"\"b\"", "overlaps"}},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, {"overlaps"}},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[9,17]}})", 17, {"\"b\"", "gap"}},
        {"{" + good + "}", 7, {"\"a\"", "ends at byte 8", "only 7 bytes"}},
        {"{" + good + "}", 9, {"1 bytes after the last tensor"}},
    };
    for (const Case& one : cases) {
        INFO("header: " << one.header);
        const path file = folder.write("bad", file_with(one.header, one.data_bytes));
        const std::string error = error_of([&] { SafetensorsFile::read(file); });
        check_contains(error, one.expected);
        check_contains(error, {file.string()});
    }
    CHECK(SafetensorsFile::read(folder.write("good", file_with("{" + good + "}  ", 8))).floats("a").size() == 2);
}

TEST_CASE("safetensors_reader_refuses_a_huge_header_without_allocating_it") {
    const TempFolder folder;
    std::string content = file_with("{}", 0);
    content[5] = 1;  // 2^40 bytes
    check_contains(error_of([&] { SafetensorsFile::read(folder.write("huge", content)); }), {"100 MB"});
    content = file_with("{}", 0);
    content[2] = 1;
    check_contains(error_of([&] { SafetensorsFile::read(folder.write("huge", content)); }), {"65538 bytes in a file of 10 bytes"});
    // the parser must stop at the depth, not build it
    check_contains(error_of([&] { SafetensorsFile::read(folder.write("deep", file_with(std::string(1 << 20, '['), 0))); }), {"deeper"});
}

TEST_CASE("safetensors_writer_that_fails_leaves_the_old_file_and_no_temporary_one") {
    const TempFolder folder;
    folder.write("x", "the old content");
    SafetensorsFile file;
    file.tensors["a"] = make_file_tensor(std::vector<float>(100000, 1.0f), {100000});

    rlimit old_limit{};
    getrlimit(RLIMIT_FSIZE, &old_limit);
    const auto old_handler = signal(SIGXFSZ, SIG_IGN);
    const rlimit small{.rlim_cur = 200000, .rlim_max = old_limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);  // as a full disk: the write stops half-way
    std::string message;
    bool is_input_error = false;
    try {
        file.write_atomically(folder.path() / "x");
    } catch (const std::runtime_error& error) {
        message = error.what();
        is_input_error = dynamic_cast<const InputError*>(&error) != nullptr;
    }
    setrlimit(RLIMIT_FSIZE, &old_limit);
    signal(SIGXFSZ, old_handler);

    check_contains(message, {(folder.path() / "x").string(), "File too large"});
    CHECK(!is_input_error);
    CHECK(folder.read("x") == "the old content");
    CHECK(!std::filesystem::exists(folder.path() / "x.tmp"));

    file.write_atomically(folder.path() / "x");
    CHECK(SafetensorsFile::read(folder.path() / "x").floats("a").size() == 100000);
}

TEST_CASE("safetensors_writer_reports_a_folder_that_cannot_be_written_as_input_error") {
    const TempFolder folder;
    folder.write("file", "");
    std::filesystem::create_directory(folder.path() / "folder");
    const SafetensorsFile file = example();
    check_contains(error_of([&] { file.write_atomically(folder.path() / "absent" / "x"); }), {"absent/x", "No such file or directory"});
    check_contains(error_of([&] { file.write_atomically(folder.path() / "file" / "x"); }), {"file/x", "Not a directory"});
    check_contains(error_of([&] { file.write_atomically(folder.path() / "folder"); }), {"folder", "Is a directory"});
    CHECK(!std::filesystem::exists(folder.path() / "folder.tmp"));
}

TEST_CASE("safetensors_writer_refuses_a_tensor_that_contradicts_its_shape") {
    const TempFolder folder;
    for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{3}, {-2}, {int64_t{1} << 62, 4}}) {
        SafetensorsFile file;
        file.tensors["a"] = make_file_tensor(std::vector<float>{1, 2}, {2});
        file.tensors["a"].shape = shape;
        CHECK_THROWS_AS(file.write_atomically(folder.path() / "x"), std::logic_error);
    }
    CHECK(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace jem
