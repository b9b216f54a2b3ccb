#include "engine/settings/settings.h"

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

constexpr const char* kMethodKey = "method";

}  // namespace

// The direction, clamped, is the same in all inner steps, and what keeps x in [-1, 1] between them cuts nothing off that comes back.
SgldSettings Settings::sgld() const {
    const double proximal = outer_step_size + static_cast<double>(inner_steps) * inner_step_size;
    return {inner_steps > 0 ? proximal : sgld_step_size, sgld_noise, sgld_grad_clamp, sgld_pixel_clamp, seed, 0, 0, sgld_noise_first};
}

bool Settings::generates() const { return own_method ? has_chain(method_of(*this), BatchOf::chain) : p_x_weight != 0; }

bool Settings::samples() const {
    return generates() || (own_method ? has_chain(method_of(*this), BatchOf::labelled_chain) : p_x_y_weight != 0);
}

bool Settings::classifies() const { return own_method ? draws_labelled(method_of(*this)) : p_y_given_x_weight != 0; }

std::string title_of(const Settings& s) { return s.own_method ? "a method of one's own with the values of " + s.recipe : s.recipe; }

std::string why_no_samples(const Settings& s) {
    return s.own_method ? "no chain of the method goes on in the replay buffer" : "--p-x-weight is 0: there are none";
}

nlohmann::ordered_json to_json(const Settings& settings) {
    nlohmann::ordered_json json;
    for (const Setting& s : settings_table()) json[s.key] = s.get(settings);
    if (settings.own_method) json[kMethodKey] = to_json(*settings.own_method);
    return json;
}

void merge_json(Settings& settings, const nlohmann::json& json, const std::string& where) {
    if (!json.is_object()) throw InputError("No JSON object is in " + where + ". Give a file that a run wrote (config.json).");
    for (const auto& [key, value] : json.items()) {
        const Setting* found = nullptr;
        for (const Setting& s : settings_table())
            if (s.key == key) found = &s;
        if (found == nullptr && key != kMethodKey)
            throw InputError("Unknown setting \"" + key + "\" in " + where + ". Remove it, or correct its name.");
        try {
            if (found == nullptr)
                settings.own_method = method_of_json(value);
            else
                found->set(settings, value);
        } catch (const nlohmann::json::exception&) {
            throw InputError("Setting \"" + key + "\" in " + where + " is " + (value.is_structured() ? value.type_name() : value.dump()) +
                             " (a value of another type was expected, as in " + found->get(settings).dump() + "). Correct it.");
        } catch (const InputError& e) {
            throw InputError("In " + where + ": " + e.what());
        }
    }
}

Settings settings_of_config(const nlohmann::json& json, const std::string& where) {
    Settings settings;
    if (json.is_object() && json.contains("recipe") && json.at("recipe").is_string())
        settings = recipe(json.at("recipe").get<std::string>());
    merge_json(settings, json, where);
    return settings;
}

Settings settings_of_run(const nlohmann::json& json, const std::string& where) {
    Settings settings = settings_of_config(json, where);
    if (!json.contains("input_noise_on")) settings.input_noise_on = InputNoiseOn::both;
    if (!json.contains("grow_steps_at")) settings.grow_steps_at = 0;
    return settings;
}

}  // namespace jem
