#include "engine/device/cpu/processors.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "engine/files/messages.h"

namespace jem {
namespace {

// Version 2: "50000 100000" or "max 100000", microseconds of a period. 0: no limit.
double quota_of_cpu_max(const std::filesystem::path& file) {
    std::ifstream in(file);
    double quota = 0, period = 0;
    return in >> quota >> period && quota > 0 && period > 0 ? quota / period : 0;
}

double quota_of_cfs(const std::filesystem::path& folder) {
    std::ifstream quota_file(folder / "cpu.cfs_quota_us"), period_file(folder / "cpu.cfs_period_us");
    double quota = 0, period = 0;  // -1: no limit
    return quota_file >> quota && period_file >> period && quota > 0 && period > 0 ? quota / period : 0;
}

// A group's path and those of the groups it lies in, up to the mounted one: in a container's name space paths may be of the host.
std::vector<std::filesystem::path> with_parents(const std::filesystem::path& mounted, const std::filesystem::path& group) {
    std::vector<std::filesystem::path> all;
    for (std::filesystem::path p = group.relative_path(); !p.empty(); p = p.parent_path()) all.push_back(mounted / p);
    all.push_back(mounted);
    return all;
}

bool names_cpu(const std::string& controllers) {
    std::istringstream in(controllers);
    for (std::string name; std::getline(in, name, ',');)
        if (name == "cpu") return true;
    return false;
}

// Several devices of a process find the same.
void tell_once(const std::string& text) {
    static std::mutex mutex;
    static std::set<std::string> told;
    const std::lock_guard lock(mutex);
    if (told.insert(text).second) tell(text);
}

}  // namespace

std::set<int> physical_cores() {
    cpu_set_t allowed;
    std::set<int> cores;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream siblings("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        int first = cpu;
        siblings >> first;  // "0,64" or "0-1"
        cores.insert(siblings ? first : cpu);
    }
    return cores;
}

double cpu_quota(const std::filesystem::path& own_groups, const std::filesystem::path& mounted) {
    double least = 0;
    const auto limit = [&](double quota) {
        if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    };
    std::ifstream in(own_groups);
    for (std::string line; std::getline(in, line);) {  // "4:cpu,cpuacct:/path", of version 2 "0::/path"
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
        if (controllers.empty()) {
            for (const char* where : {"", "unified"})
                for (const auto& folder : with_parents(mounted / where, group)) limit(quota_of_cpu_max(folder / "cpu.max"));
        } else if (names_cpu(controllers)) {
            for (const std::string& where : {std::string("cpu"), controllers})
                for (const auto& folder : with_parents(mounted / where, group)) limit(quota_of_cfs(folder));
        }
    }
    return least;
}

int threads_that_pay(double cores, double quota) {
    const double most = quota > 0 ? std::min(cores, std::ceil(quota)) : cores;
    return std::max(1, static_cast<int>(most + 1e-9));
}

int granted_threads(int wanted) {
    omp_set_dynamic(0);
    int granted = 1;
#pragma omp parallel num_threads(wanted)
#pragma omp single
    granted = omp_get_num_threads();
    if (granted < wanted)
        tell_once("OpenMP grants " + std::to_string(granted) + " of " + std::to_string(wanted) +
                  " threads (OMP_THREAD_LIMIT, or another of its limits): that many are used.");
    const int processors = omp_get_num_procs();
    if (granted > processors)
        tell_once(std::to_string(granted) + " threads share " + std::to_string(processors) +
                  (processors == 1 ? " processor" : " processors") +
                  " (they wait for each other, which can take a hundred times as long). Give --threads " + std::to_string(processors) +
                  ", or leave it out.");
    omp_set_num_threads(granted);
    return granted;
}

}  // namespace jem
