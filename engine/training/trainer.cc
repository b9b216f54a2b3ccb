#include "engine/training/trainer.h"

#include <algorithm>
#include <array>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/network/file_tensors.h"
#include "engine/run/kept_choices.h"
#include "engine/settings/schedule.h"

namespace jem {
namespace {

constexpr int64_t kSheetImages = 100;

TrainingIteration::DataSource source_of(const ImageSet& images, const Settings& s) {
    require_size(images, s.in_channels, s.image_size, s.image_size);
    ImageSetShape shape = {};
    shape.channels = images.channels;
    shape.height = images.height;
    shape.width = images.width;
    shape.num_classes = images.num_classes;
    shape.flip = images.flip;
    return {shape, images.count(), largest_class_of(images)};
}

// "class 9 (ankle boot)", "classes 3 (dress), 9 (ankle boot)"; empty where every class has images.
std::string text_of_classes_without_images(const ImageStore& store, const std::vector<std::string>& names) {
    std::string text;
    for (size_t c = 0; c < store.num_labels(); ++c) {
        if (store.start_class(static_cast<int64_t>(c)) >= 0) continue;
        text += (text.empty() ? "" : ", ") + std::to_string(c);
        if (c < names.size()) text += " (" + names[c] + ")";
    }
    if (text.empty()) return text;
    return (text.find(", ") == std::string::npos ? "class " : "classes ") + text;
}

std::string text_of_start(const StartPoint& start, bool samples) {
    const std::optional<int64_t> iteration = iteration_of(start.file);
    std::string text = "Starting from " + start.path + (iteration ? " (iteration " + std::to_string(*iteration) + ")" : "");
    if (start.buffer) return text + ", and from the replay buffer of " + start.buffer->path + ".";
    return text + (samples ? "; there is no replay buffer: chains start afresh." : ".");
}

void check_sizes(const Settings& s, int64_t images) {
    if (s.classifies() && s.batch_size > images)
        throw InputError("--batch-size is " + std::to_string(s.batch_size) + " (there are " + std::to_string(images) +
                         " training images). Give a smaller one.");
    if (s.samples() && s.gen_batch_size > images)
        throw InputError("--gen-batch-size is " + std::to_string(s.gen_batch_size) + " (there are " + std::to_string(images) +
                         " training images). Give a smaller one.");
}

const TrainingIteration::DataSource& checked(const Settings& s, const TrainingIteration::DataSource& train) {
    check_sizes(s, train.count);
    return train;
}

}  // namespace

TrainingParts::TrainingParts(Device& device, Network& network, const Settings& settings, const TrainingIteration::DataSource& train,
                             int64_t held_out)
    : memory(device),
      predictor(device, memory, network, {.height = train.shape.height, .width = train.shape.width, .channels = train.shape.channels},
                {.largest = held_out}),
      iteration(device, memory, network, settings, checked(settings, train)) {
    work = iteration.plan();
    memory.plan([&] { predictor.plan(evaluation_memory()); });
    memory.pack();
}

NetworkMemory TrainingParts::evaluation_memory() {
    return {.weights = iteration.parameters().weights(),
            .gradient = {},
            .statistics = iteration.parameters().statistics(),
            .state = iteration.state()};
}

Trainer::Trainer(Device& device, Network& network, const Settings& settings, ImageSet train, ImageSet held_out,
                 const std::string& held_out_name, const RunFolder& folder, TrainingObserver& observer)
    : device_(device),
      settings_(settings),
      held_out_(std::move(held_out)),
      held_out_name_(held_out_name),
      folder_(folder),
      observer_(observer),
      chosen_anew_(plan_as_kept(
          device, folder.choices(),
          [&] { planned_ = std::make_unique<TrainingParts>(device, network, settings, source_of(train, settings), held_out_.count()); })),
      parts_(*planned_),
      ranks_(device.communicator()) {
    iterations_per_epoch_ = train.count() / (settings.classifies() ? settings.batch_size : settings.gen_batch_size);
    total_ = settings.iterations >= 0 ? settings.iterations : settings.epochs * iterations_per_epoch_;
    together(ranks_.ranks(), [&] {
        if (held_out_.count() > 0) require_size(held_out_, settings.in_channels, settings.image_size, settings.image_size);
        parts_.memory.allocate();
        iteration_.store().upload(train);
        iteration_.record();
    });
}

void Trainer::start_or_resume(bool resume) {
    together(ranks_.ranks(), [&] {
        if (ranks_.first()) start_or_resume_alone(resume);
    });
    if (ranks_.size() > 1) share_start();
}

void Trainer::share_start() {
    Parameters& p = iteration_.parameters();
    ranks_.broadcast(p.weights());
    ranks_.broadcast(p.statistics());
    ranks_.broadcast(p.velocity());
    if (settings_.optimizer == Optimizer::adam) ranks_.broadcast(p.second());
    if (settings_.ema > 0) ranks_.broadcast(p.average());
    if (settings_.samples()) ranks_.broadcast(iteration_.buffer().images());
    ranks_.ranks().broadcast(&progress_.iteration, sizeof progress_.iteration);
    iteration_.prepare_weights();
    device_.synchronize();
}

void Trainer::start_or_resume_alone(bool resume) {
    folder_.create();
    const bool buffer = settings_.samples();
    const std::string without = text_of_classes_without_images(iteration_.store(), held_out_.class_names);
    if (buffer && settings_.init == StartForm::informative && !without.empty())
        observer_.message("No chain starts from " + without + " (the training set has no image of it).");
    if (resume && folder_.has_checkpoint()) {
        const Array images = buffer ? iteration_.buffer().images() : Array{};
        const SafetensorsFile file = SafetensorsFile::read(folder_.state());
        progress_ = load_state(iteration_.parameters(), device_, buffer ? &images : nullptr, settings_, file, folder_.state().string());
        iteration_.prepare_weights();
        observer_.message("Resuming after iteration " + std::to_string(progress_.iteration) + ".");
    } else {
        if (resume) observer_.message("There is no checkpoint in " + folder_.root().string() + " yet: starting afresh.");
        const bool given = !settings_.start_from.empty();
        const StartPoint start = given ? read_start(iteration_.parameters().network(), settings_) : StartPoint{};
        folder_.write_config(settings_);  // before what takes long: --resume needs no more than it
        iteration_.parameters().initialise(settings_.seed);
        if (given) load_start(iteration_.parameters(), device_, start);
        if (given) observer_.message(text_of_start(start, buffer));
        iteration_.prepare_weights();
        if (start.buffer) {
            upload_tensor(device_, iteration_.buffer().images(), start.buffer->images);
        } else if (buffer) {
            iteration_.begin(0, 0, 0);
            iteration_.buffer().fill(iteration_.store().view(), iteration_.state(),
                                     [&](int64_t done) { observer_.progress("Filling the replay buffer", done, settings_.buffer_size); });
        }
    }
    folder_.cut_metrics(progress_.iteration);
    for (const std::string& event : chosen_anew_) folder_.append_metrics({{"iteration", progress_.iteration}, {"event", event}});
    folder_.write_config(settings_);
}

TrainingResult Trainer::run(bool resume, const std::atomic<bool>& stop) {
    start_or_resume(resume);
    seconds_before_ = progress_.seconds;
    started_ = std::chrono::steady_clock::now();
    rate_.resume(started_);
    TrainingResult result;
    const auto finish = [&](TrainingEnd end) {
        ranks_.ranks().barrier();  // whoever leaves first may end the others: not before the last file is written
        result.end = end;
        result.iterations = progress_.iteration;
        result.accuracy = last_accuracy_;
        result.accuracy_on = held_out_name_;
        result.best_accuracy = progress_.best_accuracy;
        result.seconds = progress_.seconds;
        return result;
    };

    std::array<int64_t, 2> tickets = {};  // the scalars of an iteration are read while the next one runs
    std::array<WorkRate::Time, 2> queued_at = {};
    int64_t reported = progress_.iteration;
    const auto report_up_to = [&](int64_t done) {
        for (; reported < done; ++reported) {
            const IterationState state = iteration_.take_state(tickets[static_cast<size_t>(reported % 2)]);
            ranks_.check();
            rate_.done(device_.queues() ? std::chrono::steady_clock::now() : queued_at[static_cast<size_t>(reported % 2)]);
            report(state, reported + 1);
        }
    };
    int64_t saved_at = -1;
    while (progress_.iteration < total_ && !diverged_) {
        const int64_t i = progress_.iteration;
        iteration_.begin(i, learning_rate(settings_, i, iterations_per_epoch_, total_), i);
        iteration_.run_all();
        tickets[static_cast<size_t>(i % 2)] = iteration_.queue_state();
        queued_at[static_cast<size_t>(i % 2)] = std::chrono::steady_clock::now();
        report_up_to(i);  // all but the one just queued
        progress_.iteration = i + 1;
        const bool last = progress_.iteration == total_, epoch_ends = progress_.iteration % iterations_per_epoch_ == 0;
        const bool checkpoint_due = settings_.checkpoint_interval > 0 && progress_.iteration % settings_.checkpoint_interval == 0;
        const bool stopping = ranks_.ranks().any(stop.load());
        if (!last && !epoch_ends && !checkpoint_due && !stopping) continue;

        device_.synchronize();
        report_up_to(progress_.iteration);
        if (diverged_) break;
        if (ranks_.first()) {  // the others wait for it in the next iteration
            const int64_t epoch = progress_.iteration / iterations_per_epoch_;
            if (last || epoch_ends) {
                last_accuracy_ = evaluate();
                if (settings_.samples() && (last || (settings_.sample_interval > 0 && epoch % settings_.sample_interval == 0)))
                    write_samples();
            }
            // Before the checkpoint: whatever it is resumed from then, a run has its archives or will write them again.
            if (epoch_ends && settings_.archive_interval > 0 && epoch % settings_.archive_interval == 0)
                weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.archive(epoch));
            save_checkpoint();
        }
        rate_.resume(std::chrono::steady_clock::now());
        saved_at = progress_.iteration;
        if (stopping && !last) return finish(TrainingEnd::interrupted);
    }
    device_.synchronize();
    if (diverged_) {
        progress_.iteration = diverged_at_;
        result.message =
            "Training diverged in iteration " + std::to_string(diverged_at_) +
            " (a value was not finite, or |L_gen| exceeded 1e5); its weights were not updated. " +
            (folder_.has_checkpoint() ? "The last good checkpoint is " + folder_.last().string() +
                                            "; resume from it with a lower --lr, or with more --sgld-steps."
                                      : "No checkpoint had been written yet. Start again with a lower --lr, or with more --sgld-steps.");
        return finish(TrainingEnd::diverged);
    }
    if (ranks_.first()) {
        if (last_accuracy_ < 0) last_accuracy_ = evaluate();  // nothing was left to do
        if (saved_at < 0) save_checkpoint();
    }
    return finish(TrainingEnd::finished);
}

void Trainer::report(const IterationState& state, int64_t done) {
    if (diverged_) return;
    if (state.diverged != 0) {
        diverged_ = true;
        diverged_at_ = done;
        return;
    }
    const auto now = std::chrono::steady_clock::now();
    progress_.seconds = seconds_before_ + std::chrono::duration<double>(now - started_).count();
    const double loss = iteration_.loss(state);
    const Scalars& scalars = iteration_.scalars();
    const int64_t epoch = (done - 1) / iterations_per_epoch_;
    observer_.iteration({done, total_, epoch, rate_.per_second(), loss, scalars.value(state, "loss_gen"), scalars.value(state, "loss_clf"),
                         scalars.value(state, "accuracy"), state.learning_rate});
    if (done % settings_.log_interval != 0 && done != total_ && done % iterations_per_epoch_ != 0) return;
    const auto images = static_cast<double>(settings_.classifies() ? settings_.batch_size : settings_.gen_batch_size);
    nlohmann::ordered_json line = {{"iteration", done},           {"epoch", epoch},
                                   {"time_s", progress_.seconds}, {"images_per_s", images * rate_.per_second()},
                                   {"lr", state.learning_rate},   {"loss", loss}};
    for (const std::string& name : scalars.names()) line[name] = scalars.value(state, name);
    line["grad_norm"] = state.grad_norm;
    if (!ranks_.first()) return;
    // The last line of an epoch waits for the evaluation.
    if (done == total_ || done % iterations_per_epoch_ == 0)
        line_ = line;
    else
        folder_.append_metrics(line);
}

double Trainer::evaluate() {
    if (held_out_.count() == 0) {
        if (!line_.is_null()) folder_.append_metrics(line_);
        line_ = nullptr;
        return -1;
    }
    Predictions p = parts_.predictor.predict(held_out_.count(), parts_.predictor.images_of(held_out_), parts_.evaluation_memory(),
                                             [&](int64_t done) { observer_.progress("Evaluating", done, held_out_.count()); });
    p.labels = held_out_.labels;
    const double value = accuracy(p);
    if (!line_.is_null()) {
        line_[held_out_name_ + "_accuracy"] = value;
        measure(p);
        folder_.append_metrics(line_);
        line_ = nullptr;
    }
    if (value > progress_.best_accuracy) {
        progress_.best_accuracy = value;
        progress_.best_iteration = progress_.iteration;
        progress_.best_chosen_on = held_out_name_;
        weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.best());
    }
    return value;
}

void Trainer::measure(const Predictions& held_out) {
    const int64_t interval = settings_.metric_interval, epoch = progress_.iteration / iterations_per_epoch_;
    if (!measure_ || interval == 0 || (epoch % interval != 0 && progress_.iteration != total_)) return;
    BufferImages buffer;
    if (settings_.samples())
        buffer = [this](int64_t first, int64_t count) {
            const Array all = iteration_.buffer().images();
            const int64_t pixels = all.count / settings_.buffer_size;
            return download_values(device_, all.slice(first * pixels, count * pixels));
        };
    line_.update(measure_(held_out, buffer));
}

void Trainer::save_checkpoint() {
    const bool buffer = settings_.samples();
    const Array images = buffer ? iteration_.buffer().images() : Array{};
    // The state first: alone it is enough to resume, whatever happens before the second rename.
    state_file(iteration_.parameters(), device_, buffer ? &images : nullptr, settings_, progress_).write_atomically(folder_.state());
    weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.last());
}

void Trainer::write_samples() {
    const Array buffer = iteration_.buffer().images();
    const int64_t pixels = buffer.count / settings_.buffer_size, count = std::min(kSheetImages, settings_.buffer_size);
    std::vector<float> images;
    for (int64_t i = 0; i < count; ++i) {  // spread over the buffer, which began class by class
        const std::vector<double> one = download_values(device_, buffer.slice(i * settings_.buffer_size / count * pixels, pixels));
        images.insert(images.end(), one.begin(), one.end());
    }
    observer_.samples(folder_.sample(progress_.iteration), images, count);
}

}  // namespace jem
