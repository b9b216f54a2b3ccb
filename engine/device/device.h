// A machine that runs ops: memory, convolution plans, recording. Implemented by cpu/, reference/ and cuda/.
// Calls are coarse: the virtual dispatch costs nothing at this grain, and engine and models are compiled once for all devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/ranks/communicator.h"
#include "engine/settings/enums.h"
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

// Of the height and of the width; one number stands for both.
struct BothSides {
    int64_t height, width;

    constexpr BothSides(int64_t both) : height(both), width(both) {}  // meant to convert: kernel = 3
    constexpr BothSides(int64_t of_height, int64_t of_width) : height(of_height), width(of_width) {}
    auto operator<=>(const BothSides&) const = default;
    int64_t area() const { return height * width; }
    std::string text() const;  // "3", "1x7"
};

struct ConvShape {
    int64_t in_channels = 0, out_channels = 0;
    int64_t height = 0, width = 0;  // of the input
    BothSides kernel = 3, stride = 1;
    BothSides padding = {kernel.height / 2, kernel.width / 2};  // zeros at either end

    int64_t out_height() const { return (height + 2 * padding.height - kernel.height) / stride.height + 1; }
    int64_t out_width() const { return (width + 2 * padding.width - kernel.width) / stride.width + 1; }
    int64_t weight_count() const { return out_channels * kernel.area() * in_channels; }
    // 2 x multiply-adds of one image, counted as a direct convolution
    double flops() const {
        return 2.0 * static_cast<double>(weight_count()) * static_cast<double>(out_height()) * static_cast<double>(out_width());
    }
    auto operator<=>(const ConvShape&) const = default;
    std::string text() const;
};

enum class ConvInput {
    activations,  // x is of the activation type
    images,       // x is R: the network's first convolution
};

// What a forward pass may take over from the ops around it.
struct ConvFusion {
    bool activation = false;  // norm and LeakyReLU in front
    bool sums = false;        // for the statistics of the norm behind
};
// One way in which a network calls a convolution's forward pass: the ops that are around it.
struct ConvCall {
    ConvFusion around;
    bool residual = false;
};
struct ConvOptions {
    std::vector<int64_t> batches;            // the batch sizes it will be called with
    std::vector<int64_t> forward_only = {};  // others, that no backward pass has
    ConvAlgorithm algorithm = ConvAlgorithm::automatic;
    ConvInput input = ConvInput::activations;
    std::vector<ConvCall> calls = {};  // all that there will be, so that no other fusion is planned; empty: any
};

struct FusedForward {
    const NormCoefficients* norm = nullptr;  // x becomes leaky(norm(x)); null: nothing is in front
    Array centre{}, sums{};                  // R [C]; R [2, C], written: over N, H, W, of y - centre and of its square. Empty: none
};
struct FusedBackward {
    Tensor x;               // the norm's input
    NormCoefficients norm;  // its mean, scale and beta
    Array sums;             // R [2, C], written: over N, H, W, of d_z and of d_z * (x - mean)
};

// A convolution with bias, for a few batch sizes. Everything that can be decided is decided when it is made.
// Weights are R [O, H, W, I]; "prepared" is what the kernels read, in whatever layout they want, renewed once a change.
class ConvPlan {
public:
    virtual ~ConvPlan() = default;

    virtual size_t prepared_bytes() const = 0;
    virtual size_t workspace_bytes() const = 0;  // the largest of all passes and batch sizes
    // weights lie there, unchanged, until the next call.
    virtual void prepare(std::byte* prepared, Array weights, std::byte* workspace) = 0;

    // y = conv(x) + bias [+ residual]; residual may be y itself.
    virtual void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                         std::byte* workspace) = 0;
    // Which of the ops wanted around a forward pass the convolution does better itself: decided when the plan was made.
    virtual ConvFusion fuses(int64_t batch, ConvFusion wanted, bool residual) const {
        (void)batch, (void)wanted, (void)residual;
        return {};
    }
    // forward with exactly what `fuses` answered. It may round the norm otherwise than Ops::norm_leaky does, so that a value near
    // the kink may fall on the other side.
    virtual void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                               const Tensor* residual, std::byte* workspace) {
        if (with.norm != nullptr || with.sums.count > 0) throw std::logic_error("A convolution was given ops that it does not fuse.");
        forward(y, x, prepared, bias, residual, workspace);
    }
    // d_x = the gradient of x
    virtual void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) = 0;
    // The same question for the LeakyReLU that follows in the backward pass, and the sums that the norm behind it needs.
    virtual bool fuses_leaky_backward(int64_t batch) const {
        (void)batch;
        return false;
    }
    // d_z = leaky'(norm(x)) * the gradient of leaky(norm(x)); only where fuses_leaky_backward.
    virtual void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                                     std::byte* workspace) {
        (void)d_z, (void)d_y, (void)with, (void)prepared, (void)workspace;
        throw std::logic_error("A convolution was given a LeakyReLU that it does not fuse.");
    }
    // d_w [O, H, W, I] += the gradient of the weights
    virtual void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) = 0;
    // Whether the plan does norm and LeakyReLU in front of that better itself.
    virtual bool fuses_weights_activation(int64_t batch) const {
        (void)batch;
        return false;
    }
    // backward_weights of leaky(norm(x)); only where fuses_weights_activation.
    virtual void backward_weights_fused(Array d_w, const Tensor& x, const NormCoefficients& norm, const Tensor& d_y, std::byte* workspace) {
        (void)d_w, (void)x, (void)norm, (void)d_y, (void)workspace;
        throw std::logic_error("A convolution was given an activation that it does not fuse.");
    }

    struct Choice {
        std::string pass, engine;
        int64_t batch = 0;
        size_t workspace_bytes = 0;
        bool candidate = false;  // only listed: something else runs
    };
    virtual std::vector<Choice> choices() const = 0;
};

// The linear head, y = x w^T + b; x R [N, in], w R [out, in], y R [N, out].
class LinearPlan {
public:
    virtual ~LinearPlan() = default;
    virtual size_t workspace_bytes() const = 0;
    virtual void forward(const Tensor& y, const Tensor& x, Array w, Array b, std::byte* workspace) = 0;
    virtual void backward_data(const Tensor& d_x, const Tensor& d_y, Array w, std::byte* workspace) = 0;
    virtual void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) = 0;  // accumulates
    virtual std::string engine() const { return ""; }  // for people; empty where there is nothing to say
};

// A recorded phase. Replaying allocates nothing and decides nothing.
class StepGraph {
public:
    virtual ~StepGraph() = default;
    virtual void replay() = 0;
    virtual int64_t launches() const = 0;
};

class Device {
public:
    virtual ~Device() = default;

    virtual std::string name() const = 0;         // "cpu", "reference", "cuda"
    virtual std::string description() const = 0;  // the machine, for people
    virtual DType real_type() const = 0;          // parameters, gradients, statistics, images, logits
    virtual DType activation_type() const = 0;
    virtual int64_t channel_block(int64_t channels) const = 0;  // of an activation with so many channels

    virtual std::unique_ptr<Buffer> allocate(size_t bytes) = 0;  // zeroed, aligned to 4096 bytes or more
    virtual std::unique_ptr<ConvPlan> plan_convolution(const ConvShape& shape, const ConvOptions& options) = 0;
    virtual std::unique_ptr<LinearPlan> plan_linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) = 0;
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
