// The emulation of what only sm_90a has: small kernels that use it well, and planted bugs. README.md lists them.
#include <doctest/doctest.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/hopper_on_host.h"
#include "tests/emulation/planted.h"

namespace jem::planted_hopper {

using namespace jem::hopper;

namespace {

#define CUDA(call) check(call, #call)
void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

struct Setup {
    uint64_t seed = 0;
    int sm = 90;
    unsigned blocks = 1, threads = 1, cluster = 1;
    size_t shared_bytes = 0;
    bool allow = true;  // more than 48 KiB
};

// A kernel (input, output) on a machine of its own.
template <class In, class Out>
std::vector<Out> run(void (*kernel)(const In*, Out*), const Setup& g, const std::vector<In>& in, size_t out_count) {
    cuda_on_host::reset({.seed = g.seed, .sm = g.sm});
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    void *from, *to, *host;
    const size_t in_bytes = in.size() * sizeof(In), out_bytes = out_count * sizeof(Out);
    CUDA(cudaMalloc(&from, in_bytes));
    CUDA(cudaMalloc(&to, out_bytes));
    CUDA(cudaMallocHost(&host, std::max(in_bytes, out_bytes)));
    std::memcpy(host, in.data(), in_bytes);
    CUDA(cudaMemcpyAsync(from, host, in_bytes, cudaMemcpyHostToDevice, stream));
    CUDA(cudaStreamSynchronize(stream));
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = g.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = g.blocks;
    config.blockDim = g.threads;
    config.dynamicSmemBytes = g.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = g.cluster != 1 ? 1 : 0;
    if (g.allow)
        CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(g.shared_bytes)));
    nvtxRangePushA("planted");
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<const In*>(from), static_cast<Out*>(to));
    nvtxRangePop();
    CUDA(status);
    CUDA(cudaMemcpyAsync(host, to, out_bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    std::vector<Out> out(out_count);
    std::memcpy(out.data(), host, out_bytes);
    return out;
}

// A planted race is found whatever order runs, and each of its reports takes a millisecond.
uint64_t seeds(uint64_t n) { return cuda_on_host::checks_races() ? 2 : n; }

constexpr int kPieces = 7, kPieceWords = 256, kPieceBytes = kPieceWords * 4, kStages = 2;

std::vector<uint32_t> numbered(size_t n) {
    std::vector<uint32_t> v(n);
    for (size_t i = 0; i < n; ++i) v[i] = static_cast<uint32_t>(i * 2654435761u);
    return v;
}

enum class Bug {
    none,
    no_wait_for_empty,
    wrong_parity,
    too_many_arrivals,
    no_last_arrival,
    misaligned,
    past_the_source,
    no_init,
    no_barrier_after_init,
    overrun,
};

struct RingShared {
    uint32_t data[kStages][kPieceWords];
    uint64_t full[kStages], empty[kStages];
};

// Thread 128 copies, 0 to 127 take what it copied.
template <Bug kBug>
__global__ void through_a_ring(const uint32_t* in, uint32_t* out) {
    RingShared& s = *reinterpret_cast<RingShared*>(dynamic_shared());
    if (threadIdx.x == 0 && kBug != Bug::no_init)
        for (int i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], 4);
    if (kBug != Bug::no_barrier_after_init) __syncthreads();
    if (kBug == Bug::overrun && threadIdx.x == 0) reinterpret_cast<uint8_t*>(&s)[sizeof s + 5] = 1;
    const int t = static_cast<int>(threadIdx.x);
    Ring<kStages> ring;
    if (t == 128) {
        for (int i = 0; i < kPieces; ++i, ring.advance()) {
            if (kBug != Bug::no_wait_for_empty)
                barrier_wait(&s.empty[ring.stage], kBug == Bug::wrong_parity ? ring.full_parity() : ring.empty_parity(), nullptr, 1,
                             ring.stage);
            else if (i >= kStages)  // that the copy before it is there is no proof that anybody has read it
                barrier_wait(&s.full[ring.stage], ring.full_parity() ^ 1, nullptr, 2, ring.stage);
            barrier_arrive_expect(&s.full[ring.stage], kPieceBytes);
            if (kBug == Bug::too_many_arrivals) barrier_arrive(&s.full[ring.stage]);
            const uint32_t* from = in + i * kPieceWords;
            if (kBug == Bug::misaligned) ++from;
            if (kBug == Bug::past_the_source) from += kPieceWords;
            bulk_copy(s.data[ring.stage], from, kPieceBytes, &s.full[ring.stage]);
        }
    } else {
        for (int i = 0; i < kPieces; ++i, ring.advance()) {
            barrier_wait(&s.full[ring.stage], ring.full_parity(), nullptr, 2, ring.stage);
            for (int k = t; k < kPieceWords; k += 128) out[i * kPieceWords + k] = s.data[ring.stage][k];
            __syncwarp();
            if (t % 32 == 0 && !(kBug == Bug::no_last_arrival && i == kPieces - 1 && t == 0)) barrier_arrive(&s.empty[ring.stage]);
        }
    }
}

template <Bug kBug>
std::vector<uint32_t> ring(uint64_t seed) {
    return run(through_a_ring<kBug>, {.seed = seed, .threads = 129, .shared_bytes = sizeof(RingShared)}, numbered(kPieces * kPieceWords),
               kPieces * kPieceWords);
}

}  // namespace

TEST_CASE("hopper_bulk_copies_go_through_a_ring_of_barriers_in_any_order") {
    const uint64_t races = cuda_on_host::races();
    for (uint64_t seed = 0; seed < 8; ++seed) CHECK(ring<Bug::none>(seed) == numbered(kPieces * kPieceWords));
    CHECK(cuda_on_host::races() == races);
}

TEST_CASE("hopper_a_copy_over_what_is_still_read_shows") {
    const uint64_t races = cuda_on_host::races();
    int wrong = 0;
    for (uint64_t seed = 0; seed < seeds(16); ++seed) {
        std::vector<uint32_t> got;
        const std::string report = report_of([&] { got = ring<Bug::no_wait_for_empty>(seed); });
        wrong += !report.empty() || got != numbered(kPieces * kPieceWords);
    }
    if (cuda_on_host::checks_races())
        CHECK(cuda_on_host::races() > races);
    else
        CHECK(wrong > 0);
}

TEST_CASE("hopper_misused_barriers_and_copies_are_reported") {
    for (const uint64_t seed : {0, 1, 2}) {
        check_caught("for parity 0 of the barrier at offset 2064 (name 1, stage 0), which is in phase 0 and lacks 4 of 4 arrivals",
                     [=] { ring<Bug::wrong_parity>(seed); });
        check_caught("thread (128,0,0) waits at test_hopper_machine.cc", [=] { ring<Bug::wrong_parity>(seed); });
        check_caught("thread (0,0,0) and 127 more waits at test_hopper_machine.cc", [=] { ring<Bug::wrong_parity>(seed); });
        check_caught("more arrivals than a phase takes, 1", [=] { ring<Bug::too_many_arrivals>(seed); });
        check_caught("left half done: it lacks 1 of 4 arrivals", [=] { ring<Bug::no_last_arrival>(seed); });
        check_caught("not a multiple of 16", [=] { ring<Bug::misaligned>(seed); });
        check_caught("barrier that does not exist", [=] { ring<Bug::no_init>(seed); });
        if (!cuda_on_host::checks_bounds()) {  // else the program ends at the very access
            check_caught("outside device allocation", [=] { ring<Bug::past_the_source>(seed); });
            check_caught("bytes of dynamic shared memory", [=] { ring<Bug::overrun>(seed); });
        }
    }
}

TEST_CASE("hopper_a_barrier_used_without_a_barrier_after_its_making_is_a_race_or_a_report") {
    const uint64_t races = cuda_on_host::races();
    std::string reports;
    for (uint64_t seed = 0; seed < seeds(8); ++seed) reports += report_of([=] { ring<Bug::no_barrier_after_init>(seed); });
    if (cuda_on_host::checks_races())
        CHECK(cuda_on_host::races() > races);
    else
        CHECK(reports.find("does not exist") != std::string::npos);
}

namespace {

enum class ClusterBug { none, no_first_sync, other_leaves, block_barrier };

struct PairShared {
    uint32_t data[kPieceWords];
    uint64_t full, seen;
};

// Each block sends its half of a piece to both, which both read.
template <ClusterBug kBug>
__global__ void share_halves(const uint32_t* in, uint32_t* out) {
    PairShared& s = *reinterpret_cast<PairShared*>(dynamic_shared());
    const int rank = cluster_rank();
    if (threadIdx.x == 0) barrier_init(&s.full, 1), barrier_init(&s.seen, 4);
    if (kBug == ClusterBug::block_barrier) __syncthreads();
    if (kBug != ClusterBug::no_first_sync) cluster_sync();
    if (kBug == ClusterBug::other_leaves && rank == 1) return;
    if (kBug == ClusterBug::other_leaves) loaders_sync();  // takes a while
    if (threadIdx.x == 0) {
        barrier_arrive_expect(&s.full, kPieceBytes);
        const int half = kPieceWords / 2;
        bulk_copy_to_both(s.data + rank * half, in + blockIdx.x / 2 * kPieceWords + static_cast<unsigned>(rank * half), kPieceBytes / 2,
                          &s.full);
    }
    barrier_wait(&s.full, 0, nullptr, 1, 0);
    for (unsigned k = threadIdx.x; k < kPieceWords; k += blockDim.x) out[blockIdx.x * kPieceWords + k] = s.data[k];
    if (threadIdx.x < 2) {  // each of both tells both
        barrier_arrive_at(&s.seen, 0);
        barrier_arrive_at(&s.seen, 1);
    }
    barrier_wait(&s.seen, 0, nullptr, 2, 0);
    cluster_sync();
}

template <ClusterBug kBug>
std::vector<uint32_t> pairs(Setup g) {
    g.shared_bytes = sizeof(PairShared);
    return run(share_halves<kBug>, g, numbered(g.blocks / 2 * kPieceWords), g.blocks * kPieceWords);
}

}  // namespace

TEST_CASE("hopper_the_blocks_of_a_cluster_read_what_the_other_sent") {
    const uint64_t races = cuda_on_host::races();
    const auto half = numbered(3 * kPieceWords);
    for (uint64_t seed = 0; seed < 4; ++seed) {
        const auto out = pairs<ClusterBug::none>({.seed = seed, .blocks = 6, .threads = 96, .cluster = 2});
        for (size_t i = 0; i < out.size(); ++i) REQUIRE(out[i] == half[i / (2 * kPieceWords) * kPieceWords + i % kPieceWords]);
    }
    CHECK(cuda_on_host::races() == races);
}

TEST_CASE("hopper_misused_clusters_are_reported") {
    const Setup two{.blocks = 2, .threads = 96, .cluster = 2};
    check_caught("barrier that does not exist, at offset 1024 of block 1", [&] { pairs<ClusterBug::no_first_sync>(two); });
    check_caught("which has ended", [&] { pairs<ClusterBug::other_leaves>(two); });
    check_caught("use the cluster's barrier", [&] { pairs<ClusterBug::block_barrier>(two); });
    check_caught("copies to both blocks of a cluster that has one",
                 [&] { pairs<ClusterBug::none>({.blocks = 2, .threads = 96, .cluster = 1}); });
}

TEST_CASE("hopper_launches_that_an_architecture_lacks_are_refused") {
    const auto on = [](Setup g) {
        g.threads = 96;
        return [g] { pairs<ClusterBug::none>(g); };
    };
    check_caught("cudaErrorInvalidClusterSize", on({.sm = 80, .blocks = 2, .cluster = 2}));
    check_caught("not made of whole clusters", on({.blocks = 3, .cluster = 2}));
    check_caught("cudaErrorInvalidClusterSize", on({.blocks = 4, .cluster = 4}));
    const auto tile = [](size_t bytes, bool allow, int sm) {
        return [=] {
            run(through_a_ring<Bug::none>, {.sm = sm, .threads = 129, .shared_bytes = bytes, .allow = allow},
                numbered(kPieces * kPieceWords), kPieces * kPieceWords);
        };
    };
    check_caught("more than 48 KiB without cudaFuncSetAttribute", tile(48 * 1024 + 16, false, 90));
    constexpr int kMost[][2] = {{75, 64}, {80, 163}, {86, 99}, {89, 99}, {90, 227}, {100, 227}, {120, 99}};
    for (const auto& most : kMost) {
        const auto bytes = static_cast<size_t>(most[1]) * 1024;
        CHECK(report_of(tile(bytes, true, most[0])) == "");
        check_caught("cudaErrorInvalidValue", tile(bytes + 1, true, most[0]));
    }
}

TEST_CASE("hopper_the_number_of_clusters_at_once_follows_from_shared_memory") {
    cuda_on_host::reset({});
    cudaLaunchConfig_t config{};
    config.gridDim = 4;
    config.blockDim = 96;
    config.dynamicSmemBytes = 200 * 1024;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = 2;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    const auto kernel = share_halves<ClusterBug::none>;
    int clusters = -1;
    CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaErrorInvalidValue);
    CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
    CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    int multiprocessors = 0;
    CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    CHECK(clusters == multiprocessors / 2);
    cuda_on_host::reset({});
}

namespace {

uint16_t small_bf16(int i) {
    const float f = static_cast<float>(i * 37 % 11 - 5);
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
}
float value_of(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

enum class WgmmaBug { none, no_fence, no_wait, no_barrier, other_descriptor, outside };

// A (64 x 16), then B (N x 16), row by row, become 1 + 2 A B. Rows of 8 values side by side: K-major [2][rows][8 k], else [rows / 8][16
// k][8].
template <int kN, bool kMnMajor, WgmmaBug kBug>
__global__ void multiply_twice(const uint16_t* in, float* out) {
    auto* const s = reinterpret_cast<uint16_t*>(dynamic_shared());
    const int t = static_cast<int>(threadIdx.x);
    const auto place = [](int rows, int i, int k) { return kMnMajor ? i / 8 * 128 + k * 8 + i % 8 : k / 8 * rows * 8 + i * 8 + k % 8; };
    for (int e = t; e < 64 * 16; e += 128) s[place(64, e / 16, e % 16)] = in[e];
    for (int e = t; e < kN * 16; e += 128) s[1024 + place(kN, e / 16, e % 16)] = in[1024 + e];
    fence_async_proxy();
    if (kBug != WgmmaBug::no_barrier) __syncthreads();
    const uint32_t lbo_a = kMnMajor ? 128 : 64 * 16, lbo_b = kMnMajor ? 128 : kN * 16, sbo = kMnMajor ? 256 : 128;
    const uint32_t start = shared_address(s) + (kBug == WgmmaBug::outside ? 2048 : 0);
    const uint64_t a = make_descriptor(start, lbo_a, sbo);
    const uint64_t b = make_descriptor(start + 2048 + (kBug == WgmmaBug::other_descriptor && t == 77 ? 16 : 0), lbo_b, sbo);
    float d[kN / 2];
    for (float& v : d) v = 1;
    hold(d);
    if (kBug != WgmmaBug::no_fence) wgmma_fence();
    wgmma<kMnMajor, kMnMajor>(d, a, b);
    wgmma_commit();
    wgmma<kMnMajor, kMnMajor>(d, a, b);
    wgmma_commit();
    wgmma_wait<1>();
    out[64 * kN + t] = d[3];  // still in flight
    if (kBug != WgmmaBug::no_wait) wgmma_wait<0>();
    hold(d);
    for (int i = 0; i < kN / 2; ++i) out[acc_row(t, i) * kN + acc_col(t, i)] = d[i];
}

template <int kN, bool kMnMajor, WgmmaBug kBug = WgmmaBug::none>
void check_wgmma(uint64_t seed) {
    CAPTURE(kN);
    CAPTURE(kMnMajor);
    CAPTURE(seed);
    std::vector<uint16_t> in((64 + kN) * 16);
    for (size_t i = 0; i < in.size(); ++i) in[i] = small_bf16(static_cast<int>(i));
    const auto out = run(multiply_twice<kN, kMnMajor, kBug>, {.seed = seed, .threads = 128, .shared_bytes = in.size() * 2}, in,
                         static_cast<size_t>(64 * kN + 128));
    int wrong = 0, early = 0;
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < kN; ++j) {
            float sum = 0;
            for (int k = 0; k < 16; ++k)
                sum += value_of(in[static_cast<size_t>(i * 16 + k)]) * value_of(in[static_cast<size_t>(1024 + j * 16 + k)]);
            wrong += out[static_cast<size_t>(i * kN + j)] != 1 + 2 * sum;
        }
    for (size_t t = 0; t < 128; ++t) early += !std::isnan(out[static_cast<size_t>(64 * kN) + t]);
    CHECK(wrong == 0);
    CHECK(early == 0);
}

}  // namespace

TEST_CASE("hopper_wgmma_of_every_width_equals_loops_and_is_there_after_its_wait") {
    const uint64_t races = cuda_on_host::races();
    for (uint64_t seed = 0; seed < 3; ++seed) {
        check_wgmma<32, false>(seed);
        check_wgmma<64, false>(seed);
        check_wgmma<80, false>(seed);
        check_wgmma<128, false>(seed);
        check_wgmma<160, false>(seed);
        check_wgmma<32, true>(seed);
        check_wgmma<80, true>(seed);
        check_wgmma<160, true>(seed);
    }
    CHECK(cuda_on_host::races() == races);
}

TEST_CASE("hopper_misused_wgmma_is_reported") {
    for (const uint64_t seed : {0, 1}) {
        check_caught("without wgmma.fence", [=] { check_wgmma<32, false, WgmmaBug::no_fence>(seed); });
        check_caught("ended without a wait for its last wgmma", [=] { check_wgmma<32, false, WgmmaBug::no_wait>(seed); });
        check_caught("another wgmma than its warpgroup", [=] { check_wgmma<32, false, WgmmaBug::other_descriptor>(seed); });
        check_caught("a wgmma that reads offset", [=] { check_wgmma<32, false, WgmmaBug::outside>(seed); });
    }
}

namespace {

enum class RingBug { none, early_release, no_wait_for_full };

struct MultiplyShared {
    uint16_t a[1024], b[kStages][512];
    uint64_t full[kStages], empty[kStages];
};
constexpr int kSteps = 6;

// Warps 0 to 3 multiply the one A by what warp 4 copies.
template <RingBug kBug>
__global__ void multiply_from_a_ring(const uint16_t* in, float* out) {
    MultiplyShared& s = *reinterpret_cast<MultiplyShared*>(dynamic_shared());
    const int t = static_cast<int>(threadIdx.x);
    if (t == 0)
        for (int i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], 4);
    if (t < 128) vector_copy(shared_address(s.a + t * 8), in + t * 8, true);
    vector_copy_commit();
    vector_copy_wait<0>();
    fence_async_proxy();
    __syncthreads();
    Ring<kStages> ring;
    if (t == 128) {
        for (int i = 0; i < kSteps; ++i, ring.advance()) {
            barrier_wait(&s.empty[ring.stage], ring.empty_parity(), nullptr, 1, ring.stage);
            barrier_arrive_expect(&s.full[ring.stage], sizeof s.b[0]);
            bulk_copy(s.b[ring.stage], in + 1024 + i * 512, sizeof s.b[0], &s.full[ring.stage]);
        }
    } else if (t < 128) {
        float d[16] = {};
        hold(d);
        for (int i = 0; i < kSteps; ++i, ring.advance()) {
            if (kBug != RingBug::no_wait_for_full) barrier_wait(&s.full[ring.stage], ring.full_parity(), nullptr, 2, ring.stage);
            wgmma_fence();
            wgmma<0, 0>(d, make_descriptor(shared_address(s.a), 1024, 128), make_descriptor(shared_address(s.b[ring.stage]), 512, 128));
            wgmma_commit();
            if (kBug == RingBug::early_release && t % 32 == 0) barrier_arrive(&s.empty[ring.stage]);
            wgmma_wait<0>();
            if (kBug != RingBug::early_release && t % 32 == 0) barrier_arrive(&s.empty[ring.stage]);
        }
        hold(d);
        for (int i = 0; i < 16; ++i) out[acc_row(t, i) * 32 + acc_col(t, i)] = d[i];
    }
}

template <RingBug kBug>
bool ring_right(uint64_t seed) {
    std::vector<uint16_t> in(1024 + kSteps * 512);
    for (size_t i = 0; i < in.size(); ++i) in[i] = small_bf16(static_cast<int>(i));
    const auto element_b = [&](int step, int j, int k) { return in[static_cast<size_t>(1024 + step * 512 + k / 8 * 256 + j * 8 + k % 8)]; };
    const auto element_a = [&](int i, int k) { return in[static_cast<size_t>(k / 8 * 512 + i * 8 + k % 8)]; };
    const auto out =
        run(multiply_from_a_ring<kBug>, {.seed = seed, .threads = 160, .shared_bytes = sizeof(MultiplyShared)}, in, size_t{64 * 32});
    bool right = true;
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < 32; ++j) {
            float sum = 0;
            for (int step = 0; step < kSteps; ++step)
                for (int k = 0; k < 16; ++k) sum += value_of(element_a(i, k)) * value_of(element_b(step, j, k));
            right &= out[static_cast<size_t>(i * 32 + j)] == sum;
        }
    return right;
}

template <RingBug kBug>
void check_shows() {
    const uint64_t races = cuda_on_host::races();
    int wrong = 0;
    for (uint64_t seed = 0; seed < seeds(16); ++seed) {
        bool right = false;
        const std::string report = report_of([&] { right = ring_right<kBug>(seed); });
        wrong += !right;
    }
    if (cuda_on_host::checks_races())
        CHECK(cuda_on_host::races() > races);
    else
        CHECK(wrong > 0);
}

}  // namespace

TEST_CASE("hopper_wgmma_reads_what_a_ring_delivers") {
    const uint64_t races = cuda_on_host::races();
    for (uint64_t seed = 0; seed < 8; ++seed) CHECK(ring_right<RingBug::none>(seed));
    CHECK(cuda_on_host::races() == races);
}

TEST_CASE("hopper_wgmma_of_what_is_not_there_yet_or_not_there_any_more_shows") {
    check_shows<RingBug::early_release>();
    check_shows<RingBug::no_wait_for_full>();
}

namespace {

template <bool kWait>
__global__ void zeros_and_numbers(const uint32_t* in, uint32_t* out) {
    auto* const s = reinterpret_cast<uint32_t*>(dynamic_shared());
    const unsigned t = threadIdx.x;
    vector_copy(shared_address(s + t * 4), in + t * 4, t % 2 == 0);
    vector_copy_commit();
    if (kWait) vector_copy_wait<0>();
    loaders_sync();
    for (unsigned i = t; i < 96 * 4; i += 96) out[i] = s[i];
}

}  // namespace

TEST_CASE("hopper_a_vector_copy_is_there_after_its_wait") {
    const auto in = numbered(96 * 4);
    const Setup g{.threads = 96, .shared_bytes = 96 * 16};
    for (uint64_t seed = 0; seed < 3; ++seed) {
        Setup seeded = g;
        seeded.seed = seed;
        const auto out = run(zeros_and_numbers<true>, seeded, in, in.size());
        for (size_t i = 0; i < in.size(); ++i) REQUIRE(out[i] == (i / 4 % 2 == 0 ? in[i] : 0));
        CHECK(run(zeros_and_numbers<false>, seeded, in, in.size()) != out);
    }
    cuda_on_host::reset({});
}

}  // namespace jem::planted_hopper
