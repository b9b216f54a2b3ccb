// What a test may ask of the emulated machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_host {

struct Settings {
    uint64_t seed = 0;    // 0: threads, blocks and streams in natural order, work as late as possible; else a random legal order
    int sm = 90;          // limits of which architecture
    int kernels_for = 0;  // the only architecture that the program has kernels for; 0: any
    size_t memory_bytes = size_t{1} << 30;  // of each device
    size_t used_by_others = 0;
    int devices = 1;
    int driver = 1000000;         // CUDA version that the driver is for, as 1000 * major + 10 * minor; 0: there is no driver
    bool busy = false;            // another process holds the device for itself
    bool sees_lost_ranks = true;  // NCCL notices when another rank dies, as over a network; through shared memory it does not
};

// A new machine; everything of the old one is gone. Not while anyone still holds something of the old one.
void reset(const Settings& settings);

std::string last_report();  // the full text behind the last error code, "" if none
size_t live_objects();      // allocations, streams, events, graphs not yet destroyed
uint64_t launches();        // kernels executed since reset; the machine's clock, too: each takes a millisecond
// What libraries that stand on the runtime were asked for and would answer by a hang or worse: a line each, since reset.
std::string misuses();
void note_misuse(const std::string& text);  // any thread

// ThreadSanitizer's reports so far; always 0 in other builds.
uint64_t races();
// What this build looks for: races (ThreadSanitizer), reads of device memory that nobody wrote (others show them as NaN).
bool checks_races();
bool checks_reads();
bool checks_bounds();    // AddressSanitizer: at the very access
bool checks_accesses();  // any of the three: ten times slower

// Nobody's bytes within an allocation: a kernel that changes them is reported.
void forbid(void* device, size_t bytes);
// As if nobody had ever written these bytes: NaN, each another one. Waits for the device.
void forget(void* device, size_t bytes);

}  // namespace cuda_on_host
