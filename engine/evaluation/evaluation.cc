#include "engine/evaluation/evaluation.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "engine/network/parameters.h"

namespace jem {
namespace {

struct Row {
    int64_t best = 0;
    double confidence = 0, log_likelihood = 0;  // of the best class; of the label's
};

Row row_of(const Predictions& p, int64_t n) {
    const double* logits = p.logits.data() + n * p.classes;
    Row row;
    for (int64_t c = 1; c < p.classes; ++c)
        if (logits[c] > logits[row.best]) row.best = c;
    double sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) sum += std::exp(logits[c] - logits[row.best]);
    row.confidence = 1 / sum;
    row.log_likelihood = logits[p.labels[static_cast<size_t>(n)]] - logits[row.best] - std::log(sum);
    return row;
}

}  // namespace

double accuracy(const Predictions& p) {
    int64_t hits = 0;
    for (int64_t n = 0; n < p.count(); ++n) hits += row_of(p, n).best == p.labels[static_cast<size_t>(n)] ? 1 : 0;
    return static_cast<double>(hits) / static_cast<double>(p.count());
}

double negative_log_likelihood(const Predictions& p) {
    double sum = 0;
    for (int64_t n = 0; n < p.count(); ++n) sum -= row_of(p, n).log_likelihood;
    return sum / static_cast<double>(p.count());
}

std::vector<CalibrationBin> calibration_bins(const Predictions& p, int bins) {
    std::vector<CalibrationBin> out(static_cast<size_t>(bins));
    for (int64_t n = 0; n < p.count(); ++n) {
        const Row row = row_of(p, n);
        const double bin_above = std::ceil(row.confidence * bins);
        const int index = bin_above > 1 ? std::min(static_cast<int>(bin_above), bins) - 1 : 0;  // a NaN belongs to the first
        CalibrationBin& bin = out[static_cast<size_t>(index)];
        ++bin.count;
        bin.confidence += row.confidence;
        bin.accuracy += row.best == p.labels[static_cast<size_t>(n)] ? 1 : 0;
    }
    for (CalibrationBin& bin : out) {
        if (bin.count == 0) continue;
        bin.confidence /= static_cast<double>(bin.count);
        bin.accuracy /= static_cast<double>(bin.count);
    }
    return out;
}

double expected_calibration_error(const Predictions& p, int bins) {
    double sum = 0;
    for (const CalibrationBin& bin : calibration_bins(p, bins))
        sum += static_cast<double>(bin.count) * std::fabs(bin.accuracy - bin.confidence);
    return sum / static_cast<double>(p.count());
}

Evaluator::Evaluator(Device& device, Memory& memory, Network& network, const std::vector<int64_t>& counts, const ImageSetShape& shape)
    : device_(device), memory_(memory), network_(network), shape_(shape) {
    std::set<int64_t> batches;
    for (const int64_t count : counts) {
        if (count >= kBatch) batches.insert(kBatch);
        if (count % kBatch > 0) batches.insert(count % kBatch);
    }
    for (const int64_t batch : batches)
        passes_.push_back({batch, network.add_pass({"evaluation of " + std::to_string(batch), batch, NormMode::running, Gradients::none})});
    const int64_t largest = batches.empty() ? 0 : *batches.rbegin();
    images_ = memory.transient("evaluation images",
                               static_cast<size_t>(largest * shape.height * shape.width * shape.channels) * size_of(device.real_type()));
}

void Evaluator::plan(const NetworkMemory& memory) {
    for (const BatchPass& p : passes_) {
        const Tensor images{memory_.at(images_), device_.real_type(), p.batch,        shape_.channels,
                            shape_.height,       shape_.width,        shape_.channels};
        network_.forward(p.pass, memory, images);
        network_.logits(p.pass);
    }
}

template <class Fill>
Predictions Evaluator::predict_batches(int64_t count, const NetworkMemory& memory, Fill fill,
                                       const std::function<void(int64_t)>& progress) {
    Predictions out;
    out.logits.reserve(static_cast<size_t>(count));
    const int64_t pixels = int64_t{shape_.height} * shape_.width * shape_.channels;
    std::vector<double> values;
    for (int64_t first = 0; first < count; first += kBatch) {
        const int64_t n = std::min(kBatch, count - first);
        const auto found = std::find_if(passes_.begin(), passes_.end(), [&](const BatchPass& p) { return p.batch == n; });
        if (found == passes_.end()) throw std::logic_error("Evaluation of a batch of " + std::to_string(n) + " was not planned.");
        values.resize(static_cast<size_t>(n * pixels));
        fill(first * pixels, values);
        const Tensor images{memory_.at(images_), device_.real_type(), n, shape_.channels, shape_.height, shape_.width, shape_.channels};
        upload_values(device_, {images.data, images.type, images.count()}, values);
        network_.forward(found->pass, memory, images);
        device_.synchronize();
        const Tensor logits = network_.logits(found->pass);
        const std::vector<double> batch = download_values(device_, {logits.data, logits.type, logits.count()});
        out.classes = logits.c;
        out.logits.insert(out.logits.end(), batch.begin(), batch.end());
        if (progress) progress(first + n);
    }
    return out;
}

Predictions Evaluator::predict(const ImageSet& images, const NetworkMemory& memory, const std::function<void(int64_t)>& progress) {
    Predictions p = predict_batches(
        images.count(), memory,
        [&](int64_t offset, std::vector<double>& values) {
            for (size_t i = 0; i < values.size(); ++i) values[i] = 2.0 * (images.pixels[static_cast<size_t>(offset) + i] / 255.0) - 1.0;
        },
        progress);
    p.labels = images.labels;
    return p;
}

Predictions Evaluator::predict(const std::vector<double>& images, const NetworkMemory& memory) {
    const int64_t pixels = int64_t{shape_.height} * shape_.width * shape_.channels;
    Predictions p = predict_batches(
        static_cast<int64_t>(images.size()) / pixels, memory,
        [&](int64_t offset, std::vector<double>& values) { std::copy_n(images.begin() + offset, values.size(), values.begin()); }, nullptr);
    p.labels.assign(static_cast<size_t>(static_cast<int64_t>(images.size()) / pixels), 0);
    return p;
}

}  // namespace jem
