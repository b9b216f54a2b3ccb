// The CPU device with activations in bf16. Its convolutions need oneDNN's own bf16; the ops and the number type do not.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include "kernels/bf16.h"
#include "tests/engine/findings.h"

namespace jem {
namespace {

std::unique_ptr<Device> bf16_device(int threads = 2) { return make_cpu_device({.threads = threads, .activation = DType::bf16}); }

bool skipped_without_bf16(const char* what) {
    if (cpu_has_bf16()) return false;
    std::printf("SKIPPED: %s: this CPU has neither AVX512_BF16 nor AMX\n", what);
    return true;
}

void check_cases(Device& device, const std::vector<selftest::Case>& cases) {
    const auto reference = make_reference_device(DType::f32);
    CHECK_FALSE(cases.empty());
    for (const selftest::Case& c : cases) check_finding(selftest::run_case(c, device, *reference));
}

float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

}  // namespace

TEST_CASE("bf16_holds_every_number_of_its_own_exactly_and_rounds_others_to_the_nearest_even") {
    for (uint32_t half = 0; half < 0x10000; ++half) {
        const float exact = float_of(half << 16);
        if (std::isnan(exact)) {
            CHECK(std::isnan(static_cast<float>(Bf16(exact))));
            CHECK(std::isnan(static_cast<float>(Bf16(float_of(half << 16 | 1)))));
            continue;
        }
        REQUIRE(std::bit_cast<uint16_t>(Bf16(exact)) == half);
        if (std::isinf(exact)) continue;
        const uint16_t next = static_cast<uint16_t>(half + 1);
        CHECK(std::bit_cast<uint16_t>(Bf16(float_of(half << 16 | 0x7FFF))) == half);
        CHECK(std::bit_cast<uint16_t>(Bf16(float_of(half << 16 | 0x8001))) == next);
        CHECK(std::bit_cast<uint16_t>(Bf16(float_of(half << 16 | 0x8000))) == (half % 2 == 0 ? half : next));
    }
    // a signalling NaN whose payload lies in the lower half alone
    CHECK(std::isnan(static_cast<float>(Bf16(float_of(0x7F800001)))));
    CHECK(std::isinf(static_cast<float>(Bf16(std::numeric_limits<float>::max()))));
}

TEST_CASE("every_op_on_the_cpu_in_bf16_equals_the_reference") {
    // no multiple of a tile or of a vector register, one channel, more values than one thread's share
    const selftest::Sizes sizes = {.extents = {{1, 1, 1, 1},
                                               {1, 1, 1, 257},
                                               {3, 3, 5, 7},
                                               {1, 33, 1, 1},
                                               {5, 33, 3, 11},
                                               {2, 160, 4, 3},
                                               {70, 48, 5, 3},
                                               {2, 3, 67, 61},
                                               {4, 24, 37, 33}},
                                   .counts = {1, 255, 4099, 300007}};
    for (const int threads : {1, 2}) {
        const auto device = bf16_device(threads);
        check_cases(*device, selftest::op_cases(selftest::limits_of("bf16"), sizes));
    }
}

TEST_CASE("every_convolution_on_the_cpu_in_bf16_equals_the_reference") {
    if (skipped_without_bf16("convolutions in bf16")) return;
    const auto device = bf16_device();
    check_cases(*device, selftest::convolution_cases(selftest::limits_of("bf16")));
}

TEST_CASE("an_iteration_on_the_cpu_in_bf16_equals_the_reference_and_repeats_bit_for_bit") {
    if (skipped_without_bf16("iterations in bf16")) return;
    const auto reference = make_reference_device(DType::f64);
    for (const Norm norm : {Norm::batch, Norm::none})
        for (const SamForm sam : {SamForm::sam, SamForm::none})
            for (const int64_t steps : {0, 2}) {
                Settings s = selftest::iteration_settings();
                s.norm = norm;
                s.sam = sam;
                s.sgld_steps = steps;
                if (norm == Norm::none) s.lr = 0.01;
                INFO("norm ", name_of(norm), ", ", name_of(sam), ", K ", steps);
                const auto device = bf16_device();
                check_all(selftest::check_iteration(*device, *reference, make_network, s, selftest::limits_of("bf16")));
                check_all(selftest::check_repetition(*device, make_network, s));
            }
}

TEST_CASE("one_iteration_on_the_cpu_in_bf16_stays_near_pytorch_in_f64") {
    if (skipped_without_bf16("golden cases in bf16")) return;
    const auto device = bf16_device();
    for (const std::string& name : golden_case_names()) {
        const GoldenCase golden = load_golden(name);
        if (golden.config.at("iterations") > 1) continue;
        const bool sampled = golden.settings.samples() && golden.settings.sgld_steps > 0;
        compare_golden(*device, name, sampled ? kGoldenBf16AfterSampling : kGoldenBf16);
    }
}

}  // namespace jem
