// The linear head by cuBLASLt.
#pragma once

#include <memory>
#include <vector>

#include "engine/device/cuda/gpu.h"
#include "engine/device/device.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

class CublasLinear {
public:
    // launcher must outlive it and its plans. on_device: the GPU is at hand; otherwise plans have a workspace, and cannot be executed.
    CublasLinear(CudaLauncher& launcher, const GpuDescription& gpu, CudaPrecision precision, bool on_device);
    CublasLinear(const CublasLinear&) = delete;  // owns cuBLASLt's handle
    CublasLinear& operator=(const CublasLinear&) = delete;
    ~CublasLinear();

    // It must outlive the plan.
    std::unique_ptr<LinearPlan> plan(int64_t in, int64_t out, const std::vector<int64_t>& batches);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace jem
