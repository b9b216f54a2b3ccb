// config.json: a person's, a run's, and that in a checkpoint; a method in it.
#include "engine/settings/settings.h"

#include "engine/settings/recipes/recipes.h"
#include "engine/settings/table.h"
#include "engine/training/own_method.h"
#include "tests/fuzz/target.h"

JEM_FUZZ_TARGET(bytes) {
    using namespace jem;
    const nlohmann::json json = nlohmann::json::parse(fuzz::text_of(bytes), nullptr, false);
    if (json.is_discarded()) return;
    Settings merged, person;
    holds_settings(json);
    fuzz::reads([&] { merge_json(merged, json, "a checkpoint"); });
    fuzz::reads([&] { settings_of_run(json); });
    if (!fuzz::reads([&] { person = settings_of_config(json); })) return;
    const nlohmann::json written = to_json(person);
    fuzz::require(to_json(settings_of_config(written)) == to_json(person));
    if (person.own_method) fuzz::require(method_of_json(nlohmann::json(to_json(*person.own_method))) == *person.own_method);
    fuzz::reads([&] { validate(person); });
    Method method;
    if (!person.own_method || !fuzz::reads([&] { method = checked_method(person); })) return;
    fuzz::require(method == method_of(person) && !method.steps.empty());
}
