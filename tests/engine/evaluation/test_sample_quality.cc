// Distances and scores of samples against pytorch-fid, torchmetrics and numpy, and what holds of any features.
#include "engine/evaluation/sample_quality.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "data/input_error.h"
#include "engine/evaluation/frechet.h"
#include "tests/engine/evaluation/golden_metrics.h"

namespace jem {
namespace {

FeatureStatistics statistics_of(const std::vector<float>& features, int64_t dimension) {
    FeatureAccumulator accumulator(dimension);
    accumulator.add(std::span<const float>(features));
    return accumulator.statistics();
}

double variance_of(const FeatureStatistics& s) {
    double trace = 0;
    for (int64_t d = 0; d < s.dimension(); ++d) trace += s.covariance[static_cast<size_t>(d * (s.dimension() + 1))];
    return trace;
}

// Turns each pair of neighbouring numbers of each row, by an angle a pair.
std::vector<double> turned(const std::vector<float>& x, int64_t dimension) {
    std::vector<double> out(x.begin(), x.end());
    for (size_t row = 0; row < out.size(); row += static_cast<size_t>(dimension))
        for (size_t d = 0; d + 1 < static_cast<size_t>(dimension); ++d) {
            const double c = std::cos(1.0 + static_cast<double>(d)), s = std::sin(1.0 + static_cast<double>(d));
            const double a = out[row + d], b = out[row + d + 1];
            out[row + d] = c * a - s * b;
            out[row + d + 1] = s * a + c * b;
        }
    return out;
}

Features view(const std::vector<float>& x, int64_t dimension) { return {.values = x, .dimension = dimension}; }

}  // namespace

TEST_CASE("frechet_distance_agrees_with_pytorch_fid") {
    const auto cases = golden_metrics("frechet");
    for (const auto& item : cases.items()) {
        const auto& want = item.value();
        const int64_t dimension = want["reference"][2];
        const FeatureStatistics reference = statistics_of(golden_features(want["reference"]), dimension);
        const FeatureStatistics samples = statistics_of(golden_features(want["samples"]), dimension);
        CAPTURE(item.key());
        check_close("mean", reference.mean, want["mean"], {1e-12, 1e-14});
        const Values row(reference.covariance.end() - dimension, reference.covariance.end());
        check_close("covariance", row, want["covariance_row"], {1e-12, 0});
        const FrechetDistance got = frechet_distance(reference, samples);
        CHECK(std::fabs(got.distance - want["distance"].get<double>()) < 1e-10);
        CHECK(std::fabs(got.distance - want["pytorch_fid"].get<double>()) <
              3e-7);  // its root of a singular product is good to 1e-8 a feature
        CHECK(got.few_images == (std::min(reference.count, samples.count) <= dimension));
        // the distance is symmetric, whichever set is factored
        CHECK(std::fabs(got.distance - frechet_distance(samples, reference).distance) < 1e-10);
    }
}

TEST_CASE("a_set_has_no_distance_from_itself_whether_it_spans_all_features_or_not") {
    for (const int64_t count : {2, 5, 40, 300}) {
        const FeatureStatistics s = statistics_of(golden_features(81, count, 40, 3), 40);
        CAPTURE(count);
        CHECK(frechet_distance(s, s).distance < 1e-12 * variance_of(s));
        CHECK(covariance_factor(s).rank == std::min<int64_t>(count - 1, 40));
    }
    const FeatureStatistics same = statistics_of(std::vector<float>(30, 0.5f), 10);
    CHECK(frechet_distance(same, same).distance == 0);
}

TEST_CASE("halves_of_a_set_lie_nearer_than_another_set") {
    const auto a = golden_features(82, 400, 10, 0), b = golden_features(83, 200, 10, 0.5);
    const std::vector<float> first(a.begin(), a.begin() + 2000), second(a.begin() + 2000, a.end());
    const double halves = frechet_distance(statistics_of(first, 10), statistics_of(second, 10)).distance;
    const double others = frechet_distance(statistics_of(first, 10), statistics_of(b, 10)).distance;
    CHECK(halves > 0);
    CHECK(halves < 0.2);
    CHECK(others > 2);  // ten features are off by a half
}

TEST_CASE("frechet_distance_does_not_see_a_rotation_of_both_sets") {
    for (const int64_t count : {6, 100}) {
        const auto a = golden_features(84, 100, 12, 0), b = golden_features(85, count, 12, 0.25);
        FeatureAccumulator turned_a(12), turned_b(12);
        turned_a.add(turned(a, 12));
        turned_b.add(turned(b, 12));
        const double straight = frechet_distance(statistics_of(a, 12), statistics_of(b, 12)).distance;
        CHECK(frechet_distance(turned_a.statistics(), turned_b.statistics()).distance == doctest::Approx(straight).epsilon(1e-11));
    }
}

TEST_CASE("statistics_do_not_depend_on_batches") {
    const auto a = golden_features(86, 700, 8, 1000);
    const FeatureStatistics whole = statistics_of(a, 8);
    FeatureAccumulator pieces(8);
    for (size_t row = 0, take = 1; row < 700; row += take, take = std::min<size_t>(take * 3, 700 - row))
        pieces.add(std::span<const float>(a).subspan(row * 8, std::min<size_t>(take, 700 - row) * 8));
    CHECK(pieces.count() == 700);
    check_close("mean", pieces.statistics().mean, whole.mean, {0, 1e-14});
    check_close("covariance", pieces.statistics().covariance, whole.covariance, {1e-12, 0});
}

TEST_CASE("features_without_a_spread_and_features_that_are_not_finite_are_refused") {
    FeatureAccumulator accumulator(4);
    CHECK_THROWS_AS(accumulator.statistics(), InputError);
    accumulator.add(Values{1, 2, 3, 4});
    CHECK_THROWS_AS(accumulator.statistics(), InputError);
    accumulator.add(Values{1, 2, 3, 5});
    CHECK(accumulator.statistics().covariance.back() == doctest::Approx(0.5));
    CHECK_THROWS_AS(frechet_distance(accumulator.statistics(), statistics_of({1, 2, 3, 4}, 2)), InputError);
    accumulator.add(Values{1, 2, std::nan(""), 5});
    CHECK_THROWS_AS(accumulator.statistics(), InputError);

    const std::vector<float> bad = {1, 2, std::numeric_limits<float>::infinity(), 4, 5, 6, 7, 8, 9, 1, 2, 3}, fine(12, 1);
    CHECK_THROWS_AS(kernel_distance(view(bad, 2), view(fine, 2), {}), InputError);
    CHECK_THROWS_AS(coverage(view(fine, 2), view(bad, 2), {}), InputError);
    CHECK_THROWS_AS(coverage(view(fine, 2), view(fine, 3), {}), InputError);
    CHECK_THROWS_AS(coverage(view(fine, 3), view(fine, 3), {}), InputError);  // four images, of which none has five neighbours
    CHECK_THROWS_AS(kernel_distance(view(fine, 12), view(fine, 12), {}), InputError);
    CHECK_THROWS_AS(inception_score(Values{0.5, 0.5}, 2, 2), InputError);
    CHECK_THROWS_AS(inception_score(Values{std::nan(""), 0.5}, 2, 1), InputError);
}

TEST_CASE("inception_score_agrees_with_numpy") {
    const auto want = golden_metrics("inception_score");
    const MeanAndDeviation got = inception_score(golden_probabilities(51, 103, 7), 7, 10);
    CHECK(got.mean == doctest::Approx(want["mean"].get<double>()).epsilon(1e-12));
    CHECK(got.deviation == doctest::Approx(want["deviation"].get<double>()).epsilon(1e-11));
}

TEST_CASE("inception_score_reaches_from_1_to_the_number_of_classes") {
    CHECK(inception_score(Values{0.25, 0.75, 0.25, 0.75}, 2, 1).mean == doctest::Approx(1));
    CHECK(inception_score(Values{1, 0, 0, 0, 1, 0, 0, 0, 1}, 3, 1).mean == doctest::Approx(3));
}

TEST_CASE("kernel_distance_agrees_with_torchmetrics_where_a_subset_is_the_set") {
    const auto want = golden_metrics("kernel");
    const auto a = golden_features(61, 40, 12, 0), b = golden_features(62, 40, 12, 0.125);
    std::vector<double> progress;
    const auto hear = [&progress](double share) { progress.push_back(share); };
    const MeanAndDeviation got = kernel_distance(view(a, 12), view(b, 12), {.subsets = 3}, hear);
    CHECK(got.mean == doctest::Approx(want["distance"].get<double>()).epsilon(1e-11));
    CHECK(got.deviation < 1e-14);
    CHECK(kernel_distance(view(a, 12), view(a, 12), {.subsets = 1}).mean == doctest::Approx(want["itself"].get<double>()).epsilon(1e-11));
    CHECK(progress == std::vector<double>{1.0 / 3, 2.0 / 3, 1});
}

TEST_CASE("kernel_distance_takes_its_subsets_by_seed_and_stream") {
    const auto a = golden_features(63, 60, 6, 0), b = golden_features(64, 50, 6, 0.25);
    const KernelDistanceOptions options = {.subsets = 20, .subset_size = 25, .seed = 1, .stream = RandomStream::held_out};
    const MeanAndDeviation once = kernel_distance(view(a, 6), view(b, 6), options),
                           again = kernel_distance(view(a, 6), view(b, 6), options);
    CHECK(once.mean == again.mean);
    CHECK(once.deviation == again.deviation);
    CHECK(once.deviation > 0);
    auto other = options;
    other.seed = 2;
    CHECK(kernel_distance(view(a, 6), view(b, 6), other).mean != once.mean);
    // subsets scatter around the estimate of the whole, whose square they estimate without bias
    const double whole = kernel_distance(view(a, 6), view(b, 6), {.subsets = 1}).mean;
    CHECK(std::fabs(once.mean - whole) < 4 * once.deviation / std::sqrt(20.0) + 0.02);
}

TEST_CASE("coverage_agrees_with_numpy") {
    const auto want = golden_metrics("neighbours");
    const auto a = golden_features(71, 120, 6, 0), b = golden_features(72, 90, 6, 0.5);
    const Coverage got = coverage(view(a, 6), view(b, 6), {});
    check_close("precision, recall, density, coverage", {got.precision, got.recall, got.density, got.coverage},
                {want["precision"], want["recall"], want["density"], want["coverage"]}, {1e-14, 0});
}

TEST_CASE("a_set_covers_itself_and_a_far_one_nothing") {
    const auto a = golden_features(73, 60, 5, 100);
    std::vector<float> twice(a);
    for (int copy = 0; copy < 6; ++copy) twice.insert(twice.end(), a.begin(), a.begin() + 25);  // balls of radius 0
    for (const auto& set : {a, twice}) {
        const Coverage itself = coverage(view(set, 5), view(set, 5), {});
        CHECK(itself.precision == 1);
        CHECK(itself.recall == 1);
        CHECK(itself.coverage == 1);
        CHECK(itself.density >= 1);
    }
    const auto far = golden_features(74, 60, 5, 200);
    const Coverage none = coverage(view(a, 5), view(far, 5), {});
    CHECK(none.precision + none.recall + none.density + none.coverage == 0);
}

TEST_CASE("coverage_of_several_blocks_is_that_of_all_distances_at_once") {
    // 1,100 and 1,050 images: two blocks each, of two features, compared one by one.
    const auto a = golden_features(75, 1100, 2, 0), b = golden_features(76, 1050, 2, 0.5);
    const auto squared = [](const std::vector<float>& x, size_t i, const std::vector<float>& y, size_t j) {
        const double u = double{x[2 * i]} - y[2 * j], v = double{x[2 * i + 1]} - y[2 * j + 1];
        return u * u + v * v;
    };
    const auto nearest = [&squared](const std::vector<float>& x) {
        std::vector<Values> all;
        for (size_t i = 0; i < x.size() / 2; ++i) {
            Values d;
            for (size_t j = 0; j < x.size() / 2; ++j)
                if (j != i) d.push_back(squared(x, i, x, j));
            std::partial_sort(d.begin(), d.begin() + 5, d.end());
            d.resize(5);
            all.push_back(d);
        }
        return all;
    };
    const auto of_a = nearest(a), of_b = nearest(b);
    int precise = 0, recalled = 0, covered = 0, balls = 0;
    for (size_t j = 0; j < 1050; ++j) {
        bool hit = false;
        for (size_t i = 0; i < 1100; ++i) {
            hit |= squared(a, i, b, j) <= of_a[i][2];
            balls += squared(a, i, b, j) <= of_a[i][4] ? 1 : 0;
        }
        precise += hit ? 1 : 0;
    }
    for (size_t i = 0; i < 1100; ++i) {
        bool hit = false, cover = false;
        for (size_t j = 0; j < 1050; ++j) {
            hit |= squared(a, i, b, j) <= of_b[j][2];
            cover |= squared(a, i, b, j) <= of_a[i][4];
        }
        recalled += hit ? 1 : 0;
        covered += cover ? 1 : 0;
    }
    double last = 0;
    const Coverage got = coverage(view(a, 2), view(b, 2), {}, [&last](double share) {
        CHECK(share > last);
        last = share;
    });
    CHECK(last == 1);
    CHECK(got.precision == precise / 1050.0);
    CHECK(got.recall == recalled / 1100.0);
    CHECK(got.coverage == covered / 1100.0);
    CHECK(got.density == balls / (5 * 1050.0));
}

}  // namespace jem
