// What a run writes at its checkpoints: weights that everything reads, and all that resuming needs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/files/safetensors.h"
#include "engine/network/parameters.h"
#include "engine/settings/settings.h"

namespace jem {

// Counters that a checkpoint carries besides tensors.
struct RunProgress {
    int64_t iteration = 0;  // iterations done
    double best_accuracy = -1;
    int64_t best_iteration = 0;
    std::string best_chosen_on;  // "valid" or "test"
    double seconds = 0;          // spent so far
};

// Weights, running statistics and averages: what evaluate, sample and PyTorch read. They are read off the device when the file is written.
SafetensorsFile weights_file(Parameters& parameters, const Settings& settings, const RunProgress& progress);
// The same and all that resuming needs: optimizer state and replay buffer (null: there is none).
SafetensorsFile state_file(Parameters& parameters, Device& device, const Array* buffer, const Settings& settings,
                           const RunProgress& progress);
// Restores it; InputError for a file that is not complete.
RunProgress load_state(Parameters& parameters, Device& device, const Array* buffer, const Settings& settings, const SafetensorsFile& file,
                       const std::string& path);

// The iterations after which a checkpoint was written, or none where it is a bare one.
std::optional<int64_t> iteration_of(const SafetensorsFile& file);
// The settings that a checkpoint was written with, or none where it is a bare one.
std::optional<Settings> settings_of(const SafetensorsFile& file, const std::string& path = "a checkpoint");

}  // namespace jem
