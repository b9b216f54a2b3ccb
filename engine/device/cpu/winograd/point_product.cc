#include "engine/device/cpu/winograd/point_product.h"

#include <algorithm>

#include "engine/device/cpu/vectors.h"

namespace jem::winograd {
namespace {

// c [Rows, Vectors * Lanes] of a tile.
template <int Lanes, int Rows, int Vectors>
JEM_INLINE void multiply(const Operands& o) {
    using V = Vector<Lanes>;
    V sums[Rows][Vectors] = {};
    const float *a = o.a, *b = o.b;
    for (int64_t k = 0; k < o.depth; ++k, a += o.a_depth, b += o.b_depth) {
        V right[Vectors];
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) load(right[v], b + v * Lanes);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; ++v) sums[r][v] += right[v] * a[r * o.a_row];
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
            float* c = o.c + r * o.c_row + v * Lanes;
            if (o.accumulate) {
                V held;
                load(held, c);
                sums[r][v] += held;
            }
            store(c, sums[r][v]);
        }
}
template <int Lanes, int Vectors, int Rows = kProductRows<Lanes>>
JEM_INLINE void multiply_rows(int64_t rows, const Operands& o) {
    if constexpr (Rows > 0) {
        if (rows == Rows)
            multiply<Lanes, Rows, Vectors>(o);
        else
            multiply_rows<Lanes, Vectors, Rows - 1>(rows, o);
    }
}

template <int Lanes>
JEM_INLINE void product_of(int64_t rows, int64_t columns, Operands o, int64_t b_column) {
    constexpr int64_t kRows = kProductRows<Lanes>;
    const int64_t parts = (rows + kRows - 1) / kRows;
    const Operands whole = o;
    for (int64_t column = 0; column < columns;) {
        const int64_t vectors = std::min(kVectorsARow, (columns - column) / Lanes);
        const float* a = whole.a;
        o.b = whole.b + column * b_column;
        if (whole.b_depth == 0) o.b_depth = vectors * Lanes;
        float* c = whole.c + column;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t some = rows / parts + (part < rows % parts ? 1 : 0);
            o.a = a;
            o.c = c;
            vectors == kVectorsARow ? multiply_rows<Lanes, kVectorsARow>(some, o) : multiply_rows<Lanes, 1>(some, o);
            a += some * o.a_row;
            c += some * o.c_row;
        }
        column += vectors * Lanes;
    }
}

}  // namespace

template <int Lanes>
void product(bool avx512, int64_t rows, int64_t columns, const Operands& o, int64_t b_column) {
    run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA { product_of<Lanes>(rows, columns, o, b_column); });
}

template void product<8>(bool, int64_t, int64_t, const Operands&, int64_t);
template void product<16>(bool, int64_t, int64_t, const Operands&, int64_t);

}  // namespace jem::winograd
