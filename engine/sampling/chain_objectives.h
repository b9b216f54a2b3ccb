// What the images of a chain climb: gradients at the logits of a sum over the batch, so that each image goes its own way.
#pragma once

#include <memory>
#include <string>

#include "engine/memory/memory.h"
#include "engine/network/objective.h"

namespace jem {

enum class ChainObjective {
    lse,            // LSE(f(x)) = -E(x): sampling (SADA-JEM, Eq. 3)
    cross_entropy,  // -log p(y|x) of the labels: attacks
    class_logit,    // f(x)[y] of the labels, minus the energy of x and y: samples of a class (JEM, Eq. 6)
};

// name: of the chain, for the plan of memory; count: images of a batch.
std::unique_ptr<Objective> make_chain_objective(ChainObjective which, Device& device, Memory& memory, const std::string& name,
                                                int64_t count);

}  // namespace jem
