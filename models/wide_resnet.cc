#include "models/wide_resnet.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>

namespace jem {
namespace {

constexpr int64_t kNormArrays = 5;  // mean, inv_std, scale, a, b
constexpr const char* kEnergyHead = "energy_output";

}  // namespace

std::optional<UnsupportedSize> unsupported_size(const WideResNetSettings& s) {
    if (s.depth < 10 || (s.depth - 4) % 6 != 0) return {{"--depth", s.depth, "a Wide-ResNet has depth 6n + 4: 10, 16, 22, 28 ..."}};
    if (s.width < 1 || s.width > 32) return {{"--width", s.width, "1 to 32 is supported"}};
    if (s.in_channels != 1 && s.in_channels != 3) return {{"--in-channels", s.in_channels, "images have 1 or 3"}};
    if (s.image_size < 8 || s.image_size > 64) return {{"--image-size", s.image_size, "8 to 64 is supported"}};
    if (s.num_classes < 2 || s.num_classes > 10000) return {{"--num-classes", s.num_classes, "2 to 10000 is supported"}};
    return std::nullopt;
}

WideResNet::WideResNet(const WideResNetSettings& settings) : settings_(settings) {
    if (const auto wrong = unsupported_size(settings_))
        throw std::invalid_argument(wrong->flag + " " + std::to_string(wrong->value) + " (" + wrong->why + "). Change the flag.");
    const int64_t blocks_a_group = (settings_.depth - 4) / 6;
    const int64_t groups = settings_.image_size >= 64 ? 4 : 3;
    int64_t size = settings_.image_size, channels = 16;
    stem_ = add_conv("f.conv1", settings_.in_channels, channels, size, 3, 1);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < blocks_a_group; ++i) {
            const std::string name = "f.layer" + std::to_string(g + 1) + "." + std::to_string(i);
            const int64_t out = (16 << g) * settings_.width, stride = i == 0 && g > 0 ? 2 : 1;
            Block b;
            b.norm1 = add_norm(name + ".bn1", channels);
            b.conv1 = add_conv(name + ".conv1", channels, out, size, 3, 1);
            b.norm2 = add_norm(name + ".bn2", out);
            b.conv2 = add_conv(name + ".conv2", out, out, size, 3, stride);
            if (stride != 1 || channels != out) b.shortcut = add_conv(name + ".shortcut.0", channels, out, size, 1, stride);
            size = b.conv2.shape.out_height();
            channels = out;
            blocks_.push_back(std::move(b));
        }
    tail_ = add_norm("f.bn1", channels);
    class_head_ = add_linear("class_output", channels, settings_.num_classes);
    if (settings_.energy_head) energy_head_ = add_linear(kEnergyHead, channels, 1);
}

// Every published checkpoint holds the energy head, conditional models included.
std::vector<std::string> WideResNet::idle_prefixes() const {
    return energy_head_ ? std::vector<std::string>{} : std::vector<std::string>{std::string(kEnergyHead) + "."};
}

// JEM's unused layer, JEM++'s second names of the same tensors.
std::vector<std::string> WideResNet::unread_prefixes() const { return {"f.linear.", "f.layer_one.", "f.other_layers."}; }

int64_t WideResNet::add_parameter(const std::string& name, std::vector<int64_t> shape, int64_t fan_in, double initial) {
    const int64_t offset = parameter_count();
    parameters_.push_back({name, std::move(shape), offset, fan_in, initial});
    return offset;
}

WideResNet::Conv WideResNet::add_conv(const std::string& name, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride) {
    Conv conv;
    conv.name = name;
    conv.shape = {.in_channels = in, .out_channels = out, .height = size, .width = size, .kernel = kernel, .stride = stride};
    conv.weight = add_parameter(name + ".weight", {out, in, kernel, kernel}, in * kernel * kernel, 0);
    conv.bias = add_parameter(name + ".bias", {out}, in * kernel * kernel, 0);
    return conv;
}

WideResNet::Norm WideResNet::add_norm(const std::string& name, int64_t channels) {
    Norm norm;
    norm.channels = channels;
    if (settings_.norm == NormKind::none) return norm;
    norm.gamma = add_parameter(name + ".weight", {channels}, 0, 1);
    norm.beta = add_parameter(name + ".bias", {channels}, 0, 0);
    norm.running_mean = statistic_count();
    statistics_.push_back({name + ".running_mean", {channels}, norm.running_mean, 0, 0});
    norm.running_var = statistic_count();
    statistics_.push_back({name + ".running_var", {channels}, norm.running_var, 0, 1});
    return norm;
}

WideResNet::Linear WideResNet::add_linear(const std::string& name, int64_t in, int64_t out) {
    Linear linear;
    linear.in = in;
    linear.out = out;
    linear.weight = add_parameter(name + ".weight", {out, in}, in, 0);
    linear.bias = add_parameter(name + ".bias", {out}, in, 0);
    return linear;
}

WideResNet::Linear& WideResNet::head_of(const PassSettings& pass) { return pass.head == Head::energy ? *energy_head_ : class_head_; }

template <class Visit>
void WideResNet::for_each_conv(Visit visit) {
    visit(stem_);
    for (Block& b : blocks_) {
        visit(b.conv1);
        visit(b.conv2);
        if (b.shortcut) visit(*b.shortcut);
    }
}

int WideResNet::add_pass(const PassSettings& settings) {
    if (device_ != nullptr) throw std::logic_error("Pass " + settings.name + " was added after the network was built.");
    if (settings.head == Head::energy && !energy_head_)
        throw std::logic_error("Pass " + settings.name + " ends in an energy head, which the network has not.");
    passes_.emplace_back().settings = settings;
    return static_cast<int>(passes_.size()) - 1;
}

void WideResNet::build(Device& device, Memory& memory, ConvAlgorithm algorithm) {
    device_ = &device;
    memory_ = &memory;
    std::set<int64_t> batches, all;
    for (const PassActivations& p : passes_) {
        if (p.settings.gradients != Gradients::none) batches.insert(p.settings.batch);
        all.insert(p.settings.batch);
    }
    ConvOptions options{.batches = {batches.begin(), batches.end()}, .algorithm = algorithm};
    std::set_difference(all.begin(), all.end(), batches.begin(), batches.end(), std::back_inserter(options.forward_only));

    for_each_conv([&](Conv& conv) {
        auto found = std::find_if(plans_.begin(), plans_.end(), [&](const auto& p) { return p.first == conv.shape; });
        if (found == plans_.end()) {
            ConvOptions own = options;
            if (&conv == &stem_) own.input = ConvInput::images;
            own.calls = calls_of(conv.shape);
            plans_.emplace_back(conv.shape, device.plan_convolution(conv.shape, own));
            found = plans_.end() - 1;
            memory.need_workspace(found->second->workspace_bytes());
        }
        conv.plan = found->second.get();
        conv.prepared = memory.keep("compute weights", conv.name, conv.plan->prepared_bytes());
    });
    for (const Head head : {Head::classes, Head::energy}) {
        std::set<int64_t> of_head;
        for (const PassActivations& p : passes_)
            if (p.settings.head == head) of_head.insert(p.settings.batch);
        if (of_head.empty()) continue;
        Linear& linear = head == Head::energy ? *energy_head_ : class_head_;
        linear.plan = device.plan_linear(linear.in, linear.out, {of_head.begin(), of_head.end()});
        memory.need_workspace(linear.plan->workspace_bytes());
    }

    const auto keep_coefficients = [&](Norm& norm) {
        if (settings_.norm == NormKind::none) return;
        norm.coefficients =
            memory.keep("statistics", "norm coefficients", static_cast<size_t>(kNormArrays * norm.channels) * size_of(device.real_type()));
    };
    for (Block& b : blocks_) {
        keep_coefficients(b.norm1);
        keep_coefficients(b.norm2);
    }
    keep_coefficients(tail_);
    if (settings_.norm == NormKind::batch)
        norm_sums_ = memory.keep("statistics", "norm sums of a convolution",
                                 static_cast<size_t>(2 * class_head_.in) * size_of(device.real_type()));  // the widest norm
    if (settings_.norm == NormKind::batch && settings_.norm_batch == NormBatch::of_job && device.communicator().size() > 1)
        norm_shares_ =
            memory.keep("statistics", "norm sums of all ranks",
                        static_cast<size_t>(device.communicator().size() * 2 * class_head_.in) * sizeof(double));  // the widest norm

    for (PassActivations& p : passes_) {
        const int64_t n = p.settings.batch;
        const auto activation = [&](const std::string& name, int64_t c, int64_t h, int64_t w, DType type, int64_t block) {
            Activation a;
            a.view = {.data = nullptr, .type = type, .n = n, .c = c, .h = h, .w = w, .block = block};
            a.slot = memory.transient(p.settings.name + "/" + name, a.view.bytes());
            return a;
        };
        const auto hidden = [&](const std::string& name, int64_t c, int64_t h, int64_t w) {
            return activation(name, c, h, w, device.activation_type(), device.channel_block(c));
        };
        const auto flat = [&](const std::string& name, int64_t c) { return activation(name, c, 1, 1, device.real_type(), c); };
        const auto input_of = [&](const std::string& name, const ConvShape& s) { return hidden(name, s.in_channels, s.height, s.width); };
        const auto output_of = [&](const std::string& name, const ConvShape& s) {
            return hidden(name, s.out_channels, s.out_height(), s.out_width());
        };
        p.stem = output_of("stem", stem_.shape);
        for (const Block& b : blocks_)
            p.blocks.push_back({.a1 = input_of(b.conv1.name + "/input", b.conv1.shape),
                                .h = output_of(b.conv1.name, b.conv1.shape),
                                .a2 = input_of(b.conv2.name + "/input", b.conv2.shape),
                                .y = output_of(b.conv2.name, b.conv2.shape),
                                .again1 = input_of(b.conv1.name + "/input again", b.conv1.shape),
                                .again2 = input_of(b.conv2.name + "/input again", b.conv2.shape),
                                .again_h = output_of(b.conv1.name + " again", b.conv1.shape),
                                .again_a1 = input_of(b.conv1.name + "/input, recomputed", b.conv1.shape),
                                .d_h = input_of(b.conv2.name + "/d_input", b.conv2.shape),
                                .d_x = input_of(b.conv1.name + "/d_input", b.conv1.shape),
                                .d_shortcut = input_of(b.conv1.name + "/d_shortcut", b.conv1.shape)});
        const ConvShape& last = blocks_.back().conv2.shape;
        p.tail = output_of("tail", last);
        p.d_tail = output_of("d_tail", last);
        p.features = flat("features", class_head_.in);
        p.d_features = flat("d_features", class_head_.in);
        p.logits = flat("logits", head_of(p.settings).out);
        p.d_logits = flat("d_logits", head_of(p.settings).out);
    }
}

void WideResNet::prepare(Array weights) {
    for_each_conv([&](Conv& conv) {
        conv.plan->prepare(memory_->at(conv.prepared), weights.slice(conv.weight, conv.shape.weight_count()), memory_->workspace());
    });
}

// The network, forward and backward, side by side --------------------------------------------------------------------------

void WideResNet::forward(int pass, const NetworkMemory& m, const Tensor& images) {
    PassActivations& p = passes_[static_cast<size_t>(pass)];
    const NormMode mode = p.settings.norm;
    Array sums = convolve(stem_, m, at(p.stem), images, {&blocks_.front().norm1, mode});
    const Activation* x = &p.stem;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const Block& b = blocks_[i];
        const BlockActivations& t = p.blocks[i];
        const Norm& behind = i + 1 < blocks_.size() ? blocks_[i + 1].norm1 : tail_;
        statistics_of(b.norm1, m, mode, at(*x), sums);
        sums = activate_and_convolve(&b.norm1, b.conv1, m, at(t.h), &t.a1, at(*x), nullptr, {&b.norm2, mode});
        statistics_of(b.norm2, m, mode, at(t.h), sums);
        if (b.shortcut) convolve(*b.shortcut, m, at(t.y), at(*x));
        const Tensor residual = b.shortcut ? at(t.y) : at(*x);
        sums = activate_and_convolve(&b.norm2, b.conv2, m, at(t.y), &t.a2, at(t.h), &residual, {&behind, mode});
        x = &t.y;
    }
    statistics_of(tail_, m, mode, at(*x), sums);
    activate(tail_, m, at(p.tail), at(*x));
    device_->ops().mean_pool(at(p.features), at(p.tail));
    const Linear& head = head_of(p.settings);
    head.plan->forward(at(p.logits), at(p.features), m.weights.slice(head.weight, head.out * head.in), m.weights.slice(head.bias, head.out),
                       memory_->workspace());
}

void WideResNet::backward(int pass, const NetworkMemory& m, const Tensor& images, const Tensor* d_images) {
    PassActivations& p = passes_[static_cast<size_t>(pass)];
    const NormMode mode = p.settings.norm;
    const bool weights = p.settings.gradients == Gradients::weights;
    // Where sampling has half as many images as the labelled batch, as in the paper, its two tensors a block need what one needs there.
    const bool recompute = settings_.recompute && weights;
    const Linear& head = head_of(p.settings);
    if (weights) {
        head.plan->backward_weights(m.gradient.slice(head.weight, head.out * head.in), at(p.features), at(p.d_logits),
                                    memory_->workspace());
        device_->ops().bias_gradient(m.gradient.slice(head.bias, head.out), at(p.d_logits));
    }
    head.plan->backward_data(at(p.d_features), at(p.d_logits), m.weights.slice(head.weight, head.out * head.in), memory_->workspace());
    device_->ops().mean_pool_backward(at(p.d_tail), at(p.d_features));
    activate_backward(tail_, m, p.settings, at(p.d_tail), at(p.blocks.back().y), nullptr, {});
    const Activation* d_y = &p.d_tail;
    for (size_t i = blocks_.size(); i-- > 0;) {
        const Block& b = blocks_[i];
        const BlockActivations& t = p.blocks[i];
        const Activation& x = i > 0 ? p.blocks[i - 1].y : p.stem;
        const Activation& h = recompute ? t.again_h : t.h;
        // With the sums that forward asked for, though nobody reads them: the same form gives the same bits.
        if (recompute) activate_and_convolve(&b.norm1, b.conv1, m, at(h), &t.again_a1, at(x), nullptr, {&b.norm2, mode});
        if (weights) activate_and_convolve_weights(b.norm2, b.conv2, m, mode, t.again2, at(h), at(*d_y));
        Array sums = convolve_data(b.conv2, m, at(t.d_h), at(*d_y), at(h), {&b.norm2, mode});
        activate_backward(b.norm2, m, p.settings, at(t.d_h), at(h), nullptr, sums);
        if (weights) activate_and_convolve_weights(b.norm1, b.conv1, m, mode, t.again1, at(x), at(t.d_h));
        sums = convolve_data(b.conv1, m, at(t.d_x), at(t.d_h), at(x), {&b.norm1, mode});
        if (b.shortcut) {
            if (weights) convolve_weights(*b.shortcut, m, mode, at(x), at(*d_y));
            convolve_data(*b.shortcut, at(t.d_shortcut), at(*d_y));
        }
        const Tensor residual = b.shortcut ? at(t.d_shortcut) : at(*d_y);
        activate_backward(b.norm1, m, p.settings, at(t.d_x), at(x), &residual, sums);
        d_y = &t.d_x;
    }
    if (weights)
        convolve_weights(stem_, m, mode, images, at(*d_y));
    else
        convolve_data(stem_, *d_images, at(*d_y));
}

// ---------------------------------------------------------------------------------------------------------------------------

Tensor WideResNet::at(const Activation& a) {
    Tensor t = a.view;
    t.data = memory_->at(a.slot);
    return t;
}

Tensor WideResNet::output(int pass, Output output) {
    const PassActivations& p = passes_[static_cast<size_t>(pass)];
    switch (output) {
        case Output::logits:
            return at(p.logits);
        case Output::features:
            return at(p.features);
        case Output::first_convolution:
            return at(p.stem);
    }
    throw std::logic_error("A pass was asked for a tensor that it does not hand out.");
}

Tensor WideResNet::d_logits(int pass) { return at(passes_[static_cast<size_t>(pass)].d_logits); }

Array WideResNet::coefficient(const Norm& norm, int64_t index) {
    const Array all{memory_->at(norm.coefficients), device_->real_type(), kNormArrays * norm.channels};
    return all.slice(index * norm.channels, norm.channels);
}

Array WideResNet::shares(const Norm& norm) {
    return {memory_->at(norm_shares_), DType::f64, device_->communicator().size() * 2 * norm.channels};
}

NormCoefficients WideResNet::coefficients(const Norm& norm, Array weights) {
    return {.mean = coefficient(norm, 0),
            .inv_std = coefficient(norm, 1),
            .scale = coefficient(norm, 2),
            .beta = weights.slice(norm.beta, norm.channels),
            .a = coefficient(norm, 3),
            .b = coefficient(norm, 4)};
}

// As forward does below.
std::vector<ConvCall> WideResNet::calls_of(const ConvShape& shape) const {
    const bool batch = settings_.norm == NormKind::batch;
    std::vector<ConvCall> calls;
    const auto add = [&](const Conv& conv, bool norm_in_front, bool norm_behind, bool residual) {
        if (!(conv.shape == shape)) return;
        for (const bool sums : {false, batch && norm_behind})
            calls.push_back({.around = {.activation = batch && norm_in_front, .sums = sums}, .residual = residual});
    };
    add(stem_, false, true, false);
    for (const Block& b : blocks_) {
        add(b.conv1, true, true, false);
        add(b.conv2, true, true, true);
        if (b.shortcut) add(*b.shortcut, false, false, false);
    }
    return calls;
}

bool WideResNet::wants_sums(const Next& next) const {
    return next.norm != nullptr && settings_.norm == NormKind::batch && next.mode != NormMode::running && !norm_shares_.valid();
}

Array WideResNet::sums_for(const Norm& norm) { return {memory_->at(norm_sums_), device_->real_type(), 2 * norm.channels}; }

// norm and LeakyReLU are in front, unless null; a is where the activation lies between the two, and a convolution that fuses them
// needs no memory for it.
Array WideResNet::activate_and_convolve(const Norm* norm, const Conv& conv, const NetworkMemory& m, const Tensor& y, const Activation* a,
                                        const Tensor& x, const Tensor* residual, const Next& next) {
    const ConvFusion wanted{.activation = norm != nullptr && settings_.norm == NormKind::batch, .sums = wants_sums(next)};
    const ConvFusion fused = conv.plan->fuses(x.n, wanted, residual != nullptr);
    FusedForward with;
    NormCoefficients in_front;
    Tensor from = x;
    if (fused.activation) {
        in_front = coefficients(*norm, m.weights);
        with.norm = &in_front;
    } else if (norm != nullptr) {
        from = at(*a);
        activate(*norm, m, from, x);
    }
    if (fused.sums) {
        with.centre = m.statistics.slice(next.norm->running_mean, next.norm->channels);
        with.sums = sums_for(*next.norm);
    }
    conv.plan->forward_fused(y, from, with, memory_->at(conv.prepared), m.weights.slice(conv.bias, conv.shape.out_channels), residual,
                             memory_->workspace());
    return with.sums;
}

Array WideResNet::convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y, const Tensor& x, const Next& next) {
    return activate_and_convolve(nullptr, conv, m, y, nullptr, x, nullptr, next);
}

// x is what `next` normalises; with sums d_x is the gradient behind that norm, in front of the LeakyReLU.
Array WideResNet::convolve_data(const Conv& conv, const NetworkMemory& m, const Tensor& d_x, const Tensor& d_y, const Tensor& x,
                                const Next& next) {
    if (!wants_sums(next) || !conv.plan->fuses_leaky_backward(d_y.n)) {
        convolve_data(conv, d_x, d_y);
        return {};
    }
    const Array sums = sums_for(*next.norm);
    conv.plan->backward_data_fused(d_x, d_y, {.x = x, .norm = coefficients(*next.norm, m.weights), .sums = sums},
                                   memory_->at(conv.prepared), memory_->workspace());
    return sums;
}

void WideResNet::convolve_data(const Conv& conv, const Tensor& d_x, const Tensor& d_y) {
    conv.plan->backward_data(d_x, d_y, memory_->at(conv.prepared), memory_->workspace());
}

void WideResNet::activate_and_convolve_weights(const Norm& norm, const Conv& conv, const NetworkMemory& m, NormMode mode,
                                               const Activation& a, const Tensor& x, const Tensor& d_y) {
    if (settings_.norm == NormKind::batch && conv.plan->fuses_weights_activation(x.n)) {
        conv.plan->backward_weights_fused(weights_gradient(conv, m), x, coefficients(norm, m.weights), d_y, memory_->workspace());
        return add_bias_gradient(conv, m, mode, d_y);
    }
    activate(norm, m, at(a), x);
    convolve_weights(conv, m, mode, at(a), d_y);
}

Array WideResNet::weights_gradient(const Conv& conv, const NetworkMemory& m) {
    return m.gradient.slice(conv.weight, conv.shape.weight_count());
}

void WideResNet::convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& x, const Tensor& d_y) {
    conv.plan->backward_weights(weights_gradient(conv, m), x, d_y, memory_->workspace());
    add_bias_gradient(conv, m, mode, d_y);
}

// With batch statistics a constant added to a channel changes nothing behind the next norm: the gradient of every convolution's bias is
// zero by construction, and what arithmetic would give is rounding noise.
void WideResNet::add_bias_gradient(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_y) {
    if (settings_.norm == NormKind::none || mode == NormMode::running)
        device_->ops().bias_gradient(m.gradient.slice(conv.bias, conv.shape.out_channels), d_y);
}

void WideResNet::statistics_of(const Norm& norm, const NetworkMemory& m, NormMode mode, const Tensor& x, Array sums) {
    if (settings_.norm == NormKind::none) return;
    const BatchNormParameters parameters{.gamma = m.weights.slice(norm.gamma, norm.channels),
                                         .beta = m.weights.slice(norm.beta, norm.channels),
                                         .running_mean = m.statistics.slice(norm.running_mean, norm.channels),
                                         .running_var = m.statistics.slice(norm.running_var, norm.channels)};
    Ops& ops = device_->ops();
    if (mode == NormMode::running) return ops.running_norm_coefficients(coefficients(norm, m.weights), parameters);
    const RunningStatistics running = mode == NormMode::batch_update ? RunningStatistics::update : RunningStatistics::keep;
    if (sums.count > 0) return ops.batch_norm_of_sums(coefficients(norm, m.weights), sums, x, parameters, running, m.state);
    if (!norm_shares_.valid()) return ops.batch_norm_statistics(coefficients(norm, m.weights), x, parameters, running, m.state);
    Communicator& ranks = device_->communicator();
    ops.batch_norm_moments(ranks.own(shares(norm)), x);
    ranks.all_gather(shares(norm));
    ops.join_moments(coefficients(norm, m.weights), shares(norm), x, parameters, running, m.state);
}

void WideResNet::activate(const Norm& norm, const NetworkMemory& m, const Tensor& y, const Tensor& x) {
    if (settings_.norm == NormKind::none)
        device_->ops().leaky(y, x);
    else
        device_->ops().norm_leaky(y, x, coefficients(norm, m.weights));
}

// In place: d_x holds the gradient behind the activation and receives the one in front of the norm. With sums the activation has been
// passed already.
void WideResNet::activate_backward(const Norm& norm, const NetworkMemory& m, const PassSettings& pass, const Tensor& d_x, const Tensor& x,
                                   const Tensor* residual, Array sums) {
    if (settings_.norm == NormKind::none) return device_->ops().leaky_backward(d_x, d_x, x, residual);
    const NormCoefficients norm_values = coefficients(norm, m.weights);
    const bool weights = pass.gradients == Gradients::weights;
    const Array d_gamma = weights ? m.gradient.slice(norm.gamma, norm.channels) : Array{};
    const Array d_beta = weights ? m.gradient.slice(norm.beta, norm.channels) : Array{};
    Ops& ops = device_->ops();
    if (pass.norm == NormMode::running) {
        // Nothing flows through running statistics: a and b stay 0, and what the sums make of them goes where nobody reads it.
        if (weights) {
            NormCoefficients unread = norm_values;
            unread.a = sums_for(norm).slice(0, norm.channels);
            unread.b = sums_for(norm).slice(norm.channels, norm.channels);
            ops.norm_backward_sums(unread, d_gamma, d_beta, d_x, x);
        }
    } else if (sums.count > 0) {
        ops.norm_backward_of_sums(norm_values, d_gamma, d_beta, sums, x);
        return ops.norm_backward(d_x, d_x, x, norm_values, residual);
    } else if (!norm_shares_.valid()) {
        ops.norm_backward_sums(norm_values, d_gamma, d_beta, d_x, x);
    } else {
        Communicator& ranks = device_->communicator();
        ops.norm_backward_own_sums(ranks.own(shares(norm)), norm_values, d_gamma, d_beta, d_x, x);
        ranks.all_gather(shares(norm));
        ops.join_backward_sums(norm_values, shares(norm), x);
    }
    ops.norm_leaky_backward(d_x, d_x, x, norm_values, residual);
}

std::string WideResNet::head_engine() const {
    return class_head_.plan ? class_head_.plan->engine() : energy_head_ && energy_head_->plan ? energy_head_->plan->engine() : "";
}

std::vector<std::pair<std::string, ConvPlan::Choice>> WideResNet::convolution_choices() const {
    std::vector<std::pair<std::string, ConvPlan::Choice>> out;
    for (const auto& [shape, plan] : plans_)
        for (const ConvPlan::Choice& choice : plan->choices()) out.emplace_back(shape.text(), choice);
    return out;
}

}  // namespace jem
