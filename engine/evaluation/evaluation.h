// Classification on a set of images with the running statistics: accuracy, negative log-likelihood, calibration.
#pragma once

#include <functional>
#include <vector>

#include "data/image_set.h"
#include "engine/network/network.h"

namespace jem {

// What the logits of a whole set say, on the host.
struct Predictions {
    int64_t classes = 0;
    std::vector<double> logits;   // [N, classes]
    std::vector<int32_t> labels;  // [N]

    int64_t count() const { return static_cast<int64_t>(labels.size()); }
};

double accuracy(const Predictions& p);                 // in [0, 1]; the first of equal logits counts
double negative_log_likelihood(const Predictions& p);  // mean, in nats

struct CalibrationBin {
    int64_t count = 0;
    double confidence = 0, accuracy = 0;  // means within the bin
};
// Equal bins of the confidence max_y p(y|x); bin b holds (b/n, (b+1)/n] (Guo et al. 2017).
std::vector<CalibrationBin> calibration_bins(const Predictions& p, int bins);
// sum over bins of count / N * |accuracy - confidence|
double expected_calibration_error(const Predictions& p, int bins);

class Evaluator {
public:
    static constexpr int64_t kBatch = 100;

    // Registers passes for sets of these sizes; the network must not have been built.
    Evaluator(Device& device, Memory& memory, Network& network, const std::vector<int64_t>& counts, const ImageSetShape& shape);

    // To be run inside Memory::plan.
    void plan(const NetworkMemory& memory);
    // Logits of every image. The network must be prepared with memory.weights.
    Predictions predict(const ImageSet& images, const NetworkMemory& memory, const std::function<void(int64_t)>& progress);
    // The same of images given as R values in [-1, 1], [N, H, W, C].
    Predictions predict(const std::vector<double>& images, const NetworkMemory& memory);

private:
    template <class Fill>
    Predictions predict_batches(int64_t count, const NetworkMemory& memory, Fill fill, const std::function<void(int64_t)>& progress);

    struct BatchPass {
        int64_t batch;
        int pass;
    };

    Device& device_;
    Memory& memory_;
    Network& network_;
    ImageSetShape shape_;
    std::vector<BatchPass> passes_;
    Slot images_;
};

}  // namespace jem
