#include "engine/evaluation/sample_features.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <span>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/sampling/sampler.h"

namespace jem {
namespace {

constexpr int64_t kChains = 100;         // of a batch: batch statistics tie them to each other
constexpr int64_t kPiece = 1000;         // images that are kept together, so that an interrupted evaluation goes on
constexpr int64_t kMostKept = 10000000;  // values of all pieces: what is larger would take longer to read than many networks take to run

// The authors' protocol.
constexpr int64_t kAuthorsBatch = 50;
constexpr int64_t kPercentOfSamples = 90, kPercentOfProbabilities = 10;

int64_t full_batches(int64_t count, const std::string& of) {
    if (count < kAuthorsBatch)
        throw InputError(
            fmt::format("The authors' protocol leaves none of {} {} (it drops what does not fill a batch of {}). "
                        "Use --protocol engine.",
                        count, of, kAuthorsBatch));
    return count - count % kAuthorsBatch;
}

}  // namespace

SampleFeatures::Network::Network(const FeatureNetwork& f)
    : in_use(f.network),
      predictor(in_use.device(), in_use.memory(), in_use.network(), f.network.size,
                {.largest = f.batch, .batch = f.inception ? f.batch : 0, .features = true, .energy_head = Head::classes}),
      dimension(0),
      classes(f.network.classes) {
    in_use.ready([&] { predictor.plan(in_use.passes()); });
    std::vector<double> nothing(static_cast<size_t>(f.network.size.pixels()), 0.0);
    predictor.run(1, predictor.values(nothing), in_use.passes(), [&](const Predictor::Batch& b) { dimension = b.features.count; });
}

SampleFeatures::Network& SampleFeatures::network() {
    if (!network_) network_ = std::make_unique<Network>(*e_.features());
    return *network_;
}

double SampleFeatures::seconds_forward() {
    if (seconds_forward_) return *seconds_forward_;
    Network& by = network();  // has run once, and is warm
    const std::vector<double> nothing(static_cast<size_t>(e_.network().size.pixels()), 0.0);
    const auto start = std::chrono::steady_clock::now();
    run(1, by.predictor.values(nothing));
    seconds_forward_ = seconds_since(start) / static_cast<double>(by.predictor.batch());
    return *seconds_forward_;
}

int64_t SampleFeatures::dimension() { return network().dimension; }

std::vector<double> SampleFeatures::run(int64_t count, const Predictor::Source& source) {
    std::vector<double> features, logits;
    Network& by = network();
    by.predictor.run(count, source, by.in_use.passes(), [&](const Predictor::Batch& batch) {
        const auto append = [&](std::vector<double>& to, const Array& from) {
            const std::vector<double> values = download_values(by.in_use.device(), from);
            to.insert(to.end(), values.begin(), values.end());
        };
        append(features, batch.features);
        append(logits, batch.logits);
    });
    features.insert(features.end(), logits.begin(), logits.end());
    return features;
}

std::vector<double> SampleFeatures::piece(const std::string& name, int64_t images, const std::function<std::vector<double>()>& measure) {
    const bool kept = images * (network().dimension + network().classes) <= kMostKept;
    return kept ? e_.journal().piece(name, measure) : measure();
}

void SampleFeatures::add_samples(const std::vector<double>& values, int64_t wanted) {
    const Network& by = network();
    const int64_t n = std::ssize(values) / (by.dimension + by.classes);
    const auto logits = values.begin() + n * by.dimension;
    samples_.insert(samples_.end(), values.begin(), values.begin() + std::min(n, wanted) * by.dimension);
    Predictions p;
    p.classes = by.classes;
    p.logits.assign(logits, logits + std::min(n, wanted) * by.classes);
    for (int64_t i = 0; i < p.count(); ++i) {
        const std::vector<double> of_image = probabilities(p, i);
        probabilities_.insert(probabilities_.end(), of_image.begin(), of_image.end());
    }
}

void SampleFeatures::draw_fresh() {
    const DrawnImages& drawn = *e_.drawn();
    const int64_t count = e_.settings().samples.count, chains = std::min(kChains, count);
    NetworkInUse in_use(e_.network());
    const ImageSet own = drawn.starts ? drawn.starts() : ImageSet{};
    Sampler sampler(in_use.device(), in_use.network(), in_use.memory(), *drawn.settings,
                    {.chains = chains, .steps = e_.settings().samples.steps}, drawn.starts ? own : e_.training());
    in_use.ready([&] { sampler.plan(in_use.passes(), in_use.state()); });
    sampler.ready(in_use.passes(), in_use.state());
    const int64_t pixels = e_.network().size.pixels(), batches = (count + chains - 1) / chains;
    for (int64_t b = 0; b < batches; ++b) {
        const auto measure = [&] {
            std::vector<int64_t> classes;
            for (int64_t i = b * chains; i < (b + 1) * chains; ++i) classes.push_back(i % e_.network().classes);
            sampler.begin(kFirstSampleDraw + static_cast<uint32_t>(b));
            sampler.start_fresh(classes);
            const int64_t steps = e_.settings().samples.steps;
            sampler.run([&](int64_t done) { e_.progress("Drawing", b * steps + done, batches * steps); });
            if (sampler.diverged())
                throw std::runtime_error(
                    "Sampling diverged (a gradient or logit was not finite). Use an earlier checkpoint, or --samples buffer.");
            // from one arena to the other, on the device
            return run(chains, [&](const Array& to, int64_t first) {
                in_use.device().copy(to.data, sampler.images().slice(first * pixels, to.count).data, to.bytes());
            });
        };
        add_samples(piece(fmt::format("drawn {} steps {} batch {} by {}", count, e_.settings().samples.steps, b, e_.features()->name),
                          count, measure),
                    count - b * chains);
    }
}

void SampleFeatures::take_buffer() {
    const DrawnImages& drawn = *e_.drawn();
    const int64_t count = drawn.buffer_count;
    for (int64_t first = 0; first < count; first += kPiece) {
        const int64_t n = std::min(kPiece, count - first);
        const auto measure = [&] {
            const std::vector<double> images = drawn.buffer(first, n);
            return run(n, network().predictor.values(images));
        };
        add_samples(piece(fmt::format("buffer {} of {} by {}", first, count, e_.features()->name), count, measure), n);
        e_.progress("Features of the buffer", first + n, count);
    }
}

void SampleFeatures::draw() {
    if (!samples_.empty()) return;
    if (e_.settings().samples.from == SamplesFrom::buffer)
        take_buffer();
    else
        draw_fresh();
}

std::vector<int64_t> SampleFeatures::surest(int64_t percent) {
    const DrawnImages& drawn = *e_.drawn();
    const int64_t pixels = e_.network().size.pixels();
    if (!of_buffer_)
        of_buffer_ = e_.predict("buffer", drawn.buffer_count, [&drawn, pixels](Predictor& by) -> Predictor::Source {
            return [&by, &drawn, pixels](const Array& to, int64_t first) {
                const std::vector<double> images = drawn.buffer(first, to.count / pixels);
                by.values(images)(to, 0);
            };
        });
    std::vector<int64_t> chosen = surest_of_each_class(*of_buffer_, percent);
    chosen.resize(static_cast<size_t>(full_batches(std::ssize(chosen), fmt::format("images, {} % of the replay buffer", percent))));
    return chosen;
}

const std::vector<float>& SampleFeatures::samples() {
    draw();
    if (e_.settings().protocol == Protocol::authors && !samples_chosen_) {
        samples_ = rows(samples_, dimension(), surest(kPercentOfSamples));
        samples_chosen_ = true;
    }
    return samples_;
}

const std::vector<double>& SampleFeatures::sample_probabilities() {
    draw();
    if (e_.settings().protocol == Protocol::authors && !probabilities_chosen_) {
        probabilities_ = rows(probabilities_, network().classes, surest(kPercentOfProbabilities));
        probabilities_chosen_ = true;
    }
    return probabilities_;
}

const std::vector<float>& SampleFeatures::reference() {
    if (!reference_.empty()) return reference_;
    const ImageSet& set = e_.reference();
    const int64_t pixels = e_.network().size.pixels(), count = reference_count();
    for (int64_t first = 0; first < count; first += kPiece) {
        const int64_t n = std::min(kPiece, count - first);
        const auto measure = [&] {
            return run(n, network().predictor.bytes(
                              std::span(set.pixels).subspan(static_cast<size_t>(first * pixels), static_cast<size_t>(n * pixels))));
        };
        const std::vector<double> values =
            piece(fmt::format("reference {} of {} by {}", first, count, e_.features()->name), count, measure);
        reference_.insert(reference_.end(), values.begin(), values.begin() + n * network().dimension);
        e_.progress("Features of the reference", first + n, count);
    }
    return reference_;
}

int64_t SampleFeatures::reference_count() {
    const int64_t count = e_.reference().count();
    return e_.settings().protocol == Protocol::authors ? full_batches(count, "reference images") : count;
}

const ReferenceStatistics& SampleFeatures::reference_statistics() {
    if (statistics_) return *statistics_;
    const ImageSet& set = e_.reference();
    Checksum pixels, weights;
    pixels.add(std::as_bytes(std::span(set.pixels)));
    const std::vector<double> values = download_values(network().in_use.device(), network().in_use.parameters().weights());
    weights.add(std::as_bytes(std::span(values)));
    // images come to Inception by the protocol
    const ReferenceKey key = {.data = set.name,
                              .split = e_.settings().protocol == Protocol::authors ? "authors' reference" : "train",
                              .network = e_.features()->name,
                              .images = reference_count(),
                              .channels = set.channels,
                              .height = set.height,
                              .width = set.width,
                              .pixels = pixels.value(),
                              .weights = weights.value()};
    const FeatureCache cache(e_.features()->cache);
    statistics_ = cache.find(key);
    if (statistics_) return *statistics_;
    FeatureAccumulator sums(dimension());
    sums.add(reference());
    ReferenceStatistics found = {.features = sums.statistics(), .factor = {}};
    found.factor = covariance_factor(found.features);
    cache.keep(key, found);
    statistics_ = std::move(found);
    return *statistics_;
}

}  // namespace jem
