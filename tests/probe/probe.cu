// probe STEP: one question to the hardware per step; see README.md. Every line begins with "ok", "FAIL", "time" or "info".
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/cuda/convolution/hopper/kernels.cuh"
#include "tests/probe/tell.h"

using namespace jem;
using namespace jem::hopper;

using bf16 = __nv_bfloat16;
constexpr float kSlope = 0.2f;
constexpr int kFlopsPerClock = 4096;  // dense bf16 per SM and clock
static int failures = 0;
static Trouble* trouble = nullptr;
static int sms = 132;

static void result(bool ok, const std::string& what) {
    failures += !ok;
    line(ok ? "ok" : "FAIL", "%s", what.c_str());
}
static void check(cudaError_t e, const char* what, int at) {
    if (e == cudaSuccess) return;
    line("FAIL", "%s: %s (line %d)", what, cudaGetErrorString(e), at);
    if (trouble && trouble->barrier) {
        static const char* const names[] = {"?",
                                            "empty_a (loaders of A)",
                                            "empty_b (loader of B)",
                                            "full_a (consumer)",
                                            "full_b (consumer)",
                                            "wgrad empty (loaders)",
                                            "wgrad full (consumer)"};
        line("FAIL", "hang: a wait of 2 s for %s, stage %u, parity %u, block %u, thread %u", names[std::min(trouble->barrier, 6u)],
             trouble->stage, trouble->parity, trouble->block, trouble->thread);
    }
    std::exit(1);
}
#define CUDA(call) check((call), #call, __LINE__)

template <class T>
struct Buffer {
    T* data = nullptr;
    size_t size = 0;
    explicit Buffer(size_t n) : size(n) { CUDA(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T))); }
    Buffer(Buffer&& o) noexcept : data(std::exchange(o.data, nullptr)), size(o.size) {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { cudaFree(data); }
    void put(const std::vector<T>& v) { CUDA(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice)); }
    std::vector<T> get() const {
        std::vector<T> v(size);
        CUDA(cudaMemcpy(v.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};
static uint32_t hash(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352dU, x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}
static std::string name(const Shape& s) {
    char b[64];
    std::snprintf(b, sizeof b, "[%d, %dx%d, %d->%d]", s.n, s.h, s.w, s.c, s.k);
    return b;
}
static double flops(const Shape& s) { return 2.0 * s.n * s.h * s.w * kTaps * s.c * s.k; }

// Milliseconds of one launch: median of 7 batches of about 15 ms each, after 10 ms of warming up. launch(i): i counts up, for buffers taken
// in turn.
static double time_ms(const std::function<void(int)>& launch) {
    cudaEvent_t from, to;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    int n = 0;
    const auto batch = [&](int count) {
        CUDA(cudaEventRecord(from));
        for (int i = 0; i < count; ++i) launch(n++);
        CUDA(cudaEventRecord(to));
        CUDA(cudaEventSynchronize(to));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, from, to));
        return ms / count;
    };
    batch(3);
    const double first = batch(6);
    const int count = std::clamp((int)(15 / std::max(first, 1e-3)), 3, 3000);
    batch(std::max(count * 2 / 3, 3));
    std::vector<double> v;
    for (int i = 0; i < 7; ++i) v.push_back(batch(count));
    std::sort(v.begin(), v.end());
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(to));
    return v[3];
}

// A: descriptors --------------------------------------------------------------------------------------------------------------

constexpr int kImageBytes = 96 * 1024;
__device__ __forceinline__ void load_image(uint8_t* to, const uint16_t* image) {
    for (int i = threadIdx.x; i < kImageBytes / 16; i += 128) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(image)[i];
    fence_async_proxy();
    __syncthreads();
}
template <int N, int kTransA, int kTransB>
__device__ __forceinline__ void multiply_once(float (&d)[N / 2], uint64_t a, uint64_t b) {
    if constexpr (N == 8) wgmma_n8<kTransA, kTransB>(d, a, b);
    if constexpr (N == 80) wgmma_n80<kTransA, kTransB>(d, a, b);
    if constexpr (N == 128) wgmma_n128<kTransA, kTransB>(d, a, b);
    if constexpr (N == 160) wgmma_n160<kTransA, kTransB>(d, a, b);
    if constexpr (N == 192) wgmma_n192<kTransA, kTransB>(d, a, b);
    if constexpr (N == 256) wgmma_n256<kTransA, kTransB>(d, a, b);
}
template <int N>
__device__ __forceinline__ void finish(float (&d)[N / 2], float* out) {
    wgmma_commit();
    wgmma_wait<0>();
    hold(d);
    for (int i = 0; i < N / 2; ++i) out[acc_row(threadIdx.x, i) * N + acc_col(threadIdx.x, i)] = d[i];
}
// One wgmma on an image of shared memory. a, b: descriptors whose addresses count from the start of the image.
template <int N, int kTransA, int kTransB>
__global__ void __launch_bounds__(128) wgmma_once(const uint16_t* image, uint64_t a, uint64_t b, float* out) {
    extern __shared__ __align__(1024) uint8_t raw[];
    load_image(raw, image);
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
    hold(d);
    const uint64_t base = shared_address(raw) >> 4;
    wgmma_fence();
    multiply_once<N, kTransA, kTransB>(d, a + base, b + base);
    finish<N>(d, out);
}
// The same with A in registers: the 16x16 unit matrix in the first 16 rows, so that D[k][n] = B[k][n].
template <int kTransB>
__global__ void __launch_bounds__(128) wgmma_unit(const uint16_t* image, uint64_t b, float* out) {
    extern __shared__ __align__(1024) uint8_t raw[];
    load_image(raw, image);
    float d[80];
#pragma unroll
    for (int i = 0; i < 80; ++i) d[i] = 0;
    hold(d);
    const int row = threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;
    const uint32_t ones = threadIdx.x >= 32 ? 0
                          : row == k        ? 0x3f80u
                          : row == k + 1    ? 0x3f800000u
                                            : 0;  // (row, k), (row, k + 1); also (row + 8, k + 8)
    const uint32_t a[4] = {ones, 0, 0, ones};
    wgmma_fence();
    wgmma_ra_n160<kTransB>(d, a, b + (shared_address(raw) >> 4));
    finish<160>(d, out);
}
template <class Kernel, class... Args>
static std::vector<float> run_once(Kernel* kernel, int n, const std::vector<uint16_t>& image, Args... descriptors) {
    Buffer<uint16_t> in(image.size());
    Buffer<float> out(64 * n);
    in.put(image);
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kImageBytes));
    kernel<<<1, 128, kImageBytes>>>(in.data, descriptors..., out.data);
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());
    return out.get();
}
static uint16_t bits(float f) {  // of values that bf16 holds exactly
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16);
}
static float value(uint16_t b) {
    const uint32_t u = (uint32_t)b << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
struct Operand {
    uint32_t address, lbo, sbo;
    bool mn_major;
    int swizzle;
};
static uint64_t descriptor(const Operand& o, bool exchanged = false) {
    return make_descriptor(o.address, exchanged ? o.sbo : o.lbo, exchanged ? o.lbo : o.sbo, o.swizzle);
}
template <int N, bool kTransA, bool kTransB>
static void test_once(const char* what, Operand a, Operand b) {
    std::vector<uint16_t> image(kImageBytes / 2);
    for (size_t i = 0; i < image.size(); ++i) image[i] = bits((float)(int)(hash((uint32_t)i * 2 + N) % 7) - 3);
    const auto count_wrong = [&](const std::vector<float>& d, const Descriptor& x, const Descriptor& y, std::string* first) {
        int wrong = 0;
        for (int i = 0; i < 64; ++i)
            for (int j = 0; j < N; ++j) {
                float want = 0;
                for (int k = 0; k < 16; ++k)
                    want += value(image[operand_address(x, kTransA, i, k) / 2]) * value(image[operand_address(y, kTransB, j, k) / 2]);
                if (d[i * N + j] != want && ++wrong == 1 && first)
                    *first = "first at D[" + std::to_string(i) + "][" + std::to_string(j) + "]: " + std::to_string(d[i * N + j]) +
                             ", expected " + std::to_string(want);
            }
        return wrong;
    };
    const auto d = run_once(wgmma_once<N, kTransA, kTransB>, N, image, descriptor(a), descriptor(b));
    std::string first;
    const int wrong = count_wrong(d, read_descriptor(descriptor(a)), read_descriptor(descriptor(b)), &first);
    char text[300];
    std::snprintf(text, sizeof text, "m64n%dk16 %-60s %s", N, what,
                  wrong ? (std::to_string(wrong) + " wrong, " + first).c_str() : "equals plain loops");
    result(wrong == 0, text);
    if (wrong == 0 || a.swizzle || b.swizzle) return;
    for (int way = 1; way < 4; ++way) {  // would it be right if the hardware meant LBO where we mean SBO?
        const auto e = run_once(wgmma_once<N, kTransA, kTransB>, N, image, descriptor(a, way & 1), descriptor(b, way & 2));
        if (count_wrong(e, read_descriptor(descriptor(a)), read_descriptor(descriptor(b)), nullptr) == 0)
            line("info", "  right with LBO and SBO exchanged in %s: change the descriptors in layout.h",
                 way == 1   ? "A"
                 : way == 2 ? "B"
                            : "A and B");
    }
}
constexpr uint32_t kAtB = 48 * 1024;  // B's part of an image
template <int N>
static void test_sizes() {
    using Tile = ConvTile<160, 2>;
    const Descriptor fprop = read_descriptor(Tile::a_descriptor(0, 1, 5, 0)), grad = read_descriptor(grad_a_descriptor(0, 5, 1)),
                     weights = read_descriptor(Tile::b_descriptor(kAtB, 1));
    test_once<N, false, false>("K-major both, A a shifted halo (LBO 6400, SBO 160), B tiles",
                               {fprop.address, fprop.lbo, fprop.sbo, false, 0}, {weights.address, weights.lbo, weights.sbo, false, 0});
    test_once<N, true, true>("MN-major both, A a shifted halo (LBO 160, SBO 1600)", {grad.address, grad.lbo, grad.sbo, true, 0},
                             {kAtB, 128, kGradBSliceBytes, true, 0});
}
static void step_desc() {
    test_once<160, false, false>("K-major both, A packed (LBO 1024, SBO 128), B tiles", {0, 1024, 128, false, 0},
                                 {kAtB, 128, 512, false, 0});
    test_sizes<160>();
    test_sizes<80>();
    test_sizes<128>();
    test_sizes<192>();
    test_once<160, false, true>("A K-major halo, B MN-major", {176, 6400, 160, false, 0}, {kAtB, 128, 1024, true, 0});
    test_once<160, true, false>("A MN-major halo, B K-major", {176, 160, 1600, true, 0}, {kAtB, 128, 512, false, 0});
    test_once<160, false, false>("K-major both, 128-byte swizzle, second k step", {32, 16, 1024, false, kSwizzle128},
                                 {kAtB + 32, 16, 1024, false, kSwizzle128});
    test_once<256, false, false>("K-major both, 128-byte swizzle", {0, 16, 1024, false, kSwizzle128}, {kAtB, 16, 1024, false, kSwizzle128});
}
// Where does the hardware read element (i, k) of an operand from? Memory holds its own address (two passes of 8 bits), the other operand
// picks.
static void report_map(const char* what, const Descriptor& d, bool mn_major, int rows, const std::vector<int>& got) {
    int wrong = 0, where = -1;
    for (int i = 0; i < rows; ++i)
        for (int k = 0; k < 16; ++k)
            if (got[i * 16 + k] != (int)operand_address(d, mn_major, i, k) && ++wrong == 1) where = i * 16 + k;
    if (!wrong) return result(true, std::string("addresses of ") + what + " as expected");
    result(false, std::string("addresses of ") + what + ": " + std::to_string(wrong) + " not as expected, first (" +
                      std::to_string(where / 16) + ", " + std::to_string(where % 16) + ")");
    for (int i : {0, 1, 7, 8, 9, 16, 63})
        line("info", "  row %2d: k 0, 1, 7, 8, 9, 15 are read from byte %d %d %d %d %d %d; expected %u %u %u %u %u %u", i, got[i * 16],
             got[i * 16 + 1], got[i * 16 + 7], got[i * 16 + 8], got[i * 16 + 9], got[i * 16 + 15], operand_address(d, mn_major, i, 0),
             operand_address(d, mn_major, i, 1), operand_address(d, mn_major, i, 7), operand_address(d, mn_major, i, 8),
             operand_address(d, mn_major, i, 9), operand_address(d, mn_major, i, 15));
}
template <bool kTrans>
static void map_a(const char* what, uint64_t a) {
    std::vector<int> got(64 * 16, 0);
    for (int byte = 0; byte < 2; ++byte)
        for (int half = 0; half < 2; ++half) {
            std::vector<uint16_t> image(kImageBytes / 2);
            for (size_t i = 0; i < image.size(); ++i) image[i] = bits((float)(i >> 8 * byte & 255));
            for (int n = 0; n < 8; ++n)  // B, 8 x 16: one core matrix per half of k, the same whatever LBO and SBO mean
                for (int k = 0; k < 16; ++k) image[kAtB / 2 + k / 8 * 64 + n * 8 + k % 8] = bits(k == n + 8 * half ? 1.f : 0.f);
            const auto d = run_once(wgmma_once<8, kTrans, false>, 8, image, a, make_descriptor(kAtB, 128, 128));
            for (int i = 0; i < 64; ++i)
                for (int n = 0; n < 8; ++n) got[i * 16 + n + 8 * half] += ((int)d[i * 8 + n] << 8 * byte) * 2;
        }
    report_map(what, read_descriptor(a), kTrans, 64, got);
}
template <bool kTrans>
static void map_b(const char* what, uint64_t b) {
    std::vector<int> got(160 * 16, 0);
    for (int byte = 0; byte < 2; ++byte) {
        std::vector<uint16_t> image(kImageBytes / 2);
        for (size_t i = 0; i < image.size(); ++i) image[i] = bits((float)(i >> 8 * byte & 255));
        const auto d = run_once(wgmma_unit<kTrans>, 160, image, b);
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 160; ++n) got[n * 16 + k] += ((int)d[k * 160 + n] << 8 * byte) * 2;
    }
    report_map(what, read_descriptor(b), kTrans, 160, got);
}
static void step_map() {
    map_a<false>("A, K-major halo, tap 5 of block 1", ConvTile<160, 2>::a_descriptor(0, 1, 5, 0));
    map_a<true>("A, MN-major halo, tap 5", grad_a_descriptor(0, 5, 1));
    map_b<false>("B, K-major tiles", ConvTile<160, 2>::b_descriptor(0, 0));
    map_b<true>("B, MN-major", make_descriptor(256, 128, kGradBSliceBytes));
}

// B: rate of wgmma from shared memory -----------------------------------------------------------------------------------------

enum RateMode { kRateHalo, kRateAligned, kRateSwizzle, kRateGrad, kRateSwizzle256 };
constexpr int kRateBytes = 200 * 1024;
struct Clocks {
    long long cycles;
    unsigned long long ns;
};
__device__ __forceinline__ unsigned long long global_timer() {
    unsigned long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
// The kernels' own sequences of wgmma, without loads, barriers and epilogue. One iteration: halo, aligned, swizzle: 9 commits of 2 k steps
// x 2 blocks of n160 a warpgroup; grad: 12 n80 in one commit; swizzle256: 9 commits of 2 k steps of n256.
template <int kMode>
__global__ void __launch_bounds__(kMode == kRateGrad ? 384 : 256, 1) rate(int iterations, bool zeros, float* sink, Clocks* clocks) {
    using Tile = ConvTile<160, 2>;
    extern __shared__ __align__(1024) uint8_t raw[];
    for (int i = threadIdx.x; i < kRateBytes / 2; i += blockDim.x) {  // values in [-2, 2), most of them small, as data would be
        uint32_t x = i * 2654435761u + blockIdx.x;
        x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 13;
        reinterpret_cast<bf16*>(raw)[i] =
            __float2bfloat16(zeros ? 0.f : ((int)(x & 0xffff) - 32768) / 32768.f * ((int)(x >> 16 & 0xff) - 128) / 64.f);
    }
    fence_async_proxy();
    __syncthreads();
    const int group = threadIdx.x / 128;
    const uint32_t base = shared_address(raw);
    const long long start = clock64();
    const unsigned long long start_ns = global_timer();
    constexpr int kAccs = kMode == kRateGrad         ? 3
                          : kMode == kRateSwizzle256 ? 1
                                                     : 2,
                  kRegisters = kMode == kRateGrad         ? 40
                               : kMode == kRateSwizzle256 ? 128
                                                          : 80;
    float acc[kAccs][kRegisters];
#pragma unroll
    for (int i = 0; i < kAccs; ++i) {
#pragma unroll
        for (int j = 0; j < kRegisters; ++j) acc[i][j] = 0;
        hold(acc[i]);
    }
    Ring<3> ring_a;
    Ring<8> ring_b;
    for (int it = 0; it < iterations; ++it) {
        if constexpr (kMode == kRateGrad) {
            const uint32_t a = base + ring_b.stage * kGradABytes, b = base + 8 * kGradABytes + ring_b.stage * GradTile<80>::kBBytes;
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < 4; ++step)
#pragma unroll
                for (int i = 0; i < 3; ++i) wgmma_n80<1, 1>(acc[i], grad_a_descriptor(a, group * 3 + i, step), grad_b_descriptor(b, step));
            wgmma_commit();
            wgmma_wait<1>();
            ring_b.advance();
        } else {
            const uint32_t a = base + ring_a.stage * 32 * 1024, b = base + 96 * 1024;
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
                wgmma_fence();
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    if constexpr (kMode == kRateHalo) {
                        const uint64_t db = Tile::b_descriptor(b + ring_b.stage * Tile::kWeightBytes, step);
#pragma unroll
                        for (int m = 0; m < 2; ++m) wgmma_n160<0, 0>(acc[m], Tile::a_descriptor(a, group * 2 + m, tap, step), db);
                    } else if constexpr (kMode == kRateAligned) {  // A packed: [slice][256 rows]
                        const uint64_t db = Tile::b_descriptor(b + ring_b.stage * Tile::kWeightBytes, step);
#pragma unroll
                        for (int m = 0; m < 2; ++m)
                            wgmma_n160<0, 0>(acc[m], make_descriptor(a + (group * 2 + m) * 1024 + step * 8192, 4096, 128), db);
                    } else {  // rows of 128 bytes = four k steps; B takes 20 (32) KiB
                        constexpr int kRows = kMode == kRateSwizzle ? 160 : 256, kB = 96 * 1024 / (kRows * 128);
                        const int k = (tap * 2 + step) % 4 * 32;
                        const uint64_t db = make_descriptor(b + ring_b.stage % kB * kRows * 128 + k, 16, 1024, kSwizzle128);
                        if constexpr (kMode == kRateSwizzle) {
#pragma unroll
                            for (int m = 0; m < 2; ++m)
                                wgmma_n160<0, 0>(acc[m], make_descriptor(a + (group * 2 + m) * 8192 + k, 16, 1024, kSwizzle128), db);
                        } else {
                            wgmma_n256<0, 0>(acc[0], make_descriptor(a + group * 8192 + k, 16, 1024, kSwizzle128), db);
                        }
                    }
                }
                wgmma_commit();
                wgmma_wait<1>();
                ring_b.advance();
            }
            ring_a.advance();
        }
    }
    wgmma_wait<0>();
    float total = 0;
#pragma unroll
    for (int i = 0; i < kAccs; ++i) {
        hold(acc[i]);
#pragma unroll
        for (int j = 0; j < kRegisters; ++j) total += acc[i][j];
    }
    if (total == 12345.678f) sink[threadIdx.x] = total;
    if (threadIdx.x == 0) clocks[blockIdx.x] = {clock64() - start, global_timer() - start_ns};
}
template <int kMode>
static double measure_rate(const char* what, bool zeros) {
    Buffer<float> sink(384);
    Buffer<Clocks> clocks(sms);
    const int groups = kMode == kRateGrad ? 3 : 2;
    const double per_iteration = 2.0 * 64 * 16 * groups * (kMode == kRateGrad ? 12 * 80 : kMode == kRateSwizzle256 ? 18 * 256 : 36 * 160);
    const int iterations = (int)(8e-3 * 700e12 / sms / per_iteration);  // about 8 ms
    CUDA(cudaFuncSetAttribute(rate<kMode>, cudaFuncAttributeMaxDynamicSharedMemorySize, kRateBytes));
    const double ms = time_ms([&](int) { rate<kMode><<<sms, groups * 128, kRateBytes>>>(iterations, zeros, sink.data, clocks.data); });
    CUDA(cudaGetLastError());
    const Clocks c = clocks.get()[0];
    const double tflops = per_iteration * iterations * sms / ms * 1e-9;
    line("time", "wgmma %-62s %s %6.0f TFLOP/s, %5.1f %% of %.0f; SM clock %4.0f MHz, %5.1f %% of the tensor cores' peak at it", what,
         zeros ? "zeros" : "data ", tflops, tflops / kMatmul * 100, kMatmul, 1e3 * (double)c.cycles / (double)c.ns,
         per_iteration * iterations / (double)c.cycles / kFlopsPerClock * 100);
    return tflops;
}
static void step_rate() {
    double halo = 0;
    for (const bool zeros : {false, true}) {
        const double r = measure_rate<kRateHalo>("m64n160k16, halo without swizzle, as in conv3x3", zeros);
        if (!zeros) halo = r;
        measure_rate<kRateAligned>("m64n160k16, A packed without swizzle (aligned)", zeros);
        measure_rate<kRateSwizzle>("m64n160k16, 128-byte swizzle", zeros);
        measure_rate<kRateSwizzle256>("m64n256k16, 128-byte swizzle, one block a warpgroup", zeros);
        measure_rate<kRateGrad>("m64n80k16, MN-major halo, 3 warpgroups, as in grad3x3", zeros);
    }
    line("info", "stop rule: halo with data %.0f TFLOP/s, %s", halo,
         halo < 650 ? "UNDER 650: this layout cannot win unless the swizzled one is as slow" : "at least 650: the layout is good enough");
}

// C, e: data, references, comparisons -----------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t mix(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352dU, x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}
__device__ __forceinline__ float draw(uint32_t seed, uint32_t i, int whole,
                                      float spread) {  // whole: integers -whole .. whole; else roughly normal
    const uint32_t a = mix(i * 2 + seed * 0x9e3779b9u), b = mix(a + 1);
    if (whole) return (float)((int)(a % (2 * whole + 1)) - whole);
    return ((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16) - 131070.f) / 37837.f * spread;
}
template <class T>
__global__ void fill(T* v, int64_t n, uint32_t seed, int whole, float spread, float offset) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        v[i] = (T)(draw(seed, (uint32_t)i, whole, spread) + offset);
}
// Weights for conv3x3, as tiles. rotated: from [k][tap][c] of the forward convolution to those of dgrad, which is a convolution of k to c
// channels (shape s: s.c of the kernel = k of the forward one).
__global__ void pack_weights(const bf16* w, bf16* out, Shape s, bool rotated) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (int64_t)s.k * kTaps * s.c; i += (int64_t)gridDim.x * blockDim.x) {
        const int c = (int)(i % s.c), tap = (int)(i / s.c % kTaps), k = (int)(i / s.c / kTaps);
        out[weight_tile_offset(s.k, kTaps, k, tap, c)] = rotated ? w[((int64_t)c * kTaps + (8 - tap)) * s.k + k] : w[i];
    }
}
__global__ void transpose_weights(const bf16* w, bf16* out, Shape s) {  // [tap][c][k], for the reference
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < (int64_t)s.k * kTaps * s.c; i += (int64_t)gridDim.x * blockDim.x) {
        const int c = (int)(i % s.c), tap = (int)(i / s.c % kTaps), k = (int)(i / s.c / kTaps);
        out[((int64_t)tap * s.c + c) * s.k + k] = w[i];
    }
}
__global__ void activation(const bf16* x, bf16* out, int64_t n, int c, const float* scale, const float* shift) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = __float2bfloat16(norm_leaky(__bfloat162float(x[i]), scale[i % c], shift[i % c], kSlope));
}
// Plain convolution in f32, one output a thread; nothing of layout.h. w: [tap][c][k].
__global__ void reference_conv(const bf16* x, const bf16* w, float* y, Shape s) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= (int64_t)s.n * s.h * s.w * s.k) return;
    const int k = (int)(i % s.k), px = (int)(i / s.k % s.w), py = (int)(i / s.k / s.w % s.h), n = (int)(i / s.k / s.w / s.h);
    float sum = 0;
    for (int r = 0; r < 3; ++r)
        for (int q = 0; q < 3; ++q) {
            const int yy = py + r - 1, xx = px + q - 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
            const bf16* const from = x + ((int64_t)(n * s.h + yy) * s.w + xx) * s.c;
            const bf16* const weight = w + (int64_t)(r * 3 + q) * s.c * s.k + k;
            for (int c = 0; c < s.c; ++c) sum = fmaf(__bfloat162float(from[c]), __bfloat162float(weight[(int64_t)c * s.k]), sum);
        }
    y[i] = sum;
}
// dx[p][c] = sum over taps, k of dy[p - (tap - centre)][k] * w[k][tap][c]; w: [k][tap][c] of the forward convolution s.
__global__ void reference_dgrad(const bf16* dy, const bf16* w, float* dx, Shape s) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= (int64_t)s.n * s.h * s.w * s.c) return;
    const int c = (int)(i % s.c), px = (int)(i / s.c % s.w), py = (int)(i / s.c / s.w % s.h), n = (int)(i / s.c / s.w / s.h);
    float sum = 0;
    for (int r = 0; r < 3; ++r)
        for (int q = 0; q < 3; ++q) {
            const int yy = py - r + 1, xx = px - q + 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
            for (int k = 0; k < s.k; ++k)
                sum = fmaf(__bfloat162float(dy[((int64_t)(n * s.h + yy) * s.w + xx) * s.k + k]),
                           __bfloat162float(w[((int64_t)k * 9 + r * 3 + q) * s.c + c]), sum);
        }
    dx[i] = sum;
}
// One block per (k, tap), a thread per c.
__global__ void reference_wgrad(const bf16* x, const bf16* dy, float* dw, Shape s) {
    const int tap = blockIdx.x % 9, k = blockIdx.x / 9;
    for (int c = threadIdx.x; c < s.c; c += blockDim.x) {
        float sum = 0;
        for (int p = 0; p < s.n * s.h * s.w; ++p) {
            const int yy = p / s.w % s.h + tap / 3 - 1, xx = p % s.w + tap % 3 - 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
            sum = fmaf(__bfloat162float(dy[(int64_t)p * s.k + k]),
                       __bfloat162float(x[(int64_t)(p + (tap / 3 - 1) * s.w + tap % 3 - 1) * s.c + c]), sum);
        }
        dw[((int64_t)k * 9 + tap) * s.c + c] = sum;
    }
}
struct Difference {
    unsigned long long wrong, first;
    float worst;
};
template <class T>
__global__ void compare(const T* got, const float* want, const bf16* residual, int64_t n, bool exact, float relative, float absolute,
                        Difference* d) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        float w = want[i], g = (float)got[i], size = fabsf(w);
        if (sizeof(T) == 2) w = __bfloat162float(__float2bfloat16(w));
        if (residual) {
            const float r = __bfloat162float(residual[i]);
            size += fabsf(r), w = __bfloat162float(__float2bfloat16(w + r));
        }
        const float off = fabsf(g - w);
        if (exact ? g != w : !(off <= relative * size + absolute)) atomicAdd(&d->wrong, 1ull), atomicMin(&d->first, (unsigned long long)i);
        atomicMax(reinterpret_cast<int*>(&d->worst), __float_as_int(off == off ? off : 3e38f));
    }
}
__global__ void same_bits(const uint32_t* a, const uint32_t* b, int64_t n, Difference* d) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        if (a[i] != b[i]) atomicAdd(&d->wrong, 1ull);
}
__global__ void add_bias(const float* y, const float* bias, float* out, int64_t n, int channels) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = y[i] + bias[i % channels];
}
// y, rounded to bf16, through the derivative of LeakyReLU at scale * (x - centre) + shift.
__global__ void leaky_backward(const float* y, const bf16* x, const float* centre, const float* scale, const float* shift, float* out,
                               int64_t n, int channels) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        const int k = (int)(i % channels);
        const float z = fmaf(scale[k], __bfloat162float(x[i]) - centre[k], shift[k]), v = __bfloat162float(__float2bfloat16(y[i]));
        out[i] = z > 0 ? v : v * kSlope;
    }
}
// sums[4][channels], in double, one block a channel: of d = y - centre and of d^2, or (x: what stood in front of the norm) of y and of
// y * (x - centre); then of their sizes without the signs.
__global__ void reference_sums(const bf16* y, const bf16* x, const float* centre, int64_t pixels, int channels, double* out) {
    __shared__ double part[4][256];
    double total[4] = {};
    for (int64_t p = threadIdx.x; p < pixels; p += 256) {
        const int64_t i = p * channels + blockIdx.x;
        const double v = (double)__bfloat162float(y[i]), c = (double)centre[blockIdx.x];
        const double a = x ? v : v - c, b = x ? v * ((double)__bfloat162float(x[i]) - c) : a * a;
        total[0] += a, total[1] += b, total[2] += fabs(a), total[3] += fabs(b);
    }
    for (int i = 0; i < 4; ++i) part[i][threadIdx.x] = total[i];
    __syncthreads();
    if (threadIdx.x < 4) {
        double all = 0;
        for (int i = 0; i < 256; ++i) all += part[threadIdx.x][i];
        out[(int64_t)threadIdx.x * channels + blockIdx.x] = all;
    }
}
static Difference read_difference(const Buffer<Difference>& d) { return d.get()[0]; }
template <class T>
static Difference compare_to(const T* got, const float* want, const bf16* residual, int64_t n, bool exact, float relative, float absolute) {
    Buffer<Difference> d(1);
    d.put({{0, ~0ull, 0}});
    compare<<<sms * 4, 256>>>(got, want, residual, n, exact, relative, absolute, d.data);
    CUDA(cudaGetLastError());
    return read_difference(d);
}
static unsigned long long different_words(const void* a, const void* b, int64_t bytes) {
    Buffer<Difference> d(1);
    d.put({{0, ~0ull, 0}});
    same_bits<<<sms * 4, 256>>>(static_cast<const uint32_t*>(a), static_cast<const uint32_t*>(b), bytes / 4, d.data);
    CUDA(cudaGetLastError());
    return read_difference(d).wrong;
}

struct Variant {
    bool norm, bias, residual, sums, leaky_backward;
    const char* name;
};
constexpr Variant kPlain = {false, false, false, false, false, "plain"}, kNorm = {true, false, false, false, false, "norm"},
                  kAll = {true, false, true, true, false, "norm+residual+sums"};
constexpr Variant kVariants[] = {kPlain,
                                 kNorm,
                                 {false, true, false, false, false, "bias"},
                                 {false, false, true, false, false, "residual"},
                                 {false, false, false, true, false, "sums"},
                                 kAll,
                                 {false, false, false, true, true, "leaky'+sums"}};
template <int kN, int kPerGroup, int kCluster, bool kWithNorm, bool kLeakyBackward, int kSkip = kSkipNothing>
static void launch_conv_as(ConvParams p) {
    auto* const kernel = conv3x3<kN, kPerGroup, kCluster, kWithNorm, kLeakyBackward, kSkip>;
    constexpr int kBytes = (int)sizeof(ConvShared<kN, kPerGroup>);
    static_assert(kBytes <= 232448);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = kCluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = sms / kCluster * kCluster, config.blockDim = 384, config.dynamicSmemBytes = kBytes;
    config.attrs = &attribute, config.numAttrs = kCluster > 1;
    static int resident = 0;  // clusters that the GPU runs at once
    if (!resident) {
        CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
        if (kCluster == 1)
            resident = sms;
        else
            CUDA(cudaOccupancyMaxActiveClusters(&resident, kernel, &config));
    }
    p.units = conv_units(p.shape, kN, ConvTile<kN, kPerGroup>::kBlocks, kCluster);
    config.gridDim = std::min(p.units, resident) * kCluster;
    CUDA(cudaLaunchKernelEx(&config, kernel, p));
}
struct Form {
    int rows, cluster, channels = 160;
};
constexpr Form kForms[] = {{256, 1},      {128, 1},      {256, 2},      {128, 2},     {256, 1, 128},
                           {128, 1, 128}, {256, 2, 128}, {128, 2, 128}, {256, 1, 64}, {128, 1, 64}};
static int cluster_of_step = 1;  // steps pair_*: 2; apart, so that trouble with clusters does not end the others
template <int kN, int kPerGroup, int kCluster>
static void launch_conv_form(const ConvParams& p, int skip) {
    constexpr int kNoLoads = kSkipStores | kSkipLoads, kNeither = kNoLoads | kSkipWeights;
    if constexpr (kN == 160) {
        if (skip == kSkipStores) return launch_conv_as<kN, kPerGroup, kCluster, false, false, kSkipStores>(p);
        if (skip == kNoLoads) return launch_conv_as<kN, kPerGroup, kCluster, false, false, kNoLoads>(p);
        if (skip == kNeither) return launch_conv_as<kN, kPerGroup, kCluster, false, false, kNeither>(p);
    }
    if (p.behind_x)
        launch_conv_as<kN, kPerGroup, kCluster, false, true>(p);
    else if (p.scale)
        launch_conv_as<kN, kPerGroup, kCluster, true, false>(p);
    else
        launch_conv_as<kN, kPerGroup, kCluster, false, false>(p);
}
template <int kN, int kCluster>
static void launch_conv_tile(const ConvParams& p, int rows, int skip) {
    rows == 256 ? launch_conv_form<kN, 2, kCluster>(p, skip) : launch_conv_form<kN, 1, kCluster>(p, skip);
}
static void launch_conv(const ConvParams& p, const Form& f, int skip = kSkipNothing) {
    if (f.channels == 160) f.cluster == 1 ? launch_conv_tile<160, 1>(p, f.rows, skip) : launch_conv_tile<160, 2>(p, f.rows, skip);
    if (f.channels == 128) f.cluster == 1 ? launch_conv_tile<128, 1>(p, f.rows, skip) : launch_conv_tile<128, 2>(p, f.rows, skip);
    if (f.channels == 64) launch_conv_tile<64, 1>(p, f.rows, skip);
}
static std::string name(const Form& f) {
    return "rows " + std::to_string(f.rows) + (f.cluster == 2 ? " x 2 in a cluster" : "") +
           (f.channels == 160 ? "" : ", " + std::to_string(f.channels) + " channels");
}
static void sum_partials(const ConvParams& p, float* sums) {
    const int k = p.shape.k;
    partial_sums<<<2 * k / kSumColumns, dim3(kSumColumns, kSumRows)>>>(p.partials, pixel_blocks(p.shape), k, sums, sums + k);
    CUDA(cudaGetLastError());
}
static uint16_t* as_bits(const Buffer<bf16>& b) { return reinterpret_cast<uint16_t*>(b.data); }
struct ConvData {
    Shape s;
    int64_t in, out, weights;
    std::vector<Buffer<bf16>> x, y, residual;
    Buffer<bf16> w, packed;
    Buffer<float> scale, shift, bias, centre, behind_scale, behind_shift, partials, sums;
    ConvData(const Shape& shape, int sets, int whole)
        : s(shape),
          in((int64_t)s.n * s.h * s.w * s.c),
          out((int64_t)s.n * s.h * s.w * s.k),
          weights((int64_t)s.k * kTaps * s.c),
          w(weights),
          packed(weights),
          scale(s.c),
          shift(s.c),
          bias(s.k),
          centre(s.k),
          behind_scale(s.k),
          behind_shift(s.k),
          partials((size_t)pixel_blocks(s) * 2 * s.k),
          sums(2 * s.k) {
        const float spread = 1 / std::sqrt(9.f * (float)s.c);
        for (int i = 0; i < sets; ++i) {
            x.emplace_back(in), y.emplace_back(out), residual.emplace_back(out);
            fill<<<sms * 4, 256>>>(x[i].data, in, 10 + i, whole ? 3 : 0, 1.f, 0.f);
            fill<<<sms * 4, 256>>>(residual[i].data, out, 20 + i, whole ? 9 : 0, 1.f, 0.f);
            CUDA(cudaMemset(y[i].data, 0xff, out * 2));
        }
        fill<<<sms * 4, 256>>>(w.data, weights, 30u, whole ? 2 : 0, spread, 0.f);
        fill<<<4, 256>>>(bias.data, s.k, 31u, whole ? 4 : 0, .2f, 0.f);
        fill<<<4, 256>>>(scale.data, s.c, 32u, 0, .1f, 1.f);
        fill<<<4, 256>>>(shift.data, s.c, 33u, whole ? 2 : 0, .3f, 0.f);
        fill<<<4, 256>>>(behind_scale.data, s.k, 36u, 0, .1f, 1.f);
        fill<<<4, 256>>>(behind_shift.data, s.k, 37u, whole ? 2 : 0, .3f, 0.f);
        fill<<<4, 256>>>(centre.data, s.k, 34u, whole ? 5 : 0, .3f, 0.f);
        pack_weights<<<sms * 4, 256>>>(w.data, packed.data, s, false);
        CUDA(cudaGetLastError());
    }
    ConvParams params(const Variant& v, int set = 0) const {
        ConvParams p{};
        p.shape = s, p.x = as_bits(x[set]), p.w = as_bits(packed), p.y = as_bits(y[set]), p.slope = kSlope, p.trouble = trouble;
        if (v.norm) p.scale = scale.data, p.shift = shift.data;
        if (v.bias) p.bias = bias.data;
        if (v.residual) p.residual = as_bits(residual[set]);
        if (v.sums) p.partials = partials.data, p.centre = centre.data;
        if (v.leaky_backward)
            p.behind_x = as_bits(residual[set]), p.behind_scale = behind_scale.data, p.behind_shift = behind_shift.data,
            p.centre = centre.data;
        return p;
    }
};
static void reference(const bf16* x, const bf16* w, float* y, const Shape& s) {
    Buffer<bf16> turned((size_t)s.k * kTaps * s.c);
    transpose_weights<<<sms * 4, 256>>>(w, turned.data, s);
    const int64_t n = (int64_t)s.n * s.h * s.w * s.k;
    reference_conv<<<(unsigned)((n + 255) / 256), 256>>>(x, turned.data, y, s);
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());
}
static void check_conv(const Shape& s, int whole, int channels = 160) {
    ConvData d(s, 1, whole);
    Buffer<float> plain(d.out), normed(d.out), biased(d.out), behind(d.out);
    Buffer<bf16> act(d.in), first(d.out);
    reference(d.x[0].data, d.w.data, plain.data, s);
    activation<<<sms * 4, 256>>>(d.x[0].data, act.data, d.in, s.c, d.scale.data, d.shift.data);
    reference(act.data, d.w.data, normed.data, s);
    add_bias<<<sms * 4, 256>>>(plain.data, d.bias.data, biased.data, d.out, s.k);
    leaky_backward<<<sms * 4, 256>>>(plain.data, d.residual[0].data, d.centre.data, d.behind_scale.data, d.behind_shift.data, behind.data,
                                     d.out, s.k);
    CUDA(cudaGetLastError());
    for (const Form& form : kForms)
        for (const Variant& what : kVariants) {
            if (form.cluster != cluster_of_step || form.channels != channels) continue;
            const ConvParams p = d.params(what);
            const bool exact = whole && !what.norm;
            unsigned long long unequal = 0;
            std::vector<float> first_sums;
            for (int repeat = 0; repeat < 5; ++repeat) {
                CUDA(cudaMemset(d.y[0].data, 0xff, d.out * 2));
                CUDA(cudaMemset(d.partials.data, 0xff, d.partials.size * 4));
                launch_conv(p, form);
                if (what.sums) sum_partials(p, d.sums.data);
                CUDA(cudaDeviceSynchronize());
                if (repeat == 0)
                    CUDA(cudaMemcpy(first.data, d.y[0].data, d.out * 2, cudaMemcpyDeviceToDevice));
                else
                    unequal += different_words(first.data, d.y[0].data, d.out * 2);
                if (!what.sums) continue;
                const auto sums = d.sums.get();
                if (repeat == 0)
                    first_sums = sums;
                else
                    unequal += std::memcmp(sums.data(), first_sums.data(), sums.size() * 4) != 0;
            }
            const float* const want = (what.norm ? normed : what.bias ? biased : what.leaky_backward ? behind : plain).data;
            const Difference f =
                compare_to(d.y[0].data, want, what.residual ? d.residual[0].data : nullptr, d.out, exact, .01f, whole ? .5f : .01f);
            double sums_off = 0;
            if (what.sums) {
                Buffer<double> sums(4 * s.k);
                reference_sums<<<s.k, 256>>>(d.y[0].data, what.leaky_backward ? d.residual[0].data : nullptr, d.centre.data,
                                             (int64_t)s.n * s.h * s.w, s.k, sums.data);
                CUDA(cudaGetLastError());
                const auto w = sums.get();
                for (int i = 0; i < 2 * s.k; ++i) {
                    const double off = std::fabs(first_sums[i] - w[i]) / (w[2 * s.k + i] + 1e-6);
                    sums_off = std::isfinite(off) ? std::max(sums_off, off) : 1e30;
                }
            }
            const bool ok = f.wrong == 0 && unequal == 0 && sums_off < 1e-5;
            char text[400];
            std::snprintf(
                text, sizeof text,
                "conv %-22s %-25s %-18s %s: %llu of %lld wrong (worst off by %.3g), sums off by %.1e, %llu words differ in 4 repeats",
                name(s).c_str(), name(form).c_str(), what.name,
                exact   ? "integers, exact"
                : whole ? "integers, norm "
                        : "normal         ",
                f.wrong, (long long)d.out, f.worst, sums_off, unequal);
            result(ok, text);
            if (f.wrong)
                line("info", "  first wrong: pixel %llu (of image %llu), channel %llu", f.first / s.k % (s.h * s.w),
                     f.first / s.k / (s.h * s.w), f.first % s.k);
        }
}
static void check_dgrad(const Shape& s) {  // s: the forward convolution; the kernel sees k channels in and c out
    const Shape turned{s.n, s.h, s.w, s.k, s.c};
    ConvData d(turned, 1, 2);
    Buffer<float> want(d.out);
    Buffer<bf16> w((size_t)s.k * kTaps * s.c);
    fill<<<sms * 4, 256>>>(w.data, (int64_t)w.size, 35u, 2, 1.f, 0.f);
    pack_weights<<<sms * 4, 256>>>(w.data, d.packed.data, turned, true);
    reference_dgrad<<<(unsigned)((d.out + 255) / 256), 256>>>(d.x[0].data, w.data, want.data, s);
    launch_conv(d.params(kPlain), kForms[0]);
    CUDA(cudaDeviceSynchronize());
    const Difference f = compare_to(d.y[0].data, want.data, nullptr, d.out, true, 0.f, 0.f);
    result(f.wrong == 0, "dgrad of " + name(s) + " = conv3x3 with rotated weights: " + std::to_string(f.wrong) + " of " +
                             std::to_string(d.out) + " wrong");
}
static void step_conv_real() {
    for (const Shape& s :
         {Shape{64, 32, 32, 160, 160}, Shape{64, 16, 16, 320, 320}, Shape{64, 8, 8, 640, 640}, Shape{64, 16, 16, 320, 640}})
        check_conv(s, 0);
    check_conv({128, 32, 32, 160, 160}, 3);
    if (cluster_of_step == 1) check_dgrad({64, 16, 16, 320, 640});
}
static std::string rates(double ms, const Shape& s) {
    char b[96];
    const double t = flops(s) / ms * 1e-9;
    std::snprintf(b, sizeof b, "%.4f ms %4.0f TFLOP/s %5.1f %% of %.0f", ms, t, t / kMatmul * 100, kMatmul);
    return b;
}
static void time_conv(int images) {
    for (const Shape& s : {Shape{images, 32, 32, 160, 160}, Shape{images, 16, 16, 320, 320}, Shape{images, 8, 8, 640, 640},
                           Shape{images, 16, 16, 320, 640}}) {
        ConvData d(s, 3, 0);  // three sets in turn: more than the L2 holds, for the larger shapes
        for (const Form& form : kForms) {
            if (form.cluster != cluster_of_step || form.channels != 160) continue;
            const auto run = [&](const char* what, const Variant& variant, int skip, const char* note) {
                const double ms = time_ms([&, skip](int i) {
                    const ConvParams p = d.params(variant, i % 3);
                    launch_conv(p, form, skip);
                    if (variant.sums) sum_partials(p, d.sums.data);
                });
                line("time", "conv %-22s %-25s %-18s %s%s", name(s).c_str(), name(form).c_str(), what, rates(ms, s).c_str(), note);
            };
            const int tiles = ceil_div(pixel_blocks(s), form.rows / 64) * (s.k / form.channels), rounds = ceil_div(tiles, sms);
            char note[64];
            std::snprintf(note, sizeof note, "; %d tiles fill %.0f %% of %d rounds", tiles, 100.0 * tiles / (rounds * sms), rounds);
            run("plain", kPlain, 0, note);
            run("  no epilogue", kPlain, kSkipStores, "");
            run("  nor loads of A", kPlain, kSkipStores | kSkipLoads, "");
            run("  nor loads of B", kPlain, kSkipStores | kSkipLoads | kSkipWeights, "");
            run(kNorm.name, kNorm, 0, "");
            run(kAll.name, kAll, 0, ", second kernel of the sums included");
        }
    }
}

template <int kN>
static void launch_grad(const GradParams& p) {
    constexpr int kBytes = (int)sizeof(GradShared<kN>);
    static_assert(kBytes <= 232448);
    static const cudaError_t allowed = cudaFuncSetAttribute(grad3x3<kN>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    CUDA(allowed);
    grad3x3<kN><<<grad_tiles(p.shape, kN) * p.splits, 512, kBytes>>>(p);
    CUDA(cudaGetLastError());
}
static void sum_grad(const GradParams& p, uint16_t* dw, float* sum) {
    grad3x3_sum<<<dim3(p.shape.k / 32, p.shape.c / 32, kTaps), dim3(32, 8)>>>(p.partials, p.shape, p.splits, dw, sum);
    CUDA(cudaGetLastError());
}
static int full_splits(const Shape& s, int rounds) { return std::clamp(rounds * sms / grad_tiles(s, 80), 1, pixel_blocks(s)); }
template <int kN = 80>
static void check_grad(const Shape& s, int splits, int whole) {
    const int64_t pixels = (int64_t)s.n * s.h * s.w, weights = (int64_t)s.k * kTaps * s.c;
    Buffer<bf16> x(pixels * s.c), dy(pixels * s.k);
    Buffer<bf16> rounded(weights);
    Buffer<float> partials(weights * splits), dw(weights), first(weights), want(weights);
    const GradParams p{s, as_bits(x), as_bits(dy), partials.data, splits, trouble};
    fill<<<sms * 4, 256>>>(x.data, pixels * s.c, 40u, whole, 1.f, 0.f);
    fill<<<sms * 4, 256>>>(dy.data, pixels * s.k, 41u, whole, 1.f, 0.f);
    reference_wgrad<<<s.k * 9, std::min(s.c, 320)>>>(x.data, dy.data, want.data, s);
    CUDA(cudaGetLastError());
    unsigned long long unequal = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
        CUDA(cudaMemset(partials.data, 0xff, partials.size * 4));
        CUDA(cudaMemset(dw.data, 0, dw.size * 4));
        launch_grad<kN>(p);
        sum_grad(p, nullptr, dw.data);
        CUDA(cudaDeviceSynchronize());
        if (repeat == 0)
            CUDA(cudaMemcpy(first.data, dw.data, weights * 4, cudaMemcpyDeviceToDevice));
        else
            unequal += different_words(first.data, dw.data, weights * 4);
    }
    const float noise = whole ? 0.f : 1e-3f * std::sqrt((float)pixels);
    const Difference f = compare_to(dw.data, want.data, nullptr, weights, whole != 0, 1e-3f, noise);
    // As bf16; and added once more to what is there.
    CUDA(cudaMemset(rounded.data, 0xff, weights * 2));
    sum_grad(p, as_bits(rounded), nullptr);
    const unsigned long long not_rounded = compare_to(rounded.data, dw.data, nullptr, weights, true, 0.f, 0.f).wrong;
    sum_grad(p, nullptr, dw.data);
    const auto once = first.get(), twice = dw.get();
    unsigned long long not_added = 0;
    for (size_t i = 0; i < once.size(); ++i) not_added += twice[i] != 2 * once[i];
    char text[300];
    std::snprintf(
        text, sizeof text,
        "wgrad %-22s splits %3d%s %s: %llu of %lld wrong (worst off by %.3g), %llu words differ in 4 repeats; bf16 %llu, added %llu wrong",
        name(s).c_str(), splits, kN == 80 ? "" : (", " + std::to_string(kN) + " channels").c_str(), whole ? "integers, exact" : "normal",
        f.wrong, (long long)weights, f.worst, unequal, not_rounded, not_added);
    result(f.wrong == 0 && unequal == 0 && not_rounded == 0 && not_added == 0, text);
    if (f.wrong) line("info", "  first wrong: k %llu, tap %llu, c %llu", f.first / s.c / kTaps, f.first / s.c % kTaps, f.first % s.c);
}
static void step_conv_small() {
    for (const Shape& s : {Shape{1, 16, 16, 32, 160}, Shape{3, 8, 8, 64, 320}, Shape{2, 16, 16, 160, 160}, Shape{9, 24, 16, 96, 160}})
        check_conv(s, 3);
    for (const Shape& s : {Shape{3, 16, 16, 64, 128}, Shape{9, 24, 8, 96, 256}}) check_conv(s, 3, 128);
    if (cluster_of_step == 2) return;
    for (const Shape& s : {Shape{3, 16, 16, 32, 64}, Shape{9, 24, 8, 96, 192}}) check_conv(s, 3, 64);
    check_dgrad({3, 16, 16, 160, 320});
    check_grad<64>({3, 8, 16, 64, 128}, 2, 2);
    check_grad<64>({5, 16, 24, 96, 64}, 7, 2);
}
static void step_grad_check() {
    check_grad({1, 16, 16, 64, 160}, 1, 2);
    check_grad({3, 8, 8, 160, 160}, 2, 2);
    check_grad({5, 16, 24, 160, 320}, 7, 2);
    for (const Shape& s : {Shape{64, 32, 32, 160, 160}, Shape{64, 16, 16, 320, 320}, Shape{64, 8, 8, 640, 640}})
        check_grad(s, full_splits(s, 1), 2), check_grad(s, full_splits(s, 1), 0);
}
static void step_grad_time() {
    for (const int images : {64, 128})
        for (const Shape& s : {Shape{images, 32, 32, 160, 160}, Shape{images, 16, 16, 320, 320}, Shape{images, 8, 8, 640, 640},
                               Shape{images, 16, 16, 320, 640}}) {
            const int64_t pixels = (int64_t)s.n * s.h * s.w, weights = (int64_t)s.k * kTaps * s.c;
            std::vector<Buffer<bf16>> x, dy;
            for (int i = 0; i < 3; ++i) {
                x.emplace_back(pixels * s.c), dy.emplace_back(pixels * s.k);
                fill<<<sms * 4, 256>>>(x[i].data, pixels * s.c, 40u + i, 0, 1.f, 0.f);
                fill<<<sms * 4, 256>>>(dy[i].data, pixels * s.k, 50u + i, 0, 1.f, 0.f);
            }
            for (const int rounds : {1, 2, 3}) {
                const int splits = full_splits(s, rounds);
                Buffer<float> partials(weights * splits);
                Buffer<bf16> dw(weights);
                const auto run = [&](bool both) {
                    return time_ms([&, both](int i) {
                        const GradParams p{s, as_bits(x[i % 3]), as_bits(dy[i % 3]), partials.data, splits, trouble};
                        launch_grad<80>(p);
                        if (both) sum_grad(p, as_bits(dw), nullptr);
                    });
                };
                const double ms = run(true), first = run(false);
                line("time", "wgrad %-22s splits %3d %s; without the second stage %.4f ms; %d blocks, %d %% of M is padding",
                     name(s).c_str(), splits, rates(ms, s).c_str(), first, grad_tiles(s, 80) * splits,
                     100 - 100 * s.c / (grad_m_tiles(s) * kGradM));
            }
        }
}
static void step_env() {
    cudaDeviceProp p;
    CUDA(cudaGetDeviceProperties(&p, 0));
    int driver = 0, runtime = 0, clock = 0;
    CUDA(cudaDriverGetVersion(&driver));
    CUDA(cudaRuntimeGetVersion(&runtime));
    CUDA(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
    line("info", "%s, sm_%d%d, %d SMs, %d MHz at most, L2 %d MiB, shared memory %zu B a block; driver %d, runtime %d", p.name, p.major,
         p.minor, p.multiProcessorCount, clock / 1000, p.l2CacheSize >> 20, p.sharedMemPerBlockOptin, driver, runtime);
    result(p.major == 9 && p.minor == 0, "the GPU is sm_90 (the kernels are built for sm_90a)");
    line("info", "shared memory: conv3x3 256 rows %zu B, 128 rows %zu B, grad3x3 %zu B", sizeof(ConvShared<160, 2>),
         sizeof(ConvShared<160, 1>), sizeof(GradShared<80>));
}

int main(int argc, char** argv) {
    const struct {
        const char* name;
        void (*run)();
    } steps[] = {{"env", step_env},
                 {"desc", step_desc},
                 {"map", step_map},
                 {"rate", step_rate},
                 {"conv_small", step_conv_small},
                 {"conv_real", step_conv_real},
                 {"conv_time_64", [] { time_conv(64); }},
                 {"conv_time_128", [] { time_conv(128); }},
                 {"pair_small", [] { cluster_of_step = 2, step_conv_small(); }},
                 {"pair_real", [] { cluster_of_step = 2, step_conv_real(); }},
                 {"pair_time_64", [] { cluster_of_step = 2, time_conv(64); }},
                 {"pair_time_128", [] { cluster_of_step = 2, time_conv(128); }},
                 {"grad_check", step_grad_check},
                 {"grad_time", step_grad_time}};
    for (const auto& s : steps) {
        if (argc != 2 || std::strcmp(argv[1], s.name) != 0) continue;
        CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
        CUDA(cudaHostAlloc(&trouble, sizeof(Trouble), cudaHostAllocMapped));  // unified addressing: the device uses the same pointer
        *trouble = {};
        s.run();
        CUDA(cudaDeviceSynchronize());
        line(failures ? "FAIL" : "ok", "step %s: %d failures", s.name, failures);
        return failures != 0;
    }
    std::fprintf(stderr, "Usage: jem_probe STEP, one of");
    for (const auto& s : steps) std::fprintf(stderr, " %s", s.name);
    std::fprintf(stderr, "\n");
    return 2;
}
