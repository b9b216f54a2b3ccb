// What docs/recipes.md shows of recipes, terms and steppers of one's own is what there is, and what was tried here.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "engine/files/json.h"
#include "engine/files/output_file.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/training/own_method.h"
#include "tests/engine/training/job.h"
#include "tests/error_of.h"
#include "tests/thread_ranks.h"

namespace jem {

// tests/engine/training/example_term.cc
std::unique_ptr<Objective> low_energy(const TermContext& context);

namespace {

const std::filesystem::path kDocs = std::filesystem::path(JEM_GOLDEN_DIR) / "../../docs";
constexpr const char* kRowOfExample = R"({"low-energy", low_energy, {.loss = "loss_low", .mean = "f_low", .heeds = "energy_l2"}},)";

std::vector<NamedObjective> with_example() {
    std::vector<NamedObjective> all = objectives();
    all.push_back({"low-energy", low_energy, {.loss = "loss_low", .mean = "f_low", .heeds = "energy_l2"}});
    return all;
}

Outcome train_alone(const Settings& s, const std::vector<NamedObjective>& known, int64_t iterations) {
    const auto device = make_cpu_device({.threads = 1});
    return train(*device, lone_rank(), s, {.iterations = iterations, .known = known});
}

bool finite(const Values& values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// Of a configuration, at the size of a small job.
Settings small_job_of_config(const nlohmann::json& config) {
    Settings s = small_job_of(config.at("recipe").get<std::string>());
    merge_json(s, config);
    return s;
}

std::string page() { return read_file((kDocs / "recipes.md").string()); }

// Cells of the table under a heading, row by row.
std::vector<std::vector<std::string>> table_under(const std::string& heading) {
    const std::string text = page();
    const size_t begin = text.find("\n" + heading + "\n");
    REQUIRE_MESSAGE(begin != std::string::npos, heading);
    std::vector<std::vector<std::string>> rows;
    size_t at = text.find("\n|---", begin);
    REQUIRE(at != std::string::npos);
    for (at = text.find('\n', at + 1) + 1; text[at] == '|'; at = text.find('\n', at) + 1) {
        const std::string line = text.substr(at, text.find('\n', at) - at);
        rows.emplace_back();
        for (size_t from = 1; from < line.size();) {
            const size_t end = line.find('|', from);
            const std::string cell = line.substr(from, end - from);
            const size_t first = cell.find_first_not_of(' '), last = cell.find_last_not_of(' ');
            rows.back().push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
            from = end + 1;
        }
    }
    return rows;
}

template <class E>
void check_names(const std::string& heading) {
    INFO(heading);
    std::vector<std::string> shown, known;
    for (const auto& row : table_under(heading)) shown.push_back(row[0]);
    for (const auto& [name, value] : EnumNames<E>::all()) known.push_back("`" + name + "`");
    CHECK(shown == known);
}

}  // namespace

TEST_CASE("the_examples_of_the_page_are_files_that_train") {
    const std::string text = page();
    std::set<std::string> shown;
    for (const char* name : {"jem-adversarial", "generative"}) {
        INFO(name);
        const std::string file = read_file((kDocs / "examples" / (std::string(name) + ".json")).string());
        CHECK(text.find("```json\n" + file + "```\n") != std::string::npos);
        const Settings s = small_job_of_config(parse_json(file));
        CHECK_NOTHROW(validate(s));
        const Outcome trained = train_alone(s, objectives(), 2);
        CHECK(finite(trained.weights));
        CHECK(finite(trained.scalars));
        shown.insert(std::string(name) + ".json");
    }
    for (const auto& entry : std::filesystem::directory_iterator(kDocs / "examples"))
        CHECK(shown.contains(entry.path().filename().string()));
}

TEST_CASE("the_page_lists_all_batches_chains_and_objectives") {
    check_names<BatchOf>("### Batches");
    check_names<ChainObjective>("### What chains climb");
    check_names<ChainStepper>("### Steppers");
    std::vector<std::vector<std::string>> shown = table_under("### Objectives"), known;
    for (const NamedObjective& o : objectives())
        known.push_back({"`" + o.name + "`", o.traits.second.empty() ? "" : "`" + o.traits.second + "`", o.traits.labels ? "yes" : "",
                         "`" + o.traits.loss + "`", o.traits.heeds.empty() ? "" : "`" + o.traits.heeds + "`"});
    for (auto& row : shown) row.resize(5);  // what it is comes behind
    CHECK(shown == known);
    std::set<std::string> keys;  // of a method and of its steps
    for (const auto& row : table_under("### Keys")) keys.insert(row[0]);
    std::set<std::string> written;
    const auto json = to_json(method_of(recipe("sada-jem")));
    for (const auto& entry : json.items()) written.insert("`" + entry.key() + "`");
    for (const auto& step : json["steps"])
        for (const auto& entry : step.items()) written.insert("`" + entry.key() + "`");
    CHECK(keys == written);
}

TEST_CASE("the_page_shows_a_term_and_a_stepper_that_were_compiled_and_tried") {
    const std::string text = page();
    const std::filesystem::path tests = std::filesystem::path(JEM_GOLDEN_DIR) / "../engine";
    for (const char* file : {"training/example_term.cc", "sampling/example_stepper.cc"})
        CHECK(text.find("```cpp\n" + read_file((tests / file).string()) + "```\n") != std::string::npos);
    CHECK(text.find(kRowOfExample) != std::string::npos);
}

TEST_CASE("a_new_term_is_a_file_and_a_row_of_the_list") {
    Settings s = small_job_of("softmax");
    s.own_method = Method{};
    s.own_method->steps = {TermSpec{.name = "natural", .batch = BatchOf::labelled, .objectives = {{"low-energy", 1, ""}}}};
    s.lr = 0.01, s.momentum = 0, s.weight_decay = 0;
    check_contains(error_of([&] { checked_method(s); }), {"low-energy"});
    const Outcome out = train_alone(s, with_example(), 4);
    // f_low and loss_low in the first pass and the second, the gradient's norm and the flag
    const size_t an_iteration = 6;
    REQUIRE(out.scalars.size() == 4 * an_iteration);
    for (size_t i = 0; i < 4; ++i) {
        const double f = out.scalars[i * an_iteration], loss = out.scalars[i * an_iteration + 2];
        CHECK(loss == -f);
        CHECK(out.scalars[i * an_iteration + 5] == 0);
    }
    CHECK(out.scalars[3 * an_iteration] > out.scalars[0]);  // it makes the images natural
    s.energy_l2 = 1e3;                                      // and its setting is heeded
    const Outcome held = train_alone(s, with_example(), 4);
    CHECK(held.weights != out.weights);
    std::vector<Outcome> two(2);
    const auto train_in_f64 = [&](Ranks& ranks) {
        return train(*make_reference_device(DType::f64), ranks, s, {.iterations = 2, .known = with_example()});
    };
    on_ranks(2, [&](Ranks& ranks) { two[static_cast<size_t>(ranks.rank())] = train_in_f64(ranks); });
    check_same_everywhere(two);
    check_close("weights of two ranks", two[0].weights, train_in_f64(lone_rank()).weights, {1e-9, 1e-9});  // as test_job.cc
}

}  // namespace jem
