// A whole training run: iterations, logging, evaluation, checkpoints, resuming.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/network/predictor.h"
#include "engine/run/checkpoint.h"
#include "engine/run/run_folder.h"
#include "engine/run/run_log.h"
#include "engine/training/divergence.h"
#include "engine/training/health.h"
#include "engine/training/iteration.h"
#include "engine/training/rollback.h"
#include "engine/training/work_rate.h"

namespace jem {

// What a run tells while it goes on. Called from the training thread.
class TrainingObserver {
public:
    virtual ~TrainingObserver() = default;
    virtual void message(const std::string& text) = 0;
    // What nobody may miss: a rollback, a file that could not be written.
    virtual void warning(const std::string& text) { message(text); }
    // Something that takes a while: "filling the replay buffer", 640 of 10000.
    virtual void progress(const std::string& what, int64_t done, int64_t total) = 0;
    struct Iteration {
        int64_t done, total, epoch;
        double per_second, loss, loss_gen, loss_clf, accuracy, learning_rate;
    };
    virtual void iteration(const Iteration& it) = 0;
    // Images [N, H, W, C] in [-1, 1] for a sheet at path.
    virtual void samples(const std::filesystem::path& path, const std::vector<float>& images, int64_t count) = 0;
};

// All that a run has on the device: registered, planned and packed, not yet allocated. What Trainer runs and `plan` reports.
struct TrainingParts {
    // InputError for batches larger than the data set. held_out: images that are evaluated each epoch.
    TrainingParts(Device& device, Network& network, const Settings& settings, const TrainingIteration::DataSource& train, int64_t held_out);

    NetworkMemory evaluation_memory();

    Memory memory;
    Predictor predictor;  // before the iteration, which builds the network
    TrainingIteration iteration;
    std::vector<std::pair<std::string, WorkReport>> work;  // of one iteration
};

enum class TrainingEnd { finished, interrupted, diverged };

struct TrainingResult {
    TrainingEnd end = TrainingEnd::finished;
    int64_t iterations = 0;
    double accuracy = -1;     // of the last evaluation; -1 where there was none
    std::string accuracy_on;  // "valid" or "test"
    double best_accuracy = -1;
    double seconds = 0;
    std::string message;    // for diverged: what happened, and which checkpoint is good
    std::string unwritten;  // what could not be written at the end, and why; empty: nothing
};

// InputError where a run of these settings cannot learn from these images: other sizes, fewer than a batch, too few of a class.
void check_images(const Settings& settings, const ImageSet& train);

// With several ranks every rank has one, and makes the same calls (its making is one of them); only rank 0's writes, evaluates and tells
// its observer.
class Trainer {
public:
    // train: without the held-out images; held_out: evaluated each epoch, called held_out_name ("valid", "test"); starts: the images of
    // --init NAME:DIR.
    Trainer(Device& device, Network& network, const Settings& settings, ImageSet train, ImageSet held_out, const std::string& held_out_name,
            const RunFolder& folder, TrainingObserver& observer, const ImageSet& starts = {});

    // From the beginning, or from the folder's checkpoint. stop (on any rank): finish the iteration, leave a checkpoint, return. The
    // evaluation of an epoch's end is not waited for, if it is rank 0 that is asked: the resumed run begins with it.
    TrainingResult run(bool resume, const std::atomic<bool>& stop);

    // What is measured besides accuracy every settings.metric_interval epochs, and at the end; rank 0's alone is called. It makes values
    // for the log line of predictions of the held-out images and of the replay buffer's, [count, H, W, C] (null where there is no buffer).
    // It may throw Interrupted where the run was asked to stop.
    using BufferImages = std::function<std::vector<double>(int64_t first, int64_t count)>;
    using Measure = std::function<nlohmann::ordered_json(const Predictions& held_out, const BufferImages& buffer)>;
    void measure_by(Measure measure) { measure_ = std::move(measure); }

    int64_t iterations_per_epoch() const { return iterations_per_epoch_; }
    int64_t total_iterations() const { return total_; }
    const Memory& memory() const { return parts_.memory; }

private:
    struct Trouble {
        int64_t iteration;  // that diverged
        DivergenceWatch::Finding finding;
    };
    // A state to go back to: in the host's memory, the last checkpoint's, an older one's, or the run's beginning.
    struct GoodState {
        enum class From { memory, last, kept, beginning };
        From from;
        int64_t iteration;
    };

    // After an iteration.
    struct Due {
        bool last, epoch_ends, regular_checkpoint, sheet, good_state;
        bool evaluation() const { return last || epoch_ends; }
        bool anything() const { return regular_checkpoint || sheet || good_state; }
    };

    void start_or_resume(bool resume);
    void start_or_resume_alone(bool resume);
    // What iteration 0 begins with: of --start-from, where it is given.
    StartPoint start_point() const;
    // The arrays of iteration 0, whatever the run has done since.
    void begin_afresh(const StartPoint& start);
    void fill_buffer(int64_t iteration, uint64_t attempt);
    RunProgress load(const SafetensorsFile& state, const std::filesystem::path& path);
    void initialise_norms();
    // What rank 0 starts with, to all ranks.
    void share_start();
    // The scalars of an iteration that is done: divergence, progress, the log line where one is due.
    void report(const IterationState& state, int64_t done);
    // Goes back to a good state and changes something; false where it may not, or not any more: then the run ends as diverged.
    bool recover();
    std::vector<GoodState> good_states() const;
    // The arrays as they were, and the progress of then.
    RunProgress restore(const GoodState& good);
    // The one that choose_state() takes; of progress_ only what goes with the arrays goes back. A file that cannot be read is passed over.
    GoodState restore_good_state();
    std::string text_of_divergence() const;
    Due due_now() const;
    // All that is due, on rank 0: an evaluation, sheets, archives, a checkpoint. An evaluation that is interrupted is owed,
    // as the checkpoint says that is written then.
    void settle(bool stopping);
    // Interrupted where the run was asked to stop.
    double evaluate();
    // Of the held-out images, the buffer's, noise.
    Predictions predict(int64_t count, const Predictor::Source& images, const std::string& told = "");
    // Energies, the buffer's age and classes, into the log line.
    Health look_at_health(const Predictions& held_out);
    // The values of --metrics where they are due, else null.
    nlohmann::ordered_json measure(const Predictions& held_out);
    // Whether by --best-by nothing before was as good; remembers it.
    bool is_best(const nlohmann::ordered_json& line, double accuracy);
    // A file that could not be written is told of, and the run goes on.
    void try_to_write(const std::string& what, const std::function<void()>& write);
    // regular: one that the settings ask for; only these are kept, so that stopping a run leaves no other files than running on.
    enum class Checkpoint { regular, extra };
    void save_checkpoint(Checkpoint which);
    void write_samples();
    std::optional<BufferArrays> buffer_arrays();  // none where the run does not sample
    // One of `count` images that are spread over the replay buffer, which began class by class.
    Array image_of_buffer(int64_t number, int64_t count);
    bool grows() const { return iteration_.scalars().has(TrainingIteration::kSeparation); }
    int64_t steps_in(int64_t iteration) const;  // K
    bool rolls_back() const { return settings_.on_divergence == OnDivergence::rollback; }

    Device& device_;
    Settings settings_;
    ImageSet held_out_;
    std::string held_out_name_;
    const RunFolder& folder_;
    TrainingObserver& observer_;
    Measure measure_;
    std::unique_ptr<TrainingParts> planned_;
    std::vector<std::string> chosen_anew_;  // though the run keeps it: for the log
    TrainingParts& parts_;
    TrainingIteration& iteration_ = parts_.iteration;
    int64_t iterations_per_epoch_ = 0, total_ = 0;
    Communicator& ranks_;
    RunProgress progress_;
    double last_accuracy_ = -1;
    nlohmann::ordered_json line_;  // of the iteration reported last
    RunLog log_;
    DivergenceWatch watch_;
    GoodStates good_;                 // rank 0's; later than the last checkpoint
    std::optional<Trouble> trouble_;  // of the newest iteration reported
    int64_t saved_ = -1;              // the iteration of the last checkpoint; -1: there is none
    int64_t resumed_at_ = -1;
    std::string unwritten_;                    // why the last checkpoint could not be written; empty: it was
    const std::atomic<bool>* stop_ = nullptr;  // run()'s
    std::chrono::steady_clock::time_point started_;
    WorkRate rate_;
    double seconds_before_ = 0;
};

}  // namespace jem
