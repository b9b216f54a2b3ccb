// A method as JSON, and what settings make of one that a configuration brings.
#include "engine/settings/method.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <string_view>

#include "data/input_error.h"
#include "engine/settings/settings.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

using Json = nlohmann::ordered_json;

// Far more than a method can have, and little enough that all may be compared with all.
constexpr size_t kMostSteps = 64, kMostObjectives = 64;
constexpr size_t kLongestName = 40;

// For people: a value, as far as it fits into a line.
std::string shown(const nlohmann::json& json) {
    if (json.is_structured()) return std::string("an ") + json.type_name();
    const std::string text = json.dump(-1, ' ', true);
    return text.size() <= 2 * kLongestName ? text : text.substr(0, 2 * kLongestName) + " ...";
}

// An object of the file, key by key.
class ObjectReader {
public:
    ObjectReader(const nlohmann::json& json, std::string place, std::initializer_list<const char*> known)
        : json_(json), place_(std::move(place)) {
        if (!json.is_object()) throw InputError(place_ + " is " + shown(json) + " (an object, {...}, is expected). Correct it.");
        std::string all;
        for (const char* key : known) all += std::string(" ") + key;
        for (const auto& entry : json.items())
            if (std::find(known.begin(), known.end(), entry.key()) == known.end())
                throw InputError(place_ + " has the key " + shown(nlohmann::json(entry.key())) + " (known:" + all +
                                 "). Remove it, or correct its name.");
    }

    bool has(const char* key) const { return json_.contains(key); }
    const std::string& place() const { return place_; }
    void call(const std::string& name) { place_ += " (" + name + ")"; }

    const nlohmann::json::array_t& list(const char* key, size_t most) const {
        const nlohmann::json& value = needed(key);
        if (!value.is_array()) refuse(key, value, "a list, [...],");
        if (value.size() > most)
            throw InputError(place_ + " has " + std::to_string(value.size()) + " " + key + " (at most " + std::to_string(most) +
                             " can be had). Leave some out.");
        return value.get_ref<const nlohmann::json::array_t&>();
    }

    std::string word(const char* key) const {
        const nlohmann::json& value = needed(key);
        if (!value.is_string()) refuse(key, value, "a name");
        return value.get<std::string>();
    }

    // What is left out stays as it is.
    void read(const char* key, bool& to) const {
        if (!has(key)) return;
        const nlohmann::json& value = json_.at(key);
        if (!value.is_boolean()) refuse(key, value, "true or false");
        to = value.get<bool>();
    }

    template <class E>
    void read(const char* key, E& to) const {
        if (!has(key)) return;
        const std::string wanted = word(key);
        std::string all;
        for (const auto& [name, value] : EnumNames<E>::all()) {
            if (name == wanted) {
                to = value;
                return;
            }
            all += " " + name;
        }
        throw InputError(place_ + ": \"" + key + "\" is " + shown(json_.at(key)) + " (known:" + all + "). Choose one of these.");
    }

    void read_weight(const char* key, ObjectiveSpec& to) const {
        if (!has(key)) return;
        const nlohmann::json& value = json_.at(key);
        if (value.is_number()) {
            to.weight = value.get<double>();
            return;
        }
        if (!value.is_string()) refuse(key, value, "a number, or the key of a setting that is one,");
        to.setting = value.get<std::string>();
        try {
            weight_by(Settings{}, to.setting);
        } catch (const InputError& e) {
            throw InputError(place_ + ": " + e.what());
        }
    }

private:
    const nlohmann::json& needed(const char* key) const {
        if (!has(key)) throw InputError(place_ + " has no \"" + key + "\" (there is no default for it). Add it.");
        return json_.at(key);
    }
    [[noreturn]] void refuse(const char* key, const nlohmann::json& value, const char* expected) const {
        throw InputError(place_ + ": \"" + key + "\" is " + shown(value) + " (" + expected + " is expected). Correct it.");
    }

    const nlohmann::json& json_;
    std::string place_;
};

// It becomes the name of a phase, in tables on terminals and in files.
std::string name_of_step(ObjectReader& from, const char* key) {
    const std::string name = from.word(key);
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 || std::string_view(" -_").find(c) != std::string_view::npos;
    });
    if (name.empty() || name.size() > kLongestName || !plain)
        throw InputError(from.place() + ": \"" + key + "\" is " + shown(nlohmann::json(name)) + " (a name of 1 to " +
                         std::to_string(kLongestName) + " letters, digits, spaces, - and _ is expected). Choose another one.");
    from.call(name);
    return name;
}

ChainSpec chain_of_json(const nlohmann::json& json, const std::string& place) {
    ObjectReader from(json, place, {"chain", "makes", "climbs", "stepper", "head", "evaluation_mode"});
    ChainSpec chain;
    chain.name = name_of_step(from, "chain");
    from.read("makes", chain.makes);
    from.read("climbs", chain.climbs);
    from.read("stepper", chain.stepper);
    from.read("head", chain.head);
    from.read("evaluation_mode", chain.evaluation_mode);
    return chain;
}

TermSpec term_of_json(const nlohmann::json& json, const std::string& place) {
    ObjectReader from(json, place, {"term", "batch", "objectives", "head"});
    TermSpec term{.name = name_of_step(from, "term"), .batch = BatchOf::labelled, .objectives = {}};
    from.word("batch");
    from.read("batch", term.batch);
    from.read("head", term.head);
    for (const nlohmann::json& objective : from.list("objectives", kMostObjectives)) {
        const std::string of = "objective " + std::to_string(term.objectives.size() + 1) + " of " + from.place();
        const ObjectReader one(objective, of, {"name", "weight"});
        term.objectives.push_back({.name = one.word("name")});
        one.read_weight("weight", term.objectives.back());
    }
    return term;
}

}  // namespace

nlohmann::ordered_json to_json(const Method& method) {
    Json steps = Json::array();
    for (const auto& step : method.steps) {
        if (const auto* chain = std::get_if<ChainSpec>(&step)) {
            steps.push_back({{"chain", chain->name},
                             {"makes", name_of(chain->makes)},
                             {"climbs", name_of(chain->climbs)},
                             {"stepper", name_of(chain->stepper)},
                             {"head", name_of(chain->head)},
                             {"evaluation_mode", chain->evaluation_mode}});
            continue;
        }
        const auto& term = std::get<TermSpec>(step);
        Json objectives = Json::array();
        for (const ObjectiveSpec& o : term.objectives)
            objectives.push_back({{"name", o.name}, {"weight", o.setting.empty() ? Json(o.weight) : Json(o.setting)}});
        steps.push_back({{"term", term.name}, {"batch", name_of(term.batch)}, {"objectives", objectives}, {"head", name_of(term.head)}});
    }
    return {{"steps", steps},
            {"running_statistics", method.running_statistics},
            {"nesterov", method.nesterov},
            {"chains_take_labels", method.chains_take_labels},
            {"attacks_start_apart", method.attacks_start_apart}};
}

Method method_of_json(const nlohmann::json& json) {
    const ObjectReader from(json, "\"method\"", {"steps", "running_statistics", "nesterov", "chains_take_labels", "attacks_start_apart"});
    Method method;
    for (const nlohmann::json& step : from.list("steps", kMostSteps)) {
        const std::string place = "step " + std::to_string(method.steps.size() + 1) + " of \"method\"";
        const bool chain = step.is_object() && step.contains("chain"), term = step.is_object() && step.contains("term");
        if (chain == term)
            throw InputError(place + " is " + (chain ? "both" : "neither") +
                             " a chain and a term (a step is one of them, by its first key). Give it \"chain\": NAME or \"term\": NAME.");
        if (chain)
            method.steps.emplace_back(chain_of_json(step, place));
        else
            method.steps.emplace_back(term_of_json(step, place));
    }
    from.read("running_statistics", method.running_statistics);
    from.read("nesterov", method.nesterov);
    from.read("chains_take_labels", method.chains_take_labels);
    from.read("attacks_start_apart", method.attacks_start_apart);
    return method;
}

const std::vector<std::string>& settings_of_recipes() {
    static const std::vector<std::string> keys = {"p_x_weight",       "p_y_given_x_weight", "p_x_y_weight",    "attack_weight",
                                                  "attack_ce_weight", "class_conditional",  "attack_objective"};
    return keys;
}

double weight_by(const Settings& settings, const std::string& key) {
    const auto& table = settings_table();
    const auto found = std::find_if(table.begin(), table.end(), [&](const Setting& s) { return s.key == key; });
    const Json value = found == table.end() ? Json() : found->get(settings);
    if (!value.is_number())
        throw InputError("\"weight\" is " + shown(nlohmann::json(key)) + " (" +
                         (found == table.end() ? "there is no such setting" : "that setting is no number") +
                         "). Give a number, or the key of a setting that is one, such as p_x_weight.");
    return value.get<double>();
}

Method with_weights(Method method, const Settings& settings) {
    for (auto& step : method.steps)
        if (auto* term = std::get_if<TermSpec>(&step))
            for (ObjectiveSpec& o : term->objectives)
                if (!o.setting.empty()) o.weight = weight_by(settings, o.setting);
    return method;
}

Method without_idle_parts(Method method) {
    for (auto& step : method.steps)
        if (auto* term = std::get_if<TermSpec>(&step))
            std::erase_if(term->objectives, [](const ObjectiveSpec& o) { return o.weight == 0; });
    std::erase_if(method.steps, [](const auto& step) {
        const auto* term = std::get_if<TermSpec>(&step);
        return term != nullptr && term->objectives.empty();
    });
    const Method terms = method;
    std::erase_if(method.steps, [&](const auto& step) {
        const auto* chain = std::get_if<ChainSpec>(&step);
        return chain != nullptr && !has_term(terms, chain->makes);
    });
    return method;
}

}  // namespace jem
