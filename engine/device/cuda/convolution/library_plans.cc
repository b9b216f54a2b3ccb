// The libraries that the CUDA device stands on.
#include <utility>

#include "engine/device/cuda/convolution/cudnn_provider.h"
#include "engine/device/cuda/convolution/hopper_provider.h"
#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/convolution/turned_provider.h"
#include "engine/device/cuda/convolution/winograd_provider.h"
#include "engine/device/cuda/cublas_linear.h"

namespace jem {

std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings,
                                              bool on_device) {
    // Another provider of convolutions is a file beside cudnn_provider.cc and a line here. The first is what the others must agree with.
    ConvProviders convolutions;
    convolutions.push_back(make_cudnn_provider(launcher, gpu, on_device));
    convolutions.push_back(make_turned_provider(*convolutions.front()));
#ifdef JEM_HAS_HOPPER
    if (on_device) convolutions.push_back(make_hopper_provider(launcher, gpu));
#endif

    if (on_device && settings.precision == CudaPrecision::f32) convolutions.push_back(make_winograd_provider(launcher, cublas_products()));

    const auto linear = std::make_shared<CublasLinear>(launcher, gpu, settings.precision, on_device);
    return std::make_unique<CudaPlans>(
        launcher, ops, gpu, settings, on_device, std::move(convolutions),
        [linear](int64_t in, int64_t out, const std::vector<int64_t>& batches) { return linear->plan(in, out, batches); });
}

}  // namespace jem
