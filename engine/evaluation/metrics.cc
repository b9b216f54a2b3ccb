#include "data/input_error.h"
#include "engine/evaluation/metric.h"

namespace jem {

const std::vector<Metric>& metrics() {
    static const std::vector<Metric> all = {accuracy_metric(),
                                            likelihood_metric(),
                                            brier_metric(),
                                            calibration_metric(),
                                            ood_metric(),
                                            pgd_metric(),
                                            apgd_metric(),
                                            landscape_metric(),
                                            frechet_metric(),
                                            inception_score_metric(),
                                            kernel_distance_metric(),
                                            coverage_metric()};
    return all;
}

const Metric& metric(const std::string& name) {
    std::string known;
    for (const Metric& m : metrics()) {
        if (m.name == name) return m;
        known += (known.empty() ? "" : ", ") + m.name;
    }
    throw InputError("There is no metric \"" + name + "\" in this build (available: " + known + "). Choose among these.");
}

}  // namespace jem
