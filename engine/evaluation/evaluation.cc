#include "engine/evaluation/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "engine/evaluation/sample_features.h"

namespace jem {
namespace {

// A batch in the journal: logits, energies and gradients' norms, one behind the other.
std::vector<double> flat(const Predictions& p) {
    std::vector<double> values = p.logits;
    values.insert(values.end(), p.lse.begin(), p.lse.end());
    values.insert(values.end(), p.gradient_norms.begin(), p.gradient_norms.end());
    return values;
}

Predictions predictions_of(const std::vector<double>& values, int64_t classes, int64_t count, bool gradients) {
    if (std::ssize(values) != count * (classes + 1 + (gradients ? 1 : 0)))
        throw std::runtime_error("A piece of an interrupted evaluation has another size than it should. Remove its unfinished.jsonl.");
    Predictions p;
    p.classes = classes;
    const auto logits_end = values.begin() + count * classes;
    p.logits.assign(values.begin(), logits_end);
    p.lse.assign(logits_end, logits_end + count);
    p.gradient_norms.assign(logits_end + count, values.end());
    return p;
}

}  // namespace

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Evaluation::Running::Running(const Evaluation& e)
    : network(e.in_.network),
      predictor(network.device(), network.memory(), network.network(), e.in_.network.size,
                {.largest = e.in_.images.count(),
                 .wants = e.gradients_ ? Predictor::Wants::gradients : Predictor::Wants::logits,
                 .energy_head = e.in_.network.energy_head}) {
    network.ready([&] { predictor.plan(network.passes()); });
}

Evaluation::Evaluation(Inputs inputs) : in_(std::move(inputs)), predictions_(in_.predictions) {}
Evaluation::~Evaluation() = default;

SampleFeatures& Evaluation::sample_features() {
    if (!sample_features_) sample_features_ = std::make_unique<SampleFeatures>(*this);
    return *sample_features_;
}

Evaluation::Running& Evaluation::running() {
    if (!running_) running_ = std::make_unique<Running>(*this);
    return *running_;
}

void Evaluation::progress(const std::string& what, int64_t done, int64_t total) const {
    if (in_.progress) in_.progress(what, done, total);
    if (in_.stop && in_.stop()) throw Interrupted();
}

const ImageSet& Evaluation::training() {
    if (!training_) training_ = in_.training();
    return *training_;
}

const ImageSet& Evaluation::reference() {
    if (!in_.reference) return training();
    if (!reference_) reference_ = in_.reference();
    return *reference_;
}

Predictions Evaluation::predict(const std::string& name, int64_t count, const MakeSource& make_source) {
    const int64_t batch = std::min<int64_t>(count, running().predictor.batch());
    const Predictor::Source source = make_source(running().predictor);
    Predictions all;
    for (int64_t first = 0; first < count; first += batch) {
        const int64_t n = std::min(batch, count - first);
        const std::string piece = name + (gradients_ ? "/gradients/" : "/") + std::to_string(first);
        const std::vector<double> values =
            in_.journal.piece(piece, [&] { return flat(running().predictor.predict_batch(first, n, source, running().network.passes())); });
        all.append(predictions_of(values, in_.network.classes, n, gradients_));
        progress("Predicting " + name, first + n, count);
    }
    return all;
}

const Predictions& Evaluation::predictions() {
    if (predictions_) return *predictions_;
    const auto start = std::chrono::steady_clock::now();
    Predictions p = predict(in_.split, in_.images.count(), [&](Predictor& by) { return by.images_of(in_.images); });
    if (!std::all_of(p.logits.begin(), p.logits.end(), [](double v) { return std::isfinite(v); }))
        throw std::runtime_error("Logits are not finite (the weights are not, or activations overflow). Use an earlier checkpoint.");
    p.labels = in_.images.labels;
    predicting_seconds_ = seconds_since(start);
    predictions_ = std::move(p);
    return *predictions_;
}

double Evaluation::seconds_forward() {
    if (seconds_forward_) return *seconds_forward_;
    Predictor& predictor = running().predictor;
    const Predictor::Source source = predictor.images_of(in_.images);
    const int64_t n = std::min(predictor.batch(), in_.images.count());
    double seconds = 0;
    for (int time = 0; time < 2; ++time) {  // the first one warms up
        const auto start = std::chrono::steady_clock::now();
        predictor.predict_batch(0, n, source, running().network.passes());
        seconds = seconds_since(start);
    }
    seconds_forward_ = seconds / static_cast<double>(predictor.batch()) / (gradients_ ? kGradientCost : 1);
    return *seconds_forward_;
}

double Evaluation::seconds_features() { return sample_features().seconds_forward(); }

std::vector<int64_t> Evaluation::first_images(int64_t count, int64_t total) const {
    std::vector<int64_t> numbers(static_cast<size_t>(std::min(count, total)));
    std::iota(numbers.begin(), numbers.end(), 0);
    if (!settings().shuffled) return numbers;
    for (int64_t& n : numbers)
        n = shuffled(static_cast<uint32_t>(n), static_cast<uint32_t>(total), settings().seed, RandomStream::evaluation_order, 0);
    return numbers;
}

Predictor::Source chosen_images(Predictor& predictor, const ImageSet& set, const std::vector<int64_t>& numbers) {
    const auto pixels = static_cast<size_t>(set.channels) * static_cast<size_t>(set.height) * static_cast<size_t>(set.width);
    return [&predictor, &set, &numbers, pixels](const Array& to, int64_t first) {
        std::vector<uint8_t> bytes;
        for (int64_t i = first; i < first + to.count / static_cast<int64_t>(pixels); ++i) {
            const auto image = set.pixels.begin() + numbers[static_cast<size_t>(i)] * static_cast<int64_t>(pixels);
            bytes.insert(bytes.end(), image, image + static_cast<int64_t>(pixels));
        }
        predictor.bytes(bytes)(to, 0);
    };
}

}  // namespace jem
