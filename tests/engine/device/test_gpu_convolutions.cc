// The project's own convolutions on the GPU at hand, each engine by itself, against loops on the host: the search would leave out one that
// is wrong, and say nothing of one that is slow.
#include <doctest/doctest.h>

#ifdef JEM_HAS_CUDA

#include <cstdio>
#include <string>
#include <vector>

#include "engine/device/cuda/convolution/hopper_provider.h"
#include "engine/device/cuda/convolution/winograd_provider.h"
#include "engine/device/cuda/cuda_device.h"
#include "tests/conv_engines.h"

namespace jem {
namespace {

// Empty, with a line that says why, where there is none.
std::vector<GpuDescription> gpu_at_hand() {
    int count = 0;
    cudaDeviceProp p{};
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 || cudaGetDeviceProperties(&p, 0) != cudaSuccess) {
        (void)cudaGetLastError();
        std::puts("SKIPPED: no GPU");
        return {};
    }
    GpuDescription gpu;
    gpu.title = p.name;
    gpu.sm = p.major * 10 + p.minor;
    gpu.multiprocessors = p.multiProcessorCount;
    return {gpu};
}

}  // namespace

TEST_CASE("own_convolutions_by_minimal_filtering_compute_what_the_loops_compute_on_a_gpu") {
    // Roundings of f32 as the transforms enlarge them (kernels/winograd.h).
    constexpr Tolerance kFilterError{.absolute = 1e-4, .relative = 1e-5};
    for ([[maybe_unused]] const GpuDescription& gpu : gpu_at_hand())
        for (const ConvShape& shape : {conv3x3(16, 16, 8, 8), conv3x3(40, 24, 5, 11), conv3x3(160, 320, 16, 16)})
            for (const ConvPart& part : all_parts()) {
                if (part.pass == ConvPass::backward_weights || has_sums(part.fusion)) continue;
                const ConvProblem problem{.shape = shape, .batch = 3, .pass = part.pass, .fusion = part.fusion, .slope = 0.1f};
                check_engines(
                    problem, [](CudaLauncher& launcher) { return make_winograd_provider(launcher, cublas_products()); }, kFilterError);
            }
}

#ifdef JEM_HAS_HOPPER
TEST_CASE("own_kernels_for_hopper_compute_what_the_loops_compute_on_a_gpu") {
    // One rounding to bf16 of sums in another order, two where a residual is added afterwards.
    constexpr Tolerance kRounding{.absolute = 0.02, .relative = 0x1p-7};
    for (const GpuDescription& gpu : gpu_at_hand()) {
        if (gpu.sm != 90) {
            std::puts("SKIPPED: the GPU is of another generation");
            return;
        }
        for (const ConvShape& shape :
             {conv3x3(32, 32, 8, 16), conv3x3(64, 128, 16, 16), conv3x3(160, 160, 32, 16), conv3x3(320, 640, 8, 8)})
            for (const ConvPart& part : all_parts()) {
                const ConvProblem problem{.shape = shape,
                                          .batch = 5,
                                          .pass = part.pass,
                                          .fusion = part.fusion,
                                          .precision = CudaPrecision::bf16,
                                          .algorithm = ConvAlgorithm::own,
                                          .slope = 0.1f};
                check_engines(
                    problem, [&](CudaLauncher& launcher) { return make_hopper_provider(launcher, gpu); }, kRounding);
            }
    }
}
#endif

}  // namespace jem

#endif
