#include "engine/sampling/sampler.h"

#include <stdexcept>

#include "engine/network/parameters.h"

namespace jem {

Sampler::Sampler(Device& device, Network& network, Memory& memory, const Settings& s, const Options& options, const ImageSet& train)
    : device_(device), settings_(s), train_(train), options_(options) {
    chain_ = std::make_unique<InputChain>(
        device, network, memory,
        InputChain::Options{.name = "sampling",
                            .count = options.chains,
                            .height = s.image_size,
                            .width = s.image_size,
                            .channels = s.in_channels,
                            .norm = s.sampling_norm == SamplingNorm::running ? NormMode::running : NormMode::batch_keep,
                            .head = s.energy_head},
        sgld_stepper(s.sgld(), scalars_, "sgld_grad_norm"));
    if (options.starts == Starts::given) return;
    const bool gaussian = s.init == StartForm::gaussian;
    ImageSetShape shape = {};
    shape.channels = static_cast<int>(s.in_channels);
    shape.height = shape.width = static_cast<int>(s.image_size);
    shape.num_classes = static_cast<int>(s.num_classes);
    store_ = std::make_unique<ImageStore>(device, memory, shape, train.count(), largest_class_of(train));
    if (gaussian) store_->merge_classes();
    starts_ =
        std::make_unique<ReplayBuffer>(device, memory,
                                       ReplayBuffer::Options{.chains = options.chains,
                                                             .pixels = s.in_channels * s.image_size * s.image_size,
                                                             .classes = gaussian ? 1 : s.num_classes,
                                                             .form = s.init,
                                                             .largest_class = s.init == StartForm::uniform ? 0 : store_->largest_class(),
                                                             .seed = s.seed});
}

void Sampler::plan(const NetworkMemory& passes, IterationState* state) {
    if (starts_) starts_->start(chain_->images(), starts_->fresh(), 0, store_->view(), state);
    if (options_.steps > 0) chain_->step(passes, state);
}

void Sampler::ready(const NetworkMemory& passes, IterationState* state) {
    passes_ = passes;
    state_ = state;
    if (store_ && train_.count() > 0) store_->upload(train_);
    if (options_.steps > 0) step_ = capture(device_, [&] { chain_->step(passes_, state_); });
}

void Sampler::begin(uint32_t number) { device_.ops().begin_iteration(state_, number, 0, 1, 1); }

int32_t Sampler::start_class(int64_t label) const {
    for (int64_t i = 0; i < settings_.num_classes; ++i) {
        const int32_t start = store_->start_class((label + i) % settings_.num_classes);
        if (start >= 0) return start;
    }
    throw std::logic_error("A training set without images.");
}

void Sampler::start_fresh(std::span<const int64_t> labels) {
    std::vector<int32_t> classes;
    for (const int64_t label : labels) classes.push_back(settings_.init == StartForm::informative ? start_class(label) : 0);
    device_.upload(starts_->fresh().data, classes.data(), classes.size() * sizeof(int32_t));
    starts_->start(chain_->images(), starts_->fresh(), 0, store_->view(), state_);
}

void Sampler::start_at(std::span<const double> images) { upload_values(device_, chain_->images(), images); }

std::vector<double> Sampler::download() { return download_values(device_, images()); }

void Sampler::run(const std::function<void(int64_t)>& progress) {
    for (int64_t k = 0; k < options_.steps; ++k) {
        step_->replay();
        if (progress) progress(k + 1);
    }
}

bool Sampler::diverged() {
    IterationState state;
    device_.take(device_.read_back(state_, sizeof state), &state);
    return state.diverged != 0;
}

}  // namespace jem
