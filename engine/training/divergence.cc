#include "engine/training/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace jem {
namespace {

// A gap that hardly moves has no deviation to speak of: so much is one at least.
constexpr double kLeastDeviation = 0.01;
// A mean of accuracies this many of its own standard errors above chance is no chance any more.
constexpr double kErrors = 3;

double standard_error(double chance, double draws) { return std::sqrt(chance * (1 - chance) / draws); }

}  // namespace

double DivergenceWatch::Window::mean(const std::vector<double>& m) const {
    double sum = 0;
    for (int64_t i = 1; i <= size; ++i) sum += m[at(i)];
    return sum / static_cast<double>(size);
}

double DivergenceWatch::Window::deviation(const std::vector<double>& m, double mean) const {
    double sum = 0;
    for (int64_t i = 1; i <= size; ++i) sum += (m[at(i)] - mean) * (m[at(i)] - mean);
    return std::sqrt(sum / static_cast<double>(size));
}

void DivergenceWatch::Window::put(std::vector<double>& m, double value) const {
    const auto count = static_cast<int64_t>(m[at(0)]);
    m[at(1 + count % size)] = value;
    m[at(0)] = static_cast<double>(count + 1);
}

DivergenceWatch::DivergenceWatch(const Settings& s)
    : deviations_(s.generates() ? s.gap_deviations : 0),
      chance_(1 / static_cast<double>(s.num_classes)),
      spread_(kErrors * standard_error(chance_, static_cast<double>(s.chance_iterations * s.batch_size))),
      gaps_{.first = 0, .size = s.gap_window},
      accuracies_{.first = 1 + s.gap_window, .size = s.chance_iterations},
      learned_(accuracies_.at(1 + s.chance_iterations)),
      memory_(learned_ + 1) {}

void DivergenceWatch::remember(const std::vector<double>& memory) {
    if (memory.size() == memory_.size())
        memory_ = memory;
    else
        std::fill(memory_.begin(), memory_.end(), 0);
}

std::optional<DivergenceWatch::Finding> DivergenceWatch::look(const Iteration& it) {
    if (it.raised) return Finding{"a value was not finite, or |L_gen| exceeded 1e5", 0};
    std::optional<Finding> found;
    if (it.gap && deviations_ > 0) found = look_at_gap(*it.gap);
    if (it.accuracy && accuracies_.size > 0 && !found) found = look_at_accuracy(*it.accuracy);
    return found;
}

std::optional<DivergenceWatch::Finding> DivergenceWatch::look_at_gap(double gap) {
    if (gaps_.full(memory_)) {
        const double mean = gaps_.mean(memory_), one = std::max(kLeastDeviation, gaps_.deviation(memory_, mean));
        const double away = std::abs(gap - mean) / one;
        if (away > deviations_)
            return Finding{fmt::format("the energy gap is {:.4g}, {:.0f} deviations from the mean of its last {} iterations, {:.4g}", gap,
                                       away, gaps_.size, mean),
                           0};
    }
    gaps_.put(memory_, gap);
    return std::nullopt;
}

std::optional<DivergenceWatch::Finding> DivergenceWatch::look_at_accuracy(double accuracy) {
    accuracies_.put(memory_, accuracy);
    if (!accuracies_.full(memory_)) return std::nullopt;
    const double mean = accuracies_.mean(memory_);
    if (mean >= std::min(2 * chance_, (1 + chance_) / 2)) memory_[learned_] = 1;  // of two classes twice chance would be all
    if (memory_[learned_] == 0 || mean > chance_ + spread_) return std::nullopt;
    return Finding{fmt::format("accuracy has been {:.1f} % for {} iterations, which is chance", 100 * mean, accuracies_.size),
                   accuracies_.size};
}

}  // namespace jem
