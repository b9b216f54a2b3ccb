// The table of settings: what a text given to a flag means.
#include "engine/settings/table.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"

namespace jem {
namespace {

const Setting& row(const std::string& key) {
    const auto& table = settings_table();
    const auto found = std::find_if(table.begin(), table.end(), [&](const Setting& s) { return s.key == key; });
    REQUIRE_MESSAGE(found != table.end(), key);
    return *found;
}

// The value that a text has for a flag, as JSON; the text of the error where it has none.
std::string meaning(const std::string& key, const std::string& text, const std::string& flag = "") {
    Settings s;
    try {
        row(key).parse(s, flag.empty() ? row(key).flag() : flag, text);
    } catch (const InputError& e) {
        return std::string("error: ") + e.what();
    }
    return row(key).get(s).dump();
}

bool refused(const std::string& key, const std::string& text) { return meaning(key, text).starts_with("error: " + row(key).flag() + " "); }

bool counts(const Setting& s) { return s.get(Settings{}).is_number_integer() || s.key == "split_seed"; }

}  // namespace

TEST_CASE("every_setting_has_a_key_a_flag_a_help_and_a_place") {
    std::vector<std::string> names;
    for (const Setting& s : settings_table()) {
        CAPTURE(s.key);
        names.push_back(s.flag());
        names.insert(names.end(), s.aliases.begin(), s.aliases.end());
        CHECK_FALSE(s.group.empty());
        CHECK_FALSE(s.help.empty());
        CHECK_FALSE(s.values.empty());
        CHECK(settings_page().find("`" + s.flag() + "`") != std::string::npos);
    }
    std::sort(names.begin(), names.end());
    CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
}

TEST_CASE("what_other_programs_call_a_config_holds_no_settings") {
    CHECK(holds_settings({{"depth", 10}, {"model_type", "wrn"}}));
    CHECK_FALSE(holds_settings({{"model_type", "wrn"}}));
    CHECK_FALSE(holds_settings(nlohmann::json::object()));
    CHECK_FALSE(holds_settings("depth"));
    CHECK_FALSE(holds_settings(nullptr));
}

TEST_CASE("a_default_is_a_value_that_the_flag_takes") {
    for (const std::string& name : recipe_names())
        for (const Setting& s : settings_table()) {
            const auto value = s.get(recipe(name));
            if (!s.note.empty() || value.dump() == "\"\"") continue;  // stands for something else
            std::string text = value.is_string() ? value.get<std::string>() : value.dump();
            if (value.is_boolean()) text = value.get<bool>() ? "on" : "off";
            if (value.is_array()) {
                text = value.empty() ? "none" : "";
                for (const auto& epoch : value) text += (text.empty() ? "" : ",") + epoch.dump();
            }
            CAPTURE(s.key);
            CHECK(meaning(s.key, text) == value.dump());
        }
}

TEST_CASE("a_number_is_what_a_person_means_by_it_or_an_error") {
    for (const Setting& s : settings_table()) {
        const auto value = s.get(Settings{});
        if (!value.is_number() && s.key != "split_seed") continue;
        CAPTURE(s.key);
        for (const char* text : {"", " ", "x", "10x", "0x10", "nan", "inf", "-inf", "1,5", "1 ", " 1", "1e400", "--1", "+-1", "+", "1_0"}) {
            CAPTURE(text);
            CHECK(refused(s.key, text));
        }
        if (!counts(s)) continue;
        for (const char* text : {"1e3", "8.0", "1.5", "99999999999999999999999"}) CHECK(refused(s.key, text));
    }
    CHECK(meaning("lr", ".1") == "0.1");
    CHECK(meaning("lr", "+0.1") == "0.1");
    CHECK(meaning("lr", "1E-4") == "0.0001");
    CHECK(meaning("buffer_size", "010") == "10");  // no octal
    CHECK(meaning("buffer_size", "+7") == "7");
    CHECK(meaning("seed", "18446744073709551615") == "18446744073709551615");
    CHECK(refused("seed", "-1"));
}

TEST_CASE("a_flag_out_of_range_is_refused_by_the_name_it_was_given") {
    CHECK(meaning("lr_decay", "2", "--decay_rate").starts_with("error: --decay_rate is 2 "));
    CHECK(refused("width", "0"));
    CHECK(refused("ema", "1.5"));
    CHECK(refused("iterations", "-1"));  // config.json may hold it
    Settings s;
    row("iterations").set(s, -1);
    CHECK_NOTHROW(row("iterations").check(s));
}

TEST_CASE("what_is_done_to_the_images_of_p_of_x_has_four_names_and_the_two_values_of_old_runs") {
    for (const char* value : {"off", "flip", "crop", "on"}) CHECK(meaning("gen_augment", value) == "\"" + std::string(value) + "\"");
    CHECK(refused("gen_augment", "both"));
    CHECK(refused("gen_augment", ""));
    Settings s;
    row("gen_augment").set(s, true);
    CHECK(s.gen_augment == Augment::both);
    row("gen_augment").set(s, false);
    CHECK(s.gen_augment == Augment::off);
    row("gen_augment").set(s, "flip");
    CHECK(s.gen_augment == Augment::flip);
    CHECK_THROWS_AS(row("gen_augment").set(s, 1), nlohmann::json::exception);
    CHECK_THROWS_AS(row("gen_augment").set(s, "sideways"), InputError);
}

TEST_CASE("the_authors_values_are_understood") {
    CHECK(meaning("warmup_iterations", "-1", "--warmup_iters") == "0");
    CHECK(meaning("labels_per_class", "-1", "--labels_per_class") == "0");
    CHECK(meaning("labels_per_class", "4", "--labels_per_class") == "4");
    CHECK(meaning("init", "gm") == "\"informative\"");
    CHECK(meaning("init", "u") == "\"uniform\"");
    CHECK(meaning("lr_milestones", "60,120") == "[60,120]");
    CHECK(meaning("lr_milestones", "none") == "[]");
    for (const char* wrong : {"60,,120", "60,", ",60", "", "60;120", "0", "5,x"}) CHECK(refused("lr_milestones", wrong));
    CHECK(meaning("lr_decay", "0.3,0.3", "--decay_rate") == "0.3");
    CHECK(meaning("lr_decay", "0.3,0.2", "--decay_rate").starts_with("error: --decay_rate "));
    CHECK(refused("lr_decay", "0,3"));
}

}  // namespace jem
