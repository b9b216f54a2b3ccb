#include "engine/sampling/input_chain.h"

namespace jem {

InputChain::InputChain(Device& device, Network& network, Memory& memory, const Options& options, std::unique_ptr<Stepper> stepper)
    : device_(device), network_(network), memory_(memory), options_(options), stepper_(std::move(stepper)) {
    pass_ = network.add_pass(
        {.name = options.name, .batch = options.count, .norm = options.norm, .gradients = Gradients::input, .head = options.head});
    const size_t bytes = static_cast<size_t>(value_count()) * size_of(device.real_type());
    images_ = memory.keep("samples", options.name + "/samples", bytes);
    gradient_ = memory.transient(options.name + "/gradient", bytes);
    objective_ = make_chain_objective(options.objective, device, memory, options.name, options.count, options.classes);
    const auto a_value_each = static_cast<size_t>(options.count) * size_of(device.real_type());
    if (stepper_->wants_centre() || options.keeps_start) centre_ = memory.keep("samples", options.name + "/centre", bytes);
    if (stepper_->wants_norms()) norms_ = memory.transient(options.name + "/norms", a_value_each);
    if (has_labels()) labels_ = memory.keep("samples", options.name + "/labels", static_cast<size_t>(options.count) * sizeof(int32_t));
    if (options.objective == ChainObjective::cross_entropy) hits_ = memory.keep("samples", options.name + "/hits", a_value_each);
    if (options.values) values_ = memory.keep("samples", options.name + "/values", a_value_each);
    if (options.given_noise_steps > 0)
        noise_ = memory.keep("samples", options.name + "/noise", bytes * static_cast<size_t>(options.given_noise_steps));
}

Array InputChain::images() { return array(images_); }

Tensor InputChain::tensor() {
    return {memory_.at(images_), device_.real_type(), options_.count,   options_.channels,
            options_.height,     options_.width,      options_.channels};
}

Array InputChain::centre() { return array(centre_); }

Array InputChain::hits() { return a_value_each(hits_); }

Array InputChain::labels() { return labels_.valid() ? Array{memory_.at(labels_), DType::i32, options_.count} : Array{}; }

Array InputChain::noise() {
    if (!noise_.valid()) return {};
    return {memory_.at(noise_), device_.real_type(), value_count() * options_.given_noise_steps};
}

void InputChain::begin(Centre centre) {
    if (centre_.valid() && centre == Centre::start) device_.copy(memory_.at(centre_), memory_.at(images_), memory_.bytes(centre_));
    if (hits_.valid()) device_.ops().fill_zero(hits());
}

void InputChain::look_at_start(const NetworkMemory& m, IterationState* state) {
    if (!objective_->wants_start()) return;
    network_.forward(pass_, m, tensor());
    objective_->start({.network = network_, .pass = pass_, .labels = labels(), .state = state});
}

void InputChain::look(const NetworkMemory& m, IterationState* state) {
    network_.forward(pass_, m, tensor());
    objective_->queue({.network = network_, .pass = pass_, .labels = labels(), .state = state, .hits = hits(), .values = values()});
}

void InputChain::step(const NetworkMemory& m, IterationState* state) {
    StepCall call{.x = images(),
                  .gradient = {},
                  .centre = array(centre_),
                  .norms = {},
                  .values = values(),
                  .noise = noise(),
                  .first_step = options_.first_step,
                  .images = options_.count,
                  .state = state};
    stepper_->queue_before(device_, call);
    look(m, state);
    Tensor d_x = tensor();
    d_x.data = memory_.at(gradient_);
    network_.backward(pass_, m, tensor(), &d_x);
    call.gradient = array(gradient_);
    call.norms = a_value_each(norms_);
    stepper_->queue(device_, call);
    device_.ops().advance_step(state);
}

}  // namespace jem
