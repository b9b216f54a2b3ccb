// The GPU's stream, and a second one beside it, with their bookkeeping: what is launched is counted, named for Nsight, timed on request,
// and left out in a dry run.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/device/device.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

class CudaQueue final : public CudaLauncher {
public:
    enum class Mode { eager, capture, dry };

    // A second stream, whose work runs beside the first one's (Device::begin_side). Events: of the moments where it leaves and comes back.
    struct Side {
        cudaStream_t stream = nullptr;
        cudaEvent_t left = nullptr, returned = nullptr;
    };
    // stream: null where no GPU is at hand; nothing is owned.
    CudaQueue(cudaStream_t stream, const Side& side) : stream_(stream), current_(stream), side_(side) {}
    CudaQueue(const CudaQueue&) = delete;  // owns events
    CudaQueue& operator=(const CudaQueue&) = delete;
    ~CudaQueue() override;

    bool announce(const char* label, const Work& work) override;
    void launched() noexcept override;
    cudaStream_t stream() const override { return current_; }

    // Profiled work is queued in order, so that a launch's time is its own.
    void begin_side();
    void end_side() noexcept { current_ = stream_; }
    void join_side();
    void forget_side() noexcept { to_join_ = false; }  // with the recording that it is part of

    Mode mode() const { return mode_; }
    void set_mode(Mode mode) { mode_ = mode; }
    int64_t launches() const { return launches_; }

    // The GPU's peaks, bytes/s and FLOP/s: with them a dry run predicts the time of each launch, the longer of moving its bytes
    // and computing. 0: no prediction.
    struct Roofline {
        double bandwidth = 0, flops = 0;
    };
    void predict_by(const Roofline& roofline) { roofline_ = roofline; }

    // Launches that a recording holds, since it began.
    void begin_recording() { recorded_ = 0; }
    int64_t recorded() const { return recorded_; }
    void replayed(int64_t launches) { launches_ += launches; }

    void begin_profile();
    // Waits for the GPU.
    WorkReport end_profile();
    WorkReport take_report() { return std::exchange(report_, {}); }

private:
    struct Timed {
        std::string label;
        const char* shape;
        cudaEvent_t begin = nullptr, end = nullptr;
    };

    cudaStream_t stream_, current_;
    Side side_;
    bool to_join_ = false;
    Mode mode_ = Mode::eager;
    bool profiling_ = false;
    int64_t launches_ = 0, recorded_ = 0;
    Roofline roofline_;
    WorkReport report_;
    std::vector<Timed> timed_;
};

}  // namespace jem
