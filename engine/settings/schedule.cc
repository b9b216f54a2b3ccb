#include "engine/settings/schedule.h"

#include <cmath>
#include <numbers>

namespace jem {

double learning_rate(const Settings& s, int64_t iteration, int64_t iterations_per_epoch, int64_t total_iterations) {
    double lr = s.lr;
    if (iteration < s.warmup_iterations) return lr * static_cast<double>(iteration) / static_cast<double>(s.warmup_iterations);
    if (s.lr_schedule == LrSchedule::cosine)
        return lr * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(iteration) / static_cast<double>(total_iterations)));
    const int64_t epoch = iterations_per_epoch > 0 ? iteration / iterations_per_epoch : 0;
    for (const int64_t milestone : s.lr_milestones)
        if (epoch >= milestone) lr *= s.lr_decay;
    return lr;
}

}  // namespace jem
