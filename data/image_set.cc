#include "data/image_set.h"

#include "data/input_error.h"

namespace jem {

void require_size(const ImageSet& set, int64_t channels, int64_t height, int64_t width) {
    const auto text = [](int64_t c, int64_t h, int64_t w) { return std::to_string(c) + "x" + std::to_string(h) + "x" + std::to_string(w); };
    const std::string wanted = text(channels, height, width), own = text(set.channels, set.height, set.width);
    if (own != wanted)
        throw InputError("Data set " + set.name + " has images of " + own + " (channels x height x width; " + wanted +
                         " are wanted). Choose a data set of that size.");
    const int64_t num_bytes = set.count() * channels * height * width;
    if (std::ssize(set.pixels) != num_bytes)
        throw InputError("Data set " + set.name + " has " + std::to_string(set.pixels.size()) + " bytes of pixels (" +
                         std::to_string(set.count()) + " images of " + own + " have " + std::to_string(num_bytes) +
                         "). Check that its files are those of this data set.");
}

}  // namespace jem
