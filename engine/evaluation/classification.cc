#include "engine/evaluation/classification.h"

#include <cmath>

namespace jem {

Classified classified(const Predictions& p, int64_t n) {
    const double* logits = p.logits.data() + n * p.classes;
    Classified c;
    for (int64_t y = 1; y < p.classes; ++y)
        if (logits[y] > logits[c.best]) c.best = y;
    double sum = 0;
    for (int64_t y = 0; y < p.classes; ++y) sum += std::exp(logits[y] - logits[c.best]);
    c.confidence = 1 / sum;
    c.log_likelihood = p.labels.empty() ? std::nan("") : logits[p.labels[static_cast<size_t>(n)]] - logits[c.best] - std::log(sum);
    return c;
}

std::vector<double> probabilities(const Predictions& p, int64_t n) {
    const Classified c = classified(p, n);
    const double* logits = p.logits.data() + n * p.classes;
    std::vector<double> out;
    for (int64_t y = 0; y < p.classes; ++y) out.push_back(std::exp(logits[y] - logits[c.best]) * c.confidence);
    return out;
}

}  // namespace jem
