// jem_engine plan: what a training run would need, without running it.
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "data/input_error.h"
#include "engine/training/trainer.h"
#include "tools/jem_engine/options.h"

#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#endif

namespace jem {
namespace {

struct PlanOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string recipe, config, gpu;
};

double mib(double bytes) { return bytes / (1 << 20); }

// Convolutions and the head; nothing element-wise.
bool multiplies(const std::string& label) { return label.starts_with("conv_") || label.starts_with("linear_"); }

struct Totals {
    double flops = 0, forward_flops = 0, bytes = 0, seconds = 0;
    int64_t launches = 0;
};

Totals totals_of(const WorkReport& work) {
    Totals t;
    for (const auto& [label, row] : work) {
        t.launches += row.launches;
        t.bytes += row.bytes;
        t.seconds += row.seconds;
        if (multiplies(label)) t.flops += row.flops;
        if (label == "conv_forward" || label == "linear_forward") t.forward_flops += row.flops;
    }
    return t;
}

// Of this process, now: code, libraries with what they have loaded and compiled for the plan, heap. The arena is only planned.
double resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    double total = 0, resident = 0;
    statm >> total >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// What a training process needs on the host besides an arena there (0: it is on a GPU), at its peak. Checkpoints pass in small pieces; the
// training set goes when it is on the device, and until then little else of the arena has been touched. Held against the kernel's figure by
// tests/cli/test_memory.sh.
double host_bytes(const Settings& s, double arena, double good_states, int64_t train, int64_t held_out) {
    constexpr double kStart = 12 << 20;  // more than a plan: threads, other commands' code, pieces of files
    const auto pixels = static_cast<double>(s.in_channels * s.image_size * s.image_size);
    const int64_t copies = s.labels_per_class > 0 ? s.num_labelled(train) : 0;  // of the labelled images
    const double train_bytes = static_cast<double>(train + copies) * pixels;
    const double uploading = arena > 0 ? std::max(0.0, 2 * train_bytes - arena) : train_bytes;
    // Good states are there after the first hundreds of iterations, when the training set is long on the device.
    return resident_bytes() + kStart + static_cast<double>(held_out) * pixels + std::max(uploading, good_states);
}

// What a run's checkpoints take on disk at its end, but for the files' headers: the last, the best and the archived weights, and the states
// that are kept.
struct DiskUse {
    double weights_bytes = 0, state_bytes = 0;
    int64_t archives = 0, states = 1;
    double total() const { return weights_bytes * static_cast<double>(2 + archives) + state_bytes * static_cast<double>(states); }
};

DiskUse disk_use(const Settings& s, const Network& network, DType real, int64_t train) {
    const int64_t per_epoch = s.iterations_per_epoch(train);
    const int64_t epochs = s.iterations >= 0 ? s.iterations / per_epoch : s.epochs;
    const int64_t optimizer_arrays = s.optimizer == Optimizer::adam ? 2 : 1, averages = s.ema > 0 ? 1 : 0;
    const int64_t weights = network.parameter_count() * (1 + averages) + network.statistic_count();
    const int64_t buffer = s.samples() ? s.buffer_size * s.in_channels * s.image_size * s.image_size : 0;
    const auto bytes = [&](int64_t values) { return static_cast<double>(values) * static_cast<double>(size_of(real)); };
    return {.weights_bytes = bytes(weights),
            .state_bytes = bytes(weights + network.parameter_count() * optimizer_arrays + buffer),
            .archives = s.archive_interval > 0 ? epochs / s.archive_interval : 0,
            .states = s.keep};
}

// What a CUDA process takes on the GPU besides the arena: its context, kernels as they are loaded, scratch of sums. On an H100 with the
// driver 580 and cuDNN 9.19 they were 623 MiB of 2007 (WRN-28-10, bf16).
constexpr double kGpuContextBytes = 624.0 * (1 << 20);
// Between two kernels of a replayed graph: assumed.
constexpr double kLaunchSeconds = 2e-6;

// The GPU that is planned for, in a build that can.
struct PlannedGpu {
    std::unique_ptr<Device> device;
    std::string title;
    double memory_bytes = 0, bandwidth = 0, peak_flops = 0;
};

#ifdef JEM_HAS_CUDA
PlannedGpu planned_gpu(const std::string& name, const std::string& precision, bool overlap) {
    // cuDNN 9.19 ends the program where it plans for another GPU than one that it sees (on an H100: in its own heuristics).
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    const GpuDescription gpu = describe_gpu(name);
    CudaOptions options;
    options.precision = cuda_precision(precision);
    options.overlap = overlap;
    return {.device = make_cuda_planning_device(gpu, options),
            .title = gpu.title,
            .memory_bytes = static_cast<double>(gpu.memory_bytes),
            .bandwidth = gpu.bandwidth,
            .peak_flops = gpu.peak_flops(options.precision)};
}
#else
PlannedGpu planned_gpu(const std::string& name, const std::string&, bool) {
    throw InputError("--gpu " + name +
                     ": this build has no CUDA parts (" JEM_CUDA_MISSING
                     "). Leave --gpu out to plan for the CPU, or build with what is missing.");
}
#endif

int plan(const PlanOptions& o) {
    if (o.recipe.empty() && o.config.empty()) throw InputError("--recipe is needed (or --config). Give --recipe sada-jem.");
    const BegunSettings begun = begin_settings(o.recipe, o.config);
    Settings s = begun.settings;
    o.flags.apply(s);
    if (!o.flags.given("--lr") && !begun.lr_given) fit_rate_to_data(s);
    if (o.common.seed) s.seed = *o.common.seed;
    if (s.data.empty()) throw InputError("--data is needed (the name of a data set, whose files need not exist). Give cifar10.");
    fill_in_sizes(s);
    check_settings(s);
    check_sizes(s);
    const ImageSetShape shape = shape_of(s);
    const bool counted = known_shape(s.data, s.data_dir).num_train > 0;
    if (s.n_valid >= shape.num_train)
        throw InputError(fmt::format("--n-valid is {} (there are {} training images). Give a smaller one.", s.n_valid, shape.num_train));
    const int64_t train = shape.num_train - s.n_valid, held_out = s.n_valid > 0 ? s.n_valid : shape.num_test;

    PlannedGpu gpu;
    if (!o.gpu.empty()) gpu = planned_gpu(o.gpu, s.precision, o.common.overlap == "on");
    const std::unique_ptr<Device> device = gpu.device ? std::move(gpu.device) : make_device(o.common, s.precision);
    const bool on_gpu = !o.gpu.empty(), predicted = gpu.bandwidth > 0 && gpu.peak_flops > 0;
    const auto network = make_network(s);
    TrainingParts parts(*device, *network, s, {.shape = shape, .count = train, .starts = start_count(s)}, held_out);

    double flops = 0, image_flops = 0, bytes = 0, seconds = 0;
    int64_t launches = 0;
    nlohmann::ordered_json phases = nlohmann::json::array(), regions = nlohmann::json::array(), convolutions = nlohmann::json::array(),
                           candidates = nlohmann::json::array();
    for (const TrainingIteration::Phase& p : parts.iteration.phases()) {
        const std::string& phase = p.name;
        const WorkReport& work = parts.work[static_cast<size_t>(&p - parts.iteration.phases().data())].second;
        const int64_t repeats = parts.iteration.repeats(phase);
        const Totals t = totals_of(work);
        const double phase_bytes = t.bytes * static_cast<double>(repeats);
        const double phase_seconds = (t.seconds + static_cast<double>(t.launches) * kLaunchSeconds) * static_cast<double>(repeats);
        flops += t.flops * static_cast<double>(repeats);
        bytes += phase_bytes;
        seconds += phase_seconds;
        launches += t.launches * repeats;
        if (p.images > 0) image_flops = t.forward_flops / static_cast<double>(p.images);
        phases.push_back(
            {{"name", phase}, {"repeats", repeats}, {"flops", t.flops * static_cast<double>(repeats)}, {"launches", t.launches * repeats}});
        if (on_gpu) phases.back()["bytes"] = phase_bytes;
        if (predicted) phases.back()["predicted_seconds"] = phase_seconds;
    }
    std::vector<MemoryRegion> by_size = parts.memory.regions();
    std::stable_sort(by_size.begin(), by_size.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    for (const MemoryRegion& r : by_size) regions.push_back({{"name", r.name}, {"bytes", r.bytes}});
    for (const auto& [conv, choice] : network->convolution_choices())
        (choice.candidate ? candidates : convolutions)
            .push_back({{"shape", conv},
                        {"pass", choice.pass},
                        {"engine", choice.engine},
                        {"workspace_bytes", choice.workspace_bytes},
                        {"batch", choice.batch}});
    const auto peak = static_cast<double>(parts.memory.arena_bytes());
    const double good =
        s.on_divergence == OnDivergence::rollback ? static_cast<double>(GoodStates::kGenerations * parts.iteration.carried_bytes()) : 0;
    const double host = host_bytes(s, on_gpu ? 0 : peak, good, train, held_out);
    const double process = peak + (on_gpu ? kGpuContextBytes : host);
    const DiskUse disk = disk_use(s, *network, device->real_type(), train);
    const bool fits = !on_gpu || process <= gpu.memory_bytes;

    if (!o.common.json) {
        fmt::print("{} on {}, {} ({})\n", title_of(s), s.data, device->name(), device->description());
        if (!counted)
            fmt::print("images    no folder of them at hand: {} training and {} test images are assumed\n", shape.num_train,
                       shape.num_test);
        fmt::print("network   {}, {} parameters, {:.3f} GFLOP forward an image\n\n", network_title(s), network->parameter_count(),
                   image_flops / 1e9);
        fmt::print("{:<22} {:>12}\n", "memory", "MiB");
        for (const MemoryRegion& r : by_size) fmt::print("  {:<20} {:>12.1f}\n", r.name, mib(static_cast<double>(r.bytes)));
        fmt::print("  {:<20} {:>12.1f}\n", "= arena", mib(peak));
        if (good > 0)
            fmt::print("  {:<20} {:>12.1f}  {} to go back to, in the host's memory (--on-divergence)\n", "good states", mib(good),
                       GoodStates::kGenerations);
        if (on_gpu)
            fmt::print("  {:<20} {:>12.1f}  with {:.0f} MiB assumed for CUDA's context and kernels\n  {:<20} {:>12.1f}\n\n", "on the GPU",
                       mib(process), mib(kGpuContextBytes), "of the GPU's", mib(gpu.memory_bytes));
        else
            fmt::print("  {:<20} {:>12.1f}\n\n", "process, about", mib(process));
        fmt::print("{:<22} {:>12}\n  {:<20} {:>12.1f}  last and best\n", "checkpoints on disk", "MiB", "weights",
                   mib(2 * disk.weights_bytes));
        fmt::print("  {:<20} {:>12.1f}{}\n", disk.states > 1 ? "states" : "state", mib(disk.state_bytes * static_cast<double>(disk.states)),
                   disk.states > 1 ? fmt::format("  {} of {:.1f} (--keep)", disk.states, mib(disk.state_bytes)) : "");
        if (disk.archives > 0)
            fmt::print("  {:<20} {:>12.1f}  {} of {:.1f} (--archive-interval)\n", "archives",
                       mib(disk.weights_bytes * static_cast<double>(disk.archives)), disk.archives, mib(disk.weights_bytes));
        fmt::print("  {:<20} {:>12.1f}\n\n", "= all, about", mib(disk.total()));
        fmt::print("{:<22} {:>12} {:>10} {:>10}", "iteration", "GFLOP", "times", "launches");
        if (on_gpu) fmt::print(" {:>12}", "GB moved");
        if (predicted) fmt::print(" {:>14}", "predicted ms");
        fmt::print("\n");
        for (const auto& p : phases) {
            fmt::print("  {:<20} {:>12.2f} {:>10} {:>10}", p["name"].get<std::string>(), p["flops"].get<double>() / 1e9,
                       p["repeats"].get<int64_t>(), p["launches"].get<int64_t>());
            if (on_gpu) fmt::print(" {:>12.2f}", p["bytes"].get<double>() / 1e9);
            if (predicted) fmt::print(" {:>14.2f}", p["predicted_seconds"].get<double>() * 1e3);
            fmt::print("\n");
        }
        fmt::print("  {:<20} {:>12.2f} {:>10} {:>10}", "= iteration", flops / 1e9, "", launches);
        if (on_gpu) fmt::print(" {:>12.2f}", bytes / 1e9);
        if (predicted) fmt::print(" {:>14.2f}", seconds * 1e3);
        fmt::print("\n\n");
        if (predicted)
            fmt::print(
                "The time is a prediction, not a measurement, and a lower bound: each launch takes the longer of moving its operands once\n"
                "at {:.0f} GB/s and computing at {:.1f} TFLOP/s (published peaks, {}), plus {:.0f} us a launch (assumed). No kernel "
                "reaches its peak.\nNot counted: engines' workspaces, and what pooling, losses and the sampler read by items.\n\n",
                gpu.bandwidth / 1e9, gpu.peak_flops / 1e12, s.precision, kLaunchSeconds * 1e6);
        else if (on_gpu)
            fmt::print(
                "No time is predicted: the description gives no bandwidth and FLOP/s (keys bandwidth, flopsF32, flopsTF32, "
                "flopsBF16).\n\n");
        const auto print_engines = [](const char* title, int pass_width, const nlohmann::ordered_json& rows) {
            fmt::print("{:<26} {:<{}} {:>6} {:>14}  {}\n", title, "pass", pass_width, "batch", "workspace MiB", "engine");
            for (const auto& c : rows)
                fmt::print("  {:<24} {:<{}} {:>6} {:>14.2f}  {}\n", c["shape"].get<std::string>(), c["pass"].get<std::string>(), pass_width,
                           c["batch"].get<int64_t>(), mib(c["workspace_bytes"].get<double>()), c["engine"].get<std::string>());
        };
        print_engines("convolution", 17, convolutions);
        if (!network->head_engine().empty()) fmt::print("\nlinear head: {}\n", network->head_engine());
        if (!candidates.empty()) {
            fmt::print("\nFused graphs are compiled at run time and used where timing on a GPU says that they win.\n");
            print_engines("fused candidate", 60, candidates);
        }
    }
    if (!fits)
        fmt::print(stderr,
                   "It does not fit: {:.1f} GiB are needed, {} has {:.1f} GiB. Lower --batch-size, --gen-batch-size, --buffer-size or "
                   "--width{}.\n",
                   process / (1 << 30), gpu.title, gpu.memory_bytes / (1 << 30),
                   s.precision == "bf16" ? "" : ", or choose --precision bf16");

    nlohmann::ordered_json result = {{"recipe", s.recipe},
                                     {"data", s.data},
                                     {"device", device->name()},
                                     {"parameters", network->parameter_count()},
                                     {"forward_flops_per_image", image_flops},
                                     {"regions", regions},
                                     {"peak_bytes", parts.memory.arena_bytes()},
                                     {"peak_process_bytes", static_cast<int64_t>(process)},
                                     {"good_states_bytes", static_cast<int64_t>(good)},
                                     {"disk_bytes", static_cast<int64_t>(disk.total())},
                                     {"flops_per_iteration", flops},
                                     {"launches_per_iteration", launches},
                                     {"phases", phases},
                                     {"convolutions", convolutions}};
    if (s.own_method) result["method"] = to_json(*s.own_method);
    if (on_gpu) {
        result["gpu"] = gpu.title;
        result["precision"] = s.precision;
        result["gpu_memory_bytes"] = static_cast<int64_t>(gpu.memory_bytes);
        result["fits"] = fits;
        result["host_bytes"] = static_cast<int64_t>(host);
        result["bytes_per_iteration"] = bytes;
        if (predicted) result["predicted_seconds_per_iteration"] = seconds;
        result["head_engine"] = network->head_engine();
        result["fused_candidates"] = candidates;
    }
    print_result(o.common, result);
    return kExitDone;
}

// For --help; a build without CUDA does not know the names.
std::string gpu_choices() {
#ifdef JEM_HAS_CUDA
    std::string all;
    for (const std::string& name : gpu_names()) all += name + "|";
    return all + "FILE.json with cuDNN's device properties";
#else
    return "not in this build";
#endif
}

}  // namespace

Command add_plan(CLI::App& app) {
    auto o = std::make_shared<PlanOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    std::string recipes;
    for (const std::string& name : recipe_names()) recipes += (recipes.empty() ? "" : "|") + name;
    app.add_option("--recipe", o->recipe, "Preset of all hyper-parameters (" + recipes + ")")->multi_option_policy(last);
    app.add_option("--config", o->config, "A run's config.json, or one of your own, in place of a recipe")->multi_option_policy(last);
    app.add_option("--gpu", o->gpu, "Plan for this GPU, without one: " + gpu_choices())->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::training);
    o->common.add_to(app);
    return [o] {
#ifdef JEM_HAS_CUDA
        try {
            return plan(*o);
        } catch (const CudaUnavailable& e) {
            throw InputError(e.what());
        }
#else
        return plan(*o);
#endif
    };
}

}  // namespace jem
