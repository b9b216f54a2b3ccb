// A method of one's own as JSON: what a configuration may hold, what it must not, and that settings go by it.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/files/json.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/settings.h"
#include "tests/error_of.h"

namespace jem {
namespace {

nlohmann::json parsed(const std::string& text) {
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    REQUIRE_MESSAGE(!json.is_discarded(), text);
    return json;
}

// The method of a text, all of whose single quotes are double ones.
Method read(std::string text) {
    for (char& c : text)
        if (c == '\'') c = '"';
    return method_of_json(parsed(text));
}

// With one step.
Method with_step(const std::string& step) { return read("{'steps': [" + step + "]}"); }
Method with_objective(const std::string& objective) {
    return with_step("{'term': 't', 'batch': 'real', 'objectives': [" + objective + "]}");
}

}  // namespace

TEST_CASE("the_method_of_every_recipe_and_variant_reads_back_as_it_was") {
    std::vector<Settings> all;
    for (const std::string& name : recipe_names()) all.push_back(recipe(name));
    Settings s = recipe("sada-jem");
    s.class_conditional = ClassConditional::loss;
    s.p_x_y_weight = 1.0 / 3;
    all.push_back(s);
    s = recipe("eb-jdat");
    s.attack_objective = AttackObjective::authors;
    all.push_back(s);
    for (const Settings& settings : all) {
        INFO(settings.recipe);
        const Method method = method_of(settings);
        const Method back = method_of_json(parsed(to_json(method).dump()));
        CHECK(to_json(back) == to_json(method));
        CHECK(with_weights(back, settings) == method);
        for (const auto& step : method.steps)  // so that flags go on working
            if (const auto* term = std::get_if<TermSpec>(&step))
                for (const ObjectiveSpec& o : term->objectives) CHECK(o.weight == weight_by(settings, o.setting));
    }
}

TEST_CASE("keys_that_are_left_out_are_defaults") {
    const Method m = read("{'steps': [{'chain': 'c'}, {'term': 't', 'batch': 'chain', 'objectives': [{'name': 'n'}]}]}");
    Method want;
    want.steps = {ChainSpec{.name = "c"}, TermSpec{.name = "t", .batch = BatchOf::chain, .objectives = {{.name = "n"}}}};
    CHECK(m == want);
    const ChainSpec c;
    CHECK(c.makes == BatchOf::chain);
    CHECK(c.climbs == ChainObjective::lse);
    CHECK(c.stepper == ChainStepper::sgld);
    CHECK(ObjectiveSpec{}.weight == 1);
}

TEST_CASE("every_key_of_a_method_says_what_it_says") {
    const Method m = read(
        "{'running_statistics': true, 'nesterov': true, 'chains_take_labels': true, 'attacks_start_apart': false, 'steps': ["
        "{'chain': 'a b', 'makes': 'labelled-chain', 'climbs': 'class-logit', 'stepper': 'normalised', 'head': 'linear', "
        "'evaluation_mode': true}, {'term': 'c_d', 'batch': 'labelled-chain', 'head': 'linear', 'objectives': [{'name': 'x', 'weight': "
        "0.25}, "
        "{'name': 'y', 'weight': 'rho'}]}]}");
    Method want;
    want.running_statistics = want.nesterov = want.chains_take_labels = true;
    want.attacks_start_apart = false;
    want.steps = {
        ChainSpec{.name = "a b",
                  .makes = BatchOf::labelled_chain,
                  .climbs = ChainObjective::class_logit,
                  .head = Head::energy,
                  .stepper = ChainStepper::normalised,
                  .evaluation_mode = true},
        TermSpec{.name = "c_d", .batch = BatchOf::labelled_chain, .objectives = {{"x", 0.25, ""}, {"y", 1, "rho"}}, .head = Head::energy}};
    CHECK(m == want);
}

TEST_CASE("what_is_no_method_is_refused_with_its_place_and_what_would_do") {
    const auto refused = [](const std::function<void()>& call, const std::vector<std::string>& parts) {
        const std::string text = error_of(call);
        check_contains(text, parts);
        check_contains(text, {" (", "). "});
    };
    refused([] { read("[]"); }, {"\"method\"", "array", "{...}"});
    refused([] { read("null"); }, {"\"method\"", "null"});
    refused([] { read("{}"); }, {"\"steps\""});
    refused([] { read("{'steps': {}}"); }, {"\"steps\"", "object"});
    refused([] { read("{'steps': [], 'stepz': 1}"); }, {"\"stepz\"", "known: steps"});
    refused([] { read("{'steps': [], 'nesterov': 1}"); }, {"\"nesterov\"", "true or false"});
    refused([] { with_step("7"); }, {"step 1", "neither"});
    refused([] { with_step("{}"); }, {"step 1", "neither"});
    refused([] { with_step("{'chain': 'a', 'term': 'b'}"); }, {"step 1", "both"});
    refused([] { with_step("{'chain': 'a', 'climb': 'lse'}"); }, {"step 1", "\"climb\"", "known: chain makes climbs"});
    refused([] { with_step("{'chain': 7}"); }, {"\"chain\" is 7"});
    for (const char* name : {"", "a/b", "\\u001b[2J", "\\n", "\xC3\xA9", "a name of many, many letters, too many of them"})
        refused([&] { with_step("{'chain': '" + std::string(name) + "'}"); }, {"step 1", "1 to 40 letters"});
    refused([] { with_step("{'chain': 'a', 'makes': 'samples'}"); },
            {"(a)", "\"samples\"", "labelled real chain labelled-chain adversarial"});
    refused([] { with_step("{'chain': 'a', 'climbs': 'ce'}"); }, {"\"ce\"", "lse cross-entropy class-logit class-energy apart"});
    refused([] { with_step("{'chain': 'a', 'stepper': []}"); }, {"\"stepper\"", "array"});
    refused([] { with_step("{'chain': 'a', 'stepper': 'adam'}"); }, {"\"adam\"", "sgld attack normalised"});
    refused([] { with_step("{'chain': 'a', 'head': 'energy'}"); }, {"\"energy\"", "lse linear"});
    refused([] { with_step("{'chain': 'a', 'evaluation_mode': 'on'}"); }, {"\"evaluation_mode\"", "true or false"});
    refused([] { with_step("{'term': 'a', 'objectives': []}"); }, {"no \"batch\""});
    refused([] { with_step("{'term': 'a', 'batch': 'fake', 'objectives': []}"); }, {"\"fake\""});
    refused([] { with_step("{'term': 'a', 'batch': 'real'}"); }, {"no \"objectives\""});
    refused([] { with_objective("'energy-real'"); }, {"objective 1 of step 1", "{...}"});
    refused([] { with_objective("{'weight': 1}"); }, {"no \"name\""});
    refused([] { with_objective("{'name': 'x', 'weight': true}"); }, {"\"weight\" is true"});
    refused([] { with_objective("{'name': 'x', 'weight': null}"); }, {"\"weight\" is null"});
    refused([] { with_objective("{'name': 'x', 'weight': 'p_z_weight'}"); }, {"p_z_weight", "no such setting"});
    refused([] { with_objective("{'name': 'x', 'weight': 'sam'}"); }, {"\"sam\"", "no number"});
    refused([] { with_objective("{'name': 'x', 'weight': 'augment'}"); }, {"\"augment\"", "no number"});
    refused([] { with_objective("{'name': 'x', 'weights': 1}"); }, {"\"weights\"", "known: name weight"});
}

TEST_CASE("a_configuration_of_any_size_and_depth_is_refused_in_a_line") {
    std::string steps;
    for (int i = 0; i < 1000000; ++i) steps += i == 0 ? "{}" : ",{}";
    const std::string deep = std::string(100000, '[') + std::string(100000, ']');
    for (const std::string& text :
         {"{\"steps\": [" + steps + "]}", "{\"steps\": [" + deep + "]}", "{\"steps\": " + deep + "}",
          "{\"steps\": [{\"chain\": " + deep + "}]}", "{\"steps\": [{\"chain\": \"" + std::string(1000000, 'x') + "\"}]}",
          "{\"" + std::string(1000000, 'x') + "\": 1}", deep}) {
        const std::string error = error_of([&] { method_of_json(parsed(text)); });
        CHECK(error.size() < 500);
        Settings s;
        const nlohmann::json config = parsed("{\"method\": " + text + "}");
        check_contains(error_of([&] { merge_json(s, config, "some.json"); }), {"In some.json: ", error});
    }
    CHECK(parse_json("{\"method\": " + deep + "}").is_discarded());  // as files are read
}

TEST_CASE("settings_carry_their_method_through_json_and_none_where_they_have_none") {
    CHECK_FALSE(to_json(recipe("sada-jem")).contains("method"));
    Settings s = recipe("jem");
    s.own_method = method_of(recipe("dat"));
    const auto json = to_json(s);
    CHECK(json.back() == to_json(*s.own_method));  // behind the settings
    for (const Settings& back : {settings_of_config(parsed(json.dump())), settings_of_run(parsed(json.dump()))}) {
        CHECK(back.recipe == "jem");
        CHECK(to_json(back) == json);
        CHECK(method_of(back) == method_of(s));
    }
    // a file's replaces one that is there, and leaves it where the file has none
    merge_json(s, parsed(R"({"lr": 0.5})"));
    CHECK(s.own_method);
    merge_json(s, {{"method", nlohmann::json(to_json(method_of(recipe("softmax"))))}});
    CHECK(method_of(s).steps.size() == 1);
}

TEST_CASE("what_settings_say_of_a_run_follows_from_its_own_method") {
    Settings s = recipe("sada-jem");
    s.batch_size = 11, s.gen_batch_size = 7;
    s.own_method = method_of(recipe("softmax"));
    CHECK_FALSE(s.generates());
    CHECK_FALSE(s.samples());
    CHECK(s.images_per_iteration() == 11);
    s.recipe = "softmax", s.p_x_weight = 0;
    Method m = method_of(recipe("sada-jem"));
    m.steps.pop_back();
    s.own_method = m;
    CHECK_FALSE(s.samples());  // its weights are p_x_weight
    s.p_x_weight = 1;
    CHECK(s.samples());
    CHECK(s.images_per_iteration() == 7);
    CHECK(title_of(s) != title_of(recipe("softmax")));
}

TEST_CASE("what_weighs_nothing_is_no_part_of_the_method") {
    for (const std::string& name : recipe_names()) {
        if (name == "dat" || name == "igebm") continue;  // what they say of all passes and of labels goes with p(x)
        INFO(name);
        for (double Settings::*weight : {&Settings::p_x_weight, &Settings::p_y_given_x_weight, &Settings::attack_weight}) {
            Settings s = recipe(name), own = s;
            own.own_method = method_of(s);
            s.*weight = own.*weight = 0;
            CHECK(method_of(own) == method_of(s));
        }
    }
}

}  // namespace jem
