// What a run writes at its checkpoints: weights that everything reads, and all that resuming needs.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/files/safetensors.h"
#include "engine/network/parameters.h"
#include "engine/sampling/step_growth.h"
#include "engine/settings/settings.h"

namespace jem {

inline constexpr int64_t kMostStepFactor = 1024;  // of K: more doublings help nobody

// How a run that diverged goes on: part of its state, so that it repeats bit for bit.
struct Recovery {
    uint64_t attempt = 0;      // how often it has gone back; part of the key of random numbers
    double rate_factor = 1;    // of the learning rate
    int64_t step_factor = 1;   // of K
    int64_t in_a_row = 0;      // how often it has gone back since it was last well for long
    int64_t diverged_at = 0;   // the iteration that diverged last
    int64_t restored_at = -1;  // the iteration it went back to then; -1: it never has
};

// What a checkpoint carries besides the arrays of training.
struct RunProgress {
    int64_t iteration = 0;  // iterations done
    double best_accuracy = -1;
    int64_t best_iteration = 0;
    std::string best_chosen_on;  // "valid" or "test"
    std::string best_by;         // what best.safetensors was chosen by; empty: there is none yet
    double best_score = 0;       // by that, the larger the better
    double seconds = 0;          // spent so far
    Recovery recovery;
    StepGrowth growth;            // where K grows
    std::vector<double> watched;  // DivergenceWatch::memory()
    nlohmann::ordered_json owed;  // the log line of an epoch whose evaluation was interrupted: it waits for its figures; else null
};

// The replay buffer and since when its images' chains go on: R [N, H*W*C] and i32 [N].
struct BufferArrays {
    Array images, births;
};

// Weights, running statistics and averages: what evaluate, sample and PyTorch read. They are read off the device when the file is written.
SafetensorsFile weights_file(Parameters& parameters, const Settings& settings, const RunProgress& progress);
// The same and all that resuming needs: optimizer state and replay buffer, where there is one.
SafetensorsFile state_file(Parameters& parameters, Device& device, const std::optional<BufferArrays>& buffer, const Settings& settings,
                           const RunProgress& progress);
// Restores it; InputError for a file that is not complete.
RunProgress load_state(Parameters& parameters, Device& device, const std::optional<BufferArrays>& buffer, const Settings& settings,
                       const SafetensorsFile& file, const std::string& path);

// What a checkpoint may hold besides weights and running statistics: prefixes of names.
const std::vector<std::string>& other_tensors();

// The files beside a checkpoint in which training may have left its state, the likelier one first.
std::array<std::filesystem::path, 2> states_beside(const std::filesystem::path& checkpoint);
// The replay buffer that belongs to a checkpoint at `path`: its own, or that of a state beside it.
struct SavedBuffer {
    std::string path;   // of the file that holds it
    FileTensor images;  // [N, C, H, W]
};
// The images of these numbers, [n, H, W, C].
std::vector<double> images_of_buffer(const FileTensor& buffer, std::span<const int64_t> numbers);
std::optional<SavedBuffer> find_buffer(const SafetensorsFile& checkpoint, const std::string& path);

// What a run begins with (--start-from) in place of random weights and a fresh replay buffer.
struct StartPoint {
    std::string path;
    SafetensorsFile file;               // weights and running statistics
    std::optional<SavedBuffer> buffer;  // of the settings' size; none where the run does not sample
};
// Opens the settings' start_from. InputError where its tensors are not the network's, or the buffer is of another size.
StartPoint read_start(const Network& network, const Settings& settings);
// Into freshly initialised parameters, whose optimizer's arrays stay as they are; the average begins at the weights.
void load_start(Parameters& parameters, Device& device, const StartPoint& start);

// The iterations after which a checkpoint was written, or none where it is a bare one.
std::optional<int64_t> iteration_of(const SafetensorsFile& file);
// The settings that a checkpoint was written with, or none where it is a bare one.
std::optional<Settings> settings_of(const SafetensorsFile& file, const std::string& path = "a checkpoint");

}  // namespace jem
