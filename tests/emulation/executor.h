// Between the two halves of the emulation: executor.cc runs one kernel, runtime.cc decides when.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>

#include "tests/emulation/cuda_on_host.h"

namespace cuda_on_host {

struct Kernel {
    std::string label;
    dim3 grid, block;
    size_t shared_bytes = 0;
    std::shared_ptr<const Body> body;
    int cluster = 1;  // neighbouring blocks that run at the same time
};

// Runs all blocks; "" or what went wrong and where. A kernel that went wrong is abandoned in the middle.
std::string run_kernel(const Kernel& kernel, std::mt19937_64* random);

bool inside_kernel();
// The thread that runs goes on, its kernel is reported as wrong. For kernels that are part of the emulation.
void fail_kernel(const std::string& what);

// For the instructions that work on while the thread goes on (hopper_on_host.cc). Called by kernels' threads, unwatched. A thread's number
// is that in its block, counted on through the blocks of a cluster.
struct Wait {
    virtual bool over() const = 0;         // asked at any time, by any thread
    virtual std::string what() const = 0;  // for the report of a deadlock: "at ..."
    virtual ~Wait() = default;
};
void wait_until(const Wait& wait);
void give_way();  // with a seed and by chance, others run first
// At a random time, or, without a seed, when nothing else can run.
void take_effect_later(std::function<void()> event);
// What the blocks that run at the same time share, from the first call of extension() to their end.
struct Extension {
    virtual ~Extension() = default;
    virtual std::string left_undone() const = 0;  // when all threads have ended; "" if nothing
};
std::unique_ptr<Extension>& extension();
int current_thread();
int threads_of_block();
int blocks_of_cluster();
bool block_ended(int rank);
// A block's dynamic shared memory, for kernels that do not declare it: aligned, NaN.
constexpr size_t kSharedAlign = 1024;
uint8_t* shared_memory_of(int rank);
size_t shared_bytes();
std::mt19937_64* kernel_random();  // null without a seed
void fail_kernel(int thread, const std::string& what);
[[noreturn]] void abandon_kernel();  // after fail_kernel; nothing is destroyed

struct Settings;
const Settings& settings();  // the machine's

// After a fault: makes the device memory at an address accessible, if work that may touch it is running and it was not.
bool open_for_work(const void* address);
// Text about an address for a fault: runtime.cc knows the allocations.
std::string describe(const void* address);

// A stream, or a lane of a graph: its kernels run one after another, so they may share fibers. For ThreadSanitizer a
// timeline is a thread, and publish and observe are the only order between timelines.
class Timeline {
public:
    struct Fibers;
    Timeline();
    ~Timeline();
    Timeline(const Timeline&) = delete;  // owns fibers
    Timeline& operator=(const Timeline&) = delete;
    void run(const std::function<void()>& work);
    static Fibers& fibers_of_current() { return *current_->fibers_; }

private:
    std::unique_ptr<Fibers> fibers_;
    void* tsan_ = nullptr;
    static Timeline* current_;
};

#ifdef CUDA_ON_HOST_RACE
void publish(void* token);
void observe(void* token);
void watch(bool on);
#else
inline void publish(void*) {}
inline void observe(void*) {}
inline void watch(bool) {}
#endif

// The emulation's own accesses are not the program's: unwatched everywhere but in kernels and copies.
class Unwatched {
public:
    Unwatched() { watch(false); }
    ~Unwatched() { watch(true); }
};
class Watched {
public:
    Watched() { watch(true); }
    ~Watched() { watch(false); }
};

}  // namespace cuda_on_host
