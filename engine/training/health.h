// Whether a run is well, at a glance: a line an epoch.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/network/predictor.h"

namespace jem {

struct Health {
    double energy_real = 0;                              // mean of the held-out images' energies, -LSE
    std::optional<double> energy_sampled, energy_noise;  // of images of the replay buffer, and of uniform noise
    std::optional<double> buffer_age;                    // mean iterations since a chain in the buffer last began afresh
    std::vector<double> buffer_classes;                  // share of the buffer's images that the network puts into each class

    // Of log lines: "energy_real" and so on.
    nlohmann::ordered_json json() const;
};

double mean_energy(const Predictions& p);
// Of the predicted classes, a share for each.
std::vector<double> class_shares(const Predictions& p);
double mean_age(std::span<const int32_t> births, int64_t now);

// What a person reads at an epoch's end, of the log line with the health's values in it: what it holds is told, the rest left out.
std::string health_line(const nlohmann::ordered_json& line, int64_t epochs, const std::string& held_out);

}  // namespace jem
