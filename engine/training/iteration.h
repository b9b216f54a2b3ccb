// One training iteration as phases, each recorded once and replayed: what a method's terms and chains ask for (SADA-JEM, Algorithm 1:
// draw, positive, sample K times, negative, store, labelled, perturb, second, update). Terms are independent, so each runs forward and
// backward before the next begins, adding into the gradient: the memory of an iteration is that of its largest batch.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/network/parameters.h"
#include "engine/network/scalars.h"
#include "engine/sampling/image_store.h"
#include "engine/sampling/input_chain.h"
#include "engine/sampling/replay_buffer.h"
#include "engine/settings/method.h"
#include "engine/settings/settings.h"
#include "engine/training/batch.h"
#include "engine/training/terms/terms.h"

namespace jem {

class TrainingIteration {
public:
    // `step`: tensors from a file in place of the draw and the buffer. Sizes are the whole job's; a rank is given its share.
    struct GivenBatches {
        int64_t positive = 0, negative = 0, labelled = 0;
        bool noise = false, noise_lab = false;  // of the two kinds of chains
        bool attack_noise = false;
    };
    struct DataSource {  // training: everything on the device
        ImageSetShape shape;
        int64_t count = 0, largest_class = 0;
        int64_t starts = 0;  // images of the set that chains start from (--init NAME:DIR)
    };

    // What images are for it, whichever they are.
    static DataSource source_of(const ImageSet& images);

    // Registers all passes and memory; the network must not have been built. One of the two sources. The settings' batches are the
    // whole job's: InputError where they do not divide by its ranks.
    // Terms of the loss go by `known`, which must outlive it. InputError, too, for a method of the settings' own that cannot be run.
    TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const DataSource& data,
                      const std::vector<NamedObjective>& known = objectives());
    TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const GivenBatches& given,
                      const std::vector<NamedObjective>& known = objectives());
    TrainingIteration(const TrainingIteration&) = delete;  // the phases refer to it
    TrainingIteration& operator=(const TrainingIteration&) = delete;

    struct Phase {
        std::string name;
        int64_t repeats = 1;          // in an iteration: K of a chain's
        bool sampling = false;        // whether take_steps() is of it
        std::function<void()> queue;  // once
        int64_t images = 0;           // of this rank that a term, or a step of a chain, runs the network on
    };
    // In the order in which they run.
    const std::vector<Phase>& phases() const { return phases_; }
    // 0 for a phase that the settings leave out.
    int64_t repeats(const std::string& phase) const;

    // Runs every phase dry (inside Memory::plan) and returns the work of one of each.
    std::vector<std::pair<std::string, WorkReport>> plan();
    // Records the phases. After Memory::allocate.
    void record();

    // attempt: of the run, part of every random number but the order of the images, which an epoch sees once each.
    void begin(int64_t iteration, double lr, int64_t optimizer_step, uint64_t attempt = 0);
    // From now on chains take so many steps, where the settings have them take any.
    void take_steps(int64_t steps);
    // The scalar that says how well x+ and x- are told apart, AUROC of f(x)[y] where chains take the labels of x+, else of log p(x); only
    // with grow_steps_at.
    static constexpr const char* kSeparation = "auroc_neg";
    // Norms that a batch sets (NormKind::act) take their values from the batch that the iteration that was begun begins with, drawn or
    // given: before the first one, on every rank. Nothing elsewhere.
    void initialise_norms();
    // After divergence, once parameters and buffer are those of before it.
    void lower_flag();
    void run(const Phase& phase);  // once: replays, or queues where record() has not been called
    void run(const std::string& phase);
    void run_all();  // in order, each as often as it repeats

    // The weights into the form that convolutions read: after loading or initialising them.
    void prepare_weights();
    // Scalars of the iteration just queued (the whole job's: the same on every rank): queued, then taken by the ticket, which waits.
    int64_t queue_state();
    IterationState take_state(int64_t ticket);
    void read_state(IterationState& to) { to = take_state(queue_state()); }
    // What the scalars of a state are.
    const Scalars& scalars() const { return scalars_; }
    // The weighted sum of the terms' values at the weights.
    double loss(const IterationState& state) const;

    Parameters& parameters() { return *parameters_; }
    ReplayBuffer& buffer() { return *buffer_; }
    // The training images and those of the other set that chains start from, once memory is allocated.
    void upload(const ImageSet& images, const ImageSet& starts = {});
    // The images that fresh chains are made from: all of them, or the other set.
    ImageStore& start_store() { return start_store_ ? *start_store_ : *store_; }
    ImageStore& store() { return *store_; }                                                // all of them
    ImageStore& labelled_store() { return labelled_store_ ? *labelled_store_ : *store_; }  // those that x_lab is drawn from
    InputChain& chain(BatchOf which = BatchOf::chain) { return *chain_of(which).chain; }
    Array attack_noise();  // R [labelled images, H*W*C], where it is given
    IterationState* state();
    // All that an iteration leaves to the next one but its number: parameters, the optimizer's, statistics, the buffer.
    std::vector<Array> carried();
    size_t carried_bytes() const;             // of all of them; before memory is allocated as well
    Batch& real() { return *real_; }          // x+
    Batch& labelled() { return *labelled_; }  // x_lab
    // Whether the terms of the labelled and of the adversarial images leave their logits in kept_logits(), R [N, classes]; to be set
    // before plan().
    void keep_logits(bool on) { keep_logits_ = on; }
    Array kept_logits(BatchOf which = BatchOf::labelled);

private:
    struct Term {
        TermSpec spec;
        struct Pass {
            int pass = -1;
            std::vector<std::unique_ptr<Objective>> objectives;
        };
        std::vector<Pass> passes;  // of SAM
    };
    struct Chain {
        ChainSpec spec;
        ChainScalars scalars;
        int kind = 0;  // of the replay buffer's chains
        std::unique_ptr<InputChain> chain;
        bool stored = false;  // whether it has its phase
        int64_t steps = 0;
        AttackLimits limits;  // of a stepper that has some
        Slot start;           // given: where the attack starts, as multiples of its radius
    };

    void build(const GivenBatches& job);
    void add_chain(const ChainSpec& spec, const GivenBatches& job);
    void add_term(const TermSpec& spec);
    void add_phases();
    std::unique_ptr<Batch> make_batch(BatchOf which, int64_t count) const;
    Chain& chain_of(BatchOf which);
    Tensor images_of(BatchOf which);
    Array labels_of(BatchOf which);
    int64_t count_of(BatchOf which);
    int64_t images_of_difference(const TermSpec& term, const std::string& objective);
    void queue_draw();
    void queue_attack_start(Chain& chain);
    void queue_initialisation();
    std::unique_ptr<Stepper> stepper_of(Chain& chain);
    NormMode mode_of(const ChainSpec& spec) const;
    void queue_agreement(Agreement when, const ChainScalars& chain = {});
    void queue_term(const Term& term, SamPass pass);
    Array all_values(Slot slot);  // R, the job's
    void queue_separation();
    void queue_perturb();
    void queue_second();
    void queue_update();
    // The parameters of the classes' head where no term goes through it: they stay as they are. Empty elsewhere.
    Array idle_weights();
    NetworkMemory memory_of(SamPass pass);

    Device& device_;
    Memory& memory_;
    Network& network_;
    Settings settings_;
    const std::vector<NamedObjective>& known_;
    Method method_;
    std::optional<DataSource> data_;
    Communicator& ranks_;
    bool keep_logits_ = false;

    Scalars scalars_;
    std::unique_ptr<Parameters> parameters_;
    std::unique_ptr<ImageStore> store_, labelled_store_;  // labelled_store_: with --labels-per-class, else none
    std::unique_ptr<ImageStore> start_store_;             // with --init images, else none
    std::unique_ptr<ReplayBuffer> buffer_;
    std::vector<std::unique_ptr<Chain>> chains_;  // in the method's order
    std::unique_ptr<Batch> real_, labelled_;
    std::vector<std::unique_ptr<Term>> terms_;  // in the method's order
    Slot state_, kept_logits_, kept_adversarial_logits_;
    Slot states_;                      // of all ranks
    Slot real_values_, drawn_values_;  // what they are told apart by, the job's
    int separation_ = -1;              // the scalar
    Slot idle_;                        // idle_weights(), while the optimizer decays them
    std::vector<Phase> phases_;
    std::vector<std::unique_ptr<StepGraph>> graphs_;  // of the phases, once recorded
};

}  // namespace jem
