// A batch of real images of an iteration: drawn from the data set on the device, or given.
#pragma once

#include <string>

#include "engine/memory/memory.h"

namespace jem {

class Batch {
public:
    struct Options {
        std::string name;                                        // "positive", "labelled"
        int64_t count = 0, height = 0, width = 0, channels = 0;  // count: this rank's images
        bool with_labels = false;
        bool drawn = false;  // by draw(), as `how` says
        BatchDraw how = {};
    };

    Batch(Device& device, Memory& memory, const Options& options);

    int64_t count() const { return options_.count; }
    Array images();   // R [count, H*W*C]
    Tensor tensor();  // the same as [N, H, W, C]
    Array labels();   // i32 [count]; empty where there are none

    // Queues the draw of the state's iteration.
    void draw(const ResidentImages& from, const IterationState* state);

private:
    Device& device_;
    Memory& memory_;
    Options options_;
    Slot images_, labels_, draws_;
};

}  // namespace jem
