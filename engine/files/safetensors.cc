#include "engine/files/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "data/input_error.h"
#include "engine/files/output_file.h"
#include "kernels/bf16.h"

namespace jem {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are copied as they lie in memory; the format is little-endian");

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr const char* kMetadataKey = "__metadata__";

struct TypeInfo {
    FileType type;
    const char* name;
    int64_t bytes;
};
constexpr std::array<TypeInfo, 8> kTypes = {{{FileType::f32, "F32", 4},
                                             {FileType::f64, "F64", 8},
                                             {FileType::i64, "I64", 8},
                                             {FileType::u8, "U8", 1},
                                             {FileType::i32, "I32", 4},
                                             {FileType::u32, "U32", 4},
                                             {FileType::bf16, "BF16", 2},
                                             {FileType::f16, "F16", 2}}};

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

json parse_header(const std::filesystem::path& path, const std::string& text) {
    std::vector<std::set<std::string>> open_objects;  // the keys seen in each
    const auto check = [&](int depth, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
            if (depth > 2) throw damaged(path, "the header is nested deeper than the format allows");  // also bounds the parser's memory
        }
        if (event == json::parse_event_t::object_start) open_objects.emplace_back();
        if (event == json::parse_event_t::object_end) open_objects.pop_back();
        if (event == json::parse_event_t::key && !open_objects.back().insert(value.get<std::string>()).second) {
            throw damaged(path, "the header has " + quoted(value.get<std::string>()) + " twice");
        }
        return true;
    };
    json header;
    try {
        header = json::parse(text, check);
    } catch (const json::parse_error& error) {
        throw damaged(path, "the header is not JSON at its byte " + std::to_string(error.byte));
    } catch (const json::exception&) {
        throw damaged(path, "the header is not JSON: a number is out of range");
    }
    if (!header.is_object()) throw damaged(path, "the header is not a JSON object");
    return header;
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
    const auto info = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeInfo& known) { return known.name == dtype; });
    if (info == kTypes.end()) {
        throw damaged_tensor(path, name, "dtype " + quoted(dtype) + ", expected F64, F32, F16, BF16, I64, I32, U32 or U8");
    }
    tensor.type = info->type;

    const auto shape = as_sizes(entry["shape"]);
    if (!shape) throw damaged_tensor(path, name, "its shape is not a list of whole numbers from 0");
    tensor.shape = *shape;
    std::optional<int64_t> num_bytes = checked_product(*shape);
    if (num_bytes && __builtin_mul_overflow(*num_bytes, info->bytes, &*num_bytes)) num_bytes.reset();
    if (!num_bytes) throw damaged_tensor(path, name, "its shape overflows 64 bits");

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

/// Reads the bytes as values of type Stored and converts each.
template <class Stored, class Out, class Convert>
std::vector<Out> convert(const FileTensor& tensor, Convert convert_one) {
    std::vector<Out> values(tensor.bytes.size() / sizeof(Stored));
    for (size_t i = 0; i < values.size(); ++i) {
        Stored stored;
        std::memcpy(&stored, tensor.bytes.data() + i * sizeof(Stored), sizeof(Stored));
        values[i] = static_cast<Out>(convert_one(stored));
    }
    return values;
}

constexpr auto kAsIs = [](auto value) { return value; };

/// The values of a floating-point tensor, or nothing for another type.
template <class Out>
std::optional<std::vector<Out>> float_values(const FileTensor& tensor) {
    switch (tensor.type) {
        case FileType::f32:
            return convert<float, Out>(tensor, kAsIs);
        case FileType::f64:
            return convert<double, Out>(tensor, kAsIs);
        case FileType::bf16:
            return convert<Bf16, Out>(tensor, kAsIs);
        case FileType::f16:
            return convert<uint16_t, Out>(tensor, half_to_float);
        default:
            return std::nullopt;
    }
}

std::optional<std::vector<int64_t>> int_values(const FileTensor& tensor) {
    switch (tensor.type) {
        case FileType::i64:
            return convert<int64_t, int64_t>(tensor, kAsIs);
        case FileType::i32:
            return convert<int32_t, int64_t>(tensor, kAsIs);
        case FileType::u32:
            return convert<uint32_t, int64_t>(tensor, kAsIs);
        case FileType::u8:
            return convert<uint8_t, int64_t>(tensor, kAsIs);
        default:
            return std::nullopt;
    }
}

template <class T>
std::vector<T> expect_kind(std::optional<std::vector<T>> values, const std::filesystem::path& path, const std::string& name,
                           const FileTensor& tensor, const std::string& expected) {
    if (!values) {
        throw InputError("tensor " + quoted(name) + " of '" + path.string() + "' has the wrong type (" + file_type_name(tensor.type) +
                         ", expected " + expected + "). Check how the file was made.");
    }
    return std::move(*values);
}

template <class T>
FileTensor make_tensor(FileType type, std::span<const T> values, std::vector<int64_t> shape) {
    FileTensor tensor{.type = type, .shape = std::move(shape), .bytes = {}};
    assert(tensor.num_elements() == static_cast<int64_t>(values.size()));
    const auto bytes = std::as_bytes(values);
    tensor.bytes.assign(bytes.begin(), bytes.end());
    return tensor;
}

}  // namespace

const char* file_type_name(FileType type) { return type_info(type).name; }

int64_t file_type_bytes(FileType type) { return type_info(type).bytes; }

int64_t FileTensor::num_elements() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
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
    std::error_code error;
    const uint64_t file_bytes = std::filesystem::file_size(path, error);  // fails for folders, too
    if (error) throw InputError("cannot read '" + path.string() + "' (" + error.message() + "). Check the path.");
    errno = 0;
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
        throw InputError("cannot read '" + path.string() + "' (" + std::generic_category().message(errno) + "). Check its permissions.");
    }
    const auto read_bytes = [&](void* out, uint64_t num_bytes) {
        if (!stream.read(static_cast<char*>(out), static_cast<std::streamsize>(num_bytes))) {
            throw damaged(path, "reading stopped before byte " + std::to_string(file_bytes) + ", the file's end");
        }
    };

    uint64_t header_bytes = 0;
    if (file_bytes < sizeof header_bytes) {
        throw damaged(path, "it has " + std::to_string(file_bytes) + " bytes, too few for the header's length");
    }
    read_bytes(&header_bytes, sizeof header_bytes);
    if (header_bytes > kMaxHeaderBytes) {
        throw damaged(path, "a header of " + std::to_string(header_bytes) + " bytes, more than the format's 100 MB");
    }
    if (header_bytes > file_bytes - sizeof header_bytes) {
        throw damaged(path, "a header of " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(file_bytes) + " bytes");
    }
    std::string text(header_bytes, ' ');
    read_bytes(text.data(), header_bytes);
    const json header = parse_header(path, text);

    SafetensorsFile file;
    file.path_ = path;
    std::vector<ByteRange> extents;
    for (const auto& [name, entry] : header.items()) {
        if (name == kMetadataKey) {
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
    check_coverage(extents, path, static_cast<int64_t>(file_bytes - sizeof header_bytes - header_bytes));
    for (const ByteRange& extent : extents) {
        extent.tensor->bytes.resize(static_cast<size_t>(extent.end - extent.begin));
        read_bytes(extent.tensor->bytes.data(), extent.tensor->bytes.size());
    }
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

std::vector<float> SafetensorsFile::floats(const std::string& name) const {
    const FileTensor& tensor = at(name);
    return expect_kind(float_values<float>(tensor), path_, name, tensor, "a floating-point type");
}

std::vector<double> SafetensorsFile::doubles(const std::string& name) const {
    const FileTensor& tensor = at(name);
    return expect_kind(float_values<double>(tensor), path_, name, tensor, "a floating-point type");
}

std::vector<int64_t> SafetensorsFile::ints(const std::string& name) const {
    const FileTensor& tensor = at(name);
    return expect_kind(int_values(tensor), path_, name, tensor, "an integer type");
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
        const uint64_t element_bytes = static_cast<uint64_t>(file_type_bytes(tensor.type));
        if (name == kMetadataKey || !num_elements || static_cast<uint64_t>(*num_elements) != tensor.bytes.size() / element_bytes ||
            tensor.bytes.size() % element_bytes != 0) {
            throw std::logic_error("cannot write tensor " + quoted(name) + " (its name, or " + std::to_string(tensor.bytes.size()) +
                                   " bytes for shape " + shape_text(tensor.shape) + " of " + file_type_name(tensor.type) +
                                   "). This is a bug.");
        }
        const uint64_t end = offset + tensor.bytes.size();
        header[name] = {{"dtype", file_type_name(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data then begins at a multiple of 8
    const uint64_t header_bytes = text.size();

    OutputFile file(path);
    file.write(&header_bytes, sizeof header_bytes);
    file.write(text.data(), text.size());
    for (const auto* named : order) file.write(named->second.bytes.data(), named->second.bytes.size());
    file.commit();
}

}  // namespace jem
