// The whole iteration against PyTorch in f64, per tensor.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "engine/training/iteration.h"
#include "golden.h"
#include "tests/on_device.h"

namespace jem {

TEST_CASE("one_iteration_in_f64_equals_pytorch_to_rounding") {
    const auto device = make_reference_device(DType::f64);
    for (const std::string& name : golden_case_names()) compare_golden(*device, name, kGoldenF64);
}

TEST_CASE("one_iteration_on_the_cpu_in_f32_equals_pytorch_within_f32") {
    const auto device = make_cpu_device({});
    compare_all_golden_f32(*device);
}

TEST_CASE("one_iteration_of_every_method_of_the_family_in_f64_equals_pytorch_to_rounding") {
    const auto device = make_reference_device(DType::f64);
    const std::vector<std::string> names = family_case_names();
    CHECK(names.size() == 28);  // a new member of the family belongs into this number
    for (const std::string& name : names) compare_golden(*device, name, kGoldenF64);
}

TEST_CASE("one_iteration_on_a_gpu_in_f32_equals_pytorch_within_f32") {
    std::string why = "this build has no CUDA parts";
#ifdef JEM_HAS_CUDA
    if (!visible_gpus(why).empty()) {
        const auto device = make_test_gpu();
        compare_all_golden_f32(*device);
        return;
    }
#endif
    std::printf("SKIPPED: golden cases on a GPU: %s\n", why.c_str());
}

// Dropping activations and computing them again takes the same numbers through the same functions.
TEST_CASE("activations_that_are_recomputed_leave_every_bit_as_it_was_and_need_less_memory") {
    for (const DType activation : {DType::f32, DType::bf16}) {
        if (activation == DType::bf16 && !cpu_has_bf16()) continue;
        for (const char* name : {"sam", "norm_none", "deep"}) {
            CAPTURE(name);
            GoldenCase g = load_golden(name);
            std::vector<SafetensorsFile> results;
            std::vector<size_t> arenas;
            for (const bool recompute : {false, true}) {
                g.settings.recompute = recompute;
                const auto device = make_cpu_device({.threads = 1, .activation = activation});
                results.push_back(run_golden(*device, g));
                Memory memory(*device);
                WideResNet network(wide_resnet_settings(g.settings));
                TrainingIteration iteration(*device, memory, network, g.settings,
                                            TrainingIteration::GivenBatches{.positive = 8, .negative = 8, .labelled = 16});
                iteration.plan();
                memory.pack();
                arenas.push_back(memory.arena_bytes());
            }
            REQUIRE(results[0].tensors.size() == results[1].tensors.size());
            for (const auto& entry : results[0].tensors)
                CHECK_MESSAGE(results[1].doubles(entry.first) == results[0].doubles(entry.first), entry.first);
            CHECK(arenas[1] < arenas[0]);
        }
    }
}

TEST_CASE("loss_curve_of_ten_iterations_in_f32_stays_near_pytorch") {
    const auto device = make_cpu_device({});
    const GoldenCase g = load_golden("curve");
    const SafetensorsFile got = run_golden(*device, g);
    for (const char* key : {"f_pos", "f_neg", "loss_gen", "loss_clf"}) {
        const std::vector<double> want = g.expected.doubles(key);
        compare(key, got.doubles(std::string(key) + "_curve"), want, std::max(1.0, rms(want)), kGoldenF32Curve);
    }
}

TEST_CASE("bias_gradients_that_are_zero_by_construction_are_dumped_as_zeros") {
    const auto device = make_cpu_device({});
    const GoldenCase g = load_golden("sam");
    const SafetensorsFile got = run_golden(*device, g);
    for (const char* name : {"f.conv1.bias", "f.layer1.0.conv1.bias", "f.layer2.0.shortcut.0.bias", "f.layer3.0.conv2.bias"})
        for (const char* pass : {"grad1.", "grad2."})
            for (const double v : got.doubles(std::string(pass) + name)) CHECK(v == 0);
    CHECK(rms(got.doubles("grad1.class_output.bias")) > 0);
}

}  // namespace jem
