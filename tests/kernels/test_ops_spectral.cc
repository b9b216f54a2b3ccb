// Spectral normalisation: estimate, weights and gradient against loops in double, and the gradient against differences.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/spectral.h"
#include "tests/check.h"
#include "tests/on_device.h"

namespace jem {
namespace {

// Rows and columns of M.
constexpr std::pair<int64_t, int64_t> kSizes[] = {{1, 1}, {3, 5}, {16, 27}, {33, 144}, {128, 27}, {16, 2304}};
// Sums of products in double, rounded once: what is left is the rounding of v and u' themselves.
constexpr double kRoundings = 8;

struct Estimate {
    Values u, v;
    double sigma = 0;
};

Estimate estimate(const Values& weights, const Values& u) {
    const size_t rows = u.size(), columns = weights.size() / rows;
    Estimate e{Values(rows), Values(columns)};
    const auto normalise = [](Values& a) {
        double square = 0;
        for (const double x : a) square += x * x;
        for (double& x : a) x /= std::sqrt(square) + 1e-12;
        return std::sqrt(square);
    };
    for (size_t o = 0; o < rows; ++o)
        for (size_t k = 0; k < columns; ++k) e.v[k] += weights[o * columns + k] * u[o];
    normalise(e.v);
    for (size_t o = 0; o < rows; ++o)
        for (size_t k = 0; k < columns; ++k) e.u[o] += weights[o * columns + k] * e.v[k];
    e.sigma = normalise(e.u);
    return e;
}

double factor(SpectralForm form, double sigma) {
    const double s = sigma + (form == SpectralForm::cap ? 1e-6 : 0);
    return form == SpectralForm::cap ? std::min(1.0, s) / s : 1 / s;
}

// Weights whose sigma is about `sigma`.
Values weights_of(TestData& data, int64_t rows, int64_t columns, const Values& u, double sigma) {
    Values w = data.normals(rows * columns);
    const double now = estimate(w, u).sigma;
    for (double& x : w) x = static_cast<float>(x * sigma / now);
    return w;
}

class OnSpectral {
public:
    OnSpectral(OnDevice& m, const Values& weights, const Values& u, SpectralForm form)
        : m_(m), weights_(m.real(weights)), u_(m.real(u)), normalised_(m.unwritten(static_cast<int64_t>(weights.size()))) {
        const Values nan(kSpectralScalars, std::nan(""));
        norm_ = {.u = m.unwritten(u_.count),
                 .v = m.unwritten(weights_.count / u_.count),
                 .scalars = {m.raw(nan.data(), nan.size() * sizeof(double)), DType::f64, kSpectralScalars},
                 .form = form};
        m.ops().spectral_norm(norm_, normalised_, weights_, u_);
    }
    Values normalised() { return m_.read(normalised_); }
    Values kept() { return m_.read(u_); }
    const SpectralNorm& norm() const { return norm_; }
    Values gradient(const Values& of_normalised) {
        const Array g = m_.real(of_normalised);
        m_.ops().spectral_backward(norm_, g, weights_);
        return m_.read(g);
    }
    void keep(const IterationState& state) { m_.ops().keep_estimate(u_, norm_, m_.state(state)); }

private:
    OnDevice& m_;
    Array weights_, u_, normalised_;
    SpectralNorm norm_;
};

TEST_CASE("spectral_norm_is_one_step_of_power_iteration_and_divides_the_weights_by_what_it_finds") {
    on_every_device([](OnDevice& m) {
        for (const auto& size : kSizes)
            for (const SpectralForm form : {SpectralForm::full, SpectralForm::cap})
                for (const double sigma : {0.4, 3.0}) {
                    const int64_t rows = size.first, columns = size.second;
                    INFO(rows << " x " << columns << ", sigma " << sigma);
                    TestData data(31);
                    const Values u = data.normals(rows), w = weights_of(data, rows, columns, u, sigma);
                    const Estimate want = estimate(w, u);
                    OnSpectral on(m, w, u, form);
                    check_close("v", m.read(on.norm().v), want.v, m.roundings(kRoundings));
                    check_close("u'", m.read(on.norm().u), want.u, m.roundings(kRoundings));
                    check_close("sigma", {m.read(on.norm().scalars)[kSigma]}, {want.sigma}, m.roundings(kRoundings, sigma));
                    Values normalised;
                    for (const double x : w) normalised.push_back(x * factor(form, want.sigma));
                    check_close("W / sigma", on.normalised(), normalised, m.roundings(kRoundings, 4));
                    check_equal("u", on.kept(), u);
                }
    });
}

TEST_CASE("spectral_backward_is_the_gradient_by_differences_with_u_and_v_held") {
    const auto device = make_reference_device(DType::f64);
    OnDevice m(*device);
    constexpr double kStep = 1e-6, kError = 1e-7;
    for (const SpectralForm form : {SpectralForm::full, SpectralForm::cap})
        for (const double sigma : {0.4, 3.0}) {
            INFO("sigma " << sigma);
            constexpr int64_t kRows = 5, kColumns = 7;
            TestData data(32);
            const Values u = data.normals(kRows), w = weights_of(data, kRows, kColumns, u, sigma), g = data.normals(kRows * kColumns);
            const Estimate held = estimate(w, u);
            const auto loss = [&](const Values& weights) {
                double s = 0, sum = 0;
                for (size_t i = 0; i < weights.size(); ++i) s += held.u[i / kColumns] * weights[i] * held.v[i % kColumns];
                for (size_t i = 0; i < weights.size(); ++i) sum += g[i] * weights[i] * factor(form, s);
                return sum;
            };
            const Values got = OnSpectral(m, w, u, form).gradient(g);
            for (size_t i = 0; i < w.size(); ++i) {
                Values more = w, less = w;
                more[i] += kStep;
                less[i] -= kStep;
                CHECK(std::abs(got[i] - (loss(more) - loss(less)) / (2 * kStep)) < kError);
            }
        }
}

TEST_CASE("spectral_backward_on_every_device_is_that_of_loops") {
    on_every_device([](OnDevice& m) {
        for (const auto& size : kSizes)
            for (const double sigma : {0.4, 3.0}) {
                const int64_t rows = size.first, columns = size.second;
                INFO(rows << " x " << columns << ", sigma " << sigma);
                TestData data(33);
                const Values u = data.normals(rows), w = weights_of(data, rows, columns, u, sigma), g = data.normals(rows * columns);
                const Estimate e = estimate(w, u);
                double along = 0, magnitude = 0;
                for (size_t i = 0; i < w.size(); ++i) along += g[i] * w[i], magnitude += std::abs(g[i] * w[i]);
                Values want, limits;
                for (size_t i = 0; i < w.size(); ++i) {
                    const double uv = e.u[i / static_cast<size_t>(columns)] * e.v[i % static_cast<size_t>(columns)], s = e.sigma;
                    want.push_back(g[i] / s - along / (s * s) * uv);
                    limits.push_back(kRoundings * m.rounding() * (std::abs(g[i]) / s + (std::abs(along) + magnitude) / (s * s) + 1));
                }
                check_within("gradient", OnSpectral(m, w, u, SpectralForm::full).gradient(g), want, limits);
            }
    });
}

TEST_CASE("the_estimate_is_kept_unless_the_state_has_diverged_and_many_of_them_find_the_largest_singular_value") {
    on_every_device([](OnDevice& m) {
        IterationState diverged;
        diverged.diverged = 1;
        const Values w = {3, 0, 0, 0, 2, 0};  // [2, 3]: singular values 3 and 2
        Values u = {0.6, 0.8};
        OnSpectral first(m, w, u, SpectralForm::full);
        const Values before = first.kept();
        first.keep(diverged);
        check_equal("u", first.kept(), before);
        double sigma = 0;
        for (int i = 0; i < 60; ++i) {
            OnSpectral next(m, w, u, SpectralForm::full);
            next.keep({});
            u = next.kept();
            sigma = m.read(next.norm().scalars)[kSigma];
        }
        CHECK(sigma == doctest::Approx(3));
    });
}

}  // namespace
}  // namespace jem
