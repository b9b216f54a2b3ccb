// The presets.
#pragma once

#include <string>
#include <vector>

#include "engine/settings/settings.h"

namespace jem {

// The preset of that name; throws InputError for an unknown one, listing the known.
Settings recipe(const std::string& name);
std::vector<std::string> recipe_names();

// The recipe's learning rate for settings.data: for those that gave none.
void fit_rate_to_data(Settings& settings);

}  // namespace jem
