// What the images of a chain climb: gradients at the logits of a sum over the batch, so that each image goes its own way.
#pragma once

#include <memory>
#include <string>

#include "engine/memory/memory.h"
#include "engine/network/objective.h"
#include "engine/settings/enums.h"

namespace jem {

// name: of the chain, for the plan of memory; count: images of a batch; classes: of the logits, where the objective keeps some.
std::unique_ptr<Objective> make_chain_objective(ChainObjective which, Device& device, Memory& memory, const std::string& name,
                                                int64_t count, int64_t classes = 0);

}  // namespace jem
