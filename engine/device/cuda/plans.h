// Who makes the plans of the CUDA device: NVIDIA's libraries, or loops in the tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/device/cuda/gpu.h"
#include "engine/device/device.h"
#include "kernels/cuda_launcher.h"

namespace jem {

class CudaPlans {
public:
    virtual ~CudaPlans() = default;
    virtual std::unique_ptr<ConvPlan> convolution(const ConvShape& shape, const ConvOptions& options) = 0;
    virtual std::unique_ptr<LinearPlan> linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) = 0;
};

struct CudaPlanSettings {
    CudaPrecision precision = CudaPrecision::f32;
    bool nondeterministic = false;               // let engines in that do not repeat bit for bit
    size_t workspace_limit = size_t{512} << 20;  // of one convolution
    std::string cache_file;                      // timed choices are remembered there; empty: not
};

// Convolutions by cuDNN's graph API, the linear head by cuBLASLt. on_device: the GPU is at hand (plans are timed, fused ones
// are compiled); otherwise they are only finalised for the GPU described, and nothing can be executed.
// launcher and ops must outlive the plans.
std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings,
                                              bool on_device);

}  // namespace jem
