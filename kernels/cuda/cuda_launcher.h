// What stands between an op and the GPU: the stream, and whoever counts, names and times what is launched on it.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "kernels/ops.h"
#include "kernels/work.h"

namespace jem {

class CudaLauncher {
public:
    virtual ~CudaLauncher() = default;

    // Announces one launch (label: a string literal). False: it is only counted (a dry run) and must not happen. Every true is
    // followed by launched(), also where the launch failed.
    virtual bool announce(const char* label, const Work& work) = 0;
    virtual void launched() noexcept = 0;
    // Null where no GPU is at hand: then announce never answers true.
    virtual cudaStream_t stream() const = 0;
};

// partials: scratch for sums, of kCudaPartials doubles on the device. activation: f32 or bf16.
inline constexpr int64_t kCudaPartials = 1 << 19;  // 4 MiB: two sums of 640 channels from 400 blocks
std::unique_ptr<Ops> make_cuda_ops(CudaLauncher& launcher, double* partials, DType activation);

// Whether this program has kernels for the current GPU: cudaSuccess, or cudaErrorNoKernelImageForDevice and the like.
cudaError_t find_cuda_kernels();

}  // namespace jem
