#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace jem {

/// other: of the format, but none that this program computes with.
enum class FileType { f32, f64, i64, u8, i32, u32, bf16, f16, other };

/// The type's name in a safetensors header: "F32", "I64", "BF16" ...; of another one "another type".
const char* file_type_name(FileType type);

/// Bytes of one element; of another type unknown, 0.
int64_t file_type_bytes(FileType type);

/// A tensor of a file: little-endian, row-major, without gaps. Its bytes may lie in memory, in a file or on a device: they are read when
/// they are asked for, so that nobody needs room for all of them. An empty shape is a scalar of one element.
struct FileTensor {
    FileType type = FileType::f32;
    std::vector<int64_t> shape;
    int64_t num_bytes = 0;
    /// Copies the bytes from `first` on, whole elements, as many as there is room for.
    std::function<void(int64_t first, std::span<std::byte> out)> read;

    /// Product of the shape.
    int64_t num_elements() const;
    /// All of them.
    std::vector<std::byte> bytes() const;
};

/// A tensor that owns its bytes, as many as the shape asks for.
FileTensor make_file_tensor(FileType type, std::vector<std::byte> bytes, std::vector<int64_t> shape);
/// Copies values, as many as the product of `shape` says, into a tensor of the same type.
FileTensor make_file_tensor(std::span<const float> values, std::vector<int64_t> shape);
FileTensor make_file_tensor(std::span<const double> values, std::vector<int64_t> shape);
FileTensor make_file_tensor(std::span<const int64_t> values, std::vector<int64_t> shape);

/// Reads the values from element `first` on, in file order, of a tensor of any floating-point type.
void read_values(const FileTensor& tensor, int64_t first, std::span<float> out);
void read_values(const FileTensor& tensor, int64_t first, std::span<double> out);

/// The content of a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes.
class SafetensorsFile {
public:
    /// Opens a file and checks it; its tensors are read from it when they are asked for, from the same file even where another one has
    /// taken its name since. InputError, naming file, tensor and what is wrong, unless the header is well-formed, without duplicate names,
    /// and its tensors cover the data exactly, each with the bytes that its shape and type ask for.
    static SafetensorsFile read(const std::filesystem::path& path);

    /// The same of a network's weights: names lose what nn.DataParallel ("module.") and torch.compile ("_orig_mod.") put before them.
    static SafetensorsFile read_weights(const std::filesystem::path& path);

    /// Whether there is a tensor of this name.
    bool has(const std::string& name) const;

    /// The tensor of this name. InputError that names file and tensor if there is none.
    const FileTensor& at(const std::string& name) const;

    /// The same of any floating-point type. InputError if it is missing or of an integer type.
    const FileTensor& floating(const std::string& name) const;

    /// All values of a tensor of any floating-point type, in file order. The same errors.
    std::vector<float> floats(const std::string& name) const;
    std::vector<double> doubles(const std::string& name) const;

    /// All values of a tensor of any integer type, in file order. InputError if it is missing or of a floating-point type.
    std::vector<int64_t> ints(const std::string& name) const;

    /// Writes the file by way of OutputFile, which tells the errors. Tensors are read and written piece by piece.
    void write_atomically(const std::filesystem::path& path) const;

    std::map<std::string, std::string> metadata;
    std::map<std::string, FileTensor> tensors;

private:
    std::filesystem::path path_;  // where read() took it from, for errors
};

}  // namespace jem
