#include "engine/sampling/step_growth.h"

#include <cstddef>
#include <numeric>

namespace jem {

void StepGrowth::look(int64_t iteration, double auroc, double threshold, int64_t most) {
    if (iteration < since) return;  // of one step less
    recent[static_cast<size_t>(seen++ % kWindow)] = auroc;
    if (seen < kWindow || steps >= most) return;
    const double mean = std::accumulate(recent.begin(), recent.end(), 0.0) / kWindow;
    if (!(mean >= threshold)) return;
    *this = {.steps = steps + 1, .since = iteration + 2};
}

}  // namespace jem
