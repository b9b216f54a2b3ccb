// p(y|x) of one image of a set, and what is known of a whole set by it.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/network/predictor.h"

namespace jem {

struct Classified {
    int64_t best = 0;           // the first of the largest logits
    double confidence = 0;      // p(best|x)
    double log_likelihood = 0;  // log p(label|x); NaN where images have no labels

    bool right(const Predictions& p, int64_t n) const { return best == p.labels[static_cast<size_t>(n)]; }
};
Classified classified(const Predictions& p, int64_t n);
std::vector<double> probabilities(const Predictions& p, int64_t n);  // p(y|x), [classes]

// The images of each predicted class that the network is surest of, floor(percent / 100 * as many as the class has): class by class, the
// surest first, of equal ones the first image first.
std::vector<int64_t> surest_of_each_class(const Predictions& p, int64_t percent);

double accuracy(const Predictions& p);                 // in [0, 1]
double negative_log_likelihood(const Predictions& p);  // mean, in nats
double brier_score(const Predictions& p);              // mean over images of sum_y (p(y|x) - [y is the label])^2, in [0, 2] (Brier 1950)

struct CalibrationBin {
    double lower = 0, upper = 0;  // of confidences
    int64_t count = 0;
    double confidence = 0, accuracy = 0;  // means within the bin
};
// Equal bins of the confidence max_y p(y|x); bin b holds (b/n, (b+1)/n] (Guo et al. 2017).
std::vector<CalibrationBin> calibration_bins(const Predictions& p, int bins);
// As many images in each bin: sorted by confidence, of equal ones the first image first, bin b holds places N*b/bins up to N*(b+1)/bins.
// Its edges are its lowest and its highest confidence (Nguyen and O'Connor 2015).
std::vector<CalibrationBin> adaptive_calibration_bins(const Predictions& p, int bins);
// sum over bins of count / N * |accuracy - confidence|
double expected_calibration_error(const std::vector<CalibrationBin>& bins);
double expected_calibration_error(const Predictions& p, int bins);

}  // namespace jem
