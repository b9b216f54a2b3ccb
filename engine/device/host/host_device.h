// What the CPU and the reference device share: memory, recording, copies. They differ in ops and plans.
#pragma once

#include <array>

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
    int64_t read_back(const void* from, size_t bytes) override;
    void take(int64_t ticket, void* to) override;
    void copy(void* to, const void* from, size_t bytes) override;
    void synchronize() override;
    void join(Ranks& ranks) override;

protected:
    // Throws CaptureError while recording. what: "allocate memory" ...
    void refuse_under_capture(const char* what) const;

    HostStream stream_;

private:
    struct Kept {
        int64_t ticket = 0;
        size_t bytes = 0;
        std::array<std::byte, kReadBackBytes> data;
    };
    std::array<Kept, kReadBacks> kept_;
    int64_t tickets_ = 0;
};

}  // namespace jem
