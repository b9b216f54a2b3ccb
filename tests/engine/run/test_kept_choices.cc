#include "engine/run/kept_choices.h"

#include <doctest/doctest.h>

#include "tests/temp_folder.h"
#include "tests/thread_ranks.h"

namespace jem {

TEST_CASE("a_device_that_chooses_by_rule_leaves_no_file_of_choices") {
    const TempFolder folder;
    const auto device = make_cpu_device({.threads = 1});
    int planned = 0;
    CHECK(plan_as_kept(*device, folder.path() / "run" / "convolutions.json", [&] { ++planned; }).empty());
    CHECK(planned == 1);
    CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("where_planning_fails_on_one_rank_all_leave") {
    on_ranks(2, [](Ranks& ranks) {
        const auto device = make_cpu_device({.threads = 1});
        device->join(ranks);
        const auto plan = [&] {
            if (ranks.rank() == 1) throw InputError("too large");
        };
        if (ranks.rank() == 1)
            CHECK_THROWS_AS(plan_as_kept(*device, "run/convolutions.json", plan), InputError);
        else
            CHECK_THROWS_AS(plan_as_kept(*device, "run/convolutions.json", plan), OtherRankFailed);
    });
}

}  // namespace jem
