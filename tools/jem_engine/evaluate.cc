// jem_engine evaluate
#include "engine/evaluation/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <set>

#include "data/input_error.h"
#include "engine/files/output_file.h"
#include "engine/run/run_folder.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

constexpr std::array kCalibrationBins = {15, 20};

struct EvaluateOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, metrics = "accuracy,nll,ece", weights = "last", split = "auto", out;
};

std::set<std::string> chosen_metrics(const std::string& text) {
    static const std::set<std::string> available = {"accuracy", "nll", "ece"};
    std::set<std::string> chosen;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        if (!available.contains(name))
            throw InputError("There is no metric \"" + name + "\" in this build (available: accuracy, nll, ece). Choose among these.");
        chosen.insert(name);
        begin = end + 1;
    }
    return chosen;
}

// A run that holds images out of the training set is evaluated on these, as in its metrics.jsonl, unless another set is asked for.
bool on_held_out(const EvaluateOptions& o, const Settings& s) {
    const bool held_out = s.n_valid > 0;
    if (o.split == "valid" && !held_out)
        throw InputError("--split valid (no images of " + s.data +
                         " were held out of training, or the checkpoint does not say so). Use --split test.");
    return o.split == "valid" || (o.split == "auto" && held_out);
}

std::string reliability_csv(const Predictions& p, int bins) {
    std::string csv = "lower,upper,count,confidence,accuracy\n";
    int index = 0;
    for (const CalibrationBin& bin : calibration_bins(p, bins)) {
        csv += fmt::format("{},{},{},", static_cast<double>(index) / bins, static_cast<double>(index + 1) / bins, bin.count);
        csv += bin.count > 0 ? fmt::format("{},{}\n", bin.confidence, bin.accuracy) : ",\n";  // an empty bin has no means
        ++index;
    }
    return csv;
}

int evaluate(const EvaluateOptions& o) {
    if (o.checkpoint.empty())
        throw InputError("--checkpoint is needed (a safetensors file). Give one, such as RUN/checkpoints/last.safetensors.");
    const std::set<std::string> metrics = chosen_metrics(o.metrics);
    const Checkpoint checkpoint = read_checkpoint(o.checkpoint, o.flags, o.common);
    const Settings& s = checkpoint.settings;
    const bool valid = on_held_out(o, s);
    if (!o.out.empty()) create_folder(o.out);
    const auto device = make_device(o.common, s.precision);
    Console console(o.common.quiet);

    const ImageSet images = valid ? load_training_images(s, checkpoint.run_seed).held_out : load_images(s, Split::test);
    if (images.count() == 0)
        throw InputError("The test set of " + s.data + " is empty (its files hold no image). Give another --data-dir.");

    const auto network = make_network(s);
    Memory memory(*device);
    Evaluator evaluator(*device, memory, *network, {images.count()}, known_shape(s.data));
    Parameters parameters(*device, memory, *network, {});
    network->build(*device, memory, s.conv_algorithm);
    const auto network_memory = [&] {
        return NetworkMemory{.weights = parameters.weights(), .gradient = {}, .statistics = parameters.statistics()};
    };
    memory.plan([&] { evaluator.plan(network_memory()); });
    memory.allocate();
    load_weights(parameters, *network, checkpoint, o.weights);
    const auto start = std::chrono::steady_clock::now();
    const Predictions p =
        evaluator.predict(images, network_memory(), [&](int64_t done) { console.progress("Evaluating", done, images.count()); });
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
    if (metrics.contains("accuracy")) json["accuracy"] = accuracy(p);
    if (metrics.contains("accuracy") || metrics.contains("nll")) json["nll"] = negative_log_likelihood(p);
    if (metrics.contains("ece"))
        for (const int bins : kCalibrationBins) json[fmt::format("ece_{}", bins)] = expected_calibration_error(p, bins);
    if (!o.out.empty()) {
        const std::filesystem::path out = o.out;
        if (metrics.contains("ece"))
            for (const int bins : kCalibrationBins) write_file(out / fmt::format("reliability_{}.csv", bins), reliability_csv(p, bins));
        write_file(out / "evaluation.json", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    }
    if (!o.common.json) {
        fmt::print("checkpoint  {} ({} weights)\n", o.checkpoint, o.weights);
        fmt::print("data        {}, {} {}\n", s.data, images.count(), valid ? "images held out of the training set" : "test images");
        for (const char* name : {"accuracy", "nll", "ece_15", "ece_20"})
            if (json.contains(name)) fmt::print("{:<11} {:.4f}\n", name, json[name].get<double>());
        if (!o.out.empty()) fmt::print("written     {}\n", o.out);
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
    app.add_option("--metrics", o->metrics, "What to measure: accuracy, nll, ece, joined by commas")
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--weights", o->weights, "The last ones, or their moving average")
        ->check(CLI::IsMember({"last", "ema"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--split", o->split, "test, valid (what --n-valid held out), or auto: what the run itself was evaluated on")
        ->check(CLI::IsMember({"auto", "test", "valid"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--out", o->out, "Folder for evaluation.json and reliability_*.csv")->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::network);
    o->common.add_to(app);
    return [o] { return evaluate(*o); };
}

}  // namespace jem
