#pragma once

#include <cstdint>
#include <span>

#include "data/image_set.h"

namespace jem {

/// Which part of a resized image is kept: the middle, or the first rows (of a wide image the first columns).
enum class Crop { centre, top };

/// An image of any size, as it was read.
struct Picture {
    std::span<const uint8_t> pixels;  // [H,W,C], 0..255
    int height = 0, width = 0, channels = 0;
};

/// Fits an image to `out` [size,size,channels], overwritten: colours first (grey to RGB by copying, RGB to grey by .299 .587 .114), then
/// the short side to `size` and the long one to size * long / short, rounded down, then the crop. Channels are 1 or 3, sides at least 1.
/// Every byte is Pillow's: convert("L"), resize(.., BILINEAR), which is a triangle filter widened when shrinking, in two passes with bytes
/// between them; the centre is that of torchvision's CenterCrop, a half rounded to the even row.
void fit(std::span<uint8_t> out, const Picture& picture, int channels, int size, Crop crop);

/// The whole set, each image fitted; labels and names stay.
ImageSet fitted(const ImageSet& set, int channels, int size, Crop crop = Crop::centre);

}  // namespace jem
