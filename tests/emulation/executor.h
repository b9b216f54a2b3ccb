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
};

// Runs all blocks; "" or what went wrong and where. A kernel that went wrong is abandoned in the middle.
std::string run_kernel(const Kernel& kernel, std::mt19937_64* random);

bool inside_kernel();
// The thread that runs goes on, its kernel is reported as wrong. For kernels that are part of the emulation.
void fail_kernel(const std::string& what);

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
