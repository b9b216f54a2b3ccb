#include "tools/jem_engine/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string_view>
#include <utility>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/files/json.h"
#include "engine/files/messages.h"
#include "engine/files/output_file.h"
#include "engine/run/checkpoint.h"
#include "engine/settings/recipes/recipes.h"
#include "kernels/random.h"
#include "tools/jem_engine/job.h"
#ifdef JEM_HAS_CUDA
#include "engine/device/cuda/cuda_device.h"
#endif

namespace jem {
namespace {

constexpr auto kLastCounts = CLI::MultiOptionPolicy::TakeLast;

// CLI11 would take -1 for 2^64 - 1, and so whatever is larger; 0x10 for 16, and 010 for 8.
std::string whole_seed(std::string& text) {
    uint64_t value = 0;
    if (!read_whole_number(text, value)) return "\"" + text + "\" is no whole number from 0 to 2^64 - 1";
    text = std::to_string(value);
    return "";
}

constexpr const char* kDefaultRecipe = "sada-jem";
constexpr double kRhoOfAsam = 0.5;  // where the authors' script turns from SAM to ASAM by itself

const std::string kAuthors = "Names of the authors' scripts";

// Flags of the authors' scripts that would mislead here.
const std::vector<std::pair<std::string, std::string>> kMisleading = {
    {"--batch_size",
     "--batch_size is refused (the authors' scripts mean the generative batch by it). Give --gen-batch-size for that, --batch-size for "
     "the labelled one."},
};

// A line for a person who expects what the authors' scripts do; empty where they do the same.
std::string difference(const std::string& flag, const Settings& s) {
    const auto line = [&](double value, const char* theirs) { return fmt::format("{} {}: {}", flag, value, theirs); };
    if ((flag == "--px" || flag == "--p_x_weight") && s.p_x_weight != 1)
        return line(s.p_x_weight, "in the authors' script it acts in the first of SAM's two passes alone; here in both.");
    if ((flag == "--pyx" || flag == "--p_y_given_x_weight") && s.p_y_given_x_weight != 1)
        return line(s.p_y_given_x_weight, "in the authors' script it is a switch; here it is a weight, in both of SAM's passes.");
    if ((flag == "--l2" || flag == "--l2_coeff") && s.energy_l2 != 0)
        return line(s.energy_l2, "in the authors' script it acts in the first of SAM's two passes alone; here in both.");
    if (flag == "--labels_per_class" && s.labels_per_class > 0)
        return fmt::format("{} {}: JEM's and JEM++'s scripts choose other images, and those of SADA-JEM and M-JEM use every label.", flag,
                           s.labels_per_class);
    return "";
}

// Moves n images, chosen by the seed, out of the set; both keep their order.
ImageSet hold_out(ImageSet& train, int64_t n, uint64_t seed) {
    std::vector<uint8_t> pixels = std::exchange(train.pixels, {});
    std::vector<int32_t> labels = std::exchange(train.labels, {});
    ImageSet held = train;  // but for its images
    const auto count = std::ssize(labels), size = std::ssize(pixels) / count;
    std::vector<bool> chosen(labels.size());
    for (int64_t i = 0; i < n; ++i)
        chosen[shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(count), seed, RandomStream::held_out, 0)] = true;
    held.pixels.reserve(static_cast<size_t>(n * size));
    int64_t kept = 0;  // in their own place: there is no second copy of them
    for (int64_t i = 0; i < count; ++i) {
        const auto image = pixels.begin() + i * size;
        const int32_t label = labels[static_cast<size_t>(i)];
        if (chosen[static_cast<size_t>(i)]) {
            held.pixels.insert(held.pixels.end(), image, image + size);
            held.labels.push_back(label);
        } else {
            if (kept < i) std::copy(image, image + size, pixels.begin() + kept * size);
            labels[static_cast<size_t>(kept++)] = label;
        }
    }
    pixels.resize(static_cast<size_t>(kept * size));
    labels.resize(static_cast<size_t>(kept));
    train.pixels = std::move(pixels);
    train.labels = std::move(labels);
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
        ->transform(whole_number_in(0, 4096))
        ->capture_default_str()
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_option_function<uint64_t>(
           "--seed", [this](uint64_t v) { seed = v; }, "Seed of every random number")
        ->transform(CLI::Validator(whole_seed, "", "whole"))
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_flag("--nondeterministic", nondeterministic, "CUDA: let faster convolutions in that do not repeat bit for bit")->group(group);
    app.add_option("--overlap", overlap, "CUDA: take gradients of weights beside the way back through the layers (on, off); the same bits")
        ->check(CLI::IsMember({"on", "off"}))
        ->capture_default_str()
        ->multi_option_policy(kLastCounts)
        ->group(group);
    app.add_flag("--quiet", quiet, "No progress on stderr")->group(group);
    app.add_flag("--json", json, "The result as JSON, the last line of stdout")->group(group);
}

CLI::Validator whole_number_in(int64_t low, int64_t high) {
    return CLI::Validator(
        [low, high](std::string& text) -> std::string {
            int64_t value = 0;
            if (!read_whole_number(text, value) || value < low || value > high)
                return fmt::format("\"{}\" is no whole number from {} to {}", text, low, high);
            text = std::to_string(value);
            return "";
        },
        "", "whole");
}

std::vector<std::string> values_spelt_out(int argc, char** argv) {
    const auto is_of_form = [](Setting::Form form, const std::string& argument) {
        const std::string flag = argument.substr(0, argument.find('='));
        return std::any_of(settings_table().begin(), settings_table().end(), [&](const Setting& s) {
            return s.form == form && (s.flag() == flag || std::find(s.aliases.begin(), s.aliases.end(), flag) != s.aliases.end());
        });
    };
    std::vector<std::string> out;
    for (int i = 1; i < argc; ++i) {
        out.emplace_back(argv[i]);
        const bool alone = (i + 1 == argc || argv[i + 1][0] == '-') && out.back().find('=') == std::string::npos;
        if (alone && (is_of_form(Setting::Form::on_off, out.back()) || out.back() == "--overlap")) out.emplace_back("on");
        if (!is_of_form(Setting::Form::list, out.back())) continue;
        bool has_value = out.back().find('=') != std::string::npos;
        for (; i + 1 < argc && argv[i + 1][0] != '-'; ++i) {
            if (has_value)
                out.back() += std::string(",") + argv[i + 1];
            else
                out.emplace_back(argv[i + 1]);
            has_value = true;
        }
    }
    return out;
}

nlohmann::json read_config(const std::string& path) {
    nlohmann::json json = parse_json(read_file(path));
    if (json.is_discarded())
        throw InputError(path + " is no JSON. Give the config.json of a run, or begin with what jem_engine info --method writes.");
    return json;
}

BegunSettings begin_settings(const std::string& name, const std::string& config) {
    if (config.empty()) return {.settings = recipe(name.empty() ? kDefaultRecipe : name)};
    const nlohmann::json json = read_config(config);
    const auto found = json.is_object() ? json.find("recipe") : json.end();
    const std::string named = found != json.end() && found->is_string() ? found->get<std::string>() : "";
    if (!name.empty() && !named.empty() && name != named)
        throw InputError("--recipe " + name + " beside --config " + config + " (which names the recipe " + named +
                         "). Leave one of them out.");
    BegunSettings begun;
    if (name.empty()) {
        begun.settings = settings_of_config(json, config);
    } else {
        begun.settings = recipe(name);
        merge_json(begun.settings, json, config);
    }
    begun.lr_given = json.contains("lr");
    return begun;
}

void SettingsFlags::add(const Setting& setting, const std::string& flag, const std::string& help, const std::string& group) {
    const size_t at = given_.size();
    given_.push_back({nullptr, &setting, flag, ""});
    CLI::Option* option = app_->add_option_function<std::string>(
        flag,
        [this, at](const std::string& text) {
            Given& given = given_[at];
            given.text = text;
            Settings scratch;  // wrong values are told before anything else is looked at
            given.setting->parse(scratch, given.flag, text);
        },
        help);
    given_[at].option = option->multi_option_policy(kLastCounts)->group(group)->type_name("");
}

void SettingsFlags::add_to(CLI::App& app, Kind kind) {
    app_ = &app;
    for (const Setting& setting : settings_table()) {
        if (setting.use == Kind::command || setting.use > kind) continue;
        std::string help = setting.help + " (" + setting.values + (setting.form == Setting::Form::on_off ? "; without a value: on" : "");
        if (const std::string value = setting.default_text(); !value.empty()) help += "; default: " + value;
        add(setting, setting.flag(), help + ")", setting.group);
        for (const std::string& alias : setting.aliases) add(setting, alias, "The same as " + setting.flag(), kAuthors);
    }
    if (kind != Kind::training) return;
    for (const auto& [flag, why] : kMisleading)
        app.add_option_function<std::string>(
               flag, [why = why](const std::string&) { throw InputError(why); }, "Refused: theirs means something else")
            ->group(kAuthors);
}

std::vector<SettingsFlags::Given> SettingsFlags::in_order() const {
    if (app_ == nullptr) return {};  // on no command line
    std::vector<Given> ordered;
    for (const CLI::Option* option : app_->parse_order())
        for (const Given& given : given_)
            if (given.option == option) ordered.push_back(given);
    return ordered;
}

void SettingsFlags::refuse_unheeded(const Settings& settings) const {
    if (given("--sgld-step-size") && settings.sgld_step_size != settings.sgld().step_size)
        throw InputError("--sgld-step-size (theirs: --sgld_lr) moves no chain that has inner steps (--inner-steps is " +
                         std::to_string(settings.inner_steps) +
                         "). Give --inner-step-size, --outer-step-size for the step before them (what --sgld_lr is in JEM++'s script), or "
                         "--inner-steps 0.");
    if (given("--act-init") && settings.norm != NormKind::act)
        throw InputError("--act-init is of --norm act (--norm is " + name_of(settings.norm) + "). Leave it out.");
    if (given("--grow-steps-at") && settings.grow_steps_at > 0 && !settings.generates())
        throw InputError("--grow-steps-at is of x- (--p-x-weight is 0: there are none). Leave it out.");
    for (const char* flag : {"--inner-step-size", "--outer-step-size"})
        if (given(flag) && settings.inner_steps == 0)
            throw InputError(std::string(flag) +
                             " is of chains with inner steps (--inner-steps is 0). Give --inner-steps, or leave it out.");
    for (const char* flag : {"--attack-objective", "--attack-norm", "--attack-eps", "--attack-steps", "--attack-step-size"})
        if (given(flag) && !has_chain(method_of(settings), BatchOf::adversarial))
            throw InputError(std::string(flag) + " is of adversarial images (" +
                             (settings.own_method ? "the method" : "recipe " + settings.recipe) +
                             " trains on none). Give --recipe jeat, dat or eb-jdat, or leave it out.");
    if (settings.own_method) return refuse_unheeded_by(*settings.own_method);
    for (const char* flag : {"--attack-weight", "--attack-ce-weight"})
        if (given(flag) && settings.recipe != "eb-jdat")
            throw InputError(std::string(flag) + " is of recipe eb-jdat (this is " + settings.recipe + "). Leave it out.");
}

void SettingsFlags::refuse_unheeded_by(const Method& method) const {
    for (const std::string& key : settings_of_recipes())
        for (const Setting& setting : settings_table())
            if (setting.key == key && given(setting.flag()) && !is_weight(method, key))
                throw InputError(setting.flag() +
                                 " has no effect beside a method of one's own (it is for the steps of recipes, and no weight "
                                 "names it). Leave it out, or give \"" +
                                 key + "\" as a weight where it is one.");
}

void SettingsFlags::apply(Settings& settings) const {
    const bool tell = the_job().first();
    for (const Given& given : in_order()) given.setting->parse(settings, given.flag, given.text);
    std::set<const Setting*> told;
    std::vector<Given> ordered = in_order();
    std::reverse(ordered.begin(), ordered.end());
    for (const Given& given : ordered) {
        if (!told.insert(given.setting).second || !tell) continue;
        if (const std::string line = difference(given.flag, settings); !line.empty()) std::fprintf(stderr, "%s\n", line.c_str());
    }
    refuse_unheeded(settings);
    if (tell && given("--rho") && !given("--sam") && settings.rho >= kRhoOfAsam)
        std::fprintf(stderr, "--rho %g: the authors' script turns to ASAM from %g on; here --sam says which, now %s.\n", settings.rho,
                     kRhoOfAsam, name_of(settings.sam).c_str());
}

bool SettingsFlags::given(const std::string& flag) const {
    const std::vector<Given> all = in_order();
    return std::any_of(all.begin(), all.end(), [&](const Given& g) { return g.setting->flag() == flag; });
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
                                     .overlap = common.overlap == "on",
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

void check_settings(const Settings& s) {
    validate(s);
    if (const auto wrong = unsupported_size(s))
        throw InputError(wrong->flag + " is " + std::to_string(wrong->value) + " (" + wrong->why + "). Give one of these.");
}

void check_sizes(const Settings& s) {
    const ImageSetShape shape = shape_of(s);
    const auto same = [&](int64_t size, int64_t of_data, const char* flag, const char* what) {
        if (size != of_data)
            throw InputError(
                fmt::format("The network takes {}x{}x{} images of {} classes ({} has {}x{}x{} of {}; {} or a checkpoint says "
                            "otherwise). Choose the matching --data, or leave {} at its {} {}.",
                            s.in_channels, s.image_size, s.image_size, s.num_classes, s.data, shape.channels, shape.height, shape.width,
                            shape.num_classes, flag, flag, of_data, what));
    };
    if (shape.height != shape.width)
        throw InputError(fmt::format("{} has images of {}x{}x{} (networks take square ones). Choose another --data.", s.data,
                                     shape.channels, shape.height, shape.width));
    same(s.in_channels, shape.channels, "--in-channels", "channels");
    same(s.image_size, shape.height, "--image-size", "rows");
    same(s.num_classes, shape.num_classes, "--num-classes", "classes");
}

ImageSetShape shape_of(const Settings& s) {
    ImageSetShape shape = known_shape(s.data, s.data_dir);
    if (shape.height == 0) {
        shape.channels = static_cast<int>(s.in_channels);
        shape.height = shape.width = static_cast<int>(s.image_size);
    }
    if (shape.num_train == 0) {
        shape.num_classes = static_cast<int>(s.num_classes);
        shape.num_train = known_shape("cifar10").num_train;
        shape.num_test = known_shape("cifar10").num_test;
    }
    if (s.flip != Flip::automatic) shape.flip = s.flip == Flip::on;
    return shape;
}

bool has_test_set(const Settings& s) { return known_set(s.data).read != nullptr || has_parts(s.data_dir); }

void fill_in_sizes(Settings& s) {
    if (!s.data.empty()) {
        const ImageSetShape shape = known_shape(s.data, s.num_classes == 0 ? s.data_dir : "");
        if (s.in_channels == 0) s.in_channels = shape.channels;
        if (s.image_size == 0) s.image_size = shape.height;
        if (s.num_classes == 0) s.num_classes = shape.num_classes;
        if (s.num_classes == 0)
            throw InputError("--num-classes is needed (" +
                             (s.data_dir.empty() ? "without --data-dir there is" : "'" + s.data_dir + "' is") +
                             " no folder to count classes in). Give it, or a --data-dir that is there.");
    }
    const auto need = [](int64_t value, const char* flag) {
        if (value == 0) throw InputError(std::string(flag) + " is needed (neither --data nor the checkpoint says it). Give it.");
    };
    need(s.in_channels, "--in-channels");
    need(s.image_size, "--image-size");
    need(s.num_classes, "--num-classes");
}

ImageSet load_images(const Settings& s, Split split, const ReadProgress& progress) {
    if (s.data.empty()) throw InputError("--data is needed (the name of a data set). Give one of " + known_set_names() + ".");
    check_sizes(s);
    ImageSet set = load_image_set(s.data, s.data_dir, split,
                                  {.channels = static_cast<int>(s.in_channels),
                                   .size = static_cast<int>(s.image_size),
                                   .skip_damaged = s.skip_damaged,
                                   .progress = progress,
                                   .tell = tell});
    if (s.flip != Flip::automatic) set.flip = s.flip == Flip::on;
    return set;
}

TrainingImages load_training_images(const Settings& s, const ReadProgress& progress) {
    TrainingImages images;
    images.train = load_images(s, Split::train, progress);
    if (s.n_valid >= images.train.count())
        throw InputError("--n-valid is " + std::to_string(s.n_valid) + " (there are " + std::to_string(images.train.count()) +
                         " training images). Give a smaller one.");
    if (s.n_valid > 0) images.held_out = hold_out(images.train, s.n_valid, s.seed_of_split());
    return images;
}

int64_t start_count(const Settings& s) {
    if (!s.samples() || s.init != StartForm::images) return 0;
    return training_images_of(named_set(s.init_data));
}

ImageSet load_start_images(const Settings& s, const ReadProgress& progress) {
    if (s.init == StartForm::uniform) return {};
    if (s.init != StartForm::images) return load_training_images(s, progress).train;
    try {
        return load_other_set(s.init_data, Split::train,
                              {.channels = static_cast<int>(s.in_channels),
                               .size = static_cast<int>(s.image_size),
                               .skip_damaged = s.skip_damaged,
                               .progress = progress,
                               .tell = tell});
    } catch (const InputError& e) {
        throw InputError("--init " + s.init_data + ": " + e.what());
    }
}

Checkpoint read_checkpoint(const std::string& path, const SettingsFlags& flags, const CommonOptions& common) {
    Checkpoint c;
    c.path = path;
    c.file = SafetensorsFile::read_weights(path);
    const std::optional<Settings> own = settings_of(c.file, path);
    c.bare = !own.has_value();
    c.settings = own.value_or(Settings{});
    if (c.bare) take_shapes(c.settings, c.file);
    c.settings.split_seed = c.settings.seed_of_split();  // the run's, whatever --seed says
    flags.apply(c.settings);
    if (common.seed) c.settings.seed = *common.seed;
    if (own && own->data != c.settings.data) c.settings.n_valid = 0;
    // A data set other than the run's must not bring its own folder along.
    if (flags.given("--data") && !flags.given("--data-dir") && own && own->data != c.settings.data) c.settings.data_dir.clear();
    fill_in_sizes(c.settings);
    check_settings(c.settings);
    // Before memory is taken for a network that the file only announces.
    if (!c.bare) check_tensors(*make_network(c.settings), c.file, path, other_tensors());
    return c;
}

void load_weights(Parameters& parameters, Network& network, const Checkpoint& c, const std::string& which) {
    parameters.load(c.file, c.path, other_tensors());
    if (which == "ema" && !parameters.load_array(parameters.weights(), c.file, "ema."))
        throw InputError("--weights ema: " + c.path +
                         " holds no ema.* (the run kept no average of its weights). Use --weights last, or train with --ema 0.999.");
    network.prepare(parameters.weights(), parameters.statistics());
}

TrainedNetwork trained_network(Device& device, const Checkpoint& checkpoint, const std::string& weights) {
    const Settings& s = checkpoint.settings;
    return {.device = device,
            .conv_algorithm = s.conv_algorithm,
            .energy_head = s.energy_head,
            .size = {.height = s.image_size, .width = s.image_size, .channels = s.in_channels},
            .classes = s.num_classes,
            .make = [&s] { return make_network(s); },
            .load = [&checkpoint, weights](Parameters& parameters,
                                           Network& network) { load_weights(parameters, network, checkpoint, weights); }};
}

void say_what_is_skipped(const SafetensorsFile& file, const std::string& path, const Network& network) {
    const std::string names = skipped_tensors(file, network);
    if (!names.empty())
        std::fprintf(stderr, "Skipped in %s, since no network uses them:%s\n", path.c_str(), without_controls(names).c_str());
}

std::string for_shell(const std::string& word) {
    const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 || std::string_view("_@%+=:,./-").find(c) != std::string_view::npos;
    });
    if (plain) return word;
    std::string quoted = "'";
    for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quoted + "'";
}

void print_result(const CommonOptions& common, const nlohmann::ordered_json& json) {
    if (common.json) std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    std::fflush(stdout);
}

}  // namespace jem
