// jem_engine sample
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/interrupt.h"
#include "tools/jem_engine/options.h"
#include "tools/jem_engine/sample/output.h"
#include "tools/jem_engine/sample/sample_run.h"

namespace jem {
namespace {

constexpr const char* kImagesOf = "images:";
constexpr double kMostReflectedNoise = 0.5;  // sgld's noise where Metropolis reflects: its densities are sums of few terms

// What contradicts itself, before anything is read.
void check_options(const SampleOptions& o) {
    if (o.checkpoint.empty())
        throw InputError("--checkpoint is needed (a safetensors file). Give one, such as RUN/checkpoints/last.safetensors.");
    const Damage damage(o.damage);
    if (damage.any() && !o.given())
        throw InputError("--damage is " + o.damage + " (chains from " + o.from + " start at no image). Give --from test, or images:DIR.");
    if (o.keep_known && !damage.leaves_known())
        throw InputError("--keep-known is on (--damage " + o.damage + " leaves no pixel known). Give --damage half.");
    if (o.keep_known && o.metropolis)
        throw InputError("--keep-known is on (--mala judges moves of whole images). Leave one of the two out.");
    if (o.from != "prior" && o.from != "buffer" && o.from != "noise" && o.from != "test" && o.from != "train" &&
        !(o.from.starts_with(kImagesOf) && o.from.size() > std::string(kImagesOf).size()))
        throw InputError("--from is \"" + o.from +
                         "\" (there are prior, buffer, noise, test, train and images:DIR or images:FILE). Give one.");
}

// What is wrong with the chains for Metropolis.
void check_metropolis(const Settings& s) {
    if (s.norm == NormKind::batch && s.sampling_norm != SamplingNorm::running)
        throw InputError(
            "--mala is on (with the batch's statistics an image's energy depends on the others). Give --sampling-norm running.");
    if (!(s.sgld_noise > 0) || !(s.sgld().step_size > 0))
        throw InputError(fmt::format("--mala is on (--sgld-noise is {}, --sgld-step-size {}: there is no temperature). Give both above 0.",
                                     s.sgld_noise, s.sgld().step_size));
    if (s.sgld_pixel_clamp && s.sgld_noise > kMostReflectedNoise)
        throw InputError(fmt::format("--mala is on (--sgld-noise is {}, beyond {} of a pixel's range of 2). Give less.", s.sgld_noise,
                                     kMostReflectedNoise));
}

int sample(const SampleOptions& o) {
    check_options(o);
    const std::string sheet = o.sheet.empty() && o.raw.empty() ? "samples.png" : o.sheet;
    std::vector<NamedPath> inputs = {{"--checkpoint", o.checkpoint}};
    if (o.from == "buffer")
        for (const std::filesystem::path& state : states_beside(o.checkpoint)) inputs.push_back({"the replay buffer's file", state});
    const Checkpoint checkpoint = read_checkpoint(o.checkpoint, o.flags, o.common);
    const Settings& s = checkpoint.settings;
    if (!s.data.empty())
        for (const std::filesystem::path& file : image_files(s.data, s.data_dir)) inputs.push_back({"a file of " + s.data, file});
    check_outputs({{"--sheet", sheet}, {"--raw", o.raw}, {"--diagnose", o.diagnose}}, inputs);
    if (o.label && (*o.label < 0 || *o.label >= s.num_classes))
        throw InputError(fmt::format("--class is {} (the network knows 0 to {}). Give one of these.", *o.label, s.num_classes - 1));
    if (o.metropolis) check_metropolis(s);
    outlive_readers();
    Console console(o.common.quiet);
    SampleRun run(o, checkpoint, console);
    const SampleSheet sheet_of(o, s, sheet.empty() ? 1 : run.most_samples(), std::ssize(run.frame_steps()));
    std::vector<Sample> samples = run.run();
    if (run.diverged()) {
        std::fprintf(stderr,
                     "error: Sampling diverged (a gradient or logit was not finite). Use --sgld-grad-clamp 1 and --sgld-pixel-clamp on, "
                     "or an earlier checkpoint.\n");
        return kExitDiverged;
    }
    if (samples.empty()) {
        console.message("Interrupted: no batch of chains had ended, so there is nothing to write.");
        return exit_code_of_interrupt();
    }
    if (run.stopped())
        console.message(fmt::format("Interrupted: what follows are the {} samples whose chains had ended.", samples.size()));
    else if (std::ssize(samples) < o.count)
        console.message(fmt::format("Only {} of {} samples were found{}{}.", samples.size(), o.count,
                                    o.label     ? fmt::format(" that are predicted as class {}", *o.label)
                                    : o.given() ? o.from == "buffer" ? " in the buffer" : " among the images"
                                                : "",
                                    o.min_confidence ? fmt::format(", with a confidence of {}", *o.min_confidence) : ""));
    // The strangest images come in their own order; so does what has a class for itself.
    const bool images = o.given() && o.from != "buffer";
    if (o.pick == "random" || !(o.label || images))
        std::stable_sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) {
            const int64_t first = a.target >= 0 ? a.target : a.label, second = b.target >= 0 ? b.target : b.label;
            return first != second ? first < second : a.confidence > b.confidence;
        });
    if (!o.raw.empty()) write_raw(o.raw, samples, s, run.frame_steps());
    if (!sheet.empty()) sheet_of.write(sheet, samples);
    const ChainDiagnostics& diagnostics = run.diagnostics();
    const Autocorrelation mixing = diagnostics.mixing();
    if (!o.diagnose.empty() && diagnostics.traced()) write_file(o.diagnose, diagnostics.csv(mixing));

    std::vector<int64_t> counts(static_cast<size_t>(s.num_classes));
    double mean_lse = 0;
    for (const Sample& one : samples) {
        ++counts[static_cast<size_t>(one.label)];
        mean_lse += one.lse / static_cast<double>(samples.size());
    }
    nlohmann::ordered_json json = {{"checkpoint", o.checkpoint}, {"weights", o.weights}, {"from", o.from},
                                   {"steps", run.steps()},       {"seed", s.seed},       {"images", samples.size()},
                                   {"mean_lse", mean_lse},       {"counts", counts}};
    if (o.to_class()) json["towards"] = o.towards;
    if (o.metropolis) json["temperature"] = s.sgld_noise * s.sgld_noise / (2 * s.sgld().step_size);
    if (o.damaged()) {
        const Restoration restoration = restoration_of(samples);
        json["rms_damaged"] = restoration.damaged;
        json["rms_restored"] = restoration.restored;
    }
    if (!run.frame_steps().empty()) json["frame_steps"] = run.frame_steps();
    if (const nlohmann::ordered_json found = diagnostics.json(mixing); !found.empty()) json["diagnostics"] = found;
    if (images || o.to_class() || o.neighbours > 0) json["samples"] = json_of(samples);
    if (!sheet.empty()) json["sheet"] = sheet;
    if (!o.raw.empty()) json["raw"] = o.raw;
    if (!o.diagnose.empty()) json["diagnose"] = o.diagnose;
    if (!o.common.json) {
        if (!sheet.empty()) fmt::print("sheet     {}\n", sheet);
        if (!o.raw.empty()) fmt::print("tensors   {}\n", o.raw);
        if (!o.diagnose.empty()) fmt::print("course    {}\n", o.diagnose);
        fmt::print("samples   {} from {}, {} SGLD steps{}\n", samples.size(), o.from, run.steps(),
                   run.buffer_path().empty() ? "" : " on " + run.buffer_path());
        if (o.damaged())
            fmt::print("distance  {:.2f} damaged, {:.2f} restored (root mean square from the originals, in 1/255)\n",
                       json["rms_damaged"].get<double>(), json["rms_restored"].get<double>());
        fmt::print("{}", diagnostics.text(mixing));
        if (images || o.neighbours > 0) fmt::print("{}", lines_of(samples));
        fmt::print("mean LSE  {:.4f}\npredicted as\n", mean_lse);
        const std::vector<std::string> names = s.data.empty() ? std::vector<std::string>{} : known_class_names(s.data, s.data_dir);
        for (size_t c = 0; c < counts.size(); ++c)
            if (counts[c] > 0) fmt::print("  {:>3} {:<14} {}\n", c, c < names.size() ? names[c] : "", counts[c]);
    }
    print_result(o.common, json);
    return run.stopped() ? exit_code_of_interrupt() : kExitDone;
}

}  // namespace

Command add_sample(CLI::App& app) {
    auto o = std::make_shared<SampleOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    app.add_option("--checkpoint", o->checkpoint, "Weights and running statistics")->multi_option_policy(last);
    app.add_option(
           "--from", o->from,
           "Where chains start: prior (--init), buffer (the replay buffer), noise (uniform), test or train (the data set's images), "
           "images:DIR or images:FILE (pictures, fitted to the network)")
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option_function<int64_t>(
           "--steps", [o = o.get()](int64_t v) { o->steps = v; },
           "SGLD steps; 20, or 0 from images that nothing else is asked of, unless given")
        ->transform(whole_number_in(0, 100000))
        ->multi_option_policy(last);
    app.add_option("--count", o->count, "Images")->transform(whole_number_in(1, 100000))->capture_default_str()->multi_option_policy(last);
    app.add_option_function<int64_t>(
           "--class", [o = o.get()](int64_t v) { o->label = v; }, "Only samples predicted as this class; prior: from its Gaussian")
        ->transform(whole_number_in(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()))
        ->multi_option_policy(last);
    app.add_option("--pick", o->pick,
                   "Which: random, or the best or worst by LSE, of all images that chains start at, or of 4 chains an image")
        ->check(CLI::IsMember({"random", "best", "worst"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option_function<double>(
           "--min-confidence", [o = o.get()](double v) { o->min_confidence = v; },
           "Only samples of at least this p(y|x), of --class or the class they are aimed at, else of any")
        ->check(CLI::Range(0.0, 1.0))
        ->multi_option_policy(last);
    const auto choice = [&](const std::string& flag, std::string& to, const std::vector<std::string>& values, const std::string& help) {
        app.add_option(flag, to, help)->check(CLI::IsMember(values))->capture_default_str()->multi_option_policy(last);
    };
    choice("--towards", o->towards, {"lse", "class"},
           "What chains climb: lse (samples of p(x)), or class: f(x)[y], y being --class, the image's own, or each in turn");
    app.add_option("--damage", o->damage,
                   "What is done first to the images that chains are to restore: none, half[:grey] (the lower half becomes noise, or "
                   "grey), noise[:SIGMA] "
                   "(of .3, in units of [-1, 1])")
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_flag("--keep-known", o->keep_known, "With --damage half: put the upper half back after every step");
    app.add_option("--snapshots", o->snapshots, "A frame after each so many steps: the sheet shows the course of a chain a row; 0: none")
        ->transform(whole_number_in(0, 100000))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--neighbours", o->neighbours, "So many of the nearest training images beside each sample; 0: none")
        ->transform(whole_number_in(0, 1000))
        ->capture_default_str()
        ->multi_option_policy(last);
    choice("--neighbours-by", o->neighbours_by, {"pixels", "features"}, "By distance of pixels in [-1, 1], or of what the head reads");
    app.add_option("--diagnose", o->diagnose, "CSV to write: energies, gradient norm, acceptance at every step, autocorrelation")
        ->multi_option_policy(last);
    app.add_flag("--mala", o->metropolis,
                 "Accept or reject each step (Metropolis), with reflection at [-1, 1]: exact for exp(-E / T), T = noise^2 / (2 step size)");
    app.add_option("--weights", o->weights, "The last ones, or their moving average")
        ->check(CLI::IsMember({"last", "ema"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--sheet", o->sheet,
                   "PNG to write, a class a row, or a sample a row with --snapshots, --damage, --neighbours (samples.png where neither "
                   "this nor --raw is given)")
        ->multi_option_policy(last);
    app.add_flag("--stretch", o->stretch,
                 "The sheet's brightness from the samples' darkest to their brightest value, as the authors' sheets");
    app.add_option("--raw", o->raw, "Safetensors to write: images [N,C,H,W], labels (predicted), logits, lse, and what else was asked for")
        ->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::sampling);
    o->common.add_to(app);
    return [o] { return sample(*o); };
}

}  // namespace jem
