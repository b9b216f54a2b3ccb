// Where the ops' tests have their scalars in the state: no two alike, none the first.
#pragma once

#include "kernels/loss.h"

namespace jem {

inline constexpr EnergyScalars kEnergy = {.f_pos = 3, .f_neg = 5, .loss = 2, .loss_real = 9};
inline constexpr ClassificationScalars kClassification = {.loss = 7, .accuracy = 1};
inline constexpr ChainScalars kChain = {.norm = 4, .way = 6, .clamped = 8};

}  // namespace jem
