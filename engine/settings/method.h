// What a method is made of, as data: the steps of an iteration's first pass, in order. The trainer makes phases of them.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "engine/settings/enums.h"

namespace jem {

enum class BatchOf {
    labelled,  // x_lab, augmented, with its labels
    real,      // x+
    chain,     // x-: where the method's chain ended
};

// A term of the loss: runs forward and backward over its batch, in each of SAM's passes.
struct TermSpec {
    std::string name;       // of its phase
    std::string objective;  // one of engine/training/terms
    BatchOf batch;
    double weight = 1;
    Head head = Head::classes;  // whose logits it is of
};

// K steps on the images of the replay buffer; they are stored again after the first term that takes them.
struct ChainSpec {
    std::string name;           // of its phase
    Head head = Head::classes;  // whose LSE it climbs
};

struct Method {
    std::vector<std::variant<ChainSpec, TermSpec>> steps;
};

}  // namespace jem
