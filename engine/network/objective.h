// What is wanted of the logits of a batch: the terms of a loss, and what a chain of images climbs.
#pragma once

#include <optional>
#include <string>

#include "engine/network/network.h"

namespace jem {

// One pass of the network, forward done, backward to come.
struct ObjectiveCall {
    Network& network;
    int pass;      // whose logits are read and whose d_logits are written
    Array labels;  // i32 [N]; empty where the batch has none
    IterationState* state;
    SamPass sam = SamPass::at_weights;
    bool add = false;   // to the d_logits of an objective before it
    Array hits = {};    // R [N], grows by 1 where the first largest logit is the label's; empty: nobody counts
    Array values = {};  // R [N], what each image has reached, of a chain's objective; empty: nobody asks
};

class Objective {
public:
    virtual ~Objective() = default;
    // Queues the gradient at the logits, and whatever it has to say into the scalars of the state.
    virtual void queue(const ObjectiveCall& call) = 0;
    // Of a chain: queues what it has to know of where that begins, forward done. Only where it wants to.
    virtual bool wants_start() const { return false; }
    virtual void start(const ObjectiveCall&) {}
    // The scalar that holds its value, for the sum of a loss; none where it is part of another's.
    virtual std::optional<std::string> value() const { return std::nullopt; }
};

}  // namespace jem
