// Attacks on many images, a batch at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/evaluation/evaluation.h"

namespace jem {

// Whether each image of a batch is broken; tells `done` the number of steps made.
using BatchAttack = std::function<std::vector<bool>(const std::vector<int64_t>& images, const std::function<void(int64_t)>& done)>;
struct AttackBatches {
    std::string name;   // the journal's and progress's: attacks that differ have different ones
    int64_t batch = 0;  // images at most
    int64_t steps = 0;
};
// Those of the images, numbers in their set, that the attack does not break. Each batch is a piece of the journal.
std::vector<int64_t> unbroken(Evaluation& e, const std::vector<int64_t>& images, const AttackBatches& batches, const BatchAttack& attack);

}  // namespace jem
