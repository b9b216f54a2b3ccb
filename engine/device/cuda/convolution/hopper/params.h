// What the kernels are given. Activations and weights are bf16, by their bits; all else is f32.
#pragma once

#include <cstdint>

#include "engine/device/cuda/convolution/hopper/layout.h"
#include "engine/device/cuda/convolution/hopper/trouble.h"

namespace jem::hopper {

// y = conv(x), with what is not null around it:
// in front, by input channel: x becomes bf16(leaky(scale * x + shift));
// behind: + bias[k], + residual (may be y), sums of d = y - centre[k] and of d^2, y as it is stored;
// or, on the way back (behind_x: the norm's input): y = leaky'(z) * conv(x), z = behind_scale * (behind_x - centre) + behind_shift, sums of
// y and of y * (behind_x - centre).
struct ConvParams {
    Shape shape;
    const uint16_t *x, *w;  // w as tiles (kernels/weight_tiles.h)
    uint16_t* y;
    const float *scale, *shift;  // [c]
    const float* bias;           // [k]
    const uint16_t *residual, *behind_x;
    const float *centre, *behind_scale, *behind_shift;  // [k]
    float* partials;                                    // partial_index
    float slope;
    int units;
    Trouble* trouble;  // null: nobody wants to know
};

// dW of x and dy, split over ranges of pixels: partials (grad_partial_index).
struct GradParams {
    Shape shape;
    const uint16_t *x, *dy;
    float* partials;
    int splits;
    Trouble* trouble;
};

}  // namespace jem::hopper
