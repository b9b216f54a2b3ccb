// Whether a run is past saving: numbers that are not finite, and two signs that come before them. What it remembers is part of a run's
// state.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/settings/settings.h"

namespace jem {

class DivergenceWatch {
public:
    explicit DivergenceWatch(const Settings& settings);

    struct Iteration {
        bool raised = false;             // the device's flag: something not finite, or |L_gen| above 1e5
        std::optional<double> gap;       // f_pos - f_neg: how much likelier real images are than samples
        std::optional<double> accuracy;  // of the batch, a share
    };
    struct Finding {
        std::string reason;  // "the energy gap is 812, 60 deviations from ..."
        int64_t since = 0;   // how many iterations ago it began
    };
    // Of the iteration that follows those it has seen.
    std::optional<Finding> look(const Iteration& it);

    // Doubles that say all it remembers, always as many.
    const std::vector<double>& memory() const { return memory_; }
    // As it was; of another length (the settings have changed): as at the beginning.
    void remember(const std::vector<double>& memory);

private:
    // The newest values of a quantity, as many as fit, somewhere in memory_: [how many were put, then the values in a ring].
    struct Window {
        int64_t first = 0, size = 0;
        bool full(const std::vector<double>& m) const { return m[at(0)] >= static_cast<double>(size); }
        double mean(const std::vector<double>& m) const;
        double deviation(const std::vector<double>& m, double mean) const;
        void put(std::vector<double>& m, double value) const;
        size_t at(int64_t i) const { return static_cast<size_t>(first + i); }
    };
    std::optional<Finding> look_at_gap(double gap);
    std::optional<Finding> look_at_accuracy(double accuracy);

    double deviations_, chance_, spread_;
    Window gaps_, accuracies_;
    size_t learned_;  // where memory_ holds whether accuracy has been twice chance
    std::vector<double> memory_;
};

}  // namespace jem
