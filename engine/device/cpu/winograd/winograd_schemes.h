// The transforms of minimal filtering in one dimension, of vectors of channels: points of an input, of a filter, of a gradient, and results
// from points (Winograd 1980).
#pragma once

#include <algorithm>

#include "engine/device/cpu/instruction_sets.h"
#include "kernels/winograd.h"

namespace jem::winograd {

// Schemes: how a row of kIn values and a filter of three make kOut results, by kPoints products. A tile is the same in both directions.
// Some points multiply the same values of the filter, of which there are kFilters. Stride1: kernels/winograd.h.

// F(4, 2), points 0, 1, -1, 2, infinity: the part of stride 2 in which neighbouring results share inputs.
struct TwoTaps {
    template <class V>
    JEM_INLINE static void input(const V& d0, const V& d1, const V& d2, const V& d3, const V& d4, V* p) {
        p[0] = 2.0f * (d0 - d2) + (d3 - d1);
        p[1] = d3 - d2 - 2.0f * d1;
        p[2] = 2.0f * d1 + (d3 - 3.0f * d2);
        p[3] = d3 - d1;
        p[4] = 2.0f * (d1 - d3) + (d4 - d2);
    }
    template <class V>
    JEM_INLINE static void output(const V* m, int s, V (&y)[4]) {
        const V a = m[s] + m[2 * s], b = m[s] - m[2 * s];
        y[0] = m[0] + a + m[3 * s];
        y[1] = 2.0f * m[3 * s] + b;
        y[2] = 4.0f * m[3 * s] + a;
        y[3] = 8.0f * m[3 * s] + (b + m[4 * s]);
    }
};

// Result i of stride 2 is taps 0 and 2 on the odd inputs i - 1 and i, which neighbours share, and tap 1 on the even input i, which they do
// not: five points and four products.
struct Stride2 {
    static constexpr int kIn = 9, kOut = 4, kPoints = 9, kFilters = 6;
    static constexpr int kInStep = 8, kInFirst = -1, kOutStep = 4;
    static constexpr int filter(int point) { return std::min(point, 5); }
    static constexpr float kFilter[kFilters][3] = {{0.5f, 0, 0}, {-0.5f, 0, -0.5f}, {-1.0f / 6, 0, 1.0f / 6}, {1.0f / 6, 0, 1.0f / 3},
                                                   {0, 0, 1},    {0, 1, 0}};
    template <class V>
    JEM_INLINE static void input(const V* d, int s, V (&p)[kPoints]) {
        TwoTaps::input(d[0], d[2 * s], d[4 * s], d[6 * s], d[8 * s], p);
#pragma GCC unroll 9
        for (int i = 0; i < 4; ++i) p[5 + i] = d[(2 * i + 1) * s];
    }
    template <class V>
    JEM_INLINE static void output(const V* m, int s, V (&y)[kOut]) {
        TwoTaps::output(m, s, y);
#pragma GCC unroll 9
        for (int i = 0; i < 4; ++i) y[i] += m[(5 + i) * s];
    }
    template <class V>
    JEM_INLINE static void gradient(const V* y, int s, V (&p)[kPoints]) {
        const V a = y[0] + y[2 * s], b = y[s] + y[3 * s];
        p[0] = y[0];
        p[1] = a + b;
        p[2] = a - b;
        p[3] = 2.0f * (4.0f * y[3 * s] + y[s]) + (4.0f * y[2 * s] + y[0]);
        p[4] = y[3 * s];
#pragma GCC unroll 9
        for (int i = 0; i < 4; ++i) p[5 + i] = y[i * s];
    }
};

// Its way back: odd results 2j + 1 are two taps on j and j + 1, even ones 2j are one on j.
struct Stride2ToData {
    static constexpr int kIn = 5, kOut = 8, kPoints = 9, kFilters = 6;
    static constexpr int kInStep = 4, kInFirst = 0, kOutStep = 8;
    static constexpr int filter(int point) { return Stride2::filter(point); }
    template <class V>
    JEM_INLINE static void input(const V* d, int s, V (&p)[kPoints]) {
        TwoTaps::input(d[0], d[s], d[2 * s], d[3 * s], d[4 * s], p);
#pragma GCC unroll 9
        for (int i = 0; i < 4; ++i) p[5 + i] = d[i * s];
    }
    template <class V>
    JEM_INLINE static void output(const V* m, int s, V (&y)[kOut]) {
        V odd[4];
        TwoTaps::output(m, s, odd);
#pragma GCC unroll 9
        for (int i = 0; i < 4; ++i) {
            y[2 * i] = m[(5 + i) * s];
            y[2 * i + 1] = odd[i];
        }
    }
};

}  // namespace jem::winograd
