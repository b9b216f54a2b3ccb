// Whole runs on tiny images: determinism, resuming, logging, divergence.
#include "engine/training/trainer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/settings/schedule.h"
#include "tests/engine/training/runs.h"
#include "tests/thread_ranks.h"

namespace jem {

TEST_CASE("images_of_another_size_than_the_network_takes_are_refused_by_name_and_sizes") {
    const TempFolder folder;
    for (const std::array<int, 3>& size : {std::array{3, 4, 16}, std::array{3, 16, 4}, std::array{12, 4, 4}}) {
        const std::string sizes = std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(size[2]);
        CAPTURE(sizes);
        RunOptions of_train, of_held_out;
        of_train.alter_train = of_held_out.alter_held_out = [=](ImageSet& set) {  // as many bytes: nothing but the sizes can tell
            set.name = "oblong";
            set.channels = size[0];
            set.height = size[1];
            set.width = size[2];
        };
        for (const RunOptions& o : {of_train, of_held_out}) {
            const std::string error = error_of([&] { train(folder.path() / "run", small(), o); });
            CHECK_MESSAGE((mentions(error, "oblong") && mentions(error, sizes) && mentions(error, "3x8x8")), error);
        }
    }
    RunOptions cut;
    cut.alter_train = [](ImageSet& set) { set.pixels.pop_back(); };
    CHECK(mentions(error_of([&] { train(folder.path() / "run", small(), cut); }), "bytes of pixels"));
}

TEST_CASE("a_class_without_images_is_told_before_the_buffer_is_filled") {
    const TempFolder folder;
    Settings s = small();
    s.iterations = 0;
    RunOptions o;
    o.alter_train = [](ImageSet& set) { std::replace(set.labels.begin(), set.labels.end(), 1, 2); };
    o.alter_held_out = [](ImageSet& set) { set.class_names = {"ant", "bee", "cat"}; };
    const Run run = train(folder.path(), s, o);
    REQUIRE(run.observer.messages_before_progress.has_value());
    REQUIRE(run.observer.messages_before_progress->size() == 1);
    CHECK(mentions(run.observer.messages_before_progress->front(), "class 1 (bee)"));
    CHECK(std::count(run.observer.messages.begin(), run.observer.messages.end(), run.observer.messages_before_progress->front()) == 1);
}

TEST_CASE("whether_images_are_flipped_is_told_by_the_set_and_not_by_its_name") {
    const auto weights_with = [](bool flip, const char* name) {
        const TempFolder folder;
        Settings s = small();
        s.augment = true;
        s.iterations = 1;
        s.warmup_iterations = 0;  // the first iteration of a warm-up changes no weight
        RunOptions o;
        o.alter_train = [=](ImageSet& set) {
            set.flip = flip;
            set.name = name;
        };
        train(folder.path(), s, o);
        return SafetensorsFile::read(folder.path() / "checkpoints" / "last.safetensors").floats("class_output.weight");
    };
    const auto flipped = weights_with(true, "cifar10");
    CHECK(flipped == weights_with(true, "unheard of"));
    CHECK(flipped != weights_with(false, "cifar10"));
}

TEST_CASE("the_images_of_p_of_x_are_flipped_and_cropped_each_for_itself_and_flipped_only_where_the_set_may_be") {
    const auto weights_with = [](Augment how, bool may_be_flipped) {
        const TempFolder folder;
        Settings s = small();
        s.p_y_given_x_weight = 0;  // these images alone
        s.gen_augment = how;
        s.iterations = 1;
        s.warmup_iterations = 0;
        RunOptions o;
        o.alter_train = [=](ImageSet& set) { set.flip = may_be_flipped; };
        train(folder.path(), s, o);
        return SafetensorsFile::read(folder.path() / "checkpoints" / "last.safetensors").floats("f.layer1.0.conv1.weight");
    };
    const auto off = weights_with(Augment::off, true), flip = weights_with(Augment::flip, true), crop = weights_with(Augment::crop, true),
               both = weights_with(Augment::both, true);
    for (const auto* changed : {&flip, &crop, &both}) CHECK(*changed != off);
    CHECK(flip != crop);
    CHECK(both != flip);
    CHECK(both != crop);
    CHECK(weights_with(Augment::flip, false) == off);
    CHECK(weights_with(Augment::both, false) == crop);
}

TEST_CASE("the_same_seed_gives_the_same_run_bit_for_bit") {
    for (const Variant& v : variants()) {
        CAPTURE(v.name);
        const TempFolder a, b, c;
        const Run run = train(a.path(), v.settings);
        CHECK(run.result.end == TrainingEnd::finished);
        CHECK(run.result.iterations == kIterations);
        train(b.path(), v.settings);
        check_same_run(b.path(), a.path());
        Settings other = v.settings;
        other.seed = 2;
        train(c.path(), other);
        for (const char* file : kFiles) {
            const SafetensorsFile first = SafetensorsFile::read(a.path() / file), second = SafetensorsFile::read(c.path() / file);
            for (const auto& [name, tensor] : first.tensors)
                if (name.ends_with("conv1.weight") || name == "replay_buffer") CHECK(second.at(name).bytes() != tensor.bytes());
        }
        CHECK(metrics(c.path()) != metrics(a.path()));
    }
}

TEST_CASE("a_run_that_was_stopped_anywhere_goes_on_as_if_it_had_not_been") {
    for (const Variant& v : variants()) {
        CAPTURE(v.name);
        const TempFolder whole;
        const Run uninterrupted = train(whole.path(), v.settings);
        for (int64_t stop = 1; stop < kIterations; ++stop) {
            CAPTURE(stop);
            const TempFolder parts;
            const Run first = train(parts.path(), v.settings, {.stop_after = stop});
            CHECK(first.result.end == TrainingEnd::interrupted);
            // Asked to within the evaluation before, it does not wait for that.
            const bool earlier = stop > 1 && (stop - 1) % v.settings.iterations_per_epoch(kTrainImages) == 0;
            REQUIRE(first.result.iterations == stop - (earlier ? 1 : 0));
            const Run second = train(parts.path(), v.settings, {.resume = true});
            CHECK(second.result.end == TrainingEnd::finished);
            CHECK(second.result.accuracy == uninterrupted.result.accuracy);
            CHECK(second.result.best_accuracy == uninterrupted.result.best_accuracy);
            REQUIRE(std::ssize(second.observer.iterations) == kIterations - first.result.iterations);
            CHECK(second.observer.iterations[0].done == first.result.iterations + 1);
            check_same_run(parts.path(), whole.path());
        }
    }
}

TEST_CASE("an_evaluation_is_not_waited_for_and_the_resumed_run_begins_with_it") {
    for (const Variant& v : variants()) {
        CAPTURE(v.name);
        Settings s = v.settings;
        s.metric_interval = 1;
        s.sample_interval = 1;
        const TempFolder whole;
        const Run uninterrupted = train(whole.path(), s);
        const int64_t epoch = s.iterations_per_epoch(kTrainImages);
        std::vector<int64_t> ends;
        for (int64_t end = epoch; end < kIterations; end += epoch) ends.push_back(end);
        ends.push_back(kIterations);
        for (const bool while_measuring : {false, true}) {
            CAPTURE(while_measuring);
            for (int64_t evaluation = 0; evaluation < std::ssize(ends); ++evaluation) {
                CAPTURE(evaluation);
                const TempFolder parts;
                const Run first = train(parts.path(), s, {.stop_in_evaluation = evaluation, .while_measuring = while_measuring});
                CHECK(first.result.end == TrainingEnd::interrupted);
                CHECK(first.result.iterations == ends[static_cast<size_t>(evaluation)]);
                CHECK(std::ssize(first.observer.sheets) == (s.samples() ? evaluation : 0));
                const std::vector<nlohmann::ordered_json> lines = metrics(parts.path());
                const bool shorter = lines.size() < metrics(whole.path()).size();
                CHECK(shorter);
                // Once more within the evaluation that is owed.
                const Run again = train(parts.path(), s, {.resume = true, .stop_in_evaluation = 0, .while_measuring = while_measuring});
                CHECK(again.result.end == TrainingEnd::interrupted);
                CHECK(again.observer.iterations.empty());
                CHECK(metrics(parts.path()) == lines);
                const Run rest = train(parts.path(), s, {.resume = true});
                CHECK(rest.result.end == TrainingEnd::finished);
                CHECK(rest.result.accuracy == uninterrupted.result.accuracy);
                CHECK(std::ssize(rest.observer.iterations) == kIterations - first.result.iterations);
                check_same_run(parts.path(), whole.path());
            }
        }
    }
}

TEST_CASE("a_run_that_is_killed_behind_an_owed_evaluation_writes_its_line_once") {
    Settings s = small();
    s.sample_interval = 1;
    const TempFolder whole, parts;
    train(whole.path(), s);
    CHECK(train(parts.path(), s, {.stop_in_evaluation = 1}).result.end == TrainingEnd::interrupted);
    const auto lines = metrics(parts.path()).size();
    for (int i = 0; i < 2; ++i) {
        CHECK_THROWS_AS(train(parts.path(), s, {.resume = true, .kill_at_sheet = 0}), Killed);
        CHECK(metrics(parts.path()).size() == lines + 1);
    }
    CHECK(train(parts.path(), s, {.resume = true}).result.end == TrainingEnd::finished);
    check_same_run(parts.path(), whole.path());
}

TEST_CASE("ranks_leave_an_evaluation_together_and_go_on_together") {
    const Settings s = small();
    const auto train_on_two = [&](const path& root, const RunOptions& options) {
        std::vector<Run> runs(2);
        on_ranks(2, [&](Ranks& ranks) {
            RunOptions own = options;
            own.ranks = &ranks;
            if (ranks.rank() > 0) own.stop_in_evaluation = -1;
            runs[static_cast<size_t>(ranks.rank())] = train(root, s, own);
        });
        CHECK(runs[1].result.end == runs[0].result.end);
        CHECK(runs[1].result.iterations == runs[0].result.iterations);
        return runs[0].result;
    };
    const TempFolder whole, parts;
    CHECK(train_on_two(whole.path(), {}).end == TrainingEnd::finished);
    const TrainingResult first = train_on_two(parts.path(), {.stop_in_evaluation = 0});
    CHECK(first.end == TrainingEnd::interrupted);
    CHECK(first.iterations == s.iterations_per_epoch(kTrainImages));
    CHECK(train_on_two(parts.path(), {.resume = true, .stop_in_evaluation = 0}).end == TrainingEnd::interrupted);
    CHECK(train_on_two(parts.path(), {.resume = true}).end == TrainingEnd::finished);
    check_same_run(parts.path(), whole.path());
}

TEST_CASE("an_evaluation_that_is_owed_is_made_up_for_also_where_the_run_is_longer_by_now") {
    const TempFolder root, whole;
    Settings s = small();
    train(whole.path(), s);
    CHECK(train(root.path(), s, {.stop_in_evaluation = 2}).result.iterations == kIterations);
    s.iterations = kIterations + 1;
    const Run longer = train(root.path(), s, {.resume = true});
    CHECK(longer.result.end == TrainingEnd::finished);
    CHECK(longer.observer.iterations.size() == 1);
    const auto lines = metrics(root.path()), before = metrics(whole.path());
    REQUIRE(lines.size() == before.size() + 1);
    CHECK(std::vector(lines.begin(), lines.end() - 1) == before);
}

TEST_CASE("k_grows_while_real_and_drawn_images_are_told_apart_and_goes_on_after_a_stop_as_if_it_had_not_been") {
    Settings s = small();
    s.iterations = 30;
    s.sgld_steps = 2;
    s.grow_steps_at = 1e-3;  // any time
    s.init = StartForm::images;
    s.init_data = "svhn:elsewhere";
    s.gen_augment = Augment::both;
    s.log_interval = 1;
    const TempFolder whole;
    train(whole.path(), s);
    const auto steps = [](const path& root) {
        std::vector<int64_t> all;
        for (const auto& line : metrics(root)) all.push_back(line.at("sgld_steps").get<int64_t>());
        return all;
    };
    // 8 results, the last of which is read while the next iteration runs; then the same again; and no more than --sgld-steps.
    std::vector<int64_t> expected(30, 2);
    std::fill(expected.begin(), expected.begin() + 18, 1);
    std::fill(expected.begin(), expected.begin() + 9, 0);
    CHECK(steps(whole.path()) == expected);
    for (const auto& line : metrics(whole.path())) {
        const double auroc = line.at("auroc_neg");
        CHECK_MESSAGE((auroc >= 0 && auroc <= 1), auroc);
    }
    for (const int64_t stop : {5, 7, 8, 9, 10, 16, 17, 18, 20}) {
        CAPTURE(stop);
        const TempFolder parts;
        train(parts.path(), s, {.stop_after = stop});
        train(parts.path(), s, {.resume = true});
        check_same_run(parts.path(), whole.path());
    }
    const TempFolder stays;
    s.grow_steps_at = 1;  // never told apart that well
    train(stays.path(), s);
    CHECK(steps(stays.path()) == std::vector<int64_t>(30, 0));
}

TEST_CASE("stopping_at_every_iteration_changes_nothing") {
    const TempFolder whole, parts;
    const Settings s = small();
    train(whole.path(), s);
    for (int64_t i = 1; i < kIterations; ++i) CHECK(train(parts.path(), s, {.resume = true, .stop_after = 1}).result.iterations == i);
    CHECK(train(parts.path(), s, {.resume = true}).result.end == TrainingEnd::finished);
    check_same_run(parts.path(), whole.path());
    // Once more: nothing is left to do, and nothing changes.
    const Run again = train(parts.path(), s, {.resume = true});
    CHECK(again.result.end == TrainingEnd::finished);
    CHECK(again.observer.iterations.empty());
    CHECK(again.result.accuracy >= 0);
    check_same_run(parts.path(), whole.path());
}

TEST_CASE("checkpoints_in_between_do_not_change_the_run") {
    const TempFolder without, with;
    Settings s = small();
    train(without.path(), s);
    s.checkpoint_interval = 2;
    train(with.path(), s);
    SafetensorsFile a = without_time(without.path() / kFiles[0]), b = without_time(with.path() / kFiles[0]);
    a.metadata.erase("config");
    b.metadata.erase("config");
    CHECK(differences(a, b).empty());
    CHECK(metrics(with.path()) == metrics(without.path()));
}

TEST_CASE("weights_are_kept_after_every_so_many_epochs_as_the_checkpoint_has_them_then") {
    Settings s = small();
    for (const int64_t interval : {0, 1, 2, 3}) {
        CAPTURE(interval);
        const TempFolder folder;
        s.archive_interval = interval;
        train(folder.path(), s);
        std::vector<std::string> want;
        for (int64_t epoch = 1; epoch <= kIterations / kEpoch; ++epoch)  // the last, incomplete one has none
            if (interval > 0 && epoch % interval == 0) want.push_back("epoch_000" + std::to_string(epoch) + ".safetensors");
        CHECK(archives(folder.path()) == want);
    }
    const TempFolder whole, part;
    s.archive_interval = 1;
    s.ema = 0.9;
    train(whole.path(), s);
    CHECK_THROWS_AS(train(part.path(), s, {.kill_after = kEpoch + 1}), Killed);
    CHECK(part.read("checkpoints/epoch_0001.safetensors") == part.read("checkpoints/last.safetensors"));
    CHECK(differences(without_time(whole.path() / "checkpoints/epoch_0001.safetensors"), without_time(part.path() / kFiles[1])).empty());
}

TEST_CASE("resuming_neither_loses_nor_changes_what_is_kept") {
    Settings s = small();
    s.archive_interval = 1;
    s.checkpoint_interval = 2;
    const TempFolder whole;
    train(whole.path(), s);
    for (int64_t stop = 1; stop < kIterations; ++stop) {
        CAPTURE(stop);
        const TempFolder parts;
        train(parts.path(), s, {.stop_after = stop});
        // As a kill leaves it between the archive and the checkpoint of an epoch's end.
        if (stop < kEpoch) parts.write("checkpoints/epoch_0001.safetensors", "of another time");
        train(parts.path(), s, {.resume = true});
        REQUIRE(archives(parts.path()) == archives(whole.path()));
        for (const std::string& name : archives(whole.path()))
            CHECK(
                differences(without_time(parts.path() / "checkpoints" / name), without_time(whole.path() / "checkpoints" / name)).empty());
        check_same_run(parts.path(), whole.path());
    }
}

TEST_CASE("a_killed_run_goes_on_from_its_last_checkpoint") {
    // As a kill leaves it: the folder as it was at a checkpoint, while the log, and temporary files, had gone on.
    Settings s = small();
    s.checkpoint_interval = 2;
    const TempFolder whole, at_2, at_5;
    train(whole.path(), s);
    train(at_2.path(), s, {.stop_after = 2});
    train(at_5.path(), s, {.stop_after = 5});

    SUBCASE("the log had gone on, its last line is torn") {
        const TempFolder killed;
        copy_run(at_2.path(), killed.path());
        const std::string log = at_5.read("metrics.jsonl");
        CHECK(std::count(log.begin(), log.end(), '\n') > 1);
        killed.write("metrics.jsonl", log + "{\"iteration\":6,\"epoch\":1,\"time_");
        killed.write("checkpoints/last.state.safetensors.tmp", "half a file");
        killed.write("metrics.jsonl.tmp", "half a file");
        CHECK(train(killed.path(), s, {.resume = true}).result.end == TrainingEnd::finished);
        check_same_run(killed.path(), whole.path());
    }
    SUBCASE("between the two renames: the state is newer than the weights") {
        const TempFolder killed;
        copy_run(at_5.path(), killed.path());
        std::filesystem::copy_file(at_2.path() / kFiles[1], killed.path() / kFiles[1], std::filesystem::copy_options::overwrite_existing);
        const Run run = train(killed.path(), s, {.resume = true});
        CHECK(run.observer.iterations.at(0).done == 6);
        check_same_run(killed.path(), whole.path());
    }
    SUBCASE("before the weights were ever written") {
        const TempFolder killed;
        copy_run(at_2.path(), killed.path());
        std::filesystem::remove(killed.path() / kFiles[1]);
        train(killed.path(), s, {.resume = true});
        check_same_run(killed.path(), whole.path());
    }
    SUBCASE("after the last checkpoint, before the end was told") {
        const TempFolder killed;
        copy_run(whole.path(), killed.path());
        std::filesystem::copy_file(at_2.path() / kFiles[1], killed.path() / kFiles[1], std::filesystem::copy_options::overwrite_existing);
        const Run run = train(killed.path(), s, {.resume = true});
        CHECK(run.observer.iterations.empty());
        check_same_run(killed.path(), whole.path());
    }
    SUBCASE("before there was any checkpoint") {
        const TempFolder killed;
        killed.write("metrics.jsonl", "{\"iteration\":2}\n");
        const Run run = train(killed.path(), s, {.resume = true});
        CHECK(std::any_of(run.observer.messages.begin(), run.observer.messages.end(),
                          [](const std::string& m) { return mentions(m, "starting afresh"); }));
        check_same_run(killed.path(), whole.path());
    }
}

TEST_CASE("the_configuration_lies_there_before_anything_that_takes_long") {
    const TempFolder folder;
    const Settings s = small();
    const auto device = make_cpu_device({.threads = 1});
    WideResNet network(wide_resnet_settings(s));
    const RunFolder run(folder.path());
    struct Killed {};
    struct Killer final : TrainingObserver {
        void message(const std::string&) override {}
        void progress(const std::string&, int64_t, int64_t) override { throw Killed(); }  // while the buffer is filled
        void iteration(const Iteration&) override {}
        void samples(const path&, const std::vector<float>&, int64_t) override {}
    } killer;
    Trainer trainer(*device, network, s, images(kTrainImages, 1), images(7, 2), "test", run, killer);
    const std::atomic<bool> stop = false;
    CHECK_THROWS_AS(trainer.run(false, stop), Killed);
    CHECK(to_json(run.read_config()) == to_json(s));
    CHECK_FALSE(run.has_checkpoint());
}

TEST_CASE("a_run_that_starts_from_another_has_its_weights_statistics_and_buffer_and_nothing_else") {
    const TempFolder first;
    Settings s = small();
    s.optimizer = Optimizer::adam;
    s.lr = 1e-3;
    s.ema = 0.9;
    train(first.path(), s, {.stop_after = 5});
    const SafetensorsFile state = SafetensorsFile::read(first.path() / kFiles[0]);
    s.iterations = 0;
    s.seed = 2;
    for (const char* from : {kFiles[0], kFiles[1]}) {
        CAPTURE(std::string(from));
        const TempFolder second;
        s.start_from = (first.path() / from).string();
        const Run run = train(second.path(), s);
        CHECK(run.observer.last_progress != "Filling the replay buffer");
        REQUIRE_FALSE(run.observer.messages.empty());
        CHECK(mentions(run.observer.messages[0], "Starting from " + s.start_from + " (iteration 5)"));
        CHECK(mentions(run.observer.messages[0], (first.path() / kFiles[0]).string()));
        CHECK(RunFolder(second.path()).read_config().start_from == s.start_from);
        const SafetensorsFile started = SafetensorsFile::read(second.path() / kFiles[0]);
        CHECK(iteration_of(started) == 0);
        int64_t weights = 0;
        for (const auto& entry : started.tensors) {
            const std::string& name = entry.first;
            CAPTURE(name);
            if (name.starts_with("adam_")) {
                const std::vector<float> values = started.floats(name);
                CHECK(std::all_of(values.begin(), values.end(), [](float v) { return v == 0; }));
            } else if (name == "births") {
                for (const int64_t birth : started.ints(name)) CHECK(birth == 0);  // as old as the run
            } else if (name.starts_with("ema.")) {
                CHECK(entry.second.bytes() == state.at(name.substr(4)).bytes());  // it begins at the weights
            } else {
                CHECK(entry.second.bytes() == state.at(name).bytes());
                ++weights;
            }
        }
        CHECK(weights > 30);
    }
}

TEST_CASE("a_run_that_was_started_from_a_file_is_resumed_without_it") {
    const TempFolder first, whole, parts;
    Settings s = small();
    train(first.path(), s, {.stop_after = 3});
    const std::string from = (first.path() / kFiles[1]).string();
    s.start_from = from;
    train(whole.path(), s);
    train(parts.path(), s, {.stop_after = 2});
    std::filesystem::remove_all(first.path() / "checkpoints");
    train(parts.path(), s, {.resume = true});
    check_same_run(parts.path(), whole.path());
    // Before the first checkpoint it is still what the run begins with.
    const TempFolder early;
    CHECK(mentions(error_of([&] { train(early.path(), s, {.resume = true}); }), from));
}

TEST_CASE("a_start_without_a_buffer_fills_a_fresh_one_and_says_so") {
    const TempFolder first, fresh;
    Settings s = small();
    train(first.path(), s, {.stop_after = 3});
    std::filesystem::remove(first.path() / kFiles[0]);
    s.iterations = 0;
    train(fresh.path(), s);
    s.start_from = (first.path() / kFiles[1]).string();
    const TempFolder second;
    const Run run = train(second.path(), s);
    CHECK(mentions(run.observer.messages.at(0), "there is no replay buffer"));
    CHECK(SafetensorsFile::read(second.path() / kFiles[0]).at("replay_buffer").bytes() ==
          SafetensorsFile::read(fresh.path() / kFiles[0]).at("replay_buffer").bytes());
}

TEST_CASE("a_bare_file_brings_its_own_buffer_and_a_classifier_wants_none") {
    const TempFolder first, bare;
    Settings s = small();
    train(first.path(), s, {.stop_after = 3});
    SafetensorsFile file = SafetensorsFile::read(first.path() / kFiles[1]);
    file.metadata.clear();
    std::vector<float> pixels(static_cast<size_t>(10 * kPixels), 0.25f);
    file.tensors["replay_buffer"] = make_file_tensor(std::span<const float>(pixels), {10, kChannels, kSide, kSide});
    file.write_atomically(bare.path() / "converted.safetensors");
    s.start_from = (bare.path() / "converted.safetensors").string();
    s.iterations = 0;
    const TempFolder second, softmax;
    train(second.path(), s);
    CHECK(SafetensorsFile::read(second.path() / kFiles[0]).floats("replay_buffer") == pixels);
    s.p_x_weight = 0;
    s.buffer_size = 11;
    CHECK(train(softmax.path(), s).result.end == TrainingEnd::finished);
    CHECK_FALSE(SafetensorsFile::read(softmax.path() / kFiles[0]).has("replay_buffer"));
}

TEST_CASE("a_start_that_does_not_fit_is_refused_with_all_that_differs_and_leaves_no_configuration") {
    const TempFolder first, second;
    Settings s = small();
    s.iterations = 0;
    train(first.path(), s);
    s.start_from = (first.path() / kFiles[1]).string();
    const auto refusal = [&](const Settings& wrong) { return error_of([&] { train(second.path(), wrong); }); };
    Settings wide = s, buffer = s, missing = s;
    wide.width = 2;
    buffer.buffer_size = 11;
    missing.start_from = "no such file";
    const std::string shapes = refusal(wide);
    for (const char* name : {"f.layer1.0.conv1.weight", "more of another shape", "--width"}) {
        CAPTURE(std::string(name));
        CHECK(mentions(shapes, name));
    }
    CHECK(mentions(refusal(buffer), "is [10,3,8,8] (the run's would be [11,3,8,8]: --buffer-size"));
    CHECK(mentions(refusal(buffer), "Give --buffer-size 10."));
    CHECK(mentions(refusal(missing), "no such file"));
    SafetensorsFile file = SafetensorsFile::read(first.path() / kFiles[1]);
    const std::vector<float> pixels(10 * 3 * 8 * 4);
    file.tensors["replay_buffer"] = make_file_tensor(std::span<const float>(pixels), {10, 3, 8, 4});
    file.write_atomically(first.path() / "oblong.safetensors");
    Settings oblong = s;
    oblong.start_from = (first.path() / "oblong.safetensors").string();
    CHECK(mentions(refusal(oblong), "is [10,3,8,4]"));
    CHECK_FALSE(RunFolder(second.path()).has_config());
}

TEST_CASE("resuming_with_other_sizes_is_refused_and_leaves_the_folder_alone") {
    const TempFolder folder;
    const Settings s = small();
    train(folder.path(), s, {.stop_after = 2});
    const std::string config = folder.read("config.json"), log = folder.read("metrics.jsonl");
    Settings buffer = s, adam = s, ema = s, wide = s;
    buffer.buffer_size = 11;
    adam.optimizer = Optimizer::adam;
    ema.ema = 0.9;
    wide.width = 2;
    CHECK(mentions(error_of([&] { train(folder.path(), buffer, {.resume = true}); }), "--buffer-size"));
    CHECK(mentions(error_of([&] { train(folder.path(), adam, {.resume = true}); }), "--optimizer"));
    CHECK(mentions(error_of([&] { train(folder.path(), ema, {.resume = true}); }), "ema"));
    CHECK(mentions(error_of([&] { train(folder.path(), wide, {.resume = true}); }), "--width"));
    CHECK(folder.read("config.json") == config);
    CHECK(folder.read("metrics.jsonl") == log);
}

TEST_CASE("the_log_has_its_lines_and_the_last_one_always") {
    const TempFolder folder;
    const Settings s = small();
    const Run run = train(folder.path(), s);
    const auto lines = metrics(folder.path());
    std::vector<int64_t> iterations;
    for (const auto& line : lines) {
        const int64_t i = line.at("iteration");
        iterations.push_back(i);
        CAPTURE(i);
        CHECK(line.at("epoch") == (i - 1) / kEpoch);
        CHECK(line.at("lr").get<double>() == learning_rate(s, i - 1, kEpoch, kIterations));
        CHECK(line.contains("test_accuracy") == (i % kEpoch == 0 || i == kIterations));
        for (const char* key : {"loss", "loss_gen", "loss_clf", "f_pos", "f_neg", "grad_norm", "accuracy", "sgld_grad_norm"}) {
            CAPTURE(std::string(key));
            CHECK(line.at(key).is_number());
        }
        CHECK(line.at("loss").get<double>() ==
              doctest::Approx(line.at("loss_gen").get<double>() + line.at("loss_clf").get<double>()).epsilon(1e-12));
        CHECK(line.at("loss_gen").get<double>() ==
              doctest::Approx(line.at("f_neg").get<double>() - line.at("f_pos").get<double>()).epsilon(1e-12));
    }
    CHECK(iterations == std::vector<int64_t>{2, 3, 4, 6, 7});
    CHECK(lines.back().at("test_accuracy") == run.result.accuracy);
    CHECK(run.result.accuracy_on == "test");
    CHECK(run.result.best_accuracy >= run.result.accuracy);
    // The observer hears of every iteration, in order.
    REQUIRE(run.observer.iterations.size() == kIterations);
    for (size_t i = 0; i < kIterations; ++i) CHECK(run.observer.iterations[i].done == static_cast<int64_t>(i) + 1);
    CHECK(run.observer.sheets == std::vector<std::string>{"iteration_0000003.png", "iteration_0000006.png", "iteration_0000007.png"});
}

TEST_CASE("terms_that_are_off_have_no_numbers_in_the_log") {
    Settings s = small();
    s.iterations = 2;
    s.p_x_weight = 0;
    const TempFolder softmax, energy;
    train(softmax.path(), s);
    for (const auto& line : metrics(softmax.path()))
        for (const char* key : {"loss_gen", "f_pos", "f_neg", "sgld_grad_norm"}) CHECK_FALSE(line.contains(key));
    s = small();
    s.iterations = 2;
    s.p_y_given_x_weight = 0;
    const Run run = train(energy.path(), s);
    CHECK(run.result.end == TrainingEnd::finished);
    for (const auto& line : metrics(energy.path()))
        for (const char* key : {"loss_clf", "accuracy"}) CHECK_FALSE(line.contains(key));
}

TEST_CASE("nothing_to_train_and_nothing_to_evaluate_still_end_well") {
    Settings s = small();
    s.iterations = 0;
    const TempFolder none, blind, shorter;
    const Run run = train(none.path(), s);
    CHECK(run.result.end == TrainingEnd::finished);
    CHECK(run.result.iterations == 0);
    CHECK(run.result.accuracy >= 0);
    CHECK(metrics(none.path()).empty());
    for (const char* file : kFiles) CHECK(std::filesystem::exists(none.path() / file));

    s = small();
    const Run unseen = train(blind.path(), s, {.held_out = 0});
    CHECK(unseen.result.accuracy == -1);
    const auto lines = metrics(blind.path());
    REQUIRE(lines.size() == 5);  // the last line of an epoch does not wait for an evaluation that never comes
    CHECK(lines.back().at("iteration") == kIterations);

    train(shorter.path(), s, {.stop_after = 5});
    s.iterations = 3;  // fewer than are done
    const Run less = train(shorter.path(), s, {.resume = true});
    CHECK(less.result.end == TrainingEnd::finished);
    CHECK(less.result.iterations == 5);
    CHECK(less.result.accuracy >= 0);
}

TEST_CASE("epochs_are_those_of_the_labelled_set") {
    Settings s = small();
    s.iterations = -1;
    s.epochs = 2;
    const TempFolder folder;
    CHECK(train(folder.path(), s).result.iterations == 2 * kEpoch);
    s.p_y_given_x_weight = 0;  // without labels: of the generative batches, 26 / 6
    s.epochs = 1;
    const TempFolder energy;
    CHECK(train(energy.path(), s).result.iterations == 4);
}

TEST_CASE("batches_larger_than_the_data_are_an_error_that_names_the_flag") {
    const TempFolder folder;
    Settings s = small();
    s.batch_size = kTrainImages + 1;
    CHECK(mentions(error_of([&] { train(folder.path(), s); }), "--batch-size is 27 (there are 26"));
    s = small();
    s.gen_batch_size = kTrainImages + 1;
    CHECK(mentions(error_of([&] { train(folder.path(), s); }), "--gen-batch-size is 27 (there are 26"));
    // What is not used does not matter, and a batch of everything is possible.
    s.p_x_weight = 0;
    s.iterations = 1;
    CHECK(train(folder.path(), s).result.end == TrainingEnd::finished);
    const TempFolder all;
    s = small();
    s.batch_size = s.gen_batch_size = kTrainImages;
    s.iterations = 2;
    CHECK(train(all.path(), s).result.end == TrainingEnd::finished);
}

TEST_CASE("the_replay_buffer_stays_full_of_pixels") {
    for (const auto& sizes : {std::pair<int64_t, int64_t>{10, 6}, {4, 9}, {1, 5}, {2, 2}}) {  // more chains than images, too
        const auto [size, chains] = sizes;
        CAPTURE(sizes.first);
        for (const StartForm init : {StartForm::informative, StartForm::uniform, StartForm::gaussian, StartForm::images}) {
            Settings s = small();
            s.buffer_size = size;
            s.gen_batch_size = chains;
            s.init = init;
            s.iterations = 3;
            const TempFolder folder;
            CHECK(train(folder.path(), s).result.end == TrainingEnd::finished);
            const SafetensorsFile state = SafetensorsFile::read(folder.path() / kFiles[0]);
            CHECK(state.at("replay_buffer").shape == std::vector<int64_t>{size, kChannels, kSide, kSide});
            for (const float v : state.floats("replay_buffer")) CHECK_MESSAGE((v >= -1 && v <= 1), "the buffer holds ", v);
            // The weights' own file does not carry it.
            CHECK_FALSE(SafetensorsFile::read(folder.path() / kFiles[1]).has("replay_buffer"));
        }
    }
}

TEST_CASE("a_learning_rate_that_is_far_too_high_ends_as_diverged_with_a_good_checkpoint") {
    Settings s = small();
    s.lr = 1e6;
    s.warmup_iterations = 0;
    s.iterations = 50;
    s.checkpoint_interval = 1;
    s.on_divergence = OnDivergence::stop;
    const TempFolder folder;
    const Run run = train(folder.path(), s);
    CHECK(run.result.end == TrainingEnd::diverged);
    CHECK(mentions(run.result.message, "diverged in iteration " + std::to_string(run.result.iterations)));
    CHECK(mentions(run.result.message, (folder.path() / "checkpoints/last.safetensors").string()));
    for (const char* file : {kFiles[0], kFiles[1]}) {
        const SafetensorsFile checkpoint = SafetensorsFile::read(folder.path() / file);
        check_finite(checkpoint);
        CHECK(nlohmann::json::parse(checkpoint.metadata.at("progress")).at("iteration").get<int64_t>() < run.result.iterations);
    }
    for (const auto& line : metrics(folder.path())) CHECK(line.at("iteration").get<int64_t>() < run.result.iterations);
}

TEST_CASE("a_run_that_diverges_before_any_checkpoint_says_so") {
    Settings s = small();
    s.lr = 1e6;
    s.warmup_iterations = 0;
    s.iterations = 50;
    s.batch_size = 1;  // a long epoch
    s.norm = NormKind::none;
    s.on_divergence = OnDivergence::stop;
    const TempFolder folder;
    const Run run = train(folder.path(), s);
    CHECK(run.result.end == TrainingEnd::diverged);
    CHECK(mentions(run.result.message, "No checkpoint had been written yet"));
    CHECK_FALSE(RunFolder(folder.path()).has_checkpoint());
}

TEST_CASE("a_nan_in_the_buffer_ends_as_diverged_and_reaches_no_checkpoint") {
    Settings s = small();
    s.reinit_freq = 0;
    s.checkpoint_interval = 1;
    s.on_divergence = OnDivergence::stop;
    const TempFolder folder;
    train(folder.path(), s, {.stop_after = 2});
    const std::string last = folder.read(kFiles[1]);
    SafetensorsFile poisoned = SafetensorsFile::read(folder.path() / kFiles[0]);
    const std::vector<float> nan(static_cast<size_t>(10 * kPixels), std::numeric_limits<float>::quiet_NaN());
    poisoned.tensors["replay_buffer"] = make_file_tensor(std::span<const float>(nan), {10, kChannels, kSide, kSide});
    poisoned.write_atomically(folder.path() / kFiles[0]);
    const std::string state = folder.read(kFiles[0]);

    const Run run = train(folder.path(), s, {.resume = true});
    CHECK(run.result.end == TrainingEnd::diverged);
    CHECK(run.result.iterations == 3);
    CHECK(mentions(run.result.message, (folder.path() / kFiles[1]).string()));
    CHECK(folder.read(kFiles[1]) == last);
    CHECK(folder.read(kFiles[0]) == state);
    check_finite(SafetensorsFile::read(folder.path() / kFiles[1]));
}

TEST_CASE("nothing_changes_while_the_state_says_diverged") {
    for (const Optimizer optimizer : {Optimizer::sgd, Optimizer::adam}) {
        Settings s = small();
        s.optimizer = optimizer;
        s.ema = 0.9;
        const auto device = make_cpu_device({.threads = 1});
        WideResNet network(wide_resnet_settings(s));
        const ImageSet set = images(kTrainImages, 1);
        Memory memory(*device);
        TrainingIteration iteration(*device, memory, network, s, TrainingIteration::source_of(set));
        iteration.plan();
        memory.allocate();
        iteration.upload(set);
        iteration.record();
        Parameters& p = iteration.parameters();
        p.initialise(1);
        iteration.prepare_weights();
        iteration.begin(0, 0, 0);
        iteration.buffer().fill(iteration.store().view(), iteration.state(), [](int64_t) {});
        const auto kept = [&] {
            std::vector<Values> all;
            for (const Array& a : {p.weights(), p.velocity(), p.average(), p.statistics(), iteration.buffer().images()})
                all.push_back(download_values(*device, a));
            if (optimizer == Optimizer::adam) all.push_back(download_values(*device, p.second()));
            return all;
        };
        const auto run = [&](int64_t i) {
            iteration.begin(i, 0.1, i);
            iteration.run_all();
        };
        run(0);
        const auto before = kept();
        IterationState state;
        iteration.read_state(state);
        CHECK(state.diverged == 0);
        state.diverged = 1;
        device->upload(iteration.state(), &state, sizeof state);
        run(1);
        run(2);  // the flag is sticky
        iteration.read_state(state);
        CHECK(state.diverged == 1);
        CHECK(kept() == before);
        state.diverged = 0;
        device->upload(iteration.state(), &state, sizeof state);
        run(3);
        const auto after = kept();
        for (size_t i = 0; i < after.size(); ++i) CHECK(after[i] != before[i]);
    }
}

TEST_CASE("what_runs_when_does_not_depend_on_sharing_memory_or_on_recording") {
    for (const Variant& v : variants()) {
        CAPTURE(v.name);
        const Settings& s = v.settings;
        const ImageSet set = images(kTrainImages, 1);
        const auto run = [&](Memory::Sharing sharing, bool record) {
            const auto device = make_cpu_device({.threads = 1});
            WideResNet network(wide_resnet_settings(s));
            Memory memory(*device, sharing, Memory::Guards::always);
            TrainingIteration iteration(*device, memory, network, s, TrainingIteration::source_of(set));
            iteration.plan();
            memory.allocate();
            iteration.upload(set);
            if (record) iteration.record();
            Parameters& p = iteration.parameters();
            p.initialise(1);
            iteration.prepare_weights();
            iteration.begin(0, 0, 0);
            if (s.samples()) iteration.buffer().fill(iteration.store().view(), iteration.state(), [](int64_t) {});
            for (int64_t i = 0; i < 3; ++i) {
                iteration.begin(i, s.lr, i);
                iteration.run_all();
            }
            CHECK_NOTHROW(memory.check_guards());
            std::vector<Values> all = {download_values(*device, p.weights()), download_values(*device, p.velocity()),
                                       download_values(*device, p.gradient()), download_values(*device, p.statistics())};
            if (s.samples()) all.push_back(download_values(*device, iteration.buffer().images()));
            return std::pair{all, memory.arena_bytes()};
        };
        const auto [shared, shared_bytes] = run(Memory::Sharing::by_lifetime, true);
        const auto [apart, apart_bytes] = run(Memory::Sharing::none, true);
        const auto [eager, eager_bytes] = run(Memory::Sharing::by_lifetime, false);
        CHECK(shared == apart);
        CHECK(shared == eager);
        CHECK(shared_bytes < apart_bytes);
        CHECK(shared_bytes == eager_bytes);
    }
}

TEST_CASE("another_number_of_threads_gives_nearly_the_same") {
    Settings s = small();
    s.iterations = 2;
    const TempFolder one, two, two_again;
    train(one.path(), s);
    train(two.path(), s, {.threads = 2});
    train(two_again.path(), s, {.threads = 2});
    check_same_run(two_again.path(), two.path());  // the same threads: the same bits
    const SafetensorsFile a = SafetensorsFile::read(one.path() / kFiles[0]), b = SafetensorsFile::read(two.path() / kFiles[0]);
    for (const auto& entry : a.tensors) {
        const std::string& name = entry.first;
        if (entry.second.type == FileType::i64 || entry.second.type == FileType::i32) continue;
        const std::vector<double> x = a.doubles(name), y = b.doubles(name);
        double difference = 0, norm = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            difference += (x[i] - y[i]) * (x[i] - y[i]);
            norm += x[i] * x[i];
        }
        // Another order of sums: 1e-6, and a LeakyReLU input or two on the other side of its kink.
        CHECK_MESSAGE(std::sqrt(difference) <= 1e-2 * std::sqrt(norm) + 1e-12, name, " differs by ", std::sqrt(difference), " of ",
                      std::sqrt(norm));
    }
}

TEST_CASE("the_accuracy_told_is_that_of_the_checkpoint") {
    for (const Variant& v : variants()) {
        CAPTURE(v.name);
        const Settings& s = v.settings;
        const TempFolder folder;
        const Run run = train(folder.path(), s, {.held_out = 130, .held_out_name = "valid"});  // a batch of 100 and one of 30
        CHECK(run.result.accuracy_on == "valid");
        CHECK(metrics(folder.path()).back().at("valid_accuracy") == run.result.accuracy);

        const auto evaluate = [&](const char* file) {
            const auto device = make_cpu_device({.threads = 1});
            WideResNet network(wide_resnet_settings(s));
            Memory memory(*device);
            const ImageSet held_out = images(130, 2);
            Predictor predictor(*device, memory, network, {.height = kSide, .width = kSide, .channels = kChannels},
                                {.largest = held_out.count()});
            Parameters parameters(*device, memory, network, {});
            network.build(*device, memory, s.conv_algorithm);
            const auto view = [&] {
                return NetworkMemory{
                    .weights = parameters.weights(), .gradient = {}, .statistics = parameters.statistics(), .state = nullptr};
            };
            memory.plan([&] {
                network.prepare(parameters.weights(), parameters.statistics());
                predictor.plan(view());
            });
            memory.allocate();
            parameters.load(SafetensorsFile::read(folder.path() / file), file, {"ema."});
            network.prepare(parameters.weights(), parameters.statistics());
            Predictions p = predictor.predict(held_out.count(), predictor.images_of(held_out), view());
            p.labels = held_out.labels;
            return accuracy(p);
        };
        CHECK(evaluate(kFiles[1]) == run.result.accuracy);
        CHECK(evaluate(kFiles[2]) == run.result.best_accuracy);
    }
}

TEST_CASE("a_checkpoint_knows_how_it_was_made") {
    Settings s = small();
    s.ema = 0.5;
    const TempFolder folder;
    train(folder.path(), s);
    for (const char* file : kFiles) {
        const SafetensorsFile checkpoint = SafetensorsFile::read(folder.path() / file);
        const std::optional<Settings> own = settings_of(checkpoint);
        REQUIRE(own.has_value());
        CHECK(to_json(*own) == to_json(s));
        CHECK(checkpoint.ints("f.bn1.num_batches_tracked") == std::vector<int64_t>{0});
        CHECK(checkpoint.at("f.bn1.num_batches_tracked").shape.empty());
        CHECK(checkpoint.has("ema.f.conv1.weight"));
        CHECK(checkpoint.has("f.layer3.0.bn2.running_var"));
    }
    CHECK(to_json(RunFolder(folder.path()).read_config()) == to_json(s));
    CHECK(settings_of(SafetensorsFile{}) == std::nullopt);
}

TEST_CASE("training_learns_the_classes") {
    Settings s = small();
    s.iterations = 40;
    s.lr = 0.1;
    const TempFolder folder;
    const Run run = train(folder.path(), s, {.held_out = 60});
    CHECK(run.result.best_accuracy > 0.6);
    CHECK(run.observer.iterations.back().loss_clf < run.observer.iterations.front().loss_clf);
}

}  // namespace jem
