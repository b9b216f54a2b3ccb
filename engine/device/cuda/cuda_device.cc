#include "engine/device/cuda/cuda_device.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/nccl_communicator.h"
#include "engine/device/cuda/owned.h"
#include "engine/device/cuda/queue.h"
#include "engine/device/cuda/runtime.h"
#include "engine/device/out_of_memory.h"

namespace jem {
namespace {

using cuda::check;
using cuda::Event;
using cuda::PinnedMemory;
using cuda::Stream;

constexpr int kMinimumArchitecture = 75;
constexpr size_t kStagingBytes = size_t{8} << 20;  // pinned, for copies that wait

class CudaBuffer final : public Buffer {
public:
    CudaBuffer(void* data, size_t bytes) : data_(static_cast<std::byte*>(data)), bytes_(bytes) {}
    CudaBuffer(const CudaBuffer&) = delete;  // owns its memory
    CudaBuffer& operator=(const CudaBuffer&) = delete;
    ~CudaBuffer() override {
        if (data_ != nullptr) cudaFree(data_);
    }
    std::byte* data() override { return data_; }
    size_t bytes() const override { return bytes_; }

private:
    std::byte* data_;
    size_t bytes_;
};

class CudaGraph final : public StepGraph {
public:
    CudaGraph(CudaQueue& queue, cudaGraphExec_t executable, int64_t launches)
        : queue_(queue), executable_(executable), launches_(launches) {}
    CudaGraph(const CudaGraph&) = delete;  // owns the executable graph
    CudaGraph& operator=(const CudaGraph&) = delete;
    ~CudaGraph() override { cudaGraphExecDestroy(executable_); }

    void replay() override {
        if (queue_.mode() != CudaQueue::Mode::eager) throw CaptureError("replay of a graph (another one is being recorded).");
        check(cudaGraphLaunch(executable_, queue_.stream()), "launch a graph");
        queue_.replayed(launches_);
    }
    int64_t launches() const override { return launches_; }

private:
    CudaQueue& queue_;
    cudaGraphExec_t executable_;
    int64_t launches_;
};

// What needs a GPU. Absent in a device that only plans.
struct Hardware {
    Stream stream;
    struct Side {
        Stream stream;
        Event left{cudaEventDisableTiming}, returned{cudaEventDisableTiming};
    };
    std::optional<Side> side;
    PinnedMemory staging{kStagingBytes};
    PinnedMemory read_back{Device::kReadBacks * Device::kReadBackBytes};
    struct Pending {
        cudaEvent_t done = nullptr;
        int64_t ticket = 0;  // 0: none
        size_t bytes = 0;
    };
    std::array<Pending, Device::kReadBacks> pending;
    CudaBuffer partials{[] {
                            void* p = nullptr;
                            check(cudaMalloc(&p, kCudaPartials * sizeof(double)), "get memory on the GPU");
                            return p;
                        }(),
                        kCudaPartials * sizeof(double)};

    explicit Hardware(bool with_side) {
        if (with_side) side.emplace();
        for (Pending& p : pending) check(cudaEventCreateWithFlags(&p.done, cudaEventDisableTiming), "create an event");
    }
    Hardware(const Hardware&) = delete;  // owns the events
    Hardware& operator=(const Hardware&) = delete;
    ~Hardware() {
        cudaStreamSynchronize(stream.get());  // nothing may still use what is freed now
        if (side) cudaStreamSynchronize(side->stream.get());
        for (const Pending& p : pending)
            if (p.done != nullptr) cudaEventDestroy(p.done);
    }
};

class CudaDevice final : public Device {
public:
    CudaDevice(const GpuDescription& gpu, const CudaOptions& options, std::unique_ptr<Hardware> hardware, const MakeCudaPlans& make_plans)
        : gpu_(gpu),
          options_(options),
          hardware_(std::move(hardware)),
          queue_(hardware_ ? hardware_->stream.get() : nullptr, hardware_ ? side_of(*hardware_) : CudaQueue::Side{}),
          ops_(make_cuda_ops(queue_, hardware_ ? reinterpret_cast<double*>(hardware_->partials.data()) : nullptr, activation_type())),
          plans_(make_plans(queue_, *ops_, gpu_)) {
        queue_.predict_by({.bandwidth = gpu_.bandwidth, .flops = gpu_.peak_flops(options_.precision)});
    }

    CudaDevice(const CudaDevice&) = delete;  // what others hold refers to it
    CudaDevice& operator=(const CudaDevice&) = delete;
    ~CudaDevice() override { communicator_.reset(); }  // before the stream that it works on

    std::string name() const override { return "cuda"; }
    std::string description() const override {
        return gpu_.title + ", " + text_of_bytes(gpu_.memory_bytes) + ", sm_" + std::to_string(gpu_.sm) + ", " +
               precision_name(options_.precision) + (hardware_ ? "" : " (planned only: no GPU was used)");
    }
    DType real_type() const override { return DType::f32; }
    DType activation_type() const override { return options_.precision == CudaPrecision::bf16 ? DType::bf16 : DType::f32; }
    int64_t channel_block(int64_t channels) const override { return channels; }

    std::unique_ptr<Buffer> allocate(size_t bytes) override {
        refuse_under_capture("allocate memory");
        hardware("allocate memory");
        if (bytes == 0) return std::make_unique<CudaBuffer>(nullptr, 0);
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "ask for the GPU's free memory");
        void* p = nullptr;
        const cudaError_t status = cudaMalloc(&p, bytes);
        if (status == cudaErrorMemoryAllocation) {
            (void)cudaGetLastError();
            throw OutOfMemory(text_of_bytes(bytes) + " of GPU memory are needed, " + text_of_bytes(free) + " of " + text_of_bytes(total) +
                              " are free" + (free < total / 10 * 9 ? "; something else uses the GPU too, nvidia-smi shows what" : ""));
        }
        check(status, "get memory on the GPU");
        auto buffer = std::make_unique<CudaBuffer>(p, bytes);
        check(cudaMemsetAsync(p, 0, bytes, queue_.stream()), "clear memory");
        check(cudaStreamSynchronize(queue_.stream()), "wait for the GPU");
        return buffer;
    }
    std::unique_ptr<ConvPlan> plan_convolution(const ConvShape& shape, const ConvOptions& options) override {
        refuse_under_capture("plan a convolution");
        return plans_->convolution(shape, options);
    }
    std::unique_ptr<LinearPlan> plan_linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) override {
        refuse_under_capture("plan a linear layer");
        return plans_->linear(in, out, batches);
    }
    Choices* choices() override { return hardware_ ? &plans_->choices() : nullptr; }
    Ops& ops() override { return *ops_; }
    void join(Ranks& ranks) override {
        if (ranks.size() > 1) communicator_ = make_nccl_communicator(queue_, ranks);
    }

    void begin_capture() override {
        refuse_under_capture("begin another capture");
        hardware("record");
        check(cudaStreamBeginCapture(queue_.stream(), cudaStreamCaptureModeThreadLocal), "begin a recording");
        queue_.begin_recording();
        queue_.set_mode(CudaQueue::Mode::capture);
    }
    std::unique_ptr<StepGraph> end_capture() override {
        if (queue_.mode() != CudaQueue::Mode::capture) throw CaptureError("Cannot end a capture (none was begun).");
        queue_.set_mode(CudaQueue::Mode::eager);
        cudaGraph_t graph = nullptr;
        check(cudaStreamEndCapture(queue_.stream(), &graph), "end a recording");
        cudaGraphExec_t executable = nullptr;
        const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "make a graph executable");
        return std::make_unique<CudaGraph>(queue_, executable, queue_.recorded());
    }
    void abandon_capture() noexcept override {
        if (queue_.mode() != CudaQueue::Mode::capture) return;
        queue_.set_mode(CudaQueue::Mode::eager);
        cudaGraph_t graph = nullptr;
        if (cudaStreamEndCapture(queue_.stream(), &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
        queue_.forget_side();
        (void)cudaGetLastError();  // an invalidated recording answers an error, which is known by now
    }

    void begin_dry_run() override {
        refuse_under_capture("begin a dry run");
        queue_.set_mode(CudaQueue::Mode::dry);
        queue_.take_report();
    }
    WorkReport end_dry_run() override {
        queue_.set_mode(CudaQueue::Mode::eager);
        return queue_.take_report();
    }
    int64_t launches() const override { return queue_.launches(); }
    bool has_side_queue() const override { return options_.overlap; }
    void begin_side() override { queue_.begin_side(); }
    void end_side() noexcept override { queue_.end_side(); }
    void join_side() override { queue_.join_side(); }
    void begin_profile() override { queue_.begin_profile(); }
    WorkReport end_profile() override { return queue_.end_profile(); }

    // Through pinned memory, piece by piece: a copy from pageable memory may return before it has read it all.
    void upload(void* to, const void* from, size_t bytes) override {
        in_pieces("upload and wait", bytes, [&](size_t at, size_t n, std::byte* staging) {
            std::memcpy(staging, static_cast<const std::byte*>(from) + at, n);
            check(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, staging, n, cudaMemcpyHostToDevice, queue_.stream()), "upload");
            check(cudaStreamSynchronize(queue_.stream()), "wait for the GPU");
        });
    }
    void download(void* to, const void* from, size_t bytes) override {
        in_pieces("read back", bytes, [&](size_t at, size_t n, std::byte* staging) {
            check(cudaMemcpyAsync(staging, static_cast<const std::byte*>(from) + at, n, cudaMemcpyDeviceToHost, queue_.stream()),
                  "read back");
            check(cudaStreamSynchronize(queue_.stream()), "wait for the GPU");
            std::memcpy(static_cast<std::byte*>(to) + at, staging, n);
        });
    }
    int64_t read_back(const void* from, size_t bytes) override {
        refuse_under_capture("read back");
        Hardware& h = hardware("read back");
        if (bytes > kReadBackBytes) throw std::logic_error("A read back of " + std::to_string(bytes) + " bytes is a download.");
        const int64_t ticket = ++tickets_;
        Hardware::Pending& p = h.pending[slot(ticket)];
        p.ticket = 0;
        check(cudaMemcpyAsync(pinned(ticket), from, bytes, cudaMemcpyDeviceToHost, queue_.stream()), "read back");
        check(cudaEventRecord(p.done, queue_.stream()), "record an event");
        p.ticket = ticket;
        p.bytes = bytes;
        return ticket;
    }
    void take(int64_t ticket, void* to) override {
        refuse_under_capture("wait");
        const Hardware::Pending& p = hardware("wait").pending[slot(ticket)];
        if (ticket < 1 || p.ticket != ticket) throw std::logic_error("A read back was taken too late, or never queued.");
        check(cudaEventSynchronize(p.done), "wait for the GPU");
        std::memcpy(to, pinned(ticket), p.bytes);
    }
    void copy(void* to, const void* from, size_t bytes) override {
        if (!queue_.announce("copy", {.bytes = 2.0 * static_cast<double>(bytes)})) return;
        const cudaError_t status = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, queue_.stream());
        queue_.launched();
        check(status, "copy");
    }
    void push_range(const char* name) override { nvtxRangePushA(name); }
    void pop_range() noexcept override { nvtxRangePop(); }
    bool queues() const override { return true; }
    void synchronize() override {
        refuse_under_capture("synchronise");
        hardware("synchronise");
        check(cudaStreamSynchronize(queue_.stream()), "wait for the GPU");
    }

private:
    static CudaQueue::Side side_of(const Hardware& hardware) {
        if (!hardware.side) return {};
        const Hardware::Side& s = *hardware.side;
        return {.stream = s.stream.get(), .left = s.left.get(), .returned = s.returned.get()};
    }
    void refuse_under_capture(const char* what) const {
        if (queue_.mode() == CudaQueue::Mode::capture)
            throw CaptureError(std::string("Cannot ") + what + " (a phase is being recorded). Do it before begin_capture.");
    }
    Hardware& hardware(const char* what) const {
        if (!hardware_) throw std::logic_error(std::string("Cannot ") + what + ": this device only plans, it has no GPU.");
        return *hardware_;
    }
    static size_t slot(int64_t ticket) { return static_cast<size_t>(ticket) % kReadBacks; }
    std::byte* pinned(int64_t ticket) const { return hardware_->read_back.data() + slot(ticket) * kReadBackBytes; }
    template <class Copy>
    void in_pieces(const char* what, size_t bytes, Copy copy) {
        refuse_under_capture(what);
        std::byte* staging = hardware(what).staging.data();
        for (size_t at = 0; at < bytes; at += kStagingBytes) copy(at, std::min(kStagingBytes, bytes - at), staging);
    }

    GpuDescription gpu_;
    CudaOptions options_;
    std::unique_ptr<Hardware> hardware_;
    CudaQueue queue_;
    std::unique_ptr<Ops> ops_;
    std::unique_ptr<CudaPlans> plans_;
    int64_t tickets_ = 0;
};

std::string driver_advice(cudaError_t status) {
    switch (status) {
        case cudaErrorInsufficientDriver: {
            int driver = 0, runtime = 0;
            cudaDriverGetVersion(&driver);
            cudaRuntimeGetVersion(&runtime);
            const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
            if (driver == 0) return "There is no NVIDIA driver. Install one, or run with --device cpu.";
            return "The NVIDIA driver is for CUDA " + version(driver) + ", this program was built with " + version(runtime) +
                   ". Update the driver, or run with --device cpu.";
        }
        case cudaErrorNoDevice:
            return "The NVIDIA driver shows no GPU. Look at nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device cpu.";
        default:
            return std::string("The GPU cannot be used (CUDA: ") + cudaGetErrorString(status) +
                   "). Look at nvidia-smi, or run with --device cpu.";
    }
}

int count_gpus() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);  // leaves count alone where it fails
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        throw CudaUnavailable(driver_advice(status));
    }
    if (count == 0) throw CudaUnavailable(driver_advice(cudaErrorNoDevice));
    return count;
}

GpuDescription gpu_at_hand(int ordinal) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, ordinal), "ask for the GPU's properties");
    GpuDescription gpu;
    gpu.name = gpu.title = p.name;
    gpu.sm = p.major * 10 + p.minor;
    gpu.multiprocessors = p.multiProcessorCount;
    gpu.memory_bytes = p.totalGlobalMem;
    return gpu;
}

void refuse_unsupported(const GpuDescription& gpu, CudaPrecision precision) {
    if (gpu.sm < kMinimumArchitecture)
        throw CudaUnavailable(gpu.title + " is of generation sm_" + std::to_string(gpu.sm) + " (sm_" +
                              std::to_string(kMinimumArchitecture) + " or newer is needed). Run with --device cpu.");
    if (!gpu.supports(precision))
        throw CudaUnavailable(gpu.title + " (sm_" + std::to_string(gpu.sm) + ") has no " + precision_name(precision) +
                              " (sm_80 or newer has). Choose --precision f32.");
}

}  // namespace

std::vector<std::string> visible_gpus(std::string& why) {
    std::vector<std::string> gpus;
    try {
        for (int i = 0, n = count_gpus(); i < n; ++i) {
            const GpuDescription gpu = gpu_at_hand(i);
            gpus.push_back(gpu.title + ", " + text_of_bytes(gpu.memory_bytes) + ", sm_" + std::to_string(gpu.sm));
        }
    } catch (const std::runtime_error& e) {
        why = e.what();
    }
    return gpus;
}

std::unique_ptr<Device> make_cuda_device(const CudaOptions& options, const MakeCudaPlans& make_plans) {
    const int count = count_gpus();
    if (options.ordinal < 0 || options.ordinal >= count)
        throw CudaUnavailable("GPU " + std::to_string(options.ordinal) + " was asked for, the driver shows " + std::to_string(count) +
                              ". Start no more processes a machine than it has GPUs.");
    const cudaError_t status = cudaSetDevice(options.ordinal);
    if (status == cudaErrorDevicesUnavailable || status == cudaErrorDeviceAlreadyInUse) {
        (void)cudaGetLastError();
        throw CudaUnavailable("Another process holds the GPU for itself (nvidia-smi shows which). Wait for it, or run with --device cpu.");
    }
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        throw CudaUnavailable(driver_advice(status));
    }
    const GpuDescription gpu = gpu_at_hand(options.ordinal);
    refuse_unsupported(gpu, options.precision);
    if (const cudaError_t error = find_cuda_kernels(); error != cudaSuccess) {
        (void)cudaGetLastError();
        if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction && error != cudaErrorUnsupportedPtxVersion)
            throw CudaUnavailable(driver_advice(error));
        throw CudaUnavailable("This program has no kernels for " + gpu.title + " (it was built for other GPUs than sm_" +
                              std::to_string(gpu.sm) + "). Build it anew on this machine, or with the preset cuda.");
    }
    return std::make_unique<CudaDevice>(gpu, options, std::make_unique<Hardware>(options.overlap), make_plans);
}

std::unique_ptr<Device> make_cuda_device(const CudaOptions& options) {
    return make_cuda_device(options, [&](CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu) {
        return make_library_plans(
            launcher, ops, gpu,
            {.precision = options.precision, .nondeterministic = options.nondeterministic, .cache_file = options.plan_cache}, true);
    });
}

std::unique_ptr<Device> make_cuda_planning_device(const GpuDescription& gpu, const CudaOptions& options) {
    refuse_unsupported(gpu, options.precision);
    return std::make_unique<CudaDevice>(gpu, options, nullptr, [&](CudaLauncher& launcher, Ops& ops, const GpuDescription& described) {
        return make_library_plans(launcher, ops, described,
                                  {.precision = options.precision, .nondeterministic = options.nondeterministic, .cache_file = ""}, false);
    });
}

}  // namespace jem
