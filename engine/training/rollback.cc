#include "engine/training/rollback.h"

#include <algorithm>
#include <utility>

namespace jem {

void GoodStates::take(const std::vector<Array>& carried, const RunProgress& progress) {
    Generation next;
    if (!unused_.empty()) {
        next = std::move(unused_.back());
        unused_.pop_back();
    } else if (std::ssize(generations_) == kGenerations) {
        next = std::move(generations_.back());
        generations_.pop_back();
    }
    next.progress = progress;
    next.arrays.resize(carried.size());
    for (size_t i = 0; i < carried.size(); ++i) {
        next.arrays[i].resize(carried[i].bytes());
        device_.download(next.arrays[i].data(), carried[i].data, carried[i].bytes());
    }
    generations_.insert(generations_.begin(), std::move(next));
}

std::vector<int64_t> GoodStates::iterations() const {
    std::vector<int64_t> all;
    for (const Generation& g : generations_) all.push_back(g.progress.iteration);
    return all;
}

const RunProgress& GoodStates::restore(const std::vector<Array>& carried, int64_t iteration) const {
    const auto found =
        std::find_if(generations_.begin(), generations_.end(), [&](const Generation& g) { return g.progress.iteration == iteration; });
    for (size_t i = 0; i < carried.size(); ++i) device_.upload(carried[i].data, found->arrays[i].data(), carried[i].bytes());
    return found->progress;
}

void GoodStates::drop_after(int64_t iteration) {
    while (!generations_.empty() && generations_.front().progress.iteration > iteration) {
        unused_.push_back(std::move(generations_.front()));
        generations_.erase(generations_.begin());
    }
}

Remedy next_remedy(Recovery& r, bool has_chains, bool has_buffer) {
    ++r.attempt;
    ++r.in_a_row;
    if (r.in_a_row == 1) return {"with other random numbers"};
    if (r.in_a_row == 3 && has_chains && r.step_factor < kMostStepFactor) {
        r.step_factor *= 2;
        return {"with K doubled"};
    }
    if (r.in_a_row == 4 && has_buffer) return {"with a fresh replay buffer", true};
    r.rate_factor /= 2;
    return {"with half the learning rate"};
}

size_t choose_state(const std::vector<int64_t>& iterations, int64_t trouble_began, const Recovery& r) {
    const bool suspect = r.in_a_row > 0 && r.restored_at >= 0 && iterations.front() <= r.restored_at;
    for (size_t i = 0; i < iterations.size(); ++i)
        if (iterations[i] <= trouble_began && (!suspect || iterations[i] < r.restored_at)) return i;
    return iterations.size() - 1;
}

}  // namespace jem
