// jem_engine evaluate
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include "data/input_error.h"
#include "data/is_there.h"
#include "engine/evaluation/metric.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "engine/run/run_folder.h"
#include "engine/settings/table.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

constexpr const char* kResultFile = "evaluation.json";
// Results of one checkpoint that agree in these belong together.
constexpr const char* kIdentity[] = {"iteration", "weights", "data", "split", "images"};

struct EvaluateOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, metrics = "accuracy,nll,ece", weights = "last", split = "auto", out;
};

std::vector<Metric> chosen_metrics(const std::string& text) {
    std::vector<Metric> chosen;
    for (const std::string& name : comma_parts(text)) chosen.push_back(metric(name));
    return chosen;
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
    std::vector<NamedPath> outputs = {{"--out", folder / kResultFile}};
    for (const Metric& m : metrics())
        for (const std::string& file : m.file_names) outputs.push_back({"--out", folder / file});
    check_outputs(outputs, {{"--checkpoint", o.checkpoint}});
    return folder;
}

// Adds the results to those of earlier calls of the same weights on the same images; others they replace.
void join_results(const std::filesystem::path& file, const nlohmann::ordered_json& results, Console& console) {
    using Json = nlohmann::ordered_json;
    Json joined = is_there(file) ? Json::parse(read_file(file), nullptr, false) : results;
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
    joined.update(results);
    write_file(file, joined.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

// A run that holds images out of the training set is evaluated on these, as in its metrics.jsonl, unless another set is asked for.
bool on_held_out(const EvaluateOptions& o, const Settings& s) {
    const bool held_out = s.n_valid > 0;
    if (o.split == "valid" && !held_out)
        throw InputError("--split valid (no images of " + s.data +
                         " were held out of training, or the checkpoint does not say so). Use --split test.");
    return o.split == "valid" || (o.split == "auto" && held_out);
}

int evaluate(const EvaluateOptions& o) {
    if (o.checkpoint.empty())
        throw InputError("--checkpoint is needed (a safetensors file). Give one, such as RUN/checkpoints/last.safetensors.");
    const std::vector<Metric> chosen = chosen_metrics(o.metrics);
    const Checkpoint checkpoint = read_checkpoint(o.checkpoint, o.flags, o.common);
    const Settings& s = checkpoint.settings;
    const bool valid = on_held_out(o, s);
    Console console(o.common.quiet);
    const std::filesystem::path out = output_folder(o, checkpoint, console);
    const auto device = make_device(o.common, s.precision);

    const ImageSet images = valid ? load_training_images(s).held_out : load_images(s, Split::test);
    if (images.count() == 0)
        throw InputError("The test set of " + s.data + " is empty (its files hold no image). Give another --data-dir.");

    const auto network = make_network(s);
    Memory memory(*device);
    Predictor predictor(*device, memory, *network, {.height = s.image_size, .width = s.image_size, .channels = s.in_channels},
                        {.largest = images.count(), .energy_head = s.energy_head});
    Parameters parameters(*device, memory, *network, {});
    network->build(*device, memory, s.conv_algorithm);
    const auto network_memory = [&] {
        return NetworkMemory{.weights = parameters.weights(), .gradient = {}, .statistics = parameters.statistics()};
    };
    memory.plan([&] { predictor.plan(network_memory()); });
    memory.allocate();
    load_weights(parameters, *network, checkpoint, o.weights);
    const auto start = std::chrono::steady_clock::now();
    Predictions p = predictor.predict(images.count(), predictor.images_of(images), network_memory(),
                                      [&](int64_t done) { console.progress("Evaluating", done, images.count()); });
    p.labels = images.labels;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (const double logit : p.logits)
        if (!std::isfinite(logit))
            throw std::runtime_error("Logits are not finite (the weights of " + o.checkpoint +
                                     " are not, or activations overflow). Use an earlier checkpoint.");

    nlohmann::ordered_json json = {{"checkpoint", o.checkpoint},
                                   {"weights", o.weights},
                                   {"data", s.data},
                                   {"split", valid ? "valid" : "test"},
                                   {"images", images.count()}};
    if (const std::optional<int64_t> iteration = iteration_of(checkpoint.file)) json["iteration"] = *iteration;
    nlohmann::ordered_json values;
    for (const Metric& m : chosen) {
        const MetricResult result = m.measure(p);
        values.update(result.values);
        for (const auto& [name, text] : result.files)
            if (!out.empty()) write_file(out / name, text);
    }
    json.update(values);
    if (!out.empty()) join_results(out / kResultFile, json, console);
    if (!o.common.json) {
        fmt::print("checkpoint  {} ({} weights)\n", o.checkpoint, o.weights);
        fmt::print("data        {}, {} {}\n", s.data, images.count(), valid ? "images held out of the training set" : "test images");
        for (const auto& [name, value] : values.items()) fmt::print("{:<11} {:.4f}\n", name, value.get<double>());
        if (!out.empty()) fmt::print("written     {}\n", out.string());
    }
    json["seconds"] = seconds;  // of the predictions; not in the file, which repeats byte for byte
    print_result(o.common, json);
    return kExitDone;
}

}  // namespace

Command add_evaluate(CLI::App& app) {
    auto o = std::make_shared<EvaluateOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    app.add_option("--checkpoint", o->checkpoint, "Weights and running statistics")->multi_option_policy(last);
    std::string help = "What to measure, joined by commas";
    for (const Metric& m : metrics()) help += (&m == &metrics().front() ? ": " : "; ") + m.name + " (" + m.help + ")";
    app.add_option("--metrics", o->metrics, help)->capture_default_str()->multi_option_policy(last);
    app.add_option("--weights", o->weights, "The last ones, or their moving average")
        ->check(CLI::IsMember({"last", "ema"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--split", o->split, "test, valid (what --n-valid held out), or auto: what the run itself was evaluated on")
        ->check(CLI::IsMember({"auto", "test", "valid"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--out", o->out, "Folder for evaluation.json and reliability_*.csv (for a run's checkpoint RUN/evaluation/NAME)")
        ->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::network);
    o->common.add_to(app);
    return [o] { return evaluate(*o); };
}

}  // namespace jem
