// How good drawn images are, by the features of another network: one pass over the images for all of these.
#include <algorithm>

#include "engine/evaluation/metric.h"
#include "engine/evaluation/sample_features.h"

namespace jem {
namespace {

constexpr int kScoreParts = 10;
constexpr int64_t kAuthorsImagesOfPart = 5000;
constexpr int64_t kNeighbourImages = 10000;  // of each set, for precision, recall, density and coverage

// What it is of. Of the score by the authors' protocol, which takes other images: `images` is "score_images".
MetricResult result_of(Evaluation& e, nlohmann::ordered_json values, const std::string& images, int64_t count) {
    values["sample_quality"] = {{"features", e.features()->name},
                                {"samples", e.settings().samples.from == SamplesFrom::buffer ? "buffer" : "fresh"},
                                {images, count},
                                {"reference_images", e.sample_features().reference_count()}};
    return {.values = std::move(values), .files = {}};
}

MetricResult result_of(Evaluation& e, nlohmann::ordered_json values) {
    SampleFeatures& f = e.sample_features();
    return result_of(e, std::move(values), "images", std::ssize(f.samples()) / f.dimension());
}

MetricResult measure_distance(Evaluation& e) {
    SampleFeatures& f = e.sample_features();
    FeatureAccumulator sums(f.dimension());
    sums.add(f.samples());
    const ReferenceStatistics& reference = f.reference_statistics();
    const FrechetDistance d = frechet_distance(reference.features, reference.factor, sums.statistics());
    if (d.few_images) e.tell("Fewer images than features: the Frechet distance is too large (the covariance is singular).");
    return result_of(e, {{e.features()->inception ? "fid" : "frechet_distance", d.distance}});
}

MetricResult measure_score(Evaluation& e) {
    const std::vector<double>& probabilities = e.sample_features().sample_probabilities();
    const int64_t classes = e.features()->network.classes, images = std::ssize(probabilities) / classes;
    const bool authors = e.settings().protocol == Protocol::authors;
    const int parts = authors ? static_cast<int>(std::max<int64_t>(1, images / kAuthorsImagesOfPart)) : kScoreParts;
    const MeanAndDeviation score = inception_score(probabilities, classes, parts);
    return result_of(e, {{"is_mean", score.mean}, {"is_std", score.deviation}}, authors ? "score_images" : "images", images);
}

MetricResult measure_kernel_distance(Evaluation& e) {
    SampleFeatures& f = e.sample_features();
    const MeanAndDeviation d = kernel_distance(
        {f.reference(), f.dimension()}, {f.samples(), f.dimension()}, {.seed = e.settings().seed, .stream = RandomStream::feature_subsets},
        [&](double share) { e.progress("Kernel distance", static_cast<int64_t>(100 * share), 100); });
    const std::string name = e.features()->inception ? "kid" : "kernel_distance";
    return result_of(e, {{name, d.mean}, {name + "_std", d.deviation}});
}

MetricResult measure_coverage(Evaluation& e) {
    SampleFeatures& f = e.sample_features();
    const int64_t dimension = f.dimension();
    const auto some = [&](const std::vector<float>& features) {
        return rows(features, dimension, e.first_images(kNeighbourImages, std::ssize(features) / dimension));
    };
    const std::vector<float> reference = some(f.reference()), samples = some(f.samples());
    const Coverage c = coverage({reference, dimension}, {samples, dimension}, {},
                                [&](double share) { e.progress("Neighbours", static_cast<int64_t>(100 * share), 100); });
    return result_of(e, {{"precision", c.precision}, {"recall", c.recall}, {"density", c.density}, {"coverage", c.coverage}});
}

std::string missing(const Evaluation& e) {
    if (!e.features()) return "no network for features was given: --features CHECKPOINT, or inception:FILE for the FID; docs/evaluation.md";
    const bool buffer = e.drawn() && e.drawn()->buffer_count > 0;
    if (e.settings().protocol == Protocol::authors && (!buffer || e.settings().samples.from == SamplesFrom::fresh))
        return std::string("the authors' protocol is of the replay buffer") +
               (buffer ? ": --samples buffer" : ", and there is none: --protocol engine");
    if (e.settings().samples.from == SamplesFrom::buffer && !buffer) return "there is no replay buffer: --samples fresh";
    return "";
}

std::string missing_classes(const Evaluation& e) {
    const std::string why = missing(e);
    if (!why.empty()) return why;
    return e.features()->inception ? "" : "the Inception Score is of Inception's classes: --features inception:FILE";
}

// Where the statistics of the reference are kept already, less.
Cost cost(Evaluation& e) {
    const SampleSettings& s = e.settings().samples;
    const bool fresh = s.from == SamplesFrom::fresh;
    const auto drawn = static_cast<double>(fresh ? s.count : e.drawn()->buffer_count);
    return {.gradient = fresh ? drawn * static_cast<double>(s.steps) : 0, .features = drawn + static_cast<double>(e.reference().count())};
}

}  // namespace

Metric frechet_metric() {
    return {.name = "fid",
            .help = "the Frechet distance of samples and training images, by --features",
            .measure = measure_distance,
            .cost = cost,
            .missing = missing,
            .of_samples = true};
}

Metric inception_score_metric() {
    return {.name = "is",
            .help = "the Inception Score",
            .measure = measure_score,
            .cost = cost,
            .missing = missing_classes,
            .of_samples = true};
}

Metric kernel_distance_metric() {
    return {.name = "kid",
            .help = "the kernel distance",
            .measure = measure_kernel_distance,
            .cost = cost,
            .missing = missing,
            .of_samples = true};
}

Metric coverage_metric() {
    return {.name = "prd",
            .help = "precision, recall, density and coverage",
            .measure = measure_coverage,
            .cost = cost,
            .missing = missing,
            .of_samples = true};
}

}  // namespace jem
