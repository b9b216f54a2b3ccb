// Too little memory, here or on a GPU: one text for both.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace jem {

// No fault of the command line, which may fit another machine: exit code 1.
class OutOfMemory : public std::runtime_error {
public:
    // why: "cuDNN got no memory" ...
    explicit OutOfMemory(const std::string& why)
        : std::runtime_error("Out of memory (" + why +
                             "). Lower --batch-size, --gen-batch-size, --buffer-size or --width, or add --recompute on.") {}
};

// "2.5 GiB"; below 0.95: "613 MiB"
inline std::string text_of_bytes(size_t bytes) {
    const size_t mib = (bytes + (size_t{1} << 19)) >> 20, tenths = (bytes * 10 + (size_t{1} << 29)) >> 30;
    return tenths < 10 ? std::to_string(mib) + " MiB" : std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB";
}

}  // namespace jem
