#include "models/sizes.h"

#include <stdexcept>

namespace jem {

std::optional<UnsupportedSize> unsupported_image(int64_t width, int64_t in_channels, int64_t image_size, int64_t num_classes) {
    if (width < 1 || width > 32) return {{"--width", width, "1 to 32 is supported"}};
    if (in_channels != 1 && in_channels != 3) return {{"--in-channels", in_channels, "images have 1 or 3"}};
    if (image_size < 8 || image_size > 64) return {{"--image-size", image_size, "8 to 64 is supported"}};
    if (num_classes < 2 || num_classes > 10000) return {{"--num-classes", num_classes, "2 to 10000 is supported"}};
    return std::nullopt;
}

void require_supported(const std::optional<UnsupportedSize>& wrong) {
    if (wrong) throw std::invalid_argument(wrong->flag + " " + std::to_string(wrong->value) + " (" + wrong->why + "). Change the flag.");
}

}  // namespace jem
