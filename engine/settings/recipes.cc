#include "engine/settings/recipes.h"

#include <functional>
#include <utility>

#include "data/input_error.h"

namespace jem {
namespace {

constexpr double kRateOfCifar100 = 0.01;  // the authors' scripts; 0.1 elsewhere

Settings sada_jem() { return {}; }  // the paper's Table 7 and the authors' scripts

Settings softmax() {
    Settings s;
    s.p_x_weight = 0;
    s.sgld_steps = 0;
    s.sam = SamForm::none;
    s.input_noise_on = InputNoiseOn::both;
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

void fit_rate_to_data(Settings& s) {
    if (s.data == "cifar100") s.lr = kRateOfCifar100;
}

}  // namespace jem
