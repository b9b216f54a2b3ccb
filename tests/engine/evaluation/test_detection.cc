// Scores of strangers against scikit-learn and numpy, and what holds of any scores.
#include "engine/evaluation/detection.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "tests/engine/evaluation/golden_metrics.h"

namespace jem {
namespace {

constexpr Tolerance kRounding = {1e-13, 0};  // of a sum of some hundred shares

// Area below straight lines between the points.
double area_below(const std::vector<RocPoint>& curve) {
    double area = 0;
    for (size_t i = 1; i < curve.size(); ++i)
        area += (curve[i].false_positive_rate - curve[i - 1].false_positive_rate) *
                (curve[i].true_positive_rate + curve[i - 1].true_positive_rate) / 2;
    return area;
}

std::string error_of(const Values& in, const Values& out) {
    try {
        detection(in, out);
    } catch (const InputError& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("detection_agrees_with_scikit_learn") {
    const auto cases = golden_metrics("detection");
    for (const auto& item : cases.items()) {
        const auto& want = item.value();
        const Detection got = detection(golden_scores(want["inside"]), golden_scores(want["outside"]));
        check_close(item.key() + ": auroc, aupr_in, aupr_out, fpr95", {got.auroc, got.aupr_in, got.aupr_out, got.fpr95},
                    {want["auroc"], want["aupr_in"], want["aupr_out"], want["fpr95"]}, kRounding);
    }
}

TEST_CASE("a_set_is_told_from_itself_by_chance_alone") {
    for (const uint64_t seed : {1, 2, 3}) {
        TestData data(seed);
        Values scores = data.normals(997);
        for (int i = 0; i < 50; ++i) scores.push_back(scores[static_cast<size_t>(data.index(997))]);
        Values shuffled(scores.rbegin(), scores.rend());
        CHECK(detection(scores, shuffled).auroc == 0.5);
    }
}

TEST_CASE("swapping_the_sets_and_negating_the_scores_changes_roles_alone") {
    TestData data(4);
    Values in = data.normals(200, 1), out = data.normals(300);
    const Detection there = detection(in, out);
    for (double& s : in) s = -s;
    for (double& s : out) s = -s;
    const Detection back = detection(out, in);
    CHECK(there.auroc == doctest::Approx(back.auroc).epsilon(1e-14));
    CHECK(there.aupr_in == doctest::Approx(back.aupr_out).epsilon(1e-14));
    CHECK(there.aupr_out == doctest::Approx(back.aupr_in).epsilon(1e-14));
}

TEST_CASE("scores_that_are_not_numbers_and_empty_sets_are_refused") {
    const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
    CHECK(error_of({1, 2}, {0, nan}).find("image 1 of the strangers' set") != std::string::npos);
    CHECK(error_of({nan, 2}, {0}).find("image 0 of the network's own set") != std::string::npos);
    CHECK(error_of({}, {0}).find("is empty") != std::string::npos);
    CHECK(error_of({1}, {}).find("is empty") != std::string::npos);
    CHECK(detection(Values{infinity, 1}, Values{-infinity, 0}).auroc == 1);
    CHECK_THROWS_AS(histogram(Values{1, infinity}, 10), InputError);
    CHECK_THROWS_AS(histogram(Values{}, 10), InputError);
}

TEST_CASE("a_roc_curve_of_every_point_has_the_area_and_a_thin_one_nearly") {
    TestData data(6);
    const Values in = data.normals(3000, 1), out = data.normals(2000);
    const double auroc = detection(in, out).auroc;
    const auto whole = roc_curve(in, out, 1 << 20), thin = roc_curve(in, out, 100);
    CHECK(area_below(whole) == doctest::Approx(auroc).epsilon(1e-12));
    CHECK(whole.size() > 1000);
    CHECK(thin.size() == 100);
    CHECK(std::fabs(area_below(thin) - auroc) < 2e-3);
    for (size_t i = 1; i < thin.size(); ++i) {
        CHECK(thin[i].threshold < thin[i - 1].threshold);
        CHECK(thin[i].true_positive_rate >= thin[i - 1].true_positive_rate);
        CHECK(thin[i].false_positive_rate >= thin[i - 1].false_positive_rate);
    }
    CHECK(thin.front().false_positive_rate + thin.front().true_positive_rate == 0);
    CHECK(thin.back().false_positive_rate * thin.back().true_positive_rate == 1);
}

TEST_CASE("a_thinned_roc_curve_keeps_its_corner") {
    // 50 of its own, all above 60 strangers: up to (0, 1), then right.
    const auto curve = roc_curve(golden_scores({7, 50, 3, 4, 0}), golden_scores({8, 60, 0, 1, 0}), 3);
    REQUIRE(curve.size() == 3);
    CHECK(curve[1].false_positive_rate == 0);
    CHECK(curve[1].true_positive_rate == 1);
    CHECK(roc_curve(Values{1, 1}, Values{1, 1, 1}, 10).size() == 2);
}

TEST_CASE("histograms_agree_with_numpy") {
    const auto want = golden_metrics("histogram");
    const std::vector<Values> sets = {golden_scores({21, 300, -3, 1, 0}), golden_scores({22, 200, 0, 4, 2})};
    const auto got = histograms(sets, 100);
    REQUIRE(got.size() == 2);
    for (size_t i = 0; i < 2; ++i) {
        check_close("edges", got[i].edges, want["edges"], {1e-14, 0});
        CHECK(got[i].counts == want["counts"][i].get<std::vector<int64_t>>());
        check_close("densities", got[i].densities, want["densities"][i], {0, 1e-12});
    }
    const Histogram own = histogram(sets[1], 100);
    check_close("own edges", own.edges, want["own_edges"], {1e-14, 0});
    CHECK(own.counts == want["own_counts"].get<std::vector<int64_t>>());
}

TEST_CASE("a_histogram_of_one_value_has_a_range") {
    const Histogram h = histogram(Values{2, 2, 2}, 4);
    CHECK(h.edges == Values{1.5, 1.75, 2, 2.25, 2.5});
    CHECK(h.counts == std::vector<int64_t>{0, 0, 3, 0});
    CHECK(h.densities[2] == 4);
}

}  // namespace jem
