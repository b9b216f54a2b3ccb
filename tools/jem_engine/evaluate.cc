// jem_engine evaluate
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <numeric>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/evaluation/made_images.h"
#include "engine/evaluation/metric.h"
#include "engine/files/json.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "engine/run/run_folder.h"
#include "engine/settings/table.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/feature_network.h"
#include "tools/jem_engine/interrupt.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

constexpr const char* kResultFile = "evaluation.json";
constexpr const char* kJournalFile = "unfinished.jsonl";
constexpr const char* kAll = "all";
// Results of one checkpoint that agree in these belong together.
constexpr const char* kIdentity[] = {"iteration", "weights", "data", "split", "images"};

struct EvaluateOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, metrics = "accuracy,nll,ece", weights = "last", split = "test", order = "shuffled", protocol = "engine", out,
                            raw;
    std::vector<std::string> ood_data = {"interpolation", "uniform", "gaussian"};
    std::string ood_scores = "px,py,pxgrad", pgd_norm = "linf", pgd_eps, pgd_random_start = "on", apgd_eps, landscape_to;
    std::string samples, features;
    std::optional<double> pgd_step_size;
    double budget_minutes = 30;
    EvaluationSettings settings;
};

std::vector<const Metric*> chosen_metrics(const std::string& text) {
    std::vector<const Metric*> chosen;
    for (const std::string& name : comma_parts(text)) {
        if (name == kAll)
            for (const Metric& m : metrics()) chosen.push_back(&m);
        else
            chosen.push_back(&metric(name));
    }
    std::vector<const Metric*> once;
    for (const Metric* m : chosen)
        if (std::find(once.begin(), once.end(), m) == once.end()) once.push_back(m);
    return once;
}

// RUN/evaluation/NAME for RUN/checkpoints/NAME.safetensors of a run; empty for a file from elsewhere.
std::filesystem::path folder_in_run(const Checkpoint& checkpoint) {
    const std::filesystem::path file = std::filesystem::absolute(checkpoint.path), checkpoints = file.parent_path();
    if (checkpoint.bare || checkpoints.filename() != "checkpoints") return {};
    const RunFolder run{std::filesystem::path(checkpoint.path).parent_path() / ".."};
    if (!run.has_config()) return {};
    return (run.root() / "evaluation" / file.stem()).lexically_normal();
}

// Where files go; empty: nowhere. A run's folder need not be writable unless it was asked for by --out.
std::filesystem::path output_folder(const EvaluateOptions& o, const Checkpoint& checkpoint, Console& console) {
    const std::filesystem::path own = o.out.empty() ? folder_in_run(checkpoint) : std::filesystem::path();
    const std::filesystem::path folder = o.out.empty() ? own : std::filesystem::path(o.out);
    if (folder.empty()) return {};
    try {
        create_folder(folder);
    } catch (const InputError& e) {
        if (!o.out.empty()) throw;
        console.message(std::string("The results are only printed: ") + e.what());
        return {};
    }
    std::vector<NamedPath> outputs = {{"--out", folder / kResultFile}, {"--out", folder / kJournalFile}};
    for (const Metric& m : metrics())
        for (const std::string& file : m.file_names) outputs.push_back({"--out", folder / file});
    check_outputs(outputs, {{"--checkpoint", o.checkpoint}});
    return folder;
}

// Adds the results to those of earlier calls of the same weights on the same images; others they replace.
void join_results(const std::filesystem::path& file, const nlohmann::ordered_json& results, Console& console) {
    using Json = nlohmann::ordered_json;
    Json joined = is_there(file) ? parse_json<Json>(read_file(file)) : results;
    const auto value = [](const Json& json, const char* key) { return json.value(key, Json()); };
    const auto path = [&](const Json& json) {
        const Json name = value(json, "checkpoint");
        std::error_code error;
        return name.is_string() ? std::filesystem::weakly_canonical(name.get<std::string>(), error) : std::filesystem::path();
    };
    const bool same =
        joined.is_object() && path(joined) == path(results) &&
        std::all_of(std::begin(kIdentity), std::end(kIdentity), [&](const char* key) { return value(joined, key) == value(results, key); });
    if (!same) {
        console.message("The results in " + file.string() + " are of other weights or images: they are replaced.");
        joined = results;
    }
    // What was attacked in another way is none of these figures' company.
    if (results.contains("pgd") && value(joined, "pgd") != results["pgd"])
        for (const char* key : {"robust_accuracy", "robust_accuracy_interval"}) joined.erase(key);
    joined.update(results, true);  // what is an object in both is joined as well
    write_file(file, joined.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

// What `--split auto` is: what the run itself was evaluated on.
std::string split_of(const EvaluateOptions& o, const Settings& s) {
    const bool held_out = s.n_valid > 0;
    if (o.split == "valid" && !held_out)
        throw InputError("--split valid (no images of " + s.data +
                         " were held out of training, or the checkpoint does not say so). Use --split test.");
    return o.split != "auto" ? o.split : held_out ? "valid" : "test";
}

ImageSet images_of_split(const std::string& split, const Settings& s, const ReadProgress& reading) {
    ImageSet images = split == "test"    ? load_images(s, Split::test, reading)
                      : split == "valid" ? load_training_images(s, reading).held_out
                                         : load_training_images(s, reading).train;
    if (images.count() == 0)
        throw InputError("The " + split + " set of " + s.data + " is empty (its files hold no image). Give another --data-dir.");
    return images;
}

// What the authors' protocol compares drawn images with: all training images, held out or not, and CIFAR-10's test images as well.
ImageSet authors_reference(const Settings& s, const ReadProgress& reading) {
    ImageSet all = load_images(s, Split::train, reading);
    if (s.data != "cifar10") return all;
    const ImageSet test = load_images(s, Split::test, reading);
    all.pixels.insert(all.pixels.end(), test.pixels.begin(), test.pixels.end());
    all.labels.insert(all.labels.end(), test.labels.begin(), test.labels.end());
    return all;
}

// Numbers above 0, or from 0 on; named as they were given.
std::vector<NamedNumber> numbers_of(const std::string& flag, const std::string& text) {
    std::vector<NamedNumber> numbers;
    for (const std::string& part : comma_parts(text)) {
        char* end = nullptr;
        const double value = std::strtod(part.c_str(), &end);
        const bool digits = !part.empty() && part.find_first_not_of("0123456789.") == std::string::npos;
        if (!digits || *end != 0 || value > 255)
            throw InputError(flag + " is \"" + text + "\" (\"" + part +
                             "\" is no number from 0 to 255). Give numbers with commas between.");
        numbers.push_back({part, value});
    }
    return numbers;
}

// Sets that are not the network's own, each fitted to its images, and those that are made.
struct Strangers {
    std::vector<ImageSet> sets;
    std::vector<std::string> made;
};

Strangers strangers_of(const EvaluateOptions& o, const Settings& s, Console& console) {
    Strangers strangers;
    std::vector<std::string> names;
    for (const std::string& given : o.ood_data)
        for (const std::string& name : comma_parts(given)) {
            const std::vector<std::string>& made = MadeImages::names();
            if (std::find(made.begin(), made.end(), name) != made.end()) {
                strangers.made.push_back(name);
                names.push_back(name);
                continue;
            }
            ImageSet set =
                load_other_set(name, Split::test,
                               {.channels = static_cast<int>(s.in_channels),
                                .size = static_cast<int>(s.image_size),
                                .crop = o.protocol == "authors" ? Crop::top : Crop::centre,
                                .skip_damaged = s.skip_damaged,
                                .progress = [&](int64_t done, int64_t total) { console.progress("Reading " + name, done, total); },
                                .tell = [&](const std::string& line) { console.message(line); }});
            names.push_back(set.name);
            strangers.sets.push_back(std::move(set));
        }
    for (size_t i = 0; i < names.size(); ++i)
        if (std::find(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(i), names[i]) !=
            names.begin() + static_cast<std::ptrdiff_t>(i))
            throw InputError("--ood-data names " + names[i] + " twice (results go by the name). Give folders of different names.");
    return strangers;
}

DrawnImages drawn_images(const Checkpoint& checkpoint) {
    const Settings& s = checkpoint.settings;
    DrawnImages drawn = {.settings = &s};
    if (s.init == StartForm::images) drawn.starts = [&s] { return load_start_images(s); };
    const std::optional<SavedBuffer> buffer = find_buffer(checkpoint.file, checkpoint.path);
    if (!buffer) return drawn;
    const std::vector<int64_t>& shape = buffer->images.shape;
    if (shape.size() != 4 || shape[1] != s.in_channels || shape[2] != s.image_size || shape[3] != s.image_size) return drawn;
    drawn.buffer_count = shape[0];
    drawn.buffer = [images = buffer->images](int64_t first, int64_t count) {
        std::vector<int64_t> numbers(static_cast<size_t>(count));
        std::iota(numbers.begin(), numbers.end(), first);
        return images_of_buffer(images, numbers);
    };
    return drawn;
}

// What an interrupted evaluation must agree in to go on.
std::string identity_of(const EvaluateOptions& o, const Checkpoint& checkpoint, const Device& device,
                        const nlohmann::ordered_json& header) {
    std::error_code error;
    nlohmann::ordered_json all = header;
    all["bytes"] = std::filesystem::file_size(checkpoint.path, error);
    all["written"] = std::filesystem::last_write_time(checkpoint.path, error).time_since_epoch().count();
    all["seed"] = checkpoint.settings.seed;
    all["order"] = o.order;
    all["protocol"] = o.protocol;
    all["device"] = device.name();
    all["precision"] = checkpoint.settings.precision;
    all["version"] = JEM_VERSION;
    return all.dump();
}

std::string duration(double seconds) {
    return seconds < 100 ? fmt::format("{:.0f} s", std::ceil(seconds)) : fmt::format("{:.0f} min", std::ceil(seconds / 60));
}

// What is measured of what was asked for, by an estimate of its time, which is told first.
struct Choice {
    std::vector<const Metric*> metrics;
    nlohmann::ordered_json left_out = nlohmann::ordered_json::object();  // name: why
};

Choice choose(const EvaluateOptions& o, Evaluation& e, const std::vector<const Metric*>& wanted, Console& console) {
    Choice choice;
    const bool all = o.metrics == kAll;
    std::vector<std::pair<double, const Metric*>> possible;
    double costly = 0;
    for (const Metric* m : wanted) {
        const std::string missing = m->missing != nullptr ? m->missing(e) : "";
        if (missing.empty())
            possible.emplace_back(m->cost != nullptr ? m->cost(e).seconds(e) : 0, m);
        else if (all)
            choice.left_out[m->name] = missing;
        else
            throw InputError("The metric " + m->name + " cannot be measured (" + missing + ").");
        if (missing.empty()) costly += possible.back().first;
    }
    const double each = e.seconds_forward(), base = each * static_cast<double>(e.images().count()) * (e.gradients() ? kGradientCost : 1);
    double total = base;
    std::string told = fmt::format("predictions {}", duration(base));
    std::stable_sort(possible.begin(), possible.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    bool drawn = false;  // and the features of it known: once for all that are of drawn images
    for (const auto& [alone, m] : possible) {
        const double seconds = m->of_samples && drawn ? 0 : alone;
        if (all && total + seconds > 60 * o.budget_minutes) {
            choice.left_out[m->name] = fmt::format("about {}, beyond --budget {}", duration(seconds), o.budget_minutes);
            continue;
        }
        total += seconds;
        drawn = drawn || m->of_samples;
        if (seconds > 0) told += fmt::format(", {} {}", m->name, duration(seconds));
        choice.metrics.push_back(m);
    }
    if (costly > 0 || total > 2) console.message(fmt::format("Estimated: {} ({}).", duration(total), told));
    for (const auto& [name, why] : choice.left_out.items())
        console.message(fmt::format("Left out: {} ({}).", name, why.get<std::string>()));
    return choice;
}

void write_raw(const std::string& path, const Predictions& p) {
    SafetensorsFile file;
    const auto floats = [](const std::vector<double>& values) { return std::vector<float>(values.begin(), values.end()); };
    const std::vector<float> logits = floats(p.logits), lse = floats(p.lse), norms = floats(p.gradient_norms);
    const std::vector<int64_t> labels(p.labels.begin(), p.labels.end());
    std::vector<float> energies;
    for (const double v : p.lse) energies.push_back(static_cast<float>(-v));
    file.tensors["logits"] = make_file_tensor(std::span<const float>(logits), {p.count(), p.classes});
    file.tensors["energies"] = make_file_tensor(std::span<const float>(energies), {p.count()});
    file.tensors["labels"] = make_file_tensor(std::span<const int64_t>(labels), {p.count()});
    if (!norms.empty()) file.tensors["gradient_norms"] = make_file_tensor(std::span<const float>(norms), {p.count()});
    file.write_atomically(path);
}

void print_values(const nlohmann::ordered_json& values, const std::string& prefix = "") {
    for (const auto& [name, value] : values.items()) {
        if (value.is_object())
            print_values(value, prefix + name + " ");
        else if (value.is_number_float())
            fmt::print("{:<11} {:.4f}\n", prefix + name, value.get<double>());
        else if (value.is_array() && value.size() == 2)
            fmt::print("{:<11} {:.4f} to {:.4f}\n", prefix + name, value[0].get<double>(), value[1].get<double>());
        else
            fmt::print("{:<11} {}\n", prefix + name, value.is_string() ? value.get<std::string>() : value.dump());
    }
}

void read_scores(EvaluateOptions& o) {
    EvaluationSettings& s = o.settings;
    s.ood_px = s.ood_py = s.ood_pxgrad = false;
    for (const std::string& name : comma_parts(o.ood_scores)) {
        if (name != "px" && name != "py" && name != "pxgrad")
            throw InputError("--ood-scores is \"" + o.ood_scores + "\" (there is no score \"" + name + "\"). Give some of px,py,pxgrad.");
        (name == "px" ? s.ood_px : name == "py" ? s.ood_py : s.ood_pxgrad) = true;
    }
}

int evaluate(EvaluateOptions& o) {
    if (o.checkpoint.empty())
        throw InputError("--checkpoint is needed (a safetensors file). Give one, such as RUN/checkpoints/last.safetensors.");
    outlive_readers();
    const std::vector<const Metric*> wanted = chosen_metrics(o.metrics);
    o.settings.shuffled = o.order == "shuffled";
    o.settings.protocol = o.protocol == "authors" ? Protocol::authors : Protocol::engine;
    o.settings.pgd.norm = o.pgd_norm == "l2" ? AttackNorm::l2 : AttackNorm::linf;
    if (!o.pgd_eps.empty()) o.settings.pgd.eps = numbers_of("--pgd-eps", o.pgd_eps);
    if (!o.apgd_eps.empty()) {
        const std::vector<NamedNumber> eps = numbers_of("--apgd-eps", o.apgd_eps);
        if (eps.size() > 1) throw InputError("--apgd-eps is " + o.apgd_eps + " (one size is attacked). Give one number.");
        o.settings.apgd.eps = eps[0];
    }
    o.settings.pgd.step_size = o.pgd_step_size;
    o.settings.pgd.random_start = o.pgd_random_start == "on";
    read_scores(o);
    const Checkpoint checkpoint = read_checkpoint(o.checkpoint, o.flags, o.common);
    const Settings& s = checkpoint.settings;
    o.settings.seed = s.seed;
    const std::string split = split_of(o, s);
    check_outputs({{"--raw", o.raw}}, {{"--checkpoint", o.checkpoint}});
    std::optional<Checkpoint> other_end;
    if (!o.landscape_to.empty()) {
        other_end = read_checkpoint(o.landscape_to, o.flags, o.common);
        o.settings.landscape.to = [&other_end, &o](Parameters& parameters, Network& network) {
            load_weights(parameters, network, *other_end, o.weights);
        };
    }
    Console console(o.common.quiet);
    const std::filesystem::path out = output_folder(o, checkpoint, console);
    const auto device = make_device(o.common, s.precision);
    const ReadProgress reading = [&](int64_t done, int64_t total) { console.progress("Reading images", done, total); };
    ImageSet images = images_of_split(split, s, reading);
    const int64_t count = images.count();
    Strangers strangers = strangers_of(o, s, console);
    say_what_is_skipped(checkpoint.file, checkpoint.path, *make_network(s));

    nlohmann::ordered_json json = {
        {"checkpoint", o.checkpoint}, {"weights", o.weights}, {"data", s.data}, {"split", split}, {"images", count}};
    if (const std::optional<int64_t> iteration = iteration_of(checkpoint.file)) json["iteration"] = *iteration;
    const nlohmann::ordered_json identity = json;
    json["protocols"] = nlohmann::ordered_json::object();
    Journal journal;
    if (!out.empty()) journal = Journal(out / kJournalFile, identity_of(o, checkpoint, *device, identity));
    if (journal.found() > 0) console.message("Going on with the evaluation that was interrupted.");
    const DrawnImages drawn = drawn_images(checkpoint);
    o.settings.samples.from =
        o.samples == "fresh" || (o.samples.empty() && drawn.buffer_count == 0) ? SamplesFrom::fresh : SamplesFrom::buffer;
    const auto now = std::chrono::steady_clock::now;
    const auto start = now();
    Evaluation evaluation({.network = trained_network(*device, checkpoint, o.weights),
                           .split = split,
                           .images = std::move(images),
                           .training = [&s, &reading] { return load_training_images(s, reading).train; },
                           .reference = o.settings.protocol == Protocol::authors ? [&s, &reading] { return authors_reference(s, reading); }
                                                                                 : std::function<ImageSet()>(),
                           .others = std::move(strangers.sets),
                           .made = strangers.made,
                           .features = feature_network(o.features, s, *device, o.settings.protocol),
                           .drawn = drawn,
                           .settings = o.settings,
                           .journal = std::move(journal),
                           .progress = [&](const std::string& what, int64_t done, int64_t total) { console.progress(what, done, total); },
                           .stop = [] { return interrupted.load(); },
                           .tell = [&](const std::string& line) { console.message(line); }});
    for (const Metric* m : wanted)
        if (m->wants_gradients != nullptr && m->wants_gradients(o.settings)) evaluation.want_gradients();
    const Choice choice = choose(o, evaluation, wanted, console);
    catch_interrupts(
        {.waiting = "Stopping: the batch at hand is finished, what was measured is kept. A second interrupt ends at once.",
         .ended = "Ended at once: the metrics of this call are lost, but for the pieces in " + std::string(kJournalFile) + "."});

    nlohmann::ordered_json values = nlohmann::ordered_json::object(), timings = nlohmann::ordered_json::object();
    const auto keep = [&] {
        json.update(values);
        if (!out.empty()) join_results(out / kResultFile, json, console);
    };
    const auto print = [&] {
        if (!o.common.json) {
            fmt::print("checkpoint  {} ({} weights)\n", o.checkpoint, o.weights);
            fmt::print("data        {}, {} {}\n", s.data, count,
                       split == "valid" ? "images held out of the training set" : split + (split == "test" ? " images" : "ing images"));
            print_values(values);
            if (!out.empty()) fmt::print("written     {}\n", out.string());
            if (!o.raw.empty()) fmt::print("tensors     {}\n", o.raw);
        }
        // not in the file, which repeats byte for byte
        json["seconds"] = seconds_since(start);
        timings["predictions_s"] = evaluation.predicting_seconds();
        json["timings"] = timings;
        print_result(o.common, json);
    };
    try {
        for (const Metric* m : choice.metrics) {
            const auto begin = now();
            const double predicting = evaluation.predicting_seconds();
            const MetricResult result = m->measure(evaluation);
            timings[m->name + "_s"] = seconds_since(begin) - (evaluation.predicting_seconds() - predicting);
            values.update(result.values, true);  // several tell of the same drawn images
            json["protocols"][m->name] = o.protocol;
            for (const auto& [name, text] : result.files)
                if (!out.empty()) write_file(out / name, text);
        }
        if (!o.raw.empty()) write_raw(o.raw, evaluation.predictions());
    } catch (const Interrupted&) {
        keep();
        console.message(out.empty() ? "Interrupted: what was measured follows; nothing else was kept."
                                    : "Interrupted: what was measured is in " + out.string() + ". The same command goes on.");
        print();
        return exit_code_of_interrupt();
    } catch (const std::exception& e) {
        if (!values.empty()) keep();
        throw;
    }
    if (!choice.left_out.empty()) values["left_out"] = choice.left_out;
    keep();
    evaluation.journal().remove();
    print();
    return kExitDone;
}

}  // namespace

Command add_evaluate(CLI::App& app) {
    auto o = std::make_shared<EvaluateOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    const auto text = [&](const std::string& flag, std::string& to, const std::string& help) {
        return app.add_option(flag, to, help)->capture_default_str()->multi_option_policy(last);
    };
    const auto choice = [&](const std::string& flag, std::string& to, const std::vector<std::string>& values, const std::string& help) {
        return text(flag, to, help)->check(CLI::IsMember(values));
    };
    const auto count = [&](const std::string& flag, int64_t& to, int64_t low, int64_t high, const std::string& help) {
        return app.add_option(flag, to, help)->transform(whole_number_in(low, high))->capture_default_str()->multi_option_policy(last);
    };
    text("--checkpoint", o->checkpoint, "Weights and running statistics");
    std::string help = "What to measure, joined by commas, or all: what takes less than --budget and has its input";
    for (const Metric& m : metrics()) help += (&m == &metrics().front() ? ": " : "; ") + m.name + " (" + m.help + ")";
    text("--metrics", o->metrics, help);
    app.add_option("--budget", o->budget_minutes, "Minutes that --metrics all may take, by an estimate that is told first")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str()
        ->multi_option_policy(last);
    choice("--weights", o->weights, {"last", "ema"}, "The last ones, or their moving average");
    choice("--split", o->split, {"test", "valid", "train", "auto"},
           "test, valid (what --n-valid held out), train, or auto: what the run itself was evaluated on");
    choice("--order", o->order, {"shuffled", "first"}, "Which n of N images a metric takes: of a permutation by --seed, or of the file");
    choice("--protocol", o->protocol, {"engine", "authors"}, "How each metric is measured: docs/evaluation.md");
    text("--out", o->out, "Folder for evaluation.json and the data of pictures (for a run's checkpoint RUN/evaluation/NAME)");
    text("--raw", o->raw, "Safetensors to write: logits [N,classes], energies, labels; gradient_norms where a metric takes them");
    app.add_option("--ood-data", o->ood_data,
                   "Sets of strangers, NAME or NAME:DIR of a data set, images:DIR, interpolation, uniform, gaussian; may be given again")
        ->capture_default_str();
    text("--ood-scores", o->ood_scores, "What is to tell strangers: log p(x), p(y|x), the gradient's length, which costs as much again");
    PgdSettings& pgd = o->settings.pgd;
    choice("--pgd-norm", o->pgd_norm, {"linf", "l2"}, "Norm of an attack's size");
    text("--pgd-eps", o->pgd_eps, "Sizes in 1/255 of the pixel range (default: 1,2,4,8,12,16,22,30; l2 32,64,128)");
    app.add_option_function<double>(
           "--pgd-step-size", [o = o.get()](double v) { o->pgd_step_size = v; }, "A step in the same unit (default: 2; l2 2.5 eps / steps)")
        ->check(CLI::Range(0.0, 255.0))
        ->multi_option_policy(last);
    count("--pgd-steps", pgd.steps, 0, 100000, "Steps of an attack");
    choice("--pgd-random-start", o->pgd_random_start, {"on", "off"}, "Start anywhere within the size, or at the image");
    count("--pgd-restarts", pgd.restarts, 1, 1000, "Attacks of an image, any of which may break it");
    count("--pgd-images", pgd.images, 1, 1000000000, "Images attacked");
    count("--purify-steps", pgd.purify_steps, 0, 100000, "SGLD steps down the energy before an attacked image is classified; 0: none");
    app.add_option("--eot-noise", pgd.eot_noise,
                   "Deviation of noise on each chain's image before its steps, pixels in [-1, 1]; 0: none (JEM's attacks: 0.03)")
        ->check(CLI::Range(0.0, 10.0))
        ->capture_default_str()
        ->multi_option_policy(last);
    count("--eot", pgd.eot, 1, 1000, "Chains of them whose mean logits an attack climbs; 150 decide");
    text("--apgd-eps", o->apgd_eps, "Size of AutoAttack's attacks, of --pgd-norm on --pgd-images (default: 8; l2 128)");
    count("--apgd-restarts", o->settings.apgd.restarts, 1, 1000, "Attacks of each kind");
    choice("--samples", o->samples, {"buffer", "fresh"},
           "Drawn images: all of the replay buffer, or fresh chains from p0 (default: the buffer where there is one)");
    count("--samples-count", o->settings.samples.count, 2, 1000000, "Fresh chains");
    count("--steps", o->settings.samples.steps, 1, 100000, "SGLD steps of fresh chains");
    text("--features", o->features,
         "By whose features drawn images are compared: a checkpoint, or inception:FILE (tools/convert makes it)");
    LandscapeSettings& landscape = o->settings.landscape;
    count("--landscape-images", landscape.images, 1, 1000000000, "Training images whose energy is taken");
    count("--landscape-points", landscape.points, 0, 100001, "Points along a direction from -1 to 1; 0: none");
    count("--landscape-points-2d", landscape.points_2d, 0, 1001, "Points along either side of a plane of two directions; 0: none");
    text("--landscape-to", o->landscape_to, "Another checkpoint of the same network: the energy between the two as well");
    o->flags.add_to(app, SettingsFlags::Kind::network);
    o->common.add_to(app);
    return [o] { return evaluate(*o); };
}

}  // namespace jem
