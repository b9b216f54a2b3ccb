// Every backward pass against the numeric derivative of its forward pass, in f64 on the reference device.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "tests/check.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

// Central difference: its own error is step^2 / 6 times a third derivative (some 10 at most), and the value's roundings over the step:
// 1e-15 * 100 / 1e-5 for projections that sum a few hundred terms.
constexpr double kStep = 1e-5;
constexpr double kDifferenceError = 2e-8;
// A LeakyReLU input so near to 0 could change its side within a step: steps change it by at most a few times their size.
constexpr double kKinkZone = 20 * kStep;

// A random projection of an output: one number whose derivative is the backward pass of the projection's weights.
double project(const Values& weights, const Values& values) {
    REQUIRE(weights.size() == values.size());
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += weights[i] * values[i];
    return sum;
}

// Compares with (f(x + h e_i) - f(x - h e_i)) / 2h for every i that `skip` does not name; at least nine tenths must be left.
void check_gradient(const std::string& what, const Values& analytic, Values x, const std::function<double(const Values&)>& f,
                    const std::function<bool(size_t)>& skip = {}) {
    REQUIRE(analytic.size() == x.size());
    Values got, want;
    for (size_t i = 0; i < x.size(); ++i) {
        if (skip && skip(i)) continue;
        const double at = x[i];
        x[i] = at + kStep;
        const double above = f(x);
        x[i] = at - kStep;
        const double below = f(x);
        x[i] = at;
        got.push_back(analytic[i]);
        want.push_back((above - below) / (2 * kStep));
    }
    const size_t skipped = x.size() - got.size();
    INFO(skipped << " of " << x.size() << " entries lie in a kink zone");
    CHECK(got.size() * 10 >= x.size() * 9);
    check_close(what, got, want, Tolerance{.absolute = kDifferenceError, .relative = kDifferenceError});
}

struct Reference {
    std::unique_ptr<Device> device = make_reference_device(DType::f64);
    OnDevice m{*device};
};

TEST_CASE("gradient_of_leaky_and_its_residual") {
    Reference r;
    const Extent e{.n = 3, .c = 4, .h = 5, .w = 5, .block = 2};
    TestData data(1);
    Values x = data.normals(e.count());
    x[7] = 0, x[20] = 1e-6;  // within the kink zone
    const Values projection = data.normals(e.count()), added = data.normals(e.count());
    const Tensor in = r.m.tensor(e, x), out = r.m.unwritten(e), residual = r.m.tensor(e, added);
    r.m.ops().leaky_backward(out, r.m.tensor(e, projection), in, &residual);
    // y = leaky(x) goes on, and x itself is used a second time with weights `added`
    check_gradient(
        "d_x", r.m.read(out), x,
        [&](const Values& at) {
            r.m.write(in, at);
            r.m.ops().leaky(out, in);
            return project(projection, r.m.read(out)) + project(added, at);
        },
        [&](size_t i) { return std::abs(x[i]) < kKinkZone; });
}

struct NormLayer {
    Extent e;
    NormCoefficients norm;
    BatchNormParameters parameters;
    Tensor x, y;
};

NormLayer norm_layer(OnDevice& m, const Extent& e, TestData& data) {
    NormLayer l{.e = e, .norm = {}, .parameters = {}, .x = m.unwritten(e), .y = m.unwritten(e)};
    l.parameters = {.gamma = m.real(data.uniforms(e.c, 0.4, 2)),
                    .beta = m.real(data.uniforms(e.c, -1, 1)),
                    .running_mean = m.real(data.uniforms(e.c, -1, 1)),
                    .running_var = m.real(data.uniforms(e.c, 0.5, 2))};
    l.norm = {.mean = m.unwritten(e.c),
              .inv_std = m.unwritten(e.c),
              .scale = m.unwritten(e.c),
              .beta = l.parameters.beta,
              .a = m.unwritten(e.c),
              .b = m.unwritten(e.c)};
    return l;
}

// The forward pass: statistics of the batch or running ones, then norm and activation.
Values forward(OnDevice& m, const NormLayer& l, bool batch_statistics) {
    if (batch_statistics)
        m.ops().batch_norm_statistics(l.norm, l.x, l.parameters, RunningStatistics::keep, m.state());
    else
        m.ops().running_norm_coefficients(l.norm, l.parameters);
    m.ops().norm_leaky(l.y, l.x, l.norm);
    return m.read(l.y);
}

TEST_CASE("gradient_of_norm_leaky_flows_through_the_batch_s_mean_and_variance") {
    for (const bool batch_statistics : {true, false}) {
        INFO("batch statistics: " << batch_statistics);
        Reference r;
        OnDevice& m = r.m;
        const Extent e{.n = 3, .c = 6, .h = 3, .w = 4, .block = 3};
        TestData data(2);
        NormLayer l = norm_layer(m, e, data);
        const Values x = data.normals(e.count(), 0.5, 1.5), projection = data.normals(e.count());
        const Values gamma = m.read(l.parameters.gamma), beta = m.read(l.parameters.beta);
        m.write(l.x, x);
        forward(m, l, batch_statistics);

        // A kink of any entry of the channel matters to all of them: with batch statistics they move together.
        const Values mean = m.read(l.norm.mean), scale = m.read(l.norm.scale);
        std::vector<bool> kinked(static_cast<size_t>(e.count())), kinked_channel(static_cast<size_t>(e.c));
        for (size_t i = 0; i < x.size(); ++i) {
            const size_t c = channel_of(e, i);
            kinked[i] = std::abs(scale[c] * (x[i] - mean[c]) + beta[c]) < kKinkZone;
            if (kinked[i]) kinked_channel[c] = true;
        }

        const Array d_gamma = m.real(Values(6)), d_beta = m.real(Values(6));
        const Tensor d_y = m.tensor(e, projection), d_x = m.unwritten(e);
        if (batch_statistics) m.ops().norm_backward_sums(l.norm, d_gamma, d_beta, d_y, l.x);
        m.ops().norm_leaky_backward(d_x, d_y, l.x, l.norm, nullptr);
        check_gradient(
            "d_x", m.read(d_x), x,
            [&](const Values& at) {
                m.write(l.x, at);
                return project(projection, forward(m, l, batch_statistics));
            },
            [&](size_t i) { return batch_statistics ? kinked_channel[channel_of(e, i)] : kinked[i]; });
        m.write(l.x, x);
        if (!batch_statistics) continue;
        const auto of = [&](Array parameter) {
            return [&, parameter](const Values& at) {
                m.write(parameter, at);
                return project(projection, forward(m, l, true));
            };
        };
        const auto skip = [&](size_t c) { return kinked_channel[c]; };
        check_gradient("d_gamma", m.read(d_gamma), gamma, of(l.parameters.gamma), skip);
        m.write(l.parameters.gamma, gamma);
        check_gradient("d_beta", m.read(d_beta), beta, of(l.parameters.beta), skip);
    }
}

TEST_CASE("gradient_of_cross_entropy") {
    Reference r;
    OnDevice& m = r.m;
    const Extent e{.n = 5, .c = 7, .block = 7};
    TestData data(3);
    const Values logits = data.normals(e.count(), 0, 2);
    const Array labels = m.integers({0, 6, 3, 3, 2}), loss = m.unwritten(5), hit = m.unwritten(5);
    const Tensor in = m.tensor(e, logits), out = m.unwritten(e);
    constexpr double kWeight = 0.8;
    m.ops().cross_entropy(loss, hit, out, in, labels, kWeight);
    IterationState* state = m.state();
    check_gradient("d_logits", m.read(out), logits, [&](const Values& at) {
        m.write(in, at);
        m.ops().cross_entropy(loss, hit, out, in, labels, kWeight);
        m.ops().classification_summary(state, loss, hit, kClassification, SamPass::at_perturbed);
        return kWeight * m.read(state).scalars[kClassification.loss][1];
    });
}

TEST_CASE("gradient_of_the_energy_terms") {
    constexpr double kWeight = 0.9, kL2 = 0.15;
    for (const EnergyTerm term : {EnergyTerm::sampling, EnergyTerm::positive, EnergyTerm::negative}) {
        INFO("term " << static_cast<int>(term));
        Reference r;
        OnDevice& m = r.m;
        const Extent e{.n = 4, .c = 6, .block = 6};
        const Values logits = TestData(4).normals(e.count(), 0.5, 2);
        const Tensor in = m.tensor(e, logits), out = m.unwritten(e);
        const Array lse = m.unwritten(4);
        IterationState start;
        start.scalars[kEnergy.f_pos][0] = 0.7;
        // The loss of the term, by the engine's own summary: L_gen holds +fq + l2 fq^2 and a constant.
        const auto loss = [&](const Values& at) {
            IterationState* state = m.state(start);
            m.write(in, at);
            m.ops().log_sum_exp(lse, in);
            if (term == EnergyTerm::sampling) return project(Values(4, 1.0), m.read(lse));
            m.ops().energy_summary(state, lse, term, kEnergy, SamPass::at_weights, kL2);
            const IterationState s = m.read(state);
            return kWeight * (term == EnergyTerm::positive
                                  ? -s.scalars[kEnergy.f_pos][0] + kL2 * s.scalars[kEnergy.f_pos][0] * s.scalars[kEnergy.f_pos][0]
                                  : s.scalars[kEnergy.loss][0]);
        };
        loss(logits);
        IterationState* state = m.state(start);
        if (term != EnergyTerm::sampling) m.ops().energy_summary(state, lse, term, kEnergy, SamPass::at_weights, kL2);
        m.ops().energy_backward(out, in, lse, state, term, kEnergy, SamPass::at_weights, kWeight, kL2);
        check_gradient("d_logits", m.read(out), logits, loss);
    }
}

TEST_CASE("gradient_of_mean_pool") {
    Reference r;
    OnDevice& m = r.m;
    const Extent e{.n = 3, .c = 6, .h = 3, .w = 5, .block = 2}, pooled{.n = 3, .c = 6, .block = 6};
    TestData data(5);
    const Values x = data.normals(e.count()), projection = data.normals(pooled.count());
    const Tensor in = m.tensor(e, x), out = m.unwritten(pooled), back = m.unwritten(e);
    m.ops().mean_pool_backward(back, m.tensor(pooled, projection));
    check_gradient("d_x", m.read(back), x, [&](const Values& at) {
        m.write(in, at);
        m.ops().mean_pool(out, in);
        return project(projection, m.read(out));
    });
}

TEST_CASE("gradient_of_convolution") {
    for (const ConvShape& shape : {ConvShape{.in_channels = 2, .out_channels = 3, .height = 5, .width = 4},
                                   ConvShape{.in_channels = 3, .out_channels = 2, .height = 7, .width = 6, .kernel = 3, .stride = 2},
                                   ConvShape{.in_channels = 3, .out_channels = 4, .height = 6, .width = 5, .kernel = 1, .stride = 2}}) {
        INFO(shape.text());
        Reference r;
        OnDevice& m = r.m;
        const Extent in{.n = 2, .c = shape.in_channels, .h = shape.height, .w = shape.width, .block = shape.in_channels};
        const Extent out{.n = 2, .c = shape.out_channels, .h = shape.out_height(), .w = shape.out_width(), .block = shape.out_channels};
        TestData data(6);
        const Values x = data.normals(in.count()), w = data.normals(shape.weight_count()), b = data.normals(shape.out_channels);
        const Values projection = data.normals(out.count());
        const auto plan = m.device().plan_convolution(shape, {.batches = {2}});
        auto* prepared = static_cast<std::byte*>(m.raw(nullptr, plan->prepared_bytes()));
        auto* workspace = static_cast<std::byte*>(m.raw(nullptr, plan->workspace_bytes()));
        const Tensor tx = m.tensor(in, x), ty = m.unwritten(out), d_y = m.tensor(out, projection), d_x = m.unwritten(in);
        const Array tw = m.real(w), tb = m.real(b), d_w = m.real(Values(w.size())), d_b = m.real(Values(b.size()));
        const auto value = [&] {
            plan->prepare(prepared, tw, workspace);
            plan->forward(ty, tx, prepared, tb, nullptr, workspace);
            return project(projection, m.read(ty));
        };
        value();
        plan->backward_data(d_x, d_y, prepared, workspace);
        plan->backward_weights(d_w, tx, d_y, workspace);
        m.ops().bias_gradient(d_b, d_y);
        check_gradient("d_x", m.read(d_x), x, [&](const Values& at) { return m.write(tx, at), value(); });
        m.write(tx, x);
        check_gradient("d_w", m.read(d_w), w, [&](const Values& at) { return m.write(tw, at), value(); });
        m.write(tw, w);
        check_gradient("d_b", m.read(d_b), b, [&](const Values& at) { return m.write(tb, at), value(); });
    }
}

TEST_CASE("gradient_of_the_linear_head") {
    Reference r;
    OnDevice& m = r.m;
    constexpr int64_t kBatch = 3, kIn = 5, kOut = 4;
    const Extent in{.n = kBatch, .c = kIn, .block = kIn}, out{.n = kBatch, .c = kOut, .block = kOut};
    TestData data(7);
    const Values x = data.normals(in.count()), w = data.normals(kIn * kOut), b = data.normals(kOut), projection = data.normals(out.count());
    const auto plan = m.device().plan_linear(kIn, kOut, {kBatch});
    const Tensor tx = m.tensor(in, x), ty = m.unwritten(out), d_y = m.tensor(out, projection), d_x = m.unwritten(in);
    const Array tw = m.real(w), tb = m.real(b), d_w = m.real(Values(w.size())), d_b = m.real(Values(b.size()));
    const auto value = [&] {
        plan->forward(ty, tx, tw, tb, nullptr);
        return project(projection, m.read(ty));
    };
    plan->backward_data(d_x, d_y, tw, nullptr);
    plan->backward_weights(d_w, tx, d_y, nullptr);
    m.ops().bias_gradient(d_b, d_y);
    check_gradient("d_x", m.read(d_x), x, [&](const Values& at) { return m.write(tx, at), value(); });
    m.write(tx, x);
    check_gradient("d_w", m.read(d_w), w, [&](const Values& at) { return m.write(tw, at), value(); });
    m.write(tw, w);
    check_gradient("d_b", m.read(d_b), b, [&](const Values& at) { return m.write(tb, at), value(); });
}

}  // namespace
}  // namespace jem
