// The presets: values of all hyper-parameters, and what the method is made of. One file each; recipes.cc lists them.
#pragma once

#include <string>
#include <vector>

#include "engine/settings/method.h"
#include "engine/settings/settings.h"

namespace jem {

struct Recipe {
    std::string name;
    Settings (*values)();
    Method (*method)(const Settings&);
    double rate_of_cifar100 = 0.01;  // the learning rate there, by the authors' scripts
};

// An objective that is weighed by the setting of that key.
ObjectiveSpec objective(const Settings& settings, const char* name, const char* weight);
// What several are made of: log p(x) by the energies of real images and of a chain's, log p(y|x) and log p(x|y) of the labelled images.
TermSpec positive_term(const Settings& settings);
ChainSpec chain(const Settings& settings);
TermSpec negative_term(const Settings& settings);
void add_labelled(Method& method, const Settings& settings);
// An attack on the labelled images.
ChainSpec attack(const Settings& settings);
// InputError for a flag that the settings' recipe cannot heed.
void refuse(const Settings& settings, bool wrong, const char* flag, const char* why);
void refuse_other_energies(const Settings& settings);

// One a file.
Recipe sada_jem_recipe();
Recipe jem_recipe();
Recipe jempp_recipe();
Recipe m_jem_recipe();
Recipe igebm_recipe();
Recipe jeat_recipe();
Recipe dat_recipe();
Recipe eb_jdat_recipe();
Recipe softmax_recipe();
Recipe softmax_sam_recipe();

// The preset of that name; throws InputError for an unknown one, listing the known.
Settings recipe(const std::string& name);
std::vector<std::string> recipe_names();
// Of settings.recipe, or the settings' own.
Method method_of(const Settings& settings);

// The recipe's learning rate for settings.data: for those that gave none.
void fit_rate_to_data(Settings& settings);

}  // namespace jem
