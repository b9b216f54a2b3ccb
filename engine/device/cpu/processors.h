// How many threads pay: what this process may use of the machine, and what OpenMP gives it.
#pragma once

#include <filesystem>
#include <set>

namespace jem {

// Cores that this process may use, by their first hyper-thread.
std::set<int> physical_cores();

// Processors' worth of time that the control groups of this process grant (docker --cpus; versions 1 and 2), the least over a group and
// those it lies in; 0: no limit. own_groups: as /proc/self/cgroup; mounted: where the groups' files lie.
double cpu_quota(const std::filesystem::path& own_groups = "/proc/self/cgroup", const std::filesystem::path& mounted = "/sys/fs/cgroup");

// A thread a core, but no more than the quota keeps busy; at least 1.
int threads_that_pay(double cores, double quota);

// How many of so many threads OpenMP really starts: its own limits (OMP_THREAD_LIMIT, nesting) may leave fewer, for which whoever counts on
// the others would wait for ever. Makes it the number of all parallel regions to come, oneDNN's among them. Tells where it is not what was
// wanted, and where it is more than the processors there are.
int granted_threads(int wanted);

}  // namespace jem
