#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/evaluation/classification.h"
#include "engine/evaluation/metric.h"

namespace jem {
namespace {

constexpr std::array kBins = {15, 20};  // as papers and the authors' code have them
constexpr int kAdaptiveBins = 15;
constexpr const char* kAdaptiveFile = "reliability_adaptive.csv";

std::string file_name(int bins) { return fmt::format("reliability_{}.csv", bins); }

std::string reliability_csv(const std::vector<CalibrationBin>& bins) {
    std::string csv = "lower,upper,count,confidence,accuracy\n";
    for (const CalibrationBin& bin : bins) {
        csv += fmt::format("{},{},{},", bin.lower, bin.upper, bin.count);
        csv += bin.count > 0 ? fmt::format("{},{}\n", bin.confidence, bin.accuracy) : ",\n";  // an empty bin has no means
    }
    return csv;
}

void add(CalibrationBin& bin, const Classified& c, bool right) {
    ++bin.count;
    bin.confidence += c.confidence;
    bin.accuracy += right ? 1 : 0;
}

// Of sums.
void take_means(std::vector<CalibrationBin>& bins) {
    for (CalibrationBin& bin : bins) {
        if (bin.count == 0) continue;
        bin.confidence /= static_cast<double>(bin.count);
        bin.accuracy /= static_cast<double>(bin.count);
    }
}

MetricResult measure(Evaluation& e) {
    const Predictions& p = e.predictions();
    MetricResult result;
    for (const int bins : kBins) {
        result.values[fmt::format("ece_{}", bins)] = expected_calibration_error(p, bins);
        result.files.emplace_back(file_name(bins), reliability_csv(calibration_bins(p, bins)));
    }
    const std::vector<CalibrationBin> adaptive = adaptive_calibration_bins(p, kAdaptiveBins);
    result.values["ece_adaptive"] = expected_calibration_error(adaptive);
    result.files.emplace_back(kAdaptiveFile, reliability_csv(adaptive));
    return result;
}

}  // namespace

std::vector<CalibrationBin> calibration_bins(const Predictions& p, int bins) {
    std::vector<CalibrationBin> out(static_cast<size_t>(bins));
    for (size_t b = 0; b < out.size(); ++b) {
        out[b].lower = static_cast<double>(b) / bins;
        out[b].upper = static_cast<double>(b + 1) / bins;
    }
    for (int64_t n = 0; n < p.count(); ++n) {
        const Classified c = classified(p, n);
        const double bin_above = std::ceil(c.confidence * bins);
        const int index = bin_above > 1 ? std::min(static_cast<int>(bin_above), bins) - 1 : 0;  // a NaN belongs to the first
        add(out[static_cast<size_t>(index)], c, c.right(p, n));
    }
    take_means(out);
    return out;
}

std::vector<CalibrationBin> adaptive_calibration_bins(const Predictions& p, int bins) {
    std::vector<double> confidence;
    std::vector<int64_t> order(static_cast<size_t>(p.count()));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (const int64_t n : order) {
        const double c = classified(p, n).confidence;
        confidence.push_back(std::isnan(c) ? 0 : c);  // a NaN belongs to the first bin, and has no place in an order
    }
    std::stable_sort(order.begin(), order.end(), [&confidence](int64_t a, int64_t b) {
        return confidence[static_cast<size_t>(a)] < confidence[static_cast<size_t>(b)];
    });
    std::vector<CalibrationBin> out(static_cast<size_t>(bins));
    for (int64_t b = 0; b < bins; ++b) {
        CalibrationBin& bin = out[static_cast<size_t>(b)];
        for (int64_t place = p.count() * b / bins; place < p.count() * (b + 1) / bins; ++place) {
            const int64_t n = order[static_cast<size_t>(place)];
            bin.upper = confidence[static_cast<size_t>(n)];
            if (bin.count == 0) bin.lower = bin.upper;
            const Classified c = classified(p, n);
            add(bin, c, c.right(p, n));
        }
    }
    take_means(out);
    return out;
}

double expected_calibration_error(const std::vector<CalibrationBin>& bins) {
    double sum = 0, count = 0;
    for (const CalibrationBin& bin : bins) {
        sum += static_cast<double>(bin.count) * std::fabs(bin.accuracy - bin.confidence);
        count += static_cast<double>(bin.count);
    }
    return sum / count;
}

double expected_calibration_error(const Predictions& p, int bins) { return expected_calibration_error(calibration_bins(p, bins)); }

Metric calibration_metric() {
    Metric metric{.name = "ece", .help = "calibration errors, and reliability_*.csv for its diagram", .measure = measure};
    for (const int bins : kBins) metric.file_names.push_back(file_name(bins));
    metric.file_names.emplace_back(kAdaptiveFile);
    return metric;
}

}  // namespace jem
