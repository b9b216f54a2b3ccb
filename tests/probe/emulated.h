// The operations of sm90.cuh and wgmma.h for the host, so that emulate.cc can run the kernels' own source. Every thread of a cluster is a
// fiber; who may go on is picked at random. Copies and wgmma take effect late and at random times (wgmma reads shared memory when somebody
// waits for it, or some time before).
#pragma once
#include <math.h>

#include <cstdint>
#include <functional>

#include "tests/probe/layout.h"
#include "tests/probe/trouble.h"

#undef __shared__
#define __shared__ static  // blocks with static shared memory run one after the other
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace emulation {
struct Index {
    unsigned x = 0, y = 0, z = 0;
};
extern Index thread, block, grid, threads;
uint8_t* memory(int rank);  // shared memory of a block of the cluster
int rank();
void wait_until(std::function<bool()> condition, const char* where);
void barrier_init(uint64_t* b, int arrivals);
void barrier_arrive(uint64_t* b, int rank, int bytes);  // bytes: announced before the arrival
bool barrier_done(uint64_t* b, uint32_t parity);
void bulk(void* to, const void* from, int bytes, uint64_t* barrier, int blocks);
void meet(int name, int count);                       // a named barrier; name -1: the whole cluster
void copy(uint8_t* to, const void* from, bool real);  // cp.async
void copy_commit();
void copy_wait(int pending);
void multiply(float* d, int n, bool trans_a, bool trans_b, uint64_t a, uint64_t b);
void multiply_commit();
void multiply_wait(int pending);
}  // namespace emulation
#define threadIdx emulation::thread
#define blockIdx emulation::block
#define gridDim emulation::grid
#define blockDim emulation::threads

constexpr uint32_t kSharedStart = 2048;  // shared memory does not begin at address 0
inline uint8_t* dynamic_shared() { return emulation::memory(emulation::rank()); }
inline uint32_t shared_address(const void* p) { return kSharedStart + (uint32_t)(static_cast<const uint8_t*>(p) - dynamic_shared()); }
inline void barrier_init(uint64_t* b, int arrivals) { emulation::barrier_init(b, arrivals); }
inline void barrier_arrive(uint64_t* b) { emulation::barrier_arrive(b, emulation::rank(), 0); }
inline void barrier_arrive_expect(uint64_t* b, int bytes) { emulation::barrier_arrive(b, emulation::rank(), bytes); }
inline void barrier_arrive_at(uint64_t* b, int rank) { emulation::barrier_arrive(b, rank, 0); }
inline void barrier_wait(uint64_t* b, uint32_t parity, Trouble*, unsigned, int) {
    emulation::wait_until([=] { return emulation::barrier_done(b, parity); }, "mbarrier");
}
inline void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier) { emulation::bulk(to, from, bytes, barrier, 1); }
inline void bulk_copy_to_both(void* to, const void* from, int bytes, uint64_t* barrier) { emulation::bulk(to, from, bytes, barrier, 2); }
inline int cluster_rank() { return emulation::rank(); }
inline void cluster_sync() { emulation::meet(-1, 0); }
inline void vector_copy(uint32_t to, const void* from, bool real) { emulation::copy(dynamic_shared() + (to - kSharedStart), from, real); }
inline void vector_copy_commit() { emulation::copy_commit(); }
template <int kPending>
inline void vector_copy_wait() {
    emulation::copy_wait(kPending);
}
inline void fence_async_proxy() {}
inline void fence_barrier_init() {}
template <int>
inline void registers_down() {}
template <int>
inline void registers_up() {}
inline void group_sync(int consumer) { emulation::meet(consumer + 1, 128); }
inline void loaders_sync() { emulation::meet(3, 96); }
inline void __syncthreads() { emulation::meet(0, (int)(blockDim.x * blockDim.y)); }
inline void wgmma_fence() {}
inline void wgmma_commit() { emulation::multiply_commit(); }
template <int kPending>
inline void wgmma_wait() {
    emulation::multiply_wait(kPending);
}
template <int kCount>
inline void hold(float (&)[kCount]) {}
template <int kTransA, int kTransB>
inline void wgmma_n160(float (&d)[80], uint64_t a, uint64_t b) {
    emulation::multiply(d, 160, kTransA, kTransB, a, b);
}
template <int kTransA, int kTransB>
inline void wgmma_n80(float (&d)[40], uint64_t a, uint64_t b) {
    emulation::multiply(d, 80, kTransA, kTransB, a, b);
}
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
inline float __uint_as_float(uint32_t u) {
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
