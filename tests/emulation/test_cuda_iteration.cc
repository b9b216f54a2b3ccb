// The whole training iteration by the CUDA device's own code.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "models/wide_resnet.h"
#include "tests/emulation/device.h"
#include "tests/engine/golden.h"
#include "tools/selftest/selftest.h"

namespace jem {
namespace {

std::unique_ptr<Network> make_network(const Settings& s) { return std::make_unique<WideResNet>(network_settings(s)); }

struct Variant {
    std::string name;
    Settings settings;
};

// norm and SAM on and off, with and without sampling steps
std::vector<Variant> variants() {
    std::vector<Variant> all;
    for (const Norm norm : {Norm::batch, Norm::none})
        for (const SamForm sam : {SamForm::sam, SamForm::none})
            for (const int64_t steps : {0, 3}) {
                Settings s = selftest::iteration_settings();
                s.width = 1;
                s.norm = norm;
                s.sam = sam;
                s.sgld_steps = steps;
                if (norm == Norm::none) s.lr = 0.01;
                all.push_back({"norm " + name_of(norm) + ", " + name_of(sam) + ", K " + std::to_string(steps), s});
            }
    return all;
}

void check_all(const std::vector<selftest::Finding>& findings) {
    CHECK_FALSE(findings.empty());
    for (const selftest::Finding& f : findings) CHECK_MESSAGE(f.ok, f.name, ": ", f.detail);
}

}  // namespace

TEST_CASE("recorded_graphs_of_an_iteration_equal_eager_calls_bit_for_bit") {
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        for (const Variant& v : variants()) {
            INFO(std::string(precision_name(precision)), ", ", v.name);
            EmulatedDevice device(precision);
            check_all(selftest::check_repetition(*device, make_network, v.settings));
        }
}

TEST_CASE("an_iteration_on_the_emulated_gpu_equals_the_cpu") {
    const auto cpu = make_cpu_device({.threads = 1});
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        for (const Variant& v : variants()) {
            INFO(std::string(precision_name(precision)), ", ", v.name);
            EmulatedDevice device(precision);
            check_all(selftest::check_iteration(*device, *cpu, make_network, v.settings, selftest::limits_of(precision_name(precision))));
        }
}

}  // namespace jem
