#include "engine/device/cuda/queue.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <utility>

#include "engine/device/cuda/runtime.h"

namespace jem {
namespace {

cudaEvent_t record(cudaStream_t stream) {
    cudaEvent_t event = nullptr;
    cuda::check(cudaEventCreateWithFlags(&event, cudaEventDefault), "create an event");
    cuda::check(cudaEventRecord(event, stream), "record an event");
    return event;
}

}  // namespace

CudaQueue::~CudaQueue() {
    for (const Timed& t : timed_) {
        if (t.begin != nullptr) cudaEventDestroy(t.begin);
        if (t.end != nullptr) cudaEventDestroy(t.end);
    }
}

bool CudaQueue::announce(const char* label, const Work& work) {
    ++launches_;
    if (mode_ == Mode::dry || (mode_ == Mode::eager && profiling_)) {
        const bool predicted = mode_ == Mode::dry && roofline_.bandwidth > 0 && roofline_.flops > 0;
        report_[label].add(work, predicted ? std::max(work.bytes / roofline_.bandwidth, work.flops / roofline_.flops) : 0);
    }
    if (mode_ == Mode::dry) return false;
    if (stream_ == nullptr) throw std::logic_error(std::string(label) + " was queued, but there is no GPU: this device only plans.");
    if (mode_ == Mode::capture) ++recorded_;
    nvtxRangePushA(label);
    if (mode_ == Mode::eager && profiling_) timed_.push_back({label, work.shape, record(current_), nullptr});
    return true;
}

void CudaQueue::launched() noexcept {
    if (mode_ == Mode::eager && profiling_ && !timed_.empty() && timed_.back().end == nullptr) {
        // Without the second event the launch goes untimed; its own error is reported by whoever launched.
        cudaEvent_t event = nullptr;
        if (cudaEventCreateWithFlags(&event, cudaEventDefault) == cudaSuccess) {
            if (cudaEventRecord(event, current_) == cudaSuccess)
                timed_.back().end = event;
            else
                cudaEventDestroy(event);
        }
    }
    nvtxRangePop();
}

void CudaQueue::begin_side() {
    if (side_.stream == nullptr || mode_ == Mode::dry || profiling_) return;
    cuda::check(cudaEventRecord(side_.left, stream_), "record an event");
    cuda::check(cudaStreamWaitEvent(side_.stream, side_.left, 0), "let a stream wait");
    current_ = side_.stream;
    to_join_ = true;
}

void CudaQueue::join_side() {
    if (!std::exchange(to_join_, false)) return;
    cuda::check(cudaEventRecord(side_.returned, side_.stream), "record an event");
    cuda::check(cudaStreamWaitEvent(stream_, side_.returned, 0), "let a stream wait");
}

void CudaQueue::begin_profile() {
    take_report();
    profiling_ = true;
}

WorkReport CudaQueue::end_profile() {
    profiling_ = false;
    cuda::check(cudaStreamSynchronize(stream_), "wait for the GPU");
    for (const Timed& t : std::exchange(timed_, {})) {
        float milliseconds = 0;
        if (t.end != nullptr) {
            cuda::check(cudaEventElapsedTime(&milliseconds, t.begin, t.end), "read a time");
            cudaEventDestroy(t.end);
        }
        cudaEventDestroy(t.begin);
        report_[t.label].add_seconds(t.shape, 1e-3 * static_cast<double>(milliseconds));
    }
    return take_report();
}

}  // namespace jem
