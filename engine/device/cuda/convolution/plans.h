// The plans of the CUDA device: convolutions by a list of providers, the linear head by a library or, in the tests, by loops.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/device/cuda/convolution/search.h"
#include "engine/device/cuda/gpu.h"
#include "engine/device/linear.h"

namespace jem {

using ConvProviders = std::vector<std::unique_ptr<ConvProvider>>;
using MakeLinearPlan = std::function<std::unique_ptr<LinearPlan>(int64_t in, int64_t out, const std::vector<int64_t>& batches)>;

class CudaPlans {
public:
    // on_device: the GPU is at hand (engines are timed); otherwise they are only planned for the GPU described, and nothing can be
    // executed. launcher and ops must outlive it, and it the plans.
    CudaPlans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings, bool on_device,
              ConvProviders convolutions, MakeLinearPlan linear);

    std::unique_ptr<ConvPlan> convolution(const ConvShape& shape, const ConvOptions& options);
    std::unique_ptr<LinearPlan> linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) { return linear_(in, out, batches); }
    Choices& choices() { return planning_.choices; }

private:
    ConvPlanning planning_;
    MakeLinearPlan linear_;
};

// NVIDIA's: cuDNN and cuBLASLt.
std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings,
                                              bool on_device);

}  // namespace jem
