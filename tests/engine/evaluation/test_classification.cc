// Accuracy, likelihood and calibration against cases small enough to be worked out by hand.
#include "engine/evaluation/classification.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "tests/check.h"

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

TEST_CASE("a_diverged_network_is_still_counted") {
    const double nan = std::nan("");
    const auto p = predictions(2, {{nan, nan}, {0, 1}}, {0, 1});
    CHECK(accuracy(p) >= 0.5);
    int64_t count = 0;
    for (const CalibrationBin& bin : calibration_bins(p, 15)) count += bin.count;
    CHECK(count == 2);
}

}  // namespace jem
