// What the CPU and the reference device share: memory, recording, copies. They differ in ops and plans.
#pragma once

#include "engine/device/device.h"
#include "engine/device/host/host_stream.h"

namespace jem {

class HostDevice : public Device {
public:
    std::unique_ptr<Buffer> allocate(size_t bytes) override;
    void begin_capture() override;
    std::unique_ptr<StepGraph> end_capture() override;
    void abandon_capture() noexcept override;
    void begin_dry_run() override;
    WorkReport end_dry_run() override;
    int64_t launches() const override { return stream_.launches(); }
    void begin_profile() override;
    WorkReport end_profile() override;
    void upload(void* to, const void* from, size_t bytes) override;
    void download(void* to, const void* from, size_t bytes) override;
    int64_t read_back(void* to, const void* from, size_t bytes) override;
    void wait(int64_t ticket) override;
    void copy(void* to, const void* from, size_t bytes) override;
    void synchronize() override;
    void join(Ranks& ranks) override;

protected:
    // Throws CaptureError while recording. what: "allocate memory" ...
    void refuse_under_capture(const char* what) const;

    HostStream stream_;
};

}  // namespace jem
