// jem_engine train
#include <fmt/format.h>

#include <cstdlib>

#include "data/input_error.h"
#include "engine/evaluation/metric.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "engine/training/own_method.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/feature_network.h"
#include "tools/jem_engine/interrupt.h"
#include "tools/jem_engine/job.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

struct TrainOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string recipe, config, out;
    bool resume = false;
};

// A path that is kept is read from another folder one day.
void make_absolute(Settings& s) {
    const auto absolute = [](const std::string& path) { return std::filesystem::absolute(path).lexically_normal().string(); };
    for (std::string* kept : {&s.data_dir, &s.start_from})
        if (!kept->empty()) *kept = absolute(*kept);
    if (const size_t colon = s.init_data.find(':'); colon != std::string::npos)
        s.init_data = s.init_data.substr(0, colon + 1) + absolute(s.init_data.substr(colon + 1));
    if (s.features.starts_with(kInceptionPrefix))
        s.features = kInceptionPrefix + absolute(s.features.substr(std::string(kInceptionPrefix).size()));
    else if (!s.features.empty())
        s.features = absolute(s.features);
}

// A resumed run keeps its own configuration: another one may repeat it, and change nothing.
void require_same(const Settings& run, const std::string& path, const std::string& folder) {
    Settings wanted = run;
    merge_json(wanted, read_config(path), path);
    make_absolute(wanted);
    const auto has = to_json(run), wants = to_json(wanted);
    for (const Setting& setting : settings_table()) {
        if (has[setting.key] == wants[setting.key]) continue;
        throw InputError("--config " + path + " beside --resume: its " + setting.key + " is " + wants[setting.key].dump() +
                         " (the run in " + folder + " has " + has[setting.key].dump() +
                         "). Leave --config out; flags change what may be changed.");
    }
    if (wanted.own_method != run.own_method)
        throw InputError("--config " + path + " beside --resume: its method is another one than that of the run in " + folder +
                         " (a run keeps its own). Leave --config out.");
}

// The images held out must stay those that the run was never trained on, and the labelled ones those whose labels it has seen.
void require_same_split(const Settings& run, const Settings& now) {
    const auto refuse = [](const char* flag, uint64_t wanted, uint64_t was, const char* why) {
        throw InputError(std::string(flag) + " is " + std::to_string(wanted) + " (the run was begun with " + std::to_string(was) + "; " +
                         why + "). Leave it out to resume.");
    };
    const char* const held_out = "images it was trained on would be held out";
    const char* const labelled = "it has seen the labels of other images";
    const auto number = [](int64_t n) { return static_cast<uint64_t>(n); };
    if (now.n_valid != run.n_valid) refuse("--n-valid", number(now.n_valid), number(run.n_valid), held_out);
    if (now.labels_per_class != run.labels_per_class)
        refuse("--labels-per-class", number(now.labels_per_class), number(run.labels_per_class), labelled);
    if ((now.n_valid > 0 || now.labels_per_class > 0) && now.split_seed != run.split_seed)
        refuse("--split-seed", *now.split_seed, *run.split_seed, now.n_valid > 0 ? held_out : labelled);
}

// Recipe < --config < flags; a resumed run: what it has written < flags.
Settings settings_for(const TrainOptions& o, const RunFolder& folder) {
    Settings s;
    std::optional<Settings> run;
    bool lr_given = o.flags.given("--lr");
    if (o.resume && o.flags.given("--start-from"))
        throw InputError("--start-from beside --resume (a run begins once). Leave one of them out.");
    if (o.resume && folder.has_config()) {
        run = s = folder.read_config();
        if (!o.recipe.empty() && o.recipe != s.recipe)
            throw InputError("--recipe " + o.recipe + " is not the one that " + folder.root().string() +
                             " was begun with. Leave it out to resume.");
        make_absolute(s);
        if (!o.config.empty()) require_same(s, o.config, folder.root().string());
        s.split_seed = run->split_seed = run->seed_of_split();
        lr_given = true;
    } else {
        if (o.resume && o.recipe.empty() && o.config.empty())
            throw InputError("There is no run in '" + folder.root().string() +
                             "' to go on with (it has no config.json). Check --out, or start one with --recipe.");
        if (o.recipe.empty() && o.config.empty())
            throw InputError("--recipe is needed (or --config, or --resume). Give --recipe sada-jem.");
        const BegunSettings begun = begin_settings(o.recipe, o.config);
        s = begun.settings;
        lr_given |= begun.lr_given;
    }
    o.flags.apply(s);
    if (!lr_given) fit_rate_to_data(s);
    if (o.common.seed) s.seed = *o.common.seed;
    s.split_seed = s.seed_of_split();
    if (s.data.empty()) throw InputError("--data is needed (the name of a data set). Give one of " + known_set_names() + ".");
    make_absolute(s);
    fill_in_sizes(s);
    check_settings(s);
    checked_method(s);
    check_sizes(s);
    if (s.n_valid == 0 && !has_test_set(s))
        throw InputError("no test images in '" + s.data_dir +
                         "' (it has no folders train and test). Hold some out with --n-valid, or make these folders.");
    if (run && folder.has_checkpoint()) require_same_split(*run, s);
    return s;
}

// What a run begins with, before it has a folder; one that has a checkpoint does not look there again.
void check_start(const TrainOptions& o, const RunFolder& folder, const Settings& settings, const Network& network) {
    if (settings.start_from.empty() || (o.resume && folder.has_checkpoint())) return;
    const StartPoint start = read_start(network, settings);
    say_what_is_skipped(start.file, start.path, network);
}

// Other wrong settings are told before it, so that they leave no folder behind.
std::unique_ptr<RunLock> own_folder(const TrainOptions& o, const RunFolder& folder, Console& console) {
    auto lock = folder.own();
    if (!lock->held()) console.message("The file system of " + o.out + " has no locks: see to it that no second process trains there.");
    if (!o.resume && folder.has_run())
        throw InputError(o.out + " already holds a run (it would be overwritten). Add --resume to go on with it, or choose another --out.");
    return lock;
}

// --metrics, once an interval is given.
std::vector<const Metric*> metrics_of(const Settings& s) {
    std::vector<const Metric*> chosen;
    if (s.metric_interval == 0) return chosen;
    for (const std::string& name : comma_parts(s.metrics)) {
        const Metric& m = metric(name);
        if (!m.while_training())
            throw InputError("--metrics " + name +
                             " is not measured while training (it runs the network many times). Keep weights with "
                             "--archive-interval, and use jem_engine evaluate.");
        if (m.of_samples && !s.samples())
            throw InputError("--metrics " + name + " is of drawn images (" + why_no_samples(s) + "). Leave it out.");
        if (m.of_samples && s.features.empty())
            throw InputError("--metrics " + name +
                             " needs a network for features (none was given). Give --features CHECKPOINT, or inception:FILE.");
        chosen.push_back(&m);
    }
    return chosen;
}

Trainer::Measure measure_of(const Settings& s, Device& device, Console& console, const std::string& held_out) {
    const std::vector<const Metric*> metrics = metrics_of(s);
    if (metrics.empty()) return nullptr;
    return [&s, &device, &console, held_out, metrics](const Predictions& p, const Trainer::BufferImages& buffer) {
        EvaluationSettings settings;
        settings.seed = s.seed;
        settings.samples.from = SamplesFrom::buffer;
        const TrainedNetwork network = {.device = device,
                                        .size = {.height = s.image_size, .width = s.image_size, .channels = s.in_channels},
                                        .classes = s.num_classes,
                                        .make = nullptr,  // nothing that is measured here runs it
                                        .load = nullptr};
        const std::optional<FeatureNetwork> features = feature_network(s.features, s, device);
        Evaluation evaluation(
            {.network = network,
             .split = held_out,
             .images = {},
             .training = [&s] { return load_training_images(s).train; },
             .others = {},
             .made = {},
             .predictions = p,
             .features = features,
             .drawn = DrawnImages{.settings = &s, .buffer_count = s.buffer_size, .buffer = buffer},
             .settings = settings,
             .journal = {},
             .progress = [&](const std::string& what, int64_t done, int64_t total) { console.progress(what, done, total); },
             .stop = [] { return interrupted.load(); },
             .tell = [&](const std::string& text) { console.message(text); }});
        nlohmann::ordered_json values = nlohmann::ordered_json::object();
        for (const Metric* m : metrics) {
            const MetricResult result = m->measure(evaluation);
            for (const auto& [name, value] : result.values.items())
                if (value.is_number()) values[m->of_samples ? name : held_out + "_" + name] = value;
        }
        return values;
    };
}

int train(const TrainOptions& o) {
    if (o.out.empty()) throw InputError("--out is needed (the folder of the run). Give --out runs/first.");
    outlive_readers();
    const RunFolder folder{o.out};
    Ranks& ranks = the_job().join();
    const bool first = ranks.rank() == 0;
    Console console(o.common.quiet || !first);
    Settings settings;
    std::unique_ptr<RunLock> lock;
    std::unique_ptr<Device> device;
    TrainingImages images;
    ImageSet held_out, starts;
    std::unique_ptr<Network> network;
    together(ranks, [&] {
        settings = settings_for(o, folder);
        device = make_device(o.common, settings.precision);
        refuse_without_mpi(*device);
        console.message(fmt::format("jem_engine: {} on {} ({}){}", title_of(settings), device->name(), device->description(),
                                    ranks.size() > 1 ? fmt::format(", {} ranks", ranks.size()) : ""));
        metrics_of(settings);
        if (settings.metric_interval > 0) feature_network(settings.features, settings, *device);  // for its errors
        network = make_network(settings);
        if (first) check_start(o, folder, settings, *network);
        const auto reading = [&](const std::string& what) -> ReadProgress {
            return [&console, what](int64_t done, int64_t total) { console.progress("Reading " + what + " images", done, total); };
        };
        images = load_training_images(settings, reading("training"));
        if (settings.samples() && settings.init == StartForm::images) starts = load_start_images(settings, reading("start"));
        held_out = settings.n_valid > 0 ? std::move(images.held_out) : load_images(settings, Split::test, reading("test"));
        check_images(settings, images.train);
        if (first) lock = own_folder(o, folder, console);
        console.set_image_shape(held_out.height, held_out.width, held_out.channels);
    });
    the_job().join_device(*device);

    const auto trainer = std::make_unique<Trainer>(*device, *network, settings, std::move(images.train), std::move(held_out),
                                                   settings.n_valid > 0 ? "valid" : "test", folder, console, starts);
    starts = {};  // on the device now
    trainer->measure_by(measure_of(settings, *device, console, settings.n_valid > 0 ? "valid" : "test"));
    console.message(fmt::format("{}, {} parameters, {} iterations ({} an epoch), {:.0f} MiB", network_title(settings),
                                network->parameter_count(), trainer->total_iterations(), trainer->iterations_per_epoch(),
                                static_cast<double>(trainer->memory().arena_bytes()) / (1 << 20)));
    if (ranks.size() == 1) {
        catch_interrupts(
            {.waiting = "Stopping: the iteration is finished, and a checkpoint written. A second interrupt ends at once, without one.",
             .ended = "Ended at once, without a checkpoint: " + folder.last().string() + " is as it was."});
    } else {
        // SIGUSR1: mpirun passes it on, and leaves the ranks the time they need
        catch_interrupts(
            {.waiting = fmt::format("Rank {} was asked to stop: all finish the iteration, and a checkpoint is written.", ranks.rank()),
             .ended = ""},
            Processes::ranks);
        if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr)
            console.message("To stop with a checkpoint send SIGUSR1 to mpirun: after an interrupt it leaves its ranks but a second.");
    }
    const TrainingResult result = trainer->run(o.resume, interrupted);
    const auto exit_code = [&] {
        switch (result.end) {
            case TrainingEnd::diverged:
                return kExitDiverged;
            case TrainingEnd::interrupted:
                return exit_code_of_interrupt();
            case TrainingEnd::finished:
                break;
        }
        return kExitDone;
    }();
    if (!first) return exit_code;

    nlohmann::ordered_json json = {{"iterations", result.iterations}, {"seconds", result.seconds}, {"out", o.out}};
    if (result.accuracy >= 0) {
        json["accuracy"] = result.accuracy;
        json["accuracy_on"] = result.accuracy_on;
        json["best_accuracy"] = result.best_accuracy;
    }
    if (!result.unwritten.empty()) json["unwritten"] = result.unwritten;
    if (result.end == TrainingEnd::diverged) {
        console.tell("error: " + result.message);
        json["diverged"] = true;
        print_result(o.common, json);
        return exit_code;
    }
    if (!result.unwritten.empty()) {
        print_result(o.common, json);
        throw std::runtime_error(result.unwritten +
                                 " could not be written. What was written before is whole: make room, and go on with "
                                 "--resume.");
    }
    if (result.end == TrainingEnd::interrupted) {
        console.message(fmt::format("Interrupted after iteration {}. Go on with: jem_engine train --resume --out {}", result.iterations,
                                    for_shell(o.out)));
        print_result(o.common, json);
        return exit_code;
    }
    if (!o.common.json)
        fmt::print("accuracy {:.4f} ({} set) after {} iterations, {:.0f} s; checkpoint {}\n", result.accuracy, result.accuracy_on,
                   result.iterations, result.seconds, folder.last().string());
    print_result(o.common, json);
    return exit_code;
}

}  // namespace

Command add_train(CLI::App& app) {
    auto o = std::make_shared<TrainOptions>();
    std::string recipes;
    for (const std::string& name : recipe_names()) recipes += (recipes.empty() ? "" : "|") + name;
    app.add_option("--recipe", o->recipe, "Preset of all hyper-parameters (" + recipes + ")")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("--config", o->config, "The config.json that a run wrote, or one of your own, which may hold a method (docs/recipes.md)")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("--out", o->out, "Folder of the run")->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_flag("--resume", o->resume, "Go on from the folder's last checkpoint");
    o->flags.add_to(app, SettingsFlags::Kind::training);
    o->common.add_to(app);
    app.footer(
        "A run repeats bit for bit, resumed or not, with the same seed, settings, number of threads and of ranks, kind of CPU or GPU,\n"
        "and versions of the libraries that compute (jem_engine info).");
    return [o] { return train(*o); };
}

}  // namespace jem
