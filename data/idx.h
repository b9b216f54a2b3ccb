#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/image_set.h"

namespace jem {

// MNIST's idx format: big-endian header (magic number, sizes), then bytes. Plain or gzipped: the first two bytes decide, not the name.

/// Reads an idx3 file of images that must be height x width. Returns pixels [N,height,width], 0..255, N >= 1.
/// InputError that names file, byte and expectation for anything else; allocates no more than the file can really hold.
std::vector<uint8_t> read_idx_images(const std::filesystem::path& file, int height, int width);

/// Reads an idx1 file of labels. Returns [N], each 0..num_classes-1, N >= 1. Errors as above.
std::vector<int32_t> read_idx_labels(const std::filesystem::path& file, int num_classes);

/// Both: {images, labels} of one part of a data set into `set`, whose height, width and classes they must have. Errors as above, and where
/// one file holds more than the other.
void read_idx_set(ImageSet& set, const std::vector<std::filesystem::path>& files);

}  // namespace jem
