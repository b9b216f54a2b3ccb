// The oracle: every convolution and product as the loops of its definition, sums in double.
#include "engine/device/host/host_device.h"
#include "engine/device/reference/serial_exec.h"
#include "kernels/ops_impl.h"

namespace jem {
namespace {

int64_t offset(const Tensor& t, int64_t n, int64_t c, int64_t row, int64_t column) {
    return ((n * (t.c / t.block) + c / t.block) * t.h * t.w + row * t.w + column) * t.block + c % t.block;
}

template <class R>
class ReferenceConvPlan final : public ConvPlan {
public:
    ReferenceConvPlan(HostStream& stream, const ConvShape& shape) : stream_(stream), shape_(shape) {}

    size_t prepared_bytes() const override { return static_cast<size_t>(shape_.weight_count()) * sizeof(R); }
    size_t workspace_bytes() const override { return 0; }
    void prepare(std::byte* prepared, Array weights, std::byte*) override {
        const R* from = weights.as<R>();
        R* to = reinterpret_cast<R*>(prepared);
        stream_.submit("prepare_weights", {}, [=, count = shape_.weight_count()] {
            for (int64_t i = 0; i < count; ++i) to[i] = from[i];
        });
    }

    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual, std::byte*) override {
        const R* w = reinterpret_cast<const R*>(prepared);
        const R* b = bias.as<R>();
        const R* added = residual != nullptr ? residual->as<R>() : nullptr;
        stream_.submit("conv_forward", {.flops = flops(x.n)}, [=, s = shape_] {
            for_outputs(s, y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
                double sum = static_cast<double>(b[o]);
                for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
                    for (int64_t i = 0; i < s.in_channels; ++i)
                        sum += static_cast<double>(x.as<R>()[offset(x, n, i, iy, ix)]) * static_cast<double>(w[weight(s, o, ky, kx, i)]);
                });
                const int64_t at = offset(y, n, o, row, column);
                if (added != nullptr) sum += static_cast<double>(added[at]);
                y.as<R>()[at] = static_cast<R>(sum);
            });
        });
    }

    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte*) override {
        const R* w = reinterpret_cast<const R*>(prepared);
        stream_.submit("conv_backward_data", {.flops = flops(d_y.n)}, [=, s = shape_] {
            std::vector<double> sums(static_cast<size_t>(d_x.count()));
            for_outputs(s, d_y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
                const double d = static_cast<double>(d_y.as<R>()[offset(d_y, n, o, row, column)]);
                for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
                    for (int64_t i = 0; i < s.in_channels; ++i)
                        sums[static_cast<size_t>(offset(d_x, n, i, iy, ix))] += d * static_cast<double>(w[weight(s, o, ky, kx, i)]);
                });
            });
            for (size_t i = 0; i < sums.size(); ++i) d_x.as<R>()[i] = static_cast<R>(sums[i]);
        });
    }

    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        stream_.submit("conv_backward_weights", {.flops = flops(x.n)}, [=, s = shape_] {
            std::vector<double> sums(static_cast<size_t>(s.weight_count()));
            for_outputs(s, d_y, [&](int64_t n, int64_t o, int64_t row, int64_t column) {
                const double d = static_cast<double>(d_y.as<R>()[offset(d_y, n, o, row, column)]);
                for_taps(s, row, column, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
                    for (int64_t i = 0; i < s.in_channels; ++i)
                        sums[static_cast<size_t>(weight(s, o, ky, kx, i))] += d * static_cast<double>(x.as<R>()[offset(x, n, i, iy, ix)]);
                });
            });
            for (size_t i = 0; i < sums.size(); ++i) d_w.as<R>()[i] += static_cast<R>(sums[i]);
        });
    }

    std::vector<Choice> choices() const override { return {{"all", "loops", 0, 0}}; }

private:
    static int64_t weight(const ConvShape& s, int64_t o, int64_t ky, int64_t kx, int64_t i) {
        return ((o * s.kernel + ky) * s.kernel + kx) * s.in_channels + i;
    }
    template <class Body>
    static void for_outputs(const ConvShape& s, const Tensor& y, Body body) {
        for (int64_t n = 0; n < y.n; ++n)
            for (int64_t o = 0; o < s.out_channels; ++o)
                for (int64_t row = 0; row < s.out_height(); ++row)
                    for (int64_t column = 0; column < s.out_width(); ++column) body(n, o, row, column);
    }
    template <class Body>
    static void for_taps(const ConvShape& s, int64_t row, int64_t column, Body body) {
        for (int64_t ky = 0; ky < s.kernel; ++ky)
            for (int64_t kx = 0; kx < s.kernel; ++kx) {
                const int64_t iy = row * s.stride + ky - s.padding(), ix = column * s.stride + kx - s.padding();
                if (iy >= 0 && iy < s.height && ix >= 0 && ix < s.width) body(ky, kx, iy, ix);
            }
    }
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
        stream_.submit("linear_forward", {.flops = flops(x.n)}, [=, in = in_, out = out_] {
            for (int64_t n = 0; n < x.n; ++n)
                for (int64_t o = 0; o < out; ++o) {
                    double sum = static_cast<double>(b.as<R>()[o]);
                    for (int64_t i = 0; i < in; ++i)
                        sum += static_cast<double>(x.as<R>()[n * in + i]) * static_cast<double>(w.as<R>()[o * in + i]);
                    y.as<R>()[n * out + o] = static_cast<R>(sum);
                }
        });
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte*) override {
        stream_.submit("linear_backward_data", {.flops = flops(d_y.n)}, [=, in = in_, out = out_] {
            for (int64_t n = 0; n < d_y.n; ++n)
                for (int64_t i = 0; i < in; ++i) {
                    double sum = 0;
                    for (int64_t o = 0; o < out; ++o)
                        sum += static_cast<double>(d_y.as<R>()[n * out + o]) * static_cast<double>(w.as<R>()[o * in + i]);
                    d_x.as<R>()[n * in + i] = static_cast<R>(sum);
                }
        });
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte*) override {
        stream_.submit("linear_backward_weights", {.flops = flops(x.n)}, [=, in = in_, out = out_] {
            for (int64_t o = 0; o < out; ++o)
                for (int64_t i = 0; i < in; ++i) {
                    double sum = 0;
                    for (int64_t n = 0; n < x.n; ++n)
                        sum += static_cast<double>(d_y.as<R>()[n * out + o]) * static_cast<double>(x.as<R>()[n * in + i]);
                    d_w.as<R>()[o * in + i] += static_cast<R>(sum);
                }
        });
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
