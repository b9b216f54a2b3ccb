// Spectral normalisation (Miyato et al. 2018): a convolution's weights, seen as a matrix M [O, K], over their largest singular value, of
// which one step of power iteration makes an estimate: v = n(M^T u), u' = n(M v), sigma = u'^T M v, n(a) = a / (|a| + eps). u is kept from
// update to update; u' and v are constants of the gradient.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/state.h"

namespace jem {

inline constexpr double kSpectralEpsilon = 1e-12, kCapEpsilon = 1e-6;

enum class SpectralForm : int {
    none,
    full,  // W / sigma
    cap,   // W min(1, s) / s, s = sigma + 1e-6: only where sigma is above 1 (IGEBM)
};

// What one convolution's estimate consists of, f64: |M^T u|, sigma, and of the gradient <d W, W>.
enum SpectralScalar : int { kLengthOfV, kSigma, kAlongWeights, kSpectralScalars };

// One item is a column: v before it is normalised.
template <class R>
struct SpectralColumns {
    R* v;                  // [K]
    const R *weights, *u;  // [O, K], [O]
    int64_t rows, columns;

    JEM_HD void operator()(int64_t k) const {
        double sum = 0;
        for (int64_t o = 0; o < rows; ++o) sum += static_cast<double>(weights[o * columns + k]) * static_cast<double>(u[o]);
        v[k] = static_cast<R>(sum);
    }
};

// Reduction: a vector's length into a scalar.
template <class R>
struct Length {
    static constexpr int kSums = 1;
    double* length;

    JEM_HD void map(double (&sums)[kSums], R x) const { sums[0] = static_cast<double>(x) * static_cast<double>(x); }
    JEM_HD void finish(const double (&sums)[kSums]) const { *length = std::sqrt(sums[0]); }
};

template <class R>
struct DivideByLength {
    const double* length;

    template <class Y>
    JEM_HD void operator()(Y&& y) const {
        y = static_cast<R>(static_cast<double>(y) / (*length + kSpectralEpsilon));
    }
};

// One item is a row: u' before it is normalised, whose length is sigma.
template <class R>
struct SpectralRows {
    R* u;                  // [O]
    const R *weights, *v;  // [O, K], [K]
    int64_t columns;

    JEM_HD void operator()(int64_t o) const {
        double sum = 0;
        for (int64_t k = 0; k < columns; ++k) sum += static_cast<double>(weights[o * columns + k]) * static_cast<double>(v[k]);
        u[o] = static_cast<R>(sum);
    }
};

// What the weights are multiplied by, and what goes through it: d factor / d sigma.
struct SpectralFactor {
    const double* scalars;
    SpectralForm form;

    JEM_HD double factor() const {
        const double s = divisor();
        return form == SpectralForm::cap && s < 1 ? 1 : 1 / s;
    }
    JEM_HD double derivative() const {
        const double s = divisor();
        return form == SpectralForm::cap && s < 1 ? 0 : -1 / (s * s);
    }

private:
    JEM_HD double divisor() const { return scalars[kSigma] + (form == SpectralForm::cap ? kCapEpsilon : 0); }
};

template <class R>
struct SpectralWeights {
    SpectralFactor by;

    template <class Y>
    JEM_HD void operator()(Y&& y, R w) const {
        y = static_cast<R>(by.factor() * static_cast<double>(w));
    }
};

// Reduction: <g, w>
template <class R>
struct AlongWeights {
    static constexpr int kSums = 1;
    double* sum;

    JEM_HD void map(double (&sums)[kSums], R g, R w) const { sums[0] = static_cast<double>(g) * static_cast<double>(w); }
    JEM_HD void finish(const double (&sums)[kSums]) const { *sum = sums[0]; }
};

// One item is a value: the gradient of the normalised weights becomes that of the weights.
template <class R>
struct SpectralGradient {
    R* gradient;     // [O, K]
    const R *u, *v;  // u'
    int64_t columns;
    SpectralFactor by;

    JEM_HD void operator()(int64_t i) const {
        const double through = by.derivative() * by.scalars[kAlongWeights];
        gradient[i] = static_cast<R>(by.factor() * static_cast<double>(gradient[i]) +
                                     through * static_cast<double>(u[i / columns]) * static_cast<double>(v[i % columns]));
    }
};

// u = u', unless the state has diverged.
template <class R>
struct KeepUnlessDiverged {
    const IterationState* state;

    template <class Y>
    JEM_HD void operator()(Y&& kept, R next) const {
        if (state->diverged == 0) kept = next;
    }
};

}  // namespace jem
