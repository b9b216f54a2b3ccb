// What a method is made of, as data: the steps of an iteration's first pass, in order. The trainer makes phases of them.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "engine/settings/enums.h"

namespace jem {

enum class BatchOf {
    labelled,        // x_lab, augmented, with its labels
    real,            // x+
    chain,           // x-: where the chain of the generative batch's size ended
    labelled_chain,  // the same of the labelled batch's, under its labels: samples of p(x|y)
    adversarial,     // x~: where an attack on x_lab ended, with its labels
};

struct ObjectiveSpec {
    std::string name;  // one of engine/training/terms
    double weight = 1;
};

// A term of the loss: its batch runs forward and backward, in each of SAM's passes, through one head.
struct TermSpec {
    std::string name;  // of its phase
    BatchOf batch;
    std::vector<ObjectiveSpec> objectives;  // what is wanted of the logits; their gradients add up
    Head head = Head::classes;
};

enum class ChainStepper { sgld, attack, normalised };  // attack: as --attack-norm has it; normalised: g / |g| of each image

// Steps on images of the replay buffer, which are stored again after the first term that takes them; of `adversarial` on x_lab.
struct ChainSpec {
    std::string name;                // of its phase
    BatchOf makes = BatchOf::chain;  // or another one that chains make
    ChainObjective climbs = ChainObjective::lse;
    Head head = Head::classes;  // of LSE
    ChainStepper stepper = ChainStepper::sgld;
    bool evaluation_mode = false;  // of norms, whatever --sampling-norm says
};

struct Method {
    std::vector<std::variant<ChainSpec, TermSpec>> steps;
    bool running_statistics = false;  // in all passes, which leave them alone
    bool nesterov = false;            // SGD's momentum
    bool chains_take_labels = false;  // of x-: those of x+, place by place
    bool attacks_start_apart = true;  // from x_lab: a random way inside the ball
};

inline bool is_of_chain(BatchOf batch) { return batch != BatchOf::labelled && batch != BatchOf::real; }

// Whether a term takes that batch; whether a chain makes it.
bool has_term(const Method& method, BatchOf batch);
bool has_chain(const Method& method, BatchOf batch);
// Whether it draws x_lab, for a term or for attacks; x+ or starts of x-.
bool draws_labelled(const Method& method);
bool draws_generative(const Method& method);

}  // namespace jem
