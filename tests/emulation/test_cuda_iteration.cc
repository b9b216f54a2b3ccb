// The whole training iteration by the CUDA device's own code.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/training/iteration.h"
#include "tests/emulation/device.h"
#include "tests/engine/training/findings.h"

namespace jem {
namespace {

// Where every access is checked an iteration takes minutes, and a second sampling step makes the first one's accesses.
constexpr int64_t kCheckedSteps = 1;

struct Variant {
    CudaPrecision precision;
    std::string name;
    Settings settings;
};

// Both precisions, norm and SAM on and off, with and without sampling steps; where every access is checked, two of the sixteen.
std::vector<Variant> variants() {
    std::vector<Variant> all;
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        for (const NormKind norm : {NormKind::batch, NormKind::none})
            for (const SamForm sam : {SamForm::sam, SamForm::none})
                // Each step's gradient comes in the activations' type: three in bf16 take some statistics to the limit.
                for (const int64_t steps : {0, precision == CudaPrecision::bf16 ? 2 : 3}) {
                    Settings s = selftest::iteration_settings();
                    s.width = 1;
                    s.norm = norm;
                    s.sam = sam;
                    s.sgld_steps = steps;
                    if (norm == NormKind::none) s.lr = 0.01;
                    all.push_back({precision,
                                   std::string(precision_name(precision)) + ", norm " + name_of(norm) + ", " + name_of(sam) + ", K " +
                                       std::to_string(steps),
                                   s});
                }
    if (!cuda_on_host::checks_accesses()) return all;
    Variant f32 = all[6], bf16 = all[9];  // no norm, no SAM, K = 0; batch norm, SAM
    bf16.settings.sgld_steps = kCheckedSteps;
    return {f32, bf16};
}

}  // namespace

TEST_CASE("recorded_graphs_of_an_iteration_equal_eager_calls_bit_for_bit") {
    for (const Variant& v : variants()) {
        INFO(v.name);
        EmulatedDevice device(v.precision);
        check_all(selftest::check_repetition(*device, make_network, v.settings));
    }
}

// In three legal orders of the two streams' work; what lies in memory that the other one uses would show as other bits, or as a race.
TEST_CASE("gradients_of_weights_beside_the_way_back_change_no_bit") {
    Settings batch = variants()[1].settings, none = batch, instance = batch, recompute = batch, igebm = batch;
    none.norm = NormKind::none;
    none.lr = 0.01;
    instance.norm = NormKind::instance;
    recompute.recompute = true;
    igebm.network = NetworkKind::igebm;
    igebm.depth = 14;
    igebm.norm = NormKind::none;
    igebm.lr = 0.01;
    std::vector<std::pair<std::string, Settings>> all = {
        {"batch", batch}, {"none", none}, {"instance", instance}, {"recompute", recompute}, {"igebm", igebm}};
    if (cuda_on_host::checks_accesses()) {
        all.erase(all.begin() + 1, all.end());
        all.front().second.sgld_steps = kCheckedSteps;
    }
    for (const auto& one : all)
        for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16}) {
            if (cuda_on_host::checks_accesses() && precision != CudaPrecision::bf16) continue;
            INFO(one.first, ", ", precision_name(precision));
            const Settings& settings = one.second;
            const LoopFusion fusion = precision == CudaPrecision::bf16 ? LoopFusion::none : LoopFusion::both;
            std::vector<std::byte> in_order;
            {
                EmulatedDevice device(precision, {}, fusion);
                in_order = selftest::bits_of_iterations(*device, make_network, settings);
            }
            for (const uint64_t seed : {0, 1, 2}) {
                if (cuda_on_host::checks_accesses() && seed != 1) continue;
                EmulatedDevice device(precision, {.seed = seed}, fusion, true);
                CHECK(selftest::bits_of_iterations(*device, make_network, settings) == in_order);
                if (seed == 1 && !cuda_on_host::checks_accesses()) check_all(selftest::check_repetition(*device, make_network, settings));
            }
        }
}

TEST_CASE("an_iteration_on_the_emulated_gpu_equals_the_cpu") {
    const auto cpu = make_cpu_device({.threads = 1});
    for (const Variant& v : variants()) {
        INFO(v.name);
        EmulatedDevice device(v.precision);
        check_all(selftest::check_iteration(*device, *cpu, make_network, v.settings, selftest::limits_of(precision_name(v.precision))));
    }
}

// Before each phase everything is forgotten that memory's plan says is dead by then: nothing may read it.
TEST_CASE("no_phase_reads_what_it_did_not_write") {
    for (const Variant& v : variants()) {
        INFO(v.name);
        const bool samples = v.settings.sgld_steps > 0;
        EmulatedDevice device(v.precision, {}, samples ? LoopFusion::both : LoopFusion::none, samples);
        const auto network = make_network(v.settings);
        Memory memory(*device);
        TrainingIteration iteration(*device, memory, *network, v.settings,
                                    TrainingIteration::GivenBatches{.positive = 2, .negative = 3, .labelled = 4});
        const int64_t first_launch = device->launches();
        const auto work = iteration.plan();
        memory.allocate();
        std::byte* arena = nullptr;
        for (const Memory::Placement& p : memory.placements())
            if (p.name == "iteration state") arena = reinterpret_cast<std::byte*>(iteration.state()) - p.offset;
        REQUIRE(arena != nullptr);
        iteration.record();
        iteration.prepare_weights();
        iteration.begin(0, 0.1, 0);
        int64_t now = first_launch;
        size_t forgotten = 0;
        for (const auto& [phase, report] : work) {
            for (int64_t i = 0; i < iteration.repeats(phase); ++i) {
                std::vector<bool> dead(memory.arena_bytes(), false);
                const auto mark = [&](bool lives) {
                    for (const Memory::Placement& p : memory.placements())
                        if (p.first_use <= p.last_use && (p.first_use < now && p.last_use >= now) == lives)
                            std::fill_n(dead.begin() + static_cast<ptrdiff_t>(p.offset), p.bytes, !lives);
                };
                mark(false);
                mark(true);
                for (size_t begin = 0, end; begin < dead.size(); begin = end) {
                    for (end = begin; end < dead.size() && dead[end] == dead[begin];) ++end;
                    if (!dead[begin]) continue;
                    cuda_on_host::forget(arena + begin, end - begin);
                    forgotten += end - begin;
                }
                iteration.run(phase);
            }
            for (const auto& [label, row] : report) now += row.launches;
        }
        IterationState state;
        iteration.read_state(state);
        device->synchronize();
        CHECK(forgotten > 0);
        CHECK(state.diverged == 0);
        std::vector<float> weights(static_cast<size_t>(iteration.parameters().weights().count));
        device->download(weights.data(), iteration.parameters().weights().data, weights.size() * sizeof(float));
        CHECK(std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); }));
    }
}

TEST_CASE("convolutions_that_take_over_the_ops_around_them_change_an_iteration_by_rounding_only") {
    const auto cpu = make_cpu_device({.threads = 1});
    for (const LoopFusion fusion : {LoopFusion::activation, LoopFusion::sums, LoopFusion::both})
        for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16}) {
            if (cuda_on_host::checks_accesses() && (fusion == LoopFusion::both) != (precision == CudaPrecision::bf16)) continue;
            Settings s = variants()[1].settings;  // batch norm, SAM, sampling
            if (precision == CudaPrecision::bf16) s.sgld_steps = 2;
            s.recompute = fusion == LoopFusion::sums;
            if (cuda_on_host::checks_accesses()) {
                s.sgld_steps = kCheckedSteps;
                if (fusion != LoopFusion::both) s.sam = SamForm::none;
            }
            INFO(std::string(precision_name(precision)), ", fusion ", static_cast<int>(fusion));
            EmulatedDevice device(precision, {}, fusion);
            // the same calls once more, recorded: nothing that a check of accesses would see
            if (!cuda_on_host::checks_accesses()) check_all(selftest::check_repetition(*device, make_network, s));
            check_all(selftest::check_iteration(*device, *cpu, make_network, s, selftest::limits_of(precision_name(precision))));
        }
}

TEST_CASE("one_iteration_on_the_emulated_gpu_in_f32_equals_pytorch_within_f32") {
    if (cuda_on_host::checks_accesses()) {
        std::puts("SKIPPED: the golden cases are run by the plain build");
        return;
    }
    for (const LoopFusion fusion : {LoopFusion::none, LoopFusion::both}) {
        EmulatedDevice device(CudaPrecision::f32, {}, fusion);
        compare_all_golden_f32(*device);
    }
}

}  // namespace jem
