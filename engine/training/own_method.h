// Whether the parts of a method that a configuration brings fit together: all that would otherwise be wrong in an iteration, or go
// unheeded.
#pragma once

#include <vector>

#include "engine/settings/method.h"
#include "engine/settings/settings.h"
#include "engine/training/terms/terms.h"

namespace jem {

/// The settings' method, after checking it where it is their own: InputError for one that cannot be run, or that leaves settings without
/// effect. Recipes check their own settings. known: the objectives that there are.
Method checked_method(const Settings& settings, const std::vector<NamedObjective>& known = objectives());

}  // namespace jem
