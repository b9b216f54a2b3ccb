// Images that chains go on from and come back to, and where fresh chains start.
#pragma once

#include <functional>
#include <memory>

#include "engine/memory/memory.h"

namespace jem {

// The replay buffer (Du & Mordatch 2019) and where fresh chains start. Every rank has all of it: the draw is of the whole job's chains, of
// which a rank continues its own, and what all of them yield is written everywhere.
class ReplayBuffer {
public:
    struct Options {
        int64_t size = 0, chains = 0, pixels = 0, classes = 0;  // chains: this rank's
        double reinit_freq = 0;
        StartForm form = StartForm::informative;
        int64_t largest_class = 0;  // images of it; 0 with the uniform start
        uint64_t seed = 0;
    };

    ReplayBuffer(Device& device, Memory& memory, const Options& options);

    Array images();  // R [size, pixels]
    size_t bytes() const { return memory_.bytes(images_) + memory_.bytes(births_); }
    // Chains that continue an image drawn from the buffer, or start afresh with probability reinit_freq.
    void draw(Array chains, const ResidentImages& images, const IterationState* state);
    Array births();  // i32 [size]: the iteration in which each image's chain last began afresh
    void all_born_in(int64_t iteration);
    // Writes them back where they were drawn.
    void store(Array chains, const IterationState* state);
    // Fills the buffer, all of it born in iteration `now`, class by class, size / classes each, the first classes one more where it does
    // not divide: a product a class, but for uniform starts. Queues and waits, piece by piece; progress is told the number of images done.
    // Not to be recorded.
    void fill(const ResidentImages& images, const IterationState* state, const std::function<void(int64_t)>& progress, int64_t now = 0);
    // To be run inside Memory::plan wherever fill() will be.
    void plan_fill(const ResidentImages& images, const IterationState* state);
    // Fresh chains of the given classes, count(classes) <= chains, into x; first_chain numbers them among all draws.
    void start(Array x, Array classes, int64_t first_chain, const ResidentImages& images, const IterationState* state);
    Array index();  // i32 [chains of the job]
    Array fresh();  // i32 [chains of the job]

private:
    Array weights(int64_t chains);
    ChainStart fill_draws(int64_t first_chain) const;
    Tensor part_of_product(Slot slot, int64_t rows, int64_t columns);
    void fill_of_class(Array x, const ResidentImages& images, const IterationState* state, const ClassStarts& starts);

    Device& device_;
    Memory& memory_;
    Options options_;
    int64_t job_chains_;
    Slot images_, births_, index_, fresh_, weights_;
    Slot all_chains_;  // with several ranks

    // The fill's product: z^T x of a block of images at a time, [block, rows] and [block, columns], is added to [rows, columns].
    std::unique_ptr<LinearPlan> product_;
    int64_t block_ = 0, rows_ = 0, columns_ = 0;
    Slot z_, x_, sums_;
};

}  // namespace jem
