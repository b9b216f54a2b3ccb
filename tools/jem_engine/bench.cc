// jem_engine bench: time and memory of the iterations of `train`, on made-up images, and what the time goes into.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "data/input_error.h"
#include "engine/settings/schedule.h"
#include "engine/training/trainer.h"
#include "kernels/random.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/job.h"
#include "tools/jem_engine/options.h"

namespace jem {
namespace {

constexpr const char *kSampling = "sampling", *kForward = "forward";

struct BenchOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string recipe, config;
    int64_t repeat = 5, warmup = 2;
    std::string only;  // empty: whole iterations
    bool profile = false;
};

double peak_resident_bytes() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) * 1024;
}

// Uniform bytes, the classes by turns: an iteration does the same work for any images. The pixels go piece by piece, so that no copy on
// the host counts as memory.
void upload_made_up_images(Device& device, ImageStore& to, const ImageSetShape& shape, int64_t count, uint64_t seed) {
    ImageSet images;
    images.num_classes = shape.num_classes;
    for (int64_t i = 0; i < count; ++i) images.labels.push_back(static_cast<int32_t>(i % shape.num_classes));
    to.upload(images);
    const Array pixels = to.view().pixels;
    std::vector<Random4> piece(1 << 16);
    const auto piece_bytes = static_cast<int64_t>(piece.size() * sizeof(Random4));
    for (int64_t first = 0; first < pixels.count; first += piece_bytes) {
        for (size_t i = 0; i < piece.size(); ++i)
            piece[i] = random4(seed, RandomStream::parameters, 1, 1, static_cast<uint64_t>(first) / sizeof(Random4) + i);
        const Array part = pixels.slice(first, std::min(piece_bytes, pixels.count - first));
        device.upload(part.data, piece.data(), part.bytes());
    }
}

std::vector<uint8_t> made_up_batch(int64_t count, uint64_t seed) {
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < count; ++i)
        bytes.push_back(static_cast<uint8_t>(random4(seed, RandomStream::parameters, 1, 1, static_cast<uint64_t>(i)).v[0]));
    return bytes;
}

// Uniform starts, whatever the settings' form: no class's images are multiplied, which would take longer than what is timed.
void fill_uniformly(Device& device, TrainingIteration& iteration, int64_t size, uint64_t seed) {
    ReplayBuffer& buffer = iteration.buffer();
    const int64_t pixels = buffer.images().count / size;
    const std::vector<int32_t> fresh(static_cast<size_t>(buffer.fresh().count));  // of any class: all that counts is that none continues
    device.upload(buffer.fresh().data, fresh.data(), buffer.fresh().bytes());
    for (int64_t first = 0; first < size; first += buffer.fresh().count) {
        const int64_t n = std::min(buffer.fresh().count, size - first);
        const Array starts = buffer.fresh().slice(0, n);
        device.ops().start_images(
            buffer.images().slice(first * pixels, n * pixels), Array{nullptr, device.real_type(), 0}, starts, starts, {},
            iteration.store().view(), iteration.state(),
            {.first_chain = first, .weights = RandomStream::buffer_fill_weights, .pixels = RandomStream::buffer_fill_pixels, .seed = seed});
    }
}

// What this machine does at best, to hold the ops against: moving large arrays, and multiplying by large matrices (a direct 1x1
// convolution). The best of several tries.
struct Peaks {
    double bytes_per_second = 0, flops = 0;
};

Peaks measure_peaks(Device& device) {
    constexpr int kTries = 5;
    constexpr int64_t kElements = int64_t{32} << 20;  // 256 MiB of f32, 512 of f64 are moved: beyond any cache
    // On a GPU more of it: a matrix that fills it, and launches enough that waiting for them counts for nothing.
    const bool gpu = device.name() == "cuda";
    // Plain loops are as slow with any matrix: a small one.
    const int64_t batch = gpu ? 64 : 8, channels = gpu ? 2048 : device.name() == "reference" ? 64 : 512, size = gpu ? 16 : 32;
    const int runs = gpu ? 20 : 1;
    const size_t real_bytes = size_of(device.real_type());
    const ConvShape shape = {.in_channels = channels, .out_channels = channels, .height = size, .width = size, .kernel = 1, .stride = 1};
    const auto plan = device.plan_convolution(shape, {.batches = {}, .forward_only = {batch}, .algorithm = ConvAlgorithm::direct});
    const size_t activations =
        static_cast<size_t>(batch * shape.in_channels * shape.height * shape.width) * size_of(device.activation_type());
    const auto large = device.allocate(2 * kElements * real_bytes), x = device.allocate(activations), y = device.allocate(activations),
               prepared = device.allocate(plan->prepared_bytes()), workspace = device.allocate(plan->workspace_bytes()),
               weights = device.allocate(static_cast<size_t>(shape.weight_count() + shape.out_channels) * real_bytes);
    const Array from{large->data(), device.real_type(), kElements};
    const Array to{large->data() + from.bytes(), device.real_type(), kElements},
        w{weights->data(), device.real_type(), shape.weight_count()};
    const Array bias{weights->data() + w.bytes(), device.real_type(), shape.out_channels};
    const auto tensor = [&](Buffer& buffer) {
        return Tensor{.data = buffer.data(),
                      .type = device.activation_type(),
                      .n = batch,
                      .c = shape.in_channels,
                      .h = shape.height,
                      .w = shape.width,
                      .block = device.channel_block(shape.in_channels)};
    };
    plan->prepare(prepared->data(), w, workspace->data());
    Peaks best;
    for (int i = 0; i < kTries; ++i) {
        const auto rate_of = [&](double work, auto run) {
            device.synchronize();
            const auto start = std::chrono::steady_clock::now();
            for (int r = 0; r < runs; ++r) run();
            device.synchronize();
            return runs * work / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        };
        best.bytes_per_second =
            std::max(best.bytes_per_second, rate_of(2.0 * static_cast<double>(from.bytes()), [&] { device.ops().convert(to, from); }));
        best.flops = std::max(best.flops, rate_of(shape.flops() * static_cast<double>(batch), [&] {
                                  plan->forward(tensor(*y), tensor(*x), prepared->data(), bias, nullptr, workspace->data());
                              }));
    }
    return best;
}

// Of the peak that binds the op; empty where its work is not counted.
std::string share_of_peak(const WorkSum& row, const Peaks& peaks) {
    const double ideal = std::max(row.flops / peaks.flops, row.bytes / peaks.bytes_per_second);
    return ideal > 0 && row.seconds > 0 ? fmt::format("{:.0f} %", 100 * ideal / row.seconds) : "";
}

// By op, then by the convolutions' shapes, the longest first; an iteration each.
nlohmann::ordered_json print_profile(const WorkReport& profile, const Peaks& peaks, double iterations, bool silent) {
    using Row = std::pair<std::string, WorkSum>;
    nlohmann::ordered_json json;
    std::vector<Row> ops, shapes;
    double total = 0;
    const auto figures = [&](const WorkSum& sum) {
        return nlohmann::ordered_json{{"launches", static_cast<double>(sum.launches) / iterations},
                                      {"seconds", sum.seconds / iterations},
                                      {"flops", sum.flops / iterations},
                                      {"bytes", sum.bytes / iterations}};
    };
    for (const auto& [label, row] : profile) {
        ops.emplace_back(label, row);
        total += row.seconds;
        json[label] = figures(row);
        for (const auto& [shape, sum] : row.by_shape) {
            shapes.emplace_back(fmt::format("{:22} {}", label, shape), sum);
            json[label]["by_shape"][shape] = figures(sum);
        }
    }
    if (silent) return json;
    fmt::print("measured peaks: {:.0f} GFLOP/s (a direct 1x1 convolution of many channels), {:.1f} GB/s (copy of a large array)\n",
               1e-9 * peaks.flops, 1e-9 * peaks.bytes_per_second);
    const auto print = [&](const char* title, int width, std::vector<Row>& rows) {
        if (rows.empty()) return;
        std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.second.seconds > b.second.seconds; });
        fmt::print("\n{:{}} {:>9} {:>11} {:>7} {:>9} {:>8} {:>8}\n", title, width, "launches", "ms an iter.", "share", "GFLOP/s", "GB/s",
                   "of peak");
        for (const auto& [label, sum] : rows)
            fmt::print("{:{}} {:9.0f} {:11.2f} {:6.1f}% {:>9} {:>8} {:>8}\n", label, width, static_cast<double>(sum.launches) / iterations,
                       1e3 * sum.seconds / iterations, 100 * sum.seconds / total,
                       sum.flops > 0 ? fmt::format("{:.0f}", 1e-9 * sum.flops / sum.seconds) : "",
                       sum.bytes > 0 ? fmt::format("{:.1f}", 1e-9 * sum.bytes / sum.seconds) : "", share_of_peak(sum, peaks));
    };
    print("op", 26, ops);
    print("convolution (channels, pixels, kernel, stride)", 46, shapes);
    return json;
}

std::string phase_of_chain(const Method& method, BatchOf batch) {
    for (const auto& step : method.steps)
        if (const auto* chain = std::get_if<ChainSpec>(&step); chain != nullptr && chain->makes == batch) return chain->name;
    return "";
}

// How many of the passes that were planned, each of a convolution and a batch size, who computes: "cudnn": 88 ...
std::map<std::string, int64_t> passes_by_provider(const Network& network) {
    std::map<std::string, int64_t> passes;
    for (const auto& [shape, choice] : network.convolution_choices())
        if (!choice.candidate) ++passes[choice.engine.substr(0, choice.engine.find(' '))];
    return passes;
}

int bench(const BenchOptions& o) {
    Settings s = begin_settings(o.recipe, o.config).settings;
    if (o.config.empty()) s.sgld_steps = s.samples() ? 5 : 0;
    o.flags.apply(s);
    if (o.common.seed) s.seed = *o.common.seed;
    if (s.data.empty() && s.in_channels == 0) s.data = "cifar10";
    fill_in_sizes(s);
    check_settings(s);
    const bool sampling = o.only == kSampling, forward = o.only == kForward;
    if (sampling && (!s.generates() || s.sgld_steps == 0))
        throw InputError("--only sampling (these settings take no sampling steps). Give --recipe sada-jem and --sgld-steps 5.");
    // As many images as the data set has, of the network's size.
    ImageSetShape shape = s.data.empty() ? known_shape("cifar10") : shape_of(s);
    shape.channels = static_cast<int>(s.in_channels);
    shape.height = shape.width = static_cast<int>(s.image_size);
    shape.num_classes = static_cast<int>(s.num_classes);
    if (s.n_valid >= shape.num_train)
        throw InputError(fmt::format("--n-valid is {} (there are {} training images). Give a smaller one.", s.n_valid, shape.num_train));
    const int64_t count = shape.num_train - s.n_valid, held_out = s.n_valid > 0 ? s.n_valid : shape.num_test;
    Ranks& ranks = the_job().join();
    const bool first = ranks.rank() == 0;
    std::unique_ptr<Device> device;
    together(ranks, [&] {
        device = make_device(o.common, s.precision);
        refuse_without_mpi(*device);
    });
    the_job().join_device(*device);
    Console console(o.common.quiet || !first);
    const auto network = make_network(s);
    std::unique_ptr<TrainingParts> parts;
    together(ranks, [&] {
        parts = std::make_unique<TrainingParts>(
            *device, *network, s, TrainingIteration::DataSource{.shape = shape, .count = count, .starts = start_count(s)}, held_out);
        parts->memory.allocate();
    });
    TrainingIteration& iteration = parts->iteration;
    upload_made_up_images(*device, iteration.store(), shape, count, s.seed);
    if (s.labels_per_class > 0) upload_made_up_images(*device, iteration.labelled_store(), shape, s.num_labelled(count), s.seed);
    if (const int64_t starts = start_count(s); starts > 0) upload_made_up_images(*device, iteration.start_store(), shape, starts, s.seed);
    iteration.parameters().initialise(s.seed);
    iteration.begin(0, 0, 0);
    if (s.samples()) fill_uniformly(*device, iteration, s.buffer_size, s.seed);
    if (!o.profile) iteration.record();  // on a GPU nothing can be timed inside a graph
    iteration.prepare_weights();
    if (sampling) iteration.run("draw");  // what the chains start from
    const std::vector<uint8_t> bytes =
        forward ? made_up_batch(parts->predictor.batch() * s.in_channels * s.image_size * s.image_size, s.seed) : std::vector<uint8_t>();
    device->synchronize();

    const std::string sampling_phase = phase_of_chain(method_of(s), BatchOf::chain);
    const int64_t an_epoch = s.iterations_per_epoch(count);
    IterationState state;
    const auto run_once = [&] {
        if (sampling) {
            for (int64_t k = 0; k < s.sgld_steps; ++k) iteration.run(sampling_phase);
            return;
        }
        if (forward) {
            parts->predictor.predict_batch(0, parts->predictor.batch(), parts->predictor.bytes(bytes), parts->evaluation_memory());
            return;
        }
        iteration.run_all();
        iteration.read_state(state);  // as the scalars that train logs
    };
    std::vector<double> seconds;
    WorkReport profile;
    for (int64_t i = 0; i < o.warmup + o.repeat; ++i) {
        if (i == o.warmup && o.profile) device->begin_profile();
        const auto start = std::chrono::steady_clock::now();
        iteration.begin(i, learning_rate(s, i, an_epoch, s.epochs * an_epoch), i);
        run_once();
        device->synchronize();
        device->communicator().check();
        if (i >= o.warmup) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        console.progress("Iterations", i + 1, o.warmup + o.repeat);
    }
    if (o.profile) profile = device->end_profile();

    ranks.barrier();
    if (!first) return kExitDone;

    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    const double median = sorted[sorted.size() / 2];
    nlohmann::ordered_json json = {{"device", device->description()},
                                   {"network", network_title(s)},
                                   {"ranks", ranks.size()},
                                   {"seconds", seconds},
                                   {"median_s", median},
                                   {"peak_rss_bytes", peak_resident_bytes()},
                                   {"arena_bytes", parts->memory.arena_bytes()}};
    if (forward) json["images"] = parts->predictor.batch();
    std::string providers;
    for (const auto& [provider, passes] : passes_by_provider(*network)) {
        json["convolutions"][provider] = passes;
        providers += fmt::format("{}{} {}", providers.empty() ? "" : ", ", provider, passes);
    }
    if (!o.common.json)
        fmt::print("{}\n{}: median {:.3f} s {} ({:.3f} to {:.3f}), peak resident memory {:.0f} MiB, arena {:.0f} MiB\n",
                   device->description(), network_title(s), median,
                   forward    ? fmt::format("{} images forward", parts->predictor.batch())
                   : sampling ? fmt::format("{} sampling steps", s.sgld_steps)
                              : "an iteration",
                   sorted.front(), sorted.back(), peak_resident_bytes() / (1 << 20),
                   static_cast<double>(parts->memory.arena_bytes()) / (1 << 20));
    if (!o.common.json && o.profile) fmt::print("passes of convolutions by {}\n", providers);
    if (o.profile) {
        const Peaks peaks = measure_peaks(*device);
        json["peak_flops_per_s"] = peaks.flops;
        json["peak_bytes_per_s"] = peaks.bytes_per_second;
        json["ops"] = print_profile(profile, peaks, static_cast<double>(o.repeat), o.common.json);
    }
    print_result(o.common, json);
    return kExitDone;
}

}  // namespace

Command add_bench(CLI::App& app) {
    auto o = std::make_shared<BenchOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    app.add_option("--recipe", o->recipe, "Hyper-parameters that no flag gives (K is 5 unless given) [sada-jem]")
        ->multi_option_policy(last);
    app.add_option("--config", o->config, "A run's config.json, or one of your own, in place of a recipe")->multi_option_policy(last);
    app.add_option("--repeat", o->repeat, "Iterations timed")
        ->transform(whole_number_in(1, 100000))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--warmup", o->warmup, "Iterations before")
        ->transform(whole_number_in(0, 100000))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--only", o->only,
                   "Time the sampling steps alone, K of them in place of an iteration, or a batch forward, as evaluate predicts")
        ->check(CLI::IsMember({kSampling, kForward}))
        ->multi_option_policy(last);
    app.add_flag("--profile", o->profile, "Time by kind of op and by convolution");
    o->flags.add_to(app, SettingsFlags::Kind::training);
    o->common.add_to(app);
    return [o] { return bench(*o); };
}

}  // namespace jem
