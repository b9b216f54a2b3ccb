#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine/device/cpu/conv_plan.h"
#include "engine/device/cpu/onednn.h"
#include "engine/device/cpu/winograd/winograd.h"

namespace jem {
namespace {

// Transformed weights are four times as large, once a direction. Beyond this size they are transformed for each call anew, so that a
// network of many parameters keeps nothing of them: what is prepared is then where the weights lie. 256 channels are kept, 320 are not:
// in WRN-16-10 that makes no difference beyond the clock's noise, and a hundred MiB less.
constexpr size_t kKeptBytes = size_t{12} << 20;

winograd::NormInFront norm_of(const NormCoefficients& n) {
    return {n.mean.as<float>(), n.scale.as<float>(), n.beta.as<float>(), static_cast<float>(n.slope)};
}

class WinogradPlan final : public ConvPlan {
public:
    WinogradPlan(HostStream& stream, int threads, int64_t lanes, DType activation, const ConvShape& shape, const ConvOptions& options)
        : stream_(stream),
          problem_{.shape = shape, .lanes = lanes, .type = activation, .threads = threads},
          name_(shape.text()),
          batches_(options.batches),
          forward_only_(options.forward_only),
          transformed_bytes_(winograd::transformed_bytes(shape)),
          kept_(transformed_bytes_ <= kKeptBytes) {
        for (const int64_t batch : batches_)
            scratch_bytes_ =
                std::max({scratch_bytes_, winograd::forward_scratch_bytes(of(batch)), winograd::backward_data_scratch_bytes(of(batch)),
                          winograd::backward_weights_scratch_bytes(of(batch))});
        for (const int64_t batch : forward_only_) scratch_bytes_ = std::max(scratch_bytes_, winograd::forward_scratch_bytes(of(batch)));
    }

    size_t prepared_bytes() const override {
        if (!kept_) return sizeof(const float*);
        return transformed_bytes_ * (batches_.empty() ? 1 : 2);  // one a direction
    }
    size_t workspace_bytes() const override { return scratch_bytes_ + (kept_ ? 0 : transformed_bytes_); }

    void prepare(std::byte* prepared, Array weights, std::byte*) override {
        const float* w = weights.as<float>();
        if (!kept_) {
            stream_.submit("prepare_weights", {}, [=] { std::memcpy(prepared, &w, sizeof w); });
            return;
        }
        stream_.submit("prepare_weights", {}, [=, this, p = problem_] {
            winograd::transform_weights_forward(p, reinterpret_cast<float*>(prepared), w);
            if (!batches_.empty()) winograd::transform_weights_backward(p, reinterpret_cast<float*>(prepared + transformed_bytes_), w);
        });
    }

    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                 std::byte* workspace) override {
        forward_fused(y, x, {}, prepared, bias, residual, workspace);
    }
    ConvFusion fuses(int64_t, ConvFusion wanted, bool) const override { return wanted; }
    void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                       const Tensor* residual, std::byte* workspace) override {
        require_planned(x.n, false);
        const winograd::ForwardOutput out{.y = y.data,
                                          .bias = bias.as<float>(),
                                          .residual = residual != nullptr ? residual->data : nullptr,
                                          .centre = with.sums.count > 0 ? with.centre.as<float>() : nullptr,
                                          .sums = with.sums.count > 0 ? with.sums.as<float>() : nullptr};
        const bool active = with.norm != nullptr;
        const winograd::NormInFront norm = active ? norm_of(*with.norm) : winograd::NormInFront{};
        submit("conv_forward", x.n, [=, this, p = of(x.n), from = x.data] {
            const float* w = transformed(prepared, workspace, false);
            winograd::forward(p, out, from, active ? &norm : nullptr, w, workspace);
        });
    }

    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) override {
        to_data({.d_x = d_x.data}, d_y, prepared, workspace);
    }
    bool fuses_leaky_backward(int64_t) const override { return true; }
    void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                             std::byte* workspace) override {
        to_data({.d_x = d_z.data, .x = with.x.data, .norm = norm_of(with.norm), .sums = with.sums.as<float>()}, d_y, prepared, workspace);
    }

    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        to_weights(d_w, x, nullptr, d_y, workspace);
    }
    bool fuses_weights_activation(int64_t) const override { return true; }
    void backward_weights_fused(Array d_w, const Tensor& x, const NormCoefficients& norm, const Tensor& d_y,
                                std::byte* workspace) override {
        to_weights(d_w, x, &norm, d_y, workspace);
    }

    std::vector<Choice> choices() const override {
        std::vector<Choice> out;
        const std::string engine = problem_.shape.stride == 1 ? "winograd F(4x4, 3x3)" : "winograd F(4x4, 2x2) and direct";
        for (const int64_t batch : batches_) {
            out.push_back({"forward", engine, batch, winograd::forward_scratch_bytes(of(batch))});
            out.push_back({"backward_data", engine, batch, winograd::backward_data_scratch_bytes(of(batch))});
            out.push_back({"backward_weights", engine, batch, winograd::backward_weights_scratch_bytes(of(batch))});
        }
        for (const int64_t batch : forward_only_) out.push_back({"forward", engine, batch, winograd::forward_scratch_bytes(of(batch))});
        return out;
    }

private:
    winograd::Problem of(int64_t batch) const {
        winograd::Problem p = problem_;
        p.batch = batch;
        return p;
    }

    void require_planned(int64_t batch, bool backward) const {
        const auto has = [batch](const std::vector<int64_t>& list) { return std::find(list.begin(), list.end(), batch) != list.end(); };
        if (has(batches_) || (!backward && has(forward_only_))) return;
        throw std::invalid_argument(std::string(backward ? "The backward pass of a" : "A") + " convolution of batch " +
                                    std::to_string(batch) + " was not planned.");
    }

    const float* transformed(const std::byte* prepared, std::byte* workspace, bool backward) const {
        if (kept_) return reinterpret_cast<const float*>(prepared + (backward ? transformed_bytes_ : 0));
        const float* w = nullptr;
        std::memcpy(&w, prepared, sizeof w);
        auto* to = reinterpret_cast<float*>(workspace + scratch_bytes_);
        backward ? winograd::transform_weights_backward(problem_, to, w) : winograd::transform_weights_forward(problem_, to, w);
        return to;
    }

    void to_data(const winograd::BackwardOutput& out, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) {
        require_planned(d_y.n, true);
        submit("conv_backward_data", d_y.n, [=, this, p = of(d_y.n), from = d_y.data] {
            winograd::backward_data(p, out, from, transformed(prepared, workspace, true), workspace);
        });
    }
    void to_weights(Array d_w, const Tensor& x, const NormCoefficients* norm, const Tensor& d_y, std::byte* workspace) {
        require_planned(d_y.n, true);
        const bool active = norm != nullptr;
        const winograd::NormInFront in_front = active ? norm_of(*norm) : winograd::NormInFront{};
        submit("conv_backward_weights", d_y.n, [=, p = of(d_y.n), to = d_w.as<float>(), from = x.data, d_from = d_y.data] {
            winograd::backward_weights(p, to, from, active ? &in_front : nullptr, d_from, workspace);
        });
    }

    template <class Run>
    void submit(const char* label, int64_t batch, Run&& run) {
        stream_.submit(label, {.flops = problem_.shape.flops() * static_cast<double>(batch), .shape = name_.c_str()},
                       std::forward<Run>(run));
    }

    HostStream& stream_;
    winograd::Problem problem_;  // but for the batch
    std::string name_;           // of the shape, for profiles
    std::vector<int64_t> batches_, forward_only_;
    size_t transformed_bytes_;
    bool kept_;  // the prepared weights are transformed: forward | backward
    size_t scratch_bytes_ = 0;
    // workspace: scratch | transformed weights that are not kept
};

// It multiplies f32 whatever the activations are.
bool supports(DType activation, const ConvShape& shape, const ConvOptions& options) {
    if (options.algorithm == ConvAlgorithm::direct || !winograd::can(shape, onednn::preferred_block(), activation)) return false;
    // Direct convolutions multiply bf16 at twice the rate of f32 with AVX512_BF16, at eight times with AMX. At stride 1 a quarter of the
    // products is left, at stride 2 nine sixteenths; transforms want channels to be worth it.
    constexpr int64_t kLeastChannels = 32;
    return activation == DType::f32 || (!onednn::has_amx() && shape.stride == 1 && shape.in_channels >= kLeastChannels);
}

}  // namespace

const CpuConvProvider kWinogradConv = {
    .name = "winograd",
    .supports = supports,
    .plan = [](const CpuConvContext& on, const ConvShape& shape, const ConvOptions& options) -> std::unique_ptr<ConvPlan> {
        return make_winograd_plan(on.stream, on.threads, onednn::preferred_block(), on.activation, shape, options);
    },
};

std::unique_ptr<ConvPlan> make_winograd_plan(HostStream& stream, int threads, int64_t lanes, DType activation, const ConvShape& shape,
                                             const ConvOptions& options) {
    return std::make_unique<WinogradPlan>(stream, threads, lanes, activation, shape, options);
}

}  // namespace jem
