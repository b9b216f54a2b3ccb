#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/evaluation/classification.h"
#include "engine/evaluation/metric.h"

namespace jem {
namespace {

constexpr std::array kBins = {15, 20};  // as papers and the authors' code have them

std::string file_name(int bins) { return fmt::format("reliability_{}.csv", bins); }

std::string reliability_csv(const Predictions& p, int bins) {
    std::string csv = "lower,upper,count,confidence,accuracy\n";
    int index = 0;
    for (const CalibrationBin& bin : calibration_bins(p, bins)) {
        csv += fmt::format("{},{},{},", static_cast<double>(index) / bins, static_cast<double>(index + 1) / bins, bin.count);
        csv += bin.count > 0 ? fmt::format("{},{}\n", bin.confidence, bin.accuracy) : ",\n";  // an empty bin has no means
        ++index;
    }
    return csv;
}

MetricResult measure(Evaluation& e) {
    const Predictions& p = e.predictions();
    MetricResult result;
    for (const int bins : kBins) {
        result.values[fmt::format("ece_{}", bins)] = expected_calibration_error(p, bins);
        result.files.emplace_back(file_name(bins), reliability_csv(p, bins));
    }
    return result;
}

}  // namespace

std::vector<CalibrationBin> calibration_bins(const Predictions& p, int bins) {
    std::vector<CalibrationBin> out(static_cast<size_t>(bins));
    for (int64_t n = 0; n < p.count(); ++n) {
        const Classified c = classified(p, n);
        const double bin_above = std::ceil(c.confidence * bins);
        const int index = bin_above > 1 ? std::min(static_cast<int>(bin_above), bins) - 1 : 0;  // a NaN belongs to the first
        CalibrationBin& bin = out[static_cast<size_t>(index)];
        ++bin.count;
        bin.confidence += c.confidence;
        bin.accuracy += c.right(p, n) ? 1 : 0;
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

Metric calibration_metric() {
    Metric metric{.name = "ece", .help = "calibration errors, and reliability_*.csv for its diagram", .measure = measure};
    for (const int bins : kBins) metric.file_names.push_back(file_name(bins));
    return metric;
}

}  // namespace jem
