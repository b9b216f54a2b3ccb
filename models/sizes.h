// Which sizes networks have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace jem {

// The first size that a network does not have, by its flag.
struct UnsupportedSize {
    std::string flag;
    int64_t value;
    std::string why;
};

// Of what every network is asked for.
std::optional<UnsupportedSize> unsupported_image(int64_t width, int64_t in_channels, int64_t image_size, int64_t num_classes);
// Throws std::invalid_argument for one.
void require_supported(const std::optional<UnsupportedSize>& wrong);

}  // namespace jem
