// The emulation itself: one planted bug for each thing that it claims to catch. README.md lists them.
#include <doctest/doctest.h>
#include <nvtx3/nvToolsExt.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/planted.h"

namespace jem::planted {

__global__ void with_dynamic_shared(float* x, int n) {
    extern __shared__ float dynamic_tile[];
    dynamic_tile[threadIdx.x + n] = 2;
    __syncthreads();
    x[threadIdx.x] = dynamic_tile[threadIdx.x];
}
CUDA_ON_HOST_DYNAMIC_SHARED(float, dynamic_tile);

namespace {

#define CUDA(call) check(call, #call)
void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

struct Stream {
    cudaStream_t s = nullptr;
    Stream() { CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking)); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(s); }
    void wait() const { CUDA(cudaStreamSynchronize(s)); }
};

struct OnDevice {
    float* p = nullptr;
    explicit OnDevice(size_t count) { CUDA(cudaMalloc(reinterpret_cast<void**>(&p), count * sizeof(float))); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { cudaFree(p); }
};

struct Pinned {
    float* p = nullptr;
    size_t count;
    explicit Pinned(size_t n) : count(n) { CUDA(cudaMallocHost(reinterpret_cast<void**>(&p), n * sizeof(float))); }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    ~Pinned() { cudaFreeHost(p); }
    void upload(float* to, const Stream& s) const { CUDA(cudaMemcpyAsync(to, p, count * sizeof(float), cudaMemcpyHostToDevice, s.s)); }
    void download(const float* from, const Stream& s) {
        CUDA(cudaMemcpyAsync(p, from, count * sizeof(float), cudaMemcpyDeviceToHost, s.s));
    }
};

struct Geometry {
    dim3 grid, block;
    size_t shared_bytes = 0;
};

template <class... P, class... Args>
void launch(const char* label, cudaStream_t stream, void (*kernel)(P...), Geometry g, Args... args) {
    const cudaLaunchConfig_t config = {
        .gridDim = g.grid, .blockDim = g.block, .dynamicSmemBytes = g.shared_bytes, .stream = stream, .attrs = nullptr, .numAttrs = 0};
    nvtxRangePushA(label);
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
    nvtxRangePop();
    check(status, label);
}

// With ThreadSanitizer the bug must be reported as a race, whatever it computes.
void check_race(const std::function<void()>& bug) {
    const uint64_t before = cuda_on_host::races();
    bug();
    if (cuda_on_host::checks_races()) CHECK(cuda_on_host::races() > before);
}

// Runs in a child, for what ends the program; the child's stderr.
std::string last_words(const std::function<void()>& bug) {
    cuda_on_host::reset({});
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        bug();
        _exit(0);
    }
    close(ends[1]);
    std::string output;
    char chunk[4096];
    for (ssize_t n; (n = read(ends[0], chunk, sizeof chunk)) > 0;) output.append(chunk, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : output;
}
void check_dies(const char* text, const std::function<void()>& bug) {
    const std::string words = last_words(bug);
    CHECK_MESSAGE(words.find(text) != std::string::npos, "wanted: ", std::string(text), "; got: ", words.substr(0, 500));
}

enum class Bug { none, present };

template <Bug kBug>
__global__ void reverse_tile(float* x) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (kBug == Bug::none) __syncthreads();
    x[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void all_blocks_count(float* x) { x[threadIdx.x] += 1; }
__global__ void shuffle_taken_for_a_barrier(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    const float own = __shfl_sync(0xffffffffu, tile[threadIdx.x], 0);
    x[threadIdx.x] = own + tile[31 - threadIdx.x];
}
__global__ void divergent(float* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else {
        x[threadIdx.x] = 1;
        __syncthreads();
    }
}
__global__ void early_exit(float* x) {
    if (threadIdx.x == 17) return;
    __syncthreads();
    x[threadIdx.x] = 1;
}
__global__ void mask_of_exited_lane(float* x) {
    if (threadIdx.x == 5) return;
    x[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1);
}
__global__ void mask_of_others(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffff0000u, x[threadIdx.x], 1);
}
__global__ void masks_differ(float* x) {
    x[threadIdx.x] = __shfl_xor_sync(threadIdx.x % 2 != 0 ? 0xffffffffu : 0x55555555u, x[threadIdx.x], 2);
}
__global__ void write_at(float* x, int n) { x[threadIdx.x + n] = 1; }
__global__ void read_at(float* x, int n) { x[0] = x[n]; }
__global__ void add_one(float* x) { x[threadIdx.x] += 1; }
__global__ void past_the_tile(float* x) {
    __shared__ float tile[64];
    tile[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];
}
struct alignas(16) Four {
    float v[4];
};
__global__ void misaligned_pack(float* x) { *reinterpret_cast<Four*>(x + 1) = *reinterpret_cast<const Four*>(x); }

std::vector<float> on_64(void (*kernel)(float*), uint64_t seed = 0) {
    cuda_on_host::reset({.seed = seed});
    const Stream s;
    const OnDevice x(64);
    Pinned host(64);
    for (size_t i = 0; i < 64; ++i) host.p[i] = static_cast<float>(i);
    host.upload(x.p, s);
    launch("planted", s.s, kernel, {1, 64}, x.p);
    host.download(x.p, s);
    s.wait();
    return {host.p, host.p + 64};
}

}  // namespace

TEST_CASE("a_missing_barrier_changes_bits_with_the_order_of_threads") {
    CHECK(on_64(reverse_tile<Bug::none>, 0) == on_64(reverse_tile<Bug::none>, 1));
    check_race([] { CHECK(on_64(reverse_tile<Bug::present>, 0) != on_64(reverse_tile<Bug::present>, 1)); });
}

TEST_CASE("races_between_blocks_and_around_shuffles_are_seen_by_thread_sanitizer") {
    const auto run = [](void (*kernel)(float*), Geometry g) {
        cuda_on_host::reset({});
        const Stream s;
        const OnDevice x(64);
        CUDA(cudaMemsetAsync(x.p, 0, 256, s.s));
        launch("race", s.s, kernel, g, x.p);
        s.wait();
    };
    check_race([&] { run(all_blocks_count, {4, 32}); });
    check_race([&] { run(shuffle_taken_for_a_barrier, {1, 32}); });
}

TEST_CASE("rendezvous_that_cannot_happen_are_reported_with_both_lines") {
    const auto run = [](void (*kernel)(float*)) { return [kernel] { on_64(kernel); }; };
    check_caught("waits at __syncthreads test_emulation.cc", run(divergent));
    check_caught("thread (17,0,0) has exited", run(early_exit));
    check_caught("names lane 5", run(mask_of_exited_lane));
    check_caught("is not in the mask", run(mask_of_others));
    check_caught("meets a lane", run(masks_differ));
}

TEST_CASE("accesses_outside_an_allocation_and_after_its_end_are_reported") {
    check_caught("outside device allocation", [] {  // the guard page
        const Stream s;
        const OnDevice x(64);
        launch("off by one", s.s, write_at, {1, 64}, x.p, 1);
        s.wait();
    });
    check_caught("was freed", [] {
        const Stream s;
        float* x;
        CUDA(cudaMalloc(reinterpret_cast<void**>(&x), 256));
        CUDA(cudaFree(x));
        launch("use after free", s.s, write_at, {1, 64}, x, 0);
        s.wait();
    });
    const auto into_a_gap = [] {
        const Stream s;
        const OnDevice x(256);
        cuda_on_host::forbid(x.p + 64, 64 * sizeof(float));
        launch("off by one", s.s, write_at, {1, 64}, x.p, 1);
        s.wait();
    };
    if (cuda_on_host::checks_bounds()) {  // ends the program at the very access, and names the line
        check_dies("use-after-poison", into_a_gap);
        check_dies("misaligned address", [] { on_64(misaligned_pack); });
        check_dies("index 64 out of bounds", [] { on_64(past_the_tile); });
    } else {
        check_caught("nobody's bytes", into_a_gap);
    }
    check_caught("past the 256 bytes of dynamic shared memory", [] {
        const Stream s;
        const OnDevice x(64);
        launch("dynamic", s.s, with_dynamic_shared, {1, 64, 256}, x.p, 1);
        s.wait();
    });
}

TEST_CASE("memory_of_the_host_is_no_argument_of_a_kernel") {
    check_caught("which is memory of the host", [] {
        const Stream s;
        std::vector<float> v(64);
        launch("host pointer", s.s, write_at, {1, 64}, v.data(), 0);
    });
    check_caught("which is memory of the host", [] {
        const Stream s;
        float on_the_stack[64];
        launch("host pointer", s.s, write_at, {1, 64}, +on_the_stack, 0);
    });
}

__global__ void take_words(float* x, uint64_t a, uint64_t b) { *x = static_cast<float>(a ^ b); }

TEST_CASE("small_integers_side_by_side_are_not_taken_for_a_pointer") {
    cuda_on_host::reset({});
    const Stream s;
    const OnDevice x(1);
    for (uint64_t high = 1; high < 4096; high = high * 3 / 2 + 1)
        for (const uint64_t low : {uint64_t{0}, uint64_t{257}, uint64_t{70001}, uint64_t{0x7fffffff}})
            CHECK_NOTHROW(launch("words", s.s, take_words, {1, 1}, x.p, high << 32 | low, low << 32 | high));
    s.wait();
}

TEST_CASE("the_host_cannot_read_device_memory") {
    check_dies("host code touches device memory", [] {
        const OnDevice x(64);
        const volatile float* p = x.p;
        std::printf("%f", static_cast<double>(p[3]));
    });
}

TEST_CASE("what_nobody_wrote_is_nan_or_reported") {
    const auto read = [] {
        cuda_on_host::reset({});
        const Stream s;
        const OnDevice x(64);
        Pinned host(1);
        CUDA(cudaMemsetAsync(x.p, 0, 256, s.s));
        cuda_on_host::forget(x.p + 7, 4);
        launch("reads what nobody wrote", s.s, read_at, {1, 1}, x.p, 7);
        host.download(x.p, s);
        s.wait();
        return host.p[0];
    };
    if (cuda_on_host::checks_reads()) {
        check_caught("reads bytes that nobody wrote", [&] { read(); });
    } else {
        const float value = read();
        CHECK(value != value);
    }
}

TEST_CASE("memory_on_the_device_is_finite") {
    check_caught("cudaErrorMemoryAllocation", [] { const OnDevice too_large(size_t{1} << 29); });
}

namespace {

constexpr unsigned kCounters = 64;  // ThreadSanitizer sees a copy of a few bytes byte by byte, and soon forgets the first

// Two streams, counters and their host copy.
struct Two {
    Stream s, other;
    OnDevice x{kCounters};
    Pinned host{kCounters};
    Two() {
        std::fill_n(host.p, kCounters, 5.0f);
        host.upload(x.p, s);
        s.wait();
    }
};

std::function<void()> capturing(cudaStreamCaptureMode mode, const std::function<void(Two&)>& body) {
    return [mode, body] {
        Two t;
        CUDA(cudaStreamBeginCapture(t.s.s, mode));
        body(t);
        cudaGraph_t graph;
        CUDA(cudaStreamEndCapture(t.s.s, &graph));
    };
}

}  // namespace

TEST_CASE("what_a_capture_forbids_is_refused_with_cudas_code") {
    check_caught("cudaErrorStreamCaptureUnsupported: cudaMalloc",
                 capturing(cudaStreamCaptureModeGlobal, [](Two&) { const OnDevice second(64); }));
    check_caught("cudaErrorStreamCaptureUnsupported: cudaStreamSynchronize",
                 capturing(cudaStreamCaptureModeRelaxed, [](Two& t) { t.s.wait(); }));
    check_caught("cudaErrorStreamCaptureInvalidated", capturing(cudaStreamCaptureModeGlobal, [](Two&) { (void)cudaDeviceSynchronize(); }));
    check_caught("cudaErrorStreamCaptureIsolation: cudaLaunchKernelEx 'wrong'", capturing(cudaStreamCaptureModeRelaxed, [](Two& t) {
                     launch("wrong", t.other.s, add_one, {1, kCounters}, t.x.p);
                 }));
    const auto event = [] {
        cudaEvent_t e;
        CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        return e;
    };
    check_caught("cudaErrorStreamCaptureUnjoined", capturing(cudaStreamCaptureModeGlobal, [&](Two& t) {
                     const cudaEvent_t fork = event();
                     CUDA(cudaEventRecord(fork, t.s.s));
                     CUDA(cudaStreamWaitEvent(t.other.s, fork, 0));
                     launch("forked", t.other.s, add_one, {1, kCounters}, t.x.p);
                 }));
    check_caught("cudaErrorCapturedEvent", capturing(cudaStreamCaptureModeRelaxed, [&](Two& t) {
                     const cudaEvent_t done = event();
                     CUDA(cudaEventRecord(done, t.s.s));
                     CUDA(cudaEventSynchronize(done));
                 }));
    check_caught("waits for work that is not captured", [&] {
        Two t;
        const cudaEvent_t before = event();
        CUDA(cudaEventRecord(before, t.other.s));
        CUDA(cudaStreamBeginCapture(t.s.s, cudaStreamCaptureModeGlobal));
        CUDA(cudaStreamWaitEvent(t.s.s, before, 0));
    });
    check_caught("pageable", [] {
        Two t;
        float v = 0;
        CUDA(cudaMemcpyAsync(t.x.p, &v, 4, cudaMemcpyHostToDevice, t.s.s));
    });
    check_caught("default stream", [] { launch("default", nullptr, write_at, {1, 1}, static_cast<float*>(nullptr), 0); });
}

TEST_CASE("launches_beyond_the_hardware_are_refused") {
    const auto run = [](Geometry g) {
        return [g] {
            const Stream s;
            launch("limits", s.s, write_at, g, static_cast<float*>(nullptr), 0);
        };
    };
    check_caught("cudaErrorInvalidConfiguration", run({1, 1025}));
    check_caught("cudaErrorInvalidConfiguration", run({0, 32}));
    check_caught("cudaErrorInvalidConfiguration", run({{1, 65536}, 32}));
    check_caught("more than 48 KiB", run({1, 32, 50000}));
}

TEST_CASE("nothing_runs_before_it_is_waited_for") {
    cuda_on_host::reset({});
    Two t;
    launch("add", t.s.s, add_one, {1, kCounters}, t.x.p);
    t.host.download(t.x.p, t.s);
    check_race([&] {
        CHECK(t.host.p[0] != t.host.p[0]);
        t.s.wait();
    });
    CHECK(t.host.p[0] == 6);
}

TEST_CASE("streams_without_an_event_and_sources_changed_too_early_show") {
    cuda_on_host::reset({});
    Two t;
    Pinned seen(kCounters);
    check_race([&] {
        launch("add", t.s.s, add_one, {1, kCounters}, t.x.p);
        seen.download(t.x.p, t.other);
        t.other.wait();
        t.s.wait();
    });
    CHECK(seen.p[0] == 5);  // the order that a GPU might take as well
    check_race([&] {
        t.host.p[0] = 1;
        t.host.upload(t.x.p, t.s);
        t.host.p[0] = 77;
        t.s.wait();
    });
    seen.download(t.x.p, t.s);
    t.s.wait();
    CHECK(seen.p[0] == 77);
}

}  // namespace jem::planted
