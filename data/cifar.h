#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace jem {

// The binary versions of CIFAR: records of label byte(s) and 3x32x32 pixels, one plane a channel. No header, so a file is checked by
// its length (whole records, any number from 1) and its labels.

/// Appends a CIFAR-10 file's images to `pixels` [N,32,32,3] and its labels, 0..9, to `labels` [N].
/// InputError that names file, byte and expectation where the file is missing or damaged; the outputs are then unspecified.
void append_cifar10_file(std::vector<uint8_t>& pixels, std::vector<int32_t>& labels, const std::filesystem::path& file);

/// The same for CIFAR-100, whose records begin with a coarse label (checked, then dropped) and a fine one, 0..99.
void append_cifar100_file(std::vector<uint8_t>& pixels, std::vector<int32_t>& labels, const std::filesystem::path& file);

}  // namespace jem
