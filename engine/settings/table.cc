#include "engine/settings/table.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

using Json = nlohmann::ordered_json;
using Use = Setting::Use;

constexpr double kMany = 1e9;

// What a row says besides its member.
struct Row {
    const char* key;
    const char* group;
    const char* help;
    std::vector<std::string> aliases = {};
    const char* note = "";
    Use use = Use::training;
};

struct Range {
    double low, high;
    std::optional<double> flag_low = {};  // where config.json may hold a mark, such as -1, that no person gives
};

std::string number_text(double v) {
    if (std::isnan(v)) return "not a number";
    const std::string s = Json(v).dump();
    return s.ends_with(".0") ? s.substr(0, s.size() - 2) : s;
}

std::string range_text(double low, double high) { return number_text(low) + " to " + number_text(high); }

void in_range(const std::string& flag, double value, double low, double high) {
    if (value >= low && value <= high) return;  // false for NaN
    throw InputError(flag + " is " + number_text(value) + " (allowed: " + range_text(low, high) + "). Give a value in range.");
}

[[noreturn]] void refuse_text(const std::string& flag, const std::string& text, const char* expected, const char* example) {
    throw InputError(flag + " is \"" + text + "\" (" + expected + " is expected). Give one such as " + example + ".");
}

// from_chars knows no plus sign; people do.
const char* after_plus(const std::string& text) {
    const bool plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
    return text.data() + (plus ? 1 : 0);
}

template <class T>
bool read_whole(const std::string& text, T& value) {
    const auto [end, error] = std::from_chars(after_plus(text), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

template <class T>
T whole(const std::string& flag, const std::string& text) {
    T value = 0;
    if (!read_whole(text, value)) refuse_text(flag, text, "a whole number, digits alone,", "1000");
    return value;
}

double real(const std::string& flag, const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(after_plus(text), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
        refuse_text(flag, text, "a number, with a point and no comma,", "0.1 or 1e-4");
    return value;
}

// nlohmann's get() would cut 28.5 to 28 and wrap -1 around; a reference is to be had of an integer only.
template <class T>
T exactly(const nlohmann::json& j) {
    if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, uint64_t>)
        return j.get_ref<const T&>();
    else
        return j.get<T>();
}

Setting named(const Row& row, std::string values) {
    Setting s;
    s.key = row.key;
    s.group = row.group;
    s.use = row.use;
    s.help = row.help;
    s.values = std::move(values);
    s.note = row.note;
    s.aliases = row.aliases;
    s.check = [](const Settings&) {};
    return s;
}

template <class T>
Setting plain(const Row& row, T Settings::*member, std::string values) {
    Setting s = named(row, std::move(values));
    s.get = [member](const Settings& of) { return Json(of.*member); };
    s.set = [member](Settings& of, const nlohmann::json& j) { of.*member = exactly<T>(j); };
    return s;
}

Setting integer(const Row& row, int64_t Settings::*member, const Range& range) {
    const double least = range.flag_low.value_or(range.low);
    Setting s = plain(row, member, range_text(least, range.high));
    s.parse = [=](Settings& of, const std::string& flag, const std::string& text) {
        of.*member = whole<int64_t>(flag, text);
        in_range(flag, static_cast<double>(of.*member), least, range.high);
    };
    s.check = [member, range, flag = s.flag()](const Settings& of) {
        in_range(flag, static_cast<double>(of.*member), range.low, range.high);
    };
    return s;
}

Setting number(const Row& row, double Settings::*member, const Range& range) {
    Setting s = plain(row, member, range_text(range.low, range.high));
    s.parse = [=](Settings& of, const std::string& flag, const std::string& text) {
        of.*member = real(flag, text);
        in_range(flag, of.*member, range.low, range.high);
    };
    s.check = [member, range, flag = s.flag()](const Settings& of) { in_range(flag, of.*member, range.low, range.high); };
    return s;
}

Setting on_off(const Row& row, bool Settings::*member) {
    Setting s = plain(row, member, "on|off");
    s.form = Setting::Form::on_off;
    s.parse = [member](Settings& of, const std::string& flag, const std::string& text) {
        if (text != "on" && text != "off")
            throw InputError(flag + " is \"" + text + "\" (known: on off). Choose one of these; without a value it is on.");
        of.*member = text != "off";
    };
    return s;
}

Setting text(const Row& row, std::string Settings::*member, const char* values) {
    Setting s = plain(row, member, values);
    s.parse = [member](Settings& of, const std::string& flag, const std::string& given) {
        if (given.empty()) throw InputError(flag + " is empty (a name is expected). Give one, or leave it out.");
        of.*member = given;
    };
    return s;
}

template <class Named>
const auto& chosen_among(const std::string& what, const std::string& wanted, const Named& known) {
    for (const auto& [name, value] : known)
        if (name == wanted) return value;
    std::string all;
    for (const auto& [name, value] : known) all += " " + name;
    throw InputError(what + " is \"" + wanted + "\" (known:" + all + "). Choose one of these.");
}

// One of some words; also: what the authors' scripts call them.
template <class T, class Named>
Setting one_of(const Row& row, T Settings::*member, const Named& known, const Named& also) {
    std::string values;
    for (const auto& [name, value] : known) values += (values.empty() ? "" : "|") + name;
    Setting s = named(row, values);
    s.get = [member, known](const Settings& of) {
        for (const auto& [name, value] : known)
            if (value == of.*member) return Json(name);
        return Json("?");
    };
    s.set = [member, known, key = s.key](Settings& of, const nlohmann::json& j) {
        of.*member = chosen_among("Setting " + key, j.get<std::string>(), known);
    };
    s.parse = [member, known, also](Settings& of, const std::string& flag, const std::string& given) {
        for (const auto& [name, value] : also)
            if (name == given) {
                of.*member = value;
                return;
            }
        of.*member = chosen_among(flag, given, known);
    };
    return s;
}

template <class E>
Setting choice(const Row& row, E Settings::*member, const std::vector<std::pair<std::string, E>>& also = {}) {
    return one_of(row, member, EnumNames<E>::all(), also);
}

// A run of before it had more than two values wrote true or false.
Setting gen_augment(const Row& row) {
    Setting s = choice(row, &Settings::gen_augment);
    s.form = Setting::Form::on_off;
    s.set = [set = s.set](Settings& of, const nlohmann::json& j) {
        set(of, j.is_boolean() ? nlohmann::json(j.get<bool>() ? "on" : "off") : j);
    };
    return s;
}

// A word, or the name of a set, whose images they are.
Setting init(const Row& row) {
    std::vector<std::pair<std::string, StartForm>> words = EnumNames<StartForm>::all();
    std::erase_if(words, [](const auto& word) { return word.second == StartForm::images; });
    Setting s =
        one_of(row, &Settings::init, words, {{"gm", StartForm::informative}, {"u", StartForm::uniform}, {"noise", StartForm::uniform}});
    s.values = "informative|uniform|gaussian|NAME[:DIR]";
    const auto set_of = [](const std::string& text) {
        const std::string name = text.substr(0, text.find(':'));
        const auto& known = known_sets();
        const bool named = std::any_of(known.begin(), known.end(), [&](const KnownSet& k) { return k.name == name; });
        return named ? text : text.find('/') != std::string::npos ? "images:" + text : std::string();
    };
    s.get = [](const Settings& of) { return Json(of.init == StartForm::images ? of.init_data : name_of(of.init)); };
    s.set = [set = s.set, set_of](Settings& of, const nlohmann::json& j) {
        of.init_data = j.is_string() ? set_of(j.get<std::string>()) : "";
        if (of.init_data.empty()) return set(of, j);
        of.init = StartForm::images;
    };
    s.parse = [parse = s.parse, set_of](Settings& of, const std::string& flag, const std::string& text) {
        of.init_data = set_of(text);
        if (of.init_data.empty()) return parse(of, flag, text);
        of.init = StartForm::images;
    };
    return s;
}

Setting precision(const Row& row) {
    std::vector<std::pair<std::string, std::string>> known;
    for (const char* name : {"f32", "tf32", "bf16", "f64"}) known.emplace_back(name, name);
    return one_of(row, &Settings::precision, known, {});
}

Setting seed(const Row& row) {
    Setting s = plain(row, &Settings::seed, "0 to 2^64 - 1");
    s.parse = [](Settings& of, const std::string& flag, const std::string& text) { of.seed = whole<uint64_t>(flag, text); };
    return s;
}

Setting split_seed(const Row& row) {
    Setting s = named(row, "0 to 2^64 - 1");
    s.get = [](const Settings& of) { return of.split_seed ? Json(*of.split_seed) : Json(); };
    s.set = [](Settings& of, const nlohmann::json& j) {
        of.split_seed = j.is_null() ? std::nullopt : std::optional<uint64_t>(exactly<uint64_t>(j));
    };
    s.parse = [](Settings& of, const std::string& flag, const std::string& text) { of.split_seed = whole<uint64_t>(flag, text); };
    return s;
}

Setting milestones(const Row& row) {
    Setting s = named(row, "1 to 1000000000 each, by commas or spaces, or none");
    s.form = Setting::Form::list;
    s.get = [](const Settings& of) { return Json(of.lr_milestones); };
    s.set = [](Settings& of, const nlohmann::json& j) {
        std::vector<int64_t> epochs;
        for (const nlohmann::json& element : j.get_ref<const nlohmann::json::array_t&>()) epochs.push_back(exactly<int64_t>(element));
        of.lr_milestones = epochs;
    };
    const auto check = [](const std::string& flag, const Settings& of) {
        for (const int64_t epoch : of.lr_milestones) in_range(flag, static_cast<double>(epoch), 1, kMany);
    };
    s.parse = [check](Settings& of, const std::string& flag, const std::string& text) {
        of.lr_milestones.clear();
        for (const std::string& part : text == "none" ? std::vector<std::string>{} : comma_parts(text)) {
            int64_t epoch = 0;
            if (!read_whole(part, epoch))
                throw InputError(flag + " is \"" + text + "\" (whole numbers with commas between them are expected). Give 60,120,180.");
            of.lr_milestones.push_back(epoch);
        }
        check(flag, of);
    };
    s.check = [check, flag = s.flag()](const Settings& of) { check(flag, of); };
    return s;
}

// A negative number is the authors' "none".
Setting none_or_integer(const Row& row, int64_t Settings::*member) {
    Setting s = integer(row, member, {0, kMany});
    s.parse = [member](Settings& of, const std::string& flag, const std::string& text) {
        of.*member = std::max<int64_t>(0, whole<int64_t>(flag, text));
        in_range(flag, static_cast<double>(of.*member), 0, kMany);
    };
    return s;
}

// The authors' flag takes a list; there is one factor here, so all must be it.
Setting lr_decay(const Row& row) {
    Setting s = number(row, &Settings::lr_decay, {0, 1});
    s.form = Setting::Form::list;
    s.parse = [](Settings& of, const std::string& flag, const std::string& text) {
        const std::vector<std::string> parts = flag == "--decay_rate" ? comma_parts(text) : std::vector<std::string>{text};
        of.lr_decay = real(flag, parts[0]);
        for (const std::string& part : parts)
            if (real(flag, part) != of.lr_decay)
                throw InputError(flag + " is \"" + text + "\" (one factor is used at every milestone). Give one number, such as 0.2.");
        in_range(flag, of.lr_decay, 0, 1);
    };
    return s;
}

std::vector<Setting> make_table() {
    const std::string data_sets = known_set_names("|");
    return {
        text({"recipe", "Run", "Preset of all hyper-parameters", {}, "", Use::command}, &Settings::recipe, "a recipe's name"),
        seed({"seed", "Common", "Seed of every random number", {}, "", Use::command}),

        choice({"network", "Network", "JEM's Wide-ResNet, or IGEBM's residual network of convolutions and LeakyReLU", {}, "", Use::network},
               &Settings::network),
        integer({"depth", "Network", "Depth of the network; a Wide-ResNet has 6n + 4, IGEBM's 14 or 20", {}, "", Use::network},
                &Settings::depth, {1, 1000}),
        integer({"width", "Network", "Width of the network, in 16 channels of its first part", {}, "", Use::network}, &Settings::width,
                {1, 32}),
        choice(
            {"norm",
             "Network",
             "Normalisation: of a channel over the batch, of each image's channels, of each image, or a scale and a shift that the first "
             "batch sets (act)",
             {},
             "",
             Use::network},
            &Settings::norm),
        choice({"norm_statistics",
                "Network",
                "With several ranks: batch statistics of each rank's images, or of the whole job's",
                {},
                "",
                Use::network},
               &Settings::norm_statistics),
        choice({"act_init", "Network",
                "Which batch sets the scales of --norm act: the first that the recipe's iteration takes, or real images whatever that is"},
               &Settings::act_init),
        on_off({"spectral_norm",
                "Network",
                "Divide each convolution's weights by an estimate of their largest singular value",
                {},
                "",
                Use::network},
               &Settings::spectral_norm),
        number({"dropout", "Network", "Share of the values that are dropped between a block's two convolutions", {"--dropout_rate"}},
               &Settings::dropout, {0, 0.99}),
        choice({"energy_head",
                "Network",
                "The energy: minus the LSE of the classes' logits, or of a head of its own that knows no labels",
                {},
                "",
                Use::network},
               &Settings::energy_head),
        integer({"in_channels", "Network", "Channels of the images, 1 or 3", {}, "the data set's", Use::network}, &Settings::in_channels,
                {1, 3}),
        integer({"image_size", "Network", "Rows and columns of the images", {}, "the data set's", Use::network}, &Settings::image_size,
                {8, 64}),
        integer({"num_classes", "Network", "Classes", {}, "the data set's", Use::network}, &Settings::num_classes, {2, 10000}),

        precision({"precision", "Arithmetic", "Arithmetic; tf32 on GPUs, f64 on the reference device", {}, "", Use::network}),
        choice({"conv_algorithm",
                "Arithmetic",
                "auto: whatever is fastest, direct: the smallest error, own: as auto, and on Hopper GPUs the engine's own kernels beside "
                "cuDNN's, which have never run on one",
                {},
                "step: direct",
                Use::network},
               &Settings::conv_algorithm),

        text({"data", "Data", "Data set", {}, "", Use::network}, &Settings::data, data_sets.c_str()),
        text({"data_dir", "Data", "Folder of its files", {}, "where Debian's packages put them", Use::network}, &Settings::data_dir,
             "a folder"),
        integer({"n_valid", "Data", "Training images held out to choose the best checkpoint", {"--n_valid"}}, &Settings::n_valid,
                {0, kMany}),
        none_or_integer({"labels_per_class",
                         "Data",
                         "Training images of each class whose label is used; p(x) is of all images. 0 or less: every label",
                         {"--labels_per_class"}},
                        &Settings::labels_per_class),
        split_seed(
            {"split_seed", "Data", "Seed that chooses the images held out, and those of --labels-per-class", {}, "the run's --seed"}),
        on_off({"recompute", "Arithmetic",
                "Keep one activation a block instead of two: less memory, and each block's first convolution runs again before a backward "
                "pass"},
               &Settings::recompute),
        on_off({"augment", "Data", "Crop and flip the labelled images"}, &Settings::augment),
        gen_augment({"gen_augment", "Data", "Flip the images of p(x), crop them, or both (on)"}),
        choice({"flip", "Data", "Whether augmentation may mirror images; auto: not those of digits, nor of a folder"}, &Settings::flip),
        on_off({"skip_damaged", "Data", "Leave out image files that cannot be read, in place of an error", {}, "", Use::network},
               &Settings::skip_damaged),
        number({"input_noise", "Data", "Deviation of the noise added to real images", {"--sigma"}}, &Settings::input_noise, {0, 10}),
        choice({"input_noise_on", "Data", "Which real images get it: those of p(x) alone, or the labelled ones too"},
               &Settings::input_noise_on),

        integer({"epochs",
                 "Training",
                 "Epochs of the labelled set; with --labels-per-class of p(x)'s images, where it has a weight",
                 {"--n_epochs"}},
                &Settings::epochs, {0, kMany}),
        integer({"iterations", "Training", "Iterations in all, in place of epochs", {}, "as many as the epochs have"},
                &Settings::iterations, {-1, kMany, 0}),
        integer({"batch_size", "Training", "Labelled images an iteration"}, &Settings::batch_size, {1, 65536}),
        integer({"gen_batch_size", "Training", "Real images and samples an iteration"}, &Settings::gen_batch_size, {1, 65536}),
        choice({"optimizer", "Training", "Optimizer"}, &Settings::optimizer),
        number({"lr", "Training", "Learning rate", {}, "0.01 with --data cifar100, but for jem"}, &Settings::lr, {0, 1000}),
        number({"momentum", "Training", "Momentum of SGD"}, &Settings::momentum, {0, 1}),
        number({"adam_beta1", "Training", "Adam's decay of the gradient's mean"}, &Settings::adam_beta1, {0, 0.9999}),
        number({"adam_clamp", "Training",
                "Clamp of each value of Adam's gradient, in deviations by its second moment, and 0.1 more (IGEBM); 0: none"},
               &Settings::adam_clamp, {0, 1e6}),
        number({"weight_decay", "Training", "Weight decay, on all parameters", {"--weight_decay"}}, &Settings::weight_decay, {0, 100}),
        none_or_integer({"warmup_iterations", "Training", "Iterations of linear warm-up; 0 or less: none", {"--warmup_iters"}},
                        &Settings::warmup_iterations),
        choice({"lr_schedule", "Training", "Learning rate over time"}, &Settings::lr_schedule),
        milestones({"lr_milestones", "Training", "Epochs at which the step schedule decays", {"--decay_epochs"}}),
        lr_decay({"lr_decay", "Training", "Factor at each milestone", {"--decay_rate"}}),
        number({"ema", "Training", "Decay of the moving average of the weights, below 1; 0: none"}, &Settings::ema, {0, 1}),
        number({"gradient_clip", "Training", "Largest norm of the gradient that the optimizer gets, without decay; 0: any"},
               &Settings::gradient_clip, {0, 1e9}),
        number({"label_smoothing", "Training", "Share of the target that goes to all classes alike"}, &Settings::label_smoothing, {0, 1}),

        integer({"sgld_steps", "Sampling", "K, SGLD steps an iteration", {"--n_steps"}, "", Use::sampling}, &Settings::sgld_steps,
                {0, 100000}),
        number(
            {"grow_steps_at", "Sampling",
             "AUROC of x+ against x- from which K grows by 1, its mean over 8 iterations, beginning with 0 and up to --sgld-steps (DAT); "
             "0: K stays"},
            &Settings::grow_steps_at, {0, 1}),
        number({"sgld_step_size", "Sampling", "alpha", {"--sgld_lr"}, "", Use::sampling}, &Settings::sgld_step_size, {0, 1e6}),
        number({"sgld_noise", "Sampling", "sigma of the noise added in each step", {"--sgld_std"}, "", Use::sampling},
               &Settings::sgld_noise, {0, 100}),
        number({"sgld_grad_clamp", "Sampling", "Limit of each gradient component; 0: none", {}, "", Use::sampling},
               &Settings::sgld_grad_clamp, {0, 1e6}),
        on_off({"sgld_pixel_clamp", "Sampling", "Keep x in [-1, 1]", {}, "", Use::sampling}, &Settings::sgld_pixel_clamp),
        on_off({"sgld_noise_first",
                "Sampling",
                "Add the noise before the gradient is taken, in place of after the step (IGEBM)",
                {},
                "",
                Use::sampling},
               &Settings::sgld_noise_first),
        integer({"inner_steps",
                 "Sampling",
                 "Steps through the first convolution alone, after each pass (JEM++'s N); 0: a plain step",
                 {"--in_steps"},
                 "",
                 Use::sampling},
                &Settings::inner_steps, {0, 100000}),
        number({"inner_step_size", "Sampling", "alpha of an inner step", {"--pyld_lr"}, "", Use::sampling}, &Settings::inner_step_size,
               {0, 1e6}),
        number({"outer_step_size", "Sampling", "alpha of a step before the inner ones", {}, "", Use::sampling}, &Settings::outer_step_size,
               {0, 1e6}),
        choice({"sampling_norm", "Sampling", "Statistics while sampling", {}, "", Use::sampling}, &Settings::sampling_norm),
        integer({"buffer_size", "Sampling", "Images in the replay buffer", {"--buffer_size"}}, &Settings::buffer_size, {1, 1e7}),
        choice({"buffer_order", "Sampling",
                "Where chains go that have ended: back where they were drawn, or in place of the oldest images (IGEBM)"},
               &Settings::buffer_order),
        number({"reinit_freq", "Sampling", "Probability of a fresh start, gamma", {"--reinit_freq"}}, &Settings::reinit_freq, {0, 1}),
        init({"init",
              "Sampling",
              "Where fresh chains start (gm and u: the authors' informative and uniform); NAME:DIR: from the training images of another "
              "set, augmented as --gen-augment says",
              {"--negatives-start"},
              "",
              Use::sampling}),

        choice({"sam", "Sharpness", "Sharpness-aware minimisation"}, &Settings::sam),
        number({"rho", "Sharpness", "SAM's radius"}, &Settings::rho, {0, 1000}),
        on_off({"sam_local", "Sharpness", "With several ranks: each perturbs along its own gradient, which saves a sum over ranks"},
               &Settings::sam_local),
        number({"p_x_weight", "Terms", "Weight of log p(x)", {"--px", "--p_x_weight"}}, &Settings::p_x_weight, {0, 1e6}),
        number({"p_y_given_x_weight", "Terms", "Weight of log p(y|x)", {"--pyx", "--p_y_given_x_weight"}}, &Settings::p_y_given_x_weight,
               {0, 1e6}),
        number({"p_x_y_weight", "Terms", "Weight of log p(x|y): chains of the labelled images' classes", {"--p_x_y_weight"}},
               &Settings::p_x_y_weight, {0, 1e6}),
        choice({"class_conditional", "Terms", "Whether x- are of classes: their chains alone, or the loss, too"},
               &Settings::class_conditional),
        number({"energy_l2", "Terms", "Weight of the squared energies", {"--l2", "--l2_coeff"}}, &Settings::energy_l2, {0, 1e6}),
        choice({"energy_l2_form", "Terms", "Squares of the mean energies, of each image's, or of each real image's and the samples' mean"},
               &Settings::energy_l2_form),

        choice({"attack_objective", "Adversarial images",
                "What they climb: -f(x)[y], the cross-entropy, or f(x)[y] and the distance of the logits' directions (EB-JDAT's scripts)"},
               &Settings::attack_objective),
        choice({"attack_norm", "Adversarial images", "Of the ball around the image that they stay in"}, &Settings::attack_norm),
        number({"attack_eps", "Adversarial images", "Its radius, in 1/255 of the pixels' range"}, &Settings::attack_eps, {0, 1e6}),
        integer({"attack_steps", "Adversarial images", "Steps of an attack"}, &Settings::attack_steps, {0, 100000}),
        number({"attack_step_size", "Adversarial images", "In 1/255 of the pixels' range"}, &Settings::attack_step_size, {0, 1e6}),
        number({"attack_weight", "Adversarial images", "eb-jdat: weight of log p of the adversarial image"}, &Settings::attack_weight,
               {0, 1e6}),
        number({"attack_ce_weight", "Adversarial images", "eb-jdat: weight of their cross-entropy"}, &Settings::attack_ce_weight, {0, 1e6}),

        text({"start_from",
              "Run",
              "Checkpoint whose weights, and replay buffer where there is one, the run begins with",
              {},
              "random weights"},
             &Settings::start_from, "a safetensors file"),
        integer({"checkpoint_interval", "Run", "Iterations between checkpoints, besides those of each epoch"},
                &Settings::checkpoint_interval, {0, kMany}),
        integer({"archive_interval", "Run", "Epochs between copies of the weights that are kept; 0: none"}, &Settings::archive_interval,
                {0, kMany}),
        integer({"metric_interval", "Run", "Epochs between measurements of --metrics on the held-out images; 0: none"},
                &Settings::metric_interval, {0, kMany}),
        text({"metrics", "Run", "What is measured then, by commas: accuracy, nll, brier, ece, and fid, kid, prd of the replay buffer"},
             &Settings::metrics, "names"),
        text({"features", "Run", "Network by whose features fid, kid and prd compare images: inception:FILE, or a checkpoint", {}, "none"},
             &Settings::features, "a safetensors file"),
        integer({"log_interval", "Run", "Iterations between log lines"}, &Settings::log_interval, {1, kMany}),
        integer({"sample_interval", "Run", "Epochs between sample sheets; 0: at the end only"}, &Settings::sample_interval, {0, kMany}),
        integer({"sample_every", "Run", "Iterations between sample sheets, besides those of epochs; 0: none"}, &Settings::sample_every,
                {0, kMany}),
        integer({"keep", "Run", "States of checkpoints that stay, at least 100 iterations apart: the last one, and others to go back to"},
                &Settings::keep, {1, 1000}),
        choice({"best_by", "Run", "What best.safetensors is best by, on the held-out images; frechet: needs --metrics fid"},
               &Settings::best_by),
        choice({"on_divergence", "Run", "Go back to the last good state and on from there, or stop"}, &Settings::on_divergence),
        integer({"max_rollbacks", "Run", "Times in a row that a run goes back before it stops"}, &Settings::max_rollbacks, {0, kMany}),
        number({"gap_deviations", "Run",
                "Standard deviations of its last --gap-window iterations by which the energy gap may leave their mean; 0: any"},
               &Settings::gap_deviations, {0, 1e9}),
        integer({"gap_window", "Run", "Iterations that the energy gap is compared with"}, &Settings::gap_window, {2, 100000}),
        integer({"chance_iterations", "Run",
                 "Iterations at chance, after an accuracy of twice that, which count as divergence; 0: any number is borne"},
                &Settings::chance_iterations, {0, 100000}),
    };
}

std::string as_flag_value(const Json& value) {
    if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_float()) return number_text(value.get<double>());
    if (!value.is_array()) return value.dump();
    if (value.empty()) return "none";
    std::string all;
    for (const Json& element : value) all += (all.empty() ? "" : ",") + element.dump();
    return all;
}

}  // namespace

std::vector<std::string> comma_parts(const std::string& text) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

bool read_whole_number(const std::string& text, int64_t& value) { return read_whole(text, value); }
bool read_whole_number(const std::string& text, uint64_t& value) { return read_whole(text, value); }

std::string Setting::flag() const {
    std::string name = "--" + key;
    std::replace(name.begin(), name.end(), '_', '-');
    return name;
}

std::string Setting::default_text() const {
    const std::vector<std::string> names = recipe_names();
    const Json first = get(recipe(names.front()));
    // -1, 0, nothing: marks that stand for what the note says
    const bool mark = !note.empty() && (first.is_null() || first == Json("") || first == Json(-1) || first == Json(0));
    if (mark) return note;
    std::string out = as_flag_value(first);
    if (use != Use::command)
        for (const std::string& name : names)
            if (const Json other = get(recipe(name)); other != first) out += "; " + name + " " + as_flag_value(other);
    return note.empty() ? out : out + (out.empty() ? "" : "; ") + note;
}

const std::vector<Setting>& settings_table() {
    static const std::vector<Setting> table = make_table();
    return table;
}

bool holds_settings(const nlohmann::json& json) {
    return json.is_object() &&
           std::any_of(settings_table().begin(), settings_table().end(), [&](const Setting& s) { return json.contains(s.key); });
}

void validate(const Settings& s) {
    for (const Setting& setting : settings_table()) setting.check(s);
    if (s.in_channels == 2) throw InputError("--in-channels is 2 (images have 1 or 3). Give one of these, or --data.");
    if (s.ema == 1) throw InputError("--ema is 1 (the average would never move). Give a value below 1, such as 0.999.");
    if (s.best_by == BestBy::energy_gap && !s.samples())
        throw InputError("--best-by energy-gap is of drawn images (" + why_no_samples(s) + "). Give accuracy.");
    const std::vector<std::string> measured = comma_parts(s.metrics);
    if (s.best_by == BestBy::frechet && (s.metric_interval == 0 || std::find(measured.begin(), measured.end(), "fid") == measured.end()))
        throw InputError("--best-by frechet has nothing to go by (fid is not measured). Give --metric-interval 1 --metrics accuracy,fid.");
    if (!s.own_method && !s.samples() && !s.classifies())
        throw InputError("--p-x-weight, --p-y-given-x-weight and --p-x-y-weight are all 0 (there is nothing to train). Make one positive.");
    if (!s.own_method && s.class_conditional != ClassConditional::off && !s.generates())
        throw InputError("--class-conditional is of x- (--p-x-weight is 0: there are none). Give --p-x-weight, or leave it out.");
    if (s.network != NetworkKind::wide_resnet && s.norm != NormKind::none)
        throw InputError("--norm " + name_of(s.norm) + " is of a Wide-ResNet (--network " + name_of(s.network) +
                         " has no norms). Give --norm none.");
    if (s.network != NetworkKind::wide_resnet && s.recompute)
        throw InputError("--recompute is of a Wide-ResNet (this is --network " + name_of(s.network) + "). Leave it out.");
    if (s.buffer_order == BufferOrder::fifo && takes_places(method_of(s)))
        throw InputError(std::string("--buffer-order fifo has no places of classes (") +
                         (s.own_method ? "the method has chains of classes" : "--class-conditional and --p-x-y-weight want them") +
                         "). Give in-place.");
    if (s.grow_steps_at > 0 && s.samples() && !tells_apart(method_of(s)))
        throw InputError("--grow-steps-at goes by how well x+ and x- are told apart (not both have a term here). Give 0.");
    if (!s.own_method && s.label_smoothing > 0 && !s.classifies())
        throw InputError("--label-smoothing is of the cross-entropy (--p-y-given-x-weight is 0: there is none). Leave it out.");
    const bool few_labels = s.labels_per_class > 0;
    if (few_labels && s.samples() && s.init == StartForm::informative)
        throw InputError("--labels-per-class " + std::to_string(s.labels_per_class) +
                         " beside --init informative (its Gaussians are made of every image's label). Give --init uniform, or --init "
                         "gaussian, whose one Gaussian is of all images and needs no labels.");
    if (few_labels && !s.own_method && s.loss_is_of_classes())
        throw InputError("--labels-per-class " + std::to_string(s.labels_per_class) +
                         " beside --class-conditional loss (it takes the label of every image of p(x)). Leave one of them out, or give "
                         "--class-conditional chain.");
    if (s.label_smoothing == 1)
        throw InputError("--label-smoothing is 1 (no label would be left of it). Give a value below 1, such as 0.1.");
}

std::string settings_page() {
    std::string page =
        "# Settings\n\n"
        "Every hyper-parameter: its flag, and its key in a run's config.json, which is the flag's name with underscores. "
        "A default is that of the recipe `sada-jem`; where another recipe differs it is named.\n"
        "Order of precedence: recipe, then `--config`, then flags. Flags marked \"also\" are the names of the authors' scripts.\n\n"
        "This page is written by `jem_engine info --settings`.\n";
    std::vector<std::string> groups;
    for (const Setting& s : settings_table())
        if (std::find(groups.begin(), groups.end(), s.group) == groups.end()) groups.push_back(s.group);
    const auto cell = [](std::string text) {
        for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, "\\");
        return text;
    };
    for (const std::string& group : groups) {
        page += "\n## " + group + "\n\n| flag | values | default | meaning |\n|---|---|---|---|\n";
        for (const Setting& s : settings_table()) {
            if (s.group != group) continue;
            std::string also;
            for (const std::string& alias : s.aliases) also += (also.empty() ? "; also `" : ", `") + alias + "`";
            page += "| `" + s.flag() + "` | " + cell(s.values) + " | " + cell(s.default_text()) + " | " + cell(s.help) + also + " |\n";
        }
    }
    return page;
}

}  // namespace jem
