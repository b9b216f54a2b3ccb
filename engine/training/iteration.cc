#include "engine/training/iteration.h"

#include <cmath>

#include "data/input_error.h"

namespace jem {

namespace {

// A rank's share of a batch of the whole job.
int64_t share(const char* flag, int64_t batch, int64_t ranks) {
    if (batch % ranks != 0)
        throw InputError(std::string(flag) + " is " + std::to_string(batch) + " (it is for the whole job, whose " + std::to_string(ranks) +
                         " ranks share it evenly). Give a multiple of " + std::to_string(ranks) + ".");
    return batch / ranks;
}

}  // namespace

const char* phase_name(Phase phase) {
    switch (phase) {
        case Phase::draw:
            return "draw";
        case Phase::positive:
            return "positive";
        case Phase::sample:
            return "sample";
        case Phase::negative:
            return "negative";
        case Phase::store:
            return "store";
        case Phase::labelled:
            return "labelled";
        case Phase::perturb:
            return "perturb";
        case Phase::second:
            return "second";
        case Phase::update:
            return "update";
    }
    return "?";
}

TrainingIteration::TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const DataSource& data)
    : device_(device), memory_(memory), network_(network), settings_(settings), data_(data), ranks_(device.communicator()) {
    images_ = std::make_unique<ImageStore>(device, memory, data.shape, data.count, data.largest_class);
    if (settings.init == StartForm::gaussian) images_->merge_classes();
    if (settings.samples()) {
        const bool gaussian = settings.init == StartForm::gaussian;
        buffer_ = std::make_unique<ReplayBuffer>(
            device, memory,
            ReplayBuffer::Options{.size = settings.buffer_size,
                                  .chains = share("--gen-batch-size", settings.gen_batch_size, ranks_.size()),
                                  .pixels = int64_t{data.shape.height} * data.shape.width * data.shape.channels,
                                  .classes = gaussian ? 1 : data.shape.num_classes,
                                  .reinit_freq = settings.reinit_freq,
                                  .form = settings.init,
                                  .largest_class = settings.init == StartForm::uniform ? 0 : images_->largest_class(),
                                  .seed = settings.seed});
    }
    build({.positive = settings.gen_batch_size, .negative = settings.gen_batch_size, .labelled = settings.batch_size});
    positive_draws_ = memory.keep("samples", "positive draws", static_cast<size_t>(num_positive_) * sizeof(ImageDraw));
    labelled_draws_ = memory.keep("samples", "labelled draws", static_cast<size_t>(num_labelled_) * sizeof(ImageDraw));
}

TrainingIteration::TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const GivenBatches& given)
    : device_(device), memory_(memory), network_(network), settings_(settings), ranks_(device.communicator()) {
    build(given);
}

void TrainingIteration::build(const GivenBatches& job) {
    const auto ranks = static_cast<size_t>(ranks_.size());
    const int64_t positive = settings_.samples() ? share("--gen-batch-size", job.positive, ranks_.size()) : 0;
    const int64_t negative = settings_.samples() ? share("--gen-batch-size", job.negative, ranks_.size()) : 0;
    const int64_t labelled = settings_.classifies() ? share("--batch-size", job.labelled, ranks_.size()) : 0;
    num_positive_ = positive;
    num_labelled_ = labelled;
    const bool sam = settings_.sam != SamForm::none;
    parameters_ = std::make_unique<Parameters>(device_, memory_, network_,
                                               Parameters::Options{.gradient = true,
                                                                   .optimizer_arrays = settings_.optimizer == Optimizer::adam ? 2 : 1,
                                                                   .perturbed = sam,
                                                                   .average = settings_.ema > 0});
    const size_t real = size_of(device_.real_type());
    state_ = memory_.keep("scalars", "iteration state", sizeof(IterationState));
    if (ranks > 1) states_ = memory_.keep("scalars", "states of all ranks", ranks * sizeof(IterationState));
    const auto images_of = [&](const char* name, int64_t n) {
        return memory_.keep("samples", name,
                            static_cast<size_t>(n * settings_.in_channels * settings_.image_size * settings_.image_size) * real);
    };
    const auto loss_pass = [&](const std::string& name, int64_t n, int pass) {
        const NormMode mode = pass == 0 ? NormMode::batch_update : NormMode::batch_keep;
        LossPass p;
        p.pass = network_.add_pass({name, n, mode, Gradients::weights});
        p.lse = memory_.transient(name + "/lse", ranks * static_cast<size_t>(n) * real);
        p.hit = memory_.transient(name + "/hit", ranks * static_cast<size_t>(n) * real);
        return p;
    };
    if (settings_.samples()) {
        positive_images_ = images_of("positive images", positive);
        sampler_ = std::make_unique<Sampler>(
            device_, network_, memory_,
            Sampler::Options{.name = "sampling",
                             .chains = negative,
                             .height = settings_.image_size,
                             .width = settings_.image_size,
                             .channels = settings_.in_channels,
                             .sgld = settings_.sgld(),
                             .norm = settings_.sampling_norm == SamplingNorm::running ? NormMode::running : NormMode::batch_update,
                             .given_noise_steps = job.noise ? settings_.sgld_steps : 0});
    }
    if (settings_.classifies()) {
        labelled_images_ = images_of("labelled images", labelled);
        labels_ = memory_.keep("samples", "labels", static_cast<size_t>(labelled) * sizeof(int32_t));
        kept_logits_ = memory_.keep("scalars", "labelled logits", static_cast<size_t>(labelled * settings_.num_classes) * real);
    }
    for (int pass = 0; pass < (sam ? kNumPasses : 1); ++pass) {
        const std::string again = pass == 0 ? "" : " again";
        const auto i = static_cast<size_t>(pass);
        if (settings_.samples()) {
            positive_[i] = loss_pass("positive" + again, positive, pass);
            negative_[i] = loss_pass("negative" + again, negative, pass);
        }
        if (settings_.classifies()) labelled_[i] = loss_pass("labelled" + again, labelled, pass);
    }
    network_.build(device_, memory_, settings_.conv_algorithm);
}

int64_t TrainingIteration::repeats(Phase phase) const {
    switch (phase) {
        case Phase::draw:
            return data_ ? 1 : 0;
        case Phase::positive:
        case Phase::negative:
            return settings_.samples() ? 1 : 0;
        case Phase::sample:
            return settings_.samples() ? settings_.sgld_steps : 0;
        case Phase::store:
            return settings_.samples() && data_ ? 1 : 0;
        case Phase::labelled:
            return settings_.classifies() ? 1 : 0;
        case Phase::perturb:
            return 1;  // without SAM: the gradient's norm alone
        case Phase::second:
            return settings_.sam != SamForm::none ? 1 : 0;
        case Phase::update:
            return 1;
    }
    return 0;
}

std::vector<std::pair<Phase, WorkReport>> TrainingIteration::plan() {
    std::vector<std::pair<Phase, WorkReport>> out;
    for (const Phase phase : kPhases) {
        if (repeats(phase) == 0) continue;
        out.emplace_back(phase, memory_.plan([&] { queue(phase); }));
    }
    return out;
}

void TrainingIteration::record() {
    for (size_t i = 0; i < kPhases.size(); ++i)
        if (repeats(kPhases[i]) > 0) graphs_[i] = capture(device_, [&] { queue(kPhases[i]); });
}

void TrainingIteration::begin(int64_t iteration, double lr, int64_t optimizer_step) {
    const double t = static_cast<double>(optimizer_step + 1);
    device_.ops().begin_iteration(state(), static_cast<uint32_t>(iteration), lr, 1 - std::pow(AdamUpdate<double>::kBeta1, t),
                                  1 - std::pow(AdamUpdate<double>::kBeta2, t));
}

void TrainingIteration::run(Phase phase) {
    if (repeats(phase) == 0) return;
    const Range range(device_, phase_name(phase));
    if (StepGraph* graph = graphs_[static_cast<size_t>(phase)].get())
        graph->replay();
    else
        queue(phase);
}

void TrainingIteration::run_all() {
    for (const Phase phase : kPhases)
        for (int64_t i = 0; i < repeats(phase); ++i) run(phase);
}

void TrainingIteration::prepare_weights() { network_.prepare(parameters_->weights()); }

int64_t TrainingIteration::queue_state() { return device_.read_back(state(), sizeof(IterationState)); }

IterationState TrainingIteration::take_state(int64_t ticket) {
    IterationState state;
    device_.take(ticket, &state);
    return state;
}

IterationState* TrainingIteration::state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }

Tensor TrainingIteration::image_tensor(Slot slot, int64_t n) {
    return {memory_.at(slot),     device_.real_type(),  n, settings_.in_channels, settings_.image_size,
            settings_.image_size, settings_.in_channels};
}

Array TrainingIteration::positive_images() {
    const Tensor t = image_tensor(positive_images_, num_positive_);
    return {t.data, t.type, t.count()};
}
Array TrainingIteration::labelled_images() {
    const Tensor t = image_tensor(labelled_images_, num_labelled_);
    return {t.data, t.type, t.count()};
}
Array TrainingIteration::labels() { return {memory_.at(labels_), DType::i32, num_labelled_}; }
Array TrainingIteration::kept_logits() { return {memory_.at(kept_logits_), device_.real_type(), num_labelled_ * settings_.num_classes}; }

NetworkMemory TrainingIteration::memory_of(SamPass pass) {
    return {.weights = pass == SamPass::at_weights ? parameters_->weights() : parameters_->perturbed(),
            .gradient = parameters_->gradient(),
            .statistics = parameters_->statistics(),
            .state = state()};
}

void TrainingIteration::queue_energy(const LossPass& p, EnergyTerm term, SamPass pass, const Tensor& images) {
    Ops& ops = device_.ops();
    const auto lse = [&] { return Array{memory_.at(p.lse), device_.real_type(), ranks_.size() * images.n}; };  // of the whole job
    network_.forward(p.pass, memory_of(pass), images);
    ops.log_sum_exp(ranks_.own(lse()), network_.logits(p.pass));
    ranks_.all_gather(lse());
    ops.energy_summary(state(), lse(), term, pass, settings_.energy_l2);
    // The mean over the job's batch: a rank's share of it weighs less.
    ops.energy_backward(network_.d_logits(p.pass), network_.logits(p.pass), ranks_.own(lse()), state(), term, pass,
                        settings_.p_x_weight / ranks_.size(), settings_.energy_l2);
    network_.backward(p.pass, memory_of(pass), images, nullptr);
}

void TrainingIteration::queue_labelled(const LossPass& p, SamPass pass) {
    Ops& ops = device_.ops();
    const Tensor images = image_tensor(labelled_images_, num_labelled_);
    const auto loss = [&] { return Array{memory_.at(p.lse), device_.real_type(), ranks_.size() * num_labelled_}; };
    const auto hit = [&] { return Array{memory_.at(p.hit), device_.real_type(), ranks_.size() * num_labelled_}; };
    network_.forward(p.pass, memory_of(pass), images);
    if (keep_logits_ && pass == SamPass::at_weights) device_.copy(kept_logits().data, network_.logits(p.pass).data, kept_logits().bytes());
    ops.cross_entropy(ranks_.own(loss()), ranks_.own(hit()), network_.d_logits(p.pass), network_.logits(p.pass), labels(),
                      settings_.p_y_given_x_weight / ranks_.size());
    ranks_.all_gather(loss());
    ranks_.all_gather(hit());
    ops.classification_summary(state(), loss(), hit(), pass);
    network_.backward(p.pass, memory_of(pass), images, nullptr);
}

// The rank's own results become the job's; alone they are that already.
void TrainingIteration::queue_agreement(Agreement when) {
    if (ranks_.size() == 1) return;
    const auto states = [&] { return Array{memory_.at(states_), DType::u8, static_cast<int64_t>(memory_.bytes(states_))}; };
    device_.copy(ranks_.own(states()).data, state(), sizeof(IterationState));
    ranks_.all_gather(states());
    device_.ops().agree_on_state(state(), states(), when);
}

void TrainingIteration::queue(Phase phase) {
    Ops& ops = device_.ops();
    Parameters& w = *parameters_;
    switch (phase) {
        case Phase::draw: {
            const ResidentImages resident = images_->view();
            if (settings_.classifies()) {
                const BatchDraw draw{.order = RandomStream::labelled_order,
                                     .augment = RandomStream::labelled_augment,
                                     .crop = settings_.augment,
                                     .flip = settings_.augment && data_->shape.flip,
                                     .noise = settings_.input_noise_on == InputNoiseOn::both ? settings_.input_noise : 0,
                                     .noise_salt = 0,
                                     .seed = settings_.seed,
                                     .first = ranks_.rank() * num_labelled_,
                                     .batch = settings_.batch_size};
                const Array draws{memory_.at(labelled_draws_), DType::u8, static_cast<int64_t>(memory_.bytes(labelled_draws_))};
                ops.draw_images(draws, resident, state(), draw);
                ops.crop_flip(labelled_images(), draws, resident, state(), draw);
                ops.gather_labels(labels(), draws, resident);
            }
            if (settings_.samples()) {
                const BatchDraw draw{.order = RandomStream::generative_order,
                                     .augment = RandomStream::generative_augment,
                                     .crop = settings_.gen_augment,
                                     .flip = settings_.gen_augment && data_->shape.flip,
                                     .noise = settings_.input_noise,
                                     .noise_salt = 1,
                                     .seed = settings_.seed,
                                     .first = ranks_.rank() * num_positive_,
                                     .batch = settings_.gen_batch_size};
                const Array draws{memory_.at(positive_draws_), DType::u8, static_cast<int64_t>(memory_.bytes(positive_draws_))};
                ops.draw_images(draws, resident, state(), draw);
                ops.crop_flip(positive_images(), draws, resident, state(), draw);
                buffer_->draw(sampler_->samples(), resident, state());
            }
            return;
        }
        case Phase::positive:
            ops.fill_zero(w.gradient());
            return queue_energy(positive_[0], EnergyTerm::positive, SamPass::at_weights, image_tensor(positive_images_, num_positive_));
        case Phase::sample:
            return sampler_->step(memory_of(SamPass::at_weights), state());
        case Phase::negative:
            queue_agreement(Agreement::after_sampling);
            return queue_energy(negative_[0], EnergyTerm::negative, SamPass::at_weights, sampler_->sample_images());
        case Phase::store:
            return buffer_->store(sampler_->samples(), state());
        case Phase::labelled:
            if (!settings_.samples()) ops.fill_zero(w.gradient());
            return queue_labelled(labelled_[0], SamPass::at_weights);
        case Phase::perturb: {
            const bool own = settings_.sam_local && settings_.sam != SamForm::none;
            if (!own) ranks_.all_reduce_sum(w.gradient());
            ops.gradient_norm(state(), w.gradient(), w.weights(), settings_.sam, settings_.rho, SamPass::at_weights);
            if (own) queue_agreement(Agreement::after_own_norms);
            if (settings_.sam == SamForm::none) return;
            ops.sam_perturb(w.perturbed(), w.weights(), w.gradient(), state(), settings_.sam);
            return network_.prepare(w.perturbed());
        }
        case Phase::second:
            ops.fill_zero(w.gradient());
            if (settings_.samples()) {
                queue_energy(positive_[1], EnergyTerm::positive, SamPass::at_perturbed, image_tensor(positive_images_, num_positive_));
                queue_energy(negative_[1], EnergyTerm::negative, SamPass::at_perturbed, sampler_->sample_images());
            }
            if (settings_.classifies()) queue_labelled(labelled_[1], SamPass::at_perturbed);
            ranks_.all_reduce_sum(w.gradient());
            return ops.gradient_norm(state(), w.gradient(), w.weights(), settings_.sam, settings_.rho, SamPass::at_perturbed);
        case Phase::update:
            if (settings_.optimizer == Optimizer::adam)
                ops.adam_update(w.weights(), w.velocity(), w.second(), w.gradient(), state(), settings_.weight_decay);
            else
                ops.sgd_update(w.weights(), w.velocity(), w.gradient(), state(), settings_.momentum, settings_.weight_decay);
            if (settings_.ema > 0) ops.ema_update(w.average(), w.weights(), state(), settings_.ema);
            // Each rank has seen a share of the images: rank 0's running statistics are everyone's, so that the ranks stay the same
            // whatever reads them, and a checkpoint says it all. Of the whole job they are the same already.
            if (settings_.norm == NormKind::batch && settings_.norm_statistics == NormStatistics::rank) ranks_.broadcast(w.statistics());
            return network_.prepare(w.weights());
    }
}

}  // namespace jem
