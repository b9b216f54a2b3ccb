// What chains leave behind on their way, on the device until they have ended: images now and then, and figures of every step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory/memory.h"

namespace jem {

// Of a batch of chains, on the host; "after k steps" counts from 0, the start.
struct ChainCourse {
    std::vector<int64_t> frame_steps;    // [F], after how many steps each frame was taken
    std::vector<double> frames;          // [F, chains, H, W, C]
    std::vector<double> values;          // [steps + 1, chains], what the chains climb; empty unless traced
    std::vector<double> gradient_norms;  // [steps], root mean square over the batch of |d value / d x| after 0, 1, .. steps; as values
    std::vector<int32_t> accepted;       // [steps, chains], whether Metropolis let each move; empty without
};

class ChainRecord {
public:
    struct Options {
        int64_t chains = 0, pixels = 0, steps = 0;
        int64_t frame_every = 0;  // a frame of the start, after each so many steps and of the end; 0: none
        bool trace = false, accepted = false;
        int gradient_norm = 0;  // the scalar that holds it
    };
    // Registers its memory.
    ChainRecord(Device& device, Memory& memory, const Options& options);

    static std::vector<int64_t> frame_steps(int64_t steps, int64_t every);

    // Queue copies on the device, of what there is after so many steps. Empty arrays are not kept.
    void frame(int64_t step, Array images);
    void values(int64_t step, Array values);
    void gradient_norm(int64_t step, const IterationState* state);
    void accepted(int64_t step, Array accepted);  // by the step that led there, from 1 on

    // Waits for the device.
    ChainCourse download();

private:
    Array real(Slot slot, int64_t count) { return {memory_.at(slot), device_.real_type(), count}; }

    Device& device_;
    Memory& memory_;
    Options options_;
    std::vector<int64_t> frame_steps_;
    Slot frames_, values_, norms_, accepted_;
};

}  // namespace jem
