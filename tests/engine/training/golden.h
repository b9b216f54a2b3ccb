// Golden cases: inputs by a formula that the PyTorch scripts share, results from PyTorch in f64 (tests/golden/make_golden.py and, for
// the family of methods, make_family.py).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/device/device.h"
#include "engine/files/safetensors.h"
#include "engine/settings/settings.h"
#include "models/networks.h"

namespace jem {

struct GoldenCase {
    std::string name;
    nlohmann::json config;
    SafetensorsFile expected;  // from PyTorch
    Settings settings;
    SafetensorsFile checkpoint, batch;  // made by the formula
};

std::vector<std::string> golden_case_names();
std::vector<std::string> family_case_names();  // "family/jem" ...: those whose recipe and settings the engine has
GoldenCase load_golden(const std::string& name);

// Allowed differences, relative to the root mean square of a quantity's own values.
struct GoldenTolerance {
    double logits, losses, x, gradients, statistics, weights;
};
// The same formulas in the same precision in another order.
inline constexpr GoldenTolerance kGoldenF64 = {1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9};
// PyTorch's own f32 differs from its f64 by so much on kink-free cases (behaviour: 4e-5 in gradients, 2e-5 in x, 1e-6 in logits,
// 2e-6 in statistics), times two for another order of sums. Statistics times four: a chain's x, off by up to 2e-5, moves those of what it
// passes through, with AVX2's order of sums by 5e-6.
inline constexpr GoldenTolerance kGoldenF32 = {4e-6, 4e-6, 4e-5, 8e-5, 8e-6, 1e-5};
// Where a LeakyReLU input lies near 0, f32 may take the other side: only what a single flip hardly moves can judge.
inline constexpr GoldenTolerance kGoldenF32NearKinks = {1e-4, 1e-4, 1e-3, 1e9, 1e-4, 1e9};
// bf16 rounds each activation to 2^-9 of itself: logits, losses and statistics err by 0.2 to 5 % (behaviour). Gradients it cannot judge,
// since rounding moves LeakyReLU's inputs across its kink, nor what follows from samples, whose chains multiply that.
inline constexpr GoldenTolerance kGoldenBf16 = {5e-2, 5e-2, 1e9, 1e9, 5e-2, 1e9};
inline constexpr GoldenTolerance kGoldenBf16AfterSampling = {5e-2, 1e9, 1e9, 1e9, 1e9, 1e9};
// Ten iterations, free of kinks: PyTorch's f32 stays within 5e-7 of its f64; rounding grows from one iteration to the next.
inline constexpr double kGoldenF32Curve = 1e-5;

double rms(const std::vector<double>& v);
// CHECKs that got equals want within tolerance * scale, value by value.
void compare(const std::string& name, const std::vector<double>& got, const std::vector<double>& want, double scale, double tolerance);
// The case's iterations on a device, and what they left, CHECKed against PyTorch's.
SafetensorsFile run_golden(Device& device, const GoldenCase& golden);
void compare_golden(Device& device, const std::string& name, const GoldenTolerance& tolerance);
// All cases of one iteration, in f32.
void compare_all_golden_f32(Device& device);

// What the files hold of a large tensor: [L2 norm, dot with a fixed pattern, up to 48 samples].
std::vector<double> probe_of(const std::vector<double>& values);

}  // namespace jem
