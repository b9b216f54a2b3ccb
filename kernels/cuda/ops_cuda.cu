// Every functor, compiled for the GPU, with activations in f32 and in bf16.
#include <cuda_bf16.h>

#include "kernels/cuda/cuda_launcher.h"
#include "kernels/tensor.h"

namespace jem {
template <>
struct DTypeOf<__nv_bfloat16> {
    static constexpr DType value = DType::bf16;
};
}  // namespace jem

#include "kernels/cuda/primitives_cuda.cuh"
#include "kernels/ops_impl.h"

namespace jem {

namespace {
__global__ void stand_for_all_kernels() {}  // they are compiled for the same architectures
}  // namespace

cudaError_t find_cuda_kernels() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(stand_for_all_kernels));
}

std::unique_ptr<Ops> make_cuda_ops(CudaLauncher& launcher, double* partials, DType activation) {
    const CudaExec exec(launcher, partials, kCudaPartials);
    if (activation == DType::bf16) return std::make_unique<OpsOn<CudaExec, float, __nv_bfloat16>>(exec);
    return std::make_unique<OpsOn<CudaExec, float, float>>(exec);
}

}  // namespace jem
