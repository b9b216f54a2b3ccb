// What is chosen by time, remembered from run to run and kept by each.
#include "engine/device/choices.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "tests/temp_folder.h"
#include "tests/told.h"

namespace jem {
namespace {

const std::string kMachine = "GPU | library 1";
const PlanChoice kOne{.choice = "library eng1 k2=3", .seconds = 1e-3}, kOther{.choice = "bias and sums", .seconds = 2e-3};
const std::vector<std::string> kDamaged = {"",
                                           "{\"format\": 2, \"cho",
                                           "[1, 2]",
                                           "{\"format\": 99}",
                                           "{\"format\": {}}",
                                           "{\"format\": 1e300}",
                                           R"({"format": 2, "choices": {"a": {"choice": 3, "seconds": 1}}})"};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("choices_come_back_from_the_file_other_processes_ones_stay_and_a_damaged_file_counts_as_empty") {
    const TempFolder folder;
    const std::string file = (folder.path() / "deep" / "plans.json").string();
    {
        const Told told;
        Choices choices(kMachine, file), at_the_same_time(kMachine, file);
        CHECK(!choices.find("a"));
        choices.remember("a", kOne);
        CHECK(choices.find("a") == kOne);
        CHECK(choices.save());
        at_the_same_time.remember("b", kOther);
        CHECK(at_the_same_time.save());
        CHECK(told.lines.empty());
    }
    Choices again(kMachine, file);
    CHECK(again.find("a") == kOne);
    CHECK(again.find("b") == kOther);
    CHECK(!Choices("GPU | library 2", file).find("a"));
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path() / "deep"), {}) == 1);  // no temporary file is left

    for (const std::string& damaged : kDamaged) {
        folder.write("deep/plans.json", damaged);
        const Told told;
        Choices choices(kMachine, file);
        REQUIRE(told.lines.size() == 1);
        CHECK(contains(told.lines[0], "ignored (the file is damaged)"));
        CHECK(!choices.find("a"));
        choices.remember("a", kOne);
        CHECK(choices.save());
        CHECK(Choices(kMachine, file).find("a") == kOne);
    }

    const Told told;
    folder.write("file", "");
    Choices nowhere(kMachine, (folder.path() / "file" / "plans.json").string());
    nowhere.remember("a", kOne);
    CHECK(!nowhere.save());
    REQUIRE(told.lines.size() == 1);
    CHECK(contains(told.lines[0], "could not be written"));
    CHECK(nowhere.find("a") == kOne);
    Choices forgetful(kMachine, "");
    forgetful.remember("a", kOne);
    CHECK(forgetful.save());
}

TEST_CASE("a_run_s_choices_come_before_the_shared_ones_and_hold_all_that_it_used") {
    const TempFolder folder;
    const std::string file = (folder.path() / "plans.json").string();
    std::string kept;
    {
        Choices run(kMachine, file);
        run.remember("a", kOne);
        run.remember_for_run("b", kOther);
        run.save();
        kept = run.text();
        Choices later(kMachine, file);
        CHECK(later.find("a") == kOne);
        CHECK(!later.find("b"));  // another run's own
        later.remember("a", kOther);
        later.save();
    }
    const Told told;
    Choices resumed(kMachine, file);
    resumed.keep(kept, "run");
    CHECK(resumed.find("a") == kOne);
    CHECK(resumed.find("b") == kOther);
    CHECK(!resumed.find("c"));
    CHECK(resumed.departure().empty());
    CHECK(resumed.text() == kept);
    CHECK(told.lines.empty());
    resumed.is_gone("a");
    resumed.forget("a");
    CHECK(!resumed.find("a"));
    resumed.is_gone("b");
    REQUIRE(told.lines.size() == 1);  // once
    CHECK(resumed.departure() == told.lines[0]);
    CHECK(contains(told.lines[0], kOne.choice + ", which the run keeps, is gone"));
}

TEST_CASE("damaged_choices_of_a_run_are_told_in_one_line_that_names_the_file") {
    for (const std::string& damaged : kDamaged) {
        const Told told;
        Choices choices(kMachine, "");
        choices.keep(damaged, "run/convolutions.json");
        REQUIRE(told.lines.size() == 1);
        CHECK(contains(told.lines[0], "run/convolutions.json are unknown (the file is damaged). They are chosen anew"));
        CHECK(!contains(told.lines[0], "\n"));
        CHECK(choices.departure() == told.lines[0]);
        CHECK(!choices.find("a"));
        choices.remember("a", kOne);
        Choices resumed(kMachine, "");
        resumed.keep(choices.text(), "run/convolutions.json");
        CHECK(resumed.find("a") == kOne);
        CHECK(resumed.departure().empty());
    }
}

}  // namespace jem
