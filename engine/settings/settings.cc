#include "engine/settings/settings.h"

#include <cmath>
#include <functional>
#include <numbers>

#include "data/input_error.h"

namespace jem {
namespace {

using Json = nlohmann::ordered_json;

// One row a setting: its key, and how it is written and read. The keys are the flags' names with underscores.
struct Field {
    std::string key;
    std::function<Json(const Settings&)> get;
    std::function<void(Settings&, const nlohmann::json&)> set;
};

// nlohmann's get() would cut 28.5 to 28 and wrap -1 around; a reference is to be had of an integer only.
template <class T>
T exactly(const nlohmann::json& j) {
    if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, uint64_t>)
        return j.get_ref<const T&>();
    else
        return j.get<T>();
}
template <>
std::vector<int64_t> exactly(const nlohmann::json& j) {
    std::vector<int64_t> values;
    for (const nlohmann::json& element : j.get<nlohmann::json::array_t>()) values.push_back(exactly<int64_t>(element));
    return values;
}

template <class T>
Field plain(const std::string& key, T Settings::*member) {
    return {key, [member](const Settings& s) { return Json(s.*member); },
            [member](Settings& s, const nlohmann::json& j) { s.*member = exactly<T>(j); }};
}

template <class E>
Field choice(const std::string& key, E Settings::*member) {
    return {key, [member](const Settings& s) { return Json(name_of(s.*member)); },
            [member, key](Settings& s, const nlohmann::json& j) {
                const std::string wanted = j.get<std::string>();
                std::string known;
                for (const auto& [name, value] : EnumNames<E>::all()) {
                    if (name == wanted) {
                        s.*member = value;
                        return;
                    }
                    known += " " + name;
                }
                throw InputError("Setting " + key + " is \"" + wanted + "\" (known:" + known + "). Choose one of these.");
            }};
}

const std::vector<Field>& fields() {
    static const std::vector<Field> all = {
        plain("recipe", &Settings::recipe),
        plain("seed", &Settings::seed),
        plain("depth", &Settings::depth),
        plain("width", &Settings::width),
        choice("norm", &Settings::norm),
        choice("norm_statistics", &Settings::norm_statistics),
        plain("in_channels", &Settings::in_channels),
        plain("image_size", &Settings::image_size),
        plain("num_classes", &Settings::num_classes),
        plain("precision", &Settings::precision),
        choice("conv_algorithm", &Settings::conv_algorithm),
        plain("data", &Settings::data),
        plain("data_dir", &Settings::data_dir),
        plain("n_valid", &Settings::n_valid),
        plain("recompute", &Settings::recompute),
        plain("augment", &Settings::augment),
        plain("gen_augment", &Settings::gen_augment),
        plain("input_noise", &Settings::input_noise),
        plain("epochs", &Settings::epochs),
        plain("iterations", &Settings::iterations),
        plain("batch_size", &Settings::batch_size),
        plain("gen_batch_size", &Settings::gen_batch_size),
        choice("optimizer", &Settings::optimizer),
        plain("lr", &Settings::lr),
        plain("momentum", &Settings::momentum),
        plain("weight_decay", &Settings::weight_decay),
        plain("warmup_iterations", &Settings::warmup_iterations),
        choice("lr_schedule", &Settings::lr_schedule),
        plain("lr_milestones", &Settings::lr_milestones),
        plain("lr_decay", &Settings::lr_decay),
        plain("ema", &Settings::ema),
        plain("sgld_steps", &Settings::sgld_steps),
        plain("sgld_step_size", &Settings::sgld_step_size),
        plain("sgld_noise", &Settings::sgld_noise),
        plain("sgld_grad_clamp", &Settings::sgld_grad_clamp),
        plain("sgld_pixel_clamp", &Settings::sgld_pixel_clamp),
        choice("sampling_norm", &Settings::sampling_norm),
        plain("buffer_size", &Settings::buffer_size),
        plain("reinit_freq", &Settings::reinit_freq),
        choice("init", &Settings::init),
        choice("sam", &Settings::sam),
        plain("rho", &Settings::rho),
        plain("sam_local", &Settings::sam_local),
        plain("p_x_weight", &Settings::p_x_weight),
        plain("p_y_given_x_weight", &Settings::p_y_given_x_weight),
        plain("energy_l2", &Settings::energy_l2),
        plain("checkpoint_interval", &Settings::checkpoint_interval),
        plain("log_interval", &Settings::log_interval),
        plain("sample_interval", &Settings::sample_interval),
    };
    return all;
}

Settings sada_jem() { return {}; }  // the paper's Table 7 and the authors' scripts

Settings softmax() {
    Settings s;
    s.p_x_weight = 0;
    s.sgld_steps = 0;
    s.sam = SamForm::none;
    return s;
}

const std::vector<std::pair<std::string, std::function<Settings()>>>& recipes() {
    static const std::vector<std::pair<std::string, std::function<Settings()>>> all = {
        {"sada-jem", sada_jem},
        {"softmax", softmax},
        {"softmax+sam",
         [] {
             Settings s = softmax();
             s.sam = SamForm::sam;
             return s;
         }},
    };
    return all;
}

void in_range(const char* flag, double value, double low, double high) {
    if (value >= low && value <= high) return;  // false for NaN
    const auto text = [](double v) {
        if (std::isnan(v)) return std::string("not a number");
        std::string s = Json(v).dump();
        return s.ends_with(".0") ? s.substr(0, s.size() - 2) : s;
    };
    throw InputError(std::string(flag) + " is " + text(value) + " (allowed: " + text(low) + " to " + text(high) +
                     "). Give a value in range.");
}

}  // namespace

Settings recipe(const std::string& name) {
    for (const auto& [known, make] : recipes()) {
        if (known != name) continue;
        Settings s = make();
        s.recipe = name;
        return s;
    }
    std::string known;
    for (const std::string& n : recipe_names()) known += " " + n;
    throw InputError("There is no recipe \"" + name + "\" (known:" + known + "). Choose one of these.");
}

std::vector<std::string> recipe_names() {
    std::vector<std::string> names;
    for (const auto& [name, make] : recipes()) names.push_back(name);
    return names;
}

void validate(const Settings& s) {
    constexpr double kMany = 1e9;
    if (s.depth < 10 || s.depth > 1000 || (s.depth - 4) % 6 != 0)
        throw InputError("--depth is " + std::to_string(s.depth) + " (a Wide-ResNet has depth 6n + 4). Give 10, 16, 22, 28 ...");
    in_range("--width", static_cast<double>(s.width), 1, 32);
    if (s.in_channels != 1 && s.in_channels != 3)
        throw InputError("--in-channels is " + std::to_string(s.in_channels) + " (images have 1 or 3). Give one of these, or --data.");
    in_range("--image-size", static_cast<double>(s.image_size), 8, 64);
    in_range("--num-classes", static_cast<double>(s.num_classes), 2, 10000);
    in_range("--n-valid", static_cast<double>(s.n_valid), 0, kMany);
    in_range("--input-noise", s.input_noise, 0, 10);
    in_range("--epochs", static_cast<double>(s.epochs), 0, kMany);
    in_range("--iterations", static_cast<double>(s.iterations), -1, kMany);
    in_range("--batch-size", static_cast<double>(s.batch_size), 1, 65536);
    in_range("--gen-batch-size", static_cast<double>(s.gen_batch_size), 1, 65536);
    in_range("--lr", s.lr, 0, 1000);
    in_range("--momentum", s.momentum, 0, 1);
    in_range("--weight-decay", s.weight_decay, 0, 100);
    in_range("--warmup-iterations", static_cast<double>(s.warmup_iterations), 0, kMany);
    in_range("--lr-decay", s.lr_decay, 0, 1);
    in_range("--ema", s.ema, 0, 1);
    if (s.ema == 1) throw InputError("--ema is 1 (the average would never move). Give a value below 1, such as 0.999.");
    in_range("--sgld-steps", static_cast<double>(s.sgld_steps), 0, 100000);
    in_range("--sgld-step-size", s.sgld_step_size, 0, 1e6);
    in_range("--sgld-noise", s.sgld_noise, 0, 100);
    in_range("--sgld-grad-clamp", s.sgld_grad_clamp, 0, 1e6);
    in_range("--buffer-size", static_cast<double>(s.buffer_size), 1, 10000000);
    in_range("--reinit-freq", s.reinit_freq, 0, 1);
    in_range("--rho", s.rho, 0, 1000);
    in_range("--p-x-weight", s.p_x_weight, 0, 1e6);
    in_range("--p-y-given-x-weight", s.p_y_given_x_weight, 0, 1e6);
    in_range("--energy-l2", s.energy_l2, 0, 1e6);
    in_range("--checkpoint-interval", static_cast<double>(s.checkpoint_interval), 0, kMany);
    in_range("--log-interval", static_cast<double>(s.log_interval), 1, kMany);
    in_range("--sample-interval", static_cast<double>(s.sample_interval), 0, kMany);
    for (const int64_t m : s.lr_milestones) in_range("--lr-milestones", static_cast<double>(m), 1, kMany);
    if (!s.samples() && !s.classifies())
        throw InputError("--p-x-weight and --p-y-given-x-weight are both 0 (there is nothing to train). Make one of them positive.");
}

Json to_json(const Settings& settings) {
    Json json;
    for (const Field& f : fields()) json[f.key] = f.get(settings);
    return json;
}

void merge_json(Settings& settings, const nlohmann::json& json) {
    if (!json.is_object()) throw InputError("The configuration is no JSON object. Give a file that a run wrote (config.json).");
    for (const auto& [key, value] : json.items()) {
        const Field* found = nullptr;
        for (const Field& f : fields())
            if (f.key == key) found = &f;
        if (found == nullptr) throw InputError("Unknown setting \"" + key + "\" in the configuration. Remove it, or correct its name.");
        try {
            found->set(settings, value);
        } catch (const nlohmann::json::exception&) {
            throw InputError("Setting \"" + key + "\" is " + value.dump() + " (a value of another type was expected, as in " +
                             found->get(settings).dump() + "). Correct it.");
        }
    }
}

double learning_rate(const Settings& s, int64_t iteration, int64_t iterations_per_epoch, int64_t total_iterations) {
    double lr = s.lr;
    if (iteration < s.warmup_iterations) return lr * static_cast<double>(iteration) / static_cast<double>(s.warmup_iterations);
    if (s.lr_schedule == LrSchedule::cosine)
        return lr * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(iteration) / static_cast<double>(total_iterations)));
    const int64_t epoch = iterations_per_epoch > 0 ? iteration / iterations_per_epoch : 0;
    for (const int64_t milestone : s.lr_milestones)
        if (epoch >= milestone) lr *= s.lr_decay;
    return lr;
}

}  // namespace jem
