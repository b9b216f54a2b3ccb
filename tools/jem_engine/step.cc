// jem_engine step
#include "engine/training/step.h"

#include <fmt/format.h>

#include "data/input_error.h"
#include "engine/files/output_file.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

struct StepOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, batch, dump, recipe, config;
    int64_t optimizer_step = 0, repeat = 1;
};

// Sizes of images that no flag gave are the batch's.
void take_image_sizes(Settings& s, const SafetensorsFile& batch, const SettingsFlags& flags) {
    for (const char* name : {"x_lab", "x_pos"}) {
        if (!batch.has(name) || batch.at(name).shape.size() != 4) continue;
        const std::vector<int64_t>& shape = batch.at(name).shape;
        if (!flags.given("--in-channels")) s.in_channels = shape[1];
        if (!flags.given("--image-size")) s.image_size = shape[2];
    }
}

int step(const StepOptions& o) {
    for (const auto& [value, flag] :
         {std::pair{&o.checkpoint, "--checkpoint"}, std::pair{&o.batch, "--batch"}, std::pair{&o.dump, "--dump"}})
        if (value->empty()) throw InputError(std::string(flag) + " is needed (a safetensors file). Give it.");
    check_outputs({{"--dump", o.dump}}, {{"--checkpoint", o.checkpoint}, {"--batch", o.batch}});
    const SafetensorsFile checkpoint = SafetensorsFile::read_weights(o.checkpoint);
    const SafetensorsFile batch = SafetensorsFile::read(o.batch);
    const BegunSettings begun = begin_settings(o.recipe, o.config);
    Settings s = begun.settings;
    s.conv_algorithm = ConvAlgorithm::direct;  // made for comparison: the smallest error
    take_shapes(s, checkpoint);
    o.flags.apply(s);
    if (!o.flags.given("--lr") && !begun.lr_given) fit_rate_to_data(s);
    if (o.common.seed) s.seed = *o.common.seed;
    take_image_sizes(s, batch, o.flags);
    fill_in_sizes(s);
    check_settings(s);
    const auto device = make_device(o.common, s.precision);
    const auto network = make_network(s);
    say_what_is_skipped(checkpoint, o.checkpoint, *network);
    const SafetensorsFile dump = run_step(*device, *network, s,
                                          {.checkpoint = checkpoint,
                                           .checkpoint_path = o.checkpoint,
                                           .batch = batch,
                                           .batch_path = o.batch,
                                           .optimizer_step = o.optimizer_step,
                                           .iterations = o.repeat});
    dump.write_atomically(o.dump);
    nlohmann::ordered_json json = {{"dump", o.dump}, {"tensors", dump.tensors.size()}};
    for (const char* name : {"f_pos", "f_neg", "loss_gen", "loss_clf", "grad_norm"})
        if (dump.has(name)) json[name] = dump.doubles(name).at(0);
    if (!o.common.json) {
        for (const auto& [key, value] : json.items())
            fmt::print("{:10} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
    print_result(o.common, json);
    return dump.metadata.contains("diverged") ? kExitDiverged : kExitDone;
}

}  // namespace

Command add_step(CLI::App& app) {
    auto o = std::make_shared<StepOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    app.add_option("--checkpoint", o->checkpoint, "Weights and running statistics; optionally optimizer state")->multi_option_policy(last);
    app.add_option("--batch", o->batch, "x_pos, x_neg_start, x_lab [N,C,H,W], y [N]; optionally noise [K,N,C,H,W]")
        ->multi_option_policy(last);
    app.add_option("--dump", o->dump, "File to write")->multi_option_policy(last);
    app.add_option("--recipe", o->recipe, "Hyper-parameters that no flag gives [sada-jem]")->multi_option_policy(last);
    app.add_option("--config", o->config, "A run's config.json, or one of your own, in place of a recipe")->multi_option_policy(last);
    app.add_option("--optimizer-step", o->optimizer_step, "Optimizer steps already made (Adam)")
        ->transform(whole_number_in(0, 1000000000))
        ->multi_option_policy(last);
    app.add_option("--repeat", o->repeat, "Iterations on the same batch")->transform(whole_number_in(1, 100000))->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::training);
    o->common.add_to(app);
    return [o] { return step(*o); };
}

}  // namespace jem
