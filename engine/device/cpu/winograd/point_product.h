// The products of minimal filtering: small matrices in f32, a vector of channels at a time.
#pragma once

#include <cstdint>

namespace jem::winograd {

constexpr int64_t kVectorsARow = 2;  // of a tile
// Rows of a tile. With 16 registers 12 sums, 2 + 1 operands; with 32 (AVX-512) 24 sums.
template <int Lanes>
constexpr int kProductRows = Lanes == 16 ? 12 : 6;

// a [rows, depth] by b [depth, columns], any strides but the last of b, to c [rows, columns], or added to it.
struct Operands {
    const float* a;
    int64_t a_row, a_depth;
    const float* b;
    int64_t b_depth;
    int64_t depth;
    float* c;
    int64_t c_row;
    bool accumulate;
};

// All rows and columns, in tiles of rows as equal as can be: few rows would wait for their sums. b_column: from one column of b to the
// next; a b_depth of 0 says that b lies in panels of as many columns as are taken at once. Lanes divides columns.
template <int Lanes>
void product(bool avx512, int64_t rows, int64_t columns, const Operands& o, int64_t b_column);

}  // namespace jem::winograd
