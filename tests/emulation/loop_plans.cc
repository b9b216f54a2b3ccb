#include "tests/emulation/loop_plans.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/device/cuda/convolution/hopper_provider.h"
#include "engine/device/cuda/convolution/planned_call.h"
#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/convolution/turned_provider.h"
#include "engine/device/cuda/convolution/winograd_provider.h"
#include "engine/device/cuda/runtime.h"
#include "engine/device/reference/loops.h"
#include "tests/conv_reference.h"

namespace jem {

template <>
struct DTypeOf<__nv_bfloat16> {
    static constexpr DType value = DType::bf16;
};

namespace {

// How wrong its result is: added to the first number of it.
struct Spoiled {
    float by = 0;
};

template <class A>
__global__ void convolve(ConvProblem p, ConvPointers at, std::byte* scratch, Spoiled spoiled) {
    A* first = conv_reference::convolve<A>(p, at, scratch);
    if (first != nullptr)
        first[0] = static_cast<A>(static_cast<float>(first[0]) + spoiled.by);
    else
        static_cast<float*>(at[ConvRole::w])[0] += spoiled.by;
}
__global__ void pass_the_time(int) {}

__global__ void linear_forward(float* y, const float* x, const float* w, const float* b, int64_t batch, int64_t in, int64_t out) {
    loops::linear_forward(y, x, w, b, batch, in, out);
}
__global__ void linear_backward_data(float* d_x, const float* d_y, const float* w, int64_t batch, int64_t in, int64_t out) {
    loops::linear_backward_data(d_x, d_y, w, batch, in, out);
}
__global__ void linear_backward_weights(float* d_w, const float* x, const float* d_y, int64_t batch, int64_t in, int64_t out) {
    loops::linear_backward_weights(d_w, x, d_y, batch, in, out);
}

__global__ void multiply(BatchedProductShape s, float* c, const float* a, const float* b) {
    for (int64_t i = 0; i < s.count * s.rows * s.columns; ++i) {
        const int64_t matrix = i / (s.rows * s.columns), row = i / s.columns % s.rows, column = i % s.columns;
        double sum = 0;
        for (int64_t k = 0; k < s.depth; ++k)
            sum += static_cast<double>(a[(matrix * s.rows + row) * s.depth + k]) *
                   static_cast<double>(
                       b[s.transposed ? (matrix * s.columns + column) * s.depth + k : (matrix * s.depth + k) * s.columns + column]);
        c[i] = static_cast<float>(sum);
    }
}

class LoopProduct final : public BatchedProduct {
public:
    LoopProduct(const BatchedProductShape& shape, size_t rank) : shape_(shape), rank_(rank) {}

    std::string name() const override { return "loops " + std::to_string(rank_); }
    size_t workspace_bytes() const override { return 0; }
    void run(cudaStream_t stream, float* c, const float* a, const float* b, std::byte*) const override {
        const cudaLaunchConfig_t config = {
            .gridDim = 1, .blockDim = 1, .dynamicSmemBytes = 0, .stream = stream, .attrs = nullptr, .numAttrs = 0};
        cuda::check(cudaLaunchKernelEx(&config, multiply, BatchedProductShape(shape_), static_cast<float*>(c), static_cast<const float*>(a),
                                       static_cast<const float*>(b)),
                    "multiply");
    }

private:
    BatchedProductShape shape_;
    size_t rank_;
};

template <class... P, class... Args>
void run(CudaLauncher& launcher, const char* label, void (*kernel)(P...), Args... args) {
    const cudaLaunchConfig_t config = {
        .gridDim = 1, .blockDim = 1, .dynamicSmemBytes = 0, .stream = launcher.stream(), .attrs = nullptr, .numAttrs = 0};
    cuda::check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), label);
}

class LoopConv final : public ConvEngine {
public:
    LoopConv(CudaLauncher& launcher, LoopEngine engine, const ConvProblem& problem)
        : launcher_(launcher), engine_(std::move(engine)), problem_(problem) {}

    std::string name() const override { return engine_.name; }
    size_t workspace_bytes() const override { return conv_reference::scratch_bytes(problem_); }
    void run(const ConvPointers& pointers, std::byte* workspace) const override {
        const int kernels = engine_.kernels + (problem_.pass == ConvPass::forward ? 0 : engine_.more_back);
        for (int i = 1; i < kernels; ++i) jem::run(launcher_, "another kernel", pass_the_time, i);
        constexpr float kOtherBits = 0x1p-16f;  // less than another order of sums makes, more than a last bit
        Spoiled spoiled;
        if (engine_.fault == LoopEngine::Fault::wrong) spoiled.by = 100;
        if (engine_.fault == LoopEngine::Fault::near) spoiled.by = kOtherBits;
        if (engine_.fault == LoopEngine::Fault::other_bits) spoiled.by = kOtherBits * static_cast<float>(++runs_);
        jem::run(launcher_, "convolution", activation_type(problem_.precision) == DType::bf16 ? convolve<__nv_bfloat16> : convolve<float>,
                 problem_, pointers, workspace, spoiled);
    }

private:
    CudaLauncher& launcher_;
    LoopEngine engine_;
    ConvProblem problem_;
    mutable int runs_ = 0;
};

class LoopProvider final : public ConvProvider {
public:
    LoopProvider(CudaLauncher& launcher, const Loops& loops) : launcher_(launcher), loops_(loops) {}

    std::string name() const override { return loops_.name; }
    bool supports(const ConvProblem& p) const override {
        if (p.fusion == Fusion::none) return true;
        if (has_norm(p.fusion) && !loops_.activation) return false;
        if ((has_sums(p.fusion) || p.fusion == Fusion::accumulate) && !loops_.sums) return false;
        return loops_.activation || loops_.sums;
    }
    size_t tries(const ConvProblem& p) const override { return engines(p).size(); }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, size_t rank) override {
        if (!supports(p) || rank >= engines(p).size()) return nullptr;
        return std::make_unique<LoopConv>(launcher_, engines(p)[rank], p);
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& p, const std::string& name) override {
        if (!supports(p)) return nullptr;
        for (const LoopEngine& e : engines(p))
            if (e.name == name) return std::make_unique<LoopConv>(launcher_, e, p);
        return nullptr;
    }
    std::unique_ptr<ConvEngine> first(const ConvProblem& p) override { return engine(p, 0); }

private:
    const std::vector<LoopEngine>& engines(const ConvProblem& p) const { return p.fusion == Fusion::none ? loops_.plain : loops_.fused; }

    CudaLauncher& launcher_;
    Loops loops_;
};

class LoopLinearPlan final : public LinearPlan {
public:
    LoopLinearPlan(CudaLauncher& launcher, int64_t in, int64_t out) : launcher_(launcher), in_(in), out_(out) {}

    size_t workspace_bytes() const override { return 0; }
    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte*) override {
        queue("linear_forward", x.n, linear_forward, y.as<float>(), x.as<float>(), w.as<float>(), b.as<float>(), x.n, in_, out_);
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte*) override {
        queue("linear_backward_data", d_y.n, linear_backward_data, d_x.as<float>(), d_y.as<float>(), w.as<float>(), d_y.n, in_, out_);
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        queue("linear_backward_weights", x.n, linear_backward_weights, d_w.as<float>(), x.as<float>(), d_y.as<float>(), x.n, in_, out_);
    }

private:
    template <class Kernel, class... Args>
    void queue(const char* label, int64_t n, Kernel kernel, Args... args) {
        launch(launcher_, label, {.flops = 2.0 * static_cast<double>(n * in_ * out_)}, [&] { run(launcher_, label, kernel, args...); });
    }

    CudaLauncher& launcher_;
    int64_t in_, out_;
};

}  // namespace

BatchedProducts loop_products() {
    return {.version = "loops 1", .make = [](const BatchedProductShape& shape, size_t rank) -> std::unique_ptr<BatchedProduct> {
                constexpr size_t kRanks = 2;
                return rank < kRanks ? std::make_unique<LoopProduct>(shape, rank) : nullptr;
            }};
}

std::unique_ptr<ConvProvider> make_loop_provider(CudaLauncher& launcher, const Loops& loops) {
    return std::make_unique<LoopProvider>(launcher, loops);
}

MakeCudaPlans loop_plans(CudaPrecision precision, const std::vector<Loops>& providers, const std::string& plan_cache) {
    return [=](CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu) {
        ConvProviders convolutions;
        for (const Loops& loops : providers) {
            convolutions.push_back(make_loop_provider(launcher, loops));
            if (loops.turned) convolutions.push_back(make_turned_provider(*convolutions.back()));
            if (loops.hopper) convolutions.push_back(make_hopper_provider(launcher, gpu));
            if (loops.winograd) convolutions.push_back(make_winograd_provider(launcher, loop_products()));
        }
        return std::make_unique<CudaPlans>(launcher, ops, gpu, CudaPlanSettings{.precision = precision, .cache_file = plan_cache}, true,
                                           std::move(convolutions), [&launcher](int64_t in, int64_t out, const std::vector<int64_t>&) {
                                               return std::make_unique<LoopLinearPlan>(launcher, in, out);
                                           });
    };
}

Loops loops_with(LoopFusion fusion) {
    Loops loops{.activation = fusion == LoopFusion::activation || fusion == LoopFusion::both,
                .sums = fusion == LoopFusion::sums || fusion == LoopFusion::both};
    if (fusion != LoopFusion::none) loops.plain.front().kernels = 8;
    return loops;
}

std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher&, Ops&, const GpuDescription&, const CudaPlanSettings&, bool) {
    throw std::logic_error("cuDNN and cuBLASLt cannot run on an emulated GPU. Use loop_plans.");
}

}  // namespace jem
