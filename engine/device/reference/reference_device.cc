// The oracle: every convolution and product as the loops of its definition, sums in double.
#include <vector>

#include "engine/device/host/host_device.h"
#include "engine/device/reference/loops.h"
#include "engine/device/reference/serial_exec.h"
#include "kernels/ops_impl.h"

namespace jem {
namespace {

template <class R>
class ReferenceConvPlan final : public ConvPlan {
public:
    ReferenceConvPlan(HostStream& stream, const ConvShape& shape) : stream_(stream), shape_(shape) {}

    size_t prepared_bytes() const override { return static_cast<size_t>(shape_.weight_count()) * sizeof(R); }
    size_t workspace_bytes() const override { return 0; }
    void prepare(std::byte* prepared, Array weights, std::byte*) override {
        stream_.submit("prepare_weights", {}, [=, to = reinterpret_cast<R*>(prepared), count = shape_.weight_count()] {
            loops::convert_weights(to, weights.as<R>(), count);
        });
    }
    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual, std::byte*) override {
        const R* added = residual != nullptr ? residual->as<R>() : nullptr;
        stream_.submit("conv_forward", {.flops = flops(x.n)}, [=, w = reinterpret_cast<const R*>(prepared), s = shape_] {
            loops::conv_forward<R, R>(s, y, x, w, bias.as<R>(), added);
        });
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte*) override {
        stream_.submit("conv_backward_data", {.flops = flops(d_y.n)}, [=, w = reinterpret_cast<const R*>(prepared), s = shape_] {
            std::vector<double> sums(static_cast<size_t>(d_x.count()));
            loops::conv_backward_data<R, R>(s, d_x, d_y, w, sums.data());
        });
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        stream_.submit("conv_backward_weights", {.flops = flops(x.n)}, [=, s = shape_] {
            std::vector<double> sums(static_cast<size_t>(s.weight_count()));
            loops::conv_backward_weights<R, R>(s, d_w.as<R>(), x, d_y, sums.data());
        });
    }
    std::vector<Choice> choices() const override { return {{"all", "loops", 0, 0}}; }

private:
    double flops(int64_t n) const { return shape_.flops() * static_cast<double>(n); }

    HostStream& stream_;
    ConvShape shape_;
};

template <class R>
class ReferenceLinearPlan final : public LinearPlan {
public:
    ReferenceLinearPlan(HostStream& stream, int64_t in, int64_t out) : stream_(stream), in_(in), out_(out) {}

    size_t workspace_bytes() const override { return 0; }
    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte*) override {
        stream_.submit("linear_forward", {.flops = flops(x.n)},
                       [=, in = in_, out = out_] { loops::linear_forward(y.as<R>(), x.as<R>(), w.as<R>(), b.as<R>(), x.n, in, out); });
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte*) override {
        stream_.submit("linear_backward_data", {.flops = flops(d_y.n)},
                       [=, in = in_, out = out_] { loops::linear_backward_data(d_x.as<R>(), d_y.as<R>(), w.as<R>(), d_y.n, in, out); });
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        stream_.submit("linear_backward_weights", {.flops = flops(x.n)},
                       [=, in = in_, out = out_] { loops::linear_backward_weights(d_w.as<R>(), x.as<R>(), d_y.as<R>(), x.n, in, out); });
    }

private:
    double flops(int64_t n) const { return 2.0 * static_cast<double>(n * in_ * out_); }

    HostStream& stream_;
    int64_t in_, out_;
};

template <class R>
class ReferenceDevice final : public HostDevice {
public:
    ReferenceDevice() : ops_(SerialExec(stream_)) {}

    std::string name() const override { return "reference"; }
    std::string description() const override { return std::string("plain loops in ") + (sizeof(R) == 8 ? "f64" : "f32") + ", 1 thread"; }
    DType real_type() const override { return DTypeOf<R>::value; }
    DType activation_type() const override { return DTypeOf<R>::value; }
    int64_t channel_block(int64_t channels) const override { return channels; }
    std::unique_ptr<ConvPlan> plan_convolution(const ConvShape& shape, const ConvOptions&) override {
        refuse_under_capture("plan a convolution");
        return std::make_unique<ReferenceConvPlan<R>>(stream_, shape);
    }
    std::unique_ptr<LinearPlan> plan_linear(int64_t in, int64_t out, const std::vector<int64_t>&) override {
        refuse_under_capture("plan a linear layer");
        return std::make_unique<ReferenceLinearPlan<R>>(stream_, in, out);
    }
    Ops& ops() override { return ops_; }

private:
    OpsOn<SerialExec, R, R> ops_;
};

}  // namespace

std::unique_ptr<Device> make_reference_device(DType type) {
    if (type == DType::f64) return std::make_unique<ReferenceDevice<double>>();
    return std::make_unique<ReferenceDevice<float>>();
}

}  // namespace jem
