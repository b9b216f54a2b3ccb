// Chains with a trained network, a batch at a time: fresh ones from p0, or such as go on from images. Images stay on the device between
// steps.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "data/image_set.h"
#include "engine/sampling/chain_record.h"
#include "engine/sampling/image_store.h"
#include "engine/sampling/input_chain.h"
#include "engine/sampling/replay_buffer.h"
#include "engine/settings/settings.h"

namespace jem {

class Sampler {
public:
    // Registers a chain of so many images, by the settings' step, noise, clamps, norm statistics and energy; and, unless their starts are
    // uniform, the images that these are made from: the training set, or another. The network must not have been built.
    // settings must outlive it, and `starts` ready().
    enum class Starts { fresh, given };
    struct Options {
        int64_t chains = 0, steps = 0;
        Starts starts = Starts::fresh;  // whether fresh chains will be asked for
        ChainObjective objective = ChainObjective::lse;
        bool metropolis = false;  // MetropolisStepper in place of the plain step
        bool known = false;       // whether keep_known() will be called
        // Of their course.
        int64_t frame_every = 0;
        bool trace = false;
    };
    Sampler(Device& device, Network& network, Memory& memory, const Settings& settings, const Options& options, const ImageSet& starts);

    // To be run inside Memory::plan; and when memory is there and the weights are loaded.
    void plan(const NetworkMemory& passes, IterationState* state);
    void ready(const NetworkMemory& passes, IterationState* state);

    int64_t chains() const { return options_.chains; }
    // Numbers the draws that come next; batches of one seed that differ in it share none.
    void begin(uint32_t number);
    // Fresh chains of these classes (ignored where p0 knows none); of a class without images that of the next one that has some.
    void start_fresh(std::span<const int64_t> classes);
    // At these images, [chains, H, W, C] in [-1, 1].
    void start_at(std::span<const double> images);
    // What the chains climb, one of these classes each: of objectives with labels.
    void aim_at(std::span<const int64_t> labels);
    // Values that are put back after every step where `marks` is not 0, [chains, H, W, C] both.
    void keep_known(std::span<const double> images, std::span<const int32_t> marks);
    // Moves all chains by the steps of the options.
    void run(const std::function<void(int64_t done)>& progress = nullptr);
    // The chains' images, R [chains, H*W*C] on the device, and on the host.
    Array images() { return metropolis_ != nullptr ? metropolis_->images() : chain_->images(); }
    std::vector<double> download();
    // What the options asked for, of the last run.
    ChainCourse course() { return record_->download(); }
    // The first class from `label` on, around, that has training images; its number among p0's. Only with class-wise starts.
    int32_t start_class(int64_t label) const;
    bool has_class(int64_t label) const { return store_ == nullptr || store_->start_class(label) >= 0; }
    // Whether a value was not finite since begin(). Waits for the device.
    bool diverged();

private:
    void step();

    Device& device_;
    Memory& memory_;
    const Settings& settings_;
    const ImageSet& start_images_;
    Options options_;
    Scalars scalars_;
    MetropolisStepper* metropolis_ = nullptr;  // the chain's
    std::unique_ptr<InputChain> chain_;
    std::unique_ptr<ChainRecord> record_;
    Slot known_, marks_;
    std::unique_ptr<ImageStore> store_;
    std::unique_ptr<ReplayBuffer> starts_;
    NetworkMemory passes_;
    IterationState* state_ = nullptr;
    std::unique_ptr<StepGraph> step_;
};

// Draws of samplers are numbered from here on: training counts its iterations from 0 to at most 1e9, so no chain repeats one of its draws.
inline constexpr uint32_t kFirstSampleDraw = 1u << 31;

}  // namespace jem
