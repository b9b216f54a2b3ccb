#include "engine/device/cpu/linear_plan.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/device/cpu/onednn.h"

namespace jem {
namespace {

using onednn::aligned;
using onednn::Call;
using onednn::submit_calls;
using MadePtr = std::shared_ptr<const onednn::Made>;

class CpuLinearPlan final : public LinearPlan {
public:
    CpuLinearPlan(HostStream& stream, int64_t in, int64_t out, const std::vector<int64_t>& batches) : stream_(stream), in_(in), out_(out) {
        for (const int64_t n : batches) {
            Variant v;
            v.batch = n;
            v.forward = onednn::matmul({n, in, in, 1}, {in, out, 1, in}, true, false);
            v.backward_data = onednn::matmul({n, out, out, 1}, {out, in, in, 1}, false, false);
            v.backward_weights = onednn::matmul({out, n, 1, out}, {n, in, in, 1}, false, true);
            for (const MadePtr& made : {v.forward, v.backward_data, v.backward_weights})
                workspace_bytes_ = std::max(workspace_bytes_, aligned(made->scratch_bytes()));
            variants_.push_back(std::move(v));
        }
    }

    size_t workspace_bytes() const override { return workspace_bytes_; }
    void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte* workspace) override {
        run("linear_forward", variant(x.n).forward, x.data, w.data, y.data, &b, x.n, workspace);
    }
    void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte* workspace) override {
        run("linear_backward_data", variant(d_y.n).backward_data, d_y.data, w.data, d_x.data, nullptr, d_y.n, workspace);
    }
    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        run("linear_backward_weights", variant(x.n).backward_weights, d_y.data, x.data, d_w.data, nullptr, x.n, workspace);
    }

private:
    struct Variant {
        int64_t batch = 0;
        MadePtr forward, backward_data, backward_weights;
    };

    const Variant& variant(int64_t batch) const {
        for (const Variant& v : variants_)
            if (v.batch == batch) return v;
        throw std::invalid_argument("A linear layer of batch " + std::to_string(batch) + " was not planned.");
    }
    void run(const char* label, const MadePtr& made, const void* a, const void* b, void* c, const Array* bias, int64_t n,
             std::byte* workspace) {
        const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(in_) * static_cast<double>(out_);
        std::vector<Call::Argument> arguments = {{DNNL_ARG_SRC, made->src, a},
                                                 {DNNL_ARG_WEIGHTS, made->weights, b},
                                                 {DNNL_ARG_DST, made->dst, c},
                                                 {DNNL_ARG_SCRATCHPAD, made->scratch, workspace}};
        if (bias != nullptr)
            arguments.push_back(
                {DNNL_ARG_BIAS, dnnl::memory::desc({1, out_}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab), bias->data});
        submit_calls(stream_, label, {.flops = flops}, std::make_shared<const Call>(made, arguments));
    }

    HostStream& stream_;
    int64_t in_, out_;
    std::vector<Variant> variants_;
    size_t workspace_bytes_ = 0;
};

}  // namespace

std::unique_ptr<LinearPlan> make_cpu_linear_plan(HostStream& stream, int64_t in, int64_t out, const std::vector<int64_t>& batches) {
    return std::make_unique<CpuLinearPlan>(stream, in, out, batches);
}

}  // namespace jem
