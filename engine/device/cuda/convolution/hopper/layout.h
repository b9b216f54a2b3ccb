// Where everything lies: index arithmetic of the kernels. Nothing here needs CUDA, so that checks on the host run the same functions.
//
// Words:
// pixel block: 8x8 output pixels of one image, the 64 rows (M) of one wgmma. Blocks are numbered g = 0, 1, ... over all images.
// halo: the 10x10 input pixels that a pixel block needs for 3x3 taps; pixels outside of the image are zero.
// slice: 8 channels, 16 bytes of one pixel. Shared memory holds [slice][pixel][8 channels]: a "core matrix" of wgmma, 8 rows of 16 bytes
// without swizzle, is then 8 neighbouring pixels of one slice, 128 bytes in one piece wherever it starts. So a tap (dy, dx) is nothing but
// another start address, (dy * 10 + dx) * 16 bytes on, and one copy of the halo serves all nine taps.
// chunk: 32 input channels, 4 slices: what one stage of the ring of A holds.
#pragma once
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/weight_tiles.h"

namespace jem::hopper {

constexpr int kEdge = 8, kBlockPixels = kEdge * kEdge, kHaloEdge = kEdge + 2, kHaloPixels = kHaloEdge * kHaloEdge;
constexpr int kVec = 8, kVecBytes = 16, kTaps = 9;

// Images, height, width (multiples of 8), input and output channels; NHWC, 3x3, stride 1, padding 1.
struct Shape {
    int n, h, w, c, k;
};

JEM_HD inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
JEM_HD inline int pixel_blocks(const Shape& s) { return s.n * (s.h / kEdge) * (s.w / kEdge); }

// The upper left pixel of a pixel block.
struct BlockAt {
    int image, y, x;
};
JEM_HD inline BlockAt block_at(const Shape& s, int g) {
    const int across = s.w / kEdge, per_image = across * (s.h / kEdge), r = g % per_image;
    return {g / per_image, r / across * kEdge, r % across * kEdge};
}
// Element offset of pixel (y, x) of an image, channel 0; -1 outside of the image. Fits 31 bits for every shape of interest (checked by the
// host).
JEM_HD inline int pixel_offset(const Shape& s, int image, int y, int x, int channels) {
    return y < 0 || y >= s.h || x < 0 || x >= s.w ? -1 : ((image * s.h + y) * s.w + x) * channels;
}
JEM_HD inline int halo_offset(const Shape& s, int g, int halo_pixel, int channels) {
    if (g >= pixel_blocks(s)) return -1;
    const BlockAt b = block_at(s, g);
    return pixel_offset(s, b.image, b.y + halo_pixel / kHaloEdge - 1, b.x + halo_pixel % kHaloEdge - 1, channels);
}
JEM_HD inline int block_offset(const Shape& s, int g, int row, int channels) {  // row = pixel 0..63 of a block
    const BlockAt b = block_at(s, g);
    return pixel_offset(s, b.image, b.y + row / kEdge, b.x + row % kEdge, channels);
}
JEM_HD constexpr int tap_bytes(int tap) { return (tap / 3 * kHaloEdge + tap % 3) * kVecBytes; }

// Wgmma descriptors -----------------------------------------------------------------------------------------------------------

// 64 bits: [0,14) start address / 16, [16,30) leading byte offset / 16 (LBO), [32,46) stride byte offset / 16 (SBO), [49,52) base offset,
// [62,64) swizzle (0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes). Without swizzle an operand is made of core matrices, 8 rows of 16 bytes
// each:
//   K-major  (row = M or N index, 8 k values in its 16 bytes):    LBO = from k 0..7 to k 8..15, SBO = from 8 rows to the next 8 rows.
//   MN-major (row = k index, 8 M or N values in its 16 bytes):    LBO = from k 0..7 to k 8..15, SBO = from 8 M (N) values to the next 8.
// That is how CUTLASS documents INTERLEAVE; `probe desc` and `probe map` find out whether the hardware agrees.
constexpr int kSwizzleNone = 0, kSwizzle128 = 1;
JEM_HD inline uint64_t make_descriptor(uint32_t address, uint32_t lbo, uint32_t sbo, int swizzle = kSwizzleNone) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)((lbo & 0x3ffff) >> 4) << 16 | (uint64_t)((sbo & 0x3ffff) >> 4) << 32 |
           (uint64_t)swizzle << 62;
}
struct Descriptor {
    uint32_t address, lbo, sbo;
    int swizzle;
};
JEM_HD inline Descriptor read_descriptor(uint64_t d) {
    return {(uint32_t)(d & 0x3fff) << 4, (uint32_t)(d >> 16 & 0x3fff) << 4, (uint32_t)(d >> 32 & 0x3fff) << 4, (int)(d >> 62)};
}
// Byte address that an operand's element (i, k) is expected at; i = row of A or column of B, k = 0..15.
JEM_HD inline uint32_t operand_address(const Descriptor& d, bool mn_major, int i, int k) {
    if (d.swizzle == kSwizzle128) {  // K-major only: rows of 128 bytes, 16-byte pieces exclusive-or'd with the row's number modulo 8
        const uint32_t a = d.address + i / 8 * d.sbo + i % 8 * 128 + k * 2;
        return a ^ (a >> 7 & 7) << 4;
    }
    if (mn_major) return d.address + i / 8 * d.sbo + k / 8 * d.lbo + k % 8 * kVecBytes + i % 8 * 2;
    return d.address + i / 8 * d.sbo + k / 8 * d.lbo + i % 8 * kVecBytes + k % 8 * 2;
}
// Accumulator i (0 .. N/2 - 1) of thread t (0 .. 127) of a warpgroup: row and column of D (64 x N).
JEM_HD constexpr int acc_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
JEM_HD constexpr int acc_col(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

// Ring of stages --------------------------------------------------------------------------------------------------------------

// Use number u (0, 1, ..) of a ring takes stage u % kStages in round u / kStages. A "full" and an "empty" mbarrier belong to each stage
// and complete one phase per round. A consumer waits for full with the parity of the round (0 first). A producer waits for empty with the
// other parity: in round 0 it asks for the phase "before" phase 0, which an mbarrier reports as complete, so that the first round passes
// at once; in round r it waits for the phase r - 1, in which the consumers let go of what was loaded in round r - 1.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    JEM_HD inline void advance() {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
    JEM_HD inline uint32_t full_parity() const { return parity; }
    JEM_HD inline uint32_t empty_parity() const { return parity ^ 1; }
};

// Convolution -----------------------------------------------------------------------------------------------------------------

constexpr int kChunk = 32, kChunkSlices = kChunk / kVec;
constexpr int kMaxNormChannels = 640;  // input channels, where a norm stands in front
constexpr int kLoaders = 96;           // three warps load A, the fourth warp of that warpgroup loads B

// Tile: 2 * kPerGroup pixel blocks (kPerGroup for each of the two consumer warpgroups) times kN output channels.
template <int kN, int kPerGroup>
struct ConvTile {
    static_assert(kN % 16 == 0 && kN <= 160);
    static constexpr int kBlocks = 2 * kPerGroup, kPixels = kBlocks * kHaloPixels;
    static constexpr int kSliceBytes = kPixels * kVecBytes, kABytes = kChunkSlices * kSliceBytes;
    static constexpr int kWeightBytes = kChunk * kN * 2;  // B of one tap and chunk, in one piece: [kN / 8][slice][8 rows][8 channels]
    static constexpr int kStagesA = kPerGroup == 2 ? 3 : 4, kStagesB = kPerGroup == 2 ? 8 : 10;
    static constexpr int kRounds = (kPixels + kLoaders / kChunkSlices - 1) / (kLoaders / kChunkSlices);  // 17 or 9 vectors a loader
    static constexpr int kBatch = 6;  // of which so many are on their way at once

    // Loader t, round i: slice of the chunk and pixel of the tile's halos (block = pixel / 100); pixel >= kPixels: nothing to do.
    // 8 lanes side by side take 8 pixels (128 bytes of shared memory without conflicts), the 4 groups of lanes the 4 slices (64 bytes of
    // each pixel).
    static JEM_HD constexpr int load_slice(int t) { return t / 8 % kChunkSlices; }
    static JEM_HD constexpr int load_pixel(int t, int i) { return i * (kLoaders / kChunkSlices) + t / 32 * 8 + t % 8; }
    static JEM_HD inline int source(const Shape& s, int m, int pixel) {
        return halo_offset(s, m * kBlocks + pixel / kHaloPixels, pixel % kHaloPixels, s.c);
    }
    static JEM_HD constexpr int a_offset(int slice, int pixel) { return slice * kSliceBytes + pixel * kVecBytes; }
    // Descriptors of k step 0 or 1 of a chunk. a: address of the stage; block: 0 .. kBlocks - 1.
    static JEM_HD inline uint64_t a_descriptor(uint32_t a, int block, int tap, int step) {
        return make_descriptor(a + block * kHaloPixels * kVecBytes + tap_bytes(tap) + step * 2 * kSliceBytes, kSliceBytes,
                               kHaloEdge * kVecBytes);
    }
    static JEM_HD inline uint64_t b_descriptor(uint32_t b, int step) {
        constexpr int kSlice = 8 * kVecBytes;
        return make_descriptor(b + step * 2 * kSlice, kSlice, kChunkSlices * kSlice);
    }

    // Epilogue of one m64 block: accumulators -> shared memory (bf16) -> rows of 16 bytes, with residual and sums. From one row to the next
    // are 4 banks more than a multiple of 32 (of 16 for 32 and 160 channels): 8 rows x 4 words take all of them.
    static constexpr int kRowVectors = kN / kVec,
                         kRowsAtOnce = 128 / kRowVectors;  // 160: 20 vectors a row, 120 threads take 6 rows at once
    static constexpr int kStagingPitch = kN * 2 + kVecBytes;
    static constexpr int kScratch = kRowsAtOnce * 2 * kN;  // f32 sums, in the same place afterwards
    static constexpr int kStagingBytes = kBlockPixels * kStagingPitch > kScratch * 4 ? kBlockPixels* kStagingPitch : kScratch * 4;
    static JEM_HD constexpr int staging_offset(int row, int col) { return row * kStagingPitch + col * 2; }
    static JEM_HD constexpr int out_vector(int t) { return t % kRowVectors; }
    static JEM_HD constexpr int out_first_row(int t) { return t / kRowVectors; }  // kRowsAtOnce: idle
};
struct TileAt {
    int m, n;
};
JEM_HD inline int chunks(const Shape& s) { return s.c / kChunk; }
// What the `cluster` (1 or 2) blocks of threads of a cluster do at a time is a unit: tiles of the same output channels and of as many
// neighbouring groups of pixels, the last of which may lie beyond the end. Neighbouring units share pixels, and so the L2.
JEM_HD inline int conv_units(const Shape& s, int tile_channels, int blocks, int cluster) {
    return ceil_div(ceil_div(pixel_blocks(s), blocks), cluster) * (s.k / tile_channels);
}
JEM_HD inline TileAt tile_at(const Shape& s, int tile_channels, int unit, int cluster, int rank) {
    const int across = s.k / tile_channels;
    return {unit / across * cluster + rank, unit % across};
}

// Weights come as tiles (kernels/weight_tiles.h). First element of those of a tap and chunk, of the output channels from `first` on.
JEM_HD inline int64_t weight_piece(const Shape& s, int first, int chunk, int tap) {
    return weight_tile_offset(s.k, kTaps, first, tap, chunk * kChunk);
}
// Plain weights are [k][tap][c] (KRSC). Backward to data is the same convolution of dy (k channels) with weights [c][8 - tap][k].
JEM_HD inline int64_t krsc_index(const Shape& s, int k, int tap, int c) { return ((int64_t)k * kTaps + tap) * s.c + c; }

// Partial sums, a row for each pixel block: [pixel blocks][2][k].
JEM_HD inline int64_t partial_index(const Shape& s, int g, int which, int channel) { return ((int64_t)g * 2 + which) * s.k + channel; }

// Weight gradient -------------------------------------------------------------------------------------------------------------

// dW[k][tap][c] = sum over pixels p of dy[p][k] * x[p + tap][c]. One block of threads: 64 input channels (M) x kN output channels x all
// nine taps (each of three warpgroups has a row of three) over a range of pixel blocks; ranges are added up by a second kernel in a fixed
// order. A = halo of x, MN-major: [8 slices][100 pixels][8 channels]; B = dy, MN-major: [kN / 8 slices][64 pixels][8 channels].
constexpr int kGradM = 64, kGradStages = 8, kGradLag = 3, kGradLoaders = 128;
constexpr int kGradASlices = kGradM / kVec;
constexpr int kGradASliceBytes = kHaloPixels * kVecBytes, kGradBSliceBytes = kBlockPixels * kVecBytes;
constexpr int kGradABytes = kGradASlices * kGradASliceBytes;  // 12800
constexpr int kGradGroups = 3, kGradTaps = 3;                 // consumer warpgroups, taps of each
// A warp copies 16 pixels x 2 slices at a time: 32 bytes of each pixel, 2 x 256 bytes of shared memory.
constexpr int kGradARounds = 7;
struct GradItem {
    int slice, pixel;
};
JEM_HD constexpr GradItem grad_a_item(int t, int i) {
    return {(i * 4 + t / 32) / 7 * 2 + t % 32 / 16, (i * 4 + t / 32) % 7 * 16 + t % 16};
}  // pixel >= 100: none
JEM_HD constexpr GradItem grad_b_item(int t, int i) { return {i * 2 + t % 32 / 16, t / 32 * 16 + t % 16}; }
JEM_HD inline uint64_t grad_a_descriptor(uint32_t a, int tap, int step) {  // step 0..3: pixel rows 2 * step and 2 * step + 1 of the block
    return make_descriptor(a + tap_bytes(tap) + step * 2 * kHaloEdge * kVecBytes, kHaloEdge * kVecBytes, kGradASliceBytes);
}
JEM_HD inline uint64_t grad_b_descriptor(uint32_t b, int step) {
    return make_descriptor(b + step * 2 * kEdge * kVecBytes, kEdge * kVecBytes, kGradBSliceBytes);
}
template <int kN>
struct GradTile {
    static_assert(kN % 16 == 0 && kN <= 80);
    static constexpr int kBBytes = kN / kVec * kGradBSliceBytes, kBRounds = kN / 16;  // 80: 10240
};
JEM_HD inline int grad_m_tiles(const Shape& s) { return ceil_div(s.c, kGradM); }
JEM_HD inline int grad_tiles(const Shape& s, int tile_channels) { return grad_m_tiles(s) * (s.k / tile_channels); }
struct GradAt {
    int split, m, n;
};
JEM_HD inline GradAt grad_at(const Shape& s, int tile_channels, int block) {
    const int across = s.k / tile_channels, per_split = grad_m_tiles(s) * across, r = block % per_split;
    return {block / per_split, r / across, r % across};
}
JEM_HD inline int grad_first(const Shape& s, int split, int splits) { return (int)((int64_t)pixel_blocks(s) * split / splits); }
// [splits][taps][c][k]
JEM_HD inline int64_t grad_partial_index(const Shape& s, int split, int tap, int c, int k) {
    return (((int64_t)split * kTaps + tap) * s.c + c) * s.k + k;
}

}  // namespace jem::hopper
