// Ops on a rank's share of a batch: shares together are what the whole batch is.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "kernels/random.h"
#include "tests/check.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

constexpr int64_t kRanks = 3;

// Of one rank's share.
const Extent kExtents[] = {
    {.n = 1, .c = 1, .h = 1, .w = 1, .block = 1},     // a value a channel
    {.n = 2, .c = 3, .h = 5, .w = 7, .block = 3},     // odd
    {.n = 2, .c = 32, .h = 3, .w = 3, .block = 16},   // two blocks
    {.n = 3, .c = 33, .h = 3, .w = 3, .block = 33},   // lanes left over
    {.n = 70, .c = 16, .h = 3, .w = 3, .block = 16},  // more images than chunks of partial sums
};

// Sums of differently ordered f32 values, shifted by another first value: as tests/kernels/test_ops_norm.cc reasons.
constexpr double kRoundings = 200;

struct Batch {
    Tensor whole;
    std::vector<Tensor> shares;
};

Batch batch(OnDevice& m, const Extent& e, const Values& values) {
    Batch b;
    Extent all = e;
    all.n = e.n * kRanks;
    b.whole = m.tensor(all, values);
    for (int64_t r = 0; r < kRanks; ++r)
        b.shares.push_back(m.tensor(e, Values(values.begin() + r * e.count(), values.begin() + (r + 1) * e.count())));
    return b;
}

Array doubles(OnDevice& m, int64_t count) {
    const Values nan(static_cast<size_t>(count), std::nan(""));
    return {m.raw(nan.data(), nan.size() * sizeof(double)), DType::f64, count};
}

NormCoefficients unwritten(OnDevice& m, int64_t c, Array beta) {
    return {
        .mean = m.unwritten(c), .inv_std = m.unwritten(c), .scale = m.unwritten(c), .beta = beta, .a = m.unwritten(c), .b = m.unwritten(c)};
}

ResidentImages resident(OnDevice& m, int64_t count, int64_t side) {
    TestData data(5);
    std::vector<uint8_t> pixels(static_cast<size_t>(count * side * side));
    for (uint8_t& p : pixels) p = static_cast<uint8_t>(data.index(256));
    return {.pixels = m.bytes(pixels),
            .labels = m.integers(std::vector<int32_t>(static_cast<size_t>(count))),
            .class_order = {},
            .class_begin = {},
            .count = count,
            .height = side,
            .width = side,
            .channels = 1,
            .classes = 1};
}

}  // namespace

TEST_CASE("moments_of_shares_join_to_the_statistics_of_the_whole_batch") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(1);
            const Batch x = batch(m, e, data.normals(e.count() * kRanks, 3, 2));
            const Values gamma = data.uniforms(e.c, 0.5, 2), mean = data.normals(e.c), var = data.uniforms(e.c, 0.5, 2);
            const auto parameters = [&] {
                return BatchNormParameters{
                    .gamma = m.real(gamma), .beta = m.real(mean), .running_mean = m.real(mean), .running_var = m.real(var)};
            };
            const IterationState* state = m.state();
            const BatchNormParameters whole = parameters(), joined = parameters();
            const NormCoefficients want = unwritten(m, e.c, whole.beta), got = unwritten(m, e.c, joined.beta);
            m.ops().batch_norm_statistics(want, x.whole, whole, RunningStatistics::update, state);
            const Array all = doubles(m, kRanks * 2 * e.c);
            for (int64_t r = 0; r < kRanks; ++r)
                m.ops().batch_norm_moments(all.slice(r * 2 * e.c, 2 * e.c), x.shares[static_cast<size_t>(r)]);
            m.ops().join_moments(got, all, x.shares[0], joined, RunningStatistics::update, state);
            const Tolerance near = m.roundings(kRoundings, 4);
            check_close("mean", m.read(got.mean), m.read(want.mean), near);
            check_close("inv_std", m.read(got.inv_std), m.read(want.inv_std), near);
            check_close("scale", m.read(got.scale), m.read(want.scale), near);
            check_close("running mean", m.read(joined.running_mean), m.read(whole.running_mean), near);
            check_close("running variance", m.read(joined.running_var), m.read(whole.running_var), m.roundings(kRoundings, 8));
            m.ops().join_moments(got, all, x.shares[0], joined, RunningStatistics::keep, state);
            check_close("kept", m.read(joined.running_mean), m.read(whole.running_mean), near);
        }
    });
}

TEST_CASE("backward_sums_of_shares_join_to_those_of_the_whole_batch") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(2);
            const Batch x = batch(m, e, data.normals(e.count() * kRanks)), d_y = batch(m, e, data.normals(e.count() * kRanks));
            NormCoefficients want = unwritten(m, e.c, m.real(data.normals(e.c)));
            m.write(want.mean, data.normals(e.c));
            m.write(want.inv_std, data.uniforms(e.c, 0.5, 2));
            m.write(want.scale, data.uniforms(e.c, 0.5, 2));
            NormCoefficients got = want;
            got.a = m.unwritten(e.c);
            got.b = m.unwritten(e.c);
            const Values before = data.normals(e.c);
            const Array d_gamma = m.real(before), d_beta = m.real(before), own_gamma = m.real(before), own_beta = m.real(before);
            m.ops().norm_backward_sums(want, d_gamma, d_beta, d_y.whole, x.whole);
            const Array all = doubles(m, kRanks * 2 * e.c);
            for (int64_t r = 0; r < kRanks; ++r) {
                const auto i = static_cast<size_t>(r);
                m.ops().norm_backward_own_sums(all.slice(r * 2 * e.c, 2 * e.c), got, own_gamma, own_beta, d_y.shares[i], x.shares[i]);
            }
            m.ops().join_backward_sums(got, all, x.shares[0]);
            // 16 roundings of sums of count values of about 1
            const double count = static_cast<double>(e.n * e.rows() * kRanks);
            check_close("a", m.read(got.a), m.read(want.a), m.roundings(64, 8));
            check_close("b", m.read(got.b), m.read(want.b), m.roundings(64, 8));
            check_close("d_gamma", m.read(own_gamma), m.read(d_gamma), m.roundings(16, 8 * count));
            check_close("d_beta", m.read(own_beta), m.read(d_beta), m.roundings(16, 8 * count));
            m.ops().norm_backward_own_sums(all.slice(0, 2 * e.c), got, {}, {}, d_y.shares[0], x.shares[0]);  // sampling has no d_gamma
        }
    });
}

TEST_CASE("sgld_noise_depends_on_the_place_in_the_job_s_batch_wherever_a_share_begins") {
    on_every_device([](OnDevice& m) {
        TestData data(3);
        const int64_t count = 43;
        const Values start = data.uniforms(count, -0.5, 0.5), gradient = data.normals(count, 0, 0.1);
        IterationState at;
        at.iteration = 4;
        at.step = 2;
        const IterationState* state = m.state(at);
        const SgldSettings settings{.step_size = 0.5, .noise = 0.1, .grad_clamp = 0.2, .pixel_clamp = true, .seed = 11};
        const Array whole = m.real(start), g = m.real(gradient);
        m.ops().sgld_step(whole, g, {}, state, settings);
        for (const int64_t cut : {1, 2, 3, 4, 7, 40, 42}) {
            const Array shared = m.real(start);
            SgldSettings second = settings;
            second.first = cut;
            m.ops().sgld_step(shared.slice(0, cut), g.slice(0, cut), {}, state, settings);
            m.ops().sgld_step(shared.slice(cut, count - cut), g.slice(cut, count - cut), {}, state, second);
            check_equal("cut at " + std::to_string(cut), m.read(shared), m.read(whole));
        }
    });
}

TEST_CASE("shares_of_a_batch_are_drawn_cropped_and_disturbed_as_the_whole_batch_is") {
    on_every_device([](OnDevice& m) {
        const int64_t side = 9, batch_size = 6, pixels = side * side;
        const ResidentImages images = resident(m, 14, side);
        IterationState at;
        at.iteration = 3;  // of the second epoch
        const IterationState* state = m.state(at);
        const auto draw = [&](Array draws, Array x, const BatchDraw& d) {
            m.ops().draw_images(draws, images, state, d);
            m.ops().crop_flip(x, draws, images, state, d);
        };
        BatchDraw d{.order = RandomStream::labelled_order,
                    .augment = RandomStream::labelled_augment,
                    .crop = true,
                    .flip = true,
                    .noise = 0.1,
                    .noise_salt = 1,
                    .seed = 3};
        constexpr auto kDraw = static_cast<int64_t>(sizeof(ImageDraw));
        const Array draws = m.bytes(std::vector<uint8_t>(static_cast<size_t>(batch_size * kDraw))), x = m.unwritten(batch_size * pixels);
        draw(draws, x, d);
        const Array own_draws = m.bytes(std::vector<uint8_t>(static_cast<size_t>(batch_size * kDraw))),
                    own = m.unwritten(batch_size * pixels);
        d.batch = batch_size;
        const int64_t n = batch_size / kRanks;
        for (int64_t r = 0; r < kRanks; ++r) {
            d.first = r * n;
            draw(own_draws.slice(r * n * kDraw, n * kDraw), own.slice(r * n * pixels, n * pixels), d);
        }
        check_equal("images", m.read(own), m.read(x));
    });
}

TEST_CASE("agree_on_state_raises_every_flag_and_joins_norms") {
    on_every_device([](OnDevice& m) {
        std::vector<IterationState> all(kRanks);
        all[0].scalars[kChain.norm][0] = 3;
        all[1].scalars[kChain.norm][0] = 0;
        all[2].scalars[kChain.norm][0] = 4;
        all[0].scalars[kChain.way][0] = 12, all[1].scalars[kChain.way][0] = 3, all[2].scalars[kChain.way][0] = 0;
        all[0].scalars[kChain.clamped][0] = 0.5, all[1].scalars[kChain.clamped][0] = 0.25;
        for (IterationState& s : all) s.grad_norm = 1, s.scalars[kEnergy.f_pos][0] = 7;
        all[2].grad_norm = 5;
        const auto agree = [&](Agreement when) {
            IterationState* state = m.state(all[1]);
            const Array states{m.raw(all.data(), all.size() * sizeof(IterationState)), DType::u8,
                               static_cast<int64_t>(all.size() * sizeof(IterationState))};
            m.ops().agree_on_state(state, states, when, kChain);
            return m.read(state);
        };
        IterationState got = agree(Agreement::after_sampling);
        CHECK(got.scalars[kChain.norm][0] == doctest::Approx(std::sqrt(25.0 / 3)));
        CHECK(got.scalars[kChain.way][0] == doctest::Approx(std::sqrt(153.0 / 3)));
        CHECK(got.scalars[kChain.clamped][0] == doctest::Approx(0.25));
        CHECK(got.grad_norm == 1);
        CHECK(got.scalars[kEnergy.f_pos][0] == 7);
        CHECK(got.diverged == 0);
        // gradients that weigh 1/3 each: the root mean square of 3, 3 and 15
        got = agree(Agreement::after_own_norms);
        CHECK(got.grad_norm == doctest::Approx(std::sqrt((9.0 + 9 + 225) / 3)));
        CHECK(got.scalars[kChain.norm][0] == 0);
        all[0].diverged = 1;
        CHECK(agree(Agreement::after_sampling).diverged == 1);
        CHECK(agree(Agreement::after_own_norms).diverged == 1);
    });
}

}  // namespace jem
