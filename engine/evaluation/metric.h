// A metric: what it makes of a network's predictions. One file each; metrics.cc lists them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/network/predictor.h"

namespace jem {

struct MetricResult {
    nlohmann::ordered_json values;                           // an object: what goes into evaluation.json
    std::vector<std::pair<std::string, std::string>> files;  // name, text: data of pictures
};

struct Metric {
    std::string name;                             // as in --metrics
    std::string help;                             // what it measures, in a few words
    MetricResult (*measure)(const Predictions&);  // of at least one image, with labels
    std::vector<std::string> file_names = {};     // of the result's files, known before they are written
};

// One a file.
Metric accuracy_metric();
Metric likelihood_metric();
Metric brier_metric();
Metric calibration_metric();

const std::vector<Metric>& metrics();
// Throws InputError for an unknown name, listing the known.
const Metric& metric(const std::string& name);

}  // namespace jem
