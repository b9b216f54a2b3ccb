#include "engine/settings/recipes/recipes.h"

#include "data/input_error.h"

namespace jem {
namespace {

const std::vector<Recipe>& recipes() {
    static const std::vector<Recipe> all = {sada_jem_recipe(), jem_recipe(), jempp_recipe(),   m_jem_recipe(),   igebm_recipe(),
                                            jeat_recipe(),     dat_recipe(), eb_jdat_recipe(), softmax_recipe(), softmax_sam_recipe()};
    return all;
}

const Recipe& found(const std::string& name) {
    std::string known;
    for (const Recipe& r : recipes()) {
        if (r.name == name) return r;
        known += " " + r.name;
    }
    throw InputError("There is no recipe \"" + name + "\" (known:" + known + "). Choose one of these.");
}

}  // namespace

Settings recipe(const std::string& name) {
    Settings s = found(name).values();
    s.recipe = name;
    return s;
}

std::vector<std::string> recipe_names() {
    std::vector<std::string> names;
    for (const Recipe& r : recipes()) names.push_back(r.name);
    return names;
}

Method method_of(const Settings& settings) {
    if (settings.own_method) return without_idle_parts(with_weights(*settings.own_method, settings));
    return found(settings.recipe).method(settings);
}

void fit_rate_to_data(Settings& s) {
    if (s.data == "cifar100") s.lr = found(s.recipe).rate_of_cifar100;
}

}  // namespace jem
