// The instructions of sm_90a that the kernels use, one function each.
#ifndef JEM_HOPPER_INSTRUCTIONS_H
#define JEM_HOPPER_INSTRUCTIONS_H

#include <cstdint>

#include "engine/device/cuda/convolution/hopper/trouble.h"
#include "wgmma.h"  // made by gen_wgmma.py

namespace jem::hopper {

#ifndef JEM_HOPPER_PATIENCE_NS
#define JEM_HOPPER_PATIENCE_NS 20000000000
#endif
// ns that a wait may last before the kernel says where it hangs (if anybody wants to know) and traps: a program that ends is worth more
// than one that waits for ever. A debugger's stops take longer.
constexpr uint64_t kPatience = JEM_HOPPER_PATIENCE_NS;

__device__ __forceinline__ uint8_t* dynamic_shared() {
    extern __shared__ __align__(1024) uint8_t dynamic_shared_memory[];
    return dynamic_shared_memory;
}
__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void barrier_init(uint64_t* b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
// One piece of assembly: as C++ control flow, ptxas found the way out (the trap) reason enough to give up keeping wgmma in flight across it
// (C7512).
__device__ __forceinline__ void barrier_wait(uint64_t* b, uint32_t parity, Trouble* trouble, unsigned name, int stage) {
    asm volatile(
        "{\n.reg .pred done;\n.reg .u64 start, now;\n.reg .u32 block, thread;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nmov.u64 start, %%globaltimer;\n"
        "AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\n"
        "mov.u64 now, %%globaltimer;\nsub.u64 now, now, start;\nsetp.lt.u64 done, now, %5;\n@done bra AGAIN;\n"
        "setp.eq.u64 done, %2, 0;\n@done bra TRAP;\nmov.u32 block, %%ctaid.x;\nmov.u32 thread, %%tid.x;\n"
        "st.volatile.global.v4.u32 [%2], {%3, block, thread, %4};\nst.volatile.global.u32 [%2 + 16], "
        "%1;\nfence.acq_rel.sys;\nTRAP:\ntrap;\n"
        "DONE:\n}" ::"r"(shared_address(b)),
        "r"(parity), "l"(trouble), "r"(name), "r"(stage), "n"(kPatience)
        : "memory");
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
__device__ __forceinline__ void bulk_copy_to_both(void* to, const void* from, int bytes,
                                                  uint64_t* barrier) {  // same place, same barrier in both blocks
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"((uint16_t)3)
                 : "memory");
}
// The same barrier of block `rank` of the cluster. Without .release.cluster, which would put a fence over the whole GPU in front of every
// arrival: a consumer has written nothing that the other block would have to see, and its reads are over (wgmma.wait_group).
__device__ __forceinline__ void barrier_arrive_at(uint64_t* b, int rank) {
    asm volatile("{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(
                     shared_address(b)),
                 "r"(rank)
                 : "memory");
}
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {  // by whole warps: in one of them a single lane may have been busy until now
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void vector_copy(uint32_t to, const void* from, bool real) {  // 16 bytes; zeros where not real
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void vector_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void vector_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
template <int kRegisters>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
__device__ __forceinline__ void group_sync(int consumer) {  // named barriers 1, 2: a consumer warpgroup; 3: the three warps that load A
    if (consumer == 0)
        asm volatile("bar.sync 1, 128;" ::: "memory");
    else
        asm volatile("bar.sync 2, 128;" ::: "memory");
}
__device__ __forceinline__ void loaders_sync() { asm volatile("bar.sync 3, 96;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void hold(float (&v)[kCount]) {  // nothing the compiler does with v may cross this line
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(v[i])::"memory");
}
// D (64 x N) += A * B, N = 2 * kCount. kTransA, kTransB: 0 = K-major, 1 = MN-major.
template <int kTransA, int kTransB, int kCount>
__device__ __forceinline__ void wgmma(float (&d)[kCount], uint64_t a, uint64_t b) {
    if constexpr (kCount == 16) wgmma_n32<kTransA, kTransB>(d, a, b);
    if constexpr (kCount == 32) wgmma_n64<kTransA, kTransB>(d, a, b);
    if constexpr (kCount == 40) wgmma_n80<kTransA, kTransB>(d, a, b);
    if constexpr (kCount == 64) wgmma_n128<kTransA, kTransB>(d, a, b);
    if constexpr (kCount == 80) wgmma_n160<kTransA, kTransB>(d, a, b);
}

}  // namespace jem::hopper

#endif
