#include "tools/jem_engine/options.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "data/input_error.h"
#include "engine/run/run_folder.h"
#include "kernels/random.h"
#include "models/wide_resnet.h"
#include "tools/jem_engine/job.h"
#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#endif

namespace jem {
namespace {

constexpr auto kLastCounts = CLI::MultiOptionPolicy::TakeLast;

// CLI11 would take -1 for 2^64 - 1, and so whatever is larger.
std::string whole_number(const std::string& text) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() ? "" : text + " is no whole number from 0 to 2^64 - 1";
}

// "60,120,180"
std::vector<int64_t> milestones(const std::string& text) {
    std::vector<int64_t> epochs;
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at < end) {
        int64_t epoch = 0;
        const auto [stopped, error] = std::from_chars(at, end, epoch);
        if (error != std::errc() || (stopped < end && *stopped != ','))
            throw InputError("--lr-milestones is \"" + text + "\" (whole numbers with commas between them are expected). Give 60,120,180.");
        epochs.push_back(epoch);
        at = stopped < end ? stopped + 1 : end;
    }
    return epochs;
}

// Moves n images, chosen by the seed, out of the set.
ImageSet hold_out(ImageSet& train, int64_t n, uint64_t seed) {
    const auto empty_like = [&](int64_t count) {
        ImageSet set;
        set.name = train.name;
        set.channels = train.channels;
        set.height = train.height;
        set.width = train.width;
        set.num_classes = train.num_classes;
        set.class_names = train.class_names;
        set.pixels.reserve(static_cast<size_t>(count * train.height * train.width * train.channels));
        return set;
    };
    ImageSet rest = empty_like(train.count() - n), held = empty_like(n);
    const int64_t count = train.count(), pixels = int64_t{train.height} * train.width * train.channels;
    std::vector<bool> chosen(static_cast<size_t>(count));
    for (int64_t i = 0; i < n; ++i)
        chosen[shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(count), seed, RandomStream::held_out, 0)] = true;
    for (int64_t i = 0; i < count; ++i) {
        ImageSet& to = chosen[static_cast<size_t>(i)] ? held : rest;
        to.pixels.insert(to.pixels.end(), train.pixels.begin() + i * pixels, train.pixels.begin() + (i + 1) * pixels);
        to.labels.push_back(train.labels[static_cast<size_t>(i)]);
    }
    train = std::move(rest);
    return held;
}

}  // namespace

void CommonOptions::add_to(CLI::App& app) {
    const std::string group = "Common";
    app.add_option("--device", device, "Where to run: cpu, cuda, auto, or reference (plain loops, the oracle)")
        ->check(CLI::IsMember({"cpu", "cuda", "auto", "reference"}))
        ->capture_default_str()
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_option("--threads", threads, "CPU threads; 0: one a physical core")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str()
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_option_function<uint64_t>(
           "--seed", [this](uint64_t v) { seed = v; }, "Seed of every random number")
        ->check(whole_number)
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_flag("--nondeterministic", nondeterministic, "CUDA: let faster convolutions in that do not repeat bit for bit")->group(group);
    app.add_flag("--quiet", quiet, "No progress on stderr")->group(group);
    app.add_flag("--json", json, "The result as JSON, the last line of stdout")->group(group);
}

void SettingsFlags::remember(const std::string& flags, std::function<void(Settings&)> override) {
    overrides_.emplace_back(flags.substr(0, flags.find(',')), std::move(override));
}

template <class T>
void SettingsFlags::number(const std::string& flags, T Settings::*member, const std::string& help) {
    app_->add_option_function<T>(
            flags, [this, flags, member](const T& v) { remember(flags, [member, v](Settings& s) { s.*member = v; }); }, help)
        ->multi_option_policy(kLastCounts)
        ->group(group_);
}

template <class E>
void SettingsFlags::choice(const std::string& flags, E Settings::*member, const std::string& help) {
    std::vector<std::string> names;
    std::string known;
    for (const auto& [name, value] : EnumNames<E>::all()) {
        names.push_back(name);
        known += (known.empty() ? "" : "|") + name;
    }
    app_->add_option_function<std::string>(
            flags,
            [this, flags, member](const std::string& v) {
                for (const auto& [name, value] : EnumNames<E>::all())
                    if (name == v) remember(flags, [member, chosen = value](Settings& s) { s.*member = chosen; });
            },
            help + " (" + known + ")")
        ->check(CLI::IsMember(names))
        ->multi_option_policy(kLastCounts)
        ->group(group_);
}

void SettingsFlags::on_off(const std::string& flags, bool Settings::*member, const std::string& help) {
    app_->add_option_function<std::string>(
            flags,
            [this, flags, member](const std::string& v) { remember(flags, [member, on = v != "off"](Settings& s) { s.*member = on; }); },
            help + " (on|off; without a value: on)")
        ->expected(0, 1)
        ->check(CLI::IsMember({"on", "off", ""}))
        ->multi_option_policy(kLastCounts)
        ->group(group_);
}

void SettingsFlags::add_to(CLI::App& app, Kind kind) {
    app_ = &app;
    group_ = "Network";
    number("--depth", &Settings::depth, "Depth of the Wide-ResNet, 6n + 4");
    number("--width", &Settings::width, "Width of the Wide-ResNet");
    choice("--norm", &Settings::norm, "Normalisation");
    choice("--norm-statistics", &Settings::norm_statistics,
           "With several ranks: batch statistics of each rank's images, or of the whole job's");
    number("--in-channels", &Settings::in_channels, "Channels of the images, 1 or 3 (the data set's)");
    number("--image-size", &Settings::image_size, "Rows and columns of the images, 8 to 64 (the data set's)");
    number("--num-classes", &Settings::num_classes, "Classes (the data set's)");
    app.add_option_function<std::string>(
           "--precision", [this](const std::string& v) { remember("--precision", [v](Settings& s) { s.precision = v; }); },
           "Arithmetic (f32|tf32|bf16; f64 on the reference)")
        ->check(CLI::IsMember({"f32", "tf32", "bf16", "f64"}))
        ->multi_option_policy(kLastCounts)
        ->group(group_);
    choice("--conv-algorithm", &Settings::conv_algorithm, "auto: whatever is fastest, direct: the smallest error");

    group_ = "Data";
    app.add_option_function<std::string>(
           "--data", [this](const std::string& v) { remember("--data", [v](Settings& s) { s.data = v; }); },
           "Data set: fashion-mnist, mnist, cifar10, cifar100")
        ->multi_option_policy(kLastCounts)
        ->group(group_);
    app.add_option_function<std::string>(
           "--data-dir", [this](const std::string& v) { remember("--data-dir", [v](Settings& s) { s.data_dir = v; }); },
           "Folder of its files")
        ->multi_option_policy(kLastCounts)
        ->group(group_);
    if (kind == Kind::network) return;

    group_ = "Sampling";
    number("--sgld-steps,--n_steps", &Settings::sgld_steps, "K, SGLD steps an iteration");
    number("--sgld-step-size,--sgld_lr", &Settings::sgld_step_size, "alpha");
    number("--sgld-noise,--sgld_std", &Settings::sgld_noise, "sigma of the noise added in each step");
    number("--sgld-grad-clamp", &Settings::sgld_grad_clamp, "Limit of each gradient component; 0: none");
    on_off("--sgld-pixel-clamp", &Settings::sgld_pixel_clamp, "Keep x in [-1, 1]");
    choice("--sampling-norm", &Settings::sampling_norm, "Statistics while sampling");
    choice("--init", &Settings::init, "Where fresh chains start");
    if (kind == Kind::sampling) return;
    number("--buffer-size,--buffer_size", &Settings::buffer_size, "Images in the replay buffer");
    number("--reinit-freq,--reinit_freq", &Settings::reinit_freq, "Probability of a fresh start, gamma");

    group_ = "Training";
    number("--epochs,--n_epochs", &Settings::epochs, "Epochs of the labelled set");
    number("--iterations", &Settings::iterations, "Iterations in all, in place of epochs");
    number("--batch-size", &Settings::batch_size, "Labelled images an iteration");
    number("--gen-batch-size", &Settings::gen_batch_size, "Real images and samples an iteration");
    choice("--optimizer", &Settings::optimizer, "Optimizer");
    number("--lr", &Settings::lr, "Learning rate");
    number("--momentum", &Settings::momentum, "Momentum of SGD");
    number("--weight-decay", &Settings::weight_decay, "Weight decay, on all parameters");
    number("--warmup-iterations,--warmup_iters", &Settings::warmup_iterations, "Iterations of linear warm-up");
    choice("--lr-schedule", &Settings::lr_schedule, "Learning rate over time");
    app.add_option_function<std::string>(
           "--lr-milestones",
           [this](const std::string& v) { remember("--lr-milestones", [v](Settings& s) { s.lr_milestones = milestones(v); }); },
           "Epochs at which the step schedule decays, such as 60,120,180")
        ->multi_option_policy(kLastCounts)
        ->group(group_);
    number("--lr-decay", &Settings::lr_decay, "Factor at each milestone");
    number("--ema", &Settings::ema, "Decay of the moving average of the weights; 0: none");
    choice("--sam", &Settings::sam, "Sharpness-aware minimisation");
    number("--rho", &Settings::rho, "SAM's radius");
    on_off("--sam-local", &Settings::sam_local, "With several ranks: each perturbs along its own gradient, which saves a sum over ranks");
    number("--p-x-weight,--px", &Settings::p_x_weight, "Weight of log p(x)");
    number("--p-y-given-x-weight,--pyx", &Settings::p_y_given_x_weight, "Weight of log p(y|x)");
    number("--energy-l2,--l2", &Settings::energy_l2, "Weight of the squared energies");
    on_off("--recompute", &Settings::recompute,
           "Keep one activation a block instead of two: less memory, and each block's first convolution runs again before a backward pass");
    on_off("--augment", &Settings::augment, "Crop and flip the labelled images");
    on_off("--gen-augment", &Settings::gen_augment, "Crop and flip the images of p(x)");
    number("--input-noise", &Settings::input_noise, "Deviation of the noise added to real images");
    number("--n-valid", &Settings::n_valid, "Training images held out to choose the best checkpoint");

    group_ = "Run";
    number("--checkpoint-interval", &Settings::checkpoint_interval, "Iterations between checkpoints, besides those of each epoch");
    number("--log-interval", &Settings::log_interval, "Iterations between log lines");
    number("--sample-interval", &Settings::sample_interval, "Epochs between sample sheets; 0: at the end only");
}

void SettingsFlags::apply(Settings& settings) const {
    for (const auto& [flag, override] : overrides_) override(settings);
}

bool SettingsFlags::given(const std::string& flag) const {
    return std::any_of(overrides_.begin(), overrides_.end(), [&](const auto& o) { return o.first == flag; });
}

std::string user_cache_file(const std::string& name) {
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    std::filesystem::path folder;
    if (cache != nullptr && *cache != 0)
        folder = cache;
    else if (home != nullptr && *home != 0)
        folder = std::filesystem::path(home) / ".cache";
    else
        return "";
    return (folder / "jem_engine" / name).string();
}

std::unique_ptr<Device> make_device(const CommonOptions& common, const std::string& precision) {
    if (common.device == "reference") {
        if (precision != "f32" && precision != "f64")
            throw InputError("--precision " + precision + " on the reference device (it knows f32 and f64). Choose one of these.");
        return make_reference_device(precision == "f64" ? DType::f64 : DType::f32);
    }
    std::string why = JEM_CUDA_MISSING;
    if (common.device != "cpu") {
#ifdef JEM_HAS_CUDA
        try {
            return make_cuda_device({.precision = cuda_precision(precision),
                                     .nondeterministic = common.nondeterministic,
                                     .ordinal = the_job().gpu(),
                                     .plan_cache = user_cache_file("convolutions.json")});
        } catch (const CudaUnavailable& e) {
            if (common.device == "cuda") throw InputError(std::string("--device cuda: ") + e.what());
            why = e.what();
            if (!common.quiet) std::fprintf(stderr, "Running on the CPU: %s\n", why.c_str());
        }
#else
        if (common.device == "cuda")
            throw InputError("--device cuda: this build has no CUDA parts (" + why + "). Use --device cpu, or auto.");
#endif
    }
    if (precision != "f32" && precision != "bf16")
        throw InputError("--precision " + precision + " is not available on the CPU (it computes in f32 or bf16). Use --precision f32" +
                         (precision == "f64" ? ", or --device reference." : "."));
    if (precision == "bf16" && !cpu_has_bf16())
        throw InputError(
            "--precision bf16 needs a CPU with AVX512_BF16 or AMX (this one would imitate it, slower than f32). Use --precision f32, "
            "which is as fast here as bf16 would be with AVX512_BF16.");
    return make_cpu_device({.threads = common.threads > 0 ? common.threads : the_job().threads(),
                            .activation = precision == "bf16" ? DType::bf16 : DType::f32});
}

void refuse_without_mpi(const Device& device) {
    const Launch& launch = the_job().launch();
    if (launch.by != Launch::By::torchrun || device.name() == "cuda") return;
    throw InputError("torchrun started " + std::to_string(launch.size) +
                     " ranks (on the CPU they are connected by MPI). Start them with mpirun -n " + std::to_string(launch.size) +
                     " in its place" + (missing_mpi().empty() ? "." : "; " + missing_mpi() + "."));
}

std::unique_ptr<Network> make_network(const Settings& s) {
    return std::make_unique<WideResNet>(
        WideResNetSettings{.depth = s.depth,
                           .width = s.width,
                           .norm = s.norm,
                           .norm_batch = s.norm_statistics == NormStatistics::job ? NormBatch::of_job : NormBatch::of_rank,
                           .recompute = s.recompute,
                           .in_channels = s.in_channels,
                           .image_size = s.image_size,
                           .num_classes = s.num_classes});
}

void fill_in_sizes(Settings& s) {
    if (!s.data.empty()) {
        const ImageSetShape shape = known_shape(s.data);
        if (s.in_channels == 0) s.in_channels = shape.channels;
        if (s.image_size == 0) s.image_size = shape.height;
        if (s.num_classes == 0) s.num_classes = shape.num_classes;
        return;
    }
    const auto need = [](int64_t value, const char* flag) {
        if (value == 0) throw InputError(std::string(flag) + " is needed (neither --data nor the checkpoint says it). Give it.");
    };
    need(s.in_channels, "--in-channels");
    need(s.image_size, "--image-size");
    need(s.num_classes, "--num-classes");
}

ImageSet load_images(const Settings& s, Split split) {
    if (s.data.empty()) throw InputError("--data is needed (the name of a data set). Give fashion-mnist, mnist, cifar10 or cifar100.");
    const ImageSetShape shape = known_shape(s.data);
    if (shape.channels != s.in_channels || shape.height != s.image_size || shape.num_classes != s.num_classes)
        throw InputError("The network takes " + std::to_string(s.in_channels) + "x" + std::to_string(s.image_size) + "x" +
                         std::to_string(s.image_size) + " images of " + std::to_string(s.num_classes) + " classes (" + s.data + " has " +
                         std::to_string(shape.channels) + "x" + std::to_string(shape.height) + "x" + std::to_string(shape.width) + " of " +
                         std::to_string(shape.num_classes) + "). Choose the matching --data.");
    return load_image_set(s.data, s.data_dir, split);
}

TrainingImages load_training_images(const Settings& s, uint64_t seed) {
    TrainingImages images;
    images.train = load_images(s, Split::train);
    if (s.n_valid >= images.train.count())
        throw InputError("--n-valid is " + std::to_string(s.n_valid) + " (there are " + std::to_string(images.train.count()) +
                         " training images). Give a smaller one.");
    if (s.n_valid > 0) images.held_out = hold_out(images.train, s.n_valid, seed);
    return images;
}

Checkpoint read_checkpoint(const std::string& path, const SettingsFlags& flags, const CommonOptions& common) {
    Checkpoint c;
    c.path = path;
    c.file = SafetensorsFile::read(path);
    say_what_is_skipped(c.file, path);
    const std::optional<Settings> own = settings_of(c.file);
    c.bare = !own.has_value();
    c.settings = own.value_or(Settings{});
    c.run_seed = c.settings.seed;
    flags.apply(c.settings);
    if (common.seed) c.settings.seed = *common.seed;
    if (own && own->data != c.settings.data) c.settings.n_valid = 0;
    // A data set other than the run's must not bring its own folder along.
    if (flags.given("--data") && !flags.given("--data-dir") && own && own->data != c.settings.data) c.settings.data_dir.clear();
    fill_in_sizes(c.settings);
    validate(c.settings);
    return c;
}

void load_weights(Parameters& parameters, Network& network, const Checkpoint& c, const std::string& which) {
    parameters.load(c.file, c.path, {"velocity.", "adam_m.", "adam_v.", "ema.", "replay_buffer"});
    if (which == "ema" && !parameters.load_array(parameters.weights(), c.file, "ema."))
        throw InputError("--weights ema: " + c.path +
                         " holds no ema.* (the run kept no average of its weights). Use --weights last, or train with --ema 0.999.");
    network.prepare(parameters.weights());
}

void say_what_is_skipped(const SafetensorsFile& file, const std::string& path) {
    const std::string names = skipped_tensors(file);
    if (!names.empty()) std::fprintf(stderr, "Skipped in %s, since no network uses them:%s\n", path.c_str(), names.c_str());
}

void print_result(const CommonOptions& common, const nlohmann::ordered_json& json) {
    if (common.json) std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    std::fflush(stdout);
}

}  // namespace jem
