// What `jem_engine selftest` runs: every op, every kind of convolution and one training iteration on a device, against the
// reference. Both run the same formulas (kernels/), so this finds what compilers, libraries, memory, layouts and recording get
// wrong on a machine; that the formulas are right is for the tests to show.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/network/network.h"
#include "engine/settings/settings.h"
#include "tools/jem_engine/selftest/side.h"

namespace jem::selftest {

// Limits by precision. f32: elements err by a few roundings of 6e-8; sums and products of up to some thousand terms
// (convolutions 576, batch statistics 572) by tens of them; Winograd by 1e-5 of the rms (device.h), at most ten times that.
// tf32 rounds the factors of convolutions to 5e-4, bf16 every activation to 4e-3.
struct Limits {
    Bound element, sum, scalar, convolution, winograd;
    // One iteration. Logits, losses and statistics are tight. A LeakyReLU input that falls on its kink's other side changes single
    // gradients by per cents, so that gradients and what follows from them are judged by their norms (behaviour.md).
    double logits, statistics, samples, gradients;
};

// precision: f32, tf32, bf16, f64
Limits limits_of(const std::string& precision);

struct Case {
    std::string name;
    std::function<Outputs(Side&)> run;
};

struct Finding {
    std::string name;
    bool ok = true;
    double max_error = 0;  // relative to the tensor's rms
    std::string detail;    // of a failure
};

// Notes the largest error, and the first value that is beyond want's bound.
void compare(Finding& f, const Output& got, const Output& want);

struct Sizes {
    std::vector<Extent> extents;  // of activations
    std::vector<int64_t> counts;  // of flat parameters
};
// Blocked and unblocked channels, odd sizes, one value a channel, and more elements than one thread's share.
Sizes usual_sizes();

std::vector<Case> op_cases(const Limits& limits, const Sizes& sizes);
std::vector<Case> convolution_cases(const Limits& limits,
                                    const std::vector<ConvAlgorithm>& algorithms = {ConvAlgorithm::direct, ConvAlgorithm::automatic});
// Runs a case on both and compares. Whatever cannot be run is a failure, too.
Finding run_case(const Case& c, Device& device, Device& reference);

using MakeNetwork = std::function<std::unique_ptr<Network>(const Settings&)>;
// A small network, two SGLD steps, SAM; both batch norm and the settings it leaves open may be changed.
Settings iteration_settings();
// One iteration on both devices: logits, losses, statistics, samples, gradients, weights.
std::vector<Finding> check_iteration(Device& device, Device& reference, const MakeNetwork& make_network, const Settings& settings,
                                     const Limits& limits);
// Weights, momentum, gradient, statistics, samples and scalars after two iterations.
std::vector<std::byte> bits_of_iterations(Device& device, const MakeNetwork& make_network, const Settings& settings);
// Whether two of these are; says how much of them is not.
Finding identical(const std::string& name, const std::vector<std::byte>& a, const std::vector<std::byte>& b);
// Two iterations, bit for bit the same: replayed or eager, in shared or separate memory, once more.
std::vector<Finding> check_repetition(Device& device, const MakeNetwork& make_network, const Settings& settings);

}  // namespace jem::selftest
