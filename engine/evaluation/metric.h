// A metric: what it makes of a trained network. One file each; metrics.cc lists them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/evaluation/evaluation.h"

namespace jem {

struct MetricResult {
    nlohmann::ordered_json values;                           // an object: what goes into evaluation.json
    std::vector<std::pair<std::string, std::string>> files;  // name, text: data of pictures
};

// Passes of the network, in images.
struct Cost {
    double forward = 0, gradient = 0;  // forward alone; forward and backward to the images
    double features = 0;               // forward, of the network for features

    double seconds(Evaluation& e) const {
        return (forward + kGradientCost * gradient) * e.seconds_forward() + (features > 0 ? features * e.seconds_features() : 0);
    }
};

struct Metric {
    std::string name;                          // as in --metrics
    std::string help;                          // what it measures, in a few words
    MetricResult (*measure)(Evaluation&);      // at least one image, with labels, is evaluated
    std::vector<std::string> file_names = {};  // of the result's files, known before they are written
    // What it costs besides the predictions of the evaluated images; null: nothing.
    Cost (*cost)(Evaluation&) = nullptr;
    // Why it cannot be measured with these inputs, and what to do; empty where it can. Null: it always can.
    std::string (*missing)(const Evaluation&) = nullptr;
    // Of the predictions of the evaluated images; null: not.
    bool (*wants_gradients)(const EvaluationSettings&) = nullptr;
    bool of_samples = false;  // of drawn images, whose cost is that of all such metrics together

    // Of predictions or of the replay buffer alone, without running the network.
    bool while_training() const { return cost == nullptr || of_samples; }
};

// One a file.
Metric accuracy_metric();
Metric likelihood_metric();
Metric brier_metric();
Metric calibration_metric();
Metric ood_metric();
Metric pgd_metric();
Metric apgd_metric();
Metric landscape_metric();
Metric frechet_metric();
Metric inception_score_metric();
Metric kernel_distance_metric();
Metric coverage_metric();

const std::vector<Metric>& metrics();
// Throws InputError for an unknown name, listing the known.
const Metric& metric(const std::string& name);

}  // namespace jem
