// What every target needs. A target reads bytes as the engine would and ends with a right answer: a value, or an InputError. Anything else
// that is thrown, a sanitizer's report, a hang and too much memory are found by libFuzzer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "data/input_error.h"

namespace jem::fuzz {

using Bytes = std::span<const uint8_t>;

inline std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

/// The bytes as a file in the current folder, which tests/fuzz/run makes one in memory.
inline std::filesystem::path file_of(Bytes bytes, const char* name = "input") {
    std::ofstream(name, std::ios::binary) << text_of(bytes);
    return name;
}

/// What must hold of a value that was read; a finding where it does not.
inline void require(bool holds) {
    if (!holds) std::abort();
}

/// Whether it returned; an InputError is the other right answer.
template <class Read>
bool reads(Read read) {
    try {
        read();
        return true;
    } catch (const InputError& error) {
        require(*error.what() != 0);
        return false;
    }
}

}  // namespace jem::fuzz

#define JEM_FUZZ_TARGET(bytes)                                                \
    static void run_target(jem::fuzz::Bytes bytes);                           \
    extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);  \
    extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
        run_target({data, size});                                             \
        return 0;                                                             \
    }                                                                         \
    static void run_target(jem::fuzz::Bytes bytes)
