// How the CUDA device chooses engines of convolutions: by time and by agreement with the first, among providers that it does not know. The
// providers are loops, and the emulated machine's clock counts kernels.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/choices.h"
#include "engine/network/parameters.h"
#include "tests/check.h"
#include "tests/emulation/device.h"
#include "tests/temp_folder.h"
#include "tests/told.h"

namespace jem {
namespace {

using Fault = LoopEngine::Fault;

const ConvShape kShape{.in_channels = 8, .out_channels = 8, .height = 5, .width = 5, .kernel = 3, .stride = 1};
const ConvOptions kOptions{.batches = {2}, .calls = {{.around = {}, .residual = true}}};

struct Planned {
    std::vector<std::pair<std::string, std::string>> engines;  // pass, engine
    std::string choices, departure;                            // for a run to keep
    uint64_t kernels = 0;                                      // that planning took
};

// kept: a run's choices
Planned planned(const std::vector<Loops>& providers, const std::string& cache = "", const std::string& kept = "",
                const cuda_on_host::Settings& machine = {}, const ConvShape& shape = kShape) {
    EmulatedDevice device(CudaPrecision::f32, machine, providers, cache);
    if (!kept.empty()) device->choices()->keep(kept, "run/convolutions.json");
    const uint64_t before = cuda_on_host::launches();
    const auto plan = device->plan_convolution(shape, kOptions);
    Planned out;
    out.kernels = cuda_on_host::launches() - before;
    for (const ConvPlan::Choice& c : plan->choices()) out.engines.push_back({c.pass, c.engine});
    out.choices = device->choices()->text();
    out.departure = device->choices()->departure();
    return out;
}

bool everywhere(const Planned& p, const std::string& engine) {
    return !p.engines.empty() && std::all_of(p.engines.begin(), p.engines.end(), [&](const auto& e) { return e.second == engine; });
}

Loops provider(const std::string& name, const std::vector<LoopEngine>& plain) { return {.name = name, .plain = plain}; }

const Loops kSlow = provider("slow 1", {{.name = "slow", .kernels = 5}});

}  // namespace

TEST_CASE("the_fastest_engine_is_taken_whoever_provides_it") {
    CHECK(everywhere(planned({provider("p 1", {{"p a", 4}, {"p b", 2}, {"p c", 3}})}), "p b"));
    CHECK(everywhere(planned({kSlow, provider("fast 1", {{"fast"}})}), "fast"));
    CHECK(everywhere(planned({kSlow, provider("slower 1", {{"slower", 6}})}), "slow"));
    CHECK(everywhere(planned({kSlow, provider("as slow 1", {{"as slow", 5}})}), "slow"));  // the first's order counts
}

TEST_CASE("an_engine_that_computes_something_else_or_other_bits_each_time_is_refused_and_named") {
    for (const auto& [fault, why] : {std::pair{Fault::wrong, "computes something else"}, {Fault::other_bits, "gives other bits"}}) {
        const Told told;
        const Planned p = planned({kSlow, provider("hasty 1", {{"hasty", 1, fault}})});
        CHECK(everywhere(p, "slow"));
        CHECK(told.with(why) == static_cast<int>(p.engines.size()));
        CHECK(told.with("hasty (" + kShape.text()) == static_cast<int>(p.engines.size()));
    }
    // The same of what is fused: it is held against the plain form and the ops.
    for (const Fault fault : {Fault::none, Fault::wrong, Fault::other_bits}) {
        const Told told;
        Loops loops = loops_with(LoopFusion::both);
        loops.fused.front().fault = fault;
        const Planned p = planned({loops});
        const bool fused = std::any_of(p.engines.begin(), p.engines.end(), [](const auto& e) { return e.second == "loops, fused"; });
        CHECK(fused == (fault == Fault::none));
        CHECK((told.with("is not used") > 0) == (fault != Fault::none));
    }
}

TEST_CASE("the_way_back_may_be_a_convolution_with_turned_weights_where_that_is_faster_and_right") {
    const auto of_pass = [](const Planned& p, const std::string& pass) {
        const auto found = std::find_if(p.engines.begin(), p.engines.end(), [&](const auto& e) { return e.first == pass; });
        return found == p.engines.end() ? "" : found->second;
    };
    const auto loops = [](int more_back, Fault fault = Fault::none) {
        return std::vector<Loops>{{.turned = true, .plain = {{.name = "loops", .kernels = 2, .fault = fault, .more_back = more_back}}}};
    };
    ConvShape wide = kShape;
    wide.in_channels = 16;
    for (const int more_back : {0, 4}) {
        const Planned p = planned(loops(more_back), "", "", {}, wide);
        CHECK(of_pass(p, "forward") == "loops");
        CHECK(of_pass(p, "backward_data") == std::string(more_back > 0 ? "turned loops" : "loops"));
        CHECK(of_pass(p, "backward_weights") == "loops");
        const Told told;
        const Planned again = planned(loops(more_back), "", p.choices, {}, wide);
        CHECK(again.engines == p.engines);
        CHECK(told.lines.empty());
    }
    const Told told;
    CHECK(of_pass(planned(loops(4, Fault::other_bits), "", "", {}, wide), "backward_data") == "loops");
    CHECK(told.with("turned loops (" + wide.text() + ", backward_data) gives other bits") == 1);
}

TEST_CASE("convolutions_by_turned_weights_are_those_of_the_loops") {
    const Loops turned{.turned = true, .plain = {{.name = "loops", .more_back = 4}}};
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16})
        for (const ConvShape& s :
             {kShape, ConvShape{.in_channels = 16, .out_channels = 24, .height = 4, .width = 7, .kernel = 3, .stride = 1},
              ConvShape{.in_channels = 32, .out_channels = 16, .height = 3, .width = 3, .kernel = 1, .stride = 1},
              ConvShape{.in_channels = 16, .out_channels = 16, .height = 5, .width = 6, .kernel = {1, 7}, .stride = 1},
              ConvShape{.in_channels = 16, .out_channels = 16, .height = 6, .width = 6, .kernel = 3, .stride = 2}}) {
            CAPTURE(s.text());
            std::vector<std::vector<double>> gradients;
            for (const Loops& loops : {Loops{}, turned}) {
                EmulatedDevice emulated(precision, {}, {loops});
                Device& device = *emulated;
                const auto plan = device.plan_convolution(s, kOptions);
                const std::vector<ConvPlan::Choice> choices = plan->choices();
                const bool used = std::any_of(choices.begin(), choices.end(), [](const auto& c) { return c.engine.starts_with("turned"); });
                CHECK(used == (loops.turned && s.stride == 1 && s.in_channels >= 16));
                const int64_t batch = kOptions.batches.front(), x = batch * s.in_channels * s.height * s.width,
                              y = batch * s.out_channels * s.out_height() * s.out_width();
                TestData data(5);
                const DType type = device.activation_type();
                const auto bytes = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
                const auto d_x = device.allocate(bytes(x)), d_y = device.allocate(bytes(y)), wide = device.allocate(bytes(y)),
                           weights = device.allocate(bytes(s.weight_count())), prepared = device.allocate(plan->prepared_bytes()),
                           workspace = device.allocate(plan->workspace_bytes());
                const Array w{weights->data(), DType::f32, s.weight_count()};
                upload_values(device, w, data.normals(w.count));
                upload_values(device, {wide->data(), DType::f32, y}, data.normals(y));
                device.ops().convert({d_y->data(), type, y}, {wide->data(), DType::f32, y});
                plan->prepare(prepared->data(), w, workspace->data());
                plan->backward_data({d_x->data(), type, batch, s.in_channels, s.height, s.width, s.in_channels},
                                    {d_y->data(), type, batch, s.out_channels, s.out_height(), s.out_width(), s.out_channels},
                                    prepared->data(), workspace->data());
                gradients.push_back(download_values(device, {d_x->data(), type, x}));
            }
            // The loops sum in f64, here in another order: what is left is one rounding to the type.
            const double rounding = precision == CudaPrecision::bf16 ? 0x1p-7 : 0x1p-22;
            check_close("gradient", gradients[1], gradients[0], {.absolute = 1e-12, .relative = rounding});
        }
}

TEST_CASE("a_choice_is_remembered_and_used_without_timing_and_one_of_an_engine_that_is_gone_is_made_anew") {
    const TempFolder folder;
    const std::string cache = (folder.path() / "convolutions.json").string();
    const std::vector<Loops> both = {kSlow, provider("fast 1", {{"fast"}})};
    const Planned first = planned(both, cache);
    {
        const Told told;
        const Planned again = planned(both, cache);
        CHECK(again.engines == first.engines);
        CHECK(told.lines.empty());  // not timed
        CHECK(again.kernels < first.kernels / 10);
        CHECK(again.choices == first.choices);
    }
    const Told told;
    const Planned without = planned({kSlow, provider("fast 1", {{"other", 2}})}, cache);
    CHECK(everywhere(without, "other"));
    CHECK(told.with("The convolution engine fast, which was remembered, is gone") > 0);
    CHECK(without.departure.empty());
    CHECK(everywhere(planned({kSlow, provider("fast 1", {{"other", 2}})}, cache), "other"));  // and that is remembered in its place
    // Providers of another version are asked anew.
    CHECK(everywhere(planned({kSlow, provider("fast 2", {{"fast"}})}, cache), "fast"));
}

TEST_CASE("what_a_run_keeps_comes_before_the_shared_file_and_is_used_without_timing") {
    const TempFolder folder;
    const std::string cache = (folder.path() / "convolutions.json").string();
    const auto loops = [](int a, int b) { return std::vector<Loops>{provider("p 1", {{"a", a}, {"b", b}})}; };
    const Planned run = planned(loops(2, 3));
    CHECK(everywhere(run, "a"));
    CHECK(everywhere(planned(loops(3, 2), cache), "b"));  // what the file holds from now on
    for (const std::string& file : {cache, std::string()}) {
        const Told told;
        const Planned resumed = planned(loops(3, 2), file, run.choices);
        CHECK(resumed.engines == run.engines);
        CHECK(resumed.choices == run.choices);
        CHECK(resumed.departure.empty());
        CHECK(told.lines.empty());
    }
}

TEST_CASE("what_was_chosen_while_memory_was_short_is_kept_for_the_run_and_for_it_alone") {
    const TempFolder folder;
    const std::string cache = (folder.path() / "convolutions.json").string();
    const std::vector<Loops> both = {kSlow, provider("fast 1", {{"fast"}})};
    const cuda_on_host::Settings full{.memory_bytes = size_t{8} << 20, .used_by_others = (size_t{8} << 20) - (size_t{4} << 20) - 4096};
    Planned run;
    {
        const Told told;
        run = planned(both, cache, "", full);
        CHECK(everywhere(run, "slow"));
        CHECK(told.with("Too little GPU memory is free") == 1);
    }
    CHECK(everywhere(planned(both, cache, run.choices), "slow"));        // there is memory now
    CHECK(everywhere(planned(both, cache, run.choices, full), "slow"));  // and none again
    CHECK(everywhere(planned(both, cache), "fast"));                     // another run
    const Planned fast = planned(both, cache);
    const Told told;
    CHECK(everywhere(planned(both, "", fast.choices, full), "fast"));  // what is kept needs no trial
    CHECK(told.lines.empty());
}

TEST_CASE("a_run_that_goes_on_elsewhere_chooses_anew_says_so_once_and_keeps_both") {
    const std::vector<Loops> here = {provider("p 1", {{"a"}})}, elsewhere = {provider("p 2", {{"b"}})};
    const Planned run = planned(here);
    const Told told;
    const Planned moved = planned(elsewhere, "", run.choices);
    CHECK(everywhere(moved, "b"));
    CHECK(told.with("were chosen on Emulated GPU | p 1 (this is Emulated GPU | p 2)") == 1);
    CHECK(moved.departure == told.lines.front());
    CHECK(planned(here, "", moved.choices).engines == run.engines);
    CHECK(planned(elsewhere, "", moved.choices).departure.empty());

    const Planned gone = planned({provider("p 1", {{"c"}})}, "", run.choices);
    CHECK(everywhere(gone, "c"));
    CHECK(gone.departure.find("The convolution engine a, which the run keeps, is gone") == 0);
    CHECK(planned({provider("p 1", {{"c"}})}, "", gone.choices).departure.empty());

    const Planned damaged = planned(here, "", "{\"format\"");
    CHECK(damaged.engines == run.engines);
    CHECK(damaged.departure.find("(the file is damaged)") != std::string::npos);
}

}  // namespace jem
