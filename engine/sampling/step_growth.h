// K that grows with training: one step more whenever chains of so many end too far from real images (DAT's authors).
#pragma once

#include <array>
#include <cstdint>

namespace jem {

// Part of a run's state, so that it repeats bit for bit.
struct StepGrowth {
    static constexpr int kWindow = 8;  // iterations whose mean counts

    int64_t steps = 0;  // K, of iteration `since` and all later ones; one less before it
    int64_t since = 0;
    std::array<double, kWindow> recent = {};  // how well x+ and x- were told apart, in iterations from `since` on
    int64_t seen = 0;                         // such iterations so far

    int64_t steps_in(int64_t iteration) const { return iteration < since ? steps - 1 : steps; }
    // What an iteration came to, each told once and in order. Growth begins with the next but one: while an iteration's result is read
    // the next one already runs.
    void look(int64_t iteration, double auroc, double threshold, int64_t most);
};

}  // namespace jem
