// The whole iteration against PyTorch in f64, per tensor.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "engine/step.h"
#include "golden.h"
#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#endif

namespace jem {
namespace {

// Allowed differences, relative to the root mean square of a quantity's own values.
struct Tolerance {
    double logits, losses, x, gradients, statistics, weights;
};
// The same formulas in the same precision in another order.
constexpr Tolerance kF64 = {1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9};
// PyTorch's own f32 differs from its f64 by so much on kink-free cases (behaviour: 4e-5 in gradients, 2e-5 in x, 1e-6 in logits,
// 2e-6 in statistics), times two for another order of sums.
constexpr Tolerance kF32 = {4e-6, 4e-6, 4e-5, 8e-5, 4e-6, 1e-5};
// Where a LeakyReLU input lies near 0, f32 may take the other side: only what a single flip hardly moves can judge.
constexpr Tolerance kF32NearKinks = {1e-4, 1e-4, 1e-3, 1e9, 1e-4, 1e9};
// Ten iterations, free of kinks: PyTorch's f32 stays within 5e-7 of its f64; rounding grows from one iteration to the next.
constexpr double kF32Curve = 1e-5;

double rms(const std::vector<double>& v) {
    double square = 0;
    for (const double x : v) square += x * x;
    return std::sqrt(square / static_cast<double>(std::max<size_t>(v.size(), 1)));
}

void compare(const std::string& name, const std::vector<double>& got, const std::vector<double>& want, double scale, double tolerance) {
    REQUIRE_MESSAGE(got.size() == want.size(), name);
    for (size_t i = 0; i < want.size(); ++i) {
        const double difference = std::fabs(got[i] - want[i]);
        const bool near = difference <= tolerance * scale;
        CHECK_MESSAGE(near, name << "[" << i << "]: got " << got[i] << ", want " << want[i] << ", tolerance " << tolerance * scale);
        if (!near) return;
    }
}

// Samples against the tensor's rms, the norm against itself, the pattern's dot against the norm (its expected size is norm / sqrt 3).
void compare_probe(const std::string& name, const std::vector<double>& values, const std::vector<double>& want, double tolerance) {
    const std::vector<double> got = probe_of(values);
    const double norm = want.at(0), typical = norm / std::sqrt(static_cast<double>(values.size()));
    const std::vector<double> got_samples(got.begin() + 2, got.end()), want_samples(want.begin() + 2, want.end());
    if (norm == 0) {
        compare(name + " (zero by construction)", values, std::vector<double>(values.size()), 1, 0);
        return;
    }
    compare(name, got_samples, want_samples, std::max(typical, rms(want_samples)), tolerance);
    compare(name + " norm", {got[0]}, {want[0]}, norm, tolerance);
    compare(name + " pattern", {got[1]}, {want[1]}, norm, tolerance);
}

SafetensorsFile run(Device& device, const GoldenCase& g) {
    WideResNet network(network_settings(g.settings));
    return run_step(device, network, g.settings,
                    {.checkpoint = g.checkpoint,
                     .checkpoint_path = g.name,
                     .batch = g.batch,
                     .batch_path = g.name,
                     .optimizer_step = 0,
                     .iterations = g.config.at("iterations")});
}

void compare_case(Device& device, const std::string& name, const Tolerance& t) {
    CAPTURE(name);
    const GoldenCase g = load_golden(name);
    const SafetensorsFile got = run(device, g);
    size_t compared = 0;
    for (const auto& entry : g.expected.tensors) {
        const std::string& key = entry.first;
        CAPTURE(key);
        ++compared;
        const std::vector<double> want = g.expected.doubles(key);
        if (g.config.at("iterations") > 1 && got.has(key + "_curve")) {
            compare(key, got.doubles(key + "_curve"), want, rms(want), t.losses);
            continue;
        }
        REQUIRE(got.has(key));
        const std::vector<double> values = got.doubles(key);
        if (key == "logits_lab")
            compare(key, values, want, rms(want), t.logits);
        else if (key == "x_neg")
            compare(key, values, want, 1, t.x);
        else if (key == "grad_norm")
            compare(key, values, want, rms(want), std::min(1.0, t.gradients));
        else if (key.starts_with("grad"))
            compare_probe(key, values, want, t.gradients);
        else if (key.starts_with("param."))
            compare_probe(key, values, want, t.weights);
        else if (key.starts_with("running."))
            compare_probe(key, values, want, t.statistics);
        else
            compare(key, values, want, std::max(1.0, rms(want)), t.losses);
    }
    CHECK(compared >= 4);
}

}  // namespace

TEST_CASE("one_iteration_in_f64_equals_pytorch_to_rounding") {
    const auto device = make_reference_device(DType::f64);
    for (const std::string& name : golden_case_names()) compare_case(*device, name, kF64);
}

TEST_CASE("one_iteration_on_the_cpu_in_f32_equals_pytorch_within_f32") {
    const auto device = make_cpu_device({});
    for (const std::string& name : golden_case_names()) {
        const GoldenCase g = load_golden(name);
        if (g.config.at("iterations") > 1) continue;
        compare_case(*device, name, g.config.at("kink_free") ? kF32 : kF32NearKinks);
    }
}

TEST_CASE("one_iteration_on_a_gpu_in_f32_equals_pytorch_within_f32") {
    std::string why = "this build has no CUDA parts";
#ifdef JEM_HAS_CUDA
    if (!visible_gpus(why).empty()) {
        const auto device = make_cuda_device({});
        for (const std::string& name : golden_case_names()) {
            const GoldenCase g = load_golden(name);
            if (g.config.at("iterations") > 1) continue;
            compare_case(*device, name, g.config.at("kink_free") ? kF32 : kF32NearKinks);
        }
        return;
    }
#endif
    std::printf("SKIPPED: golden cases on a GPU: %s\n", why.c_str());
}

TEST_CASE("loss_curve_of_ten_iterations_in_f32_stays_near_pytorch") {
    const auto device = make_cpu_device({});
    const GoldenCase g = load_golden("curve");
    const SafetensorsFile got = run(*device, g);
    for (const char* key : {"f_pos", "f_neg", "loss_gen", "loss_clf"}) {
        const std::vector<double> want = g.expected.doubles(key);
        compare(key, got.doubles(std::string(key) + "_curve"), want, std::max(1.0, rms(want)), kF32Curve);
    }
}

TEST_CASE("bias_gradients_that_are_zero_by_construction_are_dumped_as_zeros") {
    const auto device = make_cpu_device({});
    const GoldenCase g = load_golden("sam");
    const SafetensorsFile got = run(*device, g);
    for (const char* name : {"f.conv1.bias", "f.layer1.0.conv1.bias", "f.layer2.0.shortcut.0.bias", "f.layer3.0.conv2.bias"})
        for (const char* pass : {"grad1.", "grad2."})
            for (const double v : got.doubles(std::string(pass) + name)) CHECK(v == 0);
    CHECK(rms(got.doubles("grad1.class_output.bias")) > 0);
}

}  // namespace jem
