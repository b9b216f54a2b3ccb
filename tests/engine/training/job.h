// A few training iterations of a small network by the ranks of a job, and what they leave behind: for tests that compare several ranks
// with one, on any device.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/image_set.h"
#include "engine/device/device.h"
#include "engine/settings/settings.h"
#include "engine/training/terms/terms.h"
#include "tests/check.h"

namespace jem {

// 9 x 9 x 1: an image of 81 values, so that the fours of a noise draw cross the borders of images and of ranks.
Settings small_job();
// A recipe at that size.
Settings small_job_of(const std::string& recipe);
ImageSet job_images();  // that it trains on

enum class Execution { replayed, eager };

struct JobOptions {
    int64_t iterations = 3;
    Execution execution = Execution::replayed;
    std::function<void(int64_t iteration)> before = {};
    std::vector<NamedObjective> known = objectives();
    int disturbed = -1;  // the rank whose samples become NaN after the draw of the last iteration
};

// All that must be the same on every rank.
struct Outcome {
    Values weights, velocity, statistics, buffer, scalars;
};
constexpr size_t kScalars = 11;  // of an iteration

// Joins the ranks, and trains with them.
Outcome train(Device& device, Ranks& ranks, const Settings& settings, const JobOptions& options = {});

void check_same_everywhere(const std::vector<Outcome>& outcomes);

}  // namespace jem
