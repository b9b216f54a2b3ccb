// Every op by the CUDA kernels, against the reference.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "tests/emulation/device.h"
#include "tests/engine/training/findings.h"

namespace jem {
namespace {

using selftest::Case;
using selftest::Output;
using selftest::Outputs;
using selftest::Side;

// One element, one more than a block of 256, no multiple of a pack (4 or 8), one row, few and many channels, more rows than one
// block sums; parameters beyond the elements that stage one of a sum gives to a single pass of its grid (1024 blocks of 256 threads).
selftest::Sizes awkward_sizes() {
    return {.extents = {{1, 1, 1, 1},
                        {1, 1, 1, 257},
                        {257, 1, 1, 1},
                        {3, 3, 5, 7},
                        {2, 16, 9, 9},
                        {1, 33, 1, 1},
                        {5, 33, 3, 11},
                        {2, 160, 4, 3},
                        {1, 640, 1, 2},
                        {3, 48, 5, 3},
                        {2, 3, 67, 61},
                        {4, 24, 37, 33}},
            .counts = {1, 255, 257, 1003, 4099, 300007}};
}
// What builds that check every access manage in seconds.
selftest::Sizes few_sizes() {
    return {.extents = {{1, 1, 1, 1}, {257, 1, 1, 1}, {3, 3, 5, 7}, {5, 33, 3, 11}, {1, 640, 1, 2}, {2, 3, 33, 31}},
            .counts = {1, 257, 5003}};
}
selftest::Sizes sizes() { return cuda_on_host::checks_accesses() ? few_sizes() : awkward_sizes(); }

void check_cases(const std::vector<Case>& cases, CudaPrecision precision, uint64_t seed = 0) {
    const auto reference = make_reference_device(DType::f32);
    CHECK_FALSE(cases.empty());
    for (const Case& c : cases) {
        INFO(std::string(precision_name(precision)), ", seed ", seed);
        EmulatedDevice device(precision, {.seed = seed});
        check_finding(selftest::run_case(c, *device, *reference));
    }
}

}  // namespace

TEST_CASE("every_op_on_the_emulated_gpu_equals_the_reference") {
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        check_cases(selftest::op_cases(selftest::limits_of(precision_name(precision)), sizes()), precision);
}

TEST_CASE("the_loops_that_stand_in_for_cudnn_equal_the_reference") {
    if (cuda_on_host::checks_accesses()) {
        std::puts("SKIPPED: takes long where every access is checked, and the iterations run these loops too");
        return;
    }
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        check_cases(selftest::convolution_cases(selftest::limits_of(precision_name(precision))), precision);
}

TEST_CASE("ops_give_the_same_bits_in_any_order_of_threads_and_blocks") {
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        for (const Case& c : selftest::op_cases(selftest::limits_of(precision_name(precision)), few_sizes())) {
            std::vector<Outputs> runs;
            for (uint64_t seed = 0; seed < (cuda_on_host::checks_accesses() ? 2 : 4); ++seed) {
                EmulatedDevice device(precision, {.seed = seed});
                Side side(*device, precision == CudaPrecision::bf16);
                runs.push_back(c.run(side));
            }
            for (size_t r = 1; r < runs.size(); ++r)
                for (size_t i = 0; i < runs[0].size(); ++i) {
                    const selftest::Output &first = runs[0][i], &other = runs[r][i];
                    const bool same = first.values.size() == other.values.size() &&
                                      std::memcmp(first.values.data(), other.values.data(), first.values.size() * sizeof(double)) == 0;
                    CHECK_MESSAGE(same, c.name, ": ", first.what, " with seed ", r);
                }
        }
}

TEST_CASE("ops_of_no_elements_are_legal") {
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16}) {
        EmulatedDevice device(precision);
        Side side(*device, precision == CudaPrecision::bf16);
        const selftest::Extent nothing = {0, 5, 3, 3};
        const Array none = side.real({}), five = side.real({1, 2, 3, 4, 5});
        const Tensor x = side.activation(nothing), y = side.activation(nothing);
        Ops& ops = device->ops();
        CHECK_NOTHROW(ops.leaky(y, x));
        CHECK_NOTHROW(ops.add_bias(y, x, five, nullptr));
        CHECK_NOTHROW(ops.fill_zero(none));
        CHECK_NOTHROW(ops.convert(none, none));
        CHECK_NOTHROW(ops.accumulate(none, none));
        CHECK_NOTHROW(ops.bias_gradient(five, x));
        IterationState* state = side.state();
        CHECK_NOTHROW(ops.gradient_norm(state, none, none, SamForm::none, 0.2, SamPass::at_weights));
        CHECK(side.read(five) == selftest::Values{1, 2, 3, 4, 5});
        CHECK(side.read(state).grad_norm == 0);
    }
}

TEST_CASE("ops_beyond_what_the_kernels_count_are_refused") {
    EmulatedDevice device(CudaPrecision::f32);
    Ops& ops = device->ops();
    const std::unique_ptr<Buffer> buffer = device->allocate(1024);
    CHECK_THROWS_AS(ops.fill_zero({buffer->data(), DType::f32, int64_t{1} << 31}), std::length_error);
    CHECK_THROWS_AS(ops.bias_gradient({buffer->data(), DType::f32, 600000}, {buffer->data(), DType::f32, 1, 600000, 1, 1, 600000}),
                    std::length_error);
}

}  // namespace jem
