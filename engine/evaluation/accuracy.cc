#include "engine/evaluation/classification.h"
#include "engine/evaluation/metric.h"

namespace jem {

double accuracy(const Predictions& p) {
    int64_t hits = 0;
    for (int64_t n = 0; n < p.count(); ++n) hits += classified(p, n).right(p, n) ? 1 : 0;
    return static_cast<double>(hits) / static_cast<double>(p.count());
}

Metric accuracy_metric() {
    return {.name = "accuracy", .help = "the share of images that are classified right, with nll and brier", .measure = [](Evaluation& e) {
                const Predictions& p = e.predictions();
                return MetricResult{.values = {{"accuracy", accuracy(p)}, {"nll", negative_log_likelihood(p)}, {"brier", brier_score(p)}},
                                    .files = {}};
            }};
}

}  // namespace jem
