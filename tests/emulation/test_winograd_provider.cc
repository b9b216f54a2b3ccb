// Convolutions by minimal filtering on the emulated machine: transforms by the device's own kernels, products by loops.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/device/cuda/convolution/winograd_provider.h"
#include "tests/conv_engines.h"
#include "tests/emulation/device.h"
#include "tests/engine/training/findings.h"

namespace jem {
namespace {

Loops slow_loops() { return {.winograd = true, .plain = {{.name = "loops", .kernels = 9}}}; }

// Of an f32's roundings as the transforms enlarge them (kernels/winograd.h).
constexpr Tolerance kFilterError{.absolute = 1e-4, .relative = 1e-5};

bool used(CudaPrecision precision, ConvAlgorithm algorithm, const ConvShape& shape) {
    EmulatedDevice device(precision, {}, {slow_loops()});
    const auto plan = device->plan_convolution(shape, {.batches = {2}, .algorithm = algorithm});
    const std::vector<ConvPlan::Choice> choices = plan->choices();
    return std::any_of(choices.begin(), choices.end(), [](const auto& c) { return c.engine.starts_with("winograd"); });
}

}  // namespace

TEST_CASE("minimal_filtering_on_the_gpu_computes_what_the_loops_compute_with_all_that_it_fuses") {
    struct Case {
        ConvShape shape;
        int64_t batch;
    };
    std::vector<Case> cases = {
        {conv3x3(16, 16, 4, 4), 1}, {conv3x3(16, 32, 8, 8), 3}, {conv3x3(32, 16, 5, 11), 2}, {conv3x3(40, 24, 16, 3), 1}};
    if (cuda_on_host::checks_accesses()) cases = {{conv3x3(16, 24, 5, 6), 2}};
    uint64_t seed = 0;
    const uint64_t races = cuda_on_host::races();
    for (const Case& c : cases)
        for (const ConvPart& part : all_parts()) {
            if (part.pass == ConvPass::backward_weights || has_sums(part.fusion)) continue;
            const ConvProblem problem{.shape = c.shape, .batch = c.batch, .pass = part.pass, .fusion = part.fusion, .slope = 0.1f};
            cuda_on_host::reset({.seed = seed++ % 4});
            check_engines(
                problem, [](CudaLauncher& launcher) { return make_winograd_provider(launcher, loop_products()); }, kFilterError);
        }
    cuda_on_host::reset({});
    CHECK_MESSAGE(cuda_on_host::races() == races, "ThreadSanitizer reported a race");
}

TEST_CASE("minimal_filtering_is_offered_in_f32_for_3x3_and_stride_1_unless_direct_is_asked_for") {
    const ConvShape shape = conv3x3(16, 16, 8, 8);
    ConvShape strided = shape, point = shape;
    strided.stride = 2;
    point.kernel = 1;
    point.padding = 0;
    CHECK(used(CudaPrecision::f32, ConvAlgorithm::automatic, shape));
    CHECK_FALSE(used(CudaPrecision::f32, ConvAlgorithm::direct, shape));
    CHECK_FALSE(used(CudaPrecision::bf16, ConvAlgorithm::automatic, shape));
    for (const ConvShape& other : {strided, point, conv3x3(3, 16, 8, 8), conv3x3(16, 8, 8, 8)})
        CHECK_FALSE(used(CudaPrecision::f32, ConvAlgorithm::automatic, other));
}

TEST_CASE("minimal_filtering_is_refused_where_its_points_take_more_scratch_than_is_allowed") {
    ConvProblem problem{.shape = conv3x3(16, 16, 8, 8), .batch = 2, .pass = ConvPass::forward};
    cuda_on_host::reset({});
    {
        OnStream stream;
        const auto provider = make_winograd_provider(stream, loop_products());
        const auto engine = provider->engine(problem, size_t{0});
        REQUIRE(engine != nullptr);
        problem.workspace_limit = engine->workspace_bytes();
        CHECK(provider->engine(problem, size_t{0}) != nullptr);
        --problem.workspace_limit;
        CHECK(provider->engine(problem, size_t{0}) == nullptr);
    }
}

TEST_CASE("an_iteration_by_minimal_filtering_equals_the_cpu_and_repeats_bit_for_bit") {
    const auto cpu = make_cpu_device({.threads = 1});
    Settings s = selftest::iteration_settings();
    s.conv_algorithm = ConvAlgorithm::automatic;
    s.sgld_steps = 1;
    EmulatedDevice device(CudaPrecision::f32, {.seed = 1}, {slow_loops()});
    check_all(selftest::check_iteration(*device, *cpu, make_network, s, selftest::limits_of("f32")));
    if (!cuda_on_host::checks_accesses()) check_all(selftest::check_repetition(*device, make_network, s));
}

}  // namespace jem
