// The network's parameters and what belongs to them (gradient, optimizer state, average, running statistics) as flat arrays on
// the device, and their form in files.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/files/safetensors.h"
#include "engine/memory/memory.h"
#include "engine/network/network.h"

namespace jem {

std::string shape_text(const std::vector<int64_t>& shape);  // "[64,3,3,3]"
bool starts_with_any(const std::string& name, const std::vector<std::string>& prefixes);

// Tensors of a checkpoint that nothing reads (Network::unread_prefixes), each with a space in front; load() skips them.
std::string skipped_tensors(const SafetensorsFile& file, const Network& network);

// InputError that lists all tensors of the network, weights and running statistics, that a checkpoint lacks or has in another shape, and
// all that it has besides. `allowed_prefixes`: others that may be there.
void check_tensors(const Network& network, const SafetensorsFile& file, const std::string& path,
                   const std::vector<std::string>& allowed_prefixes);

// Whether a checkpoint says of an act norm that no batch has set it yet ("<norm>.initialized", u8; what lacks it has been set).
bool holds_unset_norms(const SafetensorsFile& file);

class Parameters {
public:
    struct Options {
        bool gradient = false;
        int optimizer_arrays = 0;  // 1: momentum; 2: Adam's m and v
        bool perturbed = false;    // SAM's w + e
        bool average = false;      // EMA
    };

    Parameters(Device& device, Memory& memory, const Network& network, const Options& options);

    Array weights() { return flat(weights_, network_.parameter_count()); }
    Array gradient() { return flat(gradient_, network_.parameter_count()); }
    Array velocity() { return flat(first_, network_.parameter_count()); }  // or Adam's m
    Array second() { return flat(second_, network_.parameter_count()); }
    Array perturbed() { return flat(perturbed_, network_.parameter_count()); }
    Array average() { return flat(average_, network_.parameter_count()); }
    Array statistics() { return flat(statistics_, network_.statistic_count()); }
    const Options& options() const { return options_; }
    const Network& network() const { return network_; }

    // U(-b, b) with b = 1/sqrt(fan_in) for convolutions and linear layers, their biases included, or what a tensor says; 1 and 0 for norms.
    // The optimizer remembers nothing, and the average begins at the weights.
    void initialise(uint64_t seed);

    // Weights (named as in the network) and running statistics of a checkpoint, after check_tensors.
    void load(const SafetensorsFile& file, const std::string& path, const std::vector<std::string>& allowed_prefixes);
    // prefix + name for each parameter of a flat array. Optional: false if the file has none of them.
    bool load_array(Array flat, const SafetensorsFile& file, const std::string& prefix);
    // f32, or f64 where the device computes in it. Read off the device when the file is written: until then both must stay as they are.
    void save_array(Array flat, SafetensorsFile& file, const std::string& prefix) const;
    void save_statistics(SafetensorsFile& file, const std::string& prefix);

private:
    Array flat(Slot slot, int64_t count) { return {memory_.at(slot), device_.real_type(), count}; }

    Device& device_;
    Memory& memory_;
    const Network& network_;
    Options options_;
    Slot weights_, gradient_, first_, second_, perturbed_, average_, statistics_;
};

// Host values <-> an array of the device's real type.
void upload_values(Device& device, Array to, std::span<const double> values);
std::vector<double> download_values(Device& device, Array from);

}  // namespace jem
