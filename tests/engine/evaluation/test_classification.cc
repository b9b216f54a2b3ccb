// Accuracy, likelihood and calibration against cases small enough to be worked out by hand.
#include "engine/evaluation/classification.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "engine/evaluation/intervals.h"
#include "tests/check.h"
#include "tests/engine/evaluation/golden_metrics.h"

namespace jem {
namespace {

Predictions predictions(int64_t classes, const std::vector<std::vector<double>>& rows, std::vector<int32_t> labels) {
    Predictions p;
    p.classes = classes;
    for (const auto& row : rows) p.logits.insert(p.logits.end(), row.begin(), row.end());
    p.labels = std::move(labels);
    return p;
}

// Two classes; the first has probability `confidence`.
std::vector<double> row_of(double confidence) { return {std::log(confidence / (1 - confidence)), 0.0}; }

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

TEST_CASE("accuracy_counts_rows_whose_largest_logit_is_the_labels") {
    const auto p = predictions(3, {{1, 2, 3}, {3, 2, 1}, {-1, -5, -9}, {0, 1, 0.5}}, {2, 0, 1, 1});
    CHECK(accuracy(p) == 0.75);
}

TEST_CASE("of_equal_logits_the_first_counts") {
    CHECK(accuracy(predictions(3, {{1, 1, 1}, {0, 2, 2}}, {0, 1})) == 1);
    CHECK(accuracy(predictions(3, {{1, 1, 1}, {0, 2, 2}}, {1, 2})) == 0);
}

TEST_CASE("negative_log_likelihood_is_the_mean_in_nats") {
    const auto p = predictions(2, {{0, 0}, {std::log(3.0), 0}, {std::log(3.0), 0}}, {1, 0, 1});
    CHECK(negative_log_likelihood(p) == doctest::Approx((std::log(2.0) - std::log(0.75) - std::log(0.25)) / 3).epsilon(1e-14));
    // Large logits neither overflow nor lose the small ones.
    CHECK(negative_log_likelihood(predictions(2, {{1000, 0}}, {0})) == doctest::Approx(0));
    CHECK(negative_log_likelihood(predictions(2, {{1000, 0}}, {1})) == doctest::Approx(1000).epsilon(1e-14));
    CHECK(negative_log_likelihood(predictions(2, {{-1000, -1000}}, {1})) == doctest::Approx(std::log(2.0)).epsilon(1e-14));
}

TEST_CASE("brier_score_is_the_squared_error_over_all_classes") {
    // p = (3/4, 1/4): 2/16 where the first is right, 18/16 where the second is; sure and wrong is 2, sure and right 0.
    CHECK(brier_score(predictions(2, {row_of(0.75), row_of(0.75)}, {0, 1})) == doctest::Approx((2 + 18) / 32.0).epsilon(1e-14));
    CHECK(brier_score(predictions(3, {{0, 0, 0}}, {2})) == doctest::Approx(6.0 / 9).epsilon(1e-14));
    CHECK(brier_score(predictions(2, {{1000, 0}}, {1})) == doctest::Approx(2).epsilon(1e-14));
    CHECK(brier_score(predictions(2, {{1000, 0}}, {0})) == doctest::Approx(0));
}

TEST_CASE("calibration_error_of_a_case_done_by_hand") {
    // Confidences 0.9 (right), 0.9 (wrong), 0.7 (right), 0.6 (wrong), in bins of a tenth: (0.8, 0.9], (0.6, 0.7], (0.5, 0.6].
    const auto p = predictions(2, {row_of(0.89), row_of(0.87), row_of(0.69), row_of(0.59)}, {0, 1, 0, 1});
    const auto bins = calibration_bins(p, 10);
    REQUIRE(bins.size() == 10);
    CHECK(bins[8].count == 2);
    CHECK(bins[8].confidence == doctest::Approx(0.88));
    CHECK(bins[8].accuracy == 0.5);
    CHECK(bins[6].count == 1);
    CHECK(bins[6].accuracy == 1);
    CHECK(bins[5].count == 1);
    CHECK(bins[5].accuracy == 0);
    for (const int empty : {0, 1, 2, 3, 4, 7, 9}) {
        CHECK(bins[static_cast<size_t>(empty)].count == 0);
        CHECK(bins[static_cast<size_t>(empty)].confidence == 0);
        CHECK(bins[static_cast<size_t>(empty)].accuracy == 0);
    }
    CHECK(expected_calibration_error(p, 10) == doctest::Approx(0.5 * 0.38 + 0.25 * 0.31 + 0.25 * 0.59));
    // One bin: the difference of the means, where errors of opposite sign cancel.
    CHECK(expected_calibration_error(p, 1) == doctest::Approx(std::fabs(0.5 - (0.89 + 0.87 + 0.69 + 0.59) / 4)));
}

TEST_CASE("a_confidence_on_an_edge_belongs_to_the_bin_below") {
    // 1/2 and 1/4 are exact: they end (0.45, 0.5] and (0.2, 0.25] of 20 bins.
    const auto half = calibration_bins(predictions(2, {{0, 0}}, {0}), 20);
    const auto quarter = calibration_bins(predictions(4, {{0, 0, 0, 0}}, {0}), 20);
    CHECK(half[9].count == 1);
    CHECK(quarter[4].count == 1);
    // One step of the logit above the edge lies in the bin above.
    const auto above = calibration_bins(predictions(2, {{1e-9, 0}}, {0}), 20);
    CHECK(logistic(1e-9) > 0.5);
    CHECK(above[10].count == 1);
    // The same for 15 bins, of which no edge is 1/2: (7/15, 8/15].
    CHECK(calibration_bins(predictions(2, {{0, 0}}, {0}), 15)[7].count == 1);
}

TEST_CASE("confidence_one_belongs_to_the_last_bin") {
    for (const int n : {1, 15, 20}) {
        const auto bins = calibration_bins(predictions(2, {{1000, 0}, {0, 40}}, {0, 1}), n);
        CHECK(bins.back().count == 2);
        CHECK(bins.back().confidence == doctest::Approx(1));
        CHECK(bins.back().accuracy == 1);
    }
    CHECK(expected_calibration_error(predictions(2, {{1000, 0}}, {0}), 20) == 0);
    CHECK(expected_calibration_error(predictions(2, {{1000, 0}}, {1}), 20) == 1);
}

TEST_CASE("bins_hold_every_row_once") {
    TestData data(5);
    Predictions p;
    p.classes = 10;
    p.logits = data.normals(10 * 500, 0, 3);
    for (int i = 0; i < 500; ++i) p.labels.push_back(static_cast<int32_t>(data.index(10)));
    for (const int n : {1, 7, 15, 20}) {
        int64_t count = 0;
        double hits = 0, ece = 0;
        const auto bins = calibration_bins(p, n);
        for (size_t b = 0; b < bins.size(); ++b) {
            count += bins[b].count;
            hits += static_cast<double>(bins[b].count) * bins[b].accuracy;
            ece += static_cast<double>(bins[b].count) / 500 * std::fabs(bins[b].accuracy - bins[b].confidence);
            if (bins[b].count == 0) continue;
            CHECK(bins[b].confidence > static_cast<double>(b) / n);
            CHECK(bins[b].confidence <= static_cast<double>(b + 1) / n + 1e-12);
        }
        CHECK(count == 500);
        CHECK(hits / 500 == doctest::Approx(accuracy(p)));
        CHECK(expected_calibration_error(p, n) == doctest::Approx(ece));
    }
}

TEST_CASE("calibration_errors_agree_with_torchmetrics_and_numpy") {
    const auto want = golden_metrics("calibration");
    Predictions p;
    p.classes = 5;
    for (const double v : golden_probabilities(31, 401, 5)) p.logits.push_back(std::log(v));
    TestData draws(32);
    for (int n = 0; n < 401; ++n) p.labels.push_back(static_cast<int32_t>(draws.index(5)));
    const double f32 = 1e-6;  // torchmetrics bins in it
    CHECK(expected_calibration_error(p, 15) == doctest::Approx(want["ece_15"].get<double>()).epsilon(f32));
    CHECK(expected_calibration_error(p, 20) == doctest::Approx(want["ece_20"].get<double>()).epsilon(f32));
    CHECK(expected_calibration_error(adaptive_calibration_bins(p, 15)) ==
          doctest::Approx(want["ece_adaptive"].get<double>()).epsilon(1e-12));
}

TEST_CASE("adaptive_bins_hold_as_many_images_each_in_order_of_confidence") {
    TestData data(7);
    Predictions p;
    p.classes = 3;
    p.logits = data.normals(3 * 100, 0, 2);
    p.labels.assign(100, 0);
    const auto bins = adaptive_calibration_bins(p, 15);
    int64_t count = 0;
    double before = 0;
    for (const CalibrationBin& bin : bins) {
        CHECK(bin.count >= 6);
        CHECK(bin.count <= 7);
        CHECK(bin.lower >= before);
        CHECK(bin.confidence >= bin.lower);
        CHECK(bin.confidence <= bin.upper + 1e-12);
        before = bin.upper;
        count += bin.count;
    }
    CHECK(count == 100);
    // Of equal confidences the first image comes first: right, right, wrong, wrong.
    const auto ties = adaptive_calibration_bins(predictions(2, {{1, 0}, {1, 0}, {1, 0}, {1, 0}}, {0, 0, 1, 1}), 2);
    CHECK(ties[0].accuracy == 1);
    CHECK(ties[1].accuracy == 0);
    // fewer images than bins
    const auto few = adaptive_calibration_bins(predictions(2, {row_of(0.75)}, {0}), 15);
    CHECK(few.size() == 15);
    CHECK(expected_calibration_error(few) == doctest::Approx(0.25));
}

TEST_CASE("a_calibrated_draw_has_an_error_within_its_sampling_error") {
    // Labels drawn by the network's own p(y|x): a bin of n images has a gap of mean sqrt(2 / pi * p (1 - p) / n), at most.
    TestData data(8);
    Predictions p;
    p.classes = 4;
    const int64_t count = 20000;
    p.logits = data.normals(4 * count, 0, 2);
    for (int64_t n = 0; n < count; ++n) {
        const double* z = p.logits.data() + 4 * n;
        double left = data.uniform(0, 1) * (std::exp(z[0]) + std::exp(z[1]) + std::exp(z[2]) + std::exp(z[3]));
        int32_t y = 0;
        while (y < 3 && left >= std::exp(z[y])) left -= std::exp(z[y++]);
        p.labels.push_back(y);
    }
    for (const auto& bins : {calibration_bins(p, 15), calibration_bins(p, 20), adaptive_calibration_bins(p, 15)}) {
        double expected = 0, variance = 0;
        for (const CalibrationBin& bin : bins) {
            const double spread = std::sqrt(bin.confidence * (1 - bin.confidence) * static_cast<double>(bin.count));  // of count * gap
            expected += std::sqrt(2 / 3.14159265358979) * spread / static_cast<double>(count);
            variance += (1 - 2 / 3.14159265358979) * spread * spread / static_cast<double>(count) / static_cast<double>(count);
        }
        CHECK(expected_calibration_error(bins) < expected + 4 * std::sqrt(variance));
        CHECK(expected_calibration_error(bins) > expected - 4 * std::sqrt(variance));
    }
    // Sharper logits with the same labels are overconfident.
    for (double& z : p.logits) z *= 1.5;
    CHECK(expected_calibration_error(p, 15) > 0.03);
    CHECK(expected_calibration_error(adaptive_calibration_bins(p, 15)) > 0.03);
}

TEST_CASE("intervals_agree_with_scipy") {
    const auto cases = golden_metrics("wilson");
    for (const auto& want : cases) {
        const Interval got = wilson_interval(want["hits"], want["count"]);
        check_close("low, high", {got.low, got.high}, {want["low"], want["high"]}, {1e-14, 0});
    }
    CHECK(wilson_interval(0, 0).low == 0);
    CHECK(wilson_interval(0, 0).high == 1);
}

TEST_CASE("a_diverged_network_is_still_counted") {
    const double nan = std::nan("");
    const auto p = predictions(2, {{nan, nan}, {0, 1}}, {0, 1});
    CHECK(accuracy(p) >= 0.5);
    int64_t count = 0;
    for (const CalibrationBin& bin : calibration_bins(p, 15)) count += bin.count;
    for (const CalibrationBin& bin : adaptive_calibration_bins(p, 15)) count += bin.count;
    CHECK(count == 4);
}

TEST_CASE("the_surest_of_each_class_are_a_share_rounded_down_class_by_class") {
    Predictions p;
    p.classes = 3;
    // how far the best logit lies above the two others, which are 0; images 0 to 10 are of class 1, 11 and 12 of class 0, none of class 2
    const std::vector<double> above = {2, 1, 5, 3, 3, 9, 4, 8, 7, 6, 0.5, 1, 2};
    for (size_t n = 0; n < above.size(); ++n) {
        Values logits(3, 0.0);
        logits[n < 11 ? 1 : 0] = above[n];
        p.logits.insert(p.logits.end(), logits.begin(), logits.end());
    }
    CHECK(surest_of_each_class(p, 100) == std::vector<int64_t>{12, 11, 5, 7, 8, 9, 2, 6, 3, 4, 0, 1, 10});
    CHECK(surest_of_each_class(p, 90) == std::vector<int64_t>{12, 5, 7, 8, 9, 2, 6, 3, 4, 0});
    CHECK(surest_of_each_class(p, 10) == std::vector<int64_t>{5});
}

}  // namespace jem
