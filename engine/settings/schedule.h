// What changes in the course of a run.
#pragma once

#include <cstdint>

#include "engine/settings/settings.h"

namespace jem {

// The learning rate of iteration i (counted from 0): linear warm-up lr * i / warmup, then milestones, or a cosine over all iterations.
double learning_rate(const Settings& settings, int64_t iteration, int64_t iterations_per_epoch, int64_t total_iterations);

}  // namespace jem
