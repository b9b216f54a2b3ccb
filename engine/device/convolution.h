// A convolution as a network asks for it, and as a device plans it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/settings/enums.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace jem {

// Of the height and of the width; one number stands for both.
struct BothSides {
    int64_t height, width;

    constexpr BothSides(int64_t both) : height(both), width(both) {}  // meant to convert: kernel = 3
    constexpr BothSides(int64_t of_height, int64_t of_width) : height(of_height), width(of_width) {}
    auto operator<=>(const BothSides&) const = default;
    int64_t area() const { return height * width; }
    std::string text() const;  // "3", "1x7"
};

struct ConvShape {
    int64_t in_channels = 0, out_channels = 0;
    int64_t height = 0, width = 0;  // of the input
    BothSides kernel = 3, stride = 1;
    BothSides padding = {kernel.height / 2, kernel.width / 2};  // zeros at either end

    int64_t out_height() const { return (height + 2 * padding.height - kernel.height) / stride.height + 1; }
    int64_t out_width() const { return (width + 2 * padding.width - kernel.width) / stride.width + 1; }
    int64_t weight_count() const { return out_channels * kernel.area() * in_channels; }
    // 2 x multiply-adds of one image, counted as a direct convolution
    double flops() const {
        return 2.0 * static_cast<double>(weight_count()) * static_cast<double>(out_height()) * static_cast<double>(out_width());
    }
    auto operator<=>(const ConvShape&) const = default;
    std::string text() const;
};

enum class ConvInput {
    activations,  // x is of the activation type
    images,       // x is R: the network's first convolution
};

// What a forward pass may take over from the ops around it.
struct ConvFusion {
    bool activation = false;  // norm and LeakyReLU in front
    bool sums = false;        // for the statistics of the norm behind
};
// One way in which a network calls a convolution's forward pass: the ops that are around it.
struct ConvCall {
    ConvFusion around;
    bool residual = false;
};
struct ConvOptions {
    std::vector<int64_t> batches;            // the batch sizes it will be called with
    std::vector<int64_t> forward_only = {};  // others, that no backward pass has
    ConvAlgorithm algorithm = ConvAlgorithm::automatic;
    ConvInput input = ConvInput::activations;
    std::vector<ConvCall> calls = {};  // all that there will be, so that no other fusion is planned; empty: any
    double slope = kLeakySlope;        // of the LeakyReLU around it: a plan may fuse it for this one alone
};

struct FusedForward {
    const NormCoefficients* norm = nullptr;  // x becomes leaky(norm(x)); null: nothing is in front
    Array centre{}, sums{};                  // R [C]; R [2, C], written: over N, H, W, of y - centre and of its square. Empty: none
};
struct FusedBackward {
    Tensor x;               // the norm's input
    NormCoefficients norm;  // its mean, scale and beta
    Array sums;             // R [2, C], written: over N, H, W, of d_z and of d_z * (x - mean)
};

// A convolution with bias, for a few batch sizes. Everything that can be decided is decided when it is made.
// Weights are R [O, H, W, I]; "prepared" is what the kernels read, in whatever layout they want, renewed once a change.
class ConvPlan {
public:
    virtual ~ConvPlan() = default;

    virtual size_t prepared_bytes() const = 0;
    virtual size_t workspace_bytes() const = 0;                                   // the largest of all passes and batch sizes
    virtual size_t weights_workspace_bytes() const { return workspace_bytes(); }  // of backward_weights alone
    virtual size_t other_workspace_bytes() const { return workspace_bytes(); }    // of all but that
    // weights lie there, unchanged, until the next call.
    virtual void prepare(std::byte* prepared, Array weights, std::byte* workspace) = 0;

    // y = conv(x) + bias [+ residual]; residual may be y itself. bias may be empty where it is an op of its own and there is no residual.
    virtual void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                         std::byte* workspace) = 0;
    // Which of the ops wanted around a forward pass the convolution does better itself: decided when the plan was made.
    virtual ConvFusion fuses(int64_t batch, ConvFusion wanted, bool residual) const {
        (void)batch, (void)wanted, (void)residual;
        return {};
    }
    // Whether a bias, without a residual, costs a pass over y.
    virtual bool adds_bias_apart(int64_t batch) const {
        (void)batch;
        return false;
    }
    // forward with exactly what `fuses` answered. It may round the norm otherwise than Ops::norm_leaky does, so that a value near
    // the kink may fall on the other side.
    virtual void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                               const Tensor* residual, std::byte* workspace) {
        if (with.norm != nullptr || with.sums.count > 0) throw std::logic_error("A convolution was given ops that it does not fuse.");
        forward(y, x, prepared, bias, residual, workspace);
    }
    // d_x = the gradient of x
    virtual void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) = 0;
    // The same question for the LeakyReLU that follows in the backward pass, and the sums that the norm behind it needs.
    virtual bool fuses_leaky_backward(int64_t batch) const {
        (void)batch;
        return false;
    }
    // d_z = leaky'(norm(x)) * the gradient of leaky(norm(x)); only where fuses_leaky_backward.
    virtual void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                                     std::byte* workspace) {
        (void)d_z, (void)d_y, (void)with, (void)prepared, (void)workspace;
        throw std::logic_error("A convolution was given a LeakyReLU that it does not fuse.");
    }
    // d_w [O, H, W, I] += the gradient of the weights
    virtual void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) = 0;
    // Whether the plan does norm and LeakyReLU in front of that better itself.
    virtual bool fuses_weights_activation(int64_t batch) const {
        (void)batch;
        return false;
    }
    // backward_weights of leaky(norm(x)); only where fuses_weights_activation.
    virtual void backward_weights_fused(Array d_w, const Tensor& x, const NormCoefficients& norm, const Tensor& d_y, std::byte* workspace) {
        (void)d_w, (void)x, (void)norm, (void)d_y, (void)workspace;
        throw std::logic_error("A convolution was given an activation that it does not fuse.");
    }

    struct Choice {
        std::string pass, engine;
        int64_t batch = 0;
        size_t workspace_bytes = 0;
        bool candidate = false;  // only listed: something else runs
    };
    virtual std::vector<Choice> choices() const = 0;
};

}  // namespace jem
