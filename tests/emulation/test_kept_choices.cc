// A run keeps what its devices chose by time: it goes on with the same engines, on every rank.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/run/kept_choices.h"
#include "engine/training/trainer.h"
#include "tests/emulation/device.h"
#include "tests/emulation/processes.h"
#include "tests/engine/training/golden.h"
#include "tests/engine/training/job.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

using Fault = LoopEngine::Fault;
using std::filesystem::path;

// b gives other bits than a.
std::vector<Loops> loops(int a, int b) { return {{.name = "p 1", .plain = {{"a", a}, {"b", b, Fault::near}}}}; }

class Silent final : public TrainingObserver {
public:
    void message(const std::string&) override {}
    void progress(const std::string&, int64_t, int64_t) override {}
    void iteration(const Iteration&) override {}
    void samples(const path&, const std::vector<float>&, int64_t) override {}
};

Settings run_settings() {
    Settings s = small_job();
    s.p_x_weight = 0;
    s.sgld_steps = 0;
    s.sam = SamForm::none;
    s.iterations = 3;
    s.log_interval = 1;
    return s;
}

enum class Until { first_iteration, end };

void train(const path& root, const std::vector<Loops>& providers, bool resume, Until until) {
    EmulatedDevice device(CudaPrecision::f32, {}, providers);
    const Settings s = run_settings();
    WideResNet network(wide_resnet_settings(s));
    const RunFolder folder(root);
    Silent observer;
    Trainer trainer(*device, network, s, job_images(), job_images(), "test", folder, observer);
    const std::atomic<bool> stop = until == Until::first_iteration;
    CHECK(trainer.run(resume, stop).iterations == (stop ? 1 : 3));
}

auto state_of(const path& root) { return SafetensorsFile::read(RunFolder(root).state()).tensors; }

std::vector<nlohmann::json> events_of(const path& root) {
    std::ifstream in(RunFolder(root).metrics());
    std::vector<nlohmann::json> events;
    for (std::string line; std::getline(in, line);)
        if (auto json = nlohmann::json::parse(line); json.contains("event")) events.push_back(json);
    return events;
}

bool same(const path& a, const path& b) {
    const auto x = state_of(a), y = state_of(b);
    return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [](const auto& p, const auto& q) { return p.first == q.first && p.second.bytes() == q.second.bytes(); });
}

}  // namespace

TEST_CASE("a_resumed_run_goes_on_with_the_engines_it_began_with_bit_for_bit_and_notes_where_it_cannot") {
    const TempFolder folder;
    const path at_once = folder.path() / "at once", resumed = folder.path() / "resumed", without = folder.path() / "without",
               gone = folder.path() / "gone";
    const auto now_b_is_faster = loops(3, 2);
    train(gone, loops(1, 2), false, Until::first_iteration);
    train(gone, {{.name = "p 1", .plain = {{"b", 2, Fault::near}}}}, true, Until::end);
    REQUIRE(events_of(gone).size() == 1);
    CHECK(events_of(gone)[0].at("iteration") == 1);
    CHECK(events_of(gone)[0].at("event").get<std::string>().find("The convolution engine a, which the run keeps, is gone") == 0);
    if (cuda_on_host::checks_accesses()) return;

    train(at_once, loops(1, 2), false, Until::end);
    train(resumed, loops(1, 2), false, Until::first_iteration);
    CHECK(std::filesystem::exists(RunFolder(resumed).choices()));
    train(resumed, now_b_is_faster, true, Until::end);
    CHECK(same(resumed, at_once));
    CHECK(events_of(resumed).empty());

    train(without, loops(1, 2), false, Until::first_iteration);
    std::filesystem::remove(RunFolder(without).choices());
    train(without, now_b_is_faster, true, Until::end);
    CHECK(!same(without, at_once));
}

TEST_CASE("ranks_take_rank_0s_engines_and_one_on_another_gpu_chooses_its_own_and_says_so") {
    on_processes(2, [](Ranks& ranks) {
        const TempFolder folder;  // only rank 0's counts
        const path file = folder.path() / "run" / "convolutions.json";
        std::vector<std::string> lines, engines;
        const auto plan = [&](const std::vector<Loops>& providers) {
            EmulatedDevice device(CudaPrecision::f32, {}, providers);
            device->join(ranks);
            engines.clear();
            lines = plan_as_kept(*device, file, [&] {
                const ConvShape shape{.in_channels = 8, .out_channels = 8, .height = 5, .width = 5, .kernel = 3, .stride = 1};
                for (const ConvPlan::Choice& c : device->plan_convolution(shape, {.batches = {2}})->choices()) engines.push_back(c.engine);
            });
            return !engines.empty() && std::count(engines.begin(), engines.end(), engines[0]) == std::ssize(engines);
        };
        const bool first = ranks.rank() == 0;
        CHECK(plan(loops(first ? 1 : 3, 2)));
        CHECK(engines[0] == "a");
        CHECK(lines.empty());
        CHECK(std::filesystem::exists(file) == first);

        const std::vector<Loops> elsewhere = {{.name = "p 2", .plain = {{"c", 2}, {"d", 1}}}};
        for (const int time : {0, 1}) {
            CHECK(plan(first ? loops(3, 2) : elsewhere));
            CHECK(engines[0] == (first ? "a" : "d"));
            CHECK(std::ssize(lines) == (first && time == 0 ? 1 : 0));
            if (!lines.empty())
                CHECK(lines[0].find("Rank 1: The convolution engines that the run keeps were chosen on Emulated GPU | p 1") == 0);
        }
    });
}

}  // namespace jem
