// Convolutions of 3x3 and stride 1 in f32 by minimal filtering (kernels/winograd.h): transforms of the project's own, and between them 36
// products of matrices, with 4 times fewer multiplications. Forward and backward to data: cuDNN has no such form for these.
#pragma once

#include <memory>

#include "engine/device/cuda/batched_product.h"
#include "engine/device/cuda/convolution/provider.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

// launcher must outlive it.
std::unique_ptr<ConvProvider> make_winograd_provider(CudaLauncher& launcher, BatchedProducts products);

}  // namespace jem
