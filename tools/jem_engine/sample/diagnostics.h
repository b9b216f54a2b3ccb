// How the chains went, from what they left behind at every step.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/sampling/chain_diagnostics.h"
#include "engine/sampling/chain_record.h"
#include "engine/settings/settings.h"

namespace jem {

// Of all chains, batch behind batch.
class ChainDiagnostics {
public:
    // The first `chains` of a batch's.
    void add(const ChainCourse& course, int64_t chains, int64_t of);

    bool traced() const { return !energies_.empty(); }
    bool judged() const { return proposed_ > 0; }
    double acceptance() const { return accepted_ / proposed_; }
    // Of the energies in the later half of the steps: before it chains come from where they started.
    Autocorrelation mixing() const;
    // A row a step: energy over chains, gradient norm, acceptance; and, in the row of its lag, the autocorrelation.
    std::string csv(const Autocorrelation& mixing) const;
    nlohmann::ordered_json json(const Autocorrelation& mixing) const;
    // The same for people, a line each.
    std::string text(const Autocorrelation& mixing) const;

private:
    std::vector<std::vector<double>> energies_;   // [steps + 1], of each chain
    std::vector<double> norms_, accepted_steps_;  // [steps], sums over batches, and over chains
    double batches_ = 0, chains_ = 0, accepted_ = 0, proposed_ = 0;
};

}  // namespace jem
