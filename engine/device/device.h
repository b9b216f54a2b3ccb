// A machine that runs ops: memory, convolution plans, recording. Implemented by cpu/, reference/ and cuda/.
// Calls are coarse: the virtual dispatch costs nothing at this grain, and engine and models are compiled once for all devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/device/convolution.h"
#include "engine/device/linear.h"
#include "engine/ranks/communicator.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "kernels/work.h"

namespace jem {

// Something that must not happen while a phase is being recorded (allocation, planning, synchronisation, read back).
class CaptureError : public std::logic_error {
public:
    using std::logic_error::logic_error;
};

// One allocation, freed with it.
class Buffer {
public:
    virtual ~Buffer() = default;
    virtual std::byte* data() = 0;
    virtual size_t bytes() const = 0;
};

// A recorded phase. Replaying allocates nothing and decides nothing.
class StepGraph {
public:
    virtual ~StepGraph() = default;
    virtual void replay() = 0;
    virtual int64_t launches() const = 0;
};

class Choices;

class Device {
public:
    virtual ~Device() = default;

    virtual std::string name() const = 0;         // "cpu", "reference", "cuda"
    virtual std::string description() const = 0;  // the machine, for people
    virtual DType real_type() const = 0;          // parameters, gradients, statistics, images, logits
    virtual DType activation_type() const = 0;
    virtual int64_t channel_block(int64_t channels) const = 0;  // of an activation with so many channels
    // How many images a pass takes at a time best, where nothing else decides it, and at most how many; of a network with so many weights,
    // which makes so many activations of an image.
    virtual int64_t best_batch(int64_t weights, int64_t activations, int64_t most) const {
        (void)weights, (void)activations;
        return most;
    }

    virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;  // zeroed, aligned to 4096 bytes or more
    virtual std::unique_ptr<ConvPlan> plan_convolution(const ConvShape& shape, const ConvOptions& options) = 0;
    virtual std::unique_ptr<LinearPlan> plan_linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) = 0;
    // What plans choose by time (choices.h); null where they choose by rule, and always the same.
    virtual Choices* choices() { return nullptr; }
    virtual Ops& ops() = 0;

    // Recording: between the two calls, ops are noted instead of run.
    virtual void begin_capture() = 0;
    virtual std::unique_ptr<StepGraph> end_capture() = 0;
    virtual void abandon_capture() noexcept = 0;

    // Counting: between the two calls, ops are neither run nor noted, so that operands need no memory. Plans memory
    // (launches() is the clock of lifetimes) and answers `plan`.
    virtual void begin_dry_run() = 0;
    virtual WorkReport end_dry_run() = 0;
    virtual int64_t launches() const = 0;  // queued so far, in whatever mode

    // A side queue, where the device has one: what is queued between begin_side and end_side waits for all that was queued before, and may
    // run beside what is queued after, until join_side. Through Memory, which keeps the two apart.
    virtual bool has_side_queue() const { return false; }
    virtual void begin_side() {}
    virtual void end_side() noexcept {}
    virtual void join_side() {}

    // Time by label, from here to the second call. On a GPU only what is queued, not what a graph replays.
    virtual void begin_profile() = 0;
    virtual WorkReport end_profile() = 0;

    // The name of what is queued between the two calls, for a profiler's timeline (a string literal).
    virtual void push_range(const char*) {}
    virtual void pop_range() noexcept {}

    virtual void upload(void* to, const void* from, size_t bytes) = 0;    // waits
    virtual void download(void* to, const void* from, size_t bytes) = 0;  // waits
    // Queued. The device keeps the bytes, at most kReadBackBytes, until they are taken by the ticket it returns: whatever an
    // exception ends meanwhile, nothing is written to memory whose owner has gone. It keeps the last kReadBacks.
    virtual int64_t read_back(const void* from, size_t bytes) = 0;
    virtual void take(int64_t ticket, void* to) = 0;                  // waits for it; what was queued later may still run
    static constexpr size_t kReadBackBytes = 1024, kReadBacks = 4;    // the trainer has two under way
    virtual void copy(void* to, const void* from, size_t bytes) = 0;  // on the device, queued
    virtual void synchronize() = 0;
    virtual bool queues() const { return false; }  // whether a call returns before its work is done

    // Makes this device the rank's of a job: every rank calls it, before anything is planned. Whoever never does is alone.
    virtual void join(Ranks& ranks);
    Communicator& communicator() { return *communicator_; }

protected:
    std::unique_ptr<Communicator> communicator_ = std::make_unique<Communicator>(lone_rank());
};

class Range {
public:
    Range(Device& device, const char* name) : device_(device) { device_.push_range(name); }
    Range(const Range&) = delete;  // ends once
    Range& operator=(const Range&) = delete;
    ~Range() { device_.pop_range(); }

private:
    Device& device_;
};

// Records what `body` queues; an exception leaves the device as it was.
template <class Body>
std::unique_ptr<StepGraph> capture(Device& device, Body&& body) {
    device.begin_capture();
    try {
        body();
    } catch (...) {
        device.abandon_capture();
        throw;
    }
    return device.end_capture();
}

inline void Device::join(Ranks& ranks) {
    if (ranks.size() > 1) throw InputError("--device " + name() + " works in one process only. Start one.");
}

// The oracle: plain loops, one thread; type f32 or f64.
std::unique_ptr<Device> make_reference_device(DType type);

struct CpuOptions {
    int threads = 0;                // 0: one a physical core
    DType activation = DType::f32;  // or bf16: fast where cpu_has_bf16, exact everywhere
};
bool cpu_has_bf16();
// One a physical core that this process may use; those that ranks on the same machine share are split between them.
int threads_of_rank(Ranks& ranks);
std::unique_ptr<Device> make_cpu_device(const CpuOptions& options);

}  // namespace jem
