// What a run does against being lost: it goes back to good states, keeps older checkpoints, and outlives disks that cannot be written.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "engine/files/output_file.h"
#include "tests/engine/training/runs.h"

namespace jem {
namespace {

// A run that is called diverged again and again, whenever its energy gap leaves 2.5 deviations of the last five iterations, and goes on.
Settings jumpy() {
    Settings s = small();
    s.iterations = 24;
    s.log_interval = 1;
    s.lr = 0.2;
    s.gap_window = 5;
    s.gap_deviations = 2.5;
    s.max_rollbacks = 1000;
    return s;
}

Settings hopeless() {
    Settings s = small();
    s.lr = 1e6;
    s.warmup_iterations = 0;
    s.iterations = 50;
    s.checkpoint_interval = 2;
    return s;
}

std::vector<nlohmann::ordered_json> events(const path& root, const std::string& kind) {
    std::vector<nlohmann::ordered_json> found = metrics(root);
    std::erase_if(found, [&](const auto& line) { return line.value("event", "") != kind; });
    return found;
}

// Out of the way, and a file in its place: nothing can be written there.
void put_away(const path& folder, const path& to) {
    std::filesystem::rename(folder, to);
    std::ofstream(folder) << "in the way";
}

std::set<std::string> states(const path& root) {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(root / "checkpoints"))
        if (entry.path().filename().string().ends_with(".state.safetensors")) names.insert(entry.path().filename().string());
    return names;
}

}  // namespace

TEST_CASE("a_run_that_diverges_goes_back_and_on_with_an_event_for_each_time_and_no_line_of_what_was_abandoned") {
    const TempFolder folder;
    const Run run = train(folder.path(), jumpy());
    REQUIRE(run.result.end == TrainingEnd::finished);
    const auto back = events(folder.path(), "rollback");
    REQUIRE(back.size() >= 2);
    uint64_t attempt = 0;
    for (const auto& event : back) {
        CHECK(event.at("attempt").get<uint64_t>() == ++attempt);
        CHECK(event.at("iteration").get<int64_t>() < event.at("from").get<int64_t>());
        CHECK(mentions(event.at("reason"), "energy gap"));
    }
    std::vector<int64_t> logged;
    for (const auto& line : metrics(folder.path()))
        if (!line.contains("event")) logged.push_back(line.at("iteration"));
    REQUIRE(logged.size() == 24);
    for (size_t i = 0; i < logged.size(); ++i) CHECK(logged[i] == static_cast<int64_t>(i) + 1);
    // The rate that the last iterations had is the schedule's, times what going back left of it.
    const auto last = metrics(folder.path()).back();
    const double factor = back.back().at("rate_factor");
    CHECK(last.at("lr").get<double>() == doctest::Approx(factor * jumpy().lr));
    check_finite(SafetensorsFile::read(folder.path() / kFiles[0]));
}

TEST_CASE("a_run_that_goes_back_and_is_killed_anywhere_has_the_bits_of_the_uninterrupted_one") {
    for (const int64_t interval : {0, 2}) {  // with checkpoints at the ends of epochs, and with more of them
        CAPTURE(interval);
        const TempFolder whole;
        Settings s = jumpy();
        s.checkpoint_interval = interval;
        const Run uninterrupted = train(whole.path(), s);
        REQUIRE(uninterrupted.result.end == TrainingEnd::finished);
        REQUIRE(events(whole.path(), "rollback").size() >= 2);
        const auto told = static_cast<int64_t>(uninterrupted.observer.iterations.size());
        REQUIRE(told > s.iterations);  // some were done more than once
        for (int64_t kill = 1; kill < told; kill += 23) {
            CAPTURE(kill);
            const TempFolder parts;
            CHECK_THROWS_AS(train(parts.path(), s, {.kill_after = kill}), Killed);
            REQUIRE(train(parts.path(), s, {.resume = true}).result.end == TrainingEnd::finished);
            check_same_run(parts.path(), whole.path());
        }
    }
}

TEST_CASE("a_run_beyond_saving_ends_as_diverged_after_as_many_rollbacks_as_allowed_and_leaves_a_state_from_before_the_trouble") {
    for (const int64_t most : {0, 1, 5}) {
        CAPTURE(most);
        Settings s = hopeless();
        s.max_rollbacks = most;
        const TempFolder folder;
        const Run run = train(folder.path(), s);
        REQUIRE(run.result.end == TrainingEnd::diverged);
        CHECK(static_cast<int64_t>(events(folder.path(), "rollback").size()) == most);
        CHECK(events(folder.path(), "diverged").size() == 1);
        CHECK(mentions(run.result.message, (folder.path() / kFiles[1]).string()));
        for (const char* file : {kFiles[0], kFiles[1]}) check_finite(SafetensorsFile::read(folder.path() / file));
        s.lr = 1e-3;
        if (most == 5) CHECK(train(folder.path(), s, {.resume = true}).result.end == TrainingEnd::finished);
    }
}

TEST_CASE("the_remedies_come_in_their_order_and_are_part_of_the_state") {
    const TempFolder folder;
    train(folder.path(), hopeless());
    const auto back = events(folder.path(), "rollback");
    REQUIRE(back.size() == 5);
    const char* const remedies[] = {"other random numbers", "half the learning rate", "K doubled", "a fresh replay buffer",
                                    "half the learning rate"};
    for (size_t i = 0; i < back.size(); ++i) CHECK(mentions(back[i].at("measure"), remedies[i]));
    CHECK(back[4].at("rate_factor") == 0.25);
    CHECK(back[4].at("sgld_steps") == 2 * hopeless().sgld_steps);
    const auto progress = nlohmann::json::parse(SafetensorsFile::read(folder.path() / kFiles[0]).metadata.at("progress"));
    CHECK(progress.at("recovery").at("rate_factor") == 0.25);
    CHECK(progress.at("recovery").at("step_factor") == 2);
    CHECK(progress.at("recovery").at("attempt") == 6);
    CHECK(progress.at("recovery").at("in_a_row") == 0);
}

TEST_CASE("a_poisoned_last_checkpoint_is_not_the_end") {
    Settings s = small();
    s.reinit_freq = 0;
    s.checkpoint_interval = 1;
    const TempFolder folder;
    train(folder.path(), s, {.stop_after = 2});
    SafetensorsFile poisoned = SafetensorsFile::read(folder.path() / kFiles[0]);
    const std::vector<float> nan(static_cast<size_t>(10 * kPixels), std::nanf(""));
    poisoned.tensors["replay_buffer"] = make_file_tensor(std::span<const float>(nan), {10, kChannels, kSide, kSide});
    poisoned.write_atomically(folder.path() / kFiles[0]);
    const Run run = train(folder.path(), s, {.resume = true});
    CHECK(run.result.end == TrainingEnd::finished);
    CHECK(events(folder.path(), "rollback").size() == 2);  // to the same state, then to an older one
    check_finite(SafetensorsFile::read(folder.path() / kFiles[0]));
}

TEST_CASE("states_are_kept_as_many_as_asked_for_a_hundred_iterations_apart") {
    Settings s = small();
    s.depth = 10;
    s.sgld_steps = 1;
    s.iterations = 320;
    s.checkpoint_interval = 50;
    s.log_interval = 100;
    s.metric_interval = 0;
    s.chance_iterations = 0;
    s.batch_size = 1;  // a long epoch
    s.gen_batch_size = 1;
    s.epochs = 1;
    RunOptions o;
    o.held_out = 1;
    o.alter_train = [](ImageSet& set) {
        const ImageSet one = set;
        while (set.count() < 500) {
            set.labels.insert(set.labels.end(), one.labels.begin(), one.labels.end());
            set.pixels.insert(set.pixels.end(), one.pixels.begin(), one.pixels.end());
        }
    };
    const auto left = [&](int64_t keep) {
        const TempFolder folder;
        s.keep = keep;
        REQUIRE(train(folder.path(), s, o).result.end == TrainingEnd::finished);
        return states(folder.path());
    };
    const std::string last = "last.state.safetensors", a = "iteration_0000050.state.safetensors", b = "iteration_0000150.state.safetensors",
                      c = "iteration_0000250.state.safetensors";
    CHECK(left(1) == std::set<std::string>{last});
    CHECK(left(2) == std::set<std::string>{last, b, c});  // the youngest is not yet a hundred iterations old
    CHECK(left(3) == std::set<std::string>{last, a, b, c});
}

TEST_CASE("a_disk_that_cannot_be_written_for_a_while_costs_no_line_and_no_iteration") {
    const TempFolder whole, folder, aside;
    Settings s = small();
    s.iterations = 12;
    s.log_interval = 1;
    train(whole.path(), s);
    // The folder goes, and a file stands in its place; later it comes back.
    const path root = folder.path() / "run", away = aside.path() / "run";
    const Run run = train(root, s, {.on_iteration = [&](int64_t done) {
                              if (done == 3) put_away(root, away);
                              if (done != 8) return;
                              std::filesystem::remove(root);
                              std::filesystem::rename(away, root);
                          }});
    const TrainingResult& result = run.result;
    const Observer& observer = run.observer;
    CHECK(result.end == TrainingEnd::finished);
    CHECK(result.unwritten.empty());
    const auto told = [&](const char* part) {
        return std::count_if(observer.messages.begin(), observer.messages.end(), [&](const std::string& m) { return mentions(m, part); });
    };
    CHECK(told("the log waits") == 1);
    CHECK(told("the log can be written again") == 1);
    CHECK(told("the checkpoint of iteration") >= 1);
    CHECK(told("could be written") >= 1);
    check_same_run(root, whole.path());
}

TEST_CASE("a_last_checkpoint_that_could_not_be_written_is_told_in_the_result") {
    const TempFolder folder, aside;
    Settings s = small();
    const path root = folder.path() / "run";
    const Run run = train(root, s, {.on_iteration = [&](int64_t done) {
                              if (done == 5) put_away(root, aside.path() / "run");
                          }});
    const TrainingResult& result = run.result;
    CHECK(result.iterations == kIterations);
    CHECK(mentions(result.unwritten, "checkpoint"));
    check_finite(SafetensorsFile::read(aside.path() / "run" / kFiles[0]));  // the one of before is whole
}

TEST_CASE("the_best_checkpoint_is_best_by_what_was_asked_for") {
    Settings s = small();
    s.iterations = 12;
    s.best_by = BestBy::energy_gap;
    const TempFolder folder;
    train(folder.path(), s);
    double least = INFINITY;
    int64_t at = 0;
    for (const auto& line : metrics(folder.path())) {
        if (!line.contains("energy_sampled")) continue;
        const double gap = std::abs(line.at("energy_sampled").get<double>() - line.at("energy_real").get<double>());
        if (gap < least) least = gap, at = line.at("iteration");
    }
    const auto progress = nlohmann::json::parse(SafetensorsFile::read(folder.path() / kFiles[2]).metadata.at("progress"));
    CHECK(progress.at("best_iteration") == at);
    CHECK(progress.at("best_by") == "energy-gap");
    CHECK(progress.at("best_score").get<double>() == doctest::Approx(-least));
}

TEST_CASE("an_epoch_s_line_says_whether_the_run_is_well") {
    Settings s = small();
    s.reinit_freq = 1;  // every chain starts afresh
    s.iterations = 6;
    const TempFolder folder;
    const Run run = train(folder.path(), s);
    int64_t lines = 0;
    for (const auto& line : metrics(folder.path())) {
        if (!line.contains("energy_real")) continue;
        ++lines;
        CHECK(std::isfinite(line.at("energy_sampled").get<double>()));
        CHECK(std::isfinite(line.at("energy_noise").get<double>()));
        double sum = 0;
        for (const auto& share : line.at("buffer_classes")) sum += share.get<double>();
        CHECK(sum == doctest::Approx(1));
        // 6 of 10 images are redrawn an iteration: nobody is as old as the run for long, none younger than now
        const double age = line.at("buffer_age");
        CHECK(age >= 0.5);
        CHECK(age < line.at("iteration").get<double>());
        CHECK(line.at("clamped").get<double>() >= 0);
        CHECK(line.at("chain_way").get<double>() > 0);
    }
    CHECK(lines == 2);
    CHECK(std::count_if(run.observer.messages.begin(), run.observer.messages.end(),
                        [](const std::string& m) { return mentions(m, "epoch ") && mentions(m, "energies: real"); }) == 2);
}

TEST_CASE("sheets_come_every_so_many_iterations_as_well") {
    Settings s = small();
    s.sample_every = 2;
    s.sample_interval = 0;
    const TempFolder folder;
    const Run run = train(folder.path(), s);
    CHECK(run.observer.sheets ==
          std::vector<std::string>{"iteration_0000002.png", "iteration_0000004.png", "iteration_0000006.png", "iteration_0000007.png"});
}

}  // namespace jem
