// Who makes the plans of the CUDA device: NVIDIA's libraries, or loops in the tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/device/cuda/gpu.h"
#include "engine/device/device.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

class CudaPlans {
public:
    virtual ~CudaPlans() = default;
    virtual std::unique_ptr<ConvPlan> convolution(const ConvShape& shape, const ConvOptions& options) = 0;
    virtual std::unique_ptr<LinearPlan> linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) = 0;
};

struct CudaPlanSettings {
    CudaPrecision precision = CudaPrecision::f32;
    bool nondeterministic = false;  // let engines in that do not repeat bit for bit
    std::string cache_file;         // timed choices are remembered there; empty: not

    // Of one convolution. In f32, without tensor cores, minimal filtering pays most, and wants a batch's transformed tensors in memory:
    // on an H100 an iteration of WRN-10-10 takes 0.257 s within 512 MiB, and 0.231 without a limit, its arena then being 2220 MiB in place
    // of 1165.
    size_t workspace_limit() const { return size_t{precision == CudaPrecision::f32 ? 2048u : 512u} << 20; }
};

// Convolutions by cuDNN's graph API, the linear head by cuBLASLt. on_device: the GPU is at hand (plans are timed, fused ones
// are compiled); otherwise they are only finalised for the GPU described, and nothing can be executed.
// launcher and ops must outlive the plans.
std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings,
                                              bool on_device);

}  // namespace jem
