// From resident bytes to a batch: which images, which crop, which flip, and x = 2 * (byte / 255) - 1.
#pragma once

#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/random.h"
#include "kernels/state.h"

namespace jem {

inline constexpr int kCropPadding = 4;  // reflected

// What one image of a batch is made of.
struct ImageDraw {
    int32_t index;   // into the image set
    int32_t dy, dx;  // of the crop, -4..4; 0 without augmentation
    int32_t flip;    // 1: mirrored left to right
};

// One item is one image: the order of an epoch is a keyed permutation; an epoch has floor(N / batch) iterations.
struct DrawImages {
    ImageDraw* draws;  // those of the batch from `first` on
    const IterationState* state;
    uint32_t first;
    uint32_t batch, count;  // batch <= count; the whole job's
    RandomStream order, augment;
    int crop, flip;  // 1: on
    uint64_t seed;

    JEM_HD void operator()(int64_t n) const {
        const uint32_t iterations = count / batch;
        const uint32_t epoch = state->iteration / iterations;
        const uint32_t number = first + static_cast<uint32_t>(n);  // in the job's batch
        const uint32_t position = state->iteration % iterations * batch + number;
        const Random4 r = random4(seed, augment, state->iteration, 0, number);
        ImageDraw draw = {};
        draw.index = static_cast<int32_t>(shuffled(position, count, seed, order, epoch));
        if (crop != 0) {
            draw.dy = static_cast<int32_t>(index_of(r.v[0], 2 * kCropPadding + 1)) - kCropPadding;
            draw.dx = static_cast<int32_t>(index_of(r.v[1], 2 * kCropPadding + 1)) - kCropPadding;
        }
        if (flip != 0) draw.flip = static_cast<int32_t>(r.v[2] >> 31);
        draws[n] = draw;
    }
};

JEM_HD inline int64_t reflected(int64_t i, int64_t size) {
    if (i < 0) i = -i;
    return i >= size ? 2 * (size - 1) - i : i;
}

// A byte as the network sees it, in [-1, 1].
template <class R>
JEM_HD R pixel_value(uint8_t byte) {
    return static_cast<R>(byte) / R(255) * R(2) - R(1);
}

// One item is one value: whole images, as they are.
template <class R>
struct PixelValues {
    R* values;
    const uint8_t* bytes;

    JEM_HD void operator()(int64_t i) const { values[i] = pixel_value<R>(bytes[i]); }
};

// Item (n, y, x, c): the pixel, reflected where the crop leaves the image (which has more than 4 rows and columns), plus noise.
template <class R>
struct CropFlip {
    R* out;  // [images, H, W, C]
    const uint8_t* images;
    const ImageDraw* draws;
    const IterationState* state;
    int64_t first;  // number of the first value in the job's batch: the noise depends on it
    int64_t height, width, channels;
    double noise;  // standard deviation, 0: none
    RandomStream noise_stream;
    uint32_t noise_salt;  // tells the batches of an iteration apart
    uint64_t seed;

    JEM_HD void operator()(int64_t item) const {
        const int64_t c = item % channels, column = item / channels % width, row = item / (channels * width) % height;
        const int64_t n = item / (channels * width * height);
        const ImageDraw draw = draws[n];
        const int64_t from_row = reflected(row + draw.dy, height);
        int64_t from_column = reflected(column + draw.dx, width);
        // The crop comes first, then the flip.
        if (draw.flip != 0) from_column = reflected(width - 1 - column + draw.dx, width);
        const uint8_t byte = images[((static_cast<int64_t>(draw.index) * height + from_row) * width + from_column) * channels + c];
        R value = pixel_value<R>(byte);
        if (noise > 0) {
            const Normal4 z =
                normals_of(random4(seed, noise_stream, state->iteration, noise_salt, static_cast<uint64_t>((first + item) / 4)));
            const int lane = static_cast<int>((first + item) % 4);
            const float drawn = lane == 0 ? z.v[0] : lane == 1 ? z.v[1] : lane == 2 ? z.v[2] : z.v[3];
            value += static_cast<R>(noise) * static_cast<R>(drawn);
        }
        out[item] = value;
    }
};

// labels[n] = all_labels[draws[n].index]
struct GatherLabels {
    int32_t* labels;
    const int32_t* all_labels;
    const ImageDraw* draws;

    JEM_HD void operator()(int64_t n) const { labels[n] = all_labels[draws[n].index]; }
};

}  // namespace jem
