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

// K steps on images of the replay buffer; they are stored again after the first term that takes them.
struct ChainSpec {
    std::string name;                // of its phase
    BatchOf makes = BatchOf::chain;  // or labelled_chain
    ChainObjective climbs = ChainObjective::lse;
    Head head = Head::classes;  // of LSE
};

struct Method {
    std::vector<std::variant<ChainSpec, TermSpec>> steps;
};

}  // namespace jem
