// Launches of the kernels (kernels.cuh), for code that knows nothing of CUDA's language.
#pragma once

#include <cuda_runtime.h>

#include "engine/device/cuda/convolution/hopper/params.h"

namespace jem::hopper {

// All of these: rows and columns of images in multiples of 8, c of 32, k of the tile's channels, tensors at multiples of 16 bytes; with a
// norm at most kMaxNormChannels channels in front.

// A kernel of the convolution: how large its tiles are, and what it has in front or behind.
struct ConvVariant {
    int tile_channels = 160;      // 32, 64, 128, 160
    int pixel_blocks = 4;         // of a tile, 2 or 4
    int cluster = 1;              // blocks of threads that share what they load of w: 1, or, of 128 and 160 channels, 2
    bool norm = false;            // ConvParams::scale
    bool leaky_backward = false;  // ConvParams::behind_x; not with norm
};

// Lets the current GPU run it: once, before the first launch. multiprocessors: of that GPU. Returns how many blocks of threads it runs at
// once, 0 where this program has no kernel for it, or none of that variant.
int prepare(const ConvVariant& variant, int multiprocessors);
// blocks: as prepare() says. p.units is set here. Throws std::runtime_error.
void convolve(cudaStream_t stream, const ConvVariant& variant, ConvParams p, int blocks);
// What convolve() left in partials, added up: [channels] each.
void add_partials(cudaStream_t stream, const float* partials, int rows, int channels, float* sum, float* products);

// tile_channels: 32, 64 or 80; k a multiple of 32, too.
bool prepare_weight_gradient(int tile_channels);
// dw [k, 9, c] bf16, or sum of the same shape, f32, to which it is added; the other one is null.
void weight_gradient(cudaStream_t stream, int tile_channels, const GradParams& p, uint16_t* dw, float* sum);

}  // namespace jem::hopper
