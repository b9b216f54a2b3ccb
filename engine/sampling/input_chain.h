// A chain on the input: K times forward, backward to the images, a step along the gradient. Sampling, attacks, purification and what
// adversarial methods train on are all of this kind; they differ in where they start, what they climb, and how they step.
// Step k + 1 overwrites what step k needed; no weight gradient exists.
#pragma once

#include <memory>
#include <string>

#include "engine/memory/memory.h"
#include "engine/network/objective.h"
#include "engine/sampling/chain_objectives.h"
#include "engine/sampling/steppers.h"

namespace jem {

class InputChain {
public:
    struct Options {
        std::string name;
        int64_t count = 0, height = 0, width = 0, channels = 0;  // count: this rank's images
        ChainObjective objective = ChainObjective::lse;
        NormMode norm = NormMode::batch_update;
        Head head = Head::classes;      // whose logits the objective is of
        int64_t given_noise_steps = 0;  // > 0: noise() is read in place of the generator's
        int64_t first_step = 0;         // of the state, that it begins with: noise() begins there
        bool values = false;            // whether somebody asks for values()
        bool keeps_start = false;       // as centre(), whatever the stepper asks for
        int64_t classes = 0;            // of the logits, for objectives that keep some
    };

    // Registers its pass; the network must not have been built.
    InputChain(Device& device, Network& network, Memory& memory, const Options& options, std::unique_ptr<Stepper> stepper);

    Array images();   // R [count, H*W*C]: whoever starts the chain writes them, and they are where it ends
    Tensor tensor();  // the same as [N, H, W, C]
    int64_t count() const { return options_.count; }
    Array centre();  // the same, what the stepper keeps them near; empty where it asks for nothing
    Array labels();  // i32 [count], of objectives with labels
    Array hits();    // R [count], of the cross-entropy: how many of the images since begin() were classified right, step by step
    Array noise();   // R [steps, count, H*W*C]
    // R [count], if asked for: the objective where the images were when the last step, or look, began.
    Array values() { return a_value_each(values_); }

    // Queues what a step needs to know of the start. After images() were written, before the first step.
    enum class Centre { start, given };  // given: the caller wrote centre() as well
    void begin(Centre centre = Centre::start);
    // The same of the objective, where it wants to see where the chain begins.
    void look_at_start(const NetworkMemory& memory, IterationState* state);
    // Queues one step. memory.weights must be what the network was prepared with.
    void step(const NetworkMemory& memory, IterationState* state);
    // Queues forward and objective alone: what the network says of where the chain is.
    void look(const NetworkMemory& memory, IterationState* state);

private:
    int64_t value_count() const { return options_.count * options_.height * options_.width * options_.channels; }
    Array array(Slot slot) { return slot.valid() ? Array{memory_.at(slot), device_.real_type(), value_count()} : Array{}; }

    bool has_labels() const { return options_.objective != ChainObjective::lse; }
    Array a_value_each(Slot slot) { return slot.valid() ? Array{memory_.at(slot), device_.real_type(), options_.count} : Array{}; }

    Device& device_;
    Network& network_;
    Memory& memory_;
    Options options_;
    std::unique_ptr<Stepper> stepper_;
    std::unique_ptr<Objective> objective_;
    int pass_;
    Slot images_, gradient_, centre_, norms_, labels_, hits_, noise_, values_;
};

}  // namespace jem
