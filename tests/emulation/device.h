// A CUDA device on an emulated machine of its own, for one test.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/device/cuda/cuda_device.h"
#include "tests/emulation/control.h"
#include "tests/emulation/loop_plans.h"

namespace jem {

class EmulatedDevice {
public:
    explicit EmulatedDevice(CudaPrecision precision, const cuda_on_host::Settings& settings = {}, LoopFusion fusion = LoopFusion::none,
                            bool overlap = false)
        : EmulatedDevice(precision, settings, std::vector<Loops>{loops_with(fusion)}, "", overlap) {}
    EmulatedDevice(CudaPrecision precision, const cuda_on_host::Settings& settings, const std::vector<Loops>& providers,
                   const std::string& plan_cache = "", bool overlap = false)
        : races_(cuda_on_host::races()) {
        cuda_on_host::reset(settings);
        device_ = make_cuda_device({.precision = precision, .nondeterministic = false, .overlap = overlap, .ordinal = 0, .plan_cache = ""},
                                   loop_plans(precision, providers, plan_cache));
    }
    EmulatedDevice(const EmulatedDevice&) = delete;  // the machine is one
    EmulatedDevice& operator=(const EmulatedDevice&) = delete;
    ~EmulatedDevice() {
        device_.reset();
        CHECK_MESSAGE(cuda_on_host::live_objects() == 0, "allocations, streams, events or graphs are left");
        CHECK_MESSAGE(cuda_on_host::races() == races_, "ThreadSanitizer reported a race");
    }

    Device& operator*() { return *device_; }
    Device* operator->() { return device_.get(); }

private:
    uint64_t races_;
    std::unique_ptr<Device> device_;
};

inline const char* name_of(CudaPrecision precision) { return precision_name(precision); }

}  // namespace jem
