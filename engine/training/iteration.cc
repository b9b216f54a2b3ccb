#include "engine/training/iteration.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/input_error.h"
#include "engine/sampling/steppers.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/training/labelled_images.h"
#include "engine/training/own_method.h"
#include "engine/training/terms/terms.h"

namespace jem {

namespace {

constexpr const char* kChainNorm = "sgld_grad_norm";  // root mean square over the batch of |d LSE / d x|, at the last step
constexpr const char* kChainWay = "chain_way";        // the same of |x_K - x_0|
constexpr const char* kClamped = "clamped";           // share of the samples' values at -1 or 1
constexpr const char* kOfLabelled = "_lab";           // behind them: of the chains of the labelled images' classes

bool crops(Augment how) { return how == Augment::crop || how == Augment::both; }
bool flips(Augment how) { return how == Augment::flip || how == Augment::both; }

// A rank's share of a batch of the whole job.
int64_t share(const char* flag, int64_t batch, int64_t ranks) {
    if (batch % ranks != 0)
        throw InputError(std::string(flag) + " is " + std::to_string(batch) + " (it is for the whole job, whose " + std::to_string(ranks) +
                         " ranks share it evenly). Give a multiple of " + std::to_string(ranks) + ".");
    return batch / ranks;
}

}  // namespace

TrainingIteration::DataSource TrainingIteration::source_of(const ImageSet& images) {
    ImageSetShape shape = {};
    shape.channels = images.channels;
    shape.height = images.height;
    shape.width = images.width;
    shape.num_classes = images.num_classes;
    shape.flip = images.flip;
    return {shape, images.count(), largest_class_of(images)};
}

TrainingIteration::TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const DataSource& data,
                                     const std::vector<NamedObjective>& known)
    : device_(device),
      memory_(memory),
      network_(network),
      settings_(settings),
      known_(known),
      method_(checked_method(settings, known)),
      data_(data),
      ranks_(device.communicator()) {
    store_ = std::make_unique<ImageStore>(device, memory, data.shape, data.count, data.largest_class);
    if (settings.init == StartForm::gaussian) store_->merge_classes();
    if (settings.labels_per_class > 0)
        labelled_store_ =
            std::make_unique<ImageStore>(device, memory, data.shape, settings.num_labelled(data.count), settings.labels_per_class);
    const bool generates = has_chain(method_, BatchOf::chain);
    if (generates || has_chain(method_, BatchOf::labelled_chain)) {
        if (settings.init == StartForm::images) {
            start_store_ = std::make_unique<ImageStore>(device, memory, data.shape, data.starts);
            start_store_->merge_classes();
        }
        buffer_ = std::make_unique<ReplayBuffer>(
            device, memory,
            ReplayBuffer::Options{.size = settings.buffer_size,
                                  .chains = generates ? share("--gen-batch-size", settings.gen_batch_size, ranks_.size())
                                                      : share("--batch-size", settings.batch_size, ranks_.size()),
                                  .pixels = int64_t{data.shape.height} * data.shape.width * data.shape.channels,
                                  .classes = is_of_one_class(settings.init) ? 1 : data.shape.num_classes,
                                  .by_class = !generates || draws_classes(method_),
                                  .num_classes = data.shape.num_classes,
                                  .order = settings.buffer_order,
                                  .reinit_freq = settings.reinit_freq,
                                  .form = settings.init,
                                  .largest_class = is_of_gaussians(settings.init) ? store_->largest_class() : 0,
                                  .crop = crops(settings.gen_augment),
                                  .flip = flips(settings.gen_augment) && data.shape.flip,
                                  .seed = settings.seed});
    }
    build({.positive = settings.gen_batch_size, .negative = settings.gen_batch_size, .labelled = settings.batch_size});
}

TrainingIteration::TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const GivenBatches& given,
                                     const std::vector<NamedObjective>& known)
    : device_(device),
      memory_(memory),
      network_(network),
      settings_(settings),
      known_(known),
      method_(checked_method(settings, known)),
      ranks_(device.communicator()) {
    build(given);
}

void TrainingIteration::build(const GivenBatches& job) {
    const int64_t ranks = ranks_.size();
    parameters_ = std::make_unique<Parameters>(device_, memory_, network_,
                                               Parameters::Options{.gradient = true,
                                                                   .optimizer_arrays = settings_.optimizer == Optimizer::adam ? 2 : 1,
                                                                   .perturbed = settings_.sam != SamForm::none,
                                                                   .average = settings_.ema > 0});
    state_ = memory_.keep("scalars", "iteration state", sizeof(IterationState));
    if (ranks > 1) states_ = memory_.keep("scalars", "states of all ranks", static_cast<size_t>(ranks) * sizeof(IterationState));
    if (has_term(method_, BatchOf::real)) real_ = make_batch(BatchOf::real, share("--gen-batch-size", job.positive, ranks));
    if (draws_labelled(method_)) labelled_ = make_batch(BatchOf::labelled, share("--batch-size", job.labelled, ranks));
    for (const auto& step : method_.steps)
        if (const auto* chain = std::get_if<ChainSpec>(&step)) add_chain(*chain, job);
    const auto logits = [&](const char* name) {
        return memory_.keep("scalars", name,
                            static_cast<size_t>(labelled_->count() * settings_.num_classes) * size_of(device_.real_type()));
    };
    if (has_term(method_, BatchOf::labelled)) kept_logits_ = logits("labelled logits");
    if (has_term(method_, BatchOf::adversarial)) kept_adversarial_logits_ = logits("adversarial logits");
    for (const auto& step : method_.steps)
        if (const auto* term = std::get_if<TermSpec>(&step)) add_term(*term);
    const bool classes = std::any_of(terms_.begin(), terms_.end(), [](const auto& t) { return t->spec.head == Head::classes; });
    if (!classes)
        idle_ = memory_.keep("scalars", "idle head",
                             static_cast<size_t>(network_.parameters_of(Head::classes).count) * size_of(device_.real_type()));
    if (settings_.grow_steps_at > 0 && tells_apart(method_)) {
        const auto values = [&](const char* name, BatchOf which) {
            return memory_.keep("scalars", name, static_cast<size_t>(count_of(which) * ranks) * size_of(device_.real_type()));
        };
        real_values_ = values("values of x+", BatchOf::real);
        drawn_values_ = values("values of x-", BatchOf::chain);
        separation_ = scalars_.number(kSeparation);
    }
    network_.build(device_, memory_, settings_.conv_algorithm);
    add_phases();
}

std::unique_ptr<Batch> TrainingIteration::make_batch(BatchOf which, int64_t count) const {
    const bool labelled = which == BatchOf::labelled;
    Batch::Options options{.name = labelled ? "labelled" : "positive",
                           .count = count,
                           .height = settings_.image_size,
                           .width = settings_.image_size,
                           .channels = settings_.in_channels,
                           .with_labels = labelled || takes_labels(method_, which, known_) || method_.chains_take_labels,
                           .drawn = data_.has_value()};
    if (data_) {
        const Augment of_labelled = settings_.augment ? Augment::both : Augment::off, how = labelled ? of_labelled : settings_.gen_augment;
        options.how = {.order = labelled ? RandomStream::labelled_order : RandomStream::generative_order,
                       .augment = labelled ? RandomStream::labelled_augment : RandomStream::generative_augment,
                       .crop = crops(how),
                       .flip = flips(how) && data_->shape.flip,
                       .noise = !labelled || settings_.input_noise_on == InputNoiseOn::both ? settings_.input_noise : 0,
                       .noise_salt = labelled ? 0u : 1u,
                       .seed = settings_.seed,
                       .first = ranks_.rank() * count,
                       .batch = labelled ? settings_.batch_size : settings_.gen_batch_size};
    }
    return std::make_unique<Batch>(device_, memory_, options);
}

NormMode TrainingIteration::mode_of(const ChainSpec& spec) const {
    const bool running = spec.evaluation_mode || method_.running_statistics || settings_.sampling_norm == SamplingNorm::running;
    return running ? NormMode::running : NormMode::batch_update;
}

// The chain's own scalars, and limits that its stepper goes by.
std::unique_ptr<Stepper> TrainingIteration::stepper_of(Chain& c) {
    constexpr double kAnywhere = 1e9;  // a radius that limits nothing
    if (c.spec.stepper == ChainStepper::attack) {
        const bool free = c.spec.climbs == ChainObjective::apart;  // as the scripts have it
        c.limits = {.step_size = in_units_of_x(settings_.attack_step_size),
                    .radius = free ? kAnywhere : in_units_of_x(settings_.attack_eps)};
        return attack_stepper(settings_.attack_norm, c.limits);
    }
    const std::string of = c.spec.makes == BatchOf::labelled_chain ? kOfLabelled : "";
    c.scalars = {
        .norm = scalars_.number(kChainNorm + of), .way = scalars_.number(kChainWay + of), .clamped = scalars_.number(kClamped + of)};
    if (c.spec.stepper == ChainStepper::sgld) return sgld_stepper(settings_.sgld(), scalars_, kChainNorm + of);
    c.limits = {.step_size = settings_.sgld_step_size, .radius = kAnywhere};
    return normalised_stepper(c.limits, c.scalars.norm);
}

void TrainingIteration::add_chain(const ChainSpec& spec, const GivenBatches& job) {
    const bool of_labelled = spec.makes != BatchOf::chain, attack = spec.makes == BatchOf::adversarial;
    const int64_t ranks = ranks_.size();
    auto c = std::make_unique<Chain>();
    c->spec = spec;
    c->steps = attack ? settings_.attack_steps : settings_.sgld_steps;
    if (buffer_ && spec.makes == BatchOf::labelled_chain && has_chain(method_, BatchOf::chain))
        c->kind = buffer_->add_chains(labelled_->count(), true);
    int64_t first_step = 0;
    for (const auto& before : chains_) first_step += before->steps;
    const std::string name = attack ? "attack" : of_labelled ? "sampling of classes" : "sampling";
    const bool noise = attack ? false : of_labelled ? job.noise_lab : job.noise;
    c->chain = std::make_unique<InputChain>(device_, network_, memory_,
                                            InputChain::Options{.name = name,
                                                                .count = of_labelled ? share("--batch-size", job.labelled, ranks)
                                                                                     : share("--gen-batch-size", job.negative, ranks),
                                                                .height = settings_.image_size,
                                                                .width = settings_.image_size,
                                                                .channels = settings_.in_channels,
                                                                .objective = spec.climbs,
                                                                .norm = mode_of(spec),
                                                                .head = spec.head,
                                                                .given_noise_steps = noise ? c->steps : 0,
                                                                .first_step = first_step,
                                                                .keeps_start = data_.has_value(),
                                                                .classes = settings_.num_classes},
                                            stepper_of(*c));
    if (attack && job.attack_noise)
        c->start =
            memory_.keep("samples", "attack noise",
                         static_cast<size_t>(c->chain->count() * settings_.in_channels * settings_.image_size * settings_.image_size) *
                             size_of(device_.real_type()));
    chains_.push_back(std::move(c));
}

void TrainingIteration::add_term(const TermSpec& spec) {
    auto term = std::make_unique<Term>(Term{.spec = spec, .passes = {}});
    const int64_t count = count_of(spec.batch);
    for (int pass = 0; pass < (settings_.sam != SamForm::none ? kNumPasses : 1); ++pass) {
        const std::string name = spec.name + (pass == 0 ? "" : " again");
        const NormMode batch = pass == 0 ? NormMode::batch_update : NormMode::batch_keep;
        const NormMode norm = method_.running_statistics ? NormMode::running : batch;
        const int number =
            network_.add_pass({.name = name, .batch = count, .norm = norm, .gradients = Gradients::weights, .head = spec.head});
        term->passes.push_back({number, {}});
        for (const ObjectiveSpec& objective : spec.objectives)
            term->passes.back().objectives.push_back(objective_called(objective.name, known_)
                                                         .make({.device = device_,
                                                                .memory = memory_,
                                                                .scalars = scalars_,
                                                                .settings = settings_,
                                                                .name = name,
                                                                .count = count,
                                                                .both = images_of_difference(spec, objective.name),
                                                                .weight = objective.weight}));
    }
    terms_.push_back(std::move(term));
}

void TrainingIteration::add_phases() {
    const auto add = [&](const std::string& name, std::function<void()> queue, int64_t repeats = 1, bool sampling = false,
                         int64_t images = 0) {
        if (repeats > 0)
            phases_.push_back({.name = name, .repeats = repeats, .sampling = sampling, .queue = std::move(queue), .images = images});
    };
    if (data_) add("draw", [this] { queue_draw(); });
    size_t next = 0;
    for (const auto& step : method_.steps) {
        if (const auto* spec = std::get_if<ChainSpec>(&step)) {
            Chain& c = chain_of(spec->makes);
            const bool attack = spec->makes == BatchOf::adversarial;
            if (attack) add(spec->name + " start", [this, &c] { queue_attack_start(c); });
            add(
                spec->name, [this, &c] { c.chain->step(memory_of(SamPass::at_weights), state()); }, c.steps, !attack, c.chain->count());
            continue;
        }
        const Term& term = *terms_[next];
        const bool first = next++ == 0;
        // of the buffer's
        Chain* const c = is_of_chain(term.spec.batch) && term.spec.batch != BatchOf::adversarial ? &chain_of(term.spec.batch) : nullptr;
        const auto queue = [this, &term, first, c] {
            if (first) device_.ops().fill_zero(parameters_->gradient());
            if (c != nullptr && data_)
                device_.ops().chain_summary(state(), c->chain->images(), c->chain->centre(), c->chain->count(), c->scalars);
            if (c != nullptr) queue_agreement(Agreement::after_sampling, c->scalars);
            queue_term(term, SamPass::at_weights);
        };
        add(term.spec.name, queue, 1, false, count_of(term.spec.batch));
        // Behind the term, whose look at the energies keeps what has diverged out of the buffer.
        if (c != nullptr && data_ && !std::exchange(c->stored, true))
            add(c->kind == 0 ? "store" : "store of classes", [this, c] { buffer_->store(c->chain->images(), state(), c->kind); });
    }
    add("perturb", [this] { queue_perturb(); });  // without SAM: the gradient's norm alone
    if (settings_.sam != SamForm::none) add("second", [this] { queue_second(); });
    add("update", [this] { queue_update(); });
}

int64_t TrainingIteration::repeats(const std::string& phase) const {
    for (const Phase& p : phases_)
        if (p.name == phase) return p.repeats;
    return 0;
}

std::vector<std::pair<std::string, WorkReport>> TrainingIteration::plan() {
    std::vector<std::pair<std::string, WorkReport>> out;
    for (const Phase& phase : phases_) out.emplace_back(phase.name, memory_.plan(phase.queue));
    if (settings_.norm == NormKind::act) memory_.plan([&] { queue_initialisation(); });
    if (buffer_) memory_.plan([&] { buffer_->plan_fill(start_store().view(), state()); });
    return out;
}

void TrainingIteration::upload(const ImageSet& images, const ImageSet& starts) {
    store_->upload(images);
    if (start_store_) start_store_->upload(starts);
    if (labelled_store_) labelled_store_->upload(labelled_images(images, settings_));
}

void TrainingIteration::record() {
    for (const Phase& phase : phases_) graphs_.push_back(capture(device_, phase.queue));
}

void TrainingIteration::begin(int64_t iteration, double lr, int64_t optimizer_step, uint64_t attempt) {
    const double t = static_cast<double>(optimizer_step + 1);
    device_.ops().begin_iteration(state(), static_cast<uint32_t>(iteration), lr, 1 - std::pow(settings_.adam_beta1, t),
                                  1 - std::pow(AdamUpdate<double, false>::kBeta2, t), attempt);
}

void TrainingIteration::take_steps(int64_t steps) {
    for (Phase& phase : phases_)
        if (phase.sampling) phase.repeats = steps;
}

void TrainingIteration::initialise_norms() {
    if (settings_.norm != NormKind::act) return;
    run("draw");
    queue_initialisation();
    if (settings_.ema > 0) device_.copy(parameters_->average().data, parameters_->weights().data, parameters_->weights().bytes());
}

// A forward pass that changes nothing else; the iteration repeats it with what it left.
void TrainingIteration::queue_initialisation() {
    NetworkMemory m = memory_of(SamPass::at_weights);
    m.initialises = true;
    const auto forward = [&](const Term& term) { network_.forward(term.passes.front().pass, m, images_of(term.spec.batch)); };
    if (settings_.act_init == ActInit::data)
        for (const auto& term : terms_)
            if (!is_of_chain(term->spec.batch)) return forward(*term);
    if (const auto* chain = std::get_if<ChainSpec>(&method_.steps.front())) {
        Chain& first = chain_of(chain->makes);
        if (chain->makes == BatchOf::adversarial) queue_attack_start(first);
        return first.chain->look(m, state());
    }
    forward(*terms_.front());
}

void TrainingIteration::lower_flag() {
    IterationState now;
    read_state(now);
    now.diverged = 0;
    device_.upload(state(), &now, sizeof now);
}

void TrainingIteration::run(const Phase& phase) {
    const Range range(device_, phase.name.c_str());
    const auto number = static_cast<size_t>(&phase - phases_.data());
    if (number < graphs_.size())
        graphs_[number]->replay();
    else
        phase.queue();
}

void TrainingIteration::run(const std::string& phase) {
    for (const Phase& p : phases_)
        if (p.name == phase) return run(p);
}

void TrainingIteration::run_all() {
    for (const Phase& phase : phases_)
        for (int64_t i = 0; i < phase.repeats; ++i) run(phase);
}

void TrainingIteration::prepare_weights() { network_.prepare(parameters_->weights(), parameters_->statistics()); }

int64_t TrainingIteration::queue_state() { return device_.read_back(state(), sizeof(IterationState)); }

IterationState TrainingIteration::take_state(int64_t ticket) {
    IterationState state;
    device_.take(ticket, &state);
    return state;
}

double TrainingIteration::loss(const IterationState& state) const {
    double sum = 0;
    for (const auto& term : terms_)
        for (size_t i = 0; i < term->spec.objectives.size(); ++i)
            if (const auto value = term->passes.front().objectives[i]->value())
                sum += term->spec.objectives[i].weight * scalars_.value(state, *value);
    return sum;
}

IterationState* TrainingIteration::state() { return reinterpret_cast<IterationState*>(memory_.at(state_)); }

std::vector<Array> TrainingIteration::carried() {
    Parameters& p = *parameters_;
    std::vector<Array> all = {p.weights(), p.statistics(), p.velocity()};
    if (settings_.optimizer == Optimizer::adam) all.push_back(p.second());
    if (settings_.ema > 0) all.push_back(p.average());
    if (buffer_) all.insert(all.end(), {buffer_->images(), buffer_->births()});
    return all;
}

size_t TrainingIteration::carried_bytes() const {
    const int64_t arrays = (settings_.optimizer == Optimizer::adam ? 3 : 2) + (settings_.ema > 0 ? 1 : 0);
    const int64_t values = arrays * network_.parameter_count() + network_.statistic_count();
    return static_cast<size_t>(values) * size_of(device_.real_type()) + (buffer_ ? buffer_->bytes() : 0);
}

Array TrainingIteration::kept_logits(BatchOf which) {
    return {memory_.at(which == BatchOf::labelled ? kept_logits_ : kept_adversarial_logits_), device_.real_type(),
            labelled_->count() * settings_.num_classes};
}

TrainingIteration::Chain& TrainingIteration::chain_of(BatchOf which) {
    for (const auto& c : chains_)
        if (c->spec.makes == which) return *c;
    throw std::logic_error("An iteration was asked for a chain that it does not run.");
}

Tensor TrainingIteration::images_of(BatchOf which) {
    if (is_of_chain(which)) return chain_of(which).chain->tensor();
    return which == BatchOf::real ? real_->tensor() : labelled_->tensor();
}

// Empty where they have none.
Array TrainingIteration::labels_of(BatchOf which) {
    if (is_of_chain(which)) return chain_of(which).chain->labels();
    return which == BatchOf::real ? real_->labels() : labelled_->labels();
}

int64_t TrainingIteration::count_of(BatchOf which) {
    if (is_of_chain(which)) return chain_of(which).chain->count();
    return which == BatchOf::real ? real_->count() : labelled_->count();
}

// Of the term and of that of the other half, where the objective is one of a difference.
int64_t TrainingIteration::images_of_difference(const TermSpec& term, const std::string& objective) {
    const ObjectiveTraits& traits = objective_called(objective, known_).traits;
    int64_t images = count_of(term.batch);
    for (const auto& step : method_.steps) {
        const auto* other = std::get_if<TermSpec>(&step);
        if (other == nullptr) continue;
        for (const ObjectiveSpec& o : other->objectives)
            if (o.name == traits.second || objective_called(o.name, known_).traits.second == objective) images += count_of(other->batch);
    }
    return images;
}

NetworkMemory TrainingIteration::memory_of(SamPass pass) {
    return {.weights = pass == SamPass::at_weights ? parameters_->weights() : parameters_->perturbed(),
            .gradient = parameters_->gradient(),
            .statistics = parameters_->statistics(),
            .state = state()};
}

void TrainingIteration::queue_draw() {
    const ResidentImages resident = store_->view(), starts = start_store().view();
    if (labelled_) labelled_->draw(labelled_store().view(), state());
    if (real_) real_->draw(resident, state());
    for (const auto& c : chains_) {
        InputChain& chain = *c->chain;
        if (c->spec.makes == BatchOf::adversarial) continue;
        buffer_->draw(chain.images(), starts, state(), c->kind, c->spec.makes == BatchOf::labelled_chain ? labelled_->labels() : Array{});
        const bool of_real = method_.chains_take_labels && c->spec.makes == BatchOf::chain;
        const Array labels = of_real ? real_->labels() : buffer_->labels(c->kind);
        if (chain.labels().count > 0) device_.copy(chain.labels().data, labels.data, chain.labels().bytes());
        chain.begin();
    }
}

Array TrainingIteration::attack_noise() {
    const Chain& c = chain_of(BatchOf::adversarial);
    return c.start.valid() ? Array{memory_.at(c.start), device_.real_type(), c.chain->images().count} : Array{};
}

// At x_lab, or a random way off it where the method says so.
void TrainingIteration::queue_attack_start(Chain& c) {
    InputChain& chain = *c.chain;
    device_.copy(chain.images().data, labelled_->images().data, chain.images().bytes());
    if (chain.labels().count > 0) device_.copy(chain.labels().data, labelled_->labels().data, chain.labels().bytes());
    chain.begin();
    chain.look_at_start(memory_of(SamPass::at_weights), state());
    if (!method_.attacks_start_apart) return;
    device_.ops().attack_start(chain.images(), labelled_->images(), attack_noise(), state(), in_units_of_x(settings_.attack_eps),
                               settings_.seed, ranks_.rank() * chain.images().count);
}

void TrainingIteration::queue_term(const Term& term, SamPass pass) {
    const Term::Pass& of = term.passes[static_cast<size_t>(pass)];
    const int number = of.pass;
    const bool labelled = term.spec.batch == BatchOf::labelled || term.spec.batch == BatchOf::adversarial;
    const bool kept = keep_logits_ && labelled && term.spec.head == Head::classes && pass == SamPass::at_weights;
    const Tensor images = images_of(term.spec.batch);
    network_.forward(number, memory_of(pass), images);
    if (kept) device_.copy(kept_logits(term.spec.batch).data, network_.logits(number).data, kept_logits(term.spec.batch).bytes());
    const Slot values = term.spec.batch == BatchOf::real ? real_values_ : term.spec.batch == BatchOf::chain ? drawn_values_ : Slot{};
    if (values.valid() && pass == SamPass::at_weights)
        device_.ops().log_sum_exp(ranks_.own(all_values(values)), network_.logits(number),
                                  method_.chains_take_labels ? labels_of(term.spec.batch) : Array{});
    for (const auto& objective : of.objectives)
        objective->queue({.network = network_,
                          .pass = number,
                          .labels = labels_of(term.spec.batch),
                          .state = state(),
                          .sam = pass,
                          .add = objective != of.objectives.front()});
    network_.backward(number, memory_of(pass), images, nullptr);
}

// The rank's own results become the job's; alone they are that already.
void TrainingIteration::queue_agreement(Agreement when, const ChainScalars& chain) {
    if (ranks_.size() == 1) return;
    const auto states = [&] { return Array{memory_.at(states_), DType::u8, static_cast<int64_t>(memory_.bytes(states_))}; };
    device_.copy(ranks_.own(states()).data, state(), sizeof(IterationState));
    ranks_.all_gather(states());
    device_.ops().agree_on_state(state(), states(), when, chain);
}

Array TrainingIteration::all_values(Slot slot) {
    return {memory_.at(slot), device_.real_type(), static_cast<int64_t>(memory_.bytes(slot) / size_of(device_.real_type()))};
}

void TrainingIteration::queue_separation() {
    ranks_.all_gather(all_values(real_values_));
    ranks_.all_gather(all_values(drawn_values_));
    device_.ops().separation(state(), all_values(real_values_), all_values(drawn_values_), separation_);
}

void TrainingIteration::queue_perturb() {
    Ops& ops = device_.ops();
    Parameters& w = *parameters_;
    if (separation_ >= 0) queue_separation();
    const bool own = settings_.sam_local && settings_.sam != SamForm::none;
    network_.finish_gradient(memory_of(SamPass::at_weights));
    if (!own) ranks_.all_reduce_sum(w.gradient());
    ops.gradient_norm(state(), w.gradient(), w.weights(), settings_.sam, settings_.rho, SamPass::at_weights, settings_.gradient_clip);
    if (own) queue_agreement(Agreement::after_own_norms);
    if (settings_.sam == SamForm::none) return;
    ops.sam_perturb(w.perturbed(), w.weights(), w.gradient(), state(), settings_.sam);
    network_.prepare(w.perturbed(), w.statistics());
}

// The terms once more at w + e, running statistics left alone.
void TrainingIteration::queue_second() {
    Parameters& w = *parameters_;
    device_.ops().fill_zero(w.gradient());
    for (const auto& term : terms_) queue_term(*term, SamPass::at_perturbed);
    network_.finish_gradient(memory_of(SamPass::at_perturbed));
    ranks_.all_reduce_sum(w.gradient());
    device_.ops().gradient_norm(state(), w.gradient(), w.weights(), settings_.sam, settings_.rho, SamPass::at_perturbed,
                                settings_.gradient_clip);
}

Array TrainingIteration::idle_weights() {
    const Network::Range idle = idle_.valid() ? network_.parameters_of(Head::classes) : Network::Range{};
    return parameters_->weights().slice(idle.first, idle.count);
}

// The optimizer at w with the last gradient.
void TrainingIteration::queue_update() {
    Ops& ops = device_.ops();
    Parameters& w = *parameters_;
    if (idle_.valid()) device_.copy(memory_.at(idle_), idle_weights().data, memory_.bytes(idle_));
    if (settings_.optimizer == Optimizer::adam)
        ops.adam_update(w.weights(), w.velocity(), w.second(), w.gradient(), state(),
                        {.weight_decay = settings_.weight_decay, .beta1 = settings_.adam_beta1, .clamp = settings_.adam_clamp});
    else
        ops.sgd_update(w.weights(), w.velocity(), w.gradient(), state(), settings_.momentum, settings_.weight_decay, method_.nesterov);
    if (idle_.valid()) device_.copy(idle_weights().data, memory_.at(idle_), memory_.bytes(idle_));
    if (settings_.ema > 0) ops.ema_update(w.average(), w.weights(), state(), settings_.ema);
    // Each rank has seen a share of the images: rank 0's running statistics are everyone's, so that the ranks stay the same
    // whatever reads them, and a checkpoint says it all. Of the whole job they are the same already.
    if (settings_.norm == NormKind::batch && settings_.norm_statistics == NormStatistics::rank) ranks_.broadcast(w.statistics());
    network_.keep_estimates(memory_of(SamPass::at_weights));
    network_.prepare(w.weights(), w.statistics());
}

}  // namespace jem
