#include "tools/jem_engine/sample/sample_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/network/parameters.h"
#include "kernels/images.h"
#include "tools/jem_engine/interrupt.h"

namespace jem {
namespace {

constexpr int64_t kMostChains = 100;        // in a batch
constexpr int64_t kDefaultSteps = 20;       // of chains that have somewhere to go
constexpr int64_t kMostTries = 10;          // chains a wanted sample, before giving up
constexpr int64_t kCandidatesASample = 4;   // of which --pick best|worst chooses one
constexpr double kMostFrameBytes = 0x1p30;  // of all samples, and on the device of a batch

struct Stopped {};

// Best or worst first; equal ones keep their order.
template <class T, class Lse>
void sort_by_lse(std::vector<T>& items, const std::string& pick, Lse lse) {
    if (pick == "random") return;
    std::stable_sort(items.begin(), items.end(),
                     [&](const T& a, const T& b) { return pick == "best" ? lse(a) > lse(b) : lse(a) < lse(b); });
}

std::vector<float> image_of(const std::vector<double>& images, int64_t number, int64_t pixels) {
    return {images.begin() + number * pixels, images.begin() + (number + 1) * pixels};
}

}  // namespace

SampleRun::SampleRun(const SampleOptions& options, const Checkpoint& checkpoint, Console& console)
    : o_(options), s_(checkpoint.settings), console_(console), damage_(options.damage) {
    if (o_.from == "noise") s_.init = StartForm::uniform;
    const bool moves = !o_.given() || o_.damaged() || o_.to_class() || o_.snapshots > 0 || o_.metropolis || !o_.diagnose.empty();
    steps_ = o_.steps ? *o_.steps : o_.flags.given("--sgld-steps") ? s_.sgld_steps : moves ? kDefaultSteps : 0;
    if (o_.metropolis && steps_ == 0) throw InputError("--mala is on (there is no step to judge). Give --steps above 0.");
    pixels_ = s_.in_channels * s_.image_size * s_.image_size;
    wanted_ = o_.count;
    if (o_.given()) {
        given_ = given_images(o_, checkpoint, console);
        limit_ = given_.count;
    } else {
        if (o_.pick != "random") wanted_ *= kCandidatesASample;
        limit_ = o_.label || o_.min_confidence ? wanted_ * kMostTries : wanted_;
    }
    const auto reading = [&](int64_t done, int64_t total) { console.progress("Reading images", done, total); };
    const bool of_training = is_of_gaussians(s_.init);
    if ((!o_.given() && of_training) || o_.neighbours > 0) train_ = load_training_images(s_, reading).train;
    if (!o_.given() && s_.init == StartForm::images) start_images_ = load_start_images(s_, reading);
    if (o_.neighbours > train_.count() && o_.neighbours > 0)
        throw InputError(fmt::format("--neighbours is {} (there are {} training images). Give fewer.", o_.neighbours, train_.count()));
    chains_ = std::min({kMostChains, wanted_, limit_});
    frame_steps_ = ChainRecord::frame_steps(steps_, o_.snapshots);
    refuse_too_many_frames();

    device_ = make_device(o_.common, s_.precision);
    network_ = std::make_unique<NetworkInUse>(trained_network(*device_, checkpoint, o_.weights));
    const bool choose_by_logits = o_.given() && (o_.label || o_.min_confidence || o_.pick != "random");
    predictor_ = std::make_unique<Predictor>(
        *device_, network_->memory(), network_->network(),
        Predictor::ImageSize{.height = s_.image_size, .width = s_.image_size, .channels = s_.in_channels},
        Predictor::Options{.largest = choose_by_logits || o_.neighbours > 0 ? std::max({limit_, chains_, train_.count()}) : chains_,
                           .features = o_.neighbours > 0 && o_.neighbours_by == "features",
                           .energy_head = s_.energy_head});
    sampler_ = std::make_unique<Sampler>(*device_, network_->network(), network_->memory(), s_,
                                         Sampler::Options{.chains = chains_,
                                                          .steps = steps_,
                                                          .starts = o_.given() ? Sampler::Starts::given : Sampler::Starts::fresh,
                                                          .objective = o_.to_class() ? ChainObjective::class_logit : ChainObjective::lse,
                                                          .metropolis = o_.metropolis,
                                                          .known = o_.keep_known,
                                                          .frame_every = o_.snapshots,
                                                          .trace = !o_.diagnose.empty()},
                                         of_training ? train_ : start_images_);
    say_what_is_skipped(checkpoint.file, checkpoint.path, network_->network());
    network_->ready([&] {
        sampler_->plan(network_->passes(), network_->state());
        predictor_->plan(network_->passes());
    });
    sampler_->ready(network_->passes(), network_->state());
    if (!o_.given() && s_.init == StartForm::informative && o_.label && !sampler_->has_class(*o_.label))
        throw InputError(
            fmt::format("--class is {} (no training image has it, so no chain starts there). Give another, or --from noise.", *o_.label));
    catch_interrupts({.waiting = "Stopping: the batch at hand is given up, those before it are written. A second interrupt ends at once.",
                      .ended = "Ended at once: nothing was written."});
    if (o_.given()) choose_given();
}

void SampleRun::refuse_too_many_frames() const {
    const double frames = static_cast<double>(frame_steps_.size()), images = static_cast<double>(std::max(wanted_, chains_));
    const double bytes = frames * images * static_cast<double>(pixels_) * sizeof(float);
    if (bytes > kMostFrameBytes)
        throw InputError(
            fmt::format("--snapshots is {} (that makes {} frames of {} chains, {:.1f} GiB, and 1 GiB is the limit). Give a "
                        "larger one, or a smaller --count.",
                        o_.snapshots, frames, images, bytes / 0x1p30));
}

bool SampleRun::wanted(const Sample& s) const {
    if (o_.label && s.label != *o_.label) return false;
    if (!o_.min_confidence) return true;
    return s.confidence >= *o_.min_confidence && (s.target < 0 || s.target == s.label);
}

void SampleRun::choose_given() {
    const int64_t n = limit_;
    const bool by_logits = !o_.to_class() && (o_.label || o_.min_confidence);
    if (!by_logits && o_.pick == "random") {
        for (int64_t i = 0; i < n; ++i)
            chosen_.push_back(
                shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(n), s_.seed, RandomStream::buffer_index, kFirstSampleDraw));
        return;
    }
    std::vector<std::pair<int64_t, double>> found;  // index, LSE
    for (int64_t first = 0; first < n; first += predictor_->batch()) {
        std::vector<int64_t> indices(static_cast<size_t>(std::min(predictor_->batch(), n - first)));
        std::iota(indices.begin(), indices.end(), first);
        const std::vector<Sample> samples = describe(given_.images(indices));
        for (size_t i = 0; i < samples.size(); ++i)
            if (!by_logits || wanted(samples[i])) found.emplace_back(indices[i], samples[i].lse);
        console_.progress("Choosing images", first + static_cast<int64_t>(indices.size()), n);
        if (interrupted) {
            stopped_ = true;
            break;
        }
    }
    tried_ = n;
    sort_by_lse(found, o_.pick, [](const auto& f) { return f.second; });
    for (const auto& [index, lse] : found) chosen_.push_back(index);
    limit_ = static_cast<int64_t>(chosen_.size());
}

// The chains of a batch; those beyond the limit only fill it up. Returns the classes that they climb, where they climb any.
std::vector<int64_t> SampleRun::start(int64_t batch) {
    std::vector<int64_t> indices, classes;
    for (int64_t i = batch * chains_; i < (batch + 1) * chains_; ++i) {
        if (o_.given()) indices.push_back(chosen_[static_cast<size_t>(i % limit_)]);
        const bool own = o_.given() && !given_.labels.empty();
        classes.push_back(o_.label.value_or(own ? given_.labels[static_cast<size_t>(indices.back())] : i % s_.num_classes));
    }
    if (o_.given()) {
        originals_ = given_.images(indices);
        starts_ = originals_;
        damage_.apply(starts_, indices, s_);
        sampler_->start_at(starts_);
        if (o_.keep_known) sampler_->keep_known(originals_, damage_.known(chains_, s_));
    } else {
        sampler_->start_fresh(classes);
    }
    if (o_.to_class()) sampler_->aim_at(classes);
    return classes;
}

std::vector<Sample> SampleRun::describe(const std::vector<double>& pixels) {
    const Predictions p =
        predictor_->predict(static_cast<int64_t>(pixels.size()) / pixels_, predictor_->values(pixels), network_->passes());
    std::vector<Sample> out;
    for (int64_t n = 0; n < p.count(); ++n) {
        const Classified c = classified(p, n);
        Sample& s = out.emplace_back();
        s.pixels = image_of(pixels, n, pixels_);
        s.logits = {p.logits.begin() + n * p.classes, p.logits.begin() + (n + 1) * p.classes};
        s.label = c.best;
        s.confidence = c.confidence;
        s.lse = p.lse[static_cast<size_t>(n)];
        diverged_ = diverged_ || !std::isfinite(s.lse);
    }
    return out;
}

void SampleRun::run_batch(std::vector<Sample>& found, int64_t batch) {
    const int64_t batches = (limit_ + chains_ - 1) / chains_;
    sampler_->begin(kFirstSampleDraw + static_cast<uint32_t>(batch));
    const std::vector<int64_t> classes = start(batch);
    sampler_->run([&](int64_t done) {
        console_.progress("Sampling", batch * steps_ + done, batches * steps_);
        if (interrupted) throw Stopped();
    });
    std::vector<Sample> samples = describe(sampler_->download());
    diverged_ = diverged_ || sampler_->diverged();
    const ChainCourse course = sampler_->course();
    const int64_t used = std::min(chains_, limit_ - batch * chains_);
    if (steps_ > 0) diagnostics_.add(course, used, chains_);
    for (int64_t i = 0; i < used && std::ssize(found) < wanted_; ++i) {
        Sample& s = samples[static_cast<size_t>(i)];
        if (o_.to_class()) s.target = classes[static_cast<size_t>(i)];
        if (o_.given()) {
            s.source = chosen_[static_cast<size_t>(batch * chains_ + i)];
            if (!given_.labels.empty()) s.true_label = given_.labels[static_cast<size_t>(s.source)];
        }
        if (!o_.damaged() && !wanted(s)) continue;
        if (o_.damaged()) {
            s.original = image_of(originals_, i, pixels_);
            s.damaged = image_of(starts_, i, pixels_);
        }
        for (int64_t f = 0; f < std::ssize(course.frame_steps); ++f) s.frames.push_back(image_of(course.frames, f * chains_ + i, pixels_));
        found.push_back(std::move(s));
    }
    tried_ = std::max(tried_, batch * chains_ + used);
}

void SampleRun::find_neighbours(std::vector<Sample>& samples) {
    const bool by_features = o_.neighbours_by == "features";
    const NetworkMemory passes = network_->passes();
    const auto features_of = [&](int64_t count, const Predictor::Source& source) {
        std::vector<float> features;
        predictor_->run(count, source, passes, [&](const Predictor::Batch& batch) {
            const std::vector<double> of_batch = download_values(*device_, batch.features);
            features.insert(features.end(), of_batch.begin(), of_batch.end());
        });
        return features;
    };
    std::vector<float> of_samples;
    for (const Sample& s : samples) of_samples.insert(of_samples.end(), s.pixels.begin(), s.pixels.end());
    if (by_features) {
        const std::vector<double> values(of_samples.begin(), of_samples.end());
        of_samples = features_of(std::ssize(samples), predictor_->values(values));
    }
    const auto bytes = [&](int64_t first, int64_t n) {
        return std::span<const uint8_t>(train_.pixels).subspan(static_cast<size_t>(first * pixels_), static_cast<size_t>(n * pixels_));
    };
    const auto rows = [&](int64_t first, int64_t n) {
        if (interrupted) throw Stopped();
        if (by_features) return features_of(n, predictor_->bytes(bytes(first, n)));
        std::vector<float> values;
        for (const uint8_t byte : bytes(first, n)) values.push_back(pixel_value<float>(byte));
        return values;
    };
    const std::vector<std::vector<Neighbour>> nearest =
        nearest_neighbours({of_samples, std::ssize(of_samples) / std::ssize(samples)}, {train_.count(), rows}, o_.neighbours,
                           [&](int64_t done) { console_.progress("Neighbours", done, train_.count()); });
    for (size_t i = 0; i < samples.size(); ++i) {
        samples[i].neighbours = nearest[i];
        for (const Neighbour& one : nearest[i]) {
            std::vector<float>& pixels = samples[i].neighbour_pixels.emplace_back();
            for (const uint8_t byte : bytes(one.number, 1)) pixels.push_back(pixel_value<float>(byte));
        }
    }
}

std::vector<Sample> SampleRun::run() {
    const int64_t batches = (limit_ + chains_ - 1) / chains_;
    std::vector<Sample> found;
    try {
        for (int64_t batch = 0; batch < batches && std::ssize(found) < wanted_ && !diverged_ && !stopped_; ++batch) {
            run_batch(found, batch);
            stopped_ = interrupted && std::ssize(found) < wanted_ && batch + 1 < batches;
        }
    } catch (const Stopped&) {
        stopped_ = true;
    }
    if (found.empty() && !diverged_ && !stopped_)
        throw std::runtime_error(
            fmt::format("No sample is predicted{}{} ({} were tried). Give another --class or --min-confidence, or more --steps.",
                        o_.label ? fmt::format(" as class {}", *o_.label) : "",
                        o_.min_confidence ? fmt::format(" with a confidence of {}", *o_.min_confidence) : "", tried_));
    sort_by_lse(found, o_.pick, [](const Sample& s) { return s.lse; });
    if (std::ssize(found) > o_.count) found.resize(static_cast<size_t>(o_.count));
    if (o_.neighbours == 0 || found.empty() || diverged_ || stopped_) return found;
    try {
        find_neighbours(found);
    } catch (const Stopped&) {
        stopped_ = true;
    }
    return found;
}

}  // namespace jem
