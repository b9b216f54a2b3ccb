#include "engine/sampling/sampler.h"

namespace jem {

Sampler::Sampler(Device& device, Network& network, Memory& memory, const Options& options)
    : device_(device), network_(network), memory_(memory), options_(options) {
    pass_ = network.add_pass({options.name, options.chains, options.norm, Gradients::input});
    const size_t real = size_of(device.real_type());
    const size_t bytes = static_cast<size_t>(sample_count()) * real;
    samples_ = memory.keep("samples", options.name + "/samples", bytes);
    gradient_ = memory.transient(options.name + "/gradient", bytes);
    lse_ = memory.transient(options.name + "/lse", static_cast<size_t>(options.chains) * real);
    options_.sgld.first = device.communicator().rank() * sample_count();
    if (options.given_noise_steps > 0)
        noise_ = memory.keep("samples", options.name + "/noise", bytes * static_cast<size_t>(options.given_noise_steps));
}

Tensor Sampler::sample_images() {
    return {memory_.at(samples_), device_.real_type(), options_.chains,  options_.channels,
            options_.height,      options_.width,      options_.channels};
}

int64_t Sampler::sample_count() const { return options_.chains * options_.height * options_.width * options_.channels; }

Array Sampler::samples() { return {memory_.at(samples_), device_.real_type(), sample_count()}; }

Array Sampler::noise() {
    if (!noise_.valid()) return {};
    return {memory_.at(noise_), device_.real_type(), sample_count() * options_.given_noise_steps};
}

void Sampler::step(const NetworkMemory& m, IterationState* state) {
    Ops& ops = device_.ops();
    const auto lse = [&] { return Array{memory_.at(lse_), device_.real_type(), options_.chains}; };
    const auto gradient = [&] {
        Tensor t = sample_images();
        t.data = memory_.at(gradient_);
        return t;
    };
    network_.forward(pass_, m, sample_images());
    ops.log_sum_exp(lse(), network_.logits(pass_));
    ops.energy_backward(network_.d_logits(pass_), network_.logits(pass_), lse(), state, EnergyTerm::sampling, SamPass::at_weights, 1, 0);
    const Tensor d_x = gradient();
    network_.backward(pass_, m, sample_images(), &d_x);
    const Array g{gradient().data, device_.real_type(), d_x.count()};
    ops.sgld_gradient_norm(state, g, options_.chains);
    ops.sgld_step(samples(), g, noise(), state, options_.sgld);
    ops.advance_step(state);
}

}  // namespace jem
