// One training iteration (SADA-JEM, Algorithm 1) as phases, each recorded once and replayed. The three batches have independent loss
// terms, so each runs forward and backward before the next begins, adding into the gradient: the memory of an
// iteration is that of its largest batch.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/network/parameters.h"
#include "engine/sampling/image_store.h"
#include "engine/sampling/replay_buffer.h"
#include "engine/sampling/sampler.h"
#include "engine/settings/settings.h"

namespace jem {

enum class Phase {
    draw,      // batches, chains
    positive,  // x+: forward, backward of px * (-fp + l2 fp^2)
    sample,    // x-: one SGLD step; run K times
    negative,  // x-: forward, backward of px * (fq + l2 fq^2)
    store,     // x- into the buffer
    labelled,  // x: forward, cross-entropy, backward
    perturb,   // gradient's norm, w + e
    second,    // the three again at w + e, running statistics left alone
    update,    // optimizer at w with the last gradient
};
inline constexpr std::array kPhases = {Phase::draw,     Phase::positive, Phase::sample, Phase::negative, Phase::store,
                                       Phase::labelled, Phase::perturb,  Phase::second, Phase::update};
const char* phase_name(Phase phase);

class TrainingIteration {
public:
    // `step`: tensors from a file in place of the draw and the buffer. Sizes are the whole job's; a rank is given its share.
    struct GivenBatches {
        int64_t positive = 0, negative = 0, labelled = 0;
        bool noise = false;
    };
    struct DataSource {  // training: everything on the device
        ImageSetShape shape;
        int64_t count = 0, largest_class = 0;
    };

    // Registers all passes and memory; the network must not have been built. One of the two sources. The settings' batches are the
    // whole job's: InputError where they do not divide by its ranks.
    TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const DataSource& data);
    TrainingIteration(Device& device, Memory& memory, Network& network, const Settings& settings, const GivenBatches& given);

    // Runs every phase dry (inside Memory::plan) and returns the work of one iteration by phase.
    std::vector<std::pair<Phase, WorkReport>> plan();
    // Records the phases. After Memory::allocate.
    void record();

    void begin(int64_t iteration, double lr, int64_t optimizer_step);
    void run(Phase phase);  // replays, or queues where record() has not been called; sample: one step
    void run_all();         // in order, sample K times
    // How often a phase runs in an iteration: 0 for those that the settings leave out.
    int64_t repeats(Phase phase) const;

    // The weights into the form that convolutions read: after loading or initialising them.
    void prepare_weights();
    // Scalars of the iteration just queued (the whole job's: the same on every rank): queued, then taken by the ticket, which waits.
    int64_t queue_state();
    IterationState take_state(int64_t ticket);
    void read_state(IterationState& to) { to = take_state(queue_state()); }

    Parameters& parameters() { return *parameters_; }
    ReplayBuffer& buffer() { return *buffer_; }
    ImageStore& images() { return *images_; }
    Sampler& sampler() { return *sampler_; }
    IterationState* state();
    Array positive_images();
    Array labelled_images();
    Array labels();
    // Whether the labelled phase leaves its logits in kept_logits(), R [N, classes]; to be set before plan().
    void keep_logits(bool on) { keep_logits_ = on; }
    Array kept_logits();

private:
    struct LossPass {
        int pass = -1;
        Slot lse, hit;
    };

    void build(const GivenBatches& job);
    void queue(Phase phase);
    void queue_agreement(Agreement when);
    void queue_energy(const LossPass& p, EnergyTerm term, SamPass pass, const Tensor& images);
    void queue_labelled(const LossPass& p, SamPass pass);
    NetworkMemory memory_of(SamPass pass);
    Tensor image_tensor(Slot slot, int64_t n);

    Device& device_;
    Memory& memory_;
    Network& network_;
    Settings settings_;
    std::optional<DataSource> data_;
    Communicator& ranks_;
    int64_t num_positive_ = 0, num_labelled_ = 0;  // of this rank
    bool keep_logits_ = false;

    std::unique_ptr<Parameters> parameters_;
    std::unique_ptr<ImageStore> images_;
    std::unique_ptr<ReplayBuffer> buffer_;
    std::unique_ptr<Sampler> sampler_;
    std::array<LossPass, kNumPasses> positive_, negative_, labelled_;
    Slot state_, positive_images_, labelled_images_, labels_, positive_draws_, labelled_draws_, kept_logits_;
    Slot states_;  // of all ranks
    std::array<std::unique_ptr<StepGraph>, kPhases.size()> graphs_;
};

}  // namespace jem
