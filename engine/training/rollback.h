// Going back to a good state: what is kept in the host's memory for it, and what is changed each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/device/device.h"
#include "engine/run/checkpoint.h"

namespace jem {

inline constexpr int64_t kGoodStateInterval = 100;  // iterations

// The newest good states, two generations, in the host's memory: the device's stays as it is, and going back takes no file.
class GoodStates {
public:
    static constexpr int kGenerations = 2;

    explicit GoodStates(Device& device) : device_(device) {}

    // Copies what the arrays hold, in place of the oldest generation. Waits for the device.
    void take(const std::vector<Array>& carried, const RunProgress& progress);
    // Iterations of the generations that there are, the newest first.
    std::vector<int64_t> iterations() const;
    // The arrays as they were after that iteration, which is one of these.
    const RunProgress& restore(const std::vector<Array>& carried, int64_t iteration) const;
    // Of later iterations.
    void drop_after(int64_t iteration);
    void clear() { drop_after(-1); }

private:
    struct Generation {
        RunProgress progress;
        std::vector<std::vector<std::byte>> arrays;
    };
    Device& device_;
    std::vector<Generation> generations_;  // the newest first
    std::vector<Generation> unused_;       // whose memory is taken again
};

// What is done about it at the n-th time in a row, besides other random numbers: nothing; half the learning rate; K doubled; a fresh
// replay buffer; from then on half the rate each time. A run without chains has its rate halved from the second time on.
struct Remedy {
    std::string text;  // "half the learning rate"
    bool fresh_buffer = false;
};
Remedy next_remedy(Recovery& recovery, bool has_chains, bool has_buffer);

// Which state to go back to: of those that there are, by their iterations, the newest first, the newest one from before the trouble began.
// Where the run went back last time and has reached no newer one since, that state is suspect, and it is the next older one. Without any
// that is old enough: the oldest. Their number in the list.
size_t choose_state(const std::vector<int64_t>& iterations, int64_t trouble_began, const Recovery& recovery);

}  // namespace jem
