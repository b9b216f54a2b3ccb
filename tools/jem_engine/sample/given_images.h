// Images that chains go on from: the replay buffer, the data set, or files.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tools/jem_engine/console.h"
#include "tools/jem_engine/sample/options.h"

namespace jem {

struct GivenImages {
    std::string path;  // of the replay buffer's file; else empty
    int64_t count = 0;
    std::function<std::vector<double>(std::span<const int64_t> numbers)> images;  // [n, H, W, C] in [-1, 1]
    std::vector<int32_t> labels;  // [count]; empty where the network's classes are not theirs
};

// Those of --from. InputError where there are none, or of another size than the network's.
GivenImages given_images(const SampleOptions& options, const Checkpoint& checkpoint, Console& console);

}  // namespace jem
