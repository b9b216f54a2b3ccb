// Whole runs on tiny images, and what must be the same of two of them.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/evaluation/interrupted.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/training/trainer.h"
#include "tests/check.h"
#include "tests/engine/training/golden.h"
#include "tests/temp_folder.h"

namespace jem {

using std::filesystem::path;

inline constexpr int kSide = 8, kChannels = 3, kClasses = 3;
inline constexpr int64_t kPixels = int64_t{kSide} * kSide * kChannels;
inline constexpr int64_t kStartImages = 11;                                           // of --init images
inline constexpr int64_t kTrainImages = 26, kBatch = 8, kEpoch = 3, kIterations = 7;  // 3 iterations an epoch, the last epoch incomplete

// Noise around a pattern of each class.
inline ImageSet images(int64_t count, uint64_t seed) {
    ImageSet set;
    set.name = "cifar10";
    set.channels = kChannels;
    set.height = set.width = kSide;
    set.num_classes = kClasses;
    set.flip = true;
    TestData data(seed), pattern(99);
    std::vector<int64_t> base;
    for (int64_t i = 0; i < kClasses * kPixels; ++i) base.push_back(60 + pattern.index(136));
    for (int64_t i = 0; i < count; ++i) {
        const int64_t label = i % kClasses;
        set.labels.push_back(static_cast<int32_t>(label));
        for (int64_t p = 0; p < kPixels; ++p)
            set.pixels.push_back(static_cast<uint8_t>(base[static_cast<size_t>(label * kPixels + p)] + data.index(60) - 30));
    }
    return set;
}

inline Settings small() {
    Settings s;
    s.depth = 10;
    s.width = 1;
    s.in_channels = kChannels;
    s.image_size = kSide;
    s.num_classes = kClasses;
    s.data = "cifar10";
    s.batch_size = kBatch;
    s.gen_batch_size = 6;
    s.iterations = kIterations;
    s.lr = 0.05;
    s.warmup_iterations = 2;
    s.sgld_steps = 2;
    s.input_noise = 0.03;
    s.input_noise_on = InputNoiseOn::both;
    s.buffer_size = 10;  // not divisible by the classes
    s.reinit_freq = 0.3;
    s.log_interval = 2;
    return s;
}

struct Variant {
    std::string name;
    Settings settings;
};

inline std::vector<Variant> variants() {
    std::vector<Variant> all;
    const auto add = [&](const char* name, auto change) {
        Settings s = small();
        change(s);
        all.push_back({name, s});
    };
    add("sada-jem", [](Settings&) {});
    add("Adam, EMA, no SAM, noise, uniform start", [](Settings& s) {
        s.optimizer = Optimizer::adam;
        s.lr = 1e-3;
        s.ema = 0.9;
        s.sam = SamForm::none;
        s.sgld_noise = 0.01;
        s.init = StartForm::uniform;
        s.gen_augment = Augment::both;
    });
    add("softmax, ASAM, cosine", [](Settings& s) {
        s.p_x_weight = 0;
        s.sgld_steps = 0;
        s.sam = SamForm::asam;
        s.lr_schedule = LrSchedule::cosine;
    });
    add("a method of one's own", [](Settings& s) {
        s.sam = SamForm::none;
        s.attack_steps = 2;
        s.own_method = method_of(recipe("eb-jdat"));
    });
    add("no norm, running statistics asked for, Gaussian start", [](Settings& s) {
        s.norm = NormKind::none;
        s.sampling_norm = SamplingNorm::running;
        s.init = StartForm::gaussian;
        s.lr = 0.01;
    });
    add("few labels, Gaussian start", [](Settings& s) {
        s.labels_per_class = 3;
        s.init = StartForm::gaussian;
    });
    return all;
}

struct Killed {};

class Observer final : public TrainingObserver {
public:
    void message(const std::string& text) override {
        messages.push_back(text);
        if (on_message) on_message();
    }
    void progress(const std::string& what, int64_t done, int64_t total) override {
        CHECK(done <= total);
        last_progress = what;
        if (on_progress && done == total) on_progress(what);
        if (!messages_before_progress) messages_before_progress = messages;
    }
    void iteration(const Iteration& it) override {
        iterations.push_back(it);
        if (on_iteration) on_iteration(it.done);
    }
    void samples(const path& file, const std::vector<float>& values, int64_t count) override {
        if (std::ssize(sheets) == kill_at_sheet) throw Killed{};
        sheets.push_back(file.filename().string());
        CHECK(static_cast<int64_t>(values.size()) == count * kPixels);
        for (const float v : values) CHECK_MESSAGE((v >= -1 && v <= 1), "a sample holds ", v);
    }

    std::vector<std::string> messages, sheets;
    std::optional<std::vector<std::string>> messages_before_progress;
    std::string last_progress;
    std::vector<Iteration> iterations;
    std::function<void(int64_t)> on_iteration;
    std::function<void(const std::string&)> on_progress;  // that is at its end
    std::function<void()> on_message;
    int64_t kill_at_sheet = -1;
};

struct RunOptions {
    bool resume = false;
    int64_t kill_after = -1;          // so many iterations were told of, whichever: nothing is written any more; -1: never
    int64_t stop_after = -1;          // iterations of a new run, or 1 also of a resumed one; -1: never
    int64_t stop_in_evaluation = -1;  // which of this process's, from 0
    bool while_measuring = false;     // what --metrics asks for, not before
    int64_t kill_at_sheet = -1;       // which of this process's, from 0; its log line was written, its checkpoint not
    int threads = 1;
    Ranks* ranks = nullptr;  // of a job; null: alone
    int64_t held_out = 7;
    std::string held_out_name = "test";
    std::function<void(ImageSet&)> alter_train = {}, alter_held_out = {};  // empty: nothing
    std::function<void(int64_t done)> on_iteration = {};
};

struct Run {
    TrainingResult result;
    Observer observer;
};

inline bool owes_evaluation(const path& root) {
    return SafetensorsFile::read(root / "checkpoints/last.state.safetensors").metadata.at("progress").find("\"owed\"") != std::string::npos;
}

inline Run train(const path& root, const Settings& s, const RunOptions& o = {}) {
    const auto device = make_cpu_device({.threads = o.threads});
    if (o.ranks != nullptr) device->join(*o.ranks);
    WideResNet network(wide_resnet_settings(s));
    const RunFolder folder(root);
    Run run;
    // An iteration is told of while the next one runs: n - 1 is told in time to stop after n.
    const bool begins_with_evaluation = o.resume && folder.has_checkpoint() && owes_evaluation(root);
    std::atomic<bool> stop = o.stop_after == 1 && !begins_with_evaluation;
    run.observer.on_message = [&] {  // what it says of the evaluation that was owed: now the next iteration may be the last
        if (o.stop_after == 1 && begins_with_evaluation && run.observer.messages.back().starts_with("epoch")) stop = true;
    };
    run.observer.on_iteration = [&](int64_t done) {
        if (o.on_iteration) o.on_iteration(done);
        if (done == o.stop_after - 1) stop = true;
        if (std::ssize(run.observer.iterations) == o.kill_after) throw Killed{};
    };
    run.observer.kill_at_sheet = o.kill_at_sheet;
    int64_t evaluations = 0;
    run.observer.on_progress = [&](const std::string& what) {
        if (what == "Evaluating" && evaluations++ == o.stop_in_evaluation && !o.while_measuring) stop = true;
    };
    ImageSet train_images = images(kTrainImages, 1), held_out = images(o.held_out, 2);
    if (o.alter_train) o.alter_train(train_images);
    if (o.alter_held_out) o.alter_held_out(held_out);
    const ImageSet starts = s.init == StartForm::images ? images(kStartImages, 3) : ImageSet{};
    Trainer trainer(*device, network, s, train_images, held_out, o.held_out_name, folder, run.observer, starts);
    if (o.while_measuring)
        trainer.measure_by([&](const Predictions&, const Trainer::BufferImages&) -> nlohmann::ordered_json {
            if (evaluations - 1 != o.stop_in_evaluation) return nullptr;
            stop = true;
            throw Interrupted();
        });
    run.result = trainer.run(o.resume, stop);
    CHECK_NOTHROW(trainer.memory().check_guards());
    run.observer.on_iteration = nullptr;
    run.observer.on_progress = nullptr;
    run.observer.on_message = nullptr;
    return run;
}

// What must be the same from run to run: everything but the clock.
inline SafetensorsFile without_time(const path& file) {
    SafetensorsFile f = SafetensorsFile::read(file);
    auto progress = nlohmann::ordered_json::parse(f.metadata.at("progress"));
    CHECK(progress.erase("seconds") == 1);
    f.metadata["progress"] = progress.dump();
    return f;
}

inline std::vector<nlohmann::ordered_json> metrics(const path& root) {
    std::ifstream in(root / "metrics.jsonl");
    std::vector<nlohmann::ordered_json> lines;
    for (std::string line; std::getline(in, line);) {
        lines.push_back(nlohmann::ordered_json::parse(line));
        if (lines.back().contains("event")) continue;
        CHECK(lines.back().erase("time_s") == 1);
        CHECK(lines.back().erase("images_per_s") == 1);
    }
    return lines;
}

inline std::vector<std::string> differences(const SafetensorsFile& a, const SafetensorsFile& b) {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : a.tensors)
        if (!b.has(name) || b.at(name).bytes() != tensor.bytes() || b.at(name).shape != tensor.shape) out.push_back(name);
    if (a.tensors.size() != b.tensors.size()) out.push_back("the number of tensors");
    for (const auto& [key, value] : a.metadata)
        if (!b.metadata.contains(key) || b.metadata.at(key) != value) out.push_back("metadata " + key);
    return out;
}

inline const char* const kFiles[] = {"checkpoints/last.state.safetensors", "checkpoints/last.safetensors", "checkpoints/best.safetensors"};

inline void check_same_run(const path& got, const path& want) {
    for (const char* file : kFiles) {
        CAPTURE(std::string(file));
        const std::vector<std::string> different = differences(without_time(got / file), without_time(want / file));
        CHECK_MESSAGE(different.empty(), different.size(), " differ, first ", different.empty() ? "" : different[0]);
    }
    CHECK(metrics(got) == metrics(want));
}

inline void check_finite(const SafetensorsFile& file) {
    for (const auto& entry : file.tensors) {
        const std::string& name = entry.first;
        if (entry.second.type == FileType::i64 || entry.second.type == FileType::i32) continue;
        const std::vector<float> values = file.floats(name);
        CHECK_MESSAGE(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }), name, " is not finite");
    }
}

inline bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

inline std::string error_of(const std::function<void()>& run) {
    try {
        run();
    } catch (const InputError& e) {
        return e.what();
    }
    return "";
}

inline std::vector<std::string> archives(const path& root) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(root / "checkpoints"))
        if (entry.path().filename().string().starts_with("epoch_")) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

inline void copy_run(const path& from, const path& to) {
    std::filesystem::copy(from, to, std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
}

}  // namespace jem
