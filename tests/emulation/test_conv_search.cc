// How the CUDA device chooses engines of convolutions: by time and by agreement with the first, among providers that it does not know. The
// providers are loops, and the emulated machine's clock counts kernels.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/choices.h"
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
                const cuda_on_host::Settings& machine = {}) {
    EmulatedDevice device(CudaPrecision::f32, machine, providers, cache);
    if (!kept.empty()) device->choices()->keep(kept, "run/convolutions.json");
    const uint64_t before = cuda_on_host::launches();
    const auto plan = device->plan_convolution(kShape, kOptions);
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
