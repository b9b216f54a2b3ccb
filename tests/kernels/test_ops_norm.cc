// Normalisation, LeakyReLU, bias gradient and mean pooling against loops in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/norm.h"
#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {
namespace {

constexpr double kSlope = 0.2, kEpsilon = 1e-5;

// Roundings of an element-wise expression of at most seven operations on values below 8.
constexpr double kElementwise = 8, kMagnitude = 8;
// A sum of K terms, each rounded, in pieces of 64 (f32) or at once (f64): the error is a random walk, far below K roundings, and 16
// roundings of the sum of magnitudes were never reached.
constexpr double kSum = 16;
// Mean and variance are sums, too; the variance is of values shifted by one that lies up to 4 deviations off, so that its error is
// magnified by up to 16.
constexpr double kStatistics = 200;

const Extent kExtents[] = {
    {.n = 1, .c = 1, .h = 1, .w = 1, .block = 1},      // one element
    {.n = 2, .c = 3, .h = 5, .w = 7, .block = 3},      // odd
    {.n = 7, .c = 10, .h = 1, .w = 1, .block = 10},    // one row
    {.n = 3, .c = 33, .h = 3, .w = 3, .block = 33},    // lanes left over behind two vectors
    {.n = 2, .c = 16, .h = 7, .w = 5, .block = 16},    //
    {.n = 2, .c = 32, .h = 9, .w = 3, .block = 16},    // two blocks
    {.n = 2, .c = 160, .h = 4, .w = 4, .block = 16},   // ten
    {.n = 3, .c = 160, .h = 4, .w = 5, .block = 160},  //
    {.n = 5, .c = 3, .h = 6, .w = 6, .block = 1},      // NCHW
    {.n = 70, .c = 16, .h = 3, .w = 3, .block = 16},   // more images than chunks of partial sums
    {.n = 2, .c = 16, .h = 36, .w = 33, .block = 16},  // rows of more than one tile
    {.n = 1, .c = 1, .h = 131, .w = 127, .block = 1},  // one channel of more than one tile
    {.n = 2, .c = 33, .h = 23, .w = 25, .block = 33},  // tiles that end within a row's multiple
    {.n = 130, .c = 8, .h = 2, .w = 2, .block = 8},    // three images a chunk, the last chunk short
};

double leaky(double z) { return z > 0 ? z : kSlope * z; }
double leaky_slope(double z) { return z > 0 ? 1 : kSlope; }

struct Coefficients {
    Values mean, inv_std, scale, beta, a, b;
};

Coefficients random_coefficients(TestData& data, int64_t channels) {
    Coefficients k{.mean = data.uniforms(channels, -1, 1),
                   .inv_std = data.uniforms(channels, 0.5, 2),
                   .scale = data.uniforms(channels, -2, 2),
                   .beta = data.uniforms(channels, -1, 1),
                   .a = data.uniforms(channels, -0.5, 0.5),
                   .b = data.uniforms(channels, -0.5, 0.5)};
    k.beta[0] = 0;  // there x = mean lies exactly on the kink
    return k;
}

NormCoefficients upload(OnDevice& m, const Coefficients& k) {
    return {.mean = m.real(k.mean),
            .inv_std = m.real(k.inv_std),
            .scale = m.real(k.scale),
            .beta = m.real(k.beta),
            .a = m.real(k.a),
            .b = m.real(k.b)};
}

// Normal x, no input of the LeakyReLU so near to 0 that rounding could decide its side; the first is exactly 0.
Values away_from_the_kink(TestData& data, const Extent& e, const Coefficients& k) {
    constexpr double kAway = 1e-4;
    Values x(static_cast<size_t>(e.count()));
    for (size_t i = 0; i < x.size(); ++i) {
        const size_t c = channel_of(e, i);
        do x[i] = data.normal();
        while (std::abs(k.scale[c] * (x[i] - k.mean[c]) + k.beta[c]) < kAway && std::abs(k.scale[c]) > 10 * kAway);
    }
    x[0] = k.mean[0];
    return x;
}

double normalised(const Coefficients& k, size_t c, double x) { return k.scale[c] * (x - k.mean[c]) + k.beta[c]; }

TEST_CASE("leaky_is_leaky_relu_of_slope_0_2") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            Values x = TestData(1).normals(e.count());
            x[0] = 0;
            Values want;
            for (const double v : x) want.push_back(leaky(v));
            const Tensor in = m.tensor(e, x), out = m.unwritten(e);
            m.ops().leaky(out, in);
            check_close("y", m.read(out), want, m.roundings(1));
            m.ops().leaky(in, in);
            check_equal("y == x", m.read(in), m.read(out));
        }
    });
}

TEST_CASE("leaky_backward_has_the_small_slope_at_0_and_adds_the_residual") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(2);
            Values x = data.normals(e.count());
            x[0] = 0;
            const Values d_y = data.normals(e.count()), added = data.normals(e.count());
            Values plain, with;
            for (size_t i = 0; i < x.size(); ++i) {
                plain.push_back(leaky_slope(x[i]) * d_y[i]);
                with.push_back(plain[i] + added[i]);
            }
            const Tensor in = m.tensor(e, x), gradient = m.tensor(e, d_y), residual = m.tensor(e, added), out = m.unwritten(e);
            m.ops().leaky_backward(out, gradient, in, nullptr);
            check_close("no residual", m.read(out), plain, m.roundings(1));
            m.ops().leaky_backward(out, gradient, in, &residual);
            check_close("residual", m.read(out), with, m.roundings(2, kMagnitude));
            const Values got = m.read(out);
            m.ops().leaky_backward(residual, gradient, in, &residual);
            check_equal("d_x == residual", m.read(residual), got);
            m.write(residual, added);
            m.ops().leaky_backward(gradient, gradient, in, &residual);
            check_equal("d_x == d_y", m.read(gradient), got);
            m.write(gradient, d_y);
            m.ops().leaky_backward(in, gradient, in, &residual);
            check_equal("d_x == x", m.read(in), got);
        }
    });
}

struct Moments {
    Values mean, var;  // biased
};

Moments moments(const Extent& e, const Values& x) {
    Moments out{Values(static_cast<size_t>(e.c)), Values(static_cast<size_t>(e.c))};
    const double count = static_cast<double>(e.n * e.rows());
    for (size_t i = 0; i < x.size(); ++i) out.mean[channel_of(e, i)] += x[i] / count;
    for (size_t i = 0; i < x.size(); ++i) out.var[channel_of(e, i)] += std::pow(x[i] - out.mean[channel_of(e, i)], 2) / count;
    return out;
}

struct NormLayer {
    NormCoefficients out;
    BatchNormParameters parameters;
    Values gamma, running_mean, running_var;
};

NormLayer norm_layer(OnDevice& m, TestData& data, int64_t channels) {
    NormLayer l;
    l.gamma = data.uniforms(channels, -2, 2);
    l.running_mean = data.uniforms(channels, -1, 1);
    l.running_var = data.uniforms(channels, 0.1, 3);
    l.out = {.mean = m.unwritten(channels),
             .inv_std = m.unwritten(channels),
             .scale = m.unwritten(channels),
             .beta = m.unwritten(channels),
             .a = m.unwritten(channels),
             .b = m.unwritten(channels)};
    l.parameters = {.gamma = m.real(l.gamma),
                    .beta = m.real(data.uniforms(channels, -1, 1)),
                    .running_mean = m.real(l.running_mean),
                    .running_var = m.real(l.running_var)};
    return l;
}

// mean, inv_std and scale against two passes in double
void check_statistics(OnDevice& m, const NormLayer& l, const Moments& want, Tolerance mean, Tolerance inverse) {
    Values inv_std, scale;
    for (size_t c = 0; c < want.var.size(); ++c) {
        inv_std.push_back(1 / std::sqrt(want.var[c] + kEpsilon));
        scale.push_back(l.gamma[c] * inv_std[c]);
    }
    check_close("mean", m.read(l.out.mean), want.mean, mean);
    check_close("inv_std", m.read(l.out.inv_std), inv_std, inverse);
    check_close("scale", m.read(l.out.scale), scale, inverse);
}

TEST_CASE("batch_norm_statistics_are_mean_and_inverse_deviation_of_each_channel") {
    on_every_device([](OnDevice& m) {
        IterationState* state = m.state();
        for (const Extent& e : kExtents)
            // Small variances show the epsilon.
            for (const double deviation : {1.5, 0.004}) {
                INFO(e.text() << ", deviation " << deviation);
                TestData data(3);
                const Values x = data.normals(e.count(), 0.3, deviation);
                NormLayer l = norm_layer(m, data, e.c);
                m.ops().batch_norm_statistics(l.out, m.tensor(e, x), l.parameters, RunningStatistics::update, state);
                const Moments want = moments(e, x);
                check_statistics(m, l, want, m.roundings(kSum), {.relative = kStatistics * m.rounding()});
                const double count = static_cast<double>(e.n * e.rows());
                Values mean, var;
                for (size_t c = 0; c < want.mean.size(); ++c) {
                    const double unbiased = count > 1 ? want.var[c] * count / (count - 1) : want.var[c];
                    mean.push_back(0.1 * l.running_mean[c] + 0.9 * want.mean[c]);
                    var.push_back(0.1 * l.running_var[c] + 0.9 * unbiased);
                }
                check_close("running mean", m.read(l.parameters.running_mean), mean, m.roundings(kSum));
                check_close("running variance", m.read(l.parameters.running_var), var, {.relative = kStatistics * m.rounding()});
            }
    });
}

TEST_CASE("batch_norm_statistics_do_not_cancel_where_the_mean_is_large") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e :
             {Extent{.n = 3, .c = 33, .h = 8, .w = 8, .block = 33}, Extent{.n = 3, .c = 32, .h = 12, .w = 12, .block = 16}}) {
            INFO(e.text());
            TestData data(4);
            // Deviation 0.01 around 300: the squares agree in their first nine digits, an f32 has seven.
            Values x;
            for (int64_t i = 0; i < e.count(); ++i) x.push_back(static_cast<float>(300 + 0.01 * data.normal()));
            NormLayer l = norm_layer(m, data, e.c);
            m.ops().batch_norm_statistics(l.out, m.tensor(e, x), l.parameters, RunningStatistics::keep, m.state());
            check_statistics(m, l, moments(e, x), m.roundings(kSum), {.relative = kStatistics * m.rounding()});
        }
    });
}

// What a convolution leaves: over N, H, W of each channel, sum of first(i), sum of second(i). Nothing is lost in between, for the
// tolerances are those of what is made of them.
template <class First, class Second>
Values sums_of(const Extent& e, First first, Second second) {
    const size_t channels = static_cast<size_t>(e.c);
    std::vector<long double> sums(2 * channels);
    for (size_t i = 0; i < static_cast<size_t>(e.count()); ++i) {
        sums[channel_of(e, i)] += static_cast<long double>(first(i));
        sums[channels + channel_of(e, i)] += static_cast<long double>(second(i));
    }
    Values rounded;
    for (const long double sum : sums) rounded.push_back(static_cast<double>(sum));
    return rounded;
}

TEST_CASE("batch_norm_of_sums_equals_the_statistics_of_the_values_and_takes_its_centre_from_the_old_running_mean") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const RunningStatistics running : {RunningStatistics::update, RunningStatistics::keep})
                // As before the first update; and with a mean of 200 deviations, near which the running mean is.
                for (const double mean_of_all : {0, 300}) {
                    if (e.n * e.rows() == 1) continue;  // its variance is 0, and rounding of the sums is all that would be seen
                    INFO(e.text() << ", mean " << mean_of_all);
                    TestData data(12);
                    NormLayer l = norm_layer(m, data, e.c);
                    for (double& v : l.running_mean) v = mean_of_all > 0 ? v + mean_of_all : 0;
                    m.write(l.parameters.running_mean, l.running_mean);
                    l.running_mean = m.read(l.parameters.running_mean);  // as rounded
                    Values x = data.normals(e.count(), 0.3, 1.5);
                    for (double& v : x) v = static_cast<float>(v + mean_of_all);
                    const double magnitude = std::max(1.0, mean_of_all);
                    const auto centred = [&](size_t i) { return x[i] - l.running_mean[channel_of(e, i)]; };
                    const Array sums = m.real(sums_of(e, centred, [&](size_t i) { return centred(i) * centred(i); }));
                    m.ops().batch_norm_of_sums(l.out, sums, m.unwritten(e), l.parameters, running, m.state());
                    Values small = x;  // the two passes in double lose digits, too
                    for (double& v : small) v -= mean_of_all;
                    Moments want = moments(e, small);
                    for (double& v : want.mean) v += mean_of_all;
                    check_statistics(m, l, want, m.roundings(kSum, magnitude), {.relative = kStatistics * m.rounding()});
                    const bool update = running == RunningStatistics::update;
                    const double count = static_cast<double>(e.n * e.rows());
                    Values mean, var;
                    for (size_t c = 0; c < want.mean.size(); ++c) {
                        const double unbiased = count > 1 ? want.var[c] * count / (count - 1) : want.var[c];
                        mean.push_back(update ? 0.1 * l.running_mean[c] + 0.9 * want.mean[c] : l.running_mean[c]);
                        var.push_back(update ? 0.1 * l.running_var[c] + 0.9 * unbiased : l.running_var[c]);
                    }
                    check_close("running mean", m.read(l.parameters.running_mean), mean, m.roundings(kSum, magnitude));
                    check_close("running variance", m.read(l.parameters.running_var), var, {.relative = kStatistics * m.rounding()});
                }
    });
}

TEST_CASE("running_statistics_are_kept_where_asked_or_diverged_or_not_finite") {
    on_every_device([](OnDevice& m) {
        const Extent e{.n = 3, .c = 32, .h = 3, .w = 5, .block = 16};
        TestData data(5);
        const Values x = data.normals(e.count());
        const auto check_kept = [&](const char* what, const Values& input, RunningStatistics running, bool diverged) {
            INFO(what);
            IterationState state;
            state.diverged = diverged ? 1 : 0;
            NormLayer l = norm_layer(m, data, e.c);
            m.ops().batch_norm_statistics(l.out, m.tensor(e, input), l.parameters, running, m.state(state));
            check_equal("running mean", m.read(l.parameters.running_mean), l.running_mean);
            check_equal("running variance", m.read(l.parameters.running_var), l.running_var);
            if (input == x) check_statistics(m, l, moments(e, x), m.roundings(kSum), {.relative = kStatistics * m.rounding()});
        };
        check_kept("keep", x, RunningStatistics::keep, false);
        check_kept("diverged", x, RunningStatistics::update, true);
        for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            // One bad value in every channel, the first (by which the others are shifted) or a later one.
            for (const int64_t row : {0, 14}) {
                Values input = x;
                for (int64_t c = 0; c < e.c; ++c) input[static_cast<size_t>((0 * e.c + c) * e.rows() + row)] = bad;
                check_kept("not finite", input, RunningStatistics::update, false);
            }
        }
        // The variance alone overflows: squares of 1e25 in f32, of 1e200 in f64.
        Values input = x;
        for (size_t i = 0; i < input.size(); i += 2) input[i] = m.f64() ? 1e200 : 1e25;
        check_kept("variance overflows", input, RunningStatistics::update, false);
    });
}

TEST_CASE("a_bias_that_x_goes_without_is_in_the_running_mean_and_nowhere_else") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(6);
            const Values x = data.normals(e.count()), bias = data.uniforms(e.c, -2, 2);
            TestData same = data;
            NormLayer with = norm_layer(m, data, e.c), without = norm_layer(m, same, e.c);
            with.parameters.left_out = m.real(bias);
            for (const NormLayer* l : {&with, &without})
                m.ops().batch_norm_statistics(l->out, m.tensor(e, x), l->parameters, RunningStatistics::update, m.state());
            check_equal("mean", m.read(with.out.mean), m.read(without.out.mean));
            check_equal("inv_std", m.read(with.out.inv_std), m.read(without.out.inv_std));
            check_equal("scale", m.read(with.out.scale), m.read(without.out.scale));
            check_equal("running variance", m.read(with.parameters.running_var), m.read(without.parameters.running_var));
            Values mean = m.read(without.parameters.running_mean);
            for (size_t c = 0; c < bias.size(); ++c) mean[c] += 0.9 * bias[c];
            check_close("running mean", m.read(with.parameters.running_mean), mean, m.roundings(2, 4));
        }
    });
}

// What rounding can make of a channel of equal values; no tensor of a reasonable size gets there.
TEST_CASE("a_variance_that_rounding_made_negative_counts_as_0") {
    double mean = 0, inv_std = 0, scale = 0;
    const double gamma = 2, first = 0.5;
    const BatchNormStatistics<double, double> statistics{.out = {.mean = &mean,
                                                                 .inv_std = &inv_std,
                                                                 .scale = &scale,
                                                                 .gamma = &gamma,
                                                                 .running_mean = nullptr,
                                                                 .running_var = nullptr,
                                                                 .left_out = nullptr,
                                                                 .state = nullptr,
                                                                 .epsilon = kEpsilon,
                                                                 .momentum = 0.9},
                                                         .first = &first,
                                                         .rows = 1,
                                                         .block = 1,
                                                         .count = 4};
    // 4 values that lie 1 above the first, their squares rounded down
    statistics.finish(0, {4, 3.9999});
    check_close("mean, inv_std, scale", {mean, inv_std, scale}, {1.5, 1 / std::sqrt(kEpsilon), 2 / std::sqrt(kEpsilon)},
                Tolerance{.relative = 1e-14});
}

TEST_CASE("running_norm_coefficients_come_from_the_running_statistics") {
    on_every_device([](OnDevice& m) {
        for (const int64_t channels : {1, 16, 33, 160}) {
            TestData data(6);
            NormLayer l = norm_layer(m, data, channels);
            Values tiny = l.running_var;
            tiny[0] = static_cast<float>(2e-5);  // shows the epsilon
            m.write(l.parameters.running_var, tiny);
            m.ops().running_norm_coefficients(l.out, l.parameters);
            check_statistics(m, l, {l.running_mean, tiny}, {}, m.roundings(4));
            check_equal("a", m.read(l.out.a), Values(static_cast<size_t>(channels)));
            check_equal("b", m.read(l.out.b), Values(static_cast<size_t>(channels)));
            check_equal("running variance", m.read(l.parameters.running_var), tiny);
        }
    });
}

TEST_CASE("norm_shift_makes_the_norm_one_product_and_one_sum") {
    on_every_device([](OnDevice& m) {
        for (const int64_t channels : {1, 3, 160}) {
            TestData data(10);
            const Coefficients k = random_coefficients(data, channels);
            Values want;
            for (size_t c = 0; c < k.mean.size(); ++c) want.push_back(k.beta[c] - k.scale[c] * k.mean[c]);
            const Array shift = m.unwritten(channels);
            m.ops().norm_shift(shift, upload(m, k));
            check_close("shift", m.read(shift), want, m.roundings(1, 4));
        }
    });
}

TEST_CASE("norm_leaky_normalises_then_activates") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(7);
            const Coefficients k = random_coefficients(data, e.c);
            const Values x = away_from_the_kink(data, e, k);
            Values want;
            for (size_t i = 0; i < x.size(); ++i) want.push_back(leaky(normalised(k, channel_of(e, i), x[i])));
            const Tensor in = m.tensor(e, x), out = m.unwritten(e);
            const NormCoefficients norm = upload(m, k);
            m.ops().norm_leaky(out, in, norm);
            check_close("y", m.read(out), want, m.roundings(kElementwise, kMagnitude));
            m.ops().norm_leaky(in, in, norm);
            check_equal("y == x", m.read(in), m.read(out));
        }
    });
}

TEST_CASE("norm_leaky_backward_passes_leaky_scale_mean_and_variance") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(8);
            const Coefficients k = random_coefficients(data, e.c);
            const Values x = away_from_the_kink(data, e, k), d_y = data.normals(e.count()), added = data.normals(e.count());
            Values plain, with;
            for (size_t i = 0; i < x.size(); ++i) {
                const size_t c = channel_of(e, i);
                const double dz = leaky_slope(normalised(k, c, x[i])) * d_y[i];
                plain.push_back(k.scale[c] * dz + k.a[c] * (x[i] - k.mean[c]) + k.b[c]);
                with.push_back(plain[i] + added[i]);
            }
            const Tolerance tolerance = m.roundings(kElementwise, kMagnitude);
            const NormCoefficients norm = upload(m, k);
            const Tensor in = m.tensor(e, x), gradient = m.tensor(e, d_y), residual = m.tensor(e, added), out = m.unwritten(e);
            m.ops().norm_leaky_backward(out, gradient, in, norm, nullptr);
            check_close("no residual", m.read(out), plain, tolerance);
            m.ops().norm_leaky_backward(out, gradient, in, norm, &residual);
            check_close("residual", m.read(out), with, tolerance);
            const Values got = m.read(out);
            m.ops().norm_leaky_backward(residual, gradient, in, norm, &residual);
            check_equal("d_x == residual", m.read(residual), got);
            m.write(residual, added);
            m.ops().norm_leaky_backward(gradient, gradient, in, norm, &residual);
            check_equal("d_x == d_y", m.read(gradient), got);
            m.write(gradient, d_y);
            m.ops().norm_leaky_backward(in, gradient, in, norm, &residual);
            check_equal("d_x == x", m.read(in), got);
        }
    });
}

TEST_CASE("norm_backward_is_norm_leaky_backward_without_the_leaky") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(13);
            const Coefficients k = random_coefficients(data, e.c);
            const Values x = away_from_the_kink(data, e, k), d_z = data.normals(e.count()), added = data.normals(e.count());
            Values plain, with;
            for (size_t i = 0; i < x.size(); ++i) {
                const size_t c = channel_of(e, i);
                plain.push_back(k.scale[c] * d_z[i] + k.a[c] * (x[i] - k.mean[c]) + k.b[c]);
                with.push_back(plain[i] + added[i]);
            }
            const Tolerance tolerance = m.roundings(kElementwise, kMagnitude);
            const NormCoefficients norm = upload(m, k);
            const Tensor in = m.tensor(e, x), gradient = m.tensor(e, d_z), residual = m.tensor(e, added), out = m.unwritten(e);
            m.ops().norm_backward(out, gradient, in, norm, nullptr);
            check_close("no residual", m.read(out), plain, tolerance);
            m.ops().norm_backward(out, gradient, in, norm, &residual);
            check_close("residual", m.read(out), with, tolerance);
            m.ops().norm_backward(gradient, gradient, in, norm, &residual);
            check_equal("d_x == dz", m.read(gradient), m.read(out));
        }
    });
}

TEST_CASE("norm_backward_sums_give_a_b_and_add_to_the_parameters_gradients") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(9);
            const Coefficients k = random_coefficients(data, e.c);
            const Values x = away_from_the_kink(data, e, k), d_y = data.normals(e.count());
            const Values d_gamma = data.normals(e.c), d_beta = data.normals(e.c);
            const size_t channels = static_cast<size_t>(e.c);
            Values s0(channels), s1(channels), m0(channels), m1(channels);  // the sums, and the sums of magnitudes
            for (size_t i = 0; i < x.size(); ++i) {
                const size_t c = channel_of(e, i);
                const double dz = leaky_slope(normalised(k, c, x[i])) * d_y[i];
                s0[c] += dz, s1[c] += dz * (x[i] - k.mean[c]);
                m0[c] += std::abs(dz), m1[c] += std::abs(dz * (x[i] - k.mean[c]));
            }
            Values a, b, gamma, beta, a_limit, b_limit, gamma_limit, beta_limit;
            const double count = static_cast<double>(e.n * e.rows()), u = kSum * m.rounding();
            for (size_t c = 0; c < channels; ++c) {
                const double to_a = k.scale[c] * k.inv_std[c] * k.inv_std[c] / count, to_b = k.scale[c] / count;
                a.push_back(-to_a * s1[c]), a_limit.push_back(u * std::abs(to_a) * m1[c]);
                b.push_back(-to_b * s0[c]), b_limit.push_back(u * std::abs(to_b) * m0[c]);
                gamma.push_back(d_gamma[c] + k.inv_std[c] * s1[c]);
                gamma_limit.push_back(u * (std::abs(d_gamma[c]) + k.inv_std[c] * m1[c]));
                beta.push_back(d_beta[c] + s0[c]), beta_limit.push_back(u * (std::abs(d_beta[c]) + m0[c]));
            }
            const NormCoefficients norm = upload(m, k);
            const Array got_gamma = m.real(d_gamma), got_beta = m.real(d_beta);
            const Tensor gradient = m.tensor(e, d_y), in = m.tensor(e, x);
            m.ops().norm_backward_sums(norm, got_gamma, got_beta, gradient, in);
            check_within("a", m.read(norm.a), a, a_limit);
            check_within("b", m.read(norm.b), b, b_limit);
            check_within("d_gamma", m.read(got_gamma), gamma, gamma_limit);
            check_within("d_beta", m.read(got_beta), beta, beta_limit);
            const NormCoefficients again = upload(m, k);
            m.ops().norm_backward_sums(again, {}, {}, gradient, in);
            check_equal("a without d_gamma", m.read(again.a), m.read(norm.a));
            check_equal("b without d_beta", m.read(again.b), m.read(norm.b));

            // The same from sums that somebody else took.
            const auto dz = [&](size_t i) { return leaky_slope(normalised(k, channel_of(e, i), x[i])) * d_y[i]; };
            const Array sums = m.real(sums_of(e, dz, [&](size_t i) { return dz(i) * (x[i] - k.mean[channel_of(e, i)]); }));
            m.write(got_gamma, d_gamma), m.write(got_beta, d_beta);
            const NormCoefficients of_sums = upload(m, k);
            m.ops().norm_backward_of_sums(of_sums, got_gamma, got_beta, sums, in);
            check_within("a of sums", m.read(of_sums.a), a, a_limit);
            check_within("b of sums", m.read(of_sums.b), b, b_limit);
            check_within("d_gamma of sums", m.read(got_gamma), gamma, gamma_limit);
            check_within("d_beta of sums", m.read(got_beta), beta, beta_limit);
            m.ops().norm_backward_of_sums(of_sums, {}, {}, sums, in);
            check_within("d_gamma kept", m.read(got_gamma), gamma, gamma_limit);
        }
    });
}

TEST_CASE("the_slope_behind_a_norm_or_alone_is_what_its_layer_says") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const double slope : {0.0, 0.01, 1.0}) {
                INFO(e.text() << ", slope " << slope);
                TestData data(21);
                const Coefficients k = random_coefficients(data, e.c);
                const Values x = away_from_the_kink(data, e, k), d_y = data.normals(e.count());
                const size_t channels = static_cast<size_t>(e.c);
                Values y, d_x, alone, d_alone, d_gamma(channels), d_beta(channels), gamma_limit(channels), beta_limit(channels);
                for (size_t i = 0; i < x.size(); ++i) {
                    const size_t c = channel_of(e, i);
                    const double z = normalised(k, c, x[i]), xc = x[i] - k.mean[c];
                    const double dz = z > 0 ? d_y[i] : slope * d_y[i], at_0 = x[i] > 0 ? d_y[i] : slope * d_y[i];
                    y.push_back(z > 0 ? z : slope * z);
                    d_x.push_back(k.scale[c] * dz + k.a[c] * xc + k.b[c]);
                    alone.push_back(x[i] > 0 ? x[i] : slope * x[i]);
                    d_alone.push_back(at_0);
                    d_gamma[c] += k.inv_std[c] * dz * xc, gamma_limit[c] += kSum * m.rounding() * std::abs(k.inv_std[c] * dz * xc);
                    d_beta[c] += dz, beta_limit[c] += kSum * m.rounding() * std::abs(dz);
                }
                NormCoefficients norm = upload(m, k);
                norm.slope = slope;
                const Tolerance tolerance = m.roundings(kElementwise, kMagnitude);
                const Tensor in = m.tensor(e, x), gradient = m.tensor(e, d_y), out = m.unwritten(e);
                m.ops().norm_leaky(out, in, norm);
                check_close("y", m.read(out), y, tolerance);
                m.ops().norm_leaky_backward(out, gradient, in, norm, nullptr);
                check_close("d_x", m.read(out), d_x, tolerance);
                m.ops().leaky(out, in, slope);
                check_close("y without norm", m.read(out), alone, m.roundings(2));
                m.ops().leaky_backward(out, gradient, in, nullptr, slope);
                check_close("d_x without norm", m.read(out), d_alone, m.roundings(2));
                const Array got_gamma = m.real(Values(channels)), got_beta = m.real(Values(channels));
                m.ops().norm_backward_sums(norm, got_gamma, got_beta, gradient, in);
                check_within("d_gamma", m.read(got_gamma), d_gamma, gamma_limit);
                check_within("d_beta", m.read(got_beta), d_beta, beta_limit);
                const Array own = {m.raw(nullptr, 2 * channels * sizeof(double)), DType::f64, 2 * e.c};
                m.ops().norm_backward_own_sums(own, norm, {}, {}, gradient, in);
                const std::vector<double> sums = m.read_as<double>(own.data, own.count);
                check_within("sum of d_z", Values(sums.begin(), sums.begin() + e.c), d_beta, beta_limit);
            }
    });
}

TEST_CASE("epsilon_and_momentum_of_a_norm_are_what_its_layer_says") {
    on_every_device([](OnDevice& m) {
        constexpr double kOwnEpsilon = 0.02, kOwnMomentum = 0.25;
        IterationState* state = m.state();
        for (const Extent& e : kExtents) {
            if (e.n * e.rows() == 1) continue;  // its variance is 0, and rounding of the sums is all that would be seen
            if (e.rows() > 10000) continue;     // so many that the definition's own sums lose the digits
            INFO(e.text());
            TestData data(22);
            const Values x = data.normals(e.count(), 0.3, 1.5);
            const Moments want = moments(e, x);
            const auto count = static_cast<double>(e.n * e.rows());
            const auto layer = [&] {
                NormLayer l = norm_layer(m, data, e.c);
                l.parameters.epsilon = kOwnEpsilon;
                l.parameters.momentum = kOwnMomentum;
                return l;
            };
            const auto check_scale = [&](const NormLayer& l, const Values& variances) {
                Values scale;
                for (size_t c = 0; c < variances.size(); ++c) scale.push_back(l.gamma[c] / std::sqrt(variances[c] + kOwnEpsilon));
                check_close("scale", m.read(l.out.scale), scale, {.relative = kStatistics * m.rounding()});
            };
            const auto check = [&](const char* how, const NormLayer& l) {
                INFO(how);
                Values mean, var;
                for (size_t c = 0; c < want.mean.size(); ++c) {
                    mean.push_back((1 - kOwnMomentum) * l.running_mean[c] + kOwnMomentum * want.mean[c]);
                    var.push_back((1 - kOwnMomentum) * l.running_var[c] + kOwnMomentum * want.var[c] * count / (count - 1));
                }
                check_scale(l, want.var);
                check_close("running mean", m.read(l.parameters.running_mean), mean, m.roundings(kSum));
                check_close("running variance", m.read(l.parameters.running_var), var, {.relative = kStatistics * m.rounding()});
            };
            const NormLayer of_values = layer(), of_sums = layer(), of_ranks = layer(), running = layer();
            const Tensor in = m.tensor(e, x);
            m.ops().batch_norm_statistics(of_values.out, in, of_values.parameters, RunningStatistics::update, state);
            check("of the values", of_values);
            const auto centred = [&](size_t i) { return x[i] - of_sums.running_mean[channel_of(e, i)]; };
            const Array sums = m.real(sums_of(e, centred, [&](size_t i) { return centred(i) * centred(i); }));
            m.ops().batch_norm_of_sums(of_sums.out, sums, in, of_sums.parameters, RunningStatistics::update, state);
            check("of sums", of_sums);
            const Array shares{m.raw(nullptr, static_cast<size_t>(2 * e.c) * sizeof(double)), DType::f64, 2 * e.c};
            m.ops().batch_norm_moments(shares, in);
            m.ops().join_moments(of_ranks.out, shares, in, of_ranks.parameters, RunningStatistics::update, state);
            check("of ranks", of_ranks);
            m.ops().running_norm_coefficients(running.out, running.parameters);
            check_scale(running, running.running_var);
        }
    });
}

// Norms of each image ---------------------------------------------------------------------------------------------------------

// Of value i (NCHW): its channel among all images' channels, and its group among all images' groups of so many channels.
size_t image_channel_of(const Extent& e, size_t i) { return i / static_cast<size_t>(e.rows()); }
size_t group_of(const Extent& e, int64_t group, size_t i) { return image_channel_of(e, i) / static_cast<size_t>(group); }

Array doubles(OnDevice& m, int64_t count) {
    const Values nan(static_cast<size_t>(count), std::nan(""));
    return {m.raw(nan.data(), nan.size() * sizeof(double)), DType::f64, count};
}

NormCoefficients unwritten_coefficients(OnDevice& m, int64_t count) {
    return {.mean = m.unwritten(count),
            .inv_std = m.unwritten(count),
            .scale = m.unwritten(count),
            .beta = m.unwritten(count),
            .a = m.unwritten(count),
            .b = m.unwritten(count)};
}

TEST_CASE("group_norm_has_the_mean_and_deviation_of_a_group_of_an_image_s_channels_and_the_gamma_and_beta_of_the_channel") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const int64_t group : {int64_t{1}, e.c}) {
                INFO(e.text() << ", groups of " << group);
                TestData data(21);
                const Values x = data.normals(e.count(), 0.3, 1.5), gamma = data.uniforms(e.c, -2, 2), beta = data.uniforms(e.c, -1, 1);
                const Tensor in = m.tensor(e, x), y = m.unwritten(e);
                const Array sums = doubles(m, 2 * e.n * e.c);
                const NormCoefficients norm = unwritten_coefficients(m, e.n * e.c);
                m.ops().image_moments(sums, in);
                m.ops().group_norm(norm, sums, m.real(gamma), m.real(beta), in, group, kEpsilon);
                const size_t groups = static_cast<size_t>(e.n * e.c / group);
                const double count = static_cast<double>(group * e.rows());
                Values means(groups), variances(groups), mean, inv_std, scale, betas, out;
                for (size_t i = 0; i < x.size(); ++i) means[group_of(e, group, i)] += x[i] / count;
                for (size_t i = 0; i < x.size(); ++i)
                    variances[group_of(e, group, i)] += std::pow(x[i] - means[group_of(e, group, i)], 2) / count;
                for (size_t nc = 0; nc < static_cast<size_t>(e.n * e.c); ++nc) {
                    const size_t g = nc / static_cast<size_t>(group), c = nc % static_cast<size_t>(e.c);
                    mean.push_back(means[g]);
                    inv_std.push_back(1 / std::sqrt(variances[g] + kEpsilon));
                    scale.push_back(gamma[c] * inv_std.back());
                    betas.push_back(beta[c]);
                }
                check_close("mean", m.read(norm.mean), mean, m.roundings(kSum));
                check_close("inv_std", m.read(norm.inv_std), inv_std, {.relative = kStatistics * m.rounding()});
                check_close("scale", m.read(norm.scale), scale, {.relative = kStatistics * m.rounding()});
                check_close("beta", m.read(norm.beta), betas, m.roundings(1));
                if (e.rows() * group == 1) continue;  // a deviation of 0: rounding alone, much enlarged
                m.ops().norm_leaky(of_images(y), of_images(in), norm);
                for (size_t i = 0; i < x.size(); ++i) {
                    const size_t nc = image_channel_of(e, i);
                    out.push_back(leaky(scale[nc] * (x[i] - mean[nc]) + betas[nc]));
                }
                check_close("y", m.read(y), out, m.roundings(kStatistics, kMagnitude));
            }
    });
}

TEST_CASE("group_norm_backward_takes_away_what_flows_through_mean_and_deviation_of_the_group") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const int64_t group : {int64_t{1}, e.c}) {
                INFO(e.text() << ", groups of " << group);
                TestData data(22);
                const size_t all = static_cast<size_t>(e.n * e.c);
                Coefficients k = random_coefficients(data, e.n * e.c);
                for (size_t nc = 0; nc < all; ++nc) {  // a group has one mean and deviation
                    k.mean[nc] = k.mean[nc - nc % static_cast<size_t>(group)];
                    k.inv_std[nc] = k.inv_std[nc - nc % static_cast<size_t>(group)];
                }
                const Extent one{.n = 1, .c = e.n * e.c, .h = e.h, .w = e.w};
                const Values x = away_from_the_kink(data, one, k), d_y = data.normals(e.count(), 0.1);
                Values dz(all), dz_xc(all), magnitude(2 * all), d_gamma = data.normals(e.c), d_beta = data.normals(e.c);
                for (size_t i = 0; i < x.size(); ++i) {
                    const size_t nc = image_channel_of(e, i);
                    const double z = leaky_slope(normalised(k, nc, x[i])) * d_y[i];
                    dz[nc] += z;
                    dz_xc[nc] += z * (x[i] - k.mean[nc]);
                    magnitude[nc] += std::abs(z);
                    magnitude[all + nc] += std::abs(z) * (std::abs(x[i]) + std::abs(k.mean[nc]));
                }
                const NormCoefficients norm = upload(m, k);
                const Tensor in = m.tensor(e, x), gradient = m.tensor(e, d_y);
                const Array sums = doubles(m, 2 * e.n * e.c), gamma = m.real(d_gamma), beta = m.real(d_beta);
                m.ops().image_backward_sums(sums, norm, gradient, in);
                Values want = dz, limits;
                want.insert(want.end(), dz_xc.begin(), dz_xc.end());
                for (const double v : magnitude) limits.push_back(kSum * m.rounding() * v);
                check_within("sums", m.read(sums), want, limits);
                m.ops().group_norm_weights(gamma, beta, norm, sums, in);
                Values of_gamma, of_beta;
                for (size_t c = 0; c < d_gamma.size(); ++c) {
                    of_gamma.push_back(std::abs(d_gamma[c]));
                    of_beta.push_back(std::abs(d_beta[c]));
                }
                for (size_t nc = 0; nc < all; ++nc) {
                    const size_t c = nc % static_cast<size_t>(e.c);
                    d_gamma[c] += k.inv_std[nc] * dz_xc[nc];
                    d_beta[c] += dz[nc];
                    of_gamma[c] += k.inv_std[nc] * magnitude[all + nc];
                    of_beta[c] += magnitude[nc];
                }
                for (double& v : of_gamma) v *= kSum * m.rounding();
                for (double& v : of_beta) v *= kSum * m.rounding();
                check_within("d_gamma", m.read(gamma), d_gamma, of_gamma);
                check_within("d_beta", m.read(beta), d_beta, of_beta);
                m.ops().group_norm_backward(norm, sums, in, group);
                const double count = static_cast<double>(group * e.rows());
                Values a, b, of_a, of_b;
                for (size_t nc = 0; nc < all; ++nc) {
                    double sum_a = 0, sum_b = 0, limit_a = 0, limit_b = 0;
                    const size_t first = nc - nc % static_cast<size_t>(group);
                    for (size_t j = first; j < first + static_cast<size_t>(group); ++j) {
                        sum_a += k.scale[j] * dz_xc[j];
                        sum_b += k.scale[j] * dz[j];
                        limit_a += std::abs(k.scale[j]) * magnitude[all + j];
                        limit_b += std::abs(k.scale[j]) * magnitude[j];
                    }
                    const double square = k.inv_std[nc] * k.inv_std[nc];
                    a.push_back(-square * sum_a / count);
                    b.push_back(-sum_b / count);
                    of_a.push_back(kSum * m.rounding() * square * limit_a / count);
                    of_b.push_back(kSum * m.rounding() * limit_b / count);
                }
                check_within("a", m.read(norm.a), a, of_a);
                check_within("b", m.read(norm.b), b, of_b);
            }
    });
}

TEST_CASE("affine_norm_is_scale_times_x_plus_loc_and_either_may_be_missing") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents)
            for (const bool has_loc : {true, false})
                for (const bool has_scale : {true, false}) {
                    INFO(e.text() << (has_loc ? ", loc" : "") << (has_scale ? ", scale" : ""));
                    TestData data(23);
                    Coefficients k = random_coefficients(data, e.c);
                    for (size_t c = 0; c < k.mean.size(); ++c) {
                        k.beta[c] = 0;
                        if (!has_loc) k.mean[c] = 0;
                        if (!has_scale) k.scale[c] = 1;
                    }
                    Values loc, want, d_loc(k.mean.size()), d_scale(k.mean.size());
                    for (const double mean : k.mean) loc.push_back(-mean);
                    const Values x = away_from_the_kink(data, e, k), d_y = data.normals(e.count(), 0.1);
                    const NormCoefficients norm = unwritten_coefficients(m, e.c);
                    const Tensor in = m.tensor(e, x), y = m.unwritten(e);
                    m.ops().affine_norm(norm, has_loc ? m.real(loc) : Array{}, has_scale ? m.real(k.scale) : Array{});
                    m.ops().norm_leaky(y, in, norm);
                    Values of_loc(k.mean.size()), of_scale(k.mean.size());
                    for (size_t i = 0; i < x.size(); ++i) {
                        const size_t c = channel_of(e, i);
                        const double z = k.scale[c] * (x[i] + loc[c]), dz = leaky_slope(z) * d_y[i];
                        want.push_back(leaky(z));
                        d_loc[c] += k.scale[c] * dz;
                        d_scale[c] += dz * (x[i] + loc[c]);
                        of_loc[c] += kSum * m.rounding() * std::abs(k.scale[c] * dz);
                        of_scale[c] += kSum * m.rounding() * std::abs(dz) * (std::abs(x[i]) + std::abs(loc[c]));
                    }
                    check_close("y", m.read(y), want, m.roundings(kElementwise, kMagnitude));
                    for (const Array& zero : {norm.a, norm.b, norm.beta}) check_equal("0", m.read(zero), Values(k.mean.size()));
                    const Array sums = doubles(m, 2 * e.c), to_loc = m.real(Values(loc.size())), to_scale = m.real(Values(loc.size()));
                    m.ops().norm_backward_own_sums(sums, norm, {}, {}, m.tensor(e, d_y), in);
                    m.ops().affine_weights(has_loc ? to_loc : Array{}, has_scale ? to_scale : Array{}, norm, sums);
                    check_within("d_loc", m.read(to_loc), has_loc ? d_loc : Values(loc.size()), of_loc);
                    check_within("d_scale", m.read(to_scale), has_scale ? d_scale : Values(loc.size()), of_scale);
                }
    });
}

TEST_CASE("affine_of_moments_gives_the_batch_of_all_ranks_a_mean_of_0_and_an_unbiased_deviation_of_1") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            const double count = static_cast<double>(e.n * e.rows());
            if (count < 2) continue;  // no deviation
            INFO(e.text());
            TestData data(24);
            const Values x = data.normals(e.count(), 0.3, 1.5), of_other = data.normals(e.count(), 2, 0.5);
            const Tensor in = m.tensor(e, x), other = m.tensor(e, of_other);
            const Array all = doubles(m, 4 * e.c), loc = m.unwritten(e.c), scale = m.unwritten(e.c);
            m.ops().batch_norm_moments(all.slice(0, 2 * e.c), in);
            m.ops().batch_norm_moments(all.slice(2 * e.c, 2 * e.c), other);
            m.ops().affine_of_moments(loc, scale, all, in);
            Values mean(static_cast<size_t>(e.c)), square(static_cast<size_t>(e.c)), want_loc, want_scale;
            for (const Values* values : {&x, &of_other})
                for (size_t i = 0; i < x.size(); ++i) mean[channel_of(e, i)] += (*values)[i] / (2 * count);
            for (const Values* values : {&x, &of_other})
                for (size_t i = 0; i < x.size(); ++i) square[channel_of(e, i)] += std::pow((*values)[i] - mean[channel_of(e, i)], 2);
            for (size_t c = 0; c < mean.size(); ++c) {
                want_loc.push_back(-mean[c]);
                want_scale.push_back(1 / (std::sqrt(square[c] / (2 * count - 1)) + 1e-6));
            }
            check_close("loc", m.read(loc), want_loc, m.roundings(kStatistics));
            check_close("scale", m.read(scale), want_scale, {.relative = kStatistics * m.rounding()});
        }
    });
}

TEST_CASE("bias_gradient_adds_the_sum_of_each_channel") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(10);
            const Values d_y = data.normals(e.count(), 0.1);
            Values want = data.normals(e.c), limits;
            const Array got = m.real(want);
            for (const double v : want) limits.push_back(std::abs(v));
            for (size_t i = 0; i < d_y.size(); ++i) {
                want[channel_of(e, i)] += d_y[i];
                limits[channel_of(e, i)] += std::abs(d_y[i]);
            }
            for (double& v : limits) v *= kSum * m.rounding();
            m.ops().bias_gradient(got, m.tensor(e, d_y));
            check_within("d_bias", m.read(got), want, limits);
        }
    });
}

TEST_CASE("add_bias_adds_each_channel_s_bias_and_the_residual") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(9);
            const Values x = data.normals(e.count()), added = data.normals(e.count()), bias = data.normals(e.c);
            Values plain, with;
            const int64_t rows = e.h * e.w;
            for (size_t i = 0; i < x.size(); ++i) {
                plain.push_back(x[i] + bias[i / static_cast<size_t>(rows) % static_cast<size_t>(e.c)]);
                with.push_back(plain[i] + added[i]);
            }
            const Tensor in = m.tensor(e, x), residual = m.tensor(e, added), out = m.unwritten(e);
            const Array b = m.real(bias);
            m.ops().add_bias(out, in, b, nullptr);
            check_close("no residual", m.read(out), plain, m.roundings(1, kMagnitude));
            m.ops().add_bias(out, in, b, &residual);
            check_close("residual", m.read(out), with, m.roundings(2, kMagnitude));
            const Values got = m.read(out);
            m.ops().add_bias(in, in, b, &residual);
            check_equal("y == x", m.read(in), got);
        }
    });
}

TEST_CASE("mean_pool_is_the_mean_over_the_positions_and_its_backward_spreads_it") {
    on_every_device([](OnDevice& m) {
        for (const Extent& e : kExtents) {
            INFO(e.text());
            TestData data(11);
            const Values x = data.normals(e.count()), d_y = data.normals(e.n * e.c);
            Values y(d_y.size()), d_x(x.size());
            const double rows = static_cast<double>(e.rows());
            for (size_t i = 0; i < x.size(); ++i) {
                y[i / static_cast<size_t>(e.rows())] += x[i] / rows;
                d_x[i] = d_y[i / static_cast<size_t>(e.rows())] / rows;
            }
            const Extent pooled{.n = e.n, .c = e.c, .block = e.c};
            const Tensor in = m.tensor(e, x), out = m.unwritten(pooled), back = m.unwritten(e);
            m.ops().mean_pool(out, in);
            // One running sum over all positions: its partial sums walk up to sqrt(rows), its roundings another sqrt(rows).
            check_close("y", m.read(out), y, m.roundings(kSum));
            m.ops().mean_pool_backward(back, m.tensor(pooled, d_y));
            check_close("d_x", m.read(back), d_x, m.roundings(2));
            const Tensor sum = m.unwritten(pooled);
            m.ops().mean_pool(sum, in, PoolOver::sum);
            Values total = y, each = d_x;
            for (double& v : total) v *= rows;
            for (double& v : each) v *= rows;
            check_close("sum", m.read(sum), total, m.roundings(kSum, rows));
            m.ops().mean_pool_backward(back, m.tensor(pooled, d_y), PoolOver::sum);
            check_close("d_x of the sum", m.read(back), each, m.roundings(2));
            if (e.rows() > 1) continue;
            m.ops().mean_pool(in, in);
            check_equal("y == x", m.read(in), m.read(out));
        }
    });
}

}  // namespace
}  // namespace jem
