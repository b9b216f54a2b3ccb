// Minimal filtering of 3x3 convolutions with stride 1 (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308): a tile of 4 x 4 results from
// 6 x 6 values by 36 products in place of 144.
#pragma once

#include <cstdint>

#include "kernels/norm.h"
#include "kernels/qualifiers.h"

namespace jem::winograd {

// F(4, 3) at the points 0, a, -a, b, -b and infinity, in one dimension: from kIn values, s apart, and a filter of three kOut results, by
// kPoints products. V: a number, or, of all but weights(), a vector of channels. 5/8 and 3/2 lose less to rounding than 1 and 2, and their
// powers are exact.
struct Stride1 {
    static constexpr int kIn = 6, kOut = 4, kPoints = 6, kFilters = 6;
    static constexpr int kInStep = 4, kInFirst = -1, kOutStep = 4;  // from one tile to the next
    static constexpr int filter(int point) { return point; }
    static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b;
    static constexpr double na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);
    static constexpr float kFilter[kFilters][3] = {{float(1 / (double{a2} * b2)), 0, 0},
                                                   {float(1 / na), float(a / na), float(a2 / na)},
                                                   {float(1 / na), float(-a / na), float(a2 / na)},
                                                   {float(1 / nb), float(b / nb), float(b2 / nb)},
                                                   {float(1 / nb), float(-b / nb), float(b2 / nb)},
                                                   {0, 0, 1}};
    template <class V>
    JEM_HD_INLINE static void input(const V* d, int s, V (&p)[kPoints]) {
        const V even_a = d[4 * s] - b2 * d[2 * s], odd_a = d[3 * s] - b2 * d[s];
        const V even_b = d[4 * s] - a2 * d[2 * s], odd_b = d[3 * s] - a2 * d[s];
        p[0] = (a2 * b2) * d[0] + (d[4 * s] - (a2 + b2) * d[2 * s]);
        p[1] = even_a + a * odd_a;
        p[2] = even_a - a * odd_a;
        p[3] = even_b + b * odd_b;
        p[4] = even_b - b * odd_b;
        p[5] = (a2 * b2) * d[s] + (d[5 * s] - (a2 + b2) * d[3 * s]);
    }
    template <class V>
    JEM_HD_INLINE static void output(const V* m, int s, V (&y)[kOut]) {
        const V even_a = m[s] + m[2 * s], odd_a = m[s] - m[2 * s], even_b = m[3 * s] + m[4 * s], odd_b = m[3 * s] - m[4 * s];
        y[0] = m[0] + even_a + even_b;
        y[1] = a * odd_a + b * odd_b;
        y[2] = a2 * even_a + b2 * even_b;
        y[3] = a3 * odd_a + (b3 * odd_b + m[5 * s]);
    }
    // The transpose of output.
    template <class V>
    JEM_HD_INLINE static void gradient(const V* y, int s, V (&p)[kPoints]) {
        const V even_a = a2 * y[2 * s] + y[0], odd_a = a2 * y[3 * s] + y[s], even_b = b2 * y[2 * s] + y[0], odd_b = b2 * y[3 * s] + y[s];
        p[0] = y[0];
        p[1] = even_a + a * odd_a;
        p[2] = even_a - a * odd_a;
        p[3] = even_b + b * odd_b;
        p[4] = even_b - b * odd_b;
        p[5] = y[3 * s];
    }
    // The filter's points: kFilter times it.
    template <class V>
    JEM_HD_INLINE static void weights(const V* w, int s, V (&p)[kPoints]) {
        constexpr double first = 1 / (double{a2} * b2), of_a = 1 / na, of_b = 1 / nb;
        const V even_a = static_cast<V>(of_a) * (w[0] + a2 * w[2 * s]), odd_a = static_cast<V>(a * of_a) * w[s];
        const V even_b = static_cast<V>(of_b) * (w[0] + b2 * w[2 * s]), odd_b = static_cast<V>(b * of_b) * w[s];
        p[0] = static_cast<V>(first) * w[0];
        p[1] = even_a + odd_a;
        p[2] = even_a - odd_a;
        p[3] = even_b + odd_b;
        p[4] = even_b - odd_b;
        p[5] = w[2 * s];
    }
};

inline constexpr int kTile = Stride1::kOut, kWindow = Stride1::kIn, kSide = Stride1::kPoints, kPoints = kSide * kSide;

// Of a batch of images; the last row or column of tiles may reach beyond.
struct Tiles {
    int64_t images, height, width, channels;

    JEM_HD int64_t rows() const { return (height + kTile - 1) / kTile; }
    JEM_HD int64_t columns() const { return (width + kTile - 1) / kTile; }
    JEM_HD int64_t count() const { return images * rows() * columns(); }
};

// The functors below go over tiles and channels, channels first: what neighbours read and write lies side by side. Values lie as
// [N, H, W, C], points as [kPoints, tiles, C].

// Of what stands in front of a convolution: leaky(scale[c] * x + shift[c]), or, where scale is null, x.
template <class R>
struct Input {
    static constexpr bool kLoadsAhead = true;
    R* points;
    const R* x;
    Tiles tiles;
    const R *scale, *shift;
    R slope;

    JEM_HD void operator()(int64_t i) const {
        const int64_t c = i % tiles.channels, tile = i / tiles.channels, columns = tiles.columns(), rows = tiles.rows();
        const int64_t column = tile % columns * kTile - 1, row = tile / columns % rows * kTile - 1, image = tile / (columns * rows);
        const R* from = x + ((image * tiles.height + row) * tiles.width + column) * tiles.channels + c;
        R window[kWindow * kWindow], half[kSide * kWindow];
        JEM_UNROLL(6)
        for (int r = 0; r < kWindow; ++r) JEM_UNROLL(6)
        for (int s = 0; s < kWindow; ++s) {
            const bool inside = row + r >= 0 && row + r < tiles.height && column + s >= 0 && column + s < tiles.width;
            window[r * kWindow + s] = inside ? from[(r * tiles.width + s) * tiles.channels] : R(0);
            if (scale != nullptr && inside) window[r * kWindow + s] = leaky(scale[c] * window[r * kWindow + s] + shift[c], slope);
        }
        JEM_UNROLL(6)
        for (int s = 0; s < kWindow; ++s) {
            R p[kSide];
            Stride1::input(window + s, kWindow, p);
            JEM_UNROLL(6)
            for (int k = 0; k < kSide; ++k) half[k * kWindow + s] = p[k];
        }
        const int64_t count = tiles.count() * tiles.channels;
        JEM_UNROLL(6)
        for (int k = 0; k < kSide; ++k) {
            R p[kSide];
            Stride1::input(half + k * kWindow, 1, p);
            JEM_UNROLL(6)
            for (int l = 0; l < kSide; ++l) points[(k * kSide + l) * count + i] = p[l];
        }
    }
};

// + bias[c], + residual, where they are not null; residual may be y.
template <class R>
struct Output {
    static constexpr bool kLoadsAhead = true;
    R* y;
    const R* points;
    Tiles tiles;
    const R *bias, *residual;

    JEM_HD void operator()(int64_t i) const {
        const int64_t c = i % tiles.channels, tile = i / tiles.channels, columns = tiles.columns(), rows = tiles.rows();
        const int64_t column = tile % columns * kTile, row = tile / columns % rows * kTile, image = tile / (columns * rows);
        const int64_t count = tiles.count() * tiles.channels;
        R values[kPoints], half[kTile * kSide];
        JEM_UNROLL(36)
        for (int k = 0; k < kPoints; ++k) values[k] = points[k * count + i];
        JEM_UNROLL(6)
        for (int s = 0; s < kSide; ++s) {
            R p[kTile];
            Stride1::output(values + s, kSide, p);
            JEM_UNROLL(4)
            for (int k = 0; k < kTile; ++k) half[k * kSide + s] = p[k];
        }
        const R add = bias != nullptr ? bias[c] : R(0);
        JEM_UNROLL(4)
        for (int r = 0; r < kTile; ++r) {
            R p[kTile];
            Stride1::output(half + r * kSide, 1, p);
            JEM_UNROLL(4)
            for (int s = 0; s < kTile; ++s) {
                if (row + r >= tiles.height || column + s >= tiles.width) continue;
                const int64_t at = ((image * tiles.height + row + r) * tiles.width + column + s) * tiles.channels + c;
                y[at] = residual != nullptr ? p[s] + add + residual[at] : p[s] + add;
            }
        }
    }
};

// Of weights [rows, 3, 3, columns]: [kPoints, rows, columns]; turned: with the taps of a half circle, for the way back to data.
template <class R>
struct Weights {
    R* points;
    const R* w;
    int64_t columns, count;  // count: rows * columns
    bool turned;

    JEM_HD void operator()(int64_t i) const {
        constexpr int kTaps = 3;
        const R* from = w + i / columns * kTaps * kTaps * columns + i % columns;
        R taps[kTaps * kTaps], half[kSide * kTaps];
        JEM_UNROLL(9)
        for (int t = 0; t < kTaps * kTaps; ++t) taps[t] = from[(turned ? kTaps * kTaps - 1 - t : t) * columns];
        JEM_UNROLL(3)
        for (int s = 0; s < kTaps; ++s) {
            R p[kSide];
            Stride1::weights(taps + s, kTaps, p);
            JEM_UNROLL(6)
            for (int k = 0; k < kSide; ++k) half[k * kTaps + s] = p[k];
        }
        JEM_UNROLL(6)
        for (int k = 0; k < kSide; ++k) {
            R p[kSide];
            Stride1::weights(half + k * kTaps, 1, p);
            JEM_UNROLL(6)
            for (int l = 0; l < kSide; ++l) points[(k * kSide + l) * count + i] = p[l];
        }
    }
};

}  // namespace jem::winograd
