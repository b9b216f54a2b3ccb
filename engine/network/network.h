// What the method needs of a network: its tensors by name, and passes of a fixed batch size forward and backward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/device/device.h"
#include "engine/memory/memory.h"
#include "kernels/tensor.h"

namespace jem {

// A parameter or statistic, and where it lies in the flat array of its kind.
struct TensorInfo {
    std::string name;            // as in the public checkpoints
    std::vector<int64_t> shape;  // in files: [out, in, kh, kw], [out, in] or [channels]
    int64_t offset = 0;          // in elements; four-dimensional weights lie there as [out, kh, kw, in]
    int64_t fan_in = 0;          // of a convolution's or linear layer's weight and bias, 0 for norms
    double initial = 0;          // where fan_in is 0
    double deviation = 0;        // where it begins as N(0, deviation^2), whatever fan_in is; 0: it does not

    int64_t count() const {
        int64_t n = 1;
        for (const int64_t d : shape) n *= d;
        return n;
    }
};

enum class NormMode {
    batch_update,  // the batch's statistics, running ones updated; dropout drops
    batch_keep,    // the batch's statistics, running ones left alone
    running,       // the running statistics (evaluation)
};

enum class Gradients { none, input, weights };

// A tensor that a pass hands out after forward.
enum class Output {
    logits,             // R [N, classes, 1, 1]; with Head::energy [N, 1, 1, 1], so that their LSE is the unit's own value
    features,           // R [N, C, 1, 1], what the head reads
    first_convolution,  // of the activation type, [N, C, H, W]: what the first convolution makes of the images
};

struct PassSettings {
    std::string name;
    int64_t batch = 0;
    NormMode norm = NormMode::batch_update;
    Gradients gradients = Gradients::none;
    Head head = Head::classes;  // that the pass ends in
};

// Where a pass reads parameters and leaves gradients. Flat arrays of the device's real type.
struct NetworkMemory {
    Array weights;     // [P], the master or perturbed ones
    Array gradient;    // [P], accumulated into; empty unless Gradients::weights
    Array statistics;  // [S], running means and variances
    const IterationState* state = nullptr;
    bool initialises = false;  // forward: norms that a batch sets take it from this one (NormKind::act), writing to weights
};

class Network {
public:
    virtual ~Network() = default;

    virtual const std::vector<TensorInfo>& parameters() const = 0;
    virtual const std::vector<TensorInfo>& statistics() const = 0;
    int64_t parameter_count() const { return end_of(parameters()); }
    int64_t statistic_count() const { return end_of(statistics()); }
    // Where the parameters of a head lie in the flat array; none where the network has no such head.
    struct Range {
        int64_t first = 0, count = 0;
    };
    virtual Range parameters_of(Head head) const = 0;
    // What checkpoints of this network hold besides, by the first letters of the tensors' names: parameters of the published
    // network that take no part in this one and stay as they are, and tensors that nothing reads.
    virtual std::vector<std::string> idle_prefixes() const { return {}; }
    virtual std::vector<std::string> unread_prefixes() const { return {}; }

    // What to do about a file of weights that does not fit, for people.
    virtual std::string weights_advice() const {
        return "Give the --depth, --width, --norm, --energy-head, --in-channels and --num-classes that it was trained with.";
    }

    // What a pass forward makes of an image in its convolutions, in values.
    virtual int64_t activation_count() const = 0;
    // Images that a pass takes at a time on a device where nothing else decides it.
    int64_t best_batch(const Device& device, int64_t most) const { return device.best_batch(parameter_count(), activation_count(), most); }

    // A pass to be run later; returns its number. Only before build. std::logic_error for a head that the network has not.
    virtual int add_pass(const PassSettings& settings) = 0;
    // Plans every convolution for every pass and registers memory.
    virtual void build(Device& device, Memory& memory, ConvAlgorithm algorithm) = 0;

    // Brings the weights into the form that convolutions read. To be queued after every change of the weights, and before
    // a pass that reads other ones. They lie there, unchanged, until the next call.
    virtual void prepare(Array weights, Array statistics) = 0;
    // What passes have added up is the gradient of those that prepare() was given last. To be queued once after the last of them.
    virtual void finish_gradient(const NetworkMemory&) {}
    // Before the prepare() of an update: what the last one found out on the way becomes the statistics.
    virtual void keep_estimates(const NetworkMemory&) {}

    // images R [N, H, W, C] with block = C -> logits(pass)
    virtual void forward(int pass, const NetworkMemory& memory, const Tensor& images) = 0;
    // From d_logits(pass): accumulates the gradient of the weights, or writes the images' gradient, as the pass says.
    // The other head's gradient is left alone.
    virtual void backward(int pass, const NetworkMemory& memory, const Tensor& images, const Tensor* d_images) = 0;
    // Valid from forward until the last call that memory was planned with.
    virtual Tensor output(int pass, Output output) = 0;
    Tensor logits(int pass) { return output(pass, Output::logits); }
    virtual Tensor d_logits(int pass) = 0;  // as logits; may be the same memory

    virtual std::vector<std::pair<std::string, ConvPlan::Choice>> convolution_choices() const = 0;
    virtual std::string head_engine() const = 0;  // of the linear layer; may be empty

private:
    static int64_t end_of(const std::vector<TensorInfo>& tensors) {
        return tensors.empty() ? 0 : tensors.back().offset + tensors.back().count();
    }
};

}  // namespace jem
