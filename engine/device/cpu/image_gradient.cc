#include "engine/device/cpu/image_gradient.h"

#include <algorithm>

#include "engine/device/cpu/vectors.h"

namespace jem::image_gradient {
namespace {

constexpr int kPixels = 4;  // of a row at a time: with 3 channels 12 sums, one of the weights and one of the gradient in 16 registers

// The sum of all lanes, halves first.
JEM_INLINE float total(const Vector<8>& v) {
    const Vector<8> fours = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    const Vector<8> twos = fours + __builtin_shufflevector(fours, fours, 2, 3, 0, 1, 6, 7, 4, 5);
    return twos[0] + twos[1];
}
JEM_INLINE float total(const Vector<16>& v) {
    const Vector<16> eights = v + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    return total(__builtin_shufflevector(eights, eights, 0, 1, 2, 3, 4, 5, 6, 7));
}

// What one row of one image is made from.
struct Row {
    const ConvShape& s;
    int64_t number;
    float* d_x;        // [W, I]
    const float* d_y;  // the image's
    const float* weights;
};

enum class Columns {
    inside,   // the stride is 1, and no pixel's products reach beyond the row's ends
    dense,    // the stride is 1
    strided,  // divisions, which take longer than the products
};

// Pixels from a column on, of channels from one on.
template <int Lanes, int Channels, int Pixels, Columns Which>
JEM_INLINE void pixels_of(const Row& row, int64_t column, int64_t channel) {
    using V = Vector<Lanes>;
    const ConvShape& s = row.s;
    const int64_t height = s.out_height(), width = s.out_width();
    V sums[Pixels][Channels] = {};
    for (int64_t block = 0; block < s.out_channels / Lanes; ++block)
        for (int64_t ky = 0; ky < s.kernel.height; ++ky) {
            const int64_t down = row.number + s.padding.height - ky;
            if (down < 0 || (Which == Columns::strided && down % s.stride.height != 0)) continue;
            const int64_t out_row = Which == Columns::strided ? down / s.stride.height : down;
            if (out_row >= height) continue;
            const float* line = row.d_y + (block * height + out_row) * width * Lanes;
            for (int64_t kx = 0; kx < s.kernel.width; ++kx) {
                const int64_t tap = (block * s.kernel.height + ky) * s.kernel.width + kx;
                V weights[Channels];
#pragma GCC unroll 3
                for (int c = 0; c < Channels; ++c) load(weights[c], row.weights + (tap * s.in_channels + channel + c) * Lanes);
#pragma GCC unroll 4
                for (int p = 0; p < Pixels; ++p) {
                    int64_t right = column + p + s.padding.width - kx;
                    if (Which == Columns::strided && right % s.stride.width != 0) continue;
                    if (Which == Columns::strided) right /= s.stride.width;
                    if (Which != Columns::inside && (right < 0 || right >= width)) continue;
                    V d_y;
                    load(d_y, line + right * Lanes);
#pragma GCC unroll 3
                    for (int c = 0; c < Channels; ++c) sums[p][c] += d_y * weights[c];
                }
            }
        }
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 3
        for (int c = 0; c < Channels; ++c) row.d_x[(column + p) * s.in_channels + channel + c] = total(sums[p][c]);
}

template <int Lanes, int Channels>
JEM_INLINE void channels_of(const Row& row, int64_t channel) {
    const ConvShape& s = row.s;
    // Columns whose products lie inside of the gradient's row, whatever the tap.
    const bool dense = s.stride == 1;
    const int64_t first = s.kernel.width - 1 - s.padding.width, end = s.out_width() - s.padding.width;
    for (int64_t column = 0; column < s.width;) {
        if (dense && column >= first && column + kPixels <= std::min(end, s.width)) {
            pixels_of<Lanes, Channels, kPixels, Columns::inside>(row, column, channel);
            column += kPixels;
        } else {
            dense ? pixels_of<Lanes, Channels, 1, Columns::dense>(row, column, channel)
                  : pixels_of<Lanes, Channels, 1, Columns::strided>(row, column, channel);
            ++column;
        }
    }
}

template <int Lanes>
JEM_INLINE void row_of(const Row& row) {
    int64_t channel = 0;
    for (; channel + 3 <= row.s.in_channels; channel += 3) channels_of<Lanes, 3>(row, channel);
    for (; channel < row.s.in_channels; ++channel) channels_of<Lanes, 1>(row, channel);
}

template <int Lanes>
void run_lanes(const Problem& p, float* d_x, const float* d_y, const float* prepared) {
    const ConvShape& s = p.shape;
    const int64_t image = s.out_channels * s.out_height() * s.out_width();
    const bool avx512 = cpu_has_avx512();
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t i = 0; i < p.batch * s.height; ++i) {
        const Row row{s, i % s.height, d_x + i * s.width * s.in_channels, d_y + i / s.height * image, prepared};
        jem::run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA { row_of<Lanes>(row); });
    }
}

}  // namespace

size_t prepared_bytes(const ConvShape& shape) { return static_cast<size_t>(shape.weight_count()) * sizeof(float); }

// [O/lanes, kernel, I, lanes]
void prepare(const Problem& p, float* prepared, const float* weights) {
    const int64_t each = p.shape.kernel.area() * p.shape.in_channels;
    for (int64_t o = 0; o < p.shape.out_channels; ++o)
        for (int64_t i = 0; i < each; ++i) prepared[(o / p.lanes * each + i) * p.lanes + o % p.lanes] = weights[o * each + i];
}

void run(const Problem& p, float* d_x, const float* d_y, const float* prepared) {
    p.lanes == 16 ? run_lanes<16>(p, d_x, d_y, prepared) : run_lanes<8>(p, d_x, d_y, prepared);
}

}  // namespace jem::image_gradient
