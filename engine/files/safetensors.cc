#include "engine/files/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <system_error>
#include <type_traits>
#include <utility>

#include "data/input_error.h"
#include "engine/files/output_file.h"
#include "kernels/bf16.h"

namespace jem {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are copied as they lie in memory; the format is little-endian");

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr size_t kPieceBytes = size_t{1} << 20;    // of a tensor, at a time
constexpr const char* kMetadataKey = "__metadata__";

struct TypeInfo {
    FileType type;
    const char* name;
    int64_t bytes;
};
constexpr std::array<TypeInfo, 9> kTypes = {{{FileType::f32, "F32", 4},
                                             {FileType::f64, "F64", 8},
                                             {FileType::i64, "I64", 8},
                                             {FileType::u8, "U8", 1},
                                             {FileType::i32, "I32", 4},
                                             {FileType::u32, "U32", 4},
                                             {FileType::bf16, "BF16", 2},
                                             {FileType::f16, "F16", 2},
                                             {FileType::other, "another type", 0}}};

/// The format's other types: tensors that nobody needs may be of these.
struct OtherType {
    const char* name;
    int64_t bits;
};
constexpr std::array<OtherType, 12> kOtherTypes = {{{"BOOL", 8},
                                                    {"I8", 8},
                                                    {"I16", 16},
                                                    {"U16", 16},
                                                    {"U64", 64},
                                                    {"C64", 64},
                                                    {"F8_E5M2", 8},
                                                    {"F8_E4M3", 8},
                                                    {"F8_E8M0", 8},
                                                    {"F6_E2M3", 6},
                                                    {"F6_E3M2", 6},
                                                    {"F4", 4}}};

const TypeInfo& type_info(FileType type) {
    return *std::find_if(kTypes.begin(), kTypes.end(), [type](const TypeInfo& info) { return info.type == type; });
}

/// For messages: one short line whatever a damaged file put into the name.
std::string quoted(const std::string& text) {
    const std::string start = text.size() > 200 ? text.substr(0, 200) + "..." : text;
    return json(start).dump(-1, ' ', true, json::error_handler_t::replace);
}

/// Number of elements, or nothing if a size is negative or the product does not fit.
std::optional<int64_t> checked_product(const std::vector<int64_t>& shape) {
    int64_t product = 1;
    for (const int64_t size : shape) {
        if (size < 0 || __builtin_mul_overflow(product, size, &product)) return std::nullopt;
    }
    return product;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
    return text + "]";
}

InputError damaged(const std::filesystem::path& path, const std::string& why) {
    return InputError("cannot use '" + path.string() + "' as a safetensors file (" + why + "). Check the path, or get the file again.");
}

InputError damaged_tensor(const std::filesystem::path& path, const std::string& name, const std::string& why) {
    return damaged(path, "tensor " + quoted(name) + ": " + why);
}

/// Looks over a header before values are made of it: the library's own way to look on while it makes them takes quadratic time where there
/// are many tensors.
class HeaderCheck final : public json::json_sax_t {
public:
    explicit HeaderCheck(const std::filesystem::path& path) : path_(path) {}

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(json::number_integer_t) override { return true; }
    bool number_unsigned(json::number_unsigned_t) override { return true; }
    bool number_float(json::number_float_t, const std::string&) override { return true; }
    bool string(std::string&) override { return true; }
    bool binary(json::binary_t&) override { return true; }
    bool start_object(size_t) override {
        keys_.emplace_back();
        return deeper();
    }
    bool key(std::string& name) override {
        if (!keys_.back().insert(name).second) throw damaged(path_, "the header has " + jem::quoted(name) + " twice");
        return true;
    }
    bool end_object() override {
        keys_.pop_back();
        return --levels_ >= 0;
    }
    bool start_array(size_t) override { return deeper(); }
    bool end_array() override { return --levels_ >= 0; }
    bool parse_error(size_t at, const std::string&, const json::exception& error) override {
        if (dynamic_cast<const json::parse_error*>(&error) == nullptr)
            throw damaged(path_, "the header is not JSON: a number is out of range");
        throw damaged(path_, "the header is not JSON at its byte " + std::to_string(at));
    }

private:
    bool deeper() {
        if (++levels_ > 3) throw damaged(path_, "the header is nested deeper than the format allows");  // also bounds the parser's memory
        return true;
    }

    const std::filesystem::path& path_;
    int levels_ = 0;
    std::vector<std::set<std::string>> keys_;  // of each open object
};

json parse_header(const std::filesystem::path& path, const std::string& text) {
    HeaderCheck check(path);
    json::sax_parse(text, &check);
    const json header = json::parse(text);
    if (!header.is_object()) throw damaged(path, "the header is not a JSON object");
    return header;
}

/// By the first bytes of a file that is none of safetensors: a zip archive, or a pickle of protocol 2 to 5.
bool is_of_pytorch(uint64_t start) {
    const uint64_t low = start & 0xffffffff, protocol = start >> 8 & 0xff;
    return low == 0x04034b50 || ((start & 0xff) == 0x80 && protocol >= 2 && protocol <= 5);
}

/// A list of whole numbers from 0, or nothing.
std::optional<std::vector<int64_t>> as_sizes(const json& value) {
    if (!value.is_array()) return std::nullopt;
    std::vector<int64_t> sizes;
    for (const json& size : value) {
        if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
        sizes.push_back(size.get<int64_t>());
    }
    return sizes;
}

/// A file that stays open as long as somebody may read from it.
class InputFile {
public:
    explicit InputFile(const std::filesystem::path& path) : path_(path) {
        std::error_code error;
        num_bytes_ = std::filesystem::file_size(path, error);  // fails for folders, too
        if (error) throw InputError("cannot read '" + path.string() + "' (" + error.message() + "). Check the path.");
        descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor_ < 0) {
            throw InputError("cannot read '" + path.string() + "' (" + std::generic_category().message(errno) +
                             "). Check its permissions.");
        }
    }
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;
    ~InputFile() { close(descriptor_); }

    uint64_t num_bytes() const { return num_bytes_; }
    void read(uint64_t first, std::span<std::byte> out) const {
        while (!out.empty()) {
            const ssize_t got = pread(descriptor_, out.data(), std::min(out.size(), size_t{1} << 30), static_cast<off_t>(first));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) throw damaged(path_, "reading stopped before byte " + std::to_string(num_bytes_) + ", the file's end");
            first += static_cast<uint64_t>(got);
            out = out.subspan(static_cast<size_t>(got));
        }
    }

private:
    std::filesystem::path path_;
    uint64_t num_bytes_ = 0;
    int descriptor_ = -1;
};

/// Where a tensor lies in the data.
struct ByteRange {
    int64_t begin;
    int64_t end;
    const std::string* name;
    FileTensor* tensor;
};

/// Fills in type and shape and returns the extent [begin, end), which is known to fit the two.
std::pair<int64_t, int64_t> read_entry(FileTensor& tensor, const std::filesystem::path& path, const std::string& name, const json& entry) {
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
        if (!entry.is_object() || !entry.contains(key)) throw damaged_tensor(path, name, std::string("no ") + key + " in the header");
    }
    const std::string dtype = entry["dtype"].is_string() ? entry["dtype"].get<std::string>() : entry["dtype"].dump();
    const auto named = [&](const auto& known) { return known.name == dtype; };
    const auto info = std::find_if(kTypes.begin(), kTypes.end() - 1, named);
    const auto other = std::find_if(kOtherTypes.begin(), kOtherTypes.end(), named);
    tensor.type = info->type;
    if (tensor.type == FileType::other && other == kOtherTypes.end())
        throw damaged_tensor(path, name, "dtype " + quoted(dtype) + ", which the format does not know");
    const int64_t bits = tensor.type == FileType::other ? other->bits : 8 * info->bytes;

    const auto shape = as_sizes(entry["shape"]);
    if (!shape) throw damaged_tensor(path, name, "its shape is not a list of whole numbers from 0");
    tensor.shape = *shape;
    std::optional<int64_t> num_bytes = checked_product(*shape);
    if (num_bytes && __builtin_mul_overflow(*num_bytes, bits, &*num_bytes)) num_bytes.reset();
    if (!num_bytes) throw damaged_tensor(path, name, "its shape overflows 64 bits");
    if (*num_bytes % 8 != 0) throw damaged_tensor(path, name, "its values do not end with a byte");
    *num_bytes /= 8;

    const auto offsets = as_sizes(entry["data_offsets"]);
    if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1]) {
        throw damaged_tensor(path, name, "its data_offsets are not [begin, end] with 0 <= begin <= end");
    }
    const int64_t begin = (*offsets)[0];
    const int64_t end = (*offsets)[1];
    if (end - begin != *num_bytes) {
        throw damaged_tensor(path, name,
                             "data_offsets of " + std::to_string(end - begin) + " bytes, expected " + std::to_string(*num_bytes) +
                                 " for its shape and dtype");
    }
    return {begin, end};
}

/// Throws unless the extents, sorted here by position, cover exactly [0, data_bytes).
void check_coverage(std::vector<ByteRange>& extents, const std::filesystem::path& path, int64_t data_bytes) {
    std::sort(extents.begin(), extents.end(),
              [](const ByteRange& a, const ByteRange& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    int64_t covered = 0;
    for (const ByteRange& extent : extents) {
        if (extent.end > data_bytes) {
            throw damaged_tensor(path, *extent.name,
                                 "it ends at byte " + std::to_string(extent.end) + " of the data, but the file has only " +
                                     std::to_string(data_bytes) + " bytes of data");
        }
        if (extent.begin != covered) {
            throw damaged_tensor(path, *extent.name,
                                 "it begins at byte " + std::to_string(extent.begin) + " of the data, expected " + std::to_string(covered) +
                                     (extent.begin < covered ? ": it overlaps another tensor" : ": there is a gap before it"));
        }
        covered = extent.end;
    }
    if (covered != data_bytes) {
        throw damaged(path, std::to_string(data_bytes - covered) + " bytes after the last tensor belong to none");
    }
}

float half_to_float(uint16_t half) {
    const float sign = half & 0x8000 ? -1.0f : 1.0f;
    const int exponent = half >> 10 & 0x1f;
    const int fraction = half & 0x3ff;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
    if (exponent == 0x1f) return fraction ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
    return sign * std::ldexp(static_cast<float>(0x400 + fraction), exponent - 25);
}

/// Reads as many values of type Stored as there is room for, and converts each.
template <class Stored, class Out, class Convert>
void convert(const FileTensor& tensor, int64_t first, std::span<Out> out, Convert convert_one) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(Stored));
    if constexpr (std::is_same_v<Stored, Out>) {
        tensor.read(first * kBytes, std::as_writable_bytes(out));
    } else {
        std::vector<Stored> piece(std::min(out.size(), kPieceBytes / sizeof(Stored)));
        while (!out.empty()) {
            piece.resize(std::min(piece.size(), out.size()));
            tensor.read(first * kBytes, std::as_writable_bytes(std::span(piece)));
            std::transform(piece.begin(), piece.end(), out.begin(), [&](Stored value) { return static_cast<Out>(convert_one(value)); });
            first += std::ssize(piece);
            out = out.subspan(piece.size());
        }
    }
}

constexpr auto kAsIs = [](auto value) { return value; };

/// False for a type that is none of floating-point values.
template <class Out>
bool read_floating(const FileTensor& tensor, int64_t first, std::span<Out> out) {
    switch (tensor.type) {
        case FileType::f32:
            return convert<float>(tensor, first, out, kAsIs), true;
        case FileType::f64:
            return convert<double>(tensor, first, out, kAsIs), true;
        case FileType::bf16:
            return convert<Bf16>(tensor, first, out, kAsIs), true;
        case FileType::f16:
            return convert<uint16_t>(tensor, first, out, half_to_float), true;
        default:
            return false;
    }
}

/// False for a type that is none of integers.
bool read_integers(const FileTensor& tensor, std::span<int64_t> out) {
    switch (tensor.type) {
        case FileType::i64:
            return convert<int64_t>(tensor, 0, out, kAsIs), true;
        case FileType::i32:
            return convert<int32_t>(tensor, 0, out, kAsIs), true;
        case FileType::u32:
            return convert<uint32_t>(tensor, 0, out, kAsIs), true;
        case FileType::u8:
            return convert<uint8_t>(tensor, 0, out, kAsIs), true;
        default:
            return false;
    }
}

InputError wrong_type(const std::filesystem::path& path, const std::string& name, const FileTensor& tensor, const std::string& expected) {
    return InputError("tensor " + quoted(name) + " of '" + path.string() + "' has the wrong type (" + file_type_name(tensor.type) +
                      ", expected " + expected + "). Check how the file was made.");
}

template <class T>
FileTensor make_tensor(FileType type, std::span<const T> values, std::vector<int64_t> shape) {
    const auto bytes = std::as_bytes(values);
    return make_file_tensor(type, {bytes.begin(), bytes.end()}, std::move(shape));
}

template <class T>
std::vector<T> all_floats(const FileTensor& tensor) {
    std::vector<T> values(static_cast<size_t>(tensor.num_elements()));
    read_values(tensor, 0, std::span(values));
    return values;
}

}  // namespace

const char* file_type_name(FileType type) { return type_info(type).name; }

int64_t file_type_bytes(FileType type) { return type_info(type).bytes; }

int64_t FileTensor::num_elements() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
}

std::vector<std::byte> FileTensor::bytes() const {
    std::vector<std::byte> all(static_cast<size_t>(num_bytes));
    read(0, all);
    return all;
}

void read_values(const FileTensor& tensor, int64_t first, std::span<float> out) {
    if (!read_floating(tensor, first, out)) throw std::logic_error("Integers were read as floating-point values.");
}

void read_values(const FileTensor& tensor, int64_t first, std::span<double> out) {
    if (!read_floating(tensor, first, out)) throw std::logic_error("Integers were read as floating-point values.");
}

FileTensor make_file_tensor(FileType type, std::vector<std::byte> bytes, std::vector<int64_t> shape) {
    FileTensor tensor{.type = type, .shape = std::move(shape), .num_bytes = std::ssize(bytes), .read = nullptr};
    assert(tensor.num_elements() * file_type_bytes(type) == tensor.num_bytes);
    tensor.read = [shared = std::make_shared<const std::vector<std::byte>>(std::move(bytes))](int64_t first, std::span<std::byte> out) {
        std::copy_n(shared->begin() + first, out.size(), out.begin());
    };
    return tensor;
}

FileTensor make_file_tensor(std::span<const float> values, std::vector<int64_t> shape) {
    return make_tensor(FileType::f32, values, std::move(shape));
}

FileTensor make_file_tensor(std::span<const double> values, std::vector<int64_t> shape) {
    return make_tensor(FileType::f64, values, std::move(shape));
}

FileTensor make_file_tensor(std::span<const int64_t> values, std::vector<int64_t> shape) {
    return make_tensor(FileType::i64, values, std::move(shape));
}

SafetensorsFile SafetensorsFile::read(const std::filesystem::path& path) {
    const auto content = std::make_shared<const InputFile>(path);
    const uint64_t file_bytes = content->num_bytes();

    uint64_t header_bytes = 0;
    if (file_bytes < sizeof header_bytes) {
        throw damaged(path, "it has " + std::to_string(file_bytes) + " bytes, too few for the header's length");
    }
    content->read(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
    if (header_bytes > kMaxHeaderBytes && is_of_pytorch(header_bytes)) {
        throw InputError("'" + path.string() +
                         "' is a file of PyTorch's (torch.save), which may hold programs and is not read. Convert it: "
                         "tools/convert " +
                         path.string() + " OUT.safetensors");
    }
    if (header_bytes > kMaxHeaderBytes) {
        throw damaged(path, "a header of " + std::to_string(header_bytes) + " bytes, more than the format's 100 MB");
    }
    if (header_bytes > file_bytes - sizeof header_bytes) {
        throw damaged(path, "a header of " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(file_bytes) + " bytes");
    }
    std::string text(header_bytes, ' ');
    content->read(sizeof header_bytes, std::as_writable_bytes(std::span(text)));
    const json header = parse_header(path, text);

    SafetensorsFile file;
    file.path_ = path;
    std::vector<ByteRange> extents;
    for (const auto& [name, entry] : header.items()) {
        if (name == kMetadataKey) {
            if (entry.is_null()) continue;  // as good as none, for the format's own library
            if (!entry.is_object()) throw damaged(path, "the header's __metadata__ is not an object");
            for (const auto& [key, value] : entry.items()) {
                if (!value.is_string()) throw damaged(path, "the header's __metadata__ " + quoted(key) + " is not a string");
                file.metadata[key] = value.get<std::string>();
            }
            continue;
        }
        const auto position = file.tensors.try_emplace(name).first;
        const auto [begin, end] = read_entry(position->second, path, name, entry);
        extents.push_back({begin, end, &position->first, &position->second});
    }
    const uint64_t data_begin = sizeof header_bytes + header_bytes;
    check_coverage(extents, path, static_cast<int64_t>(file_bytes - data_begin));
    for (const ByteRange& extent : extents) {
        extent.tensor->num_bytes = extent.end - extent.begin;
        extent.tensor->read = [content, begin = data_begin + static_cast<uint64_t>(extent.begin)](int64_t first, std::span<std::byte> out) {
            content->read(begin + static_cast<uint64_t>(first), out);
        };
    }
    return file;
}

SafetensorsFile SafetensorsFile::read_weights(const std::filesystem::path& path) {
    SafetensorsFile file = read(path);
    std::map<std::string, FileTensor> tensors;
    for (auto& [name, tensor] : file.tensors) {
        std::string bare = name;
        for (bool found = true; found;) {
            found = false;
            for (const std::string prefix : {"module.", "_orig_mod."})
                if (bare.starts_with(prefix)) bare.erase(0, prefix.size()), found = true;
        }
        const bool free = bare == name || !file.has(bare);
        tensors.emplace(free ? bare : name, std::move(tensor));
    }
    file.tensors = std::move(tensors);
    return file;
}

bool SafetensorsFile::has(const std::string& name) const { return tensors.count(name) != 0; }

const FileTensor& SafetensorsFile::at(const std::string& name) const {
    const auto position = tensors.find(name);
    if (position == tensors.end()) {
        throw InputError("no tensor " + quoted(name) + " in '" + path_.string() + "' (it has " + std::to_string(tensors.size()) +
                         " others). Check that it is the right file.");
    }
    return position->second;
}

const FileTensor& SafetensorsFile::floating(const std::string& name) const {
    const FileTensor& tensor = at(name);
    if (!read_floating(tensor, 0, std::span<float>())) throw wrong_type(path_, name, tensor, "a floating-point type");
    return tensor;
}

std::vector<float> SafetensorsFile::floats(const std::string& name) const { return all_floats<float>(floating(name)); }

std::vector<double> SafetensorsFile::doubles(const std::string& name) const { return all_floats<double>(floating(name)); }

std::vector<int64_t> SafetensorsFile::ints(const std::string& name) const {
    const FileTensor& tensor = at(name);
    if (!read_integers(tensor, {})) throw wrong_type(path_, name, tensor, "an integer type");
    std::vector<int64_t> values(static_cast<size_t>(tensor.num_elements()));
    read_integers(tensor, values);
    return values;
}

void SafetensorsFile::write_atomically(const std::filesystem::path& path) const {
    // Large elements first, then by name: each tensor is then aligned to its type, without which PyTorch's reader refuses the file.
    std::vector<const std::pair<const std::string, FileTensor>*> order;
    for (const auto& named : tensors) order.push_back(&named);
    std::stable_sort(order.begin(), order.end(),
                     [](auto* a, auto* b) { return file_type_bytes(a->second.type) > file_type_bytes(b->second.type); });

    json header = json::object();
    if (!metadata.empty()) header[kMetadataKey] = metadata;
    uint64_t offset = 0;
    for (const auto* named : order) {
        const auto& [name, tensor] = *named;
        const std::optional<int64_t> num_elements = checked_product(tensor.shape);
        const int64_t element_bytes = file_type_bytes(tensor.type);
        if (name == kMetadataKey || !num_elements || *num_elements != tensor.num_bytes / element_bytes ||
            tensor.num_bytes % element_bytes != 0) {
            throw std::logic_error("cannot write tensor " + quoted(name) + " (its name, or " + std::to_string(tensor.num_bytes) +
                                   " bytes for shape " + shape_text(tensor.shape) + " of " + file_type_name(tensor.type) +
                                   "). This is a bug.");
        }
        const uint64_t end = offset + static_cast<uint64_t>(tensor.num_bytes);
        header[name] = {{"dtype", file_type_name(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data then begins at a multiple of 8
    const uint64_t header_bytes = text.size();

    OutputFile file(path);
    file.write(&header_bytes, sizeof header_bytes);
    file.write(text.data(), text.size());
    std::vector<std::byte> piece;
    for (const auto* named : order) {
        const FileTensor& tensor = named->second;
        for (int64_t first = 0; first < tensor.num_bytes; first += std::ssize(piece)) {
            piece.resize(std::min(kPieceBytes, static_cast<size_t>(tensor.num_bytes - first)));
            tensor.read(first, piece);
            file.write(piece.data(), piece.size());
        }
    }
    file.commit();
}

}  // namespace jem
