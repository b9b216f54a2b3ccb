// Convolutions by this program's own kernels for Hopper GPUs (hopper/kernels.cuh): 3x3, stride 1, bf16, with what stands around them. They
// are offered for --conv-algorithm own alone, as they have never run on a GPU.
#pragma once

#include <memory>

#include "engine/device/cuda/convolution/provider.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

// launcher must outlive it.
std::unique_ptr<ConvProvider> make_hopper_provider(CudaLauncher& launcher, const GpuDescription& gpu);

}  // namespace jem
