// A convolution with all that may be fused with it, by loops: what engines are held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "engine/device/cuda/convolution/problem.h"
#include "engine/device/reference/loops.h"
#include "kernels/norm.h"

namespace jem::conv_reference {

// As a library fuses it: one product and one sum.
template <class A>
void scale_shift_leaky(A* y, const A* x, const float* scale, const float* shift, int64_t count, int64_t channels, float slope) {
    for (int64_t i = 0; i < count; ++i) y[i] = leaky(std::fma(static_cast<float>(x[i]), scale[i % channels], shift[i % channels]), slope);
}
// sums, products [C]: of y - centre and of its square, y as it is stored: what the graph's reduction reads is the tensor that it writes.
template <class A>
void sum_around(float* sums, float* products, const A* y, const float* centre, int64_t count, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0, squares = 0;
        for (int64_t i = c; i < count; i += channels) {
            const float d = static_cast<float>(y[i]) - centre[c];
            sum += static_cast<double>(d);
            squares += static_cast<double>(d * d);
        }
        sums[c] = static_cast<float>(sum);
        products[c] = static_cast<float>(squares);
    }
}
// dz = leaky'(scale * (x - mean) + beta) * dz; sums, products [C]: of dz, as it is stored, and of dz * (x - mean).
template <class A>
void leaky_backward_sums(float* sums, float* products, A* dz, const A* x, const float* mean, const float* scale, const float* beta,
                         int64_t count, int64_t channels, float slope) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0, product = 0;
        for (int64_t i = c; i < count; i += channels) {
            const float centred = static_cast<float>(x[i]) - mean[c];
            dz[i] = leaky_backward(scale[c] * centred + beta[c], static_cast<float>(dz[i]), slope);
            sum += static_cast<double>(static_cast<float>(dz[i]));
            product += static_cast<double>(static_cast<float>(dz[i]) * centred);
        }
        sums[c] = static_cast<float>(sum);
        products[c] = static_cast<float>(product);
    }
}

inline size_t scratch_bytes(const ConvProblem& p) {
    const ConvShape& s = p.shape;
    return static_cast<size_t>(std::max(p.batch * s.in_channels * s.height * s.width, s.weight_count())) * sizeof(double);
}

// Everything that a problem asks for, by loops. scratch: scratch_bytes, for doubles of a gradient's sums, or the activated input. Returns
// the pass's output, null where that is accumulated, in f32.
template <class A>
A* convolve(const ConvProblem& p, const ConvPointers& at, std::byte* scratch) {
    const ConvShape& s = p.shape;
    const DType type = DTypeOf<A>::value;
    Tensor x{at[ConvRole::x], type, p.batch, s.in_channels, s.height, s.width, s.in_channels};
    const Tensor y{at[ConvRole::y], type, p.batch, s.out_channels, s.out_height(), s.out_width(), s.out_channels};
    const auto f32 = [&](ConvRole role) { return static_cast<float*>(at[role]); };
    auto* sums = reinterpret_cast<double*>(scratch);
    A* first = y.as<A>();
    switch (p.pass) {
        case ConvPass::forward:
            if (has_norm(p.fusion)) {
                auto* activated = reinterpret_cast<A*>(scratch);
                scale_shift_leaky<A>(activated, x.as<A>(), f32(ConvRole::scale), f32(ConvRole::shift), x.count(), x.c, p.slope);
                x.data = activated;
            }
            loops::conv_forward<A, A>(s, y, x, static_cast<const A*>(at[ConvRole::w]),
                                      p.fusion != Fusion::none ? f32(ConvRole::bias) : nullptr,
                                      has_residual(p.fusion) ? static_cast<const A*>(at[ConvRole::residual]) : nullptr);
            if (has_sums(p.fusion))
                sum_around<A>(f32(ConvRole::sum), f32(ConvRole::sum_of_products), y.as<A>(), f32(ConvRole::centre), y.count(), y.c);
            break;
        case ConvPass::backward_data:
            loops::conv_backward_data<A, A>(s, x, y, static_cast<const A*>(at[ConvRole::w]), sums);
            if (has_sums(p.fusion))
                leaky_backward_sums<A>(f32(ConvRole::sum), f32(ConvRole::sum_of_products), x.as<A>(),
                                       static_cast<const A*>(at[ConvRole::norm_input]), f32(ConvRole::centre), f32(ConvRole::scale),
                                       f32(ConvRole::shift), x.count(), x.c, p.slope);
            first = x.as<A>();
            break;
        case ConvPass::backward_weights:
            if (p.fusion == Fusion::accumulate) {
                loops::conv_backward_weights<A, A>(s, f32(ConvRole::w), x, y, sums);
                return nullptr;
            }
            first = static_cast<A*>(at[ConvRole::w]);
            for (int64_t i = 0; i < s.weight_count(); ++i) first[i] = static_cast<A>(0.0f);
            loops::conv_backward_weights<A, A>(s, first, x, y, sums);
            break;
    }
    return first;
}

}  // namespace jem::conv_reference
