// From resident bytes to a batch: which images, which crop, which flip, and x = 2 * (byte / 255) - 1; images of one size from another's.
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

// The draw cropped and flipped as three random words say, where that is on: 1.
JEM_HD inline ImageDraw augmented(ImageDraw draw, const uint32_t* words, int crop, int flip) {
    if (crop != 0) {
        draw.dy = static_cast<int32_t>(index_of(words[0], 2 * kCropPadding + 1)) - kCropPadding;
        draw.dx = static_cast<int32_t>(index_of(words[1], 2 * kCropPadding + 1)) - kCropPadding;
    }
    if (flip != 0) draw.flip = static_cast<int32_t>(words[2] >> 31);
    return draw;
}

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
        const Random4 r = random4(seed, augment, *state, 0, number);
        ImageDraw draw = {};
        draw.index = static_cast<int32_t>(shuffled(position, count, seed, order, epoch));
        draws[n] = augmented(draw, r.v, crop, flip);
    }
};

// One item is one draw: any image, and how it is cropped and flipped, for the fresh start of the chain of that number.
struct DrawStarts {
    ImageDraw* draws;  // [chains]
    const IterationState* state;
    int64_t first_chain;
    uint32_t count;
    RandomStream stream;
    int crop, flip;  // 1: on
    uint64_t seed;

    JEM_HD void operator()(int64_t n) const {
        const Random4 r = random4(seed, stream, *state, 0, static_cast<uint64_t>(first_chain + n));
        ImageDraw draw = {};
        draw.index = static_cast<int32_t>(index_of(r.v[0], count));
        draws[n] = augmented(draw, r.v + 1, crop, flip);
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
            const Normal4 z = normals_of(random4(seed, noise_stream, *state, noise_salt, static_cast<uint64_t>((first + item) / 4)));
            const int lane = static_cast<int>((first + item) % 4);
            const float drawn = lane == 0 ? z.v[0] : lane == 1 ? z.v[1] : lane == 2 ? z.v[2] : z.v[3];
            value += static_cast<R>(noise) * static_cast<R>(drawn);
        }
        out[item] = value;
    }
};

// Where a resized image's value lies in the image that it is made of, with `scale` = size / size of the result.
enum class ResizeFrom {
    pixel_centres,  // (i + 1/2) * scale - 1/2: PyTorch's interpolate with align_corners=False
    pixel_corners,  // i * scale: TensorFlow 1's resize_bilinear
};
struct Resizing {
    ResizeFrom from = ResizeFrom::pixel_centres;
    double scale = 1, offset = 0;  // of the values: y = scale * (what was read) + offset
};

// Along one direction: between place `low` and place `high`, by `weight` of the latter.
template <class R>
struct ResizePlace {
    int64_t low, high;
    R weight;

    JEM_HD ResizePlace(int64_t i, int64_t size, int64_t outputs, ResizeFrom from) {
        const R scale = static_cast<R>(size) / static_cast<R>(outputs), half = from == ResizeFrom::pixel_centres ? R(0.5) : R(0);
        const R place = (static_cast<R>(i) + half) * scale - half;
        low = place > R(0) ? static_cast<int64_t>(place) : 0;
        if (low > size - 1) low = size - 1;
        high = low + 1 < size ? low + 1 : low;
        weight = place > R(0) ? place - static_cast<R>(low) : R(0);
    }
};

// Item: one pixel of y [N, H, W, C], between the four nearest of x [N, h, w, C], or [N, h, w, 1], which goes to all channels. Bilinear,
// and not widened where y is the smaller one: then values of x are left out.
template <class R>
struct ResizeImages {
    R* y;
    const R* x;
    int64_t in_height, in_width, in_channels;
    int64_t height, width, channels;
    ResizeFrom from;
    R scale, offset;

    JEM_HD void operator()(int64_t i) const {
        const ResizePlace<R> v(i / width % height, in_height, height, from), h(i % width, in_width, width, from);
        const R* image = x + i / (width * height) * in_height * in_width * in_channels;
        const auto at = [&](int64_t row, int64_t column, int64_t c) { return image[(row * in_width + column) * in_channels + c]; };
        for (int64_t channel = 0; channel < channels; ++channel) {
            const int64_t c = in_channels > 1 ? channel : 0;
            const R upper = (R(1) - h.weight) * at(v.low, h.low, c) + h.weight * at(v.low, h.high, c);
            const R lower = (R(1) - h.weight) * at(v.high, h.low, c) + h.weight * at(v.high, h.high, c);
            y[i * channels + channel] = scale * ((R(1) - v.weight) * upper + v.weight * lower) + offset;
        }
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
