#include "engine/device/cpu/processors.h"

#include <doctest/doctest.h>
#include <omp.h>

#include "tests/temp_folder.h"

namespace jem {

TEST_CASE("the_least_quota_of_a_group_and_those_around_it_counts_in_both_versions_of_control_groups") {
    const TempFolder two;
    const auto groups = two.write("groups", "0::/outer/inner\n");
    CHECK(cpu_quota(groups, two.path()) == 0);
    two.write("outer/inner/cpu.max", "max 100000\n");
    CHECK(cpu_quota(groups, two.path()) == 0);
    two.write("outer/cpu.max", "150000 100000\n");
    CHECK(cpu_quota(groups, two.path()) == 1.5);
    two.write("outer/inner/cpu.max", "50000 100000\n");
    CHECK(cpu_quota(groups, two.path()) == 0.5);
    two.write("outer/inner/cpu.max", "no number\n");
    CHECK(cpu_quota(groups, two.path()) == 1.5);
    // in a container's own name space the path is the host's, and what is mounted is the group itself
    const TempFolder inside;
    inside.write("cpu.max", "200000 100000\n");
    CHECK(cpu_quota(inside.write("groups", "0::/system.slice/docker-1.scope\n"), inside.path()) == 2);

    const TempFolder one;
    const auto old = one.write("groups", "9:name=systemd:/a\n7:cpuacct:/b\n4:cpu,cpuacct:/job\n");
    one.write("cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
    one.write("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    CHECK(cpu_quota(old, one.path()) == 0);
    one.write("cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n");
    CHECK(cpu_quota(old, one.path()) == 2.5);
    CHECK(cpu_quota(one.path() / "nothing", one.path()) == 0);
}

TEST_CASE("threads_are_as_many_as_the_quota_keeps_busy_and_at_least_one") {
    CHECK(threads_that_pay(8, 0) == 8);
    CHECK(threads_that_pay(8, 0.5) == 1);
    CHECK(threads_that_pay(8, 1.5) == 2);
    CHECK(threads_that_pay(2, 4) == 2);
    CHECK(threads_that_pay(0.5, 0) == 1);
}

TEST_CASE("threads_that_openmp_does_not_grant_are_not_counted_on") {
    const int before = omp_get_max_threads(), levels = omp_get_max_active_levels();
    CHECK(granted_threads(2) == 2);
    omp_set_max_active_levels(0);  // as OMP_THREAD_LIMIT=1 and OMP_MAX_ACTIVE_LEVELS=0 do
    CHECK(granted_threads(2) == 1);
    CHECK(omp_get_max_threads() == 1);
    omp_set_max_active_levels(levels);
    omp_set_num_threads(before);
}

}  // namespace jem
