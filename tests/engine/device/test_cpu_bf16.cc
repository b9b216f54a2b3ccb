// The CPU device with activations in bf16. Its convolutions need oneDNN's own bf16; the ops and the number type do not.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/device/cpu/conv_plan.h"
#include "kernels/bf16.h"
#include "tests/check_sums.h"
#include "tests/engine/training/findings.h"
#include "tests/on_device.h"

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

Values rounded(Values values) {
    for (double& v : values) v = static_cast<float>(Bf16(static_cast<float>(v)));
    return values;
}

// What minimal filtering gives with activations of type A, from activations that are bf16's own, in NCHW. f32 gets weights that are, too.
struct Filtered {
    Values y, onto, behind_norm, d_x, d_z, d_w, d_w_behind_norm;
};
template <class A>
Filtered filtered(const ConvShape& shape, int64_t n) {
    constexpr int64_t kLanes = 16;
    const auto device = make_cpu_device({.threads = 2});
    OnDevice m(*device);
    HostStream stream;
    const DType type = DTypeOf<A>::value;
    const auto plan = make_winograd_plan(stream, 2, kLanes, type, shape, {.batches = {n}});
    auto* prepared = static_cast<std::byte*>(m.raw(nullptr, plan->prepared_bytes()));
    auto* workspace = static_cast<std::byte*>(m.raw(nullptr, plan->workspace_bytes()));

    const auto extent = [&](int64_t c, int64_t h, int64_t w) {
        return Extent{.n = n, .c = c, .h = h, .w = w, .block = std::is_same_v<A, float> ? kLanes : c};
    };
    const Extent in = extent(shape.in_channels, shape.height, shape.width);
    const Extent out = extent(shape.out_channels, shape.out_height(), shape.out_width());
    const auto each = [](const Extent& e, const auto& visit) {  // (place in memory, place in NCHW)
        size_t i = 0;
        for (int64_t image = 0; image < e.n; ++image)
            for (int64_t c = 0; c < e.c; ++c)
                for (int64_t r = 0; r < e.rows(); ++r) visit(e.at(image, c, r), i++);
    };
    const auto tensor = [&](const Extent& e, const Values& values) {
        std::vector<A> memory(values.size());
        each(e, [&](size_t at, size_t i) { memory[at] = A(static_cast<float>(values[i])); });
        return Tensor{m.raw(memory.data(), memory.size() * sizeof(A)), type, e.n, e.c, e.h, e.w, e.block};
    };
    const auto read = [&](const Tensor& t, const Extent& e) {
        const std::vector<A> memory = m.read_as<A>(t.data, t.count());
        Values values(memory.size());
        each(e, [&](size_t at, size_t i) { values[i] = static_cast<float>(memory[at]); });
        return values;
    };
    TestData data(41);
    const auto activation = [&](const Extent& e) { return tensor(e, rounded(data.normals(e.count()))); };
    const auto unwritten = [&](const Extent& e) { return tensor(e, Values(static_cast<size_t>(e.count()), std::nan(""))); };
    const auto coefficient = [&](int64_t count, double low, double high) { return m.real(data.uniforms(count, low, high)); };

    const Values w = data.normals(shape.weight_count());
    const Array weights = m.real(std::is_same_v<A, Bf16> ? w : rounded(w)), bias = m.real(data.normals(out.c));
    const NormCoefficients norm{.mean = coefficient(in.c, -1, 1),
                                .inv_std = {},
                                .scale = coefficient(in.c, 0.5, 2),
                                .beta = coefficient(in.c, -1, 1),
                                .a = {},
                                .b = {}};
    const Array centre = coefficient(out.c, -1, 1), sums = m.unwritten(2 * out.c), d_sums = m.unwritten(2 * in.c);
    const Array d_w = m.real(data.normals(shape.weight_count())), d_w_behind_norm = m.real(data.normals(shape.weight_count()));
    const Tensor x = activation(in), d_y = activation(out), residual = activation(out);
    const Tensor y = unwritten(out), behind_norm = unwritten(out), d_x = unwritten(in), d_z = unwritten(in);
    plan->prepare(prepared, weights, workspace);
    plan->forward(y, x, prepared, bias, nullptr, workspace);
    plan->forward(residual, x, prepared, bias, &residual, workspace);
    plan->forward_fused(behind_norm, x, {.norm = &norm, .centre = centre, .sums = sums}, prepared, bias, nullptr, workspace);
    plan->backward_data(d_x, d_y, prepared, workspace);
    plan->backward_data_fused(d_z, d_y, {.x = x, .norm = norm, .sums = d_sums}, prepared, workspace);
    plan->backward_weights(d_w, x, d_y, workspace);
    plan->backward_weights_fused(d_w_behind_norm, x, norm, d_y, workspace);
    const Filtered got{read(y, out),  read(residual, out), read(behind_norm, out), read(d_x, in),
                       read(d_z, in), m.read(d_w),         m.read(d_w_behind_norm)};
    const Values centres = m.read(centre), means = m.read(norm.mean), inputs = read(x, in);
    const auto from_centre = [&](size_t i, size_t c) { return got.behind_norm[i] - centres[c]; };
    check_sums("sums of what is written", out, m.read(sums), m.rounding(), from_centre,
               [&](size_t i, size_t c) { return std::pow(from_centre(i, c), 2); });
    check_sums(
        "sums of the gradient that is written", in, m.read(d_sums), m.rounding(), [&](size_t i, size_t) { return got.d_z[i]; },
        [&](size_t i, size_t c) { return got.d_z[i] * (inputs[i] - means[c]); });
    return got;
}

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

// The arithmetic is f32 in both, in the same order: only what is written differs.
TEST_CASE("minimal_filtering_in_bf16_is_that_of_f32_with_its_results_rounded") {
    constexpr int64_t kBatch = 5;
    for (const ConvShape& shape : {ConvShape{.in_channels = 32, .out_channels = 48, .height = 9, .width = 7},
                                   ConvShape{.in_channels = 48, .out_channels = 16, .height = 8, .width = 12},
                                   ConvShape{.in_channels = 16, .out_channels = 32, .height = 1, .width = 2},
                                   // transformed weights are not kept
                                   ConvShape{.in_channels = 384, .out_channels = 320, .height = 4, .width = 4},
                                   ConvShape{.in_channels = 32, .out_channels = 64, .height = 9, .width = 7, .kernel = 3, .stride = 2}}) {
        INFO(shape.text());
        const Filtered got = filtered<Bf16>(shape, kBatch), exact = filtered<float>(shape, kBatch);
        check_equal("y", got.y, rounded(exact.y));
        check_equal("y + residual", got.onto, rounded(exact.onto));
        check_equal("y behind a norm", got.behind_norm, rounded(exact.behind_norm));
        check_equal("d_x", got.d_x, rounded(exact.d_x));
        check_equal("d_z", got.d_z, rounded(exact.d_z));
        check_equal("d_w", got.d_w, exact.d_w);
        check_equal("d_w behind a norm", got.d_w_behind_norm, exact.d_w_behind_norm);
    }
}

TEST_CASE("a_convolution_in_bf16_is_filtered_minimally_where_that_saves_more_than_a_direct_one_gains") {
    if (skipped_without_bf16("the choice of convolutions in bf16")) return;
    const auto device = bf16_device();
    const auto engines = [&](const ConvShape& shape, ConvAlgorithm algorithm) {
        std::vector<std::string> out;
        for (const ConvPlan::Choice& c : device->plan_convolution(shape, {.batches = {2}, .algorithm = algorithm})->choices())
            out.push_back(c.engine);
        return out;
    };
    const bool amx = device->description().find("AMX") != std::string::npos;
    const auto filters = [&](const ConvShape& shape, ConvAlgorithm algorithm = ConvAlgorithm::automatic) {
        const std::vector<std::string> all = engines(shape, algorithm);
        const auto count = std::count_if(all.begin(), all.end(), [](const std::string& e) { return e.find("wino") != std::string::npos; });
        CHECK((count == 0 || count == static_cast<std::ptrdiff_t>(all.size())));
        return count > 0;
    };
    const ConvShape wide{.in_channels = 64, .out_channels = 64, .height = 8, .width = 8};
    CHECK(filters(wide) == !amx);
    CHECK_FALSE(filters(wide, ConvAlgorithm::direct));
    CHECK_FALSE(filters({.in_channels = 64, .out_channels = 64, .height = 8, .width = 8, .kernel = 3, .stride = 2}));
    CHECK_FALSE(filters({.in_channels = 16, .out_channels = 32, .height = 8, .width = 8}));
}

TEST_CASE("an_iteration_on_the_cpu_in_bf16_equals_the_reference_and_repeats_bit_for_bit") {
    if (skipped_without_bf16("iterations in bf16")) return;
    const auto reference = make_reference_device(DType::f64);
    for (const NormKind norm : {NormKind::batch, NormKind::none})
        for (const SamForm sam : {SamForm::sam, SamForm::none})
            for (const int64_t steps : {0, 2}) {
                Settings s = selftest::iteration_settings();
                s.norm = norm;
                s.sam = sam;
                s.sgld_steps = steps;
                if (norm == NormKind::none) s.lr = 0.01;
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
