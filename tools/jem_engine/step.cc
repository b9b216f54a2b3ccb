// jem_engine step
#include "engine/training/step.h"

#include <fmt/format.h>

#include "data/input_error.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

struct StepOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, batch, dump, recipe = "sada-jem";
    int64_t optimizer_step = 0, repeat = 1;
};

// Sizes that no flag gave are read off the tensors.
void infer_sizes(Settings& s, const SafetensorsFile& checkpoint, const SafetensorsFile& batch, const SettingsFlags& flags) {
    const auto shape = [](const SafetensorsFile& file, const char* name) {
        return file.has(name) ? file.at(name).shape : std::vector<int64_t>{};
    };
    for (const char* name : {"x_lab", "x_pos"}) {
        const std::vector<int64_t> images = shape(batch, name);
        if (images.size() != 4) continue;
        if (!flags.given("--in-channels")) s.in_channels = images[1];
        if (!flags.given("--image-size")) s.image_size = images[2];
    }
    const std::vector<int64_t> head = shape(checkpoint, "class_output.weight");
    if (head.size() == 2 && !flags.given("--num-classes")) s.num_classes = head[0];
}

int step(const StepOptions& o) {
    for (const auto& [value, flag] :
         {std::pair{&o.checkpoint, "--checkpoint"}, std::pair{&o.batch, "--batch"}, std::pair{&o.dump, "--dump"}})
        if (value->empty()) throw InputError(std::string(flag) + " is needed (a safetensors file). Give it.");
    check_outputs({{"--dump", o.dump}}, {{"--checkpoint", o.checkpoint}, {"--batch", o.batch}});
    const SafetensorsFile checkpoint = SafetensorsFile::read(o.checkpoint);
    const SafetensorsFile batch = SafetensorsFile::read(o.batch);
    Settings s = recipe(o.recipe);
    s.conv_algorithm = ConvAlgorithm::direct;  // made for comparison: the smallest error
    if (const std::optional<Settings> own = settings_of(checkpoint)) {
        s.depth = own->depth;
        s.width = own->width;
        s.norm = own->norm;
    }
    o.flags.apply(s);
    if (!o.flags.given("--lr")) fit_rate_to_data(s);
    if (o.common.seed) s.seed = *o.common.seed;
    infer_sizes(s, checkpoint, batch, o.flags);
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
    app.add_option("--recipe", o->recipe, "Hyper-parameters that no flag gives")->capture_default_str()->multi_option_policy(last);
    app.add_option("--optimizer-step", o->optimizer_step, "Optimizer steps already made (Adam)")
        ->transform(whole_number_in(0, 1000000000))
        ->multi_option_policy(last);
    app.add_option("--repeat", o->repeat, "Iterations on the same batch")->transform(whole_number_in(1, 100000))->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::training);
    o->common.add_to(app);
    return [o] { return step(*o); };
}

}  // namespace jem
