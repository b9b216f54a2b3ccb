// How well chains mix, from a figure of each at every step. On the host, in f64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jem {

struct Autocorrelation {
    std::vector<double> rho;  // by lag from 0 on, as far as the time needs it
    double time = 0;          // steps that are worth one independent draw, at least 1; NaN where the figure never changes
    bool enough = false;      // whether the chains are 50 times as long: else the time is a rough one, rather too short
};

/// values: [steps, chains]. Each chain's autocovariance about its own mean, its sums divided by the number of steps, averaged over chains
/// and divided by that of lag 0. The time is 1 + 2 sum rho up to the first lag that is 5 times as long (Sokal 1997, section 3).
Autocorrelation autocorrelation(std::span<const double> values, int64_t chains);

/// The q-th quantile, q in [0, 1], linear between neighbours; values need not be sorted, and there is at least one.
double quantile(std::vector<double> values, double q);

}  // namespace jem
