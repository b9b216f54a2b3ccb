// cuDNN's convolutions.
#pragma once

#include <memory>

#include "engine/device/cuda/convolution/provider.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

// on_device: the GPU is at hand and engines queue their work on the launcher's stream; otherwise they are planned for the GPU described,
// and run nowhere. Throws CudnnError.
std::unique_ptr<ConvProvider> make_cudnn_provider(CudaLauncher& launcher, const GpuDescription& gpu, bool on_device);

}  // namespace jem
