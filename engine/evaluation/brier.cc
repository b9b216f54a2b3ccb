#include "engine/evaluation/classification.h"
#include "engine/evaluation/metric.h"

namespace jem {

double brier_score(const Predictions& p) {
    double sum = 0;
    for (int64_t n = 0; n < p.count(); ++n) {
        const std::vector<double> probability = probabilities(p, n);
        for (int64_t y = 0; y < p.classes; ++y) {
            const double error = probability[static_cast<size_t>(y)] - (y == p.labels[static_cast<size_t>(n)] ? 1 : 0);
            sum += error * error;
        }
    }
    return sum / static_cast<double>(p.count());
}

Metric brier_metric() {
    return {.name = "brier", .help = "the Brier score: the squared error of p(y|x), summed over classes", .measure = [](Evaluation& e) {
                return MetricResult{.values = {{"brier", brier_score(e.predictions())}}, .files = {}};
            }};
}

}  // namespace jem
