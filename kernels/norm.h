// Normalisation and LeakyReLU: forward, the two sums of the backward pass, backward.
// With xc = x - mean: z = scale * xc + beta, y = leaky(z), scale = gamma / sqrt(var + eps) (Ioffe & Szegedy 2015).
// Forward and backward compute z by the same expression, so that both see the same side of the kink.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/state.h"

namespace jem {

inline constexpr double kLeakySlope = 0.2;
inline constexpr double kNormEpsilon = 1e-5;
inline constexpr double kNormMomentum = 0.9;  // running = 0.1 * running + 0.9 * batch

template <class R>
JEM_HD R leaky(R z) {
    return z > R(0) ? z : R(kLeakySlope) * z;
}
template <class R>
JEM_HD R leaky_backward(R z, R d_y) {
    return z > R(0) ? d_y : R(kLeakySlope) * d_y;
}
template <class R>
JEM_HD R normalised(R x, R mean, R scale, R beta) {
    return std::fma(x - mean, scale, beta);
}

template <class R>
struct Leaky {
    template <class Y>
    JEM_HD void operator()(Y&& y, R x) const {
        y = leaky(x);
    }
};

// d_x = leaky'(x) * d_y + residual
template <class R>
struct LeakyBackward {
    template <class Y>
    JEM_HD void operator()(Y&& d_x, R d_y, R x, R residual) const {
        d_x = leaky_backward(x, d_y) + residual;
    }
};

template <class R>
struct NormShift {
    template <class Y>
    JEM_HD void operator()(Y&& shift, R mean, R scale, R beta) const {
        shift = std::fma(-mean, scale, beta);
    }
};

template <class R>
struct NormLeaky {
    template <class Y>
    JEM_HD void operator()(Y&& y, R x, R mean, R scale, R beta) const {
        y = leaky(normalised(x, mean, scale, beta));
    }
};

// d_x = scale * dz + a * xc + b + residual, where a and b carry what flows through the batch's mean and variance
// (a = b = 0 for running statistics).
template <class R>
struct NormLeakyBackward {
    template <class Y>
    JEM_HD void operator()(Y&& d_x, R d_y, R x, R residual, R mean, R scale, R beta, R a, R b) const {
        const R dz = leaky_backward(normalised(x, mean, scale, beta), d_y);
        d_x = std::fma(scale, dz, std::fma(a, x - mean, b)) + residual;
    }
};

// Column reduction: mean and variance of a channel over N, H, W. Values are shifted by the channel's first one, so that
// the sum of squares does not cancel.
template <class R, class A>
struct BatchNormStatistics {
    static constexpr int kSums = 2;
    R *mean, *inv_std, *scale;      // [C], written
    const R* gamma;                 // [C]
    const A* first;                 // the activations; value (image 0, row 0) of channel c is first_of(c)
    R *running_mean, *running_var;  // [C], updated unless null
    const IterationState* state;
    int64_t rows, block;  // of the layout, to find the first value
    double count;         // N * H * W

    JEM_HD R first_of(int64_t channel) const { return first[channel / block * rows * block + channel % block]; }

    JEM_HD void map(R (&sums)[kSums], R x, R shift) const {
        const R d = x - shift;
        sums[0] = d;
        sums[1] = d * d;
    }
    JEM_HD void finish(int64_t c, const double (&sums)[kSums]) const {
        const double shifted_mean = sums[0] / count;
        const double batch_mean = static_cast<double>(first_of(c)) + shifted_mean;
        double var = sums[1] / count - shifted_mean * shifted_mean;
        if (var < 0) var = 0;  // keeps a NaN
        const double inverse = 1.0 / std::sqrt(var + kNormEpsilon);
        mean[c] = static_cast<R>(batch_mean);
        inv_std[c] = static_cast<R>(inverse);
        scale[c] = static_cast<R>(static_cast<double>(gamma[c]) * inverse);
        const bool finite = batch_mean - batch_mean == 0 && var - var == 0;
        if (running_mean == nullptr || !finite || state->diverged != 0) return;
        const double unbiased = count > 1 ? var * count / (count - 1) : var;
        running_mean[c] = static_cast<R>((1 - kNormMomentum) * static_cast<double>(running_mean[c]) + kNormMomentum * batch_mean);
        running_var[c] = static_cast<R>((1 - kNormMomentum) * static_cast<double>(running_var[c]) + kNormMomentum * unbiased);
    }
};

// Per channel: coefficients from the running statistics (evaluation). The backward pass then has a = b = 0.
template <class R>
struct RunningNormCoefficients {
    R *mean, *inv_std, *scale, *a, *b;
    const R *gamma, *running_mean, *running_var;

    JEM_HD void operator()(int64_t c) const {
        const double inverse = 1.0 / std::sqrt(static_cast<double>(running_var[c]) + kNormEpsilon);
        mean[c] = running_mean[c];
        inv_std[c] = static_cast<R>(inverse);
        scale[c] = static_cast<R>(static_cast<double>(gamma[c]) * inverse);
        a[c] = R(0);
        b[c] = R(0);
    }
};

// Column reduction: sum(dz) and sum(dz * xc), from which follow d_beta, d_gamma and the coefficients a, b of the backward pass.
template <class R>
struct NormBackwardSums {
    static constexpr int kSums = 2;
    R *a, *b;             // [C], written
    R *d_gamma, *d_beta;  // [C], accumulated into unless null
    const R *inv_std, *scale_of;
    double count;  // N * H * W

    JEM_HD void map(R (&sums)[kSums], R d_y, R x, R mean, R scale, R beta) const {
        const R dz = leaky_backward(normalised(x, mean, scale, beta), d_y);
        sums[0] = dz;
        sums[1] = dz * (x - mean);
    }
    JEM_HD void finish(int64_t c, const double (&sums)[kSums]) const {
        const double inverse = inv_std[c], scale = scale_of[c];
        a[c] = static_cast<R>(-scale * inverse * inverse * sums[1] / count);
        b[c] = static_cast<R>(-scale * sums[0] / count);
        if (d_gamma == nullptr) return;
        d_gamma[c] += static_cast<R>(inverse * sums[1]);
        d_beta[c] += static_cast<R>(sums[0]);
    }
};

// Column reduction: d_bias[c] += sum over N, H, W of d_y.
template <class R>
struct BiasGradient {
    static constexpr int kSums = 1;
    R* d_bias;

    JEM_HD void map(R (&sums)[kSums], R d_y) const { sums[0] = d_y; }
    JEM_HD void finish(int64_t c, const double (&sums)[kSums]) const { d_bias[c] += static_cast<R>(sums[0]); }
};

// Element (n, c): mean over the spatial extent. [N, C/B, H*W, B] -> [N, C]
template <class Out, class In>
struct MeanPool {
    Out* y;
    const In* x;
    int64_t rows, block;

    JEM_HD void operator()(int64_t i) const {
        const In* first = x + i / block * rows * block + i % block;
        Out sum = Out(0);
        for (int64_t r = 0; r < rows; ++r) sum += static_cast<Out>(first[r * block]);
        y[i] = sum / static_cast<Out>(rows);
    }
};

// The other way: every position receives d_y / (H*W).
template <class Out, class In>
struct MeanPoolBackward {
    Out* d_x;
    const In* d_y;
    int64_t rows, block;

    JEM_HD void operator()(int64_t i) const {
        const int64_t plane = i / (rows * block), lane = i % block;
        d_x[i] = static_cast<Out>(d_y[plane * block + lane] / static_cast<In>(rows));
    }
};

}  // namespace jem
