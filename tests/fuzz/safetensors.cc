// Safetensors files: what the engine's checkpoints, steps and features are.
#include "engine/files/safetensors.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/fuzz/target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed);

// Half of the time the header alone is changed, and its length with it.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
    constexpr size_t kLength = sizeof(uint64_t);
    uint64_t header = 0;
    if (size >= kLength) std::memcpy(&header, data, kLength);
    if (seed % 2 == 0 || size < kLength || header > size - kLength) return LLVMFuzzerMutate(data, size, most);
    const std::vector<uint8_t> rest(data + kLength + header, data + size);
    if (most < kLength + rest.size() + 1) return LLVMFuzzerMutate(data, size, most);
    header = LLVMFuzzerMutate(data + kLength, header, most - kLength - rest.size());
    std::memcpy(data, &header, kLength);
    std::copy(rest.begin(), rest.end(), data + kLength + header);
    return kLength + header + rest.size();
}

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    const std::filesystem::path input = fuzz::file_of(bytes);
    fuzz::reads([&] { SafetensorsFile::read_weights(input); });
    SafetensorsFile file;
    if (!fuzz::reads([&] { file = SafetensorsFile::read(input); })) return;
    bool kept = true;
    for (const auto& [name, tensor] : file.tensors) {
        fuzz::require(static_cast<size_t>(tensor.bytes().size()) == static_cast<size_t>(tensor.num_bytes));
        const std::string& same = name;
        fuzz::reads([&] { fuzz::require(std::ssize(file.doubles(same)) == file.at(same).num_elements()); });
        fuzz::reads([&] { file.floats(same); });
        fuzz::reads([&] { file.ints(same); });
        kept = kept && tensor.type != FileType::other;
    }
    if (!kept) return;  // a type that the engine does not write
    file.write_atomically("copy");
    const SafetensorsFile copy = SafetensorsFile::read("copy");
    fuzz::require(copy.tensors.size() == file.tensors.size() && copy.metadata == file.metadata);
    for (const auto& [name, tensor] : file.tensors) {
        const FileTensor& other = copy.at(name);
        fuzz::require(other.shape == tensor.shape && other.type == tensor.type && other.bytes() == tensor.bytes());
    }
}
