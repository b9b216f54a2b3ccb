#include "engine/device/host/host_device.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "engine/device/host/host_communicator.h"
#include "engine/device/out_of_memory.h"

namespace jem {
namespace {

// Pages straight from the kernel: zeroed, aligned, given back when freed, and backed by huge pages where it likes to.
class HostBuffer final : public Buffer {
public:
    explicit HostBuffer(size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            throw OutOfMemory(text_of_bytes(bytes) +
                              " of this machine's memory are needed, the system gives none: " + std::strerror(errno));
        data_ = static_cast<std::byte*>(p);
        constexpr size_t kHugePage = size_t{2} << 20;
        if (bytes >= 4 * kHugePage) madvise(p, bytes, MADV_HUGEPAGE);  // advice: an error costs speed only
    }
    HostBuffer(const HostBuffer&) = delete;  // owns its pages
    HostBuffer& operator=(const HostBuffer&) = delete;
    ~HostBuffer() override {
        if (data_ != nullptr) munmap(data_, bytes_);
    }
    std::byte* data() override { return data_; }
    size_t bytes() const override { return bytes_; }

private:
    std::byte* data_ = nullptr;
    size_t bytes_;
};

class HostGraph final : public StepGraph {
public:
    HostGraph(HostStream& stream, std::vector<HostStream::Entry> entries) : stream_(stream), entries_(std::move(entries)) {}
    void replay() override {
        if (stream_.mode() != HostStream::Mode::eager) throw CaptureError("replay of a graph (another one is being recorded).");
        stream_.replay(entries_);
    }
    int64_t launches() const override { return static_cast<int64_t>(entries_.size()); }

private:
    HostStream& stream_;
    std::vector<HostStream::Entry> entries_;
};

}  // namespace

std::string BothSides::text() const {
    return height == width ? std::to_string(height) : std::to_string(height) + "x" + std::to_string(width);
}

// Of the usual padding nothing is said: choices are remembered by this text.
std::string ConvShape::text() const {
    const BothSides usual = {kernel.height / 2, kernel.width / 2};
    return std::to_string(in_channels) + "->" + std::to_string(out_channels) + " " + std::to_string(height) + "x" + std::to_string(width) +
           " k" + kernel.text() + " s" + stride.text() + (padding == usual ? "" : " p" + padding.text());
}

void HostDevice::refuse_under_capture(const char* what) const {
    if (stream_.mode() == HostStream::Mode::capture)
        throw CaptureError(std::string("Cannot ") + what + " (a phase is being recorded). Do it before begin_capture.");
}

std::unique_ptr<Buffer> HostDevice::allocate(size_t bytes) {
    refuse_under_capture("allocate memory");
    return std::make_unique<HostBuffer>(bytes);
}

void HostDevice::begin_capture() {
    refuse_under_capture("begin another capture");
    stream_.set_mode(HostStream::Mode::capture);
}

std::unique_ptr<StepGraph> HostDevice::end_capture() {
    if (stream_.mode() != HostStream::Mode::capture) throw CaptureError("Cannot end a capture (none was begun).");
    stream_.set_mode(HostStream::Mode::eager);
    return std::make_unique<HostGraph>(stream_, stream_.take_recorded());
}

void HostDevice::abandon_capture() noexcept {
    stream_.set_mode(HostStream::Mode::eager);
    stream_.take_recorded();
}

void HostDevice::begin_dry_run() {
    refuse_under_capture("begin a dry run");
    stream_.set_mode(HostStream::Mode::dry);
    stream_.take_report();
}

WorkReport HostDevice::end_dry_run() {
    stream_.set_mode(HostStream::Mode::eager);
    return stream_.take_report();
}

void HostDevice::begin_profile() {
    stream_.take_report();
    stream_.set_profiling(true);
}

WorkReport HostDevice::end_profile() {
    stream_.set_profiling(false);
    return stream_.take_report();
}

void HostDevice::upload(void* to, const void* from, size_t bytes) {
    refuse_under_capture("upload and wait");
    if (bytes > 0) std::memcpy(to, from, bytes);
}

void HostDevice::download(void* to, const void* from, size_t bytes) {
    refuse_under_capture("read back");
    if (bytes > 0) std::memcpy(to, from, bytes);
}

int64_t HostDevice::read_back(const void* from, size_t bytes) {
    refuse_under_capture("read back");
    if (bytes > kReadBackBytes) throw std::logic_error("A read back of " + std::to_string(bytes) + " bytes is a download.");
    Kept& kept = kept_[static_cast<size_t>(++tickets_) % kReadBacks];
    kept.ticket = tickets_;
    kept.bytes = bytes;
    stream_.submit("read_back", {}, [from, bytes, &kept] { std::memcpy(kept.data.data(), from, bytes); });
    return tickets_;
}

// Every call has run by the time it returns.
void HostDevice::take(int64_t ticket, void* to) {
    refuse_under_capture("wait");
    const Kept& kept = kept_[static_cast<size_t>(ticket) % kReadBacks];
    if (ticket < 1 || kept.ticket != ticket) throw std::logic_error("A read back was taken too late, or never queued.");
    std::memcpy(to, kept.data.data(), kept.bytes);
}

void HostDevice::copy(void* to, const void* from, size_t bytes) {
    stream_.submit("copy", {.bytes = 2.0 * static_cast<double>(bytes)}, [=] { std::memcpy(to, from, bytes); });
}

void HostDevice::synchronize() { refuse_under_capture("synchronise"); }

void HostDevice::join(Ranks& ranks) {
    refuse_under_capture("join other ranks");
    if (ranks.size() > 1) communicator_ = std::make_unique<HostCommunicator>(stream_, ranks);
}

}  // namespace jem
