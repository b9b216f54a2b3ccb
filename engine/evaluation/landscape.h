// The energy around a network's weights (SADA-JEM, Figs. 1 and 7; Li et al. 2018), and along the line to another's.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/network/network.h"

namespace jem {

// A Gaussian direction, flat [P] as the weights, in which each filter is as long as the weights' own (Li et al. 2018, section 4); biases
// and the norms' parameters do not move. number: of the direction among those of a seed.
std::vector<double> filter_normalised_direction(const Network& network, const std::vector<double>& weights, uint64_t seed, uint32_t number);

}  // namespace jem
