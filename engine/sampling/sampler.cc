#include "engine/sampling/sampler.h"

#include <stdexcept>

#include "engine/network/parameters.h"

namespace jem {
namespace {

constexpr const char* kGradientNorm = "sgld_grad_norm";

}  // namespace

Sampler::Sampler(Device& device, Network& network, Memory& memory, const Settings& s, const Options& options, const ImageSet& starts)
    : device_(device), memory_(memory), settings_(s), start_images_(starts), options_(options) {
    const int64_t pixels = s.in_channels * s.image_size * s.image_size;
    const int gradient_norm = scalars_.number(kGradientNorm);
    std::unique_ptr<Stepper> stepper;
    if (options.metropolis) {
        auto own = std::make_unique<MetropolisStepper>(device, memory, "sampling", options.chains, pixels, s.sgld(), gradient_norm);
        metropolis_ = own.get();
        stepper = std::move(own);
    } else {
        stepper = sgld_stepper(s.sgld(), scalars_, kGradientNorm);
    }
    chain_ = std::make_unique<InputChain>(
        device, network, memory,
        InputChain::Options{.name = "sampling",
                            .count = options.chains,
                            .height = s.image_size,
                            .width = s.image_size,
                            .channels = s.in_channels,
                            .objective = options.objective,
                            .norm = s.sampling_norm == SamplingNorm::running ? NormMode::running : NormMode::batch_keep,
                            .head = options.objective == ChainObjective::lse ? s.energy_head : Head::classes,
                            .values = options.trace || options.metropolis},
        std::move(stepper));
    record_ = std::make_unique<ChainRecord>(device, memory,
                                            ChainRecord::Options{.chains = options.chains,
                                                                 .pixels = pixels,
                                                                 .steps = options.steps,
                                                                 .frame_every = options.frame_every,
                                                                 .trace = options.trace,
                                                                 .accepted = options.metropolis,
                                                                 .gradient_norm = gradient_norm});
    if (options.known) {
        const auto values = static_cast<size_t>(options.chains * pixels);
        known_ = memory.keep("samples", "known images", values * size_of(device.real_type()));
        marks_ = memory.keep("samples", "known values", values * sizeof(int32_t));
    }
    if (options.starts == Starts::given) return;
    const bool merged = is_of_one_class(s.init);
    ImageSetShape shape = {};
    shape.channels = static_cast<int>(s.in_channels);
    shape.height = shape.width = static_cast<int>(s.image_size);
    shape.num_classes = static_cast<int>(s.num_classes);
    store_ = std::make_unique<ImageStore>(device, memory, shape, starts.count(), largest_class_of(starts));
    if (merged) store_->merge_classes();
    starts_ = std::make_unique<ReplayBuffer>(device, memory,
                                             ReplayBuffer::Options{.chains = options.chains,
                                                                   .pixels = s.in_channels * s.image_size * s.image_size,
                                                                   .classes = merged ? 1 : s.num_classes,
                                                                   .form = s.init,
                                                                   .largest_class = is_of_gaussians(s.init) ? store_->largest_class() : 0,
                                                                   .seed = s.seed});
}

void Sampler::step() {
    chain_->step(passes_, state_);
    if (!known_.valid()) return;
    const int64_t values = chain_->images().count;
    device_.ops().copy_images(chain_->images(), {memory_.at(known_), device_.real_type(), values},
                              {memory_.at(marks_), DType::i32, values});
}

void Sampler::plan(const NetworkMemory& passes, IterationState* state) {
    passes_ = passes;
    state_ = state;
    if (starts_) starts_->start(chain_->images(), starts_->fresh(), 0, store_->view(), state);
    if (options_.steps > 0) step();
    if (options_.trace) chain_->look(passes, state);
}

void Sampler::ready(const NetworkMemory& passes, IterationState* state) {
    passes_ = passes;
    state_ = state;
    if (store_ && start_images_.count() > 0) store_->upload(start_images_);
    if (options_.steps > 0) step_ = capture(device_, [&] { step(); });
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

void Sampler::aim_at(std::span<const int64_t> labels) {
    const std::vector<int32_t> narrow(labels.begin(), labels.end());
    device_.upload(chain_->labels().data, narrow.data(), narrow.size() * sizeof(int32_t));
}

void Sampler::keep_known(std::span<const double> images, std::span<const int32_t> marks) {
    upload_values(device_, {memory_.at(known_), device_.real_type(), static_cast<int64_t>(images.size())}, images);
    device_.upload(memory_.at(marks_), marks.data(), marks.size_bytes());
}

std::vector<double> Sampler::download() { return download_values(device_, images()); }

void Sampler::run(const std::function<void(int64_t)>& progress) {
    if (metropolis_ != nullptr) {  // step k judges the move that step k - 1 proposed
        for (int64_t k = 0; k <= options_.steps && options_.steps > 0; ++k) {
            step_->replay();
            record_->frame(k, images());
            record_->values(k, metropolis_->values());
            record_->gradient_norm(k, state_);
            record_->accepted(k, metropolis_->accepted());
            if (progress) progress(k);
        }
        return;
    }
    record_->frame(0, images());
    for (int64_t k = 0; k < options_.steps; ++k) {
        step_->replay();
        record_->values(k, chain_->values());
        record_->gradient_norm(k, state_);
        record_->frame(k + 1, images());
        if (progress) progress(k + 1);
    }
    if (!options_.trace) return;
    chain_->look(passes_, state_);
    record_->values(options_.steps, chain_->values());
}

bool Sampler::diverged() {
    IterationState state;
    device_.take(device_.read_back(state_, sizeof state), &state);
    return state.diverged != 0;
}

}  // namespace jem
