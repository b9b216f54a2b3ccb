// Weights of a convolution as the tensor cores' kernels read them: tiles of 8 rows x 32 columns, in four slices of 8 x 8, each of which
// lies in one piece of 128 bytes of a 16-bit type.
#pragma once

#include <cstdint>

#include "kernels/qualifiers.h"

namespace jem {

inline constexpr int64_t kTileRows = 8, kTileColumns = 32, kTileSlice = 8;

// Of [rows, taps, columns]; columns a multiple of 32, rows of 8. Order: [columns / 32][taps][rows / 8][slice][8 rows][8 columns], so that
// any 8 neighbouring rows of a tap and of 32 columns lie in one piece, and any more of them behind it.
JEM_HD inline int64_t weight_tile_offset(int64_t rows, int64_t taps, int64_t row, int64_t tap, int64_t column) {
    const int64_t tile = (column / kTileColumns * taps + tap) * (rows / kTileRows) + row / kTileRows;
    return ((tile * (kTileColumns / kTileSlice) + column % kTileColumns / kTileSlice) * kTileRows + row % kTileRows) * kTileSlice +
           column % kTileSlice;
}

}  // namespace jem
