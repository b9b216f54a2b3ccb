// Layers as values, and the lines that the passes of a network are written in. A network derives from LayeredNetwork, makes its layers in
// its constructor, names the tensors of a pass in add_tensors, and is two lists, forward and backward, that read side by side.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/network/network.h"
#include "engine/settings/enums.h"
#include "kernels/norm.h"

namespace jem {

enum class NormBatch { of_rank, of_job };  // whose images a batch's statistics are taken over, with several ranks

// Normalisation and the LeakyReLU behind it.
struct NormSettings {
    NormKind kind = NormKind::batch;    // none: the activation alone
    bool shifts = true, scales = true;  // of act; not both of them false
    double epsilon = kNormEpsilon, momentum = kNormMomentum;
    double slope = kLeakySlope;  // 0: ReLU
};
struct Norm {
    NormSettings settings;
    int64_t channels = 0;
    int64_t gamma = 0, beta = 0;                // offsets in the flat parameters; of act the scale and the shift in front of it
    int64_t running_mean = 0, running_var = 0;  // offsets in the flat statistics
    // R [5, channels]: mean, inv_std, scale, a, b; of act and beta, [6, channels]; of images [6, images of the largest pass, channels].
    Slot coefficients;

    bool takes_batch() const { return settings.kind == NormKind::batch; }
    bool takes_images() const { return settings.kind == NormKind::instance || settings.kind == NormKind::layer; }
    int64_t arrays() const { return takes_batch() ? 5 : 6; }  // of coefficients
    bool is_affine() const { return settings.kind == NormKind::act; }
    int64_t group() const { return settings.kind == NormKind::layer ? channels : 1; }  // of takes_images
};

enum class ConvBias {
    none,  // no parameter
    own,
    normalised,  // a batch norm behind it takes each channel's mean away: no gradient but with running statistics
    centred,     // an instance norm does: none at all
};
struct ConvSettings {
    ConvShape shape;
    ConvBias bias = ConvBias::own;
    const Norm* in_front = nullptr;  // what its input passes through; null: nothing
    bool sums = false;               // a batch norm is right behind it, which sums may be taken for
    bool residual = false;           // something is added to its output
    bool for_norm_alone = false;     // nobody but a batch norm reads its output
    ConvInput input = ConvInput::activations;
    SpectralForm spectral = SpectralForm::none;
    double deviation = 0;  // of its first weights, N(0, deviation^2); 0: U(-b, b), b = 1 / sqrt(fan_in)
};
struct Conv {
    std::string name;
    ConvSettings settings;
    int64_t weight = 0, bias = 0;  // offsets in the flat parameters
    int64_t estimate = 0;          // offset in the flat statistics, of a spectral norm's u
    ConvPlan* plan = nullptr;
    Slot prepared;
    Slot normalised, u, v, scalars;  // of a spectral norm: the weights by it, and SpectralNorm

    const ConvShape& shape() const { return settings.shape; }
};

enum class LinearBias { none, own };
struct Linear {
    int64_t in = 0, out = 0;
    int64_t weight = 0, bias = 0;  // offsets in the flat parameters
    LinearBias has_bias = LinearBias::own;
    std::unique_ptr<LinearPlan> plan;  // null where no pass ends in it
};

struct DropoutLayer {
    double rate = 0;
    uint64_t seed = 0;
    int64_t number = 0;  // among the network's: each draws masks of its own
};

// One tensor of one pass; the memory is the slot's.
struct PassTensor {
    Slot slot;
    Tensor view;  // without address
};

class LayeredNetwork : public Network {
public:
    const std::vector<TensorInfo>& parameters() const override { return parameters_; }
    const std::vector<TensorInfo>& statistics() const override { return statistics_; }
    Range parameters_of(Head head) const override;
    int64_t activation_count() const override;
    int add_pass(const PassSettings& settings) override;
    void build(Device& device, Memory& memory, ConvAlgorithm algorithm) override;
    void prepare(Array weights, Array statistics) override;
    void finish_gradient(const NetworkMemory& memory) override;
    void keep_estimates(const NetworkMemory& memory) override;
    std::vector<std::pair<std::string, ConvPlan::Choice>> convolution_choices() const override;
    std::string head_engine() const override;
    Tensor output(int pass, Output output) override;
    Tensor d_logits(int pass) override { return at(ends(pass).d_logits); }

protected:
    explicit LayeredNetwork(NormBatch norm_batch = NormBatch::of_rank) : norm_batch_(norm_batch) {}

    // Layers, in the order in which their tensors lie in files; they live as long as the network.
    const Norm* add_norm(const std::string& name, int64_t channels, const NormSettings& settings);
    const Conv* add_conv(const std::string& name, const ConvSettings& settings);
    const Linear* add_head(Head head, const std::string& name, int64_t in, int64_t out, LinearBias bias = LinearBias::own);
    // Those of the public JEM checkpoints: the classes', and where it is asked for the energy's.
    void add_heads(int64_t in, int64_t classes, bool energy);
    // What a file holds of them that the network has not, as Network::idle_prefixes: every published one holds the energy's, a conditional
    // model's too.
    std::vector<std::string> idle_heads() const;
    DropoutLayer add_dropout(double rate, uint64_t seed) { return {rate, seed, dropouts_++}; }
    bool has_head(Head head) const { return heads_[static_cast<size_t>(head)].in > 0; }

    // Called by build, once a pass, in their order: makes the pass's tensors, but for its ends.
    virtual void add_tensors(int pass) = 0;
    virtual PassTensor first_convolution(int pass) const = 0;  // what it makes of the images
    // What the head reads and makes.
    struct Ends {
        PassTensor features, d_features, logits, d_logits;
    };
    const Ends& ends(int pass) const { return ends_[static_cast<size_t>(pass)]; }
    const PassSettings& pass_settings(int pass) const { return passes_[static_cast<size_t>(pass)]; }
    int64_t most_images(Gradients gradients) const;  // of a pass that takes these
    const Linear& head_of(int pass) const { return heads_[static_cast<size_t>(pass_settings(pass).head)]; }
    PassTensor hidden(int pass, const std::string& name, int64_t c, int64_t h, int64_t w);      // of the activation type
    PassTensor flat(int pass, const std::string& name, int64_t c);                              // R [N, C, 1, 1]
    PassTensor image_like(int pass, const std::string& name, int64_t c, int64_t h, int64_t w);  // R [N, H, W, C]
    PassTensor input_of(int pass, const std::string& name, const Conv& conv);
    PassTensor output_of(int pass, const std::string& name, const Conv& conv);
    Tensor at(const PassTensor& t);
    Ops& ops() { return device_->ops(); }

    // The lines that forward and backward are written in. Outputs come first.

    // The norm that comes next, forward.
    struct Next {
        const Norm* norm;  // null: nobody wants sums
        NormMode mode;
    };
    // What a convolution leaves for it.
    struct ForNorm {
        Array sums;      // R [2, C], taken while it wrote what the norm reads, and valid until the next ones are; else empty
        Array left_out;  // R [C], its bias, where it left that out: a batch's statistics take it away, and adding it may cost a pass
    };
    // y = conv(activation(norm(x))) + residual, unless that is null; a is where the activation lies between the two, and a convolution
    // that fuses them needs no memory for it.
    ForNorm activate_and_convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y, const PassTensor* a, const Tensor& x,
                                  const Tensor* residual, const Next& next);
    ForNorm convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y, const Tensor& x, const Next& next = {});
    // The gradient behind the activation in front of the convolution; with sums it has passed the activation and is that behind the norm.
    // x is what the norm reads.
    Array convolve_data(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_x, const Tensor& d_y, const Tensor& x);
    void convolve_data(const Conv& conv, const Tensor& d_x, const Tensor& d_y);
    // sum = x + y; of channels that a convolution without bias has, too.
    void add(const Tensor& sum, const Tensor& x, const Tensor& y);
    // Whether activate_and_convolve leaves the activation of so many images in its a.
    bool leaves_activation(const Conv& conv, int64_t images, bool residual, const Next& next) const;
    // Accumulates the gradients of weight and bias; a as above, unless the activation was kept and lies there.
    void activate_and_convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const PassTensor& a, const Tensor& x,
                                       const Tensor& d_y, const PassTensor* kept = nullptr);
    void convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& x, const Tensor& d_y);
    // Where the device has a side queue, gradients of weights are taken there, beside what follows: until here what they read stays. A
    // backward pass ends with it.
    void await_weights() { memory_->join_side(); }
    // The norm's coefficients for x, and what the convolution in front left for them.
    void statistics_of(const Norm& norm, const NetworkMemory& m, NormMode mode, const Tensor& x, const ForNorm& left = {});
    void activate(const Norm& norm, const NetworkMemory& m, const Tensor& y, const Tensor& x);
    // In place: d_x holds the gradient behind the activation and receives the one in front of the norm, + residual unless that is null.
    // With sums the activation has been passed already.
    void activate_backward(const Norm& norm, const NetworkMemory& m, const PassSettings& pass, const Tensor& d_x, const Tensor& x,
                           const Tensor* residual, Array sums);
    // Of act: accumulates the gradients of shift and scale, whose output's gradient is d_y.
    void affine_weights(const Norm& norm, const NetworkMemory& m, const Tensor& d_y, const Tensor& x);
    // y, which receives x with some values dropped; x itself in a pass of running statistics, that is evaluation. Of gradients the same.
    Tensor drop(const DropoutLayer& layer, int pass, const NetworkMemory& m, const PassTensor& y, const Tensor& x);
    // Between the ends of a pass.
    void apply_head(int pass, const NetworkMemory& m);
    void head_backward(int pass, const NetworkMemory& m);

private:
    struct Planned {
        ConvShape shape;
        ConvInput input;
        double slope;
        std::unique_ptr<ConvPlan> plan;
    };

    int64_t add_parameter(const std::string& name, std::vector<int64_t> shape, int64_t fan_in, double initial);
    int64_t add_statistic(const std::string& name, int64_t channels, double initial);
    ConvPlan* plan_of(const Conv& conv, const ConvOptions& options);
    NormCoefficients coefficients(const Norm& norm, Array weights, int64_t images = 1);
    Array image_sums(const Norm& norm, int64_t images);
    void initialise(const Norm& norm, const NetworkMemory& m, const Tensor& x);
    Array shares(const Norm& norm);
    bool normalises_by_batch(const Next& next) const;
    bool wants_sums(const Next& next) const;
    ConvFusion fusion_of(const Conv& conv, int64_t images, bool residual, const Next& next) const;
    Array sums_for(const Norm& norm);
    Array zeros(int64_t channels);
    Array bias_of(const Conv& conv, Array weights);
    Array bias_of(const Linear& head, Array weights);
    Array weights_of(const Conv& conv, Array flat) const { return flat.slice(conv.weight, conv.shape().weight_count()); }
    Array estimate_of(const Conv& conv, Array statistics) const { return statistics.slice(conv.estimate, conv.shape().out_channels); }
    SpectralNorm spectral_norm(const Conv& conv);
    Array weights_gradient(const Conv& conv, const NetworkMemory& m);
    void add_bias_gradient(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_y);

    NormBatch norm_batch_;
    std::vector<TensorInfo> parameters_, statistics_;
    std::deque<Conv> convs_;  // their addresses stay
    std::deque<Norm> norms_;
    Linear heads_[2];  // by Head
    int64_t dropouts_ = 0;
    std::vector<PassSettings> passes_;
    std::vector<Ends> ends_;  // by pass

    Device* device_ = nullptr;
    Memory* memory_ = nullptr;
    std::vector<Planned> plans_;  // one for all convolutions that are alike
    Slot norm_shares_;            // f64 [ranks, 2, C]: what the ranks tell each other of one norm layer; with NormBatch::of_job, and of act
    Slot image_sums_;             // f64 [2, images, C]: of a norm that is not of the batch
    Slot norm_sums_;              // R [2, C]: what a convolution takes for the norm that follows
    Slot zeros_;                  // R [C]: the bias of layers that have none, or leave it out
};

}  // namespace jem
