// Images that chains go on from and come back to, and where fresh chains start.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/memory/memory.h"
#include "engine/settings/enums.h"

namespace jem {

// The replay buffer (Du & Mordatch 2019) and where fresh chains start. Every rank has all of it: the draw is of the whole job's chains, of
// which a rank continues its own, and what all of them yield is written everywhere.
class ReplayBuffer {
public:
    struct Options {
        int64_t size = 0, chains = 0, pixels = 0, classes = 0;  // chains: this rank's; classes: that chains start from
        bool by_class = false;                                  // whether the chains go on in the places of their classes
        int64_t num_classes = 0;                                // of those labels
        BufferOrder order = BufferOrder::in_place;              // fifo: by no class
        double reinit_freq = 0;
        StartForm form = StartForm::informative;
        int64_t largest_class = 0;        // images of it; 0 where starts are no Gaussian's
        bool crop = false, flip = false;  // of images that chains start from
        uint64_t seed = 0;
    };

    ReplayBuffer(Device& device, Memory& memory, const Options& options);

    Array images();  // R [size, pixels]
    size_t bytes() const { return memory_.bytes(images_) + memory_.bytes(births_); }
    // A second kind of chains in an iteration; returns its number, that of the options' is 0. Before memory is planned.
    int add_chains(int64_t chains, bool by_class);
    // Chains that continue an image drawn from the buffer, or start afresh with probability reinit_freq: of these labels' classes, i32
    // [chains of this rank], or of drawn ones where none are given.
    void draw(Array chains, const ResidentImages& images, const IterationState* state, int kind = 0, Array labels = {});
    Array labels(int kind);  // i32 [chains of this rank]: what draw() went by; empty where they are of no class
    Array births();          // i32 [size]: the iteration in which each image's chain last began afresh
    void all_born_in(int64_t iteration);
    // Writes them back where they were drawn, or where the oldest images are.
    void store(Array chains, const IterationState* state, int kind = 0);
    // Fills the buffer, all of it born in iteration `now`, class by class, size / classes each, the first classes one more where it does
    // not divide: a product a class, but for uniform starts. Queues and waits, piece by piece; progress is told the number of images done.
    // Not to be recorded.
    void fill(const ResidentImages& images, const IterationState* state, const std::function<void(int64_t)>& progress, int64_t now = 0);
    // To be run inside Memory::plan wherever fill() will be.
    void plan_fill(const ResidentImages& images, const IterationState* state);
    // Fresh chains of the given classes, count(classes) <= chains, into x; first_chain numbers them among all draws.
    void start(Array x, Array classes, int64_t first_chain, const ResidentImages& images, const IterationState* state);
    Array index(int kind = 0);  // i32 [chains of the job]
    Array fresh(int kind = 0);  // i32 [chains of the job]

private:
    struct Kind {
        int64_t chains, job_chains, first;  // first: number of the first chain among all kinds'
        Slot index, fresh, weights, means;
        Slot labels;        // i32 [chains of the job], where they have some
        Slot places, born;  // likewise, of a buffer whose oldest images make place
        Slot all;           // with several ranks: R [chains of the job, pixels]
        Slot draws, kept;   // with starts from images: which ones, and R [chains, pixels], those of the buffer
    };

    StartScratch scratch(int kind, int64_t chains);
    // What of x is fresh begins as the options say, the rest goes on from `from`, which is empty where nothing does.
    void queue_starts(Array x, Array from, Array index, Array fresh, int kind, const ResidentImages& images, const IterationState* state,
                      const ChainStart& how);
    ChainStart fill_draws(int64_t first_chain) const;
    Tensor part_of_product(Slot slot, int64_t rows, int64_t columns);
    void fill_of_class(Array x, const ResidentImages& images, const IterationState* state, const ClassStarts& starts);

    Device& device_;
    Memory& memory_;
    Options options_;
    std::vector<Kind> kinds_;
    Slot images_, births_;

    // The fill's product: z^T x of a block of images at a time, [block, rows] and [block, columns], is added to [rows, columns].
    std::unique_ptr<LinearPlan> product_;
    int64_t block_ = 0, rows_ = 0, columns_ = 0;
    Slot z_, x_, sums_;
};

}  // namespace jem
