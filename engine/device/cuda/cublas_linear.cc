#include "engine/device/cuda/cublas_linear.h"

#include <algorithm>
#include <stdexcept>

#include "engine/device/cuda/convolution/planned_call.h"
#include "engine/device/cuda/cublas_product.h"

namespace jem {
namespace {

// What NVIDIA advises as cuBLASLt's scratch, and what is planned for it where no GPU is at hand to ask.
constexpr size_t kWorkspaceHopper = size_t{32} << 20, kWorkspace = size_t{4} << 20;

class CublasLinearPlan final : public LinearPlan {
public:
    // handle: null where no GPU is at hand.
    CublasLinearPlan(CudaLauncher& launcher, cublasLtHandle_t handle, CudaPrecision p, size_t limit, int64_t in, int64_t out,
                     const std::vector<int64_t>& batches)
        : launcher_(launcher), on_device_(handle != nullptr), in_(in), out_(out) {
        if (handle == nullptr) workspace_bytes_ = limit;
        // Weights and their gradient are slices of flat arrays: aligned to their type only.
        constexpr uint32_t kSlice = sizeof(float);
        for (const int64_t n : batches) {
            Variant v;
            v.batch = n;
            if (handle != nullptr) {
                using Product = CublasProduct;
                const Product::Operand x{in, n}, y{out, n};
                const auto product = [&](Product::Operand a, Product::Operand b, Product::Operand c, Product::Behind behind) {
                    auto made = Product::make(handle, {.precision = p, .a = a, .b = b, .c = c, .behind = behind}, limit);
                    if (made == nullptr) throw std::runtime_error("cuBLASLt has no algorithm for the linear layer. Run with --device cpu.");
                    return made;
                };
                v.forward = product({in, out, true, kSlice}, x, y, Product::Behind::bias);
                v.backward_data = product({in, out, false, kSlice}, y, x, Product::Behind::nothing);
                v.backward_weights = product(x, {out, n, true}, {in, out, false, kSlice}, Product::Behind::accumulation);
                for (const Product* planned : {v.forward.get(), v.backward_data.get(), v.backward_weights.get()})
                    workspace_bytes_ = std::max(workspace_bytes_, aligned(planned->workspace_bytes()));
            }
            variants_.push_back(std::move(v));
        }
    }

    size_t workspace_bytes() const override { return workspace_bytes_; }
    std::string engine() const override { return on_device_ ? "cublasLt, its heuristics' first" : "cublasLt: heuristics need a device"; }

    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        check_operands(v, x, y, w);
        expect(b.count == out_ && b.type == DType::f32, "another bias");
        launch_product("linear_forward", v, [&] { v.forward->run(stream(), y.data, w.data, x.data, b.data, workspace); });
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte* workspace) override {
        const Variant& v = variant(d_y.n);
        check_operands(v, d_x, d_y, w);
        launch_product("linear_backward_data", v, [&] { v.backward_data->run(stream(), d_x.data, w.data, d_y.data, nullptr, workspace); });
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        check_operands(v, x, d_y, d_w);
        launch_product("linear_backward_weights", v,
                       [&] { v.backward_weights->run(stream(), d_w.data, x.data, d_y.data, nullptr, workspace); });
    }

private:
    struct Variant {
        int64_t batch = 0;
        std::unique_ptr<CublasProduct> forward, backward_data, backward_weights;
    };

    cudaStream_t stream() const { return launcher_.stream(); }
    const Variant& variant(int64_t batch) const {
        for (const Variant& v : variants_)
            if (v.batch == batch) return v;
        throw std::logic_error("A linear layer of batch " + std::to_string(batch) + " was not planned.");
    }
    void check_operands(const Variant& v, const Tensor& x, const Tensor& y, const Array& w) const {
        expect_tensor(x, "input", {v.batch, in_, 1, 1}, DType::f32);
        expect_tensor(y, "output", {v.batch, out_, 1, 1}, DType::f32);
        expect(w.count == in_ * out_ && w.type == DType::f32, "other weights");
    }
    template <class Run>
    void launch_product(const char* label, const Variant& v, Run run) {
        const double elements = static_cast<double>(v.batch * (in_ + out_) + in_ * out_);
        const double flops = 2.0 * static_cast<double>(v.batch) * static_cast<double>(in_) * static_cast<double>(out_);
        launch(launcher_, label, {.bytes = elements * sizeof(float), .flops = flops}, run);
    }

    CudaLauncher& launcher_;
    bool on_device_;
    int64_t in_, out_;
    std::vector<Variant> variants_;
    size_t workspace_bytes_ = 0;
};

}  // namespace

struct CublasLinear::Impl {
    CudaLauncher& launcher;
    CudaPrecision precision;
    size_t workspace_limit;
    std::unique_ptr<CublasHandle> handle = nullptr;  // where a GPU is at hand
};

CublasLinear::CublasLinear(CudaLauncher& launcher, const GpuDescription& gpu, CudaPrecision precision, bool on_device)
    : impl_(new Impl{launcher, precision, gpu.sm >= 90 ? kWorkspaceHopper : kWorkspace}) {
    if (on_device) impl_->handle = std::make_unique<CublasHandle>();
}

CublasLinear::~CublasLinear() = default;

std::unique_ptr<LinearPlan> CublasLinear::plan(int64_t in, int64_t out, const std::vector<int64_t>& batches) {
    return std::make_unique<CublasLinearPlan>(impl_->launcher, impl_->handle != nullptr ? impl_->handle->get() : nullptr, impl_->precision,
                                              impl_->workspace_limit, in, out, batches);
}

}  // namespace jem
