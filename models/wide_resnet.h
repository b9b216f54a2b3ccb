// JEM's Wide-ResNet d-k: pre-activation blocks, LeakyReLU 0.2, every convolution with a bias, 1x1 shortcuts on the raw block input
// (Zagoruyko & Komodakis 2016 as used by JEM, JEM++ and SADA-JEM). Tensor names are those of the public checkpoints.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/network/network.h"
#include "engine/settings/enums.h"

namespace jem {

enum class NormBatch { of_rank, of_job };  // whose images a batch's statistics are taken over, with several ranks

struct WideResNetSettings {
    int64_t depth = 28, width = 10;  // depth = 6n + 4
    NormKind norm = NormKind::batch;
    NormBatch norm_batch = NormBatch::of_rank;
    bool recompute = false;                                      // keep a block's input alone; its first convolution runs again
    int64_t in_channels = 3, image_size = 32, num_classes = 10;  // 64 pixels and more: a fourth group
    bool energy_head = false;                                    // besides the classes' a head of one unit: Head::energy
};

// The first size that no such network has, by its flag.
struct UnsupportedSize {
    std::string flag;
    int64_t value;
    std::string why;
};
std::optional<UnsupportedSize> unsupported_size(const WideResNetSettings& settings);

class WideResNet final : public Network {
public:
    // Throws std::invalid_argument for a depth that is not 6n + 4, or sizes out of range.
    explicit WideResNet(const WideResNetSettings& settings);

    const std::vector<TensorInfo>& parameters() const override { return parameters_; }
    const std::vector<TensorInfo>& statistics() const override { return statistics_; }
    std::vector<std::string> idle_prefixes() const override;
    std::vector<std::string> unread_prefixes() const override;
    int add_pass(const PassSettings& settings) override;
    void build(Device& device, Memory& memory, ConvAlgorithm algorithm) override;
    void prepare(Array weights) override;
    void forward(int pass, const NetworkMemory& memory, const Tensor& images) override;
    void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) override;
    Tensor output(int pass, Output output) override;
    Tensor d_logits(int pass) override;
    std::vector<std::pair<std::string, ConvPlan::Choice>> convolution_choices() const override;
    std::string head_engine() const override;

private:
    struct Conv {
        std::string name;
        ConvShape shape;
        int64_t weight = 0, bias = 0;  // offsets in the flat parameters
        ConvPlan* plan = nullptr;
        Slot prepared;
    };
    struct Norm {
        int64_t channels = 0;
        int64_t gamma = 0, beta = 0;                // offsets in the flat parameters
        int64_t running_mean = 0, running_var = 0;  // offsets in the flat statistics
        Slot coefficients;                          // R [5, channels]: mean, inv_std, scale, a, b
    };
    struct Block {
        Norm norm1, norm2;  // unused with NormKind::none
        Conv conv1, conv2;
        std::optional<Conv> shortcut;
    };
    struct Linear {
        int64_t in = 0, out = 0;
        int64_t weight = 0, bias = 0;  // offsets in the flat parameters
        std::unique_ptr<LinearPlan> plan;
    };
    // One activation of one pass; the memory is the slot's.
    struct Activation {
        Slot slot;
        Tensor view;  // without address
    };
    struct BlockActivations {
        Activation a1, h, a2, y;          // forward; the block's input is the y before it. h and y are kept for the backward pass
        Activation again1, again2;        // a1 and a2 once more, for the weight gradients
        Activation again_h, again_a1;     // h once more where it was not kept, and a1 for that
        Activation d_h, d_x, d_shortcut;  // gradients of h, of the block's input, of what the shortcut passes on
    };
    struct PassActivations {
        PassSettings settings;
        Activation stem, tail, features, logits, d_logits, d_features, d_tail;
        std::vector<BlockActivations> blocks;
    };

    Conv add_conv(const std::string& name, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride);
    Norm add_norm(const std::string& name, int64_t channels);
    Linear add_linear(const std::string& name, int64_t in, int64_t out);
    Linear& head_of(const PassSettings& pass);
    int64_t add_parameter(const std::string& name, std::vector<int64_t> shape, int64_t fan_in, double initial);
    template <class Visit>
    void for_each_conv(Visit visit);

    Tensor at(const Activation& a);
    Array coefficient(const Norm& norm, int64_t index);
    NormCoefficients coefficients(const Norm& norm, Array weights);
    Array shares(const Norm& norm);

    // The norm that comes next, forward or backward. A convolution may take the sums for it while it writes what the norm reads: then
    // it answers with them, R [2, C], else with nothing; they are valid until the next ones are taken.
    struct Next {
        const Norm* norm;  // null: nobody wants sums
        NormMode mode;
    };
    std::vector<ConvCall> calls_of(const ConvShape& shape) const;
    bool wants_sums(const Next& next) const;
    Array sums_for(const Norm& norm);

    // The lines that forward and backward are written in.
    Array activate_and_convolve(const Norm* norm, const Conv& conv, const NetworkMemory& m, const Tensor& y, const Activation* a,
                                const Tensor& x, const Tensor* residual, const Next& next);
    Array convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y, const Tensor& x, const Next& next = {});
    Array convolve_data(const Conv& conv, const NetworkMemory& m, const Tensor& d_x, const Tensor& d_y, const Tensor& x, const Next& next);
    void convolve_data(const Conv& conv, const Tensor& d_x, const Tensor& d_y);
    Array weights_gradient(const Conv& conv, const NetworkMemory& m);
    void activate_and_convolve_weights(const Norm& norm, const Conv& conv, const NetworkMemory& m, NormMode mode, const Activation& a,
                                       const Tensor& x, const Tensor& d_y);
    void convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& x, const Tensor& d_y);
    void add_bias_gradient(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_y);
    void statistics_of(const Norm& norm, const NetworkMemory& m, NormMode mode, const Tensor& x, Array sums);
    void activate(const Norm& norm, const NetworkMemory& m, const Tensor& y, const Tensor& x);
    void activate_backward(const Norm& norm, const NetworkMemory& m, const PassSettings& pass, const Tensor& d_x, const Tensor& x,
                           const Tensor* residual, Array sums);

    WideResNetSettings settings_;
    std::vector<TensorInfo> parameters_, statistics_;
    Conv stem_;
    std::vector<Block> blocks_;
    Norm tail_;
    Slot norm_shares_;  // f64 [ranks, 2, C]: what the ranks tell each other of one norm layer; only with NormBatch::of_job
    Slot norm_sums_;    // R [2, C]: what a convolution takes for the norm that follows
    Linear class_head_;
    std::optional<Linear> energy_head_;

    Device* device_ = nullptr;
    Memory* memory_ = nullptr;
    std::vector<std::pair<ConvShape, std::unique_ptr<ConvPlan>>> plans_;  // one a shape
    std::vector<PassActivations> passes_;
};

}  // namespace jem
