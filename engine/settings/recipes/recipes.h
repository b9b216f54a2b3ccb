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
};

// One a file.
Recipe sada_jem_recipe();
Recipe softmax_recipe();
Recipe softmax_sam_recipe();

// The preset of that name; throws InputError for an unknown one, listing the known.
Settings recipe(const std::string& name);
std::vector<std::string> recipe_names();
// Of settings.recipe.
Method method_of(const Settings& settings);

// The recipe's learning rate for settings.data: for those that gave none.
void fit_rate_to_data(Settings& settings);

}  // namespace jem
