#include "engine/training/work_rate.h"

#include <doctest/doctest.h>

namespace jem {

TEST_CASE("a_rate_is_that_of_the_last_iterations_without_the_pauses_between_them") {
    using namespace std::chrono_literals;
    WorkRate rate;
    WorkRate::Time now{};
    rate.resume(now);
    CHECK(rate.per_second() == 0);
    for (int i = 0; i < 100; ++i) {
        rate.done(now += 100ms);
        CHECK(rate.per_second() == doctest::Approx(10));
        if (i % 7 == 0) rate.resume(now += 5s);
    }
    for (int i = 0; i < 100; ++i) rate.done(now += 10ms);
    CHECK(rate.per_second() > 40);  // most of the window is fast ones
    for (int i = 0; i < 200; ++i) rate.done(now += 10ms);
    CHECK(rate.per_second() == doctest::Approx(100));
}

}  // namespace jem
