// 3x3 convolutions by minimal filtering, in f32 arithmetic: a tile of the input and the filter are transformed to points, multiplied point
// by point (a small matrix product over the channels each), and the products transformed back (Winograd 1980; Lavin & Gray 2016). A result
// of 4x4 pixels takes 36 multiplications a pair of channels in place of 144 at stride 1, 81 at stride 2. What stands around a convolution
// is done as its tiles are read and written: norm and LeakyReLU in front, bias, residual and the sums that the next norm wants, LeakyReLU
// of the backward pass.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/device/device.h"

namespace jem::winograd {

// Activations are f32 [N, C/lanes, H*W, lanes] or bf16 [N, H*W, C], weights and their gradients f32 [O, H, W, I], all else f32 [C].
// With bf16, results are rounded as they are written, and weights before they are transformed; nothing else is.
struct Problem {
    ConvShape shape;  // 3x3, stride 1 or 2; lanes divides both sides' channels
    int64_t batch = 0;
    int64_t lanes = 8;        // 8 or 16; bf16: 16
    DType type = DType::f32;  // of the activations
    int threads = 1;
};

// The norm in front of a convolution's input: leaky((x - mean) * scale + beta).
struct NormInFront {
    const float *mean = nullptr, *scale = nullptr, *beta = nullptr;
    float slope = 0;  // of the LeakyReLU
};

// What becomes of a result before it is written. `sums`, where not null, receives two values a channel, [2, C].
struct ForwardOutput {
    void* y = nullptr;
    const float* bias = nullptr;
    const void* residual = nullptr;  // added; may be y, may be null
    const float* centre = nullptr;   // sums: of y - centre and of its square
    float* sums = nullptr;

    const void* read() const { return residual; }
    const void* written() const { return y; }
};
struct BackwardOutput {
    void* d_x = nullptr;
    const void* x = nullptr;  // where not null, d_x is multiplied by leaky'(norm(x)); sums: of that and of that * (x - mean)
    NormInFront norm{};
    float* sums = nullptr;

    const void* read() const { return x; }
    const void* written() const { return d_x; }
};

bool can(const ConvShape& shape, int64_t lanes, DType type);

// Each pass has transformed weights of its own, renewed whenever the weights change.
size_t transformed_bytes(const ConvShape& shape);
void transform_weights_forward(const Problem& p, float* transformed, const float* weights);
void transform_weights_backward(const Problem& p, float* transformed, const float* weights);

size_t forward_scratch_bytes(const Problem& p);
size_t backward_data_scratch_bytes(const Problem& p);
size_t backward_weights_scratch_bytes(const Problem& p);

// norm: of the input; null where there is none. Nothing depends on the number of threads.
void forward(const Problem& p, const ForwardOutput& out, const void* x, const NormInFront* norm, const float* transformed,
             std::byte* scratch);
void backward_data(const Problem& p, const BackwardOutput& out, const void* d_y, const float* transformed, std::byte* scratch);
// d_w += the gradient
void backward_weights(const Problem& p, float* d_w, const void* x, const NormInFront* norm, const void* d_y, std::byte* scratch);

}  // namespace jem::winograd
