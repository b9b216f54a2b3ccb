#include "engine/evaluation/classification.h"

#include <algorithm>
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

std::vector<int64_t> surest_of_each_class(const Predictions& p, int64_t percent) {
    struct Image {
        int64_t number;
        double confidence;
    };
    std::vector<std::vector<Image>> classes(static_cast<size_t>(p.classes));
    for (int64_t n = 0; n < p.count(); ++n) {
        const Classified c = classified(p, n);
        classes[static_cast<size_t>(c.best)].push_back({n, c.confidence});
    }
    std::vector<int64_t> chosen;
    for (std::vector<Image>& images : classes) {
        std::stable_sort(images.begin(), images.end(), [](const Image& a, const Image& b) { return a.confidence > b.confidence; });
        images.resize(images.size() * static_cast<size_t>(percent) / 100);
        for (const Image& image : images) chosen.push_back(image.number);
    }
    return chosen;
}

}  // namespace jem
