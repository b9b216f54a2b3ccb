#include "engine/evaluation/classification.h"
#include "engine/evaluation/metric.h"

namespace jem {

double negative_log_likelihood(const Predictions& p) {
    double sum = 0;
    for (int64_t n = 0; n < p.count(); ++n) sum -= classified(p, n).log_likelihood;
    return sum / static_cast<double>(p.count());
}

Metric likelihood_metric() {
    return {.name = "nll", .help = "the mean of -log p(label|x), in nats", .measure = [](Evaluation& e) {
                return MetricResult{.values = {{"nll", negative_log_likelihood(e.predictions())}}, .files = {}};
            }};
}

}  // namespace jem
