// Every convolution and product as the loops of its definition, sums in double. One thread, no allocation: what the reference device
// runs, and what the tests launch as a kernel of one thread in place of cuDNN.
//
// A is the activation type, in which factors enter; an operand of another type is rounded to A when it is read (a stem's pixels).
#pragma once

#include "engine/device/device.h"

namespace jem::loops {

// As a double; types narrower than f32 convert by way of it.
template <class T>
double number(T value) {
    if constexpr (sizeof(T) < sizeof(float))
        return static_cast<double>(static_cast<float>(value));
    else
        return static_cast<double>(value);
}
template <class T>
T rounded(double value) {
    if constexpr (sizeof(T) < sizeof(float))
        return static_cast<T>(static_cast<float>(value));
    else
        return static_cast<T>(value);
}

inline int64_t offset(const Tensor& t, int64_t n, int64_t c, int64_t row, int64_t column) {
    return ((n * (t.c / t.block) + c / t.block) * t.h * t.w + row * t.w + column) * t.block + c % t.block;
}
inline int64_t weight(const ConvShape& s, int64_t o, int64_t ky, int64_t kx, int64_t i) {
    return ((o * s.kernel.height + ky) * s.kernel.width + kx) * s.in_channels + i;
}

template <class Body>
void for_outputs(const ConvShape& s, const Tensor& y, Body body) {
    for (int64_t n = 0; n < y.n; ++n)
        for (int64_t o = 0; o < s.out_channels; ++o)
            for (int64_t row = 0; row < s.out_height(); ++row)
                for (int64_t column = 0; column < s.out_width(); ++column) body(n, o, row, column);
}
template <class Body>
void for_taps(const ConvShape& s, int64_t row, int64_t column, Body body) {
    for (int64_t ky = 0; ky < s.kernel.height; ++ky)
        for (int64_t kx = 0; kx < s.kernel.width; ++kx) {
            const int64_t iy = row * s.stride.height + ky - s.padding.height, ix = column * s.stride.width + kx - s.padding.width;
            if (iy >= 0 && iy < s.height && ix >= 0 && ix < s.width) body(ky, kx, iy, ix);
        }
}

// to A [count] = from R [count]
template <class A, class R>
void convert_weights(A* to, const R* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(from[i]);
}

// y A = conv(x X) + bias R [O] unless null, + residual A unless null; w A [O, H, W, I]
template <class A, class X, class R>
void conv_forward(const ConvShape& s, const Tensor& y, const Tensor& x, const A* w, const R* bias, const A* residual) {
    const X* from = x.as<X>();
    A* to = y.as<A>();
    for_outputs(s, y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
        double sum = bias != nullptr ? number(bias[o]) : 0;
        for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
            for (int64_t i = 0; i < s.in_channels; ++i)
                sum += number(static_cast<A>(from[offset(x, n, i, iy, ix)])) * number(w[weight(s, o, ky, kx, i)]);
        });
        const int64_t at = offset(y, n, o, row, column);
        if (residual != nullptr) sum += number(residual[at]);
        to[at] = rounded<A>(sum);
    });
}

// d_x X = the gradient of x; sums: scratch, one for each element of d_x.
template <class A, class X>
void conv_backward_data(const ConvShape& s, const Tensor& d_x, const Tensor& d_y, const A* w, double* sums) {
    const A* from = d_y.as<A>();
    X* to = d_x.as<X>();
    for (int64_t i = 0; i < d_x.count(); ++i) sums[i] = 0;
    for_outputs(s, d_y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
        const double d = number(from[offset(d_y, n, o, row, column)]);
        for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
            for (int64_t i = 0; i < s.in_channels; ++i) sums[offset(d_x, n, i, iy, ix)] += d * number(w[weight(s, o, ky, kx, i)]);
        });
    });
    for (int64_t i = 0; i < d_x.count(); ++i) to[i] = rounded<X>(sums[i]);
}

// d_w R [O, H, W, I] += the gradient of the weights; sums: scratch, one for each weight.
template <class A, class X, class R>
void conv_backward_weights(const ConvShape& s, R* d_w, const Tensor& x, const Tensor& d_y, double* sums) {
    const X* from = x.as<X>();
    const A* gradient = d_y.as<A>();
    for (int64_t i = 0; i < s.weight_count(); ++i) sums[i] = 0;
    for_outputs(s, d_y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
        const double d = number(gradient[offset(d_y, n, o, row, column)]);
        for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
            for (int64_t i = 0; i < s.in_channels; ++i)
                sums[weight(s, o, ky, kx, i)] += d * number(static_cast<A>(from[offset(x, n, i, iy, ix)]));
        });
    });
    for (int64_t i = 0; i < s.weight_count(); ++i) d_w[i] = d_w[i] + static_cast<R>(sums[i]);
}

// The linear head: y R [N, out] = x R [N, in] w^T + b; w R [out, in], b R [out]
template <class R>
void linear_forward(R* y, const R* x, const R* w, const R* b, int64_t batch, int64_t in, int64_t out) {
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t o = 0; o < out; ++o) {
            double sum = number(b[o]);
            for (int64_t i = 0; i < in; ++i) sum += number(x[n * in + i]) * number(w[o * in + i]);
            y[n * out + o] = static_cast<R>(sum);
        }
}
template <class R>
void linear_backward_data(R* d_x, const R* d_y, const R* w, int64_t batch, int64_t in, int64_t out) {
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t i = 0; i < in; ++i) {
            double sum = 0;
            for (int64_t o = 0; o < out; ++o) sum += number(d_y[n * out + o]) * number(w[o * in + i]);
            d_x[n * in + i] = static_cast<R>(sum);
        }
}
// d_w += the gradient of the weights
template <class R>
void linear_backward_weights(R* d_w, const R* x, const R* d_y, int64_t batch, int64_t in, int64_t out) {
    for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) {
            double sum = 0;
            for (int64_t n = 0; n < batch; ++n) sum += number(d_y[n * out + o]) * number(x[n * in + i]);
            d_w[o * in + i] += static_cast<R>(sum);
        }
}

}  // namespace jem::loops
