#include "engine/evaluation/landscape.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/evaluation/metric.h"

namespace jem {
namespace {

constexpr const char *kAxis = "landscape_1d.csv", *kPlane = "landscape_2d.csv", *kLine = "landscape_line.csv";
constexpr double kTiny = 1e-10;  // keeps a filter of nothing but zeros from a division by 0

std::vector<double> weights_of(NetworkInUse& in_use) { return download_values(in_use.device(), in_use.parameters().weights()); }

// Point i of n in [low, high]; the middle of [-1, 1] is exactly 0.
double point(int64_t i, int64_t n, double low, double high) {
    return n == 1 ? (low + high) / 2 : (low * static_cast<double>(n - 1 - i) + high * static_cast<double>(i)) / static_cast<double>(n - 1);
}

class Landscape {
public:
    explicit Landscape(Evaluation& e)
        : e_(e),
          numbers_(e.first_images(e.settings().landscape.images, e.training().count())),
          in_use_(e.network()),
          predictor_(in_use_.device(), in_use_.memory(), in_use_.network(), e.network().size,
                     {.largest = std::ssize(numbers_), .energy_head = e.network().energy_head}) {
        in_use_.ready([&] { predictor_.plan(in_use_.passes()); });
    }

    NetworkInUse& in_use() { return in_use_; }
    int64_t images() const { return std::ssize(numbers_); }

    // The mean of E = -LSE over the images.
    double mean_energy(const std::vector<double>& weights, const std::vector<double>& statistics) {
        upload_values(in_use_.device(), in_use_.parameters().weights(), weights);
        upload_values(in_use_.device(), in_use_.parameters().statistics(), statistics);
        in_use_.network().prepare(in_use_.parameters().weights(), in_use_.parameters().statistics());
        const Predictions p = predictor_.predict(images(), chosen_images(predictor_, e_.training(), numbers_), in_use_.passes());
        return -std::accumulate(p.lse.begin(), p.lse.end(), 0.0) / static_cast<double>(images());
    }
    std::string row(double energy) const { return fmt::format("{},{}\n", energy, energy * static_cast<double>(images())); }

private:
    Evaluation& e_;
    std::vector<int64_t> numbers_;
    NetworkInUse in_use_;
    Predictor predictor_;
};

std::vector<double> moved(const std::vector<double>& from, double a, const std::vector<double>& along, double b = 0,
                          const std::vector<double>& other = {}) {
    std::vector<double> to = from;
    for (size_t i = 0; i < to.size(); ++i) to[i] += a * along[i] + (b != 0 ? b * other[i] : 0);
    return to;
}

std::vector<double> between(const std::vector<double>& from, const std::vector<double>& to, double a) {
    std::vector<double> out(from.size());
    for (size_t i = 0; i < out.size(); ++i) out[i] = (1 - a) * from[i] + a * to[i];
    return out;
}

MetricResult measure(Evaluation& e) {
    const LandscapeSettings& s = e.settings().landscape;
    Landscape landscape(e);
    NetworkInUse& in_use = landscape.in_use();
    const std::vector<double> weights = weights_of(in_use), statistics = download_values(in_use.device(), in_use.parameters().statistics());
    const uint64_t seed = e.settings().seed;
    const std::vector<double> d1 = filter_normalised_direction(in_use.network(), weights, seed, 0),
                              d2 = filter_normalised_direction(in_use.network(), weights, seed, 1);
    const auto energy = [&](const std::string& name, const std::vector<double>& w, const std::vector<double>& stats) {
        return e.journal().piece(fmt::format("landscape {} images {}", landscape.images(), name),
                                 [&] { return std::vector{landscape.mean_energy(w, stats)}; })[0];
    };
    MetricResult result;
    nlohmann::ordered_json values = {{"images", landscape.images()}, {"energy", energy("centre", weights, statistics)}};
    if (s.points > 0) {
        std::string csv = "a,mean_energy,sum_energy\n";
        double low = HUGE_VAL, high = -HUGE_VAL;
        for (int64_t i = 0; i < s.points; ++i) {
            const double a = point(i, s.points, -1, 1);
            const double mean = energy(fmt::format("axis {}", a), moved(weights, a, d1), statistics);
            csv += fmt::format("{},{}", a, landscape.row(mean));
            low = std::min(low, mean), high = std::max(high, mean);
            e.progress("Energy along a line", i + 1, s.points);
        }
        values["lowest_1d"] = low, values["highest_1d"] = high;
        result.files.emplace_back(kAxis, csv);
    }
    if (s.points_2d > 0) {
        std::string csv = "a,b,mean_energy,sum_energy\n";
        const int64_t total = s.points_2d * s.points_2d;
        for (int64_t i = 0; i < total; ++i) {
            const double a = point(i / s.points_2d, s.points_2d, -1, 1), b = point(i % s.points_2d, s.points_2d, -1, 1);
            csv += fmt::format("{},{},{}", a, b,
                               landscape.row(energy(fmt::format("plane {} {}", a, b), moved(weights, a, d1, b, d2), statistics)));
            e.progress("Energy over a plane", i + 1, total);
        }
        result.files.emplace_back(kPlane, csv);
    }
    if (s.to) {
        s.to(in_use.parameters(), in_use.network());
        const std::vector<double> end = weights_of(in_use),
                                  end_statistics = download_values(in_use.device(), in_use.parameters().statistics());
        std::string csv = "a,mean_energy,sum_energy\n";
        for (int64_t i = 0; i < s.points; ++i) {
            const double a = point(i, s.points, 0, 1);
            csv += fmt::format(
                "{},{}", a,
                landscape.row(energy(fmt::format("between {}", a), between(weights, end, a), between(statistics, end_statistics, a))));
            e.progress("Energy between two networks", i + 1, s.points);
        }
        result.files.emplace_back(kLine, csv);
    }
    result.values["landscape"] = values;
    return result;
}

Cost cost(Evaluation& e) {
    const LandscapeSettings& s = e.settings().landscape;
    const int64_t points = 1 + s.points + s.points_2d * s.points_2d + (s.to ? s.points : 0);
    return {.forward = static_cast<double>(points * s.images)};
}

}  // namespace

std::vector<double> filter_normalised_direction(const Network& network, const std::vector<double>& weights, uint64_t seed,
                                                uint32_t number) {
    std::vector<double> d(weights.size(), 0.0);
    for (const TensorInfo& tensor : network.parameters()) {
        if (tensor.shape.size() < 2 || tensor.fan_in == 0) continue;  // biases; what norms multiply and add
        const int64_t filters = tensor.shape[0], size = tensor.count() / filters;
        for (int64_t f = 0; f < filters; ++f) {
            const int64_t begin = tensor.offset + f * size;
            double own = 0, drawn = 0;
            for (int64_t i = begin; i < begin + size; ++i) {
                const auto at = static_cast<size_t>(i);
                d[at] = static_cast<double>(
                    normals_of(random4(seed, RandomStream::landscape, number, 0, static_cast<uint64_t>(i / 4))).v[i % 4]);
                own += weights[at] * weights[at];
                drawn += d[at] * d[at];
            }
            const double scale = std::sqrt(own) / (std::sqrt(drawn) + kTiny);
            for (int64_t i = begin; i < begin + size; ++i) d[static_cast<size_t>(i)] *= scale;
        }
    }
    return d;
}

Metric landscape_metric() {
    return {.name = "landscape",
            .help = "the energy around the weights, landscape_*.csv",
            .measure = measure,
            .file_names = {kAxis, kPlane, kLine},
            .cost = cost};
}

}  // namespace jem
