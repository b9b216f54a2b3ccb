#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jem {

/// Labelled images of one size, as stored in the files.
struct ImageSet {
    std::string name;  // as given to --data
    int channels = 0;
    int height = 0;
    int width = 0;
    int num_classes = 0;
    std::vector<std::string> class_names;  // [num_classes]
    bool flip = false;                     // whether a mirrored image still belongs to its class: not so for digits
    std::vector<uint8_t> pixels;           // [N,H,W,C], 0..255
    std::vector<int32_t> labels;           // [N], 0..num_classes-1

    /// Number of images, N.
    int64_t count() const { return static_cast<int64_t>(labels.size()); }
};

/// What is known of a data set without opening a file.
struct ImageSetShape {
    int channels;
    int height;
    int width;
    int num_classes;
    int64_t num_train;
    int64_t num_test;
    bool flip;  // as ImageSet's
};

/// InputError, naming the set and both sizes, unless `set` holds images of channels x height x width, and as many pixels as these have.
void require_size(const ImageSet& set, int64_t channels, int64_t height, int64_t width);

}  // namespace jem
