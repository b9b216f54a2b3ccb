#include "models/layers.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>

namespace jem {
namespace {

constexpr const char* kEnergyHead = "energy_output";

// As the norm's ops see it: images' channels where it is of each image.
Tensor seen_by(const Norm& norm, const Tensor& t) { return norm.takes_images() ? of_images(t) : t; }

double slope_in_front(const Conv& conv) { return conv.settings.in_front != nullptr ? conv.settings.in_front->settings.slope : kLeakySlope; }

// In which ways forward calls it.
void add_calls(std::vector<ConvCall>& calls, const ConvSettings& s) {
    for (const bool sums : {false, s.sums})
        calls.push_back(
            {.around = {.activation = s.in_front != nullptr && s.in_front->takes_batch(), .sums = sums}, .residual = s.residual});
}

}  // namespace

// Layers ----------------------------------------------------------------------------------------------------------------------

int64_t LayeredNetwork::add_parameter(const std::string& name, std::vector<int64_t> shape, int64_t fan_in, double initial) {
    const int64_t offset = parameter_count();
    parameters_.push_back({.name = name, .shape = std::move(shape), .offset = offset, .fan_in = fan_in, .initial = initial});
    return offset;
}

int64_t LayeredNetwork::add_statistic(const std::string& name, int64_t channels, double initial) {
    const int64_t offset = statistic_count();
    statistics_.push_back({.name = name, .shape = {channels}, .offset = offset, .initial = initial});
    return offset;
}

const Conv* LayeredNetwork::add_conv(const std::string& name, const ConvSettings& settings) {
    const ConvShape& s = settings.shape;
    const int64_t fan_in = s.in_channels * s.kernel.area();
    Conv& conv = convs_.emplace_back();
    conv.name = name;
    conv.settings = settings;
    conv.weight = add_parameter(name + ".weight", {s.out_channels, s.in_channels, s.kernel.height, s.kernel.width}, fan_in, 0);
    parameters_.back().deviation = settings.deviation;
    if (settings.bias != ConvBias::none) conv.bias = add_parameter(name + ".bias", {s.out_channels}, fan_in, 0);
    if (settings.spectral == SpectralForm::none) return &conv;
    conv.estimate = add_statistic(name + ".weight_u", s.out_channels, 1);
    return &conv;
}

const Norm* LayeredNetwork::add_norm(const std::string& name, int64_t channels, const NormSettings& settings) {
    Norm& norm = norms_.emplace_back();
    norm.settings = settings;
    norm.channels = channels;
    if (settings.kind == NormKind::none) return &norm;
    if (norm.is_affine()) {
        // One of the two alone is a layer of its own, whose name is the tensor's.
        const bool both = settings.shifts && settings.scales;
        const std::vector<int64_t> shape = both ? std::vector<int64_t>{1, channels, 1, 1} : std::vector<int64_t>{channels};
        if (settings.shifts) norm.beta = add_parameter(both ? name + ".loc" : name, shape, 0, 0);
        if (settings.scales) norm.gamma = add_parameter(both ? name + ".scale" : name, shape, 0, 1);
        return &norm;
    }
    norm.gamma = add_parameter(name + ".weight", {channels}, 0, 1);
    norm.beta = add_parameter(name + ".bias", {channels}, 0, 0);
    if (!norm.takes_batch()) return &norm;
    norm.running_mean = add_statistic(name + ".running_mean", channels, 0);
    norm.running_var = add_statistic(name + ".running_var", channels, 1);
    return &norm;
}

const Linear* LayeredNetwork::add_head(Head head, const std::string& name, int64_t in, int64_t out, LinearBias bias) {
    Linear& linear = heads_[static_cast<size_t>(head)];
    linear.in = in;
    linear.out = out;
    linear.weight = add_parameter(name + ".weight", {out, in}, in, 0);
    linear.has_bias = bias;
    if (bias == LinearBias::own) linear.bias = add_parameter(name + ".bias", {out}, in, 0);
    return &linear;
}

void LayeredNetwork::add_heads(int64_t in, int64_t classes, bool energy) {
    add_head(Head::classes, "class_output", in, classes);
    if (energy) add_head(Head::energy, kEnergyHead, in, 1);
}

std::vector<std::string> LayeredNetwork::idle_heads() const {
    if (has_head(Head::energy)) return {};
    return {std::string(kEnergyHead) + "."};
}

Network::Range LayeredNetwork::parameters_of(Head head) const {
    const Linear& linear = heads_[static_cast<size_t>(head)];
    return {linear.weight, linear.out * linear.in + (linear.has_bias == LinearBias::own ? linear.out : 0)};
}

// Passes ----------------------------------------------------------------------------------------------------------------------

int LayeredNetwork::add_pass(const PassSettings& settings) {
    if (device_ != nullptr) throw std::logic_error("Pass " + settings.name + " was added after the network was built.");
    if (!has_head(settings.head)) throw std::logic_error("Pass " + settings.name + " ends in a head that the network has not.");
    passes_.push_back(settings);
    return static_cast<int>(passes_.size()) - 1;
}

int64_t LayeredNetwork::most_images(Gradients gradients) const {
    int64_t most = 0;
    for (const PassSettings& p : passes_)
        if (p.gradients == gradients) most = std::max(most, p.batch);
    return most;
}

ConvPlan* LayeredNetwork::plan_of(const Conv& conv, const ConvOptions& options) {
    const double slope = slope_in_front(conv);
    const auto alike = [&](const auto& other) {
        return other.shape == conv.shape() && other.input == conv.settings.input && other.slope == slope;
    };
    const auto found = std::find_if(plans_.begin(), plans_.end(), alike);
    if (found != plans_.end()) return found->plan.get();
    ConvOptions own = options;
    own.input = conv.settings.input;
    own.slope = slope;
    for (const Conv& other : convs_)
        if (alike(Planned{other.shape(), other.settings.input, slope_in_front(other), nullptr})) add_calls(own.calls, other.settings);
    plans_.push_back({conv.shape(), own.input, slope, device_->plan_convolution(conv.shape(), own)});
    const ConvPlan& plan = *plans_.back().plan;
    memory_->need_workspace(device_->has_side_queue() ? plan.other_workspace_bytes() : plan.workspace_bytes());
    memory_->need_side_workspace(plan.weights_workspace_bytes());
    return plans_.back().plan.get();
}

void LayeredNetwork::build(Device& device, Memory& memory, ConvAlgorithm algorithm) {
    device_ = &device;
    memory_ = &memory;
    std::set<int64_t> batches, all;
    for (const PassSettings& p : passes_) {
        if (p.gradients != Gradients::none) batches.insert(p.batch);
        all.insert(p.batch);
    }
    ConvOptions options{.batches = {batches.begin(), batches.end()}, .algorithm = algorithm};
    std::set_difference(all.begin(), all.end(), batches.begin(), batches.end(), std::back_inserter(options.forward_only));
    int64_t without_bias = 0;
    for (Conv& conv : convs_) {
        conv.plan = plan_of(conv, options);
        conv.prepared = memory.keep("compute weights", conv.name, conv.plan->prepared_bytes());
        if (conv.settings.spectral != SpectralForm::none) {
            const int64_t rows = conv.shape().out_channels, weights = conv.shape().weight_count();
            const auto keep = [&](const char* what, int64_t count, size_t each) {
                return memory.keep("compute weights", conv.name + what, static_cast<size_t>(count) * each);
            };
            conv.normalised = keep("/normalised", weights, size_of(device.real_type()));
            conv.u = keep("/u", rows, size_of(device.real_type()));
            conv.v = keep("/v", weights / rows, size_of(device.real_type()));
            conv.scalars = keep("/sigma", kSpectralScalars, sizeof(double));
        }
        if (conv.settings.bias == ConvBias::none || conv.settings.for_norm_alone)
            without_bias = std::max(without_bias, conv.shape().out_channels);
    }
    for (const Head head : {Head::classes, Head::energy}) {
        Linear& linear = heads_[static_cast<size_t>(head)];
        std::set<int64_t> of_head;
        for (const PassSettings& p : passes_)
            if (p.head == head) of_head.insert(p.batch);
        if (of_head.empty()) continue;
        if (linear.has_bias == LinearBias::none) without_bias = std::max(without_bias, linear.out);
        linear.plan = device.plan_linear(linear.in, linear.out, {of_head.begin(), of_head.end()});
        memory.need_workspace(linear.plan->workspace_bytes());
    }
    const size_t real = size_of(device.real_type());
    const int64_t most = all.empty() ? 0 : *all.rbegin();  // images of a pass
    int64_t widest = 0, own_sums = 0, widest_affine = 0;
    for (Norm& norm : norms_) {
        if (norm.settings.kind == NormKind::none) continue;
        const int64_t each = (norm.takes_images() ? most : 1) * norm.channels;
        norm.coefficients = memory.keep("statistics", "norm coefficients", static_cast<size_t>(norm.arrays() * each) * real);
        if (norm.takes_batch()) widest = std::max(widest, norm.channels);
        if (!norm.takes_batch()) own_sums = std::max(own_sums, each);
        if (norm.is_affine()) widest_affine = std::max(widest_affine, norm.channels);
    }
    if (own_sums > 0) image_sums_ = memory.keep("statistics", "norm sums", static_cast<size_t>(2 * own_sums) * sizeof(double));
    if (widest > 0) norm_sums_ = memory.keep("statistics", "norm sums of a convolution", static_cast<size_t>(2 * widest) * real);
    const int64_t ranks = device.communicator().size();
    const int64_t shared = std::max(norm_batch_ == NormBatch::of_job && ranks > 1 ? widest : 0, widest_affine);
    if (shared > 0)
        norm_shares_ = memory.keep("statistics", "norm sums of all ranks", static_cast<size_t>(ranks * 2 * shared) * sizeof(double));
    if (without_bias > 0) zeros_ = memory.keep("compute weights", "no bias", static_cast<size_t>(without_bias) * real);
    for (int pass = 0; pass < std::ssize(passes_); ++pass) {
        add_tensors(pass);
        const Linear& head = head_of(pass);
        ends_.push_back({.features = flat(pass, "features", head.in),
                         .d_features = flat(pass, "d_features", head.in),
                         .logits = flat(pass, "logits", head.out),
                         .d_logits = flat(pass, "d_logits", head.out)});
    }
}

SpectralNorm LayeredNetwork::spectral_norm(const Conv& conv) {
    const int64_t rows = conv.shape().out_channels, columns = conv.shape().weight_count() / rows;
    return {.u = {memory_->at(conv.u), device_->real_type(), rows},
            .v = {memory_->at(conv.v), device_->real_type(), columns},
            .scalars = {memory_->at(conv.scalars), DType::f64, kSpectralScalars},
            .form = conv.settings.spectral};
}

void LayeredNetwork::prepare(Array weights, Array statistics) {
    for (Conv& conv : convs_) {
        Array own = weights_of(conv, weights);
        if (conv.settings.spectral != SpectralForm::none) {
            const Array normalised{memory_->at(conv.normalised), device_->real_type(), own.count};
            ops().spectral_norm(spectral_norm(conv), normalised, own, estimate_of(conv, statistics));
            own = normalised;
        }
        conv.plan->prepare(memory_->at(conv.prepared), own, memory_->workspace());
    }
}

void LayeredNetwork::finish_gradient(const NetworkMemory& m) {
    for (const Conv& conv : convs_)
        if (conv.settings.spectral != SpectralForm::none)
            ops().spectral_backward(spectral_norm(conv), weights_of(conv, m.gradient), weights_of(conv, m.weights));
}

void LayeredNetwork::keep_estimates(const NetworkMemory& m) {
    for (const Conv& conv : convs_)
        if (conv.settings.spectral != SpectralForm::none)
            ops().keep_estimate(estimate_of(conv, m.statistics), spectral_norm(conv), m.state);
}

PassTensor LayeredNetwork::hidden(int pass, const std::string& name, int64_t c, int64_t h, int64_t w) {
    const PassSettings& p = pass_settings(pass);
    PassTensor t;
    t.view = {.type = device_->activation_type(), .n = p.batch, .c = c, .h = h, .w = w, .block = device_->channel_block(c)};
    t.slot = memory_->transient(p.name + "/" + name, t.view.bytes());
    return t;
}
PassTensor LayeredNetwork::flat(int pass, const std::string& name, int64_t c) { return image_like(pass, name, c, 1, 1); }
PassTensor LayeredNetwork::image_like(int pass, const std::string& name, int64_t c, int64_t h, int64_t w) {
    const PassSettings& p = pass_settings(pass);
    PassTensor t;
    t.view = {.type = device_->real_type(), .n = p.batch, .c = c, .h = h, .w = w, .block = c};
    t.slot = memory_->transient(p.name + "/" + name, t.view.bytes());
    return t;
}
PassTensor LayeredNetwork::input_of(int pass, const std::string& name, const Conv& conv) {
    return hidden(pass, name, conv.shape().in_channels, conv.shape().height, conv.shape().width);
}
PassTensor LayeredNetwork::output_of(int pass, const std::string& name, const Conv& conv) {
    return hidden(pass, name, conv.shape().out_channels, conv.shape().out_height(), conv.shape().out_width());
}
Tensor LayeredNetwork::at(const PassTensor& t) {
    Tensor view = t.view;
    view.data = memory_->at(t.slot);
    return view;
}

// Convolutions ----------------------------------------------------------------------------------------------------------------

Array LayeredNetwork::zeros(int64_t channels) { return {memory_->at(zeros_), device_->real_type(), channels}; }

Array LayeredNetwork::bias_of(const Conv& conv, Array weights) {
    const int64_t channels = conv.shape().out_channels;
    if (conv.settings.bias == ConvBias::none) return zeros(channels);
    return weights.slice(conv.bias, channels);
}

Array LayeredNetwork::bias_of(const Linear& head, Array weights) {
    if (head.has_bias == LinearBias::none) return zeros(head.out);
    return weights.slice(head.bias, head.out);
}

bool LayeredNetwork::normalises_by_batch(const Next& next) const {
    return next.norm != nullptr && next.norm->takes_batch() && next.mode != NormMode::running;
}
bool LayeredNetwork::wants_sums(const Next& next) const { return normalises_by_batch(next) && !norm_shares_.valid(); }

Array LayeredNetwork::sums_for(const Norm& norm) { return {memory_->at(norm_sums_), device_->real_type(), 2 * norm.channels}; }

ConvFusion LayeredNetwork::fusion_of(const Conv& conv, int64_t images, bool residual, const Next& next) const {
    const Norm* norm = conv.settings.in_front;
    return conv.plan->fuses(images, {.activation = norm != nullptr && norm->takes_batch(), .sums = wants_sums(next)}, residual);
}

bool LayeredNetwork::leaves_activation(const Conv& conv, int64_t images, bool residual, const Next& next) const {
    return conv.settings.in_front != nullptr && !fusion_of(conv, images, residual, next).activation;
}

LayeredNetwork::ForNorm LayeredNetwork::activate_and_convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y,
                                                              const PassTensor* a, const Tensor& x, const Tensor* residual,
                                                              const Next& next) {
    const Norm* norm = conv.settings.in_front;
    const ConvFusion fused = fusion_of(conv, x.n, residual != nullptr, next);
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
    // Left out whatever does the adding, so that all devices and all ranks make the same: nothing, where that would be an op, else zeros.
    const bool leaves_out = conv.settings.for_norm_alone && normalises_by_batch(next);
    const bool op = residual == nullptr && !fused.activation && !fused.sums && conv.plan->adds_bias_apart(x.n);
    const Array own = bias_of(conv, m.weights), bias = !leaves_out ? own : op ? Array{} : zeros(own.count);
    conv.plan->forward_fused(y, from, with, memory_->at(conv.prepared), bias, residual, memory_->workspace());
    return {.sums = with.sums, .left_out = leaves_out ? own : Array{}};
}

LayeredNetwork::ForNorm LayeredNetwork::convolve(const Conv& conv, const NetworkMemory& m, const Tensor& y, const Tensor& x,
                                                 const Next& next) {
    return activate_and_convolve(conv, m, y, nullptr, x, nullptr, next);
}

Array LayeredNetwork::convolve_data(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_x, const Tensor& d_y,
                                    const Tensor& x) {
    const Norm* norm = conv.settings.in_front;
    if (!wants_sums({norm, mode}) || !conv.plan->fuses_leaky_backward(d_y.n)) {
        convolve_data(conv, d_x, d_y);
        return {};
    }
    const Array sums = sums_for(*norm);
    conv.plan->backward_data_fused(d_x, d_y, {.x = x, .norm = coefficients(*norm, m.weights), .sums = sums}, memory_->at(conv.prepared),
                                   memory_->workspace());
    return sums;
}

void LayeredNetwork::add(const Tensor& sum, const Tensor& x, const Tensor& y) { ops().add_bias(sum, x, zeros(x.c), &y); }

void LayeredNetwork::convolve_data(const Conv& conv, const Tensor& d_x, const Tensor& d_y) {
    conv.plan->backward_data(d_x, d_y, memory_->at(conv.prepared), memory_->workspace());
}

void LayeredNetwork::activate_and_convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const PassTensor& a,
                                                   const Tensor& x, const Tensor& d_y, const PassTensor* kept) {
    const Norm& norm = *conv.settings.in_front;
    if (!norm.takes_batch() || !conv.plan->fuses_weights_activation(x.n)) {
        if (kept == nullptr) {
            const OnSide side(*memory_);
            activate(norm, m, at(a), x);
        }
        return convolve_weights(conv, m, mode, at(kept != nullptr ? *kept : a), d_y);
    }
    {
        const OnSide side(*memory_);
        conv.plan->backward_weights_fused(weights_gradient(conv, m), x, coefficients(norm, m.weights), d_y, memory_->workspace());
    }
    add_bias_gradient(conv, m, mode, d_y);
}

Array LayeredNetwork::weights_gradient(const Conv& conv, const NetworkMemory& m) { return weights_of(conv, m.gradient); }

void LayeredNetwork::convolve_weights(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& x, const Tensor& d_y) {
    {
        const OnSide side(*memory_);
        conv.plan->backward_weights(weights_gradient(conv, m), x, d_y, memory_->workspace());
    }
    add_bias_gradient(conv, m, mode, d_y);
}

// With batch statistics a constant added to a channel changes nothing behind the next norm: the gradient of the bias is zero by
// construction, and what arithmetic would give is rounding noise. Likewise with an instance norm.
void LayeredNetwork::add_bias_gradient(const Conv& conv, const NetworkMemory& m, NormMode mode, const Tensor& d_y) {
    const ConvBias bias = conv.settings.bias;
    if (bias == ConvBias::own || (bias == ConvBias::normalised && mode == NormMode::running))
        ops().bias_gradient(m.gradient.slice(conv.bias, conv.shape().out_channels), d_y);
}

// Norms and activations -------------------------------------------------------------------------------------------------------

NormCoefficients LayeredNetwork::coefficients(const Norm& norm, Array weights, int64_t images) {
    const int64_t each = (norm.takes_images() ? images : 1) * norm.channels;
    const Array all{memory_->at(norm.coefficients), device_->real_type(), norm.arrays() * each};
    return {.mean = all.slice(0, each),
            .inv_std = all.slice(each, each),
            .scale = all.slice(2 * each, each),
            .beta = norm.takes_batch() ? weights.slice(norm.beta, each) : all.slice(5 * each, each),
            .a = all.slice(3 * each, each),
            .b = all.slice(4 * each, each),
            .slope = norm.settings.slope};
}

Array LayeredNetwork::image_sums(const Norm& norm, int64_t images) {
    return {memory_->at(image_sums_), DType::f64, 2 * images * norm.channels};
}

// By the whole job's batch, so that all ranks set the same.
void LayeredNetwork::initialise(const Norm& norm, const NetworkMemory& m, const Tensor& x) {
    Communicator& ranks = device_->communicator();
    ops().batch_norm_moments(ranks.own(shares(norm)), x);
    ranks.all_gather(shares(norm));
    ops().affine_of_moments(m.weights.slice(norm.beta, norm.channels), m.weights.slice(norm.gamma, norm.channels), shares(norm), x);
}

Array LayeredNetwork::shares(const Norm& norm) {
    return {memory_->at(norm_shares_), DType::f64, device_->communicator().size() * 2 * norm.channels};
}

void LayeredNetwork::statistics_of(const Norm& norm, const NetworkMemory& m, NormMode mode, const Tensor& x, const ForNorm& left) {
    if (norm.is_affine()) {
        const NormSettings& s = norm.settings;
        if (m.initialises && s.shifts && s.scales) initialise(norm, m, x);
        return ops().affine_norm(coefficients(norm, m.weights), s.shifts ? m.weights.slice(norm.beta, norm.channels) : Array{},
                                 s.scales ? m.weights.slice(norm.gamma, norm.channels) : Array{});
    }
    if (norm.takes_images()) {
        ops().image_moments(image_sums(norm, x.n), x);
        return ops().group_norm(coefficients(norm, m.weights, x.n), image_sums(norm, x.n), m.weights.slice(norm.gamma, norm.channels),
                                m.weights.slice(norm.beta, norm.channels), x, norm.group(), norm.settings.epsilon);
    }
    if (!norm.takes_batch()) return;
    const BatchNormParameters parameters{.gamma = m.weights.slice(norm.gamma, norm.channels),
                                         .beta = m.weights.slice(norm.beta, norm.channels),
                                         .running_mean = m.statistics.slice(norm.running_mean, norm.channels),
                                         .running_var = m.statistics.slice(norm.running_var, norm.channels),
                                         .left_out = left.left_out,
                                         .epsilon = norm.settings.epsilon,
                                         .momentum = norm.settings.momentum};
    if (mode == NormMode::running) return ops().running_norm_coefficients(coefficients(norm, m.weights), parameters);
    const RunningStatistics running = mode == NormMode::batch_update ? RunningStatistics::update : RunningStatistics::keep;
    if (left.sums.count > 0) return ops().batch_norm_of_sums(coefficients(norm, m.weights), left.sums, x, parameters, running, m.state);
    if (!norm_shares_.valid()) return ops().batch_norm_statistics(coefficients(norm, m.weights), x, parameters, running, m.state);
    Communicator& ranks = device_->communicator();
    ops().batch_norm_moments(ranks.own(shares(norm)), x);
    ranks.all_gather(shares(norm));
    ops().join_moments(coefficients(norm, m.weights), shares(norm), x, parameters, running, m.state);
}

void LayeredNetwork::activate(const Norm& norm, const NetworkMemory& m, const Tensor& y, const Tensor& x) {
    if (norm.settings.kind == NormKind::none) return ops().leaky(y, x, norm.settings.slope);
    ops().norm_leaky(seen_by(norm, y), seen_by(norm, x), coefficients(norm, m.weights, x.n));
}

void LayeredNetwork::activate_backward(const Norm& norm, const NetworkMemory& m, const PassSettings& pass, const Tensor& d_x,
                                       const Tensor& x, const Tensor* residual, Array sums) {
    if (norm.settings.kind == NormKind::none) return ops().leaky_backward(d_x, d_x, x, residual, norm.settings.slope);
    const bool weights = pass.gradients == Gradients::weights;
    const Array d_gamma = weights ? m.gradient.slice(norm.gamma, norm.channels) : Array{};
    const Array d_beta = weights ? m.gradient.slice(norm.beta, norm.channels) : Array{};
    const NormCoefficients norm_values = coefficients(norm, m.weights, x.n);
    if (norm.is_affine()) {
        if (weights) affine_weights(norm, m, d_x, x);
    } else if (norm.takes_images()) {
        ops().image_backward_sums(image_sums(norm, x.n), norm_values, d_x, x);
        if (weights) ops().group_norm_weights(d_gamma, d_beta, norm_values, image_sums(norm, x.n), x);
        ops().group_norm_backward(norm_values, image_sums(norm, x.n), x, norm.group());
    } else if (pass.norm == NormMode::running) {
        // Nothing flows through running statistics: a and b stay 0, and what the sums make of them goes where nobody reads it.
        if (weights) {
            NormCoefficients unread = norm_values;
            unread.a = sums_for(norm).slice(0, norm.channels);
            unread.b = sums_for(norm).slice(norm.channels, norm.channels);
            ops().norm_backward_sums(unread, d_gamma, d_beta, d_x, x);
        }
    } else if (sums.count > 0) {
        ops().norm_backward_of_sums(norm_values, d_gamma, d_beta, sums, x);
        return ops().norm_backward(d_x, d_x, x, norm_values, residual);
    } else if (!norm_shares_.valid()) {
        ops().norm_backward_sums(norm_values, d_gamma, d_beta, d_x, x);
    } else {
        Communicator& ranks = device_->communicator();
        ops().norm_backward_own_sums(ranks.own(shares(norm)), norm_values, d_gamma, d_beta, d_x, x);
        ranks.all_gather(shares(norm));
        ops().join_backward_sums(norm_values, shares(norm), x);
    }
    const Tensor gradient = seen_by(norm, d_x), added = residual != nullptr ? seen_by(norm, *residual) : Tensor{};
    ops().norm_leaky_backward(gradient, gradient, seen_by(norm, x), norm_values, residual != nullptr ? &added : nullptr);
}

void LayeredNetwork::affine_weights(const Norm& norm, const NetworkMemory& m, const Tensor& d_y, const Tensor& x) {
    const NormCoefficients own = coefficients(norm, m.weights);
    const Array sums = image_sums(norm, 1);
    ops().norm_backward_own_sums(sums, own, {}, {}, d_y, x);
    ops().affine_weights(norm.settings.shifts ? m.gradient.slice(norm.beta, norm.channels) : Array{},
                         norm.settings.scales ? m.gradient.slice(norm.gamma, norm.channels) : Array{}, own, sums);
}

Tensor LayeredNetwork::drop(const DropoutLayer& layer, int pass, const NetworkMemory& m, const PassTensor& y, const Tensor& x) {
    if (layer.rate == 0 || pass_settings(pass).norm == NormMode::running) return x;
    ops().dropout(
        at(y), x, m.state,
        {.rate = layer.rate, .seed = layer.seed, .layer = layer.number, .pass = pass, .first_image = device_->communicator().rank() * x.n});
    return at(y);
}

// Heads -----------------------------------------------------------------------------------------------------------------------

void LayeredNetwork::apply_head(int pass, const NetworkMemory& m) {
    const Linear& head = head_of(pass);
    const Ends& e = ends(pass);
    head.plan->forward(at(e.logits), at(e.features), m.weights.slice(head.weight, head.out * head.in), bias_of(head, m.weights),
                       memory_->workspace());
}

void LayeredNetwork::head_backward(int pass, const NetworkMemory& m) {
    const Linear& head = head_of(pass);
    const Ends& e = ends(pass);
    if (pass_settings(pass).gradients == Gradients::weights) {
        head.plan->backward_weights(m.gradient.slice(head.weight, head.out * head.in), at(e.features), at(e.d_logits),
                                    memory_->workspace());
        if (head.has_bias == LinearBias::own) ops().bias_gradient(m.gradient.slice(head.bias, head.out), at(e.d_logits));
    }
    head.plan->backward_data(at(e.d_features), at(e.d_logits), m.weights.slice(head.weight, head.out * head.in), memory_->workspace());
}

int64_t LayeredNetwork::activation_count() const {
    int64_t count = 0;
    for (const Conv& conv : convs_) count += conv.shape().out_channels * conv.shape().out_height() * conv.shape().out_width();
    return count;
}

Tensor LayeredNetwork::output(int pass, Output output) {
    switch (output) {
        case Output::logits:
            return at(ends(pass).logits);
        case Output::features:
            return at(ends(pass).features);
        case Output::first_convolution:
            return at(first_convolution(pass));
    }
    throw std::logic_error("A pass was asked for a tensor that it does not hand out.");
}

// -----------------------------------------------------------------------------------------------------------------------------

std::vector<std::pair<std::string, ConvPlan::Choice>> LayeredNetwork::convolution_choices() const {
    std::vector<std::pair<std::string, ConvPlan::Choice>> out;
    for (const Planned& p : plans_)
        for (const ConvPlan::Choice& choice : p.plan->choices()) out.emplace_back(p.shape.text(), choice);
    return out;
}

std::string LayeredNetwork::head_engine() const {
    for (const Linear& head : heads_)
        if (head.plan) return head.plan->engine();
    return "";
}

}  // namespace jem
