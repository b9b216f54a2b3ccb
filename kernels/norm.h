// Normalisation and LeakyReLU (of any slope): forward, the two sums of the backward pass, backward.
// With xc = x - mean: z = scale * xc + beta, y = leaky(z), scale = gamma / sqrt(var + eps) (Ioffe & Szegedy 2015).
// Forward and backward compute z by the same expression, so that both see the same side of the kink.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/state.h"

namespace jem {

// What a layer has where it says nothing else.
inline constexpr double kLeakySlope = 0.2;  // 0: ReLU
inline constexpr double kNormEpsilon = 1e-5;
inline constexpr double kNormMomentum = 0.9;  // running = (1 - momentum) * running + momentum * batch

template <class R>
JEM_HD R leaky(R z, R slope) {
    return z > R(0) ? z : slope * z;
}
template <class R>
JEM_HD R leaky_backward(R z, R d_y, R slope) {
    return z > R(0) ? d_y : slope * d_y;
}
template <class R>
JEM_HD R normalised(R x, R mean, R scale, R beta) {
    return std::fma(x - mean, scale, beta);
}

template <class R>
struct Leaky {
    R slope;
    template <class Y>
    JEM_HD void operator()(Y&& y, R x) const {
        y = leaky(x, slope);
    }
};

// d_x = leaky'(x) * d_y + residual
template <class R>
struct LeakyBackward {
    R slope;
    template <class Y>
    JEM_HD void operator()(Y&& d_x, R d_y, R x, R residual) const {
        d_x = leaky_backward(x, d_y, slope) + residual;
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
    R slope;
    template <class Y>
    JEM_HD void operator()(Y&& y, R x, R mean, R scale, R beta) const {
        y = leaky(normalised(x, mean, scale, beta), slope);
    }
};

// d_x = scale * dz + a * xc + b + residual, where a and b carry what flows through the batch's mean and variance
// (a = b = 0 for running statistics).
template <class R>
struct NormBackward {
    template <class Y>
    JEM_HD void operator()(Y&& d_x, R dz, R x, R residual, R mean, R scale, R a, R b) const {
        d_x = std::fma(scale, dz, std::fma(a, x - mean, b)) + residual;
    }
};

// The same from d_y, the gradient behind the LeakyReLU.
template <class R>
struct NormLeakyBackward {
    R slope;
    template <class Y>
    JEM_HD void operator()(Y&& d_x, R d_y, R x, R residual, R mean, R scale, R beta, R a, R b) const {
        NormBackward<R>{}(d_x, leaky_backward(normalised(x, mean, scale, beta), d_y, slope), x, residual, mean, scale, a, b);
    }
};

// What a batch's mean and variance become.
template <class R>
struct NormOfBatch {
    R *mean, *inv_std, *scale;      // [C], written
    const R* gamma;                 // [C]
    R *running_mean, *running_var;  // [C], updated unless null
    const R* left_out;              // [C], a bias that the values go without, though the running mean has it; null: none
    const IterationState* state;
    double epsilon, momentum;

    // var: biased, of count values
    JEM_HD void set(int64_t c, double batch_mean, double var, double count) const {
        if (var < 0) var = 0;  // keeps a NaN
        const double inverse = 1.0 / std::sqrt(var + epsilon);
        mean[c] = static_cast<R>(batch_mean);
        inv_std[c] = static_cast<R>(inverse);
        scale[c] = static_cast<R>(static_cast<double>(gamma[c]) * inverse);
        const bool finite = batch_mean - batch_mean == 0 && var - var == 0;
        if (running_mean == nullptr || !finite || state->diverged != 0) return;
        const double unbiased = count > 1 ? var * count / (count - 1) : var;
        const double whole = left_out == nullptr ? batch_mean : batch_mean + static_cast<double>(left_out[c]);
        running_mean[c] = static_cast<R>((1 - momentum) * static_cast<double>(running_mean[c]) + momentum * whole);
        running_var[c] = static_cast<R>((1 - momentum) * static_cast<double>(running_var[c]) + momentum * unbiased);
    }
};

// Column reduction: mean and variance of a channel over N, H, W. Values are shifted by the channel's first one, so that
// the sum of squares does not cancel.
template <class R, class A>
struct BatchNormStatistics {
    static constexpr int kSums = 2;
    NormOfBatch<R> out;
    const A* first;       // the activations; value (image 0, row 0) of channel c is first_of(c)
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
        out.set(c, static_cast<double>(first_of(c)) + shifted_mean, sums[1] / count - shifted_mean * shifted_mean, count);
    }
};

// One item is one channel: the same from sums over N, H, W that a convolution left, of y - centre and of its square. They are f32, so
// the variance's relative error is some roundings of 2^-24 times 1 + (mean - centre)^2 / var: without a centre, a mean of 100
// deviations would cost four of f32's seven digits. The centre is the running mean before this batch: from the second update on
// within a few deviations of the batch's mean; before the first it is zero, as a fresh network's means are within a deviation or so.
template <class R>
struct BatchNormOfSums {
    NormOfBatch<R> out;
    const R* sums;    // [2, C]
    const R* centre;  // [C], may be out.running_mean
    int64_t channels;
    double count;

    JEM_HD void operator()(int64_t c) const {
        const double from_centre = static_cast<double>(sums[c]) / count, square = static_cast<double>(sums[channels + c]) / count;
        out.set(c, static_cast<double>(centre[c]) + from_centre, square - from_centre * from_centre, count);
    }
};

// The same of one rank's share of a batch, to be joined with the others': mean and M2 = sum of (x - mean)^2.
template <class R, class A>
struct BatchNormMoments {
    static constexpr int kSums = 2;
    double *mean, *m2;  // [C], written
    const A* first;
    int64_t rows, block;
    double count;  // of this rank

    JEM_HD R first_of(int64_t channel) const { return first[channel / block * rows * block + channel % block]; }

    JEM_HD void map(R (&sums)[kSums], R x, R shift) const {
        const R d = x - shift;
        sums[0] = d;
        sums[1] = d * d;
    }
    JEM_HD void finish(int64_t c, const double (&sums)[kSums]) const {
        const double shifted_mean = sums[0] / count;
        mean[c] = static_cast<double>(first_of(c)) + shifted_mean;
        m2[c] = sums[1] - sums[0] * shifted_mean;
    }
};

// Mean and M2 of `shares` sets of count values each, joined in their order (Chan, Golub & LeVeque 1979). Neighbouring sets' lie `stride`
// apart.
struct JoinedMoments {
    double mean = 0, m2 = 0;
};
JEM_HD inline JoinedMoments joined_moments(const double* means, const double* m2s, int64_t shares, int64_t stride, double count) {
    JoinedMoments all;
    JEM_UNROLL(1)
    for (int64_t i = 0; i < shares; ++i) all.mean += means[i * stride];
    all.mean /= static_cast<double>(shares);
    JEM_UNROLL(1)
    for (int64_t i = 0; i < shares; ++i) {
        const double d = means[i * stride] - all.mean;
        all.m2 += m2s[i * stride] + count * d * d;
    }
    return all;
}
// The same of a channel's over all ranks: [ranks, 2, C].
JEM_HD inline JoinedMoments moments_of_ranks(const double* moments, int64_t ranks, int64_t channels, int64_t c, double count) {
    return joined_moments(moments + c, moments + channels + c, ranks, 2 * channels, count);
}

// One item is one channel.
template <class R>
struct JoinMoments {
    NormOfBatch<R> out;
    const double* moments;  // [ranks, 2, C]: mean, M2
    int64_t ranks, channels;
    double count;  // of each rank

    JEM_HD void operator()(int64_t c) const {
        const JoinedMoments joined = moments_of_ranks(moments, ranks, channels, c, count);
        const double all = count * static_cast<double>(ranks);
        out.set(c, joined.mean, joined.m2 / all, all);
    }
};

// Per channel: coefficients from the running statistics (evaluation). The backward pass then has a = b = 0.
template <class R>
struct RunningNormCoefficients {
    R *mean, *inv_std, *scale, *a, *b;
    const R *gamma, *running_mean, *running_var;
    double epsilon;

    JEM_HD void operator()(int64_t c) const {
        const double inverse = 1.0 / std::sqrt(static_cast<double>(running_var[c]) + epsilon);
        mean[c] = running_mean[c];
        inv_std[c] = static_cast<R>(inverse);
        scale[c] = static_cast<R>(static_cast<double>(gamma[c]) * inverse);
        a[c] = R(0);
        b[c] = R(0);
    }
};

// a and b of the backward pass from sum(dz) and sum(dz * xc).
template <class R>
struct NormBackwardCoefficients {
    R *a, *b;  // [C], written
    const R *inv_std, *scale;
    double count;  // values a channel

    JEM_HD void set(int64_t c, double sum_dz, double sum_dz_xc) const {
        const double inverse = inv_std[c], factor = scale[c];
        a[c] = static_cast<R>(-factor * inverse * inverse * sum_dz_xc / count);
        b[c] = static_cast<R>(-factor * sum_dz / count);
    }
};

// Column reduction: sum(dz) and sum(dz * xc), from which follow d_beta, d_gamma and the coefficients a, b of the backward pass.
template <class R>
struct NormBackwardSums {
    static constexpr int kSums = 2;
    NormBackwardCoefficients<R> out;
    double* own_sums;     // [2, C]: where not null, the sums are left there and `out` is not written
    R *d_gamma, *d_beta;  // [C], accumulated into unless null
    int64_t channels;
    R slope;

    JEM_HD void map(R (&sums)[kSums], R d_y, R x, R mean, R scale, R beta) const {
        const R dz = leaky_backward(normalised(x, mean, scale, beta), d_y, slope);
        sums[0] = dz;
        sums[1] = dz * (x - mean);
    }
    JEM_HD void finish(int64_t c, const double (&sums)[kSums]) const {
        if (own_sums != nullptr) {
            own_sums[c] = sums[0];
            own_sums[channels + c] = sums[1];
        } else {
            out.set(c, sums[0], sums[1]);
        }
        if (d_gamma == nullptr) return;
        d_gamma[c] += static_cast<R>(static_cast<double>(out.inv_std[c]) * sums[1]);
        d_beta[c] += static_cast<R>(sums[0]);
    }
};

// One item is one channel: the same from sums over N, H, W that a convolution left, of dz and of dz * xc.
template <class R>
struct NormBackwardOfSums {
    NormBackwardSums<R> out;
    const R* sums;  // [2, C]

    JEM_HD void operator()(int64_t c) const { out.finish(c, {static_cast<double>(sums[c]), static_cast<double>(sums[out.channels + c])}); }
};

// One item is one channel: the sums of all ranks, added in their order.
template <class R>
struct JoinBackwardSums {
    NormBackwardCoefficients<R> out;
    const double* sums;  // [ranks, 2, C]
    int64_t ranks, channels;

    JEM_HD void operator()(int64_t c) const {
        double dz = 0, dz_xc = 0;
        for (int64_t r = 0; r < ranks; ++r) {
            dz += sums[2 * r * channels + c];
            dz_xc += sums[(2 * r + 1) * channels + c];
        }
        out.set(c, dz, dz_xc);
    }
};

// Norms of each image: as many coefficients as images times channels, n * C + c; the channels of a group share mean and variance. One
// channel a group is instance norm (Ulyanov et al. 2016), all of them layer norm over C, H, W (Ba et al. 2016; PyTorch's GroupNorm(1, C)).
// One item is one group of one image.
template <class R>
struct GroupNormCoefficients {
    R *mean, *inv_std, *scale, *beta;  // [N, C], written
    const R *gamma, *beta_of_channel;  // [C]
    const double* moments;             // [2, N, C]: mean and M2 of each channel of an image
    int64_t images, channels, group;
    double rows, epsilon;

    JEM_HD void operator()(int64_t item) const {
        const int64_t first = item * group, all = images * channels;
        const JoinedMoments joined = joined_moments(moments + first, moments + all + first, group, 1, rows);
        const double var = joined.m2 / (rows * static_cast<double>(group)), inverse = 1.0 / std::sqrt((var < 0 ? 0 : var) + epsilon);
        JEM_UNROLL(1)
        for (int64_t i = first; i < first + group; ++i) {
            const int64_t c = i - first + first % channels;
            mean[i] = static_cast<R>(joined.mean);
            inv_std[i] = static_cast<R>(inverse);
            scale[i] = static_cast<R>(static_cast<double>(gamma[c]) * inverse);
            beta[i] = beta_of_channel[c];
        }
    }
};

// a and b of the backward pass, as NormBackwardCoefficients, of a group: its channels' scales differ.
template <class R>
struct GroupNormBackward {
    R *a, *b;  // [N, C], written
    const R *inv_std, *scale;
    const double* sums;  // [2, N, C]: of dz and of dz * xc of each channel of an image
    int64_t images, channels, group;
    double rows;

    JEM_HD void operator()(int64_t item) const {
        const int64_t first = item * group, all = images * channels;
        double dz = 0, dz_xc = 0;
        JEM_UNROLL(1)
        for (int64_t i = first; i < first + group; ++i) {
            dz += static_cast<double>(scale[i]) * sums[i];
            dz_xc += static_cast<double>(scale[i]) * sums[all + i];
        }
        const double count = rows * static_cast<double>(group), inverse = inv_std[first];
        JEM_UNROLL(1)
        for (int64_t i = first; i < first + group; ++i) {
            a[i] = static_cast<R>(-inverse * inverse * dz_xc / count);
            b[i] = static_cast<R>(-dz / count);
        }
    }
};

// One item is one channel: the gradients of gamma and beta, accumulated.
template <class R>
struct GroupNormWeights {
    R *d_gamma, *d_beta;  // [C]
    const R* inv_std;     // [N, C]
    const double* sums;   // [2, N, C]
    int64_t images, channels;

    JEM_HD void operator()(int64_t c) const {
        double gamma = 0, beta = 0;
        for (int64_t i = c; i < images * channels; i += channels) {
            gamma += static_cast<double>(inv_std[i]) * sums[images * channels + i];
            beta += sums[i];
        }
        d_gamma[c] += static_cast<R>(gamma);
        d_beta[c] += static_cast<R>(beta);
    }
};

// y = scale * (x + loc), no statistics (Glow's act norm, Kingma & Dhariwal 2018): the coefficients that make a norm of it. One item is one
// channel.
template <class R>
struct AffineCoefficients {
    R *mean, *inv_std, *scale, *beta, *a, *b;  // [C], written
    const R *loc, *factor;                     // [C]; null: 0 and 1

    JEM_HD void operator()(int64_t c) const {
        mean[c] = loc != nullptr ? -loc[c] : R(0);
        inv_std[c] = R(1);
        scale[c] = factor != nullptr ? factor[c] : R(1);
        beta[c] = R(0);
        a[c] = R(0);
        b[c] = R(0);
    }
};

template <class R>
struct AffineWeights {
    R *d_loc, *d_factor;  // [C], accumulated into unless null
    const R* scale;       // [C]
    const double* sums;   // [2, C]: of dz and of dz * (x + loc)
    int64_t channels;

    JEM_HD void operator()(int64_t c) const {
        if (d_loc != nullptr) d_loc[c] += static_cast<R>(static_cast<double>(scale[c]) * sums[c]);
        if (d_factor != nullptr) d_factor[c] += static_cast<R>(sums[channels + c]);
    }
};

// From the moments of all ranks: loc and scale that give the batch a mean of 0 and a deviation of 1 (unbiased; epsilon outside the root).
template <class R>
struct AffineOfMoments {
    static constexpr double kEpsilon = 1e-6;
    R *loc, *factor;        // [C], written
    const double* moments;  // [ranks, 2, C]: mean, M2
    int64_t ranks, channels;
    double count;  // of each rank

    JEM_HD void operator()(int64_t c) const {
        const JoinedMoments joined = moments_of_ranks(moments, ranks, channels, c, count);
        const double all = count * static_cast<double>(ranks);
        loc[c] = static_cast<R>(-joined.mean);
        factor[c] = static_cast<R>(1 / (std::sqrt(joined.m2 / (all > 1 ? all - 1 : 1)) + kEpsilon));
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

// Element (n, c): mean over the spatial extent, or sum. [N, C/B, H*W, B] -> [N, C]
template <class Out, class In>
struct MeanPool {
    Out* y;
    const In* x;
    int64_t rows, block;
    Out divisor;  // H*W, or 1

    JEM_HD void operator()(int64_t i) const {
        const In* first = x + i / block * rows * block + i % block;
        Out sum = Out(0);
        for (int64_t r = 0; r < rows; ++r) sum += static_cast<Out>(first[r * block]);
        y[i] = sum / divisor;
    }
};

// The other way: every position receives d_y / (H*W), or d_y.
template <class R>
struct MeanPoolBackward {
    R share;  // 1 / (H*W), or 1

    template <class Y>
    JEM_HD void operator()(Y&& d_x, R d_y) const {
        d_x = d_y * share;
    }
};

}  // namespace jem
