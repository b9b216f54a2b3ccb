// Features of drawn images and of real ones, by a network that is not the evaluated one: what distances between the two are made of.
#pragma once

#include <optional>
#include <vector>

#include "engine/evaluation/evaluation.h"
#include "engine/evaluation/feature_cache.h"
#include "engine/evaluation/sample_quality.h"

namespace jem {

// Rows of these numbers, of [N, size].
template <typename T>
std::vector<T> rows(const std::vector<T>& values, int64_t size, const std::vector<int64_t>& numbers) {
    std::vector<T> out;
    for (const int64_t n : numbers) out.insert(out.end(), values.begin() + n * size, values.begin() + (n + 1) * size);
    return out;
}

class SampleFeatures {
public:
    explicit SampleFeatures(Evaluation& evaluation) : e_(evaluation) {}

    // Of the drawn images, all of them. By the authors' protocol of those in the replay buffer that the evaluated network is surest of,
    // nine tenths of each predicted class, and of these as many as fill batches of 50.
    const std::vector<float>& samples();
    // p(y|x) of the feature network, [N, classes]; by the authors' protocol of the surest tenth, likewise.
    const std::vector<double>& sample_probabilities();
    // Of the reference, all of it; by the authors' protocol as many images as fill batches of 50.
    const std::vector<float>& reference();
    int64_t reference_count();
    // Of the same, from the cache where it is kept there.
    const ReferenceStatistics& reference_statistics();
    int64_t dimension();
    // Seconds that an image takes through the network for features, in a batch.
    double seconds_forward();

private:
    struct Network {
        NetworkInUse in_use;
        Predictor predictor;
        int64_t dimension, classes;
        explicit Network(const FeatureNetwork& features);
    };
    Network& network();
    // Features, one image's behind the other's, and behind these logits: of what is told by `source`.
    std::vector<double> run(int64_t count, const Predictor::Source& source);
    std::vector<double> piece(const std::string& name, int64_t images, const std::function<std::vector<double>()>& measure);
    void draw();
    void draw_fresh();
    // Those of the buffer's images that the authors' protocol takes.
    std::vector<int64_t> surest(int64_t percent);
    void take_buffer();
    void add_samples(const std::vector<double>& values, int64_t wanted);

    Evaluation& e_;
    std::unique_ptr<Network> network_;
    std::optional<double> seconds_forward_;
    std::vector<float> samples_, reference_;
    std::vector<double> probabilities_;
    bool samples_chosen_ = false, probabilities_chosen_ = false;  // of all that were drawn
    std::optional<Predictions> of_buffer_;                        // by the evaluated network
    std::optional<ReferenceStatistics> statistics_;
};

}  // namespace jem
