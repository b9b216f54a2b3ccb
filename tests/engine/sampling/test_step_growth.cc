#include "engine/sampling/step_growth.h"

#include <doctest/doctest.h>

namespace jem {

TEST_CASE("k_grows_by_one_when_the_mean_of_eight_iterations_reaches_the_threshold") {
    StepGrowth g;
    int64_t i = 0;
    for (; i < 7; ++i) g.look(i, 1, 0.8, 50);
    CHECK(g.steps_in(i) == 0);
    g.look(i, 0, 0.8, 50);  // the mean is 7 / 8
    CHECK(g.steps_in(7) == 0);
    CHECK(g.steps_in(8) == 0);  // runs already when the result of 7 is read
    CHECK(g.steps_in(9) == 1);
    // What the iteration between came to counts for nothing.
    g.look(8, 1, 0.8, 50);
    for (i = 9; i < 16; ++i) g.look(i, 1, 0.8, 50);
    CHECK(g.steps_in(100) == 1);
    g.look(16, 1, 0.8, 50);
    CHECK(g.steps_in(17) == 1);
    CHECK(g.steps_in(18) == 2);
}

TEST_CASE("k_waits_while_the_mean_of_the_last_eight_is_too_low_and_ends_at_its_limit") {
    StepGrowth g;
    for (int64_t i = 0; i < 100; ++i) g.look(i, 0.79, 0.8, 50);
    CHECK(g.steps_in(1000) == 0);
    for (int64_t i = 100; i < 102; ++i) g.look(i, 0.82, 0.8, 50);
    CHECK(g.steps_in(1000) == 0);  // 6 of .79, 2 of .82: .7975
    g.look(102, 0.82, 0.8, 50);    // .80125
    CHECK(g.steps_in(1000) == 1);
    for (int64_t i = 103; i < 1000; ++i) g.look(i, 1, 0.8, 3);
    CHECK(g.steps_in(2000) == 3);
}

}  // namespace jem
