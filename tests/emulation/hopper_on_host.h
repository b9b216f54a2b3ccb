// Force-included after cuda_on_host.h where kernels for sm_90a are compiled: the functions of hopper/instructions.h, which is then empty.
#pragma once
#define JEM_HOPPER_INSTRUCTIONS_H

#include <math.h>  // fmaf, which nvcc knows by itself

#include <cstdint>
#include <cstring>

#include "engine/device/cuda/convolution/hopper/layout.h"
#include "engine/device/cuda/convolution/hopper/trouble.h"
#include "tests/emulation/cuda_on_host.h"

inline float __uint_as_float(uint32_t u) {
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

#define CUDA_ON_HOST_HERE \
    { __builtin_FILE(), __builtin_LINE() }

namespace jem::hopper {

// What the emulation adds to the instructions' own functions.
namespace on_host {
void named_barrier(int name, int threads, cuda_on_host::Site site);
void vector_copy_wait(int pending);
void wgmma(float* d, int n, bool trans_a, bool trans_b, uint64_t a, uint64_t b);
void wgmma_wait(int pending, cuda_on_host::Site site);
}  // namespace on_host

uint8_t* dynamic_shared();
uint32_t shared_address(const void* p);
void barrier_init(uint64_t* b, int arrivals);
void barrier_arrive(uint64_t* b);
void barrier_arrive_expect(uint64_t* b, int bytes);
void barrier_arrive_at(uint64_t* b, int rank);
void barrier_wait(uint64_t* b, uint32_t parity, Trouble* trouble, unsigned name, int stage, cuda_on_host::Site site = CUDA_ON_HOST_HERE);
void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier);
void bulk_copy_to_both(void* to, const void* from, int bytes, uint64_t* barrier);
int cluster_rank();
void cluster_sync(cuda_on_host::Site site = CUDA_ON_HOST_HERE);
void vector_copy(uint32_t to, const void* from, bool real);
void vector_copy_commit();
void wgmma_fence();
void wgmma_commit();

template <int kPending>
void vector_copy_wait() {
    on_host::vector_copy_wait(kPending);
}
inline void fence_async_proxy() {}
inline void fence_barrier_init() {}
template <int kRegisters>
void registers_down() {}
template <int kRegisters>
void registers_up() {}
inline void group_sync(int consumer, cuda_on_host::Site site = CUDA_ON_HOST_HERE) {
    on_host::named_barrier(consumer == 0 ? 1 : 2, 128, site);
}
inline void loaders_sync(cuda_on_host::Site site = CUDA_ON_HOST_HERE) { on_host::named_barrier(3, 96, site); }
template <int kPending>
void wgmma_wait(cuda_on_host::Site site = CUDA_ON_HOST_HERE) {
    on_host::wgmma_wait(kPending, site);
}
template <int kCount>
void hold(float (&)[kCount]) {}
template <int kTransA, int kTransB, int kCount>
void wgmma(float (&d)[kCount], uint64_t a, uint64_t b) {
    static_assert(kCount == 16 || kCount == 32 || kCount == 40 || kCount == 64 || kCount == 80, "instructions.h has no other");
    on_host::wgmma(d, 2 * kCount, kTransA != 0, kTransB != 0, a, b);
}

}  // namespace jem::hopper

#undef CUDA_ON_HOST_HERE
