// What the CUDA runtime gives and wants back, each given back by its destructor.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "engine/device/cuda/runtime.h"

namespace jem::cuda {

class DeviceMemory {
public:
    // Null where there is not enough.
    explicit DeviceMemory(size_t bytes) {
        if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
        (void)cudaGetLastError();
        data_ = nullptr;
    }
    DeviceMemory(const DeviceMemory&) = delete;  // owns it
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    ~DeviceMemory() {
        if (data_ != nullptr) cudaFree(data_);
    }
    std::byte* data() const { return static_cast<std::byte*>(data_); }

private:
    void* data_ = nullptr;
};

class PinnedMemory {
public:
    explicit PinnedMemory(size_t bytes) {
        void* p = nullptr;
        check(cudaMallocHost(&p, bytes), "get pinned memory");
        data_ = static_cast<std::byte*>(p);
    }
    PinnedMemory(const PinnedMemory&) = delete;  // owns its memory
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    ~PinnedMemory() { cudaFreeHost(data_); }
    std::byte* data() const { return data_; }

private:
    std::byte* data_ = nullptr;
};

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream"); }
    Stream(const Stream&) = delete;  // owns it
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// One that takes the time, unless it is told not to.
class Event {
public:
    explicit Event(unsigned flags = cudaEventDefault) { check(cudaEventCreateWithFlags(&event_, flags), "create an event"); }
    Event(const Event&) = delete;  // owns it
    Event& operator=(const Event&) = delete;
    ~Event() { cudaEventDestroy(event_); }
    cudaEvent_t get() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

}  // namespace jem::cuda
