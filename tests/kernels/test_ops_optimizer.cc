// SAM, the optimizers, averages and the state, each over one flat array, against loops in double.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/weight_tiles.h"
#include "tests/check.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

// Norms are sums of exact squares in double.
constexpr double kNormError = 1e-12;
// Roundings of an update of a few operations on values below 4.
constexpr double kUpdate = 6, kMagnitude = 4;

const int64_t kCounts[] = {1, 15, 17, 2049, 16385, 40007};

constexpr SamForm kForms[] = {SamForm::none, SamForm::sam, SamForm::asam, SamForm::asam_sign};

// Gradients with exact zeros of both signs among them.
Values gradient_with_zeros(TestData& data, int64_t count) {
    Values g = data.normals(count, 0, 0.5);
    for (size_t i = 0; i < g.size(); i += 7) g[i] = i % 2 == 0 ? 0.0 : -0.0;
    return g;
}

double norm_of(const Values& g, const Values& w, bool weighted) {
    double sum = 0;
    for (size_t i = 0; i < g.size(); ++i) sum += std::pow(weighted ? w[i] * g[i] : g[i], 2);
    return std::sqrt(sum);
}

TEST_CASE("gradient_norm_writes_the_plain_norm_and_the_form_s_scale") {
    on_every_device([](OnDevice& m) {
        constexpr double kRho = 0.2;
        for (const int64_t count : kCounts)
            for (const SamForm form : kForms) {
                INFO(count << " parameters, form " << static_cast<int>(form));
                TestData data(1);
                const Values w = data.normals(count), g = data.normals(count, 0, 0.01);
                IterationState* state = m.state();
                m.ops().gradient_norm(state, m.real(g), m.real(w), form, kRho, SamPass::at_weights);
                const IterationState got = m.read(state);
                const double scale = form == SamForm::asam_sign ? kRho : kRho / (norm_of(g, w, form == SamForm::asam) + 1e-12);
                check_close("grad_norm, perturb_scale", {got.grad_norm, got.perturb_scale}, {norm_of(g, w, false), scale},
                            {.relative = kNormError});
                CHECK(got.diverged == 0);
            }
        // The epsilon keeps a gradient of 0 from dividing by 0.
        IterationState* state = m.state();
        m.ops().gradient_norm(state, m.real({0, 0}), m.real({1, 1}), SamForm::sam, kRho, SamPass::at_weights);
        check_close("scale of no gradient", {m.read(state).perturb_scale}, {kRho / 1e-12}, {.relative = kNormError});
    });
}

TEST_CASE("gradient_norm_of_the_second_pass_only_looks_for_divergence") {
    on_every_device([](OnDevice& m) {
        IterationState start;
        start.grad_norm = 5, start.perturb_scale = 6;
        IterationState* state = m.state(start);
        const Array w = m.real({1, 1, 1});
        m.ops().gradient_norm(state, m.real({1, 2, 3}), w, SamForm::sam, 0.2, SamPass::at_perturbed);
        check_equal("kept", {m.read(state).grad_norm, m.read(state).perturb_scale}, {5, 6});
        CHECK(m.read(state).diverged == 0);
        for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed})
            for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
                IterationState* other = m.state();
                m.ops().gradient_norm(other, m.real({1, bad, 3}), w, SamForm::sam, 0.2, pass);
                CHECK(m.read(other).diverged == 1);
            }
    });
}

TEST_CASE("sam_perturb_adds_the_form_s_perturbation") {
    on_every_device([](OnDevice& m) {
        for (const int64_t count : kCounts)
            for (const SamForm form : {SamForm::sam, SamForm::asam, SamForm::asam_sign}) {
                INFO(count << " parameters, form " << static_cast<int>(form));
                TestData data(2);
                const Values w = data.normals(count), g = gradient_with_zeros(data, count);
                IterationState start;
                start.perturb_scale = 0.375;
                const IterationState* state = m.state(start);
                Values want;
                for (size_t i = 0; i < w.size(); ++i) {
                    double e = 0.375 * g[i];
                    if (form == SamForm::asam) e = 0.375 * w[i] * w[i] * g[i];
                    if (form == SamForm::asam_sign) e = 0.375 * std::abs(w[i]) * (g[i] > 0 ? 1 : g[i] < 0 ? -1 : 0);
                    want.push_back(w[i] + e);
                }
                const Array weights = m.real(w), gradient = m.real(g), out = m.unwritten(count);
                m.ops().sam_perturb(out, weights, gradient, state, form);
                check_close("w + e", m.read(out), want, m.roundings(kUpdate, kMagnitude));
                check_equal("the weights stay", m.read(weights), w);
                m.ops().sam_perturb(gradient, weights, gradient, state, form);
                check_equal("perturbed == gradient", m.read(gradient), m.read(out));
                m.write(gradient, g);
                m.ops().sam_perturb(weights, weights, gradient, state, form);
                check_equal("perturbed == weights", m.read(weights), m.read(out));
            }
    });
}

TEST_CASE("sgd_update_is_momentum_with_decay_over_several_steps") {
    on_every_device([](OnDevice& m) {
        constexpr double kMomentum = 0.9, kDecay = 5e-2;
        for (const int64_t count : kCounts) {
            INFO(count << " parameters");
            TestData data(3);
            Values w = data.normals(count), v = data.normals(count);
            const Array weights = m.real(w), velocity = m.real(v);
            IterationState* state = m.state();
            for (const double lr : {0.1, 0.02, 0.3}) {
                const Values g = data.normals(count);
                IterationState now;
                now.learning_rate = lr;
                m.write(state, now);
                m.ops().sgd_update(weights, velocity, m.real(g), state, kMomentum, kDecay);
                for (size_t i = 0; i < w.size(); ++i) {
                    v[i] = kMomentum * v[i] + (g[i] + kDecay * w[i]);
                    w[i] -= lr * v[i];
                }
            }
            check_close("velocity", m.read(velocity), v, m.roundings(3 * kUpdate, kMagnitude));
            check_close("weights", m.read(weights), w, m.roundings(3 * kUpdate, kMagnitude));
        }
    });
}

TEST_CASE("adam_update_is_the_textbook_s_over_several_steps") {
    on_every_device([](OnDevice& m) {
        constexpr double kLr = 0.05, kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;
        for (const int64_t count : kCounts)
            for (const double decay : {0.0, 0.03}) {
                INFO(count << " parameters, decay " << decay);
                TestData data(4);
                Values w = data.normals(count), first(w.size()), second(w.size());
                const Array weights = m.real(w), m1 = m.real(first), m2 = m.real(second);
                IterationState* state = m.state();
                for (uint32_t t = 1; t <= 5; ++t) {
                    // Gradients down to 1e-9, where the epsilon is as large as the root.
                    Values g;
                    for (size_t i = 0; i < w.size(); ++i)
                        g.push_back(static_cast<float>(data.normal() * std::pow(10.0, data.uniform(decay > 0 ? -1 : -9, 0))));
                    const double c1 = 1 - std::pow(kBeta1, t), c2 = 1 - std::pow(kBeta2, t);
                    m.ops().begin_iteration(state, t - 1, kLr, c1, c2);
                    m.ops().adam_update(weights, m1, m2, m.real(g), state, {.weight_decay = decay});
                    for (size_t i = 0; i < w.size(); ++i) {
                        const double d = g[i] + decay * w[i];
                        first[i] = kBeta1 * first[i] + (1 - kBeta1) * d;
                        second[i] = kBeta2 * second[i] + (1 - kBeta2) * d * d;
                        w[i] -= kLr * (first[i] / c1) / (std::sqrt(second[i] / c2) + kEps);
                    }
                }
                // Where old gradients cancel new ones the moment keeps their roundings, magnified by m/sqrt(v) < 4 in lr * m / root.
                check_close("weights", m.read(weights), w, m.roundings(5 * kUpdate, kMagnitude));
                check_close("m", m.read(m1), first, m.roundings(5 * kUpdate));
                check_close("v", m.read(m2), second, m.roundings(5 * kUpdate, 1e-3));
            }
    });
}

TEST_CASE("adam_update_with_a_clamp_limits_each_value_by_the_moment_before_it_and_the_first_one_by_the_floor") {
    on_every_device([](OnDevice& m) {
        constexpr double kLr = 0.05, kBeta2 = 0.999, kEps = 1e-8, kClamp = 3, kFloor = 0.1;
        for (const double beta1 : {0.0, 0.5}) {
            INFO("beta1 " << beta1);
            TestData data(14);
            Values w = data.normals(300), first(w.size()), second(w.size());
            const Array weights = m.real(w), m1 = m.real(first), m2 = m.real(second);
            IterationState* state = m.state();
            size_t clamped = 0;
            for (uint32_t t = 1; t <= 5; ++t) {
                const Values g = data.normals(300, 0, t == 5 ? 2 : 0.2);
                const double c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(kBeta2, t), before = 1 - std::pow(kBeta2, t - 1);
                m.ops().begin_iteration(state, t - 1, kLr, c1, c2);
                m.ops().adam_update(weights, m1, m2, m.real(g), state, {.beta1 = beta1, .clamp = kClamp});
                for (size_t i = 0; i < w.size(); ++i) {
                    const double limit = kClamp * (t > 1 ? std::sqrt(second[i] / before) : 0) + kFloor;
                    const double d = std::clamp(g[i], -limit, limit);
                    clamped += d != g[i] ? 1 : 0;
                    first[i] = beta1 * first[i] + (1 - beta1) * d;
                    second[i] = kBeta2 * second[i] + (1 - kBeta2) * d * d;
                    w[i] -= kLr * (first[i] / c1) / (std::sqrt(second[i] / c2) + kEps);
                }
            }
            CHECK(clamped > 300);
            CHECK(clamped < 1000);
            check_close("weights", m.read(weights), w, m.roundings(20 * kUpdate, kMagnitude));
            check_close("v", m.read(m2), second, m.roundings(20 * kUpdate, 1e-2));
        }
    });
}

TEST_CASE("ema_update_moves_the_average_towards_the_weights") {
    on_every_device([](OnDevice& m) {
        constexpr double kDecay = 0.9;
        for (const int64_t count : kCounts) {
            TestData data(5);
            Values average = data.normals(count);
            const Array got = m.real(average);
            for (int step = 0; step < 3; ++step) {
                const Values w = data.normals(count);
                m.ops().ema_update(got, m.real(w), m.state(), kDecay);
                for (size_t i = 0; i < w.size(); ++i) average[i] = kDecay * average[i] + (1 - kDecay) * w[i];
            }
            check_close("average", m.read(got), average, m.roundings(3 * kUpdate, kMagnitude));
        }
    });
}

TEST_CASE("nothing_is_updated_once_the_state_has_diverged") {
    on_every_device([](OnDevice& m) {
        IterationState raised;
        raised.diverged = 1;
        raised.learning_rate = 0.1;
        const IterationState* state = m.state(raised);
        TestData data(6);
        const Values a = data.normals(100), b = data.normals(100), c = data.uniforms(100, 0, 1);
        const Array weights = m.real(a), first = m.real(b), second = m.real(c), gradient = m.real(data.normals(100));
        m.ops().sgd_update(weights, first, gradient, state, 0.9, 0.1);
        m.ops().adam_update(weights, first, second, gradient, state, {.weight_decay = 0.1});
        check_equal("weights", m.read(weights), a);
        check_equal("velocity, m", m.read(first), b);
        check_equal("v", m.read(second), c);
        m.ops().ema_update(first, weights, state, 0.9);
        check_equal("average", m.read(first), b);
    });
}

TEST_CASE("fill_zero_overwrites_even_nan_and_nothing_beside_the_array") {
    on_every_device([](OnDevice& m) {
        for (const int64_t count : kCounts) {
            const Array all = m.unwritten(count + 2);
            m.ops().fill_zero(all.slice(1, count));
            Values want(static_cast<size_t>(count + 2));
            want.front() = want.back() = std::nan("");
            check_equal("zeros", m.read(all), want);
        }
        m.ops().fill_zero({nullptr, m.device().real_type(), 0});
    });
}

TEST_CASE("convert_copies_and_accumulate_adds_and_neither_touches_what_lies_beside") {
    on_every_device([](OnDevice& m) {
        for (const int64_t count : kCounts) {
            TestData data(6);
            const Values x = data.normals(count), start = data.normals(count);
            Values copied{std::nan("")}, sum{std::nan("")};
            for (size_t i = 0; i < x.size(); ++i) {
                copied.push_back(x[i]);
                sum.push_back(start[i] + x[i]);
            }
            copied.push_back(std::nan(""));
            sum.push_back(std::nan(""));
            const Array from = m.real(x), all = m.unwritten(count + 2), target = all.slice(1, count);
            m.ops().convert(target, from);
            check_equal("copy", m.read(all), copied);
            m.write(target, start);
            m.ops().accumulate(target, from);
            check_close("sum", m.read(all), sum, m.roundings(1, 8));  // normals stay below 4
        }
        m.ops().convert({nullptr, m.device().real_type(), 0}, {nullptr, m.device().real_type(), 0});
        m.ops().accumulate({nullptr, m.device().real_type(), 0}, {nullptr, m.device().real_type(), 0});
    });
}

TEST_CASE("turned_weights_are_those_of_the_way_back_with_their_taps_the_other_way_round") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kTaps = 9;
        for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {16, 8}, {33, 16}}) {
            TestData data(7);
            const Values w = data.normals(rows * kTaps * columns);
            Values want(w.size() + 2, std::nan(""));
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t t = 0; t < kTaps; ++t)
                    for (int64_t c = 0; c < columns; ++c)
                        want[static_cast<size_t>(1 + (c * kTaps + kTaps - 1 - t) * rows + r)] =
                            w[static_cast<size_t>((r * kTaps + t) * columns + c)];
            const Array all = m.unwritten(std::ssize(want));
            m.ops().turn_weights(all.slice(1, std::ssize(w)), m.real(w), rows, kTaps);
            check_equal("turned", m.read(all), want);
        }
    });
}

TEST_CASE("tiles_of_weights_hold_each_once_where_the_kernels_look_for_it_turned_or_as_they_are") {
    on_every_device([](OnDevice& m) {
        constexpr int64_t kTaps = 9;
        for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{8, 32}, {32, 64}, {96, 32}, {40, 96}})
            for (const bool turned : {false, true}) {
                if (turned && rows % kTileColumns != 0) continue;
                TestData data(7);
                const Values w = data.normals(rows * kTaps * columns);
                Values want(w.size() + 2, std::nan(""));
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t t = 0; t < kTaps; ++t)
                        for (int64_t c = 0; c < columns; ++c) {
                            const int64_t at =
                                turned ? weight_tile_offset(columns, kTaps, c, kTaps - 1 - t, r) : weight_tile_offset(rows, kTaps, r, t, c);
                            want[static_cast<size_t>(1 + at)] = w[static_cast<size_t>((r * kTaps + t) * columns + c)];
                        }
                const Array all = m.unwritten(std::ssize(want));
                m.ops().tile_weights(all.slice(1, std::ssize(w)), m.real(w), rows, kTaps, turned);
                check_equal("tiles", m.read(all), want);
            }
    });
}

TEST_CASE("begin_iteration_sets_the_iteration_s_values_and_the_step_advances_on_the_device") {
    on_every_device([](OnDevice& m) {
        IterationState start;
        start.step = 7, start.diverged = 1, start.scalars[kEnergy.f_pos][0] = 3;
        IterationState* state = m.state(start);
        m.ops().begin_iteration(state, 390, 0.125, 0.5, 0.25, 2);
        IterationState got = m.read(state);
        CHECK(got.attempt == 2);
        CHECK(got.iteration == 390);
        CHECK(got.step == 0);
        CHECK(got.learning_rate == 0.125);
        CHECK(got.adam_rate == 0.25);
        CHECK(got.adam_root == 0.5);
        CHECK(got.diverged == 1);  // sticky
        CHECK(got.scalars[kEnergy.f_pos][0] == 3);
        for (uint32_t step = 1; step <= 3; ++step) {
            m.ops().advance_step(state);
            CHECK(m.read(state).step == step);
        }
        CHECK(m.read(state).iteration == 390);
    });
}

}  // namespace
}  // namespace jem
