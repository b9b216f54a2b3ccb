#include "engine/device/cuda/convolution/conv_plan.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/device/cuda/convolution/planned_call.h"

namespace jem {
namespace {

class CudaConvPlan final : public ConvPlan {
public:
    CudaConvPlan(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options)
        : planning_(planning),
          shape_(shape),
          name_(shape.text()),
          algorithm_(options.algorithm),
          slope_(options.slope),
          narrows_input_(options.input == ConvInput::images && planning.activation() != DType::f32),
          batches_(choose_engines(planning, shape, options)) {
        for (const PlannedBatch& b : batches_)
            for (const auto& [part, engine] : b.engines) {
                const WeightForm form = engine->weights();
                if (form != WeightForm::plain && std::find(forms_.begin(), forms_.end(), form) == forms_.end()) forms_.push_back(form);
                size_t staged = narrows_input_ ? x_bytes(b.batch) : 0;
                if (has_norm(part.fusion)) staged += shift_bytes();
                // Behind an unfused convolution the residual is added, which may be where the result goes, or the gradient to the others.
                if (part == ConvPart{ConvPass::forward}) staged += y_bytes(b.batch);
                if (part == ConvPart{ConvPass::backward_weights}) staged += w_bytes();
                const size_t bytes = staged + aligned(engine->workspace_bytes());
                size_t& most = part.pass == ConvPass::backward_weights ? weights_workspace_bytes_ : other_workspace_bytes_;
                most = std::max(most, bytes);
            }
    }

    // A copy of the weights in each form.
    size_t prepared_bytes() const override { return w_bytes() * forms_.size(); }
    size_t workspace_bytes() const override { return std::max(weights_workspace_bytes_, other_workspace_bytes_); }
    size_t weights_workspace_bytes() const override { return weights_workspace_bytes_; }
    size_t other_workspace_bytes() const override { return other_workspace_bytes_; }

    void prepare(std::byte* prepared, Array weights, std::byte* /*workspace*/) override {
        expect(weights.count == shape_.weight_count() && weights.type == DType::f32, "other weights");
        for (const WeightForm form : forms_) {
            write_weights(planning_.ops, form, {prepared, planning_.activation(), weights.count}, weights, shape_);
            prepared += w_bytes();
        }
    }

    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                 std::byte* workspace) override {
        forward_fused(y, x, {}, prepared, bias, residual, workspace);
    }
    ConvFusion fuses(int64_t batch, ConvFusion wanted, bool residual) const override {
        const Fusion fusion = planned(batch).best_of(forward_with(wanted, residual));
        return {.activation = has_norm(fusion), .sums = has_sums(fusion)};
    }
    bool adds_bias_apart(int64_t batch) const override { return planned(batch).best_of(Fusion::bias) == Fusion::none; }
    void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                       const Tensor* residual, std::byte* workspace) override {
        const PlannedBatch& b = planned(x.n);
        check_tensors(b, x, y);
        const bool biased = bias.count > 0;
        const bool alone = residual == nullptr && with.norm == nullptr && with.sums.count == 0;
        expect(biased ? bias.count == shape_.out_channels && bias.type == DType::f32 : alone && adds_bias_apart(x.n), "another bias");
        if (residual != nullptr) expect_tensor(*residual, "residual", y_dims(b), planning_.activation());
        const ConvFusion around{.activation = with.norm != nullptr, .sums = with.sums.count > 0};
        Fusion fusion = forward_with(around, residual != nullptr);
        if (!around.activation && !around.sums) fusion = b.best_of(fusion);  // the bias may be an op of its own
        const void* from = narrowed(x, workspace);
        Tensor to = y;
        if (fusion == Fusion::none && residual != nullptr && residual->data == y.data) to.data = take(workspace, y_bytes(b.batch));

        ConvPointers p = pointers_to(const_cast<void*>(from), prepared, to.data);
        give_weights(p, prepared);
        p[ConvRole::bias] = bias.data;
        p[ConvRole::residual] = residual != nullptr ? residual->data : nullptr;
        if (around.activation) {
            expect(with.norm->scale.count == shape_.in_channels && with.norm->scale.type == DType::f32, "another norm");
            expect(with.norm->slope == slope_, "another slope");
            const Array shift{take(workspace, shift_bytes()), DType::f32, shape_.in_channels};
            planning_.ops.norm_shift(shift, *with.norm);
            p[ConvRole::scale] = with.norm->scale.data;
            p[ConvRole::shift] = shift.data;
        }
        if (around.sums) {
            expect(with.centre.count == shape_.out_channels && with.centre.type == DType::f32, "another centre");
            give_sums(p, with.sums, shape_.out_channels);
            p[ConvRole::centre] = with.centre.data;
        }
        run("conv_forward", b, {ConvPass::forward, fusion}, p, workspace);
        if (fusion == Fusion::none && biased) planning_.ops.add_bias(y, to, bias, residual);
    }

    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) override {
        const PlannedBatch& b = backward_batch(d_y.n);
        check_tensors(b, d_x, d_y);
        void* to = narrows_input_ ? take(workspace, x_bytes(b.batch)) : d_x.data;
        ConvPointers p = pointers_to(to, prepared, d_y.data);
        give_weights(p, prepared);
        run("conv_backward_data", b, {ConvPass::backward_data, Fusion::none}, p, workspace);
        if (narrows_input_) planning_.ops.convert({d_x.data, DType::f32, d_x.count()}, {to, planning_.activation(), d_x.count()});
    }

    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        const PlannedBatch& b = backward_batch(x.n);
        check_tensors(b, x, d_y);
        expect(d_w.count == shape_.weight_count() && d_w.type == DType::f32, "another gradient of the weights");
        const void* from = narrowed(x, workspace);
        const Fusion fusion = b.best_of(Fusion::accumulate);
        void* to = fusion == Fusion::accumulate ? d_w.data : take(workspace, w_bytes());
        ConvPointers p = pointers_to(const_cast<void*>(from), to, d_y.data);
        p[ConvRole::accumulated_w] = d_w.data;
        run("conv_backward_weights", b, {ConvPass::backward_weights, fusion}, p, workspace);
        if (fusion == Fusion::none) planning_.ops.accumulate(d_w, {to, planning_.activation(), d_w.count});
    }

    bool fuses_leaky_backward(int64_t batch) const override {
        return planned(batch).best_of(Fusion::leaky_backward_sums) == Fusion::leaky_backward_sums;
    }
    void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                             std::byte* workspace) override {
        const PlannedBatch& b = backward_batch(d_y.n);
        check_tensors(b, d_z, d_y);
        expect_tensor(with.x, "input of the norm", x_dims(b), planning_.activation());
        expect(with.norm.scale.count == shape_.in_channels && with.norm.scale.type == DType::f32, "another norm");
        expect(with.norm.slope == slope_, "another slope");
        ConvPointers p = pointers_to(d_z.data, prepared, d_y.data);
        give_weights(p, prepared);
        p[ConvRole::norm_input] = with.x.data;
        p[ConvRole::centre] = with.norm.mean.data;
        p[ConvRole::scale] = with.norm.scale.data;
        p[ConvRole::shift] = with.norm.beta.data;
        give_sums(p, with.sums, shape_.in_channels);
        run("conv_backward_data", b, {ConvPass::backward_data, Fusion::leaky_backward_sums}, p, workspace);
    }

    std::vector<Choice> choices() const override {
        std::vector<Choice> out;
        for (const PlannedBatch& b : batches_)
            for (const auto& [part, engine] : b.engines)
                out.push_back(
                    {.pass = pass_name(part.pass) + (part.fusion == Fusion::none ? "" : std::string(" with ") + fusion_name(part.fusion)),
                     .engine = engine->name(),
                     .batch = b.batch,
                     .workspace_bytes = engine->workspace_bytes()});
        if (planning_.on_device) return out;
        for (const Fusion fusion : kForwardFusions) out.push_back(fused_candidate(fusion));
        for (const Fusion fusion : {Fusion::accumulate, Fusion::leaky_backward_sums}) out.push_back(fused_candidate(fusion));
        return out;
    }

private:
    size_t elements(int64_t count) const { return aligned(static_cast<size_t>(count) * size_of(planning_.activation())); }
    size_t x_bytes(int64_t batch) const { return elements(batch * shape_.in_channels * shape_.height * shape_.width); }
    size_t y_bytes(int64_t batch) const { return elements(batch * shape_.out_channels * shape_.out_height() * shape_.out_width()); }
    size_t w_bytes() const { return elements(shape_.weight_count()); }
    size_t shift_bytes() const { return aligned(static_cast<size_t>(shape_.in_channels) * sizeof(float)); }
    std::array<int64_t, 4> x_dims(const PlannedBatch& b) const { return {b.batch, shape_.in_channels, shape_.height, shape_.width}; }
    std::array<int64_t, 4> y_dims(const PlannedBatch& b) const {
        return {b.batch, shape_.out_channels, shape_.out_height(), shape_.out_width()};
    }

    const PlannedBatch& planned(int64_t batch) const {
        for (const PlannedBatch& b : batches_)
            if (b.batch == batch) return b;
        throw std::logic_error("A convolution of batch " + std::to_string(batch) + " was not planned.");
    }
    const PlannedBatch& backward_batch(int64_t batch) const {
        const PlannedBatch& b = planned(batch);
        if (!b.backward)
            throw std::logic_error("The backward pass of a convolution of batch " + std::to_string(batch) + " was not planned.");
        return b;
    }
    void check_tensors(const PlannedBatch& b, const Tensor& x, const Tensor& y) const {
        expect_tensor(x, "input", x_dims(b), narrows_input_ ? DType::f32 : planning_.activation());
        expect_tensor(y, "output", y_dims(b), planning_.activation());
    }

    static std::byte* take(std::byte*& workspace, size_t bytes) {
        std::byte* taken = workspace;
        workspace += bytes;
        return taken;
    }
    // The images in the activation type.
    const void* narrowed(const Tensor& x, std::byte*& workspace) {
        if (!narrows_input_) return x.data;
        void* to = take(workspace, x_bytes(x.n));
        planning_.ops.convert({to, planning_.activation(), x.count()}, {x.data, DType::f32, x.count()});
        return to;
    }
    void give_weights(ConvPointers& p, const std::byte* prepared) const {
        for (const WeightForm form : forms_) {
            p[role_of(form)] = const_cast<std::byte*>(prepared);
            prepared += w_bytes();
        }
    }
    static void give_sums(ConvPointers& p, const Array& sums, int64_t channels) {
        expect(sums.count == 2 * channels && sums.type == DType::f32, "other sums");
        p.give_sums(sums);
    }

    void run(const char* label, const PlannedBatch& b, const ConvPart& part, const ConvPointers& pointers, std::byte* workspace) {
        const auto found = b.engines.find(part);
        if (found == b.engines.end())
            throw std::logic_error(std::string("A convolution was called with ") + fusion_name(part.fusion) + ", which it does not fuse.");
        const ConvEngine& engine = *found->second;
        double bytes = 0;
        for (const ConvOperand& o : operands_of(planning_.problem(shape_, b.batch, algorithm_, part)))
            bytes += static_cast<double>(o.dims[0] * o.dims[1] * o.dims[2] * o.dims[3]) * static_cast<double>(size_of(o.type));
        launch(planning_.launcher, label, {.bytes = bytes, .flops = shape_.flops() * static_cast<double>(b.batch), .shape = name_.c_str()},
               [&] { engine.run(pointers, workspace); });
    }

    // Compiled only where the GPU is: each would take seconds.
    Choice fused_candidate(Fusion fusion) const {
        return {.pass = std::string(pass_name(pass_of(fusion))) + " with " + fusion_name(fusion),
                .engine = "not planned (compiled and timed on the GPU)",
                .batch = batches_.empty() ? 0 : batches_.front().batch,
                .workspace_bytes = 0,
                .candidate = true};
    }

    ConvPlanning& planning_;
    ConvShape shape_;
    std::string name_;  // of the shape, for profiles
    ConvAlgorithm algorithm_;
    double slope_;        // of the LeakyReLU that may be fused
    bool narrows_input_;  // x is f32 images, the convolution reads bf16
    std::vector<PlannedBatch> batches_;
    std::vector<WeightForm> forms_ = {WeightForm::plain};  // that engines want
    size_t weights_workspace_bytes_ = 0, other_workspace_bytes_ = 0;
};

}  // namespace

std::unique_ptr<ConvPlan> make_cuda_conv_plan(ConvPlanning& planning, const ConvShape& shape, const ConvOptions& options) {
    return std::make_unique<CudaConvPlan>(planning, shape, options);
}

}  // namespace jem
