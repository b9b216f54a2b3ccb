#include "engine/training/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/evaluation/interrupted.h"
#include "engine/evaluation/made_images.h"
#include "engine/files/output_file.h"
#include "engine/network/file_tensors.h"
#include "engine/run/kept_choices.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/schedule.h"
#include "engine/training/labelled_images.h"

namespace jem {
namespace {

constexpr int64_t kSheetImages = 100;
constexpr int64_t kHealthImages = 1000;  // of the replay buffer, that are looked at each epoch
constexpr int64_t kNoiseImages = 100;
// Trouble is over when the run has come so many iterations past the one that diverged: the next time is the first again.
constexpr int64_t kWell = 1000;
// The beginning is a state to go back to where no checkpoint is older than this, so that little is lost.
constexpr int64_t kYoung = 1000;
// A checkpoint that diverges again this soon has nothing to resume.
constexpr int64_t kAtOnce = 20;

TrainingIteration::DataSource source_of(const ImageSet& images, const Settings& s, const ImageSet& starts = {}) {
    require_size(images, s.in_channels, s.image_size, s.image_size);
    require_labels(images, s);
    if (starts.count() > 0) require_size(starts, s.in_channels, s.image_size, s.image_size);
    TrainingIteration::DataSource source = TrainingIteration::source_of(images);
    source.starts = starts.count();
    return source;
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

// " The learning rate is multiplied by 0.5. ..."; empty where nothing was changed.
std::string text_of_recovery(const Recovery& r) {
    std::string text;
    if (r.rate_factor != 1) text += " The learning rate is multiplied by " + fmt::format("{:.3g}", r.rate_factor) + ".";
    if (r.step_factor != 1) text += " K is multiplied by " + std::to_string(r.step_factor) + ".";
    return text.empty() ? text : text + " That is since the run went back; give --lr or --sgld-steps anew to undo it.";
}

void check_counts(const Settings& s, int64_t images) {
    const Method method = method_of(s);
    const int64_t labelled = s.num_labelled(images);
    if (labelled > images)
        throw InputError("--labels-per-class is " + std::to_string(s.labels_per_class) + " (of " + std::to_string(s.num_classes) +
                         " classes these are " + std::to_string(labelled) + ", and there are " + std::to_string(images) +
                         " training images). Give a smaller one.");
    const bool too_large = draws_labelled(method) && s.batch_size > labelled;
    if (too_large && s.labels_per_class > 0)
        throw InputError("--batch-size is " + std::to_string(s.batch_size) + " (there are " + std::to_string(labelled) +
                         " labelled images by --labels-per-class " + std::to_string(s.labels_per_class) + "). Give --batch-size " +
                         std::to_string(labelled) + " or less.");
    if (too_large)
        throw InputError("--batch-size is " + std::to_string(s.batch_size) + " (there are " + std::to_string(images) +
                         " training images). Give a smaller one.");
    if (draws_generative(method) && s.gen_batch_size > images)
        throw InputError("--gen-batch-size is " + std::to_string(s.gen_batch_size) + " (there are " + std::to_string(images) +
                         " training images). Give a smaller one.");
}

const TrainingIteration::DataSource& checked(const Settings& s, const TrainingIteration::DataSource& train) {
    check_counts(s, train.count);
    return train;
}

}  // namespace

void check_images(const Settings& s, const ImageSet& train) {
    source_of(train, s);
    check_counts(s, train.count());
}

TrainingParts::TrainingParts(Device& device, Network& network, const Settings& settings, const TrainingIteration::DataSource& train,
                             int64_t held_out)
    : memory(device),
      predictor(device, memory, network, {.height = train.shape.height, .width = train.shape.width, .channels = train.shape.channels},
                {.largest = held_out, .energy_head = settings.energy_head}),
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
                 const std::string& held_out_name, const RunFolder& folder, TrainingObserver& observer, const ImageSet& starts)
    : device_(device),
      settings_(settings),
      held_out_(std::move(held_out)),
      held_out_name_(held_out_name),
      folder_(folder),
      observer_(observer),
      chosen_anew_(plan_as_kept(device, folder.choices(),
                                [&] {
                                    planned_ = std::make_unique<TrainingParts>(device, network, settings,
                                                                               source_of(train, settings, starts), held_out_.count());
                                })),
      parts_(*planned_),
      ranks_(device.communicator()),
      log_(folder, [this](const std::string& text) { observer_.warning(text); }),
      watch_(settings),
      good_(device) {
    iterations_per_epoch_ = settings.iterations_per_epoch(train.count());
    total_ = settings.iterations >= 0 ? settings.iterations : settings.epochs * iterations_per_epoch_;
    together(ranks_.ranks(), [&] {
        if (held_out_.count() > 0) require_size(held_out_, settings.in_channels, settings.image_size, settings.image_size);
        parts_.memory.allocate();
        iteration_.upload(train, starts);
        iteration_.record();
    });
}

void Trainer::start_or_resume(bool resume) {
    together(ranks_.ranks(), [&] {
        if (ranks_.first()) start_or_resume_alone(resume);
    });
    if (ranks_.size() > 1) share_start();
    initialise_norms();
}

// Of a run's beginning, unless its weights were given.
void Trainer::initialise_norms() {
    if (progress_.iteration > 0 || !settings_.start_from.empty()) return;
    iteration_.begin(0, 0, 0, progress_.recovery.attempt);
    iteration_.initialise_norms();
}

void Trainer::share_start() {
    for (const Array& a : iteration_.carried()) ranks_.broadcast(a);
    Ranks& ranks = ranks_.ranks();
    ranks.broadcast(&progress_.iteration, sizeof progress_.iteration);
    ranks.broadcast(&progress_.recovery, sizeof progress_.recovery);
    ranks.broadcast(&progress_.growth, sizeof progress_.growth);
    std::vector<double> watched = watch_.memory();
    ranks.broadcast(watched.data(), watched.size() * sizeof(double));
    watch_.remember(watched);
    iteration_.prepare_weights();
    device_.synchronize();
}

std::optional<BufferArrays> Trainer::buffer_arrays() {
    if (!settings_.samples()) return std::nullopt;
    return BufferArrays{iteration_.buffer().images(), iteration_.buffer().births()};
}

RunProgress Trainer::load(const SafetensorsFile& state, const std::filesystem::path& path) {
    return load_state(iteration_.parameters(), device_, buffer_arrays(), settings_, state, path.string());
}

void Trainer::fill_buffer(int64_t iteration, uint64_t attempt) {
    iteration_.begin(iteration, 0, 0, attempt);
    iteration_.buffer().fill(
        iteration_.start_store().view(), iteration_.state(),
        [&](int64_t done) { observer_.progress("Filling the replay buffer", done, settings_.buffer_size); }, iteration);
}

StartPoint Trainer::start_point() const {
    return settings_.start_from.empty() ? StartPoint{} : read_start(iteration_.parameters().network(), settings_);
}

void Trainer::begin_afresh(const StartPoint& start) {
    const bool given = !settings_.start_from.empty();
    Parameters& p = iteration_.parameters();
    p.initialise(settings_.seed);
    if (given) load_start(p, device_, start);
    if (given) observer_.message(text_of_start(start, settings_.samples()));
    iteration_.prepare_weights();
    if (start.buffer) {
        upload_tensor(device_, iteration_.buffer().images(), start.buffer->images);
        iteration_.buffer().all_born_in(0);
    } else if (settings_.samples()) {
        fill_buffer(0, 0);
    }
}

void Trainer::start_or_resume_alone(bool resume) {
    folder_.create();
    const std::string without = text_of_classes_without_images(iteration_.store(), held_out_.class_names);
    if (!without.empty() && takes_places(method_of(settings_)))
        throw InputError("The training set has no image of " + without + " (chains of every class are drawn). " +
                         (settings_.own_method ? "Leave out the method's chains of classes, or the class."
                                               : "Leave out --class-conditional and --p-x-y-weight, or the class."));
    if (settings_.samples() && settings_.init == StartForm::informative && !without.empty())
        observer_.message("No chain starts from " + without + " (the training set has no image of it).");
    if (resume && folder_.has_checkpoint()) {
        const SafetensorsFile state = SafetensorsFile::read(folder_.state());
        const std::optional<Settings> was = settings_of(state);
        progress_ = load(state, folder_.state());
        iteration_.prepare_weights();
        watch_.remember(progress_.watched);
        saved_ = resumed_at_ = progress_.iteration;
        Recovery& r = progress_.recovery;
        // Who sets them anew means what they say.
        if (was && was->lr != settings_.lr) r.rate_factor = 1;
        if (was && was->sgld_steps != settings_.sgld_steps) r.step_factor = 1;
        if (r.in_a_row >= settings_.max_rollbacks) r.in_a_row = 0;
        observer_.message("Resuming after iteration " + std::to_string(progress_.iteration) + "." + text_of_recovery(r));
    } else {
        if (resume) observer_.message("There is no checkpoint in " + folder_.root().string() + " yet: starting afresh.");
        const StartPoint start = start_point();
        folder_.write_config(settings_);  // before what takes long: --resume needs no more than it
        begin_afresh(start);
        device_.synchronize();
        if (rolls_back()) good_.take(iteration_.carried(), progress_);
    }
    // A line that is owed may have been written already, by a process that was killed before its checkpoint.
    folder_.cut_metrics(progress_.iteration - (progress_.owed.is_null() ? 0 : 1), progress_.recovery.attempt);
    for (const std::string& event : chosen_anew_) log_.append({{"iteration", progress_.iteration}, {"event", event}});
    folder_.write_config(settings_);
}

TrainingResult Trainer::run(bool resume, const std::atomic<bool>& stop) {
    stop_ = &stop;
    start_or_resume(resume);
    seconds_before_ = progress_.seconds;
    started_ = std::chrono::steady_clock::now();
    rate_.resume(started_);
    TrainingResult result;
    const auto finish = [&](TrainingEnd end) {
        if (ranks_.first() && !log_.flush() && unwritten_.empty()) unwritten_ = "the log's last lines";
        ranks_.ranks().barrier();  // whoever leaves first may end the others: not before the last file is written
        result.end = end;
        result.iterations = progress_.iteration;
        result.accuracy = last_accuracy_;
        result.accuracy_on = held_out_name_;
        result.best_accuracy = progress_.best_accuracy;
        result.seconds = progress_.seconds;
        result.unwritten = unwritten_;
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
    const auto owes = [&] { return ranks_.ranks().any(!progress_.owed.is_null()); };
    if (ranks_.first() && !progress_.owed.is_null()) {
        line_ = progress_.owed;
        settle(false);
    }
    if (owes()) return finish(TrainingEnd::interrupted);
    bool begun = last_accuracy_ >= 0;
    while (progress_.iteration < total_) {
        const int64_t i = progress_.iteration;
        const Recovery& r = progress_.recovery;
        begun = true;
        iteration_.begin(i, r.rate_factor * learning_rate(settings_, i, iterations_per_epoch_, total_), i, r.attempt);
        iteration_.take_steps(steps_in(i));
        iteration_.run_all();
        tickets[static_cast<size_t>(i % 2)] = iteration_.queue_state();
        queued_at[static_cast<size_t>(i % 2)] = std::chrono::steady_clock::now();
        report_up_to(i);  // all but the one just queued
        progress_.iteration = i + 1;
        const Due due = due_now();
        const bool stopping = ranks_.ranks().any(stop.load());
        if (!trouble_ && !stopping && !due.anything()) continue;

        device_.synchronize();
        report_up_to(progress_.iteration);
        if (trouble_) {
            if (!recover()) break;
            reported = progress_.iteration;
            rate_.resume(std::chrono::steady_clock::now());
            continue;
        }
        if (r.in_a_row > 0 && progress_.iteration >= r.diverged_at + kWell) {
            progress_.recovery.in_a_row = 0;
            progress_.recovery.restored_at = -1;
        }
        if (ranks_.first()) settle(stopping);
        if (due.evaluation() && owes()) return finish(TrainingEnd::interrupted);
        rate_.resume(std::chrono::steady_clock::now());
        if (stopping && !due.last) return finish(TrainingEnd::interrupted);
    }
    device_.synchronize();
    if (trouble_) {
        if (ranks_.first() && !rolls_back())
            log_.append({{"iteration", trouble_->iteration - 1},
                         {"event", "diverged"},
                         {"from", trouble_->iteration},
                         {"reason", trouble_->finding.reason}});
        finish(TrainingEnd::diverged);
        result.iterations = trouble_->iteration;
        result.message = text_of_divergence();
        return result;
    }
    bool left = false;
    if (ranks_.first() && !begun) {  // nothing was left to do
        try {
            last_accuracy_ = evaluate();
            save_checkpoint(Checkpoint::regular);
        } catch (const Interrupted&) {
            left = true;
        }
    }
    return finish(ranks_.ranks().any(left) ? TrainingEnd::interrupted : TrainingEnd::finished);
}

Trainer::Due Trainer::due_now() const {
    const auto every = [&](int64_t interval) { return interval > 0 && progress_.iteration % interval == 0; };
    const bool last = progress_.iteration == total_, epoch_ends = every(iterations_per_epoch_);
    const int64_t epoch = progress_.iteration / iterations_per_epoch_;
    const bool of_epoch = last || (epoch_ends && settings_.sample_interval > 0 && epoch % settings_.sample_interval == 0);
    return {.last = last,
            .epoch_ends = epoch_ends,
            .regular_checkpoint = last || epoch_ends || every(settings_.checkpoint_interval),
            .sheet = settings_.samples() && (of_epoch || every(settings_.sample_every)),
            .good_state = rolls_back() && every(kGoodStateInterval)};
}

void Trainer::settle(bool stopping) {
    const Due due = due_now();
    const int64_t epoch = progress_.iteration / iterations_per_epoch_;
    const bool owed = !progress_.owed.is_null();  // whatever --iterations says by now
    progress_.watched = watch_.memory();
    if (due.evaluation() || owed) {
        const nlohmann::ordered_json line = line_;
        progress_.owed = nullptr;
        try {
            last_accuracy_ = evaluate();
        } catch (const Interrupted&) {
            progress_.owed = line;
            return save_checkpoint(Checkpoint::extra);
        }
    }
    if (due.sheet) try_to_write("a sheet of samples", [&] { write_samples(); });
    // Before the checkpoint: whatever it is resumed from then, a run has its archives or will write them again.
    if (due.epoch_ends && settings_.archive_interval > 0 && epoch % settings_.archive_interval == 0)
        try_to_write("an archive",
                     [&] { weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.archive(epoch)); });
    // One that could not be written is tried again between the checkpoints.
    if (due.regular_checkpoint || stopping || owed || !unwritten_.empty())
        save_checkpoint(due.regular_checkpoint ? Checkpoint::regular : Checkpoint::extra);
    if (due.good_state && saved_ != progress_.iteration) good_.take(iteration_.carried(), progress_);
}

int64_t Trainer::steps_in(int64_t iteration) const {
    const int64_t steps = grows() ? std::min(progress_.growth.steps_in(iteration), settings_.sgld_steps) : settings_.sgld_steps;
    return steps * progress_.recovery.step_factor;
}

void Trainer::report(const IterationState& state, int64_t done) {
    if (trouble_) return;
    const Scalars& scalars = iteration_.scalars();
    DivergenceWatch::Iteration seen;
    seen.raised = state.diverged != 0;
    if (scalars.has("f_pos") && scalars.has("f_neg")) seen.gap = scalars.value(state, "f_pos") - scalars.value(state, "f_neg");
    if (scalars.has("accuracy")) seen.accuracy = scalars.value(state, "accuracy");
    if (const auto finding = watch_.look(seen)) {
        trouble_ = Trouble{done, *finding};
        return;
    }
    const int64_t steps = steps_in(done - 1);
    if (grows())
        progress_.growth.look(done - 1, scalars.value(state, TrainingIteration::kSeparation), settings_.grow_steps_at,
                              settings_.sgld_steps);
    const auto now = std::chrono::steady_clock::now();
    progress_.seconds = seconds_before_ + std::chrono::duration<double>(now - started_).count();
    const double loss = iteration_.loss(state);
    const int64_t epoch = (done - 1) / iterations_per_epoch_;
    observer_.iteration({done, total_, epoch, rate_.per_second(), loss, scalars.value(state, "loss_gen"), scalars.value(state, "loss_clf"),
                         scalars.value(state, "accuracy"), state.learning_rate});
    if (done % settings_.log_interval != 0 && done != total_ && done % iterations_per_epoch_ != 0) return;
    const auto images = static_cast<double>(settings_.images_per_iteration());
    nlohmann::ordered_json line = {{"iteration", done},           {"epoch", epoch},
                                   {"time_s", progress_.seconds}, {"images_per_s", images * rate_.per_second()},
                                   {"lr", state.learning_rate},   {"loss", loss}};
    for (const std::string& name : scalars.names()) line[name] = scalars.value(state, name);
    if (seen.gap) line["energy_gap"] = *seen.gap;
    if (grows()) line["sgld_steps"] = steps;
    line["grad_norm"] = state.grad_norm;
    if (!ranks_.first()) return;
    // The last line of an epoch waits for the evaluation.
    if (done == total_ || done % iterations_per_epoch_ == 0)
        line_ = line;
    else
        log_.append(line);
}

std::vector<Trainer::GoodState> Trainer::good_states() const {
    std::vector<GoodState> all;
    for (const int64_t iteration : good_.iterations())
        if (iteration > saved_) all.push_back({GoodState::From::memory, iteration});
    if (saved_ >= 0) all.push_back({GoodState::From::last, saved_});
    for (const int64_t iteration : folder_.kept_iterations())
        if (iteration < saved_) all.push_back({GoodState::From::kept, iteration});
    const bool young = all.empty() || all.back().iteration < kYoung;
    if (young && (all.empty() || all.back().iteration > 0)) all.push_back({GoodState::From::beginning, 0});
    return all;
}

RunProgress Trainer::restore(const GoodState& good) {
    const auto of_file = [&](const std::filesystem::path& path) { return load(SafetensorsFile::read(path), path); };
    switch (good.from) {
        case GoodState::From::memory:
            return good_.restore(iteration_.carried(), good.iteration);
        case GoodState::From::last:
            return of_file(folder_.state());
        case GoodState::From::kept:
            return of_file(folder_.kept(good.iteration));
        case GoodState::From::beginning:
            break;
    }
    begin_afresh(start_point());
    return {};
}

Trainer::GoodState Trainer::restore_good_state() {
    std::vector<GoodState> states = good_states();
    while (true) {
        std::vector<int64_t> iterations;
        for (const GoodState& s : states) iterations.push_back(s.iteration);
        const size_t chosen = choose_state(iterations, trouble_->iteration - 1 - trouble_->finding.since, progress_.recovery);
        const GoodState good = states[chosen];
        try {
            const RunProgress then = restore(good);
            progress_.iteration = then.iteration;
            progress_.watched = then.watched;
            progress_.growth = then.growth;
            watch_.remember(progress_.watched);
            return good;
        } catch (const std::exception& e) {
            states.erase(states.begin() + static_cast<std::ptrdiff_t>(chosen));
            if (states.empty()) throw;
            observer_.warning("there is no going back to iteration " + std::to_string(good.iteration) + ": " + e.what());
        }
    }
}

bool Trainer::recover() {
    if (!rolls_back()) return false;
    Recovery& r = progress_.recovery;
    const bool ends = r.in_a_row >= settings_.max_rollbacks;
    together(ranks_.ranks(), [&] {
        if (!ranks_.first()) return;
        const GoodState good = restore_good_state();
        good_.drop_after(good.iteration);
        r.restored_at = good.iteration;
        r.diverged_at = trouble_->iteration;
        Remedy remedy;
        if (ends) {  // whoever resumes begins anew, with other random numbers
            ++r.attempt;
            r.in_a_row = 0;
        } else {
            remedy = next_remedy(r, settings_.samples() && settings_.sgld_steps > 0, settings_.samples());
        }
        if (remedy.fresh_buffer) fill_buffer(progress_.iteration, r.attempt);
        iteration_.prepare_weights();
        device_.synchronize();
        log_.cut(progress_.iteration, r.attempt);
        nlohmann::ordered_json line = {{"iteration", progress_.iteration}, {"event", ends ? "diverged" : "rollback"},
                                       {"from", trouble_->iteration},      {"reason", trouble_->finding.reason},
                                       {"measure", remedy.text},           {"attempt", r.attempt},
                                       {"rate_factor", r.rate_factor},     {"sgld_steps", steps_in(progress_.iteration)}};
        log_.append(line);
        // What is on disk would diverge again, the same way: it must not be what a resumed run begins with.
        const bool older = good.from == GoodState::From::kept || good.from == GoodState::From::beginning;
        if (older || ends) {
            folder_.drop_kept(good.iteration - 1, settings_.keep, kGoodStateInterval);
            save_checkpoint(Checkpoint::regular);
        }
        if (!ends)
            observer_.warning("iteration " + std::to_string(trouble_->iteration) + " diverged: " + trouble_->finding.reason +
                              ". Back to iteration " + std::to_string(progress_.iteration) + ", " + remedy.text + " (" +
                              std::to_string(r.in_a_row) + " of at most " + std::to_string(settings_.max_rollbacks) + " in a row).");
    });
    if (ranks_.size() > 1) share_start();
    if (ends) return false;
    initialise_norms();
    iteration_.lower_flag();
    trouble_.reset();
    line_ = nullptr;
    return true;
}

std::string Trainer::text_of_divergence() const {
    const std::string what =
        "Training diverged in iteration " + std::to_string(trouble_->iteration) + ": " + trouble_->finding.reason + ".";
    if (rolls_back())
        return what + " It had gone back " + std::to_string(settings_.max_rollbacks) +
               " times in a row (--max-rollbacks). The checkpoint " + folder_.last().string() + " is of iteration " +
               std::to_string(progress_.iteration) +
               ", from before the trouble: --resume goes on from there, with a lower --lr, or more --sgld-steps.";
    if (!folder_.has_checkpoint())
        return what + " No checkpoint had been written yet. Start again with a lower --lr, or with more --sgld-steps.";
    if (resumed_at_ >= 0 && saved_ == resumed_at_ && trouble_->iteration <= resumed_at_ + kAtOnce)
        return what + " That is at once after its checkpoint of iteration " + std::to_string(saved_) + ", " + folder_.last().string() +
               ", which a lower --lr will hardly save. Add --on-divergence rollback to --resume, which goes back further, or begin another "
               "run with --start-from " +
               folder_.best().string() + ".";
    return what + " The last good checkpoint is " + folder_.last().string() +
           "; resume from it with --on-divergence rollback, with a lower --lr, or with more --sgld-steps.";
}

Predictions Trainer::predict(int64_t count, const Predictor::Source& images, const std::string& told) {
    return parts_.predictor.predict(count, images, parts_.evaluation_memory(), [&](int64_t done) {
        if (!told.empty()) observer_.progress(told, done, count);
        if (*stop_) throw Interrupted();
    });
}

double Trainer::evaluate() {
    if (held_out_.count() == 0) {
        if (!line_.is_null()) log_.append(line_);
        line_ = nullptr;
        return -1;
    }
    Predictions p = predict(held_out_.count(), parts_.predictor.images_of(held_out_), "Evaluating");
    p.labels = held_out_.labels;
    const double value = accuracy(p);
    nlohmann::ordered_json line = std::exchange(line_, nullptr);
    if (!line.is_null()) {
        line[held_out_name_ + "_accuracy"] = value;
        line.update(look_at_health(p).json());
        observer_.message(health_line(line, (total_ + iterations_per_epoch_ - 1) / iterations_per_epoch_, held_out_name_));
        if (const auto measured = measure(p); measured.is_object()) line.update(measured);
        log_.append(line);
    }
    progress_.best_accuracy = std::max(progress_.best_accuracy, value);
    if (is_best(line, value))
        try_to_write("the best checkpoint", [&] {
            progress_.best_iteration = progress_.iteration;
            progress_.best_chosen_on = held_out_name_;
            weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.best());
        });
    return value;
}

bool Trainer::is_best(const nlohmann::ordered_json& line, double accuracy) {
    std::optional<double> score;
    if (settings_.best_by == BestBy::accuracy) score = accuracy;
    if (settings_.best_by == BestBy::energy_gap && line.contains("energy_sampled"))
        score = -std::abs(line["energy_sampled"].get<double>() - line["energy_real"].get<double>());
    for (const char* distance : {"fid", "frechet_distance"})
        if (settings_.best_by == BestBy::frechet && line.contains(distance)) score = -line[distance].get<double>();
    if (!score) return false;
    const std::string by = name_of(settings_.best_by);
    if (progress_.best_by == by && !(*score > progress_.best_score)) return false;
    progress_.best_by = by;
    progress_.best_score = *score;
    return true;
}

Array Trainer::image_of_buffer(int64_t number, int64_t count) {
    const Array all = iteration_.buffer().images();
    const int64_t pixels = all.count / settings_.buffer_size;
    return all.slice(number * settings_.buffer_size / count * pixels, pixels);
}

Health Trainer::look_at_health(const Predictions& held_out) {
    Health health;
    health.energy_real = mean_energy(held_out);
    if (!settings_.samples()) return health;
    const int64_t count = std::min(kHealthImages, settings_.buffer_size);
    const auto spread = [&](const Array& to, int64_t first) {
        for (int64_t at = 0, n = first; at < to.count; ++n) {
            const Array one = image_of_buffer(n, count);
            device_.copy(to.slice(at, one.count).data, one.data, one.bytes());
            at += one.count;
        }
    };
    const Predictions sampled = predict(count, spread);
    health.energy_sampled = mean_energy(sampled);
    health.buffer_classes = class_shares(sampled);
    std::vector<int32_t> births(static_cast<size_t>(settings_.buffer_size));
    device_.download(births.data(), iteration_.buffer().births().data, births.size() * sizeof(int32_t));
    health.buffer_age = mean_age(births, progress_.iteration);
    const MadeImages noise("uniform", held_out_, {}, settings_.seed);
    health.energy_noise = mean_energy(predict(kNoiseImages, noise.source(parts_.predictor)));
    return health;
}

nlohmann::ordered_json Trainer::measure(const Predictions& held_out) {
    const int64_t interval = settings_.metric_interval, epoch = progress_.iteration / iterations_per_epoch_;
    if (!measure_ || interval == 0 || (epoch % interval != 0 && progress_.iteration != total_)) return nullptr;
    BufferImages buffer;
    if (settings_.samples())
        buffer = [this](int64_t first, int64_t count) {
            const Array all = iteration_.buffer().images();
            const int64_t pixels = all.count / settings_.buffer_size;
            return download_values(device_, all.slice(first * pixels, count * pixels));
        };
    return measure_(held_out, buffer);
}

void Trainer::try_to_write(const std::string& what, const std::function<void()>& write) {
    try {
        write();
    } catch (const std::exception& e) {
        observer_.warning(what + " could not be written: " + e.what() + " The run goes on.");
    }
}

void Trainer::save_checkpoint(Checkpoint which) {
    const bool regular = which == Checkpoint::regular;
    try {
        folder_.create();  // it may have gone meanwhile
        const SafetensorsFile state = state_file(iteration_.parameters(), device_, buffer_arrays(), settings_, progress_);
        const std::vector<int64_t> kept = folder_.kept_iterations();
        const bool stays = settings_.keep > 1 && regular && (kept.empty() || progress_.iteration - kept.front() >= kGoodStateInterval);
        // The state first: alone it is enough to resume, whatever happens before the second rename. One that is kept has a second name from
        // the beginning.
        if (stays) {
            const std::filesystem::path kept_state = folder_.kept(progress_.iteration);
            state.write_atomically(kept_state);
            link_file(kept_state, folder_.state());
        } else {
            state.write_atomically(folder_.state());
        }
        saved_ = progress_.iteration;
        weights_file(iteration_.parameters(), settings_, progress_).write_atomically(folder_.last());
        folder_.drop_kept(saved_, settings_.keep - 1, kGoodStateInterval);
        if (!unwritten_.empty()) observer_.warning("the checkpoint of iteration " + std::to_string(saved_) + " could be written.");
        unwritten_.clear();
        good_.clear();
    } catch (const std::exception& e) {
        unwritten_ = std::string("the last checkpoint (") + e.what() + ")";
        observer_.warning("the checkpoint of iteration " + std::to_string(progress_.iteration) + " could not be written: " + e.what() +
                          " The run goes on, and tries again in at most " + std::to_string(kGoodStateInterval) + " iterations.");
    }
}

void Trainer::write_samples() {
    const int64_t count = std::min(kSheetImages, settings_.buffer_size);
    std::vector<float> images;
    for (int64_t i = 0; i < count; ++i) {
        const std::vector<double> one = download_values(device_, image_of_buffer(i, count));
        images.insert(images.end(), one.begin(), one.end());
    }
    observer_.samples(folder_.sample(progress_.iteration), images, count);
}

}  // namespace jem
