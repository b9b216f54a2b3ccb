// The chains of `jem_engine sample`, batch by batch, and what becomes of them.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/network/predictor.h"
#include "engine/sampling/sampler.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/sample/diagnostics.h"
#include "tools/jem_engine/sample/given_images.h"
#include "tools/jem_engine/sample/options.h"

namespace jem {

class SampleRun {
public:
    SampleRun(const SampleOptions& options, const Checkpoint& checkpoint, Console& console);

    // At most options.count, in the order of --pick. After an interrupt those of the batches that had ended.
    std::vector<Sample> run();
    bool diverged() const { return diverged_; }
    bool stopped() const { return stopped_; }
    int64_t steps() const { return steps_; }
    int64_t most_samples() const { return std::max<int64_t>(1, std::min(o_.count, limit_)); }
    const std::vector<int64_t>& frame_steps() const { return frame_steps_; }
    const ChainDiagnostics& diagnostics() const { return diagnostics_; }
    const std::string& buffer_path() const { return given_.path; }

private:
    bool wanted(const Sample& sample) const;
    void refuse_too_many_frames() const;
    void choose_given();
    std::vector<int64_t> start(int64_t batch);
    void run_batch(std::vector<Sample>& found, int64_t batch);
    std::vector<Sample> describe(const std::vector<double>& pixels);
    void find_neighbours(std::vector<Sample>& samples);

    const SampleOptions& o_;
    Settings s_;
    Console& console_;
    Damage damage_;
    int64_t pixels_ = 0, wanted_ = 0, limit_ = 0, chains_ = 0, steps_ = 0, tried_ = 0;
    bool diverged_ = false, stopped_ = false;
    std::vector<int64_t> frame_steps_;
    ChainDiagnostics diagnostics_;

    GivenImages given_;
    std::vector<int64_t> chosen_;             // of the given images, in the order in which they are gone on from
    std::vector<double> originals_, starts_;  // of the batch, where they are given: as they were, and damaged
    ImageSet train_, start_images_;

    std::unique_ptr<Device> device_;
    std::unique_ptr<NetworkInUse> network_;
    std::unique_ptr<Predictor> predictor_;
    std::unique_ptr<Sampler> sampler_;
};

}  // namespace jem
