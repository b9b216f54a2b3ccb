// The kernels for Hopper GPUs (engine/device/cuda/convolution/hopper) on the emulated machine, against loops, and among those that the
// device's search chooses from.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "engine/device/cuda/convolution/hopper_provider.h"
#include "tests/conv_engines.h"
#include "tests/emulation/device.h"
#include "tests/engine/training/findings.h"

namespace jem {
namespace {

// So slow that the search takes what is offered beside them.
Loops slow_loops() { return {.hopper = true, .plain = {{.name = "loops", .kernels = 9}}}; }

// One rounding to bf16 of sums in another order, two where a residual is added afterwards.
constexpr Tolerance kRounding{.absolute = 0.02, .relative = 0x1p-7};

}  // namespace

TEST_CASE("every_kernel_for_hopper_computes_what_the_loops_compute_with_all_that_it_fuses") {
    struct Case {
        ConvShape shape;
        int64_t batch;
    };
    // Tiles of every width; borders within a tile and between tiles; a last tile that is not full, or of two images; what does not fill M
    // of the weights' gradient.
    std::vector<Case> cases = {{conv3x3(32, 32, 8, 8), 1},    {conv3x3(96, 32, 8, 16), 3},  {conv3x3(32, 64, 16, 24), 1},
                               {conv3x3(64, 128, 16, 16), 1}, {conv3x3(128, 64, 8, 8), 7},  {conv3x3(32, 320, 8, 8), 5},
                               {conv3x3(160, 160, 16, 8), 2}, {conv3x3(320, 32, 24, 8), 1}, {conv3x3(160, 96, 8, 8), 2}};
    if (cuda_on_host::checks_accesses()) cases = {{conv3x3(32, 160, 8, 8), 3}};
    uint64_t seed = 0;
    const uint64_t races = cuda_on_host::races();
    const GpuDescription gpu = describe_gpu("h100");
    for (const Case& c : cases)
        for (const ConvPart& part : all_parts()) {
            if (cuda_on_host::checks_accesses() && part.fusion != Fusion::none && part.fusion != Fusion::norm_leaky_residual_sums &&
                part.fusion != Fusion::leaky_backward_sums && part.fusion != Fusion::accumulate)
                continue;
            const ConvProblem problem{.shape = c.shape,
                                      .batch = c.batch,
                                      .pass = part.pass,
                                      .fusion = part.fusion,
                                      .precision = CudaPrecision::bf16,
                                      .algorithm = ConvAlgorithm::own,
                                      .slope = 0.1f};
            cuda_on_host::reset({.seed = seed++ % 4});
            check_engines(
                problem, [&](CudaLauncher& launcher) { return make_hopper_provider(launcher, gpu); }, kRounding);
        }
    cuda_on_host::reset({});
    CHECK_MESSAGE(cuda_on_host::races() == races, "ThreadSanitizer reported a race");
}

TEST_CASE("kernels_for_hopper_are_offered_for_own_alone_and_on_hopper_alone") {
    const auto used = [](int sm, ConvAlgorithm algorithm, CudaPrecision precision, const ConvShape& shape) {
        EmulatedDevice device(precision, {.sm = sm}, {slow_loops()});
        const auto plan = device->plan_convolution(shape, {.batches = {2}, .algorithm = algorithm});
        const std::vector<ConvPlan::Choice> choices = plan->choices();
        return std::any_of(choices.begin(), choices.end(), [](const auto& c) { return c.engine.starts_with("hopper"); });
    };
    const ConvShape shape = conv3x3(32, 32, 8, 8);
    ConvShape strided = shape, point = shape;
    strided.stride = 2;
    point.kernel = 1;
    point.padding = 0;
    CHECK(used(90, ConvAlgorithm::own, CudaPrecision::bf16, shape));
    CHECK_FALSE(used(90, ConvAlgorithm::automatic, CudaPrecision::bf16, shape));
    CHECK_FALSE(used(90, ConvAlgorithm::direct, CudaPrecision::bf16, shape));
    CHECK_FALSE(used(80, ConvAlgorithm::own, CudaPrecision::bf16, shape));
    CHECK_FALSE(used(100, ConvAlgorithm::own, CudaPrecision::bf16, shape));
    CHECK_FALSE(used(90, ConvAlgorithm::own, CudaPrecision::f32, shape));
    for (const ConvShape& other : {strided, point, conv3x3(16, 32, 8, 8), conv3x3(32, 16, 8, 8), conv3x3(32, 32, 8, 12)})
        CHECK_FALSE(used(90, ConvAlgorithm::own, CudaPrecision::bf16, other));
}

TEST_CASE("an_iteration_by_kernels_for_hopper_equals_the_cpu_and_repeats_bit_for_bit") {
    if (cuda_on_host::checks_races() || cuda_on_host::checks_reads()) {
        std::puts("SKIPPED: each kernel is checked by itself; the search runs them hundreds of times, which takes too long here");
        return;
    }
    const auto cpu = make_cpu_device({.threads = 1});
    Settings s = selftest::iteration_settings();
    s.conv_algorithm = ConvAlgorithm::own;
    s.image_size = 16;
    s.sgld_steps = 1;
    EmulatedDevice device(CudaPrecision::bf16, {.seed = 1}, {slow_loops()});
    check_all(selftest::check_iteration(*device, *cpu, make_network, s, selftest::limits_of("bf16")));
    if (!cuda_on_host::checks_accesses()) check_all(selftest::check_repetition(*device, make_network, s));
}

}  // namespace jem
