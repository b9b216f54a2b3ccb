// jem_engine plan: what a training run would need, without running it.
#include <fmt/format.h>

#include <algorithm>

#include "data/input_error.h"
#include "engine/trainer.h"
#include "tools/options.h"

namespace jem {
namespace {

struct PlanOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string recipe, gpu;
};

double mib(double bytes) { return bytes / (1 << 20); }

// Convolutions and the head; nothing element-wise.
bool multiplies(const std::string& label) { return label.starts_with("conv_") || label.starts_with("linear_"); }

struct Totals {
    double flops = 0, forward_flops = 0;
    int64_t launches = 0;
};

Totals totals_of(const WorkReport& work) {
    Totals t;
    for (const auto& [label, row] : work) {
        t.launches += row.launches;
        if (multiplies(label)) t.flops += row.flops;
        if (label == "conv_forward" || label == "linear_forward") t.forward_flops += row.flops;
    }
    return t;
}

// What the process of a fresh run needs besides the arena, at its peak: while it writes a checkpoint. Measured on Linux
// with WRN-10-1, 16-4 and 28-10 and buffers of 100 to 30000 images: within 4 % of the process's peak resident memory.
double host_bytes(const Settings& s, const Network& network, int64_t held_out) {
    constexpr double kProgram = 24 << 20;         // code, oneDNN's kernels, heap: 19 to 37 MiB
    constexpr double kBufferBytesAPixel = 16;     // of the buffer in two layouts, as double and as float
    constexpr double kTensorBytesAnElement = 24;  // the same of one tensor
    const auto pixels = static_cast<double>(s.in_channels * s.image_size * s.image_size);
    double largest = 0;
    for (const TensorInfo& info : network.parameters()) largest = std::max(largest, static_cast<double>(info.count()));
    const double saved = (s.optimizer == Optimizer::adam ? 3 : 2) + (s.ema > 0 ? 1 : 0);
    const double buffer = s.samples() ? static_cast<double>(s.buffer_size) * pixels * kBufferBytesAPixel : 0;
    return kProgram + static_cast<double>(held_out) * pixels + saved * static_cast<double>(network.parameter_count()) * sizeof(float) +
           std::max(buffer, largest * kTensorBytesAnElement);
}

int plan(const PlanOptions& o) {
    if (!o.gpu.empty())
        throw InputError("--gpu " + o.gpu +
                         ": planning for GPUs is not in this build yet (it has no CUDA device). Leave --gpu out to plan for the CPU.");
    if (o.recipe.empty()) throw InputError("--recipe is needed. Give --recipe sada-jem.");
    Settings s = recipe(o.recipe);
    o.flags.apply(s);
    if (o.common.seed) s.seed = *o.common.seed;
    if (s.data.empty()) throw InputError("--data is needed (the name of a data set, whose files need not exist). Give cifar10.");
    fill_in_sizes(s);
    validate(s);
    ImageSetShape shape = known_shape(s.data);
    if (shape.channels != s.in_channels || shape.height != s.image_size || shape.num_classes != s.num_classes)
        throw InputError(
            fmt::format("{} has {}x{}x{} images of {} classes (--in-channels, --image-size or --num-classes say otherwise). "
                        "Leave these out.",
                        s.data, shape.channels, shape.height, shape.width, shape.num_classes));
    if (s.n_valid >= shape.num_train)
        throw InputError(fmt::format("--n-valid is {} (there are {} training images). Give a smaller one.", s.n_valid, shape.num_train));
    const int64_t train = shape.num_train - s.n_valid, held_out = s.n_valid > 0 ? s.n_valid : shape.num_test;

    const auto device = make_device(o.common, s.precision);
    const auto network = make_network(s);
    TrainingParts parts(*device, *network, s, {.shape = shape, .count = train}, held_out);

    double flops = 0, image_flops = 0;
    int64_t launches = 0;
    nlohmann::ordered_json phases = nlohmann::json::array(), regions = nlohmann::json::array(), convolutions = nlohmann::json::array();
    for (const auto& [phase, work] : parts.work) {
        const int64_t repeats = parts.iteration.repeats(phase);
        const Totals t = totals_of(work);
        flops += t.flops * static_cast<double>(repeats);
        launches += t.launches * repeats;
        if (phase == Phase::positive) image_flops = t.forward_flops / static_cast<double>(s.gen_batch_size);
        if (phase == Phase::labelled) image_flops = t.forward_flops / static_cast<double>(s.batch_size);
        phases.push_back({{"name", phase_name(phase)},
                          {"repeats", repeats},
                          {"flops", t.flops * static_cast<double>(repeats)},
                          {"launches", t.launches * repeats}});
    }
    std::vector<MemoryRegion> by_size = parts.memory.regions();
    std::stable_sort(by_size.begin(), by_size.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    for (const MemoryRegion& r : by_size) regions.push_back({{"name", r.name}, {"bytes", r.bytes}});
    for (const auto& [conv, choice] : network->convolution_choices())
        convolutions.push_back({{"shape", conv},
                                {"pass", choice.pass},
                                {"engine", choice.engine},
                                {"workspace_bytes", choice.workspace_bytes},
                                {"batch", choice.batch}});
    const auto peak = static_cast<double>(parts.memory.arena_bytes());
    const double process = peak + host_bytes(s, *network, held_out);

    if (!o.common.json) {
        fmt::print("{} on {}, {} ({})\n", s.recipe, s.data, device->name(), device->description());
        fmt::print("network   WRN-{}-{}, {} parameters, {:.3f} GFLOP forward an image\n\n", s.depth, s.width, network->parameter_count(),
                   image_flops / 1e9);
        fmt::print("{:<22} {:>12}\n", "memory", "MiB");
        for (const MemoryRegion& r : by_size) fmt::print("  {:<20} {:>12.1f}\n", r.name, mib(static_cast<double>(r.bytes)));
        fmt::print("  {:<20} {:>12.1f}\n  {:<20} {:>12.1f}\n\n", "= arena", mib(peak), "process, about", mib(process));
        fmt::print("{:<22} {:>12} {:>10} {:>10}\n", "iteration", "GFLOP", "times", "launches");
        for (const auto& p : phases)
            fmt::print("  {:<20} {:>12.2f} {:>10} {:>10}\n", p["name"].get<std::string>(), p["flops"].get<double>() / 1e9,
                       p["repeats"].get<int64_t>(), p["launches"].get<int64_t>());
        fmt::print("  {:<20} {:>12.2f} {:>10} {:>10}\n\n", "= iteration", flops / 1e9, "", launches);
        fmt::print("{:<26} {:<17} {:>6} {:>14}  {}\n", "convolution", "pass", "batch", "workspace MiB", "engine");
        for (const auto& c : convolutions)
            fmt::print("  {:<24} {:<17} {:>6} {:>14.2f}  {}\n", c["shape"].get<std::string>(), c["pass"].get<std::string>(),
                       c["batch"].get<int64_t>(), mib(c["workspace_bytes"].get<double>()), c["engine"].get<std::string>());
    }
    print_result(o.common, {{"recipe", s.recipe},
                            {"data", s.data},
                            {"device", device->name()},
                            {"parameters", network->parameter_count()},
                            {"forward_flops_per_image", image_flops},
                            {"regions", regions},
                            {"peak_bytes", parts.memory.arena_bytes()},
                            {"peak_process_bytes", static_cast<int64_t>(process)},
                            {"flops_per_iteration", flops},
                            {"launches_per_iteration", launches},
                            {"phases", phases},
                            {"convolutions", convolutions}});
    return kExitDone;
}

}  // namespace

Command add_plan(CLI::App& app) {
    auto o = std::make_shared<PlanOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    std::string recipes;
    for (const std::string& name : recipe_names()) recipes += (recipes.empty() ? "" : "|") + name;
    app.add_option("--recipe", o->recipe, "Preset of all hyper-parameters (" + recipes + ")")->multi_option_policy(last);
    app.add_option("--gpu", o->gpu, "Plan for this GPU (not in this build yet)")->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::all);
    o->common.add_to(app);
    return [o] { return plan(*o); };
}

}  // namespace jem
