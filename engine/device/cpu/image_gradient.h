// The gradient of images through the network's first convolution, directly: oneDNN reaches blocks of channels only, and would compute a
// block of 8 or 16 where an image has 1 or 3.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/device/convolution.h"

namespace jem::image_gradient {

// Gradients of outputs are f32 [N, O/lanes, h*w, lanes], of images f32 [N, H, W, I]. lanes, 8 or 16, divides O.
struct Problem {
    ConvShape shape;
    int64_t batch = 0;
    int64_t lanes = 8;
    int threads = 1;
};

// Weights f32 [O, kernel, I] as the products read them; as many values.
size_t prepared_bytes(const ConvShape& shape);
void prepare(const Problem& p, float* prepared, const float* weights);

// Nothing depends on the number of threads.
void run(const Problem& p, float* d_x, const float* d_y, const float* prepared);

}  // namespace jem::image_gradient
