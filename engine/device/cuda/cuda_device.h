// NVIDIA GPUs: one stream, NHWC, phases as CUDA graphs. Nothing here needs the toolkit's headers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "data/input_error.h"
#include "engine/device/cuda/gpu.h"
#include "engine/device/device.h"

namespace jem {

class CudaLauncher;
class CudaPlans;

// No driver, no GPU, or one that cannot do what is asked: says why and what to do.
class CudaUnavailable : public InputError {
public:
    using InputError::InputError;
};

struct CudaOptions {
    CudaPrecision precision = CudaPrecision::f32;
    bool nondeterministic = false;  // faster engines that do not repeat bit for bit
    bool overlap = false;           // a side queue: gradients of weights beside the way back through the layers
    int ordinal = 0;                // which GPU, of those that are visible
    std::string plan_cache;         // file in which timed plans are remembered; empty: none
};

// Throws CudaUnavailable.
std::unique_ptr<Device> make_cuda_device(const CudaOptions& options);

// Plans and counts as that GPU would, without a GPU or a driver. Memory cannot be had and nothing runs.
std::unique_ptr<Device> make_cuda_planning_device(const GpuDescription& gpu, const CudaOptions& options);

// The GPU at hand with other plans than the libraries'.
using MakeCudaPlans = std::function<std::unique_ptr<CudaPlans>(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu)>;
std::unique_ptr<Device> make_cuda_device(const CudaOptions& options, const MakeCudaPlans& make_plans);

// The GPUs that the driver shows, "NVIDIA H100 80GB HBM3, 80 GiB, sm_90" each. Where none: empty, and why says it.
std::vector<std::string> visible_gpus(std::string& why);

// What is missing for several GPUs and how to get it; empty where this build has NCCL.
std::string missing_nccl();
std::string nccl_version();  // "2.28.9"; empty without

}  // namespace jem
