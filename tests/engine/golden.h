// Golden cases: inputs by a formula that the PyTorch script shares, results from PyTorch in f64 (tests/golden/make_golden.py).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "engine/settings.h"
#include "models/wide_resnet.h"

namespace jem {

struct GoldenCase {
    std::string name;
    nlohmann::json config;
    SafetensorsFile expected;  // from PyTorch
    Settings settings;
    SafetensorsFile checkpoint, batch;  // made by the formula
};

std::vector<std::string> golden_case_names();
GoldenCase load_golden(const std::string& name);
WideResNetSettings network_settings(const Settings& settings);

// What the files hold of a large tensor: [L2 norm, dot with a fixed pattern, up to 48 samples].
std::vector<double> probe_of(const std::vector<double>& values);

}  // namespace jem
