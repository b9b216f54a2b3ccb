#include "engine/evaluation/detection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <queue>
#include <utility>

#include "data/input_error.h"

namespace jem {
namespace {

// How many of each set score at least `threshold`.
struct Passed {
    double threshold = 0;
    int64_t in = 0, out = 0;
};

void check_scores(std::span<const double> scores, const char* what) {
    if (scores.empty())
        throw InputError(fmt::format("cannot compare the scores of two sets ({} is empty). Give it at least one image.", what));
    const auto bad = std::find_if(scores.begin(), scores.end(), [](double s) { return std::isnan(s); });
    if (bad == scores.end()) return;
    throw InputError(
        fmt::format("cannot compare the scores of two sets (image {} of {} has a score that is not a number). The network has diverged, or "
                    "its input is damaged: check both.",
                    bad - scores.begin(), what));
}

// One for each distinct score, highest first.
std::vector<Passed> passed_by_threshold(std::span<const double> in, std::span<const double> out) {
    check_scores(in, "the network's own set");
    check_scores(out, "the strangers' set");
    std::vector<double> own(in.begin(), in.end()), strange(out.begin(), out.end());
    std::sort(own.begin(), own.end(), std::greater<>());
    std::sort(strange.begin(), strange.end(), std::greater<>());
    std::vector<Passed> passed;
    size_t i = 0, j = 0;
    while (i < own.size() || j < strange.size()) {
        const double threshold = j == strange.size() || (i < own.size() && own[i] >= strange[j]) ? own[i] : strange[j];
        while (i < own.size() && own[i] == threshold) ++i;
        while (j < strange.size() && strange[j] == threshold) ++j;
        passed.push_back({threshold, static_cast<int64_t>(i), static_cast<int64_t>(j)});
    }
    return passed;
}

// Twice the area below the curve, in counts: exact below 2^63.
double area(const std::vector<Passed>& passed) {
    int64_t twice = 0;
    Passed before;
    for (const Passed& p : passed) {
        twice += (p.out - before.out) * (p.in + before.in);
        before = p;
    }
    return static_cast<double>(twice) / 2 / static_cast<double>(before.in) / static_cast<double>(before.out);
}

// `found` and `wrong`: counts that grow from threshold to threshold.
template <typename Found, typename Wrong>
double average_precision(const std::vector<Passed>& passed, const Found& found, const Wrong& wrong) {
    double sum = 0;
    int64_t before = 0;
    for (const Passed& p : passed) {
        const int64_t now = found(p);
        if (now > before) sum += static_cast<double>(now - before) * static_cast<double>(now) / static_cast<double>(now + wrong(p));
        before = now;
    }
    return sum / static_cast<double>(before);
}

// Of point p from the line through a and b, in units of the line's length.
double distance_from_line(const RocPoint& p, const RocPoint& a, const RocPoint& b) {
    const double x = b.false_positive_rate - a.false_positive_rate, y = b.true_positive_rate - a.true_positive_rate;
    return std::fabs(x * (p.true_positive_rate - a.true_positive_rate) - y * (p.false_positive_rate - a.false_positive_rate)) /
           std::hypot(x, y);
}

struct Stretch {
    double distance;            // of the farthest point from the line between its ends
    size_t first, last, split;  // numbers of points

    bool operator<(const Stretch& other) const { return distance != other.distance ? distance < other.distance : first > other.first; }
};

Stretch stretch(const std::vector<RocPoint>& points, size_t first, size_t last) {
    Stretch s{0, first, last, first};
    for (size_t i = first + 1; i < last; ++i) {
        const double distance = distance_from_line(points[i], points[first], points[last]);
        if (distance > s.distance) s.distance = distance, s.split = i;
    }
    return s;
}

std::pair<double, double> range_of(std::span<const double> set) {
    if (set.empty()) throw InputError("cannot make a histogram (a set is empty). Give it at least one image.");
    double low = set[0], high = set[0];
    for (size_t i = 0; i < set.size(); ++i) {
        if (!std::isfinite(set[i]))
            throw InputError(fmt::format(
                "cannot make a histogram (score {} is {}). The network has diverged, or its input is damaged: check both.", i, set[i]));
        low = std::min(low, set[i]);
        high = std::max(high, set[i]);
    }
    return {low, high};
}

Histogram histogram_over(std::span<const double> set, int bins, double low, double high) {
    assert(bins > 0);
    if (low == high) low -= 0.5, high += 0.5;
    Histogram h;
    const double width = (high - low) / bins;
    for (int b = 0; b < bins; ++b) h.edges.push_back(low + b * width);
    h.edges.push_back(high);
    h.counts.resize(static_cast<size_t>(bins));
    for (const double score : set) {
        // the quotient's rounding may miss the edges' by one
        auto b = static_cast<size_t>(std::clamp((score - low) / width, 0.0, bins - 1.0));
        while (b > 0 && score < h.edges[b]) --b;
        while (b + 1 < h.counts.size() && score >= h.edges[b + 1]) ++b;
        ++h.counts[b];
    }
    for (size_t b = 0; b < h.counts.size(); ++b)
        h.densities.push_back(static_cast<double>(h.counts[b]) / static_cast<double>(set.size()) / (h.edges[b + 1] - h.edges[b]));
    return h;
}

}  // namespace

Detection detection(std::span<const double> in, std::span<const double> out) {
    const std::vector<Passed> passed = passed_by_threshold(in, out);
    Detection d;
    d.auroc = area(passed);
    d.aupr_in = average_precision(
        passed, [](const Passed& p) { return p.in; }, [](const Passed& p) { return p.out; });

    // Strangers are found from the lowest score up: what is left above each threshold, in reverse.
    const Passed all = passed.back();
    std::vector<Passed> rest;
    for (size_t i = passed.size(); i-- > 0;) {
        const Passed above = i > 0 ? passed[i - 1] : Passed{};
        rest.push_back({-passed[i].threshold, all.in - above.in, all.out - above.out});
    }
    d.aupr_out = average_precision(
        rest, [](const Passed& p) { return p.out; }, [](const Passed& p) { return p.in; });

    const auto first = std::find_if(passed.begin(), passed.end(), [&all](const Passed& p) { return p.in * 20 >= all.in * 19; });
    d.fpr95 = static_cast<double>(first->out) / static_cast<double>(all.out);
    return d;
}

std::vector<RocPoint> roc_curve(std::span<const double> in, std::span<const double> out, int64_t most) {
    assert(most >= 2);
    std::vector<RocPoint> points = {{std::numeric_limits<double>::infinity(), 0, 0}};
    for (const Passed& p : passed_by_threshold(in, out))
        points.push_back({p.threshold, static_cast<double>(p.out) / static_cast<double>(out.size()),
                          static_cast<double>(p.in) / static_cast<double>(in.size())});

    constexpr double kStraight = 1e-12;  // rounding leaves less, one image of a million more
    std::vector<size_t> kept = {0, points.size() - 1};
    std::priority_queue<Stretch> stretches;
    stretches.push(stretch(points, 0, points.size() - 1));
    while (static_cast<int64_t>(kept.size()) < most && !stretches.empty()) {
        const Stretch worst = stretches.top();
        stretches.pop();
        if (worst.distance <= kStraight) break;
        kept.push_back(worst.split);
        stretches.push(stretch(points, worst.first, worst.split));
        stretches.push(stretch(points, worst.split, worst.last));
    }
    std::sort(kept.begin(), kept.end());
    std::vector<RocPoint> curve;
    for (const size_t i : kept) curve.push_back(points[i]);
    return curve;
}

std::vector<Histogram> histograms(std::span<const std::vector<double>> sets, int bins) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const std::vector<double>& set : sets) {
        const auto range = range_of(set);
        low = std::min(low, range.first);
        high = std::max(high, range.second);
    }
    std::vector<Histogram> all;
    for (const std::vector<double>& set : sets) all.push_back(histogram_over(set, bins, low, high));
    return all;
}

Histogram histogram(std::span<const double> set, int bins) {
    const auto range = range_of(set);
    return histogram_over(set, bins, range.first, range.second);
}

}  // namespace jem
