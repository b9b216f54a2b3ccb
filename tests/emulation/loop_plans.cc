#include "tests/emulation/loop_plans.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/runtime.h"
#include "engine/device/reference/loops.h"
#include "kernels/norm.h"

namespace jem {

template <>
struct DTypeOf<__nv_bfloat16> {
    static constexpr DType value = DType::bf16;
};

namespace {

template <class A>
__global__ void prepare_weights(A* to, const float* from, int64_t count) {
    loops::convert_weights(to, from, count);
}
// As a library fuses it: one product and one sum.
template <class A>
__global__ void scale_shift_leaky(A* y, const A* x, const float* scale, const float* shift, int64_t count, int64_t channels) {
    for (int64_t i = 0; i < count; ++i) y[i] = leaky(std::fma(static_cast<float>(x[i]), scale[i % channels], shift[i % channels]));
}
// sums [2, C]: of y - centre and of its square, y as it is stored: what the graph's reduction reads is the tensor that it writes.
template <class A>
__global__ void sum_around(float* sums, const A* y, const float* centre, int64_t count, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0, squares = 0;
        for (int64_t i = c; i < count; i += channels) {
            const float d = static_cast<float>(y[i]) - centre[c];
            sum += static_cast<double>(d);
            squares += static_cast<double>(d * d);
        }
        sums[c] = static_cast<float>(sum);
        sums[channels + c] = static_cast<float>(squares);
    }
}
// dz = leaky'(scale * (x - mean) + beta) * dz; sums [2, C]: of dz, as it is stored, and of dz * (x - mean).
template <class A>
__global__ void leaky_backward_sums(float* sums, A* dz, const A* x, const float* mean, const float* scale, const float* beta, int64_t count,
                                    int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0, products = 0;
        for (int64_t i = c; i < count; i += channels) {
            const float centred = static_cast<float>(x[i]) - mean[c];
            dz[i] = leaky_backward(scale[c] * centred + beta[c], static_cast<float>(dz[i]));
            sum += static_cast<double>(static_cast<float>(dz[i]));
            products += static_cast<double>(static_cast<float>(dz[i]) * centred);
        }
        sums[c] = static_cast<float>(sum);
        sums[channels + c] = static_cast<float>(products);
    }
}
template <class A, class X>
__global__ void conv_forward(ConvShape s, Tensor y, Tensor x, const A* w, const float* bias, const A* residual) {
    loops::conv_forward<A, X>(s, y, x, w, bias, residual);
}
template <class A, class X>
__global__ void conv_backward_data(ConvShape s, Tensor d_x, Tensor d_y, const A* w, double* sums) {
    loops::conv_backward_data<A, X>(s, d_x, d_y, w, sums);
}
template <class A, class X>
__global__ void conv_backward_weights(ConvShape s, float* d_w, Tensor x, Tensor d_y, double* sums) {
    loops::conv_backward_weights<A, X>(s, d_w, x, d_y, sums);
}
__global__ void linear_forward(float* y, const float* x, const float* w, const float* b, int64_t batch, int64_t in, int64_t out) {
    loops::linear_forward(y, x, w, b, batch, in, out);
}
__global__ void linear_backward_data(float* d_x, const float* d_y, const float* w, int64_t batch, int64_t in, int64_t out) {
    loops::linear_backward_data(d_x, d_y, w, batch, in, out);
}
__global__ void linear_backward_weights(float* d_w, const float* x, const float* d_y, int64_t batch, int64_t in, int64_t out) {
    loops::linear_backward_weights(d_w, x, d_y, batch, in, out);
}

template <class... P, class... Args>
void launch(CudaLauncher& launcher, const char* label, double flops, void (*kernel)(P...), Args... args) {
    if (!launcher.announce(label, {.flops = flops})) return;
    const cudaLaunchConfig_t config = {
        .gridDim = 1, .blockDim = 1, .dynamicSmemBytes = 0, .stream = launcher.stream(), .attrs = nullptr, .numAttrs = 0};
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
    launcher.launched();
    cuda::check(status, label);
}

template <class A>
class LoopConvPlan final : public ConvPlan {
public:
    LoopConvPlan(CudaLauncher& launcher, Ops& ops, Fusion fusion, const ConvShape& shape, const ConvOptions& options)
        : launcher_(launcher),
          ops_(ops),
          activation_(fusion == Fusion::activation || fusion == Fusion::both),
          sums_(fusion == Fusion::sums || fusion == Fusion::both),
          shape_(shape) {
        for (const auto* batches : {&options.batches, &options.forward_only})
            for (const int64_t batch : *batches) max_batch_ = std::max(max_batch_, batch);
    }

    size_t prepared_bytes() const override { return static_cast<size_t>(shape_.weight_count()) * sizeof(A); }
    size_t workspace_bytes() const override {
        return static_cast<size_t>(std::max(max_batch_ * shape_.in_channels * shape_.height * shape_.width, shape_.weight_count())) *
                   sizeof(double) +
               static_cast<size_t>(shape_.in_channels) * sizeof(float);
    }
    void prepare(std::byte* prepared, Array weights, std::byte*) override {
        launch(launcher_, "prepare_weights", 0, prepare_weights<A>, reinterpret_cast<A*>(prepared), weights.as<float>(), weights.count);
    }
    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual, std::byte*) override {
        launch(launcher_, "conv_forward", flops(x.n), images(x) ? conv_forward<A, float> : conv_forward<A, A>, shape_, y, x,
               reinterpret_cast<const A*>(prepared), bias.as<float>(), residual != nullptr ? residual->as<A>() : nullptr);
    }
    ConvFusion fuses(int64_t, ConvFusion wanted, bool) const override {
        return {.activation = wanted.activation && activation_, .sums = wanted.sums && sums_};
    }
    void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                       const Tensor* residual, std::byte* workspace) override {
        Tensor from = x;
        if (with.norm != nullptr) {
            const Array shift{workspace, DType::f32, x.c};
            from.data = workspace + shift.bytes();
            ops_.norm_shift(shift, *with.norm);
            launch(launcher_, "conv_activation", 0, scale_shift_leaky<A>, from.as<A>(), x.as<A>(), with.norm->scale.as<float>(),
                   shift.as<float>(), x.count(), x.c);
        }
        forward(y, from, prepared, bias, residual, workspace);
        if (with.sums.count > 0)
            launch(launcher_, "conv_sums", 0, sum_around<A>, with.sums.as<float>(), y.as<A>(), with.centre.as<float>(), y.count(), y.c);
    }
    bool fuses_leaky_backward(int64_t) const override { return sums_; }
    void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                             std::byte* workspace) override {
        backward_data(d_z, d_y, prepared, workspace);
        launch(launcher_, "conv_leaky_backward", 0, leaky_backward_sums<A>, with.sums.as<float>(), d_z.as<A>(), with.x.as<A>(),
               with.norm.mean.as<float>(), with.norm.scale.as<float>(), with.norm.beta.as<float>(), d_z.count(), d_z.c);
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) override {
        launch(launcher_, "conv_backward_data", flops(d_y.n), images(d_x) ? conv_backward_data<A, float> : conv_backward_data<A, A>, shape_,
               d_x, d_y, reinterpret_cast<const A*>(prepared), reinterpret_cast<double*>(workspace));
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        launch(launcher_, "conv_backward_weights", flops(x.n), images(x) ? conv_backward_weights<A, float> : conv_backward_weights<A, A>,
               shape_, d_w.as<float>(), x, d_y, reinterpret_cast<double*>(workspace));
    }
    std::vector<Choice> choices() const override { return {{"all", "loops", 0, 0}}; }

private:
    // A stem's input is f32 whatever the activations are.
    static bool images(const Tensor& x) { return x.type == DType::f32; }
    double flops(int64_t n) const { return shape_.flops() * static_cast<double>(n); }

    CudaLauncher& launcher_;
    Ops& ops_;
    bool activation_, sums_;
    ConvShape shape_;
    int64_t max_batch_ = 0;
};

class LoopLinearPlan final : public LinearPlan {
public:
    LoopLinearPlan(CudaLauncher& launcher, int64_t in, int64_t out) : launcher_(launcher), in_(in), out_(out) {}

    size_t workspace_bytes() const override { return 0; }
    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte*) override {
        launch(launcher_, "linear_forward", flops(x.n), linear_forward, y.as<float>(), x.as<float>(), w.as<float>(), b.as<float>(), x.n,
               in_, out_);
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte*) override {
        launch(launcher_, "linear_backward_data", flops(d_y.n), linear_backward_data, d_x.as<float>(), d_y.as<float>(), w.as<float>(),
               d_y.n, in_, out_);
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        launch(launcher_, "linear_backward_weights", flops(x.n), linear_backward_weights, d_w.as<float>(), x.as<float>(), d_y.as<float>(),
               x.n, in_, out_);
    }

private:
    double flops(int64_t n) const { return 2.0 * static_cast<double>(n * in_ * out_); }

    CudaLauncher& launcher_;
    int64_t in_, out_;
};

class LoopPlans final : public CudaPlans {
public:
    LoopPlans(CudaLauncher& launcher, Ops& ops, CudaPrecision precision, Fusion fusion)
        : launcher_(launcher), ops_(ops), precision_(precision), fusion_(fusion) {}

    std::unique_ptr<ConvPlan> convolution(const ConvShape& shape, const ConvOptions& options) override {
        if (precision_ == CudaPrecision::bf16)
            return std::make_unique<LoopConvPlan<__nv_bfloat16>>(launcher_, ops_, fusion_, shape, options);
        return std::make_unique<LoopConvPlan<float>>(launcher_, ops_, fusion_, shape, options);
    }
    std::unique_ptr<LinearPlan> linear(int64_t in, int64_t out, const std::vector<int64_t>&) override {
        return std::make_unique<LoopLinearPlan>(launcher_, in, out);
    }

private:
    CudaLauncher& launcher_;
    Ops& ops_;
    CudaPrecision precision_;
    Fusion fusion_;
};

}  // namespace

MakeCudaPlans loop_plans(CudaPrecision precision, Fusion fusion) {
    return [precision, fusion](CudaLauncher& launcher, Ops& ops, const GpuDescription&) {
        return std::make_unique<LoopPlans>(launcher, ops, precision, fusion);
    };
}

std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher&, Ops&, const GpuDescription&, const CudaPlanSettings&, bool) {
    throw std::logic_error("cuDNN and cuBLASLt cannot run on an emulated GPU. Use loop_plans.");
}

}  // namespace jem
