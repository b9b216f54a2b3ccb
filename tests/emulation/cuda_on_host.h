// Force-included (-include) where CUDA sources are compiled as plain C++ for tests: what device code sees of the device.
// The sources themselves contain nothing of this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

// At block scope thread_local implies static, and `extern thread_local T x[]` is legal too, so one word serves static
// and dynamic shared memory. The toolkit's headers keep a __shared__ that exists already.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define cudaLaunchKernelEx cudaLaunchKernelEx_without_types
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx
#include <device_launch_parameters.h>

// Gives `extern __shared__ type name[]` of a kernel its storage; to stand in that kernel's namespace, which must have a name.
#define CUDA_ON_HOST_DYNAMIC_SHARED(type, name)                                         \
    alignas(16) thread_local type name[cuda_on_host::kMaxDynamicShared / sizeof(type)]; \
    static const bool name##_known = cuda_on_host::know_dynamic_shared([]() -> void* { return name; })

namespace cuda_on_host {

inline constexpr size_t kMaxDynamicShared = size_t{228} * 1024;
bool know_dynamic_shared(void* (*address)());

// A line of a kernel, for error texts.
struct Site {
    const char* file;
    int line;
};

enum class Exchange { down, up, exclusive_or, index, ballot, sync };

// The two rendezvous that everything is made of: of a block, and of a warp's lanes in mask.
void barrier(Site site);
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, Site site);

// A kernel with its arguments; run() is one thread of it.
struct Body {
    virtual ~Body() = default;
    virtual void run() const = 0;
};
template <class F>
struct BodyOf final : Body {
    F f;
    explicit BodyOf(const F& function) : f(function) {}
    void run() const override { f(); }
};

// function: the kernel's address, null for one of the emulation's own.
cudaError_t launch(const cudaLaunchConfig_t& config, std::shared_ptr<const Body> body, const void* host_pointer,
                   const void* function = nullptr);
// The first word of a kernel's argument that points to memory of the host, or null.
const void* host_pointer_in(const void* argument, size_t bytes);

template <class T>
T exchange_as(Exchange kind, unsigned mask, T value, int argument, int width, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(kind, mask, bits, argument, width, site);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace cuda_on_host

#define CUDA_ON_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_HOST_SITE) { cuda_on_host::barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_HOST_SITE) {
    cuda_on_host::exchange(cuda_on_host::Exchange::sync, mask, 0, 0, 32, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_ON_HOST_SITE) {
    return cuda_on_host::exchange_as(cuda_on_host::Exchange::down, mask, v, static_cast<int>(delta), width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_ON_HOST_SITE) {
    return cuda_on_host::exchange_as(cuda_on_host::Exchange::up, mask, v, static_cast<int>(delta), width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, CUDA_ON_HOST_SITE) {
    return cuda_on_host::exchange_as(cuda_on_host::Exchange::exclusive_or, mask, v, lane_mask, width, {file, line});
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CUDA_ON_HOST_SITE) {
    return cuda_on_host::exchange_as(cuda_on_host::Exchange::index, mask, v, lane, width, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_HOST_SITE) {
    return static_cast<unsigned>(cuda_on_host::exchange(cuda_on_host::Exchange::ballot, mask, predicate != 0, 0, 32, {file, line}));
}
#undef CUDA_ON_HOST_SITE

template <class T>
T __ldg(const T* p) {
    return *p;
}
float atomicAdd(float*, float) = delete;  // rule of the house: sums have a fixed order
double atomicAdd(double*, double) = delete;

// The toolkit's template of this name passes void**, which loses the types that a call on the CPU needs.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
    static_assert((std::is_trivially_copyable_v<Params> && ...), "kernel arguments are copied as bytes");
    static_assert((sizeof(Params) + ... + 0) <= 4064, "kernel arguments");
    const auto body = [kernel, ... arguments = static_cast<Params>(args)] { kernel(arguments...); };
    const void* host = nullptr;
#if __has_builtin(__builtin_clear_padding)  // elsewhere what lies between members could be taken for a pointer
    const auto look = [&](auto argument) {
        __builtin_clear_padding(&argument);
        if (host == nullptr) host = cuda_on_host::host_pointer_in(&argument, sizeof argument);
    };
    (look(static_cast<Params>(args)), ...);
#endif
    return cuda_on_host::launch(*config, std::make_shared<cuda_on_host::BodyOf<std::remove_const_t<decltype(body)>>>(body), host,
                                reinterpret_cast<const void*>(kernel));
}
