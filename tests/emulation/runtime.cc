// A CUDA runtime that executes nothing before it must, and refuses what the real one refuses. It stands in for
// libcudart at link time; a function that is missing here is a link error, so each new use is a decision.
#include <nvtx3/nvToolsExt.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/cuda_on_host.h"
#include "tests/emulation/executor.h"
#include "tests/emulation/written.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if defined(CUDA_ON_HOST_RACE)
// In the library, not in its header.
extern "C" const char* __tsan_locate_address(void* address, char* name, size_t name_size, void** begin, size_t* bytes);
#endif

using namespace cuda_on_host;

namespace {

constexpr size_t kPage = 4096, kAlign = 256;
constexpr unsigned char kPoison = 0xff;
constexpr int kMultiprocessors = 4;

struct Work {
    std::string label;
    std::function<void()> run;
    std::function<void()> prepare = {};  // at the time of the call: what the host must not look at yet
    std::shared_ptr<char> token = std::make_shared<char>();
};

struct Node {
    Work work;
    std::vector<size_t> after;
};

struct Marker {  // one cudaEventRecord
    CUstream_st* stream;
    bool done = false;
    uint64_t kernels = 0;  // executed by then: the machine's clock
    char token = 0;
};

struct Capture;

}  // namespace

struct CUstream_st {
    int id;
    unsigned flags;
    std::deque<Work> queue;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> tail;  // nodes that the next captured one follows
    Timeline timeline;
    char token = 0;
};

struct CUevent_st {
    unsigned flags = 0;
    std::shared_ptr<Marker> last;
    std::shared_ptr<Capture> capture;  // recorded in a capture: no host may wait for it
    std::vector<size_t> nodes;
};

struct CUgraph_st {
    std::vector<Node> nodes;
};

struct CUgraphExec_st {
    std::vector<Node> nodes;
    std::vector<size_t> lane;  // of each node: that of its first predecessor, unless another node goes on with it
    std::deque<Timeline> lanes = {};
};

namespace {

struct Capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    CUstream_st* origin;
    bool invalid = false;
    std::vector<Node> nodes = {};
};

struct Allocation {
    char* map;
    size_t mapped;
    char* begin;
    size_t bytes;
    bool device, live;
    int id;
    bool open = false;
    int pending_reads = 0;
    std::vector<std::pair<char*, size_t>> canaries = {};
};

struct Machine {
    std::recursive_mutex mutex;
    Settings settings;
    std::mt19937_64 random{0};
    std::map<char*, Allocation> allocations;  // by begin; addresses are not used twice until reset
    std::set<Allocation*> live;
    std::vector<Allocation*> opened;  // device memory that the work now running has touched
    std::set<CUstream_st*> streams;
    std::set<CUevent_st*> events;
    std::set<CUgraph_st*> graphs;
    std::map<CUgraphExec_st*, std::shared_ptr<CUgraphExec_st>> execs;  // shared with launches that have not run
    std::map<const void*, size_t> dynamic_shared;                      // by kernel: what cudaFuncSetAttribute allowed
    size_t device_bytes = 0;
    int next_id = 1, open = 0, device = 0;
    uint64_t launches = 0;
    cudaError_t broken = cudaSuccess;  // sticky, as after an illegal address
    cudaError_t reported = cudaSuccess;
    std::string report;  // of that error
    std::mutex misuse_mutex;
    std::string misuses;
};

Machine& machine() {
    static Machine m;
    return m;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::vector<std::string> nvtx_ranges;

cudaError_t fail(cudaError_t code, const std::string& text) {
    machine().reported = code;
    machine().report = text;
    return last_error = code;
}

std::string current_label() { return nvtx_ranges.empty() ? "(no NVTX range)" : nvtx_ranges.back(); }
std::string text_of(size_t number) { return std::to_string(number); }

// What every call that needs a driver answers first.
cudaError_t usable(const char* call) {
    Machine& m = machine();
    if (m.settings.driver < CUDART_VERSION / 1000 * 1000)
        return fail(cudaErrorInsufficientDriver, std::string(call) + ": CUDA driver version is insufficient for CUDA runtime version");
    if (m.settings.devices == 0) return fail(cudaErrorNoDevice, std::string(call) + ": no CUDA-capable device is detected");
    if (m.broken != cudaSuccess) return last_error = m.broken;
    return cudaSuccess;
}

// The same for calls that make a context on the device.
cudaError_t reachable(const char* call) {
    if (const cudaError_t e = usable(call)) return e;
    if (machine().settings.busy) return fail(cudaErrorDevicesUnavailable, std::string(call) + ": CUDA-capable device(s) is/are busy");
    return cudaSuccess;
}

#define LOCK(name)                                       \
    Unwatched unwatched;                                 \
    Machine& m = machine();                              \
    std::lock_guard<std::recursive_mutex> lock(m.mutex); \
    [[maybe_unused]] const char* const call = name
#define ENTER(name) \
    LOCK(name);     \
    if (const cudaError_t not_reachable = reachable(call)) return not_reachable

// Memory of the device can be touched only while a kernel or a copy runs: the host's own access faults. An allocation is opened
// by the first fault (open_for_work), so that work costs what it touches, not what there is.
class OpenDevice {
public:
    OpenDevice() { ++machine().open; }
    OpenDevice(const OpenDevice&) = delete;
    OpenDevice& operator=(const OpenDevice&) = delete;
    ~OpenDevice() {
        Machine& m = machine();
        if (--m.open > 0) return;
        for (Allocation* a : m.opened) {
            a->open = false;
            mprotect(a->map, a->mapped, PROT_NONE);
        }
        m.opened.clear();
    }
};

Allocation* find(const void* p) {
    auto& all = machine().allocations;
    auto it = all.upper_bound(static_cast<char*>(const_cast<void*>(p)));
    if (it == all.begin()) return nullptr;
    Allocation& a = std::prev(it)->second;
    return static_cast<const char*>(p) < a.begin + a.bytes ? &a : nullptr;
}

// Nobody's bytes are NaN to whoever reads them, each another NaN: one that is read there and stored there is noticed.
char canary(const char* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    return static_cast<char>((address & 1) != 0 ? 0xff : 0xc0 | (address / 2 * 37 & 0x3f));
}

void write_canaries(char* p, size_t n) {
    for (size_t i = 0; i < n; ++i) p[i] = canary(p + i);
}

#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
#endif
bool canary_intact(const char* p, size_t n) {
    for (size_t i = 0; i < n; ++i)
        if (p[i] != canary(p + i)) return false;
    return true;
}

// [guard page][canary .. allocation .. canary][guard page]: the end is as near to the guard as 256-byte alignment allows.
void* allocate(size_t bytes, bool device) {
    Machine& m = machine();
    const size_t rounded = (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign, mapped = (rounded + kPage - 1) / kPage * kPage;
    char* outer = static_cast<char*>(mmap(nullptr, mapped + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (outer == MAP_FAILED) return nullptr;
    Allocation a{outer + kPage, mapped, outer + kPage + mapped - rounded, bytes, device, true, m.next_id++};
    mprotect(a.map, mapped, PROT_READ | PROT_WRITE);
    std::memset(a.map, kPoison, mapped);
    if (device) {
        if (a.begin > a.map) a.canaries.push_back({a.map, static_cast<size_t>(a.begin - a.map)});
        if (rounded > bytes) a.canaries.push_back({a.begin + bytes, rounded - bytes});
        for (const auto& [p, n] : a.canaries) write_canaries(p, n);
        mprotect(a.map, mapped, PROT_NONE);
        m.device_bytes += mapped;
        watch_writes(a.map, mapped);
    }
#if defined(__SANITIZE_ADDRESS__)
    for (const auto& [p, n] : a.canaries) __asan_poison_memory_region(p, n);
#endif
    m.live.insert(&(m.allocations[a.begin] = a));
    m.opened.reserve(m.live.size());  // the fault handler must not allocate
    return a.begin;
}

// Frees the pages and keeps the addresses: whoever touches them faults.
void release(Allocation& a) {
    Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
    for (const auto& [p, n] : a.canaries) __asan_unpoison_memory_region(p, n);
#endif
    madvise(a.map, a.mapped, MADV_DONTNEED);
    mprotect(a.map, a.mapped, PROT_NONE);
    a.live = false;
    m.live.erase(&a);
    if (!a.device) return;
    m.device_bytes -= a.mapped;
    unwatch_writes(a.map);
}

std::string check_canaries() {
    for (const Allocation* a : machine().opened) {  // nothing else can have been written
        for (const auto& [p, n] : a->canaries)
            if (!canary_intact(p, n))
                return "wrote into nobody's bytes at offset " + std::to_string(p - a->begin) + " of allocation #" + std::to_string(a->id) +
                       " (" + text_of(a->bytes) + " bytes)";
    }
    return "";
}

bool capturing_anywhere() {
    const auto& all = machine().streams;
    return std::any_of(all.begin(), all.end(), [](const CUstream_st* s) { return s->capture != nullptr; });
}

// Calls that CUDA calls potentially unsafe: a capture of this thread, or a global one of any thread, forbids them.
cudaError_t forbid_in_capture(const char* call) {
    for (auto* s : machine().streams) {
        if (!s->capture || s->capture->mode == cudaStreamCaptureModeRelaxed) continue;
        if (s->capture->mode == cudaStreamCaptureModeThreadLocal && s->capture->thread != std::this_thread::get_id()) continue;
        s->capture->invalid = true;
        return fail(cudaErrorStreamCaptureUnsupported, std::string(call) + " while stream " + std::to_string(s->id) +
                                                           " captures. Allocate, synchronise and read back outside.");
    }
    return cudaSuccess;
}

cudaError_t known_stream(cudaStream_t s, const char* call) {
    if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) {
        for (auto* other : machine().streams)
            if (other->capture && (other->flags & cudaStreamNonBlocking) == 0) {
                other->capture->invalid = true;
                return fail(cudaErrorStreamCaptureImplicit, std::string(call) + " on the default stream while a blocking stream captures.");
            }
        return fail(cudaErrorInvalidResourceHandle,
                    std::string(call) + " on the default stream (rule of the house: every launch names its stream).");
    }
    if (!machine().streams.contains(s))
        return fail(cudaErrorInvalidResourceHandle, std::string(call) + " on a stream that does not exist.");
    return cudaSuccess;
}

void run_one(CUstream_st* s) {
    Work next = std::move(s->queue.front());
    s->queue.pop_front();
    const OpenDevice open;
    s->timeline.run([&] {
        observe(next.token.get());
        const Work work = std::move(next);  // destroyed here, where its use is known to be over
        work.run();
        publish(&s->token);
    });
}

cudaError_t drain(CUstream_st* s) {
    const OpenDevice open;
    while (!s->queue.empty() && machine().broken == cudaSuccess) run_one(s);
    observe(&s->token);
    return machine().broken == cudaSuccess ? cudaSuccess : (last_error = machine().broken);
}

// With a seed, some work is done early: any stream, any amount.
void run_some() {
    Machine& m = machine();
    if (m.settings.seed == 0) return;
    for (auto* s : m.streams)
        while (!s->queue.empty() && m.broken == cudaSuccess && m.random() % 3 == 0) run_one(s);
}

cudaError_t submit(cudaStream_t s, Work work, const char* call) {
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (s->capture) {
        if (s->capture->invalid)
            return fail(cudaErrorStreamCaptureInvalidated, std::string(call) + " in a capture that an earlier call made invalid.");
        if (s->capture->thread != std::this_thread::get_id() && s->capture->mode != cudaStreamCaptureModeRelaxed)
            return fail(cudaErrorStreamCaptureWrongThread, std::string(call) + " from another thread than the one that captures.");
        s->capture->nodes.push_back({std::move(work), s->tail});
        s->tail = {s->capture->nodes.size() - 1};
        return cudaSuccess;
    }
    for (auto* other : machine().streams)
        if (other->capture && other->capture->thread == std::this_thread::get_id()) {
            other->capture->invalid = true;
            return fail(cudaErrorStreamCaptureIsolation, std::string(call) + " '" + work.label + "' on stream " + std::to_string(s->id) +
                                                             " while this thread captures stream " + std::to_string(other->id) +
                                                             " (legal, but it runs once, now, and is not in the graph). Use the "
                                                             "capturing stream.");
        }
    if (work.prepare) work.prepare();
    publish(work.token.get());
    s->queue.push_back(std::move(work));
    run_some();
    return cudaSuccess;
}

void break_device(cudaError_t code, const std::string& text) {
    machine().broken = code;
    machine().reported = code;
    machine().report = text;
}

struct Limits {
    size_t shared, shared_optin;
};
Limits limits() {
    const int sm = machine().settings.sm;
    const size_t optin = sm == 75 ? 64 : sm == 80 || sm == 87 ? 163 : sm == 86 || sm == 89 || sm >= 120 ? 99 : 227;
    return {size_t{48} * 1024, optin * 1024};
}

size_t dynamic_shared_allowed(const void* function) {
    const auto& allowed = machine().dynamic_shared;
    const auto it = allowed.find(function);
    return it == allowed.end() ? limits().shared : it->second;
}

// Of clusters only what the kernels use: two blocks side by side in x.
cudaError_t cluster_of(const cudaLaunchConfig_t& config, const std::string& launch, int& cluster) {
    cluster = 1;
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const cudaLaunchAttribute& a = config.attrs[i];
        if (a.id != cudaLaunchAttributeClusterDimension)
            return fail(cudaErrorInvalidValue, launch + ": launch attribute " + std::to_string(a.id) + " is not emulated.");
        const auto& d = a.val.clusterDim;
        if (machine().settings.sm < 90) return fail(cudaErrorInvalidClusterSize, launch + ": this architecture has no clusters.");
        if (d.x == 0 || d.x > 2 || d.y != 1 || d.z != 1)
            return fail(cudaErrorInvalidClusterSize, launch + ": a cluster other than of 1 or 2 blocks in x (not emulated).");
        if (config.gridDim.x % d.x != 0) return fail(cudaErrorInvalidClusterSize, launch + ": the grid is not made of whole clusters.");
        cluster = static_cast<int>(d.x);
    }
    return cudaSuccess;
}

// The sanitizers' own tables lie where two small integers side by side look like an address.
bool of_sanitizer([[maybe_unused]] void* p) {
    [[maybe_unused]] char name[8];
    [[maybe_unused]] void* begin;
    [[maybe_unused]] size_t bytes;
    [[maybe_unused]] const char* kind = "";
#if defined(__SANITIZE_ADDRESS__)
    kind = __asan_locate_address(p, name, sizeof name, &begin, &bytes);
#elif defined(CUDA_ON_HOST_RACE)
    kind = __tsan_locate_address(p, name, sizeof name, &begin, &bytes);
#endif
    return std::strstr(kind, "shadow") != nullptr;
}

}  // namespace

namespace cuda_on_host {

bool open_for_work(const void* address) {
    Machine& m = machine();
    if (m.open == 0) return false;
    const auto* p = static_cast<const char*>(address);
    auto it = m.allocations.upper_bound(const_cast<char*>(p));
    // Canaries in front of an allocation are below its beginning.
    const auto holds = [p](const Allocation& a) { return a.device && a.live && !a.open && p >= a.map && p < a.map + a.mapped; };
    if (it == m.allocations.end() || !holds(it->second)) {
        if (it == m.allocations.begin()) return false;
        --it;
    }
    Allocation& a = it->second;
    if (!holds(a)) return false;
    a.open = true;
    m.opened.push_back(&a);
    return mprotect(a.map, a.mapped, PROT_READ | PROT_WRITE) == 0;
}

std::string describe(const void* address) {
    char text[240];
    const auto* p = static_cast<const char*>(address);
    for (auto& [_, a] : machine().allocations) {
        if (p < a.map - kPage || p >= a.map + a.mapped + kPage) continue;
        const char* kind = a.device ? "device" : "pinned host";
        if (!a.live)
            std::snprintf(text, sizeof text, "%s memory that was freed (allocation #%d, offset %td).", kind, a.id, p - a.begin);
        else if (p >= a.begin && p < a.begin + a.bytes)
            std::snprintf(text, sizeof text, "%s memory (allocation #%d, offset %td of %zu bytes).", kind, a.id, p - a.begin, a.bytes);
        else
            std::snprintf(text, sizeof text, "memory outside %s allocation #%d (offset %td, of %zu bytes).", kind, a.id, p - a.begin,
                          a.bytes);
        return text;
    }
    std::snprintf(text, sizeof text, "address %p, which no allocation holds (or a misaligned vector access).", address);
    return text;
}

namespace {

// Sanitizers reserve whole ranges that nobody can read.
bool readable(uintptr_t address) {
    std::ifstream maps("/proc/self/maps");
    uintptr_t begin, end;
    char dash, read;
    for (std::string rest; maps >> std::hex >> begin >> dash >> end >> read && std::getline(maps, rest);)
        if (address >= begin && address < end) return read == 'r';
    return false;
}

}  // namespace

// Arguments are looked at as words, for C++ cannot list a functor's members; a pointer is a word that names a mapped page.
const void* host_pointer_in(const void* argument, size_t size) {
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uintptr_t word;
        std::memcpy(&word, static_cast<const char*>(argument) + i, sizeof word);
        if (word < uintptr_t{1} << 32 || word >> 47 != 0) continue;
        auto* p = reinterpret_cast<char*>(word);
        if (find(p) != nullptr) continue;
        unsigned char resident;
        if (mincore(reinterpret_cast<void*>(word & ~uintptr_t{kPage - 1}), 1, &resident) != 0) continue;
        bool guard = false;  // one past the end of an allocation is a legal argument
        for (const auto& [_, a] : machine().allocations) guard = guard || (p >= a.map - kPage && p < a.map + a.mapped + kPage);
        if (!guard && !of_sanitizer(p) && readable(word)) return p;
    }
    return nullptr;
}

cudaError_t launch(const cudaLaunchConfig_t& config, std::shared_ptr<const Body> body, const void* host_pointer, const void* function) {
    ENTER("cudaLaunchKernelEx");
    const std::string label = current_label();
    const dim3 g = config.gridDim, b = config.blockDim;
    char shape[240];
    std::snprintf(shape, sizeof shape, "kernel '%s' with grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory", label.c_str(), g.x,
                  g.y, g.z, b.x, b.y, b.z, config.dynamicSmemBytes);
    const bool grid_fits = g.x != 0 && g.y != 0 && g.z != 0 && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535;
    const bool block_fits =
        b.x != 0 && b.y != 0 && b.z != 0 && b.x <= 1024 && b.y <= 1024 && b.z <= 64 && uint64_t{b.x} * b.y * b.z <= 1024;
    if (!grid_fits || !block_fits) return fail(cudaErrorInvalidConfiguration, std::string(shape) + ": outside the limits (or empty).");
    if (const size_t allowed = dynamic_shared_allowed(function); config.dynamicSmemBytes > allowed)
        return fail(cudaErrorInvalidValue,
                    std::string(shape) + (allowed == limits().shared ? ": more than 48 KiB without cudaFuncSetAttribute."
                                                                     : ": more than cudaFuncSetAttribute allowed."));
    int cluster;
    if (const cudaError_t e = cluster_of(config, shape, cluster)) return e;
    if (host_pointer != nullptr) {
        std::snprintf(shape, sizeof shape, "kernel '%s' gets %p, which is memory of the host.", label.c_str(), host_pointer);
        return fail(cudaErrorInvalidValue, shape);
    }
    const Kernel kernel{label, g, b, config.dynamicSmemBytes, std::move(body), cluster};
    const auto run = [kernel] {
        Machine& m = machine();
        if (m.broken != cudaSuccess) return;
        ++m.launches;
        std::string error = run_kernel(kernel, m.settings.seed != 0 ? &m.random : nullptr);
        if (!error.empty()) {
            const bool address = error.find(" touches ") != std::string::npos;
            return break_device(address ? cudaErrorIllegalAddress : cudaErrorLaunchFailure, error);
        }
        error = check_canaries();
        if (error.empty()) error = unwritten_reads();
        if (!error.empty()) break_device(cudaErrorIllegalAddress, "kernel '" + kernel.label + "' " + error + ".");
    };
    return submit(config.stream, {label, run}, call);
}

void reset(const Settings& settings) {
    const Unwatched unwatched;
    Machine& m = machine();
    const std::lock_guard<std::recursive_mutex> lock(m.mutex);
    for (auto* s : m.streams) delete s;
    for (auto* e : m.events) delete e;
    for (auto* g : m.graphs) delete g;
    m.streams.clear();
    m.events.clear();
    m.graphs.clear();
    m.execs.clear();
    m.dynamic_shared.clear();
    for (auto& [_, a] : m.allocations) {
        if (a.live) release(a);
        munmap(a.map - kPage, a.mapped + 2 * kPage);
    }
    m.allocations.clear();
    m.settings = settings;
    m.random.seed(settings.seed);
    m.device_bytes = 0;
    m.device = 0;
    m.launches = 0;
    m.broken = m.reported = cudaSuccess;
    m.report.clear();
    last_error = cudaSuccess;
    const std::lock_guard<std::mutex> misuse_lock(m.misuse_mutex);
    m.misuses.clear();
}

const Settings& settings() { return machine().settings; }

std::string misuses() {
    const std::lock_guard<std::mutex> lock(machine().misuse_mutex);
    return machine().misuses;
}
void note_misuse(const std::string& text) {
    const std::lock_guard<std::mutex> lock(machine().misuse_mutex);
    machine().misuses += text + "\n";
}

std::string last_report() { return machine().report; }
uint64_t launches() { return machine().launches; }
size_t live_objects() {
    const Machine& m = machine();
    return m.streams.size() + m.events.size() + m.graphs.size() + m.execs.size() + m.live.size();
}

void forbid(void* device, size_t bytes) {
    const Unwatched unwatched;
    const std::lock_guard<std::recursive_mutex> lock(machine().mutex);
    Allocation* a = find(device);
    const OpenDevice open;
    write_canaries(static_cast<char*>(device), bytes);
    a->canaries.emplace_back(static_cast<char*>(device), bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(device, bytes);
#endif
}

void forget(void* device, size_t bytes) {
    const Unwatched unwatched;
    const std::lock_guard<std::recursive_mutex> lock(machine().mutex);
    for (auto* s : machine().streams) drain(s);
    const OpenDevice open;
    write_canaries(static_cast<char*>(device), bytes);
    note_unwritten(device, bytes);
}

}  // namespace cuda_on_host

// NVTX is a header whose calls go through a table; this fills the table, so that ranges name kernels.
extern "C" {

static int NVTX_API push_range(const char* name) {
    nvtx_ranges.emplace_back(name);
    return static_cast<int>(nvtx_ranges.size()) - 1;
}

static int NVTX_API pop_range() {
    if (nvtx_ranges.empty()) return -1;
    nvtx_ranges.pop_back();
    return static_cast<int>(nvtx_ranges.size());
}

static int NVTX_API inject_nvtx(NvtxGetExportTableFunc_t get_table) {
    const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
    NvtxFunctionTable table = nullptr;
    unsigned size = 0;
    if (callbacks == nullptr || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) return 0;
    *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push_range);
    *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop_range);
    return 1;
}

static const bool nvtx_injected = (InitializeInjectionNvtx2_fnptr = inject_nvtx, true);

const char* cudaGetErrorName(cudaError_t e) {
    switch (e) {
#define NAME(x) \
    case x:     \
        return #x
        NAME(cudaSuccess);
        NAME(cudaErrorInvalidValue);
        NAME(cudaErrorMemoryAllocation);
        NAME(cudaErrorInvalidConfiguration);
        NAME(cudaErrorInvalidDevice);
        NAME(cudaErrorInvalidMemcpyDirection);
        NAME(cudaErrorInvalidResourceHandle);
        NAME(cudaErrorInsufficientDriver);
        NAME(cudaErrorDevicesUnavailable);
        NAME(cudaErrorNoKernelImageForDevice);
        NAME(cudaErrorNoDevice);
        NAME(cudaErrorNotReady);
        NAME(cudaErrorIllegalAddress);
        NAME(cudaErrorLaunchFailure);
        NAME(cudaErrorIllegalState);
        NAME(cudaErrorCapturedEvent);
        NAME(cudaErrorStreamCaptureUnsupported);
        NAME(cudaErrorStreamCaptureInvalidated);
        NAME(cudaErrorStreamCaptureMerge);
        NAME(cudaErrorStreamCaptureUnmatched);
        NAME(cudaErrorStreamCaptureUnjoined);
        NAME(cudaErrorStreamCaptureIsolation);
        NAME(cudaErrorStreamCaptureImplicit);
        NAME(cudaErrorStreamCaptureWrongThread);
        NAME(cudaErrorInvalidClusterSize);
#undef NAME
        default:
            return "cudaError";
    }
}
// The full text where it is that of the last failure.
const char* cudaGetErrorString(cudaError_t e) {
    const Machine& m = machine();
    return e == m.reported && !m.report.empty() ? m.report.c_str() : cudaGetErrorName(e);
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, machine().broken); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = machine().settings.driver, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
    LOCK("cudaGetDeviceCount");
    if (const cudaError_t e = usable(call)) return e;  // leaves count alone, as the real one does
    return *count = m.settings.devices, cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    LOCK("cudaGetDevice");
    if (const cudaError_t e = usable(call)) return e;
    return *device = m.device, cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    ENTER("cudaSetDevice");
    if (device < 0 || device >= m.settings.devices)
        return fail(cudaErrorInvalidDevice,
                    "cudaSetDevice(" + std::to_string(device) + "): there are " + std::to_string(m.settings.devices) + " devices.");
    return m.device = device, cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    LOCK("cudaGetDeviceProperties");
    if (const cudaError_t e = usable(call)) return e;
    if (device < 0 || device >= m.settings.devices) return fail(cudaErrorInvalidDevice, "cudaGetDeviceProperties of no device.");
    *p = {};
    std::snprintf(p->name, sizeof p->name, "Emulated GPU");
    p->major = m.settings.sm / 10;
    p->minor = m.settings.sm % 10;
    p->totalGlobalMem = m.settings.memory_bytes;
    p->sharedMemPerBlock = limits().shared;
    p->sharedMemPerBlockOptin = limits().shared_optin;
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    p->multiProcessorCount = kMultiprocessors;
    p->regsPerBlock = 65536;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    LOCK("cudaDeviceGetAttribute");
    if (const cudaError_t e = usable(call)) return e;
    if (device < 0 || device >= m.settings.devices) return fail(cudaErrorInvalidDevice, "cudaDeviceGetAttribute of no device.");
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            return *value = kMultiprocessors, cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            return *value = m.settings.sm / 10, cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            return *value = m.settings.sm % 10, cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            return *value = static_cast<int>(limits().shared_optin), cudaSuccess;
        case cudaDevAttrClusterLaunch:
            return *value = m.settings.sm >= 90 ? 1 : 0, cudaSuccess;
        default:
            return fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute " + std::to_string(attribute) + ": not emulated.");
    }
}
static cudaError_t kernel_for_device(const char* call) {
    const Settings& s = machine().settings;
    if (s.kernels_for == 0 || s.kernels_for == s.sm) return cudaSuccess;
    return fail(cudaErrorNoKernelImageForDevice, std::string(call) + ": no kernel image is available for execution on the device");
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
    ENTER("cudaFuncGetAttributes");
    if (const cudaError_t e = kernel_for_device(call)) return e;
    *attributes = {};
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(dynamic_shared_allowed(function));
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    ENTER("cudaFuncSetAttribute");
    if (const cudaError_t e = kernel_for_device(call)) return e;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return fail(cudaErrorInvalidValue, "cudaFuncSetAttribute " + std::to_string(attribute) + ": not emulated.");
    if (value < 0 || static_cast<size_t>(value) > limits().shared_optin)
        return fail(cudaErrorInvalidValue, "cudaFuncSetAttribute: " + std::to_string(value) +
                                               " bytes of dynamic shared memory, of at most " + text_of(limits().shared_optin) + ".");
    m.dynamic_shared[function] = static_cast<size_t>(value);
    return cudaSuccess;
}
// Of shared memory and threads a multiprocessor has twice, or little more than, what a block may take.
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
    ENTER("cudaOccupancyMaxActiveClusters");
    if (const cudaError_t e = kernel_for_device(call)) return e;
    int cluster;
    if (const cudaError_t e = cluster_of(*config, call, cluster)) return e;
    const size_t bytes = config->dynamicSmemBytes, threads = size_t{config->blockDim.x} * config->blockDim.y * config->blockDim.z;
    if (bytes > dynamic_shared_allowed(function) || threads == 0 || threads > 1024)
        return fail(cudaErrorInvalidValue, std::string(call) + ": no such block could be launched.");
    const size_t per_multiprocessor = std::min((limits().shared_optin + 1024) / (bytes + 1024), 2048 / threads);
    *clusters = static_cast<int>(kMultiprocessors * per_multiprocessor) / cluster;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    ENTER("cudaMemGetInfo");
    *total = m.settings.memory_bytes;
    *free = *total - m.settings.used_by_others - m.device_bytes;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
    ENTER("cudaMalloc");
    if (const cudaError_t e = forbid_in_capture(call)) return e;
    if (m.device_bytes + m.settings.used_by_others + bytes > m.settings.memory_bytes)
        return fail(cudaErrorMemoryAllocation, "cudaMalloc of " + text_of(bytes) + " bytes: the device is full.");
    *p = allocate(bytes, true);
    return *p != nullptr ? cudaSuccess : fail(cudaErrorMemoryAllocation, "cudaMalloc");
}

static cudaError_t free_memory(void* p, bool device, const char* call) {
    Machine& m = machine();
    if (const cudaError_t e = forbid_in_capture(call)) return e;
    if (p == nullptr) return cudaSuccess;
    Allocation* a = find(p);
    if (a == nullptr || a->begin != p || a->device != device || !a->live)
        return fail(cudaErrorInvalidValue, std::string(call) + " of a pointer that was not allocated, or twice.");
    for (auto* s : m.streams)  // cudaFree waits for the device
        if (const cudaError_t e = drain(s)) return e;
    release(*a);
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    ENTER("cudaFree");
    return free_memory(p, true, call);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
    ENTER("cudaHostAlloc");
    if (const cudaError_t e = forbid_in_capture(call)) return e;
    *p = allocate(bytes, false);
    return *p != nullptr ? cudaSuccess : fail(cudaErrorMemoryAllocation, call);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void* p) {
    ENTER("cudaFreeHost");
    return free_memory(p, false, call);
}

// A whole range within one allocation; "" if fine.
static std::string range_problem(const void* p, size_t bytes, bool device) {
    const Allocation* a = find(p);
    if (a == nullptr || a->device != device)
        return device ? "is not device memory" : "is not pinned host memory (cudaHostAlloc); a pageable copy is not asynchronous";
    if (!a->live) return "was freed";
    if (static_cast<const char*>(p) + bytes > a->begin + a->bytes) return "ends past allocation #" + std::to_string(a->id);
    return "";
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    ENTER("cudaMemcpyAsync");
    if (bytes == 0) return known_stream(s, call);
    if (kind == cudaMemcpyDefault || kind == cudaMemcpyHostToHost)
        return fail(cudaErrorInvalidMemcpyDirection, "cudaMemcpyAsync: name the direction.");
    const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    if (const std::string t = range_problem(to, bytes, to_device); !t.empty())
        return fail(cudaErrorInvalidValue, "cudaMemcpyAsync '" + current_label() + "': the destination " + t + ".");
    if (const std::string t = range_problem(from, bytes, from_device); !t.empty())
        return fail(cudaErrorInvalidValue, "cudaMemcpyAsync '" + current_label() + "': the source " + t + ".");
    Allocation *target = find(to), *source = find(from);
    const auto run = [=, label = current_label()] {
        if (from_device) {
            if (const char* problem = first_unwritten(from, bytes); problem != nullptr && !to_device)
                return break_device(cudaErrorIllegalAddress, "copy '" + label + "' reads " + describe_unwritten(problem) + ".");
        }
        {
            const Watched watched;
            std::memcpy(to, from, bytes);
        }
        if (to_device) copy_written(to, from_device ? from : nullptr, bytes);
        if (!from_device) --source->pending_reads;
    };
    const auto prepare = [=] {
        if (!from_device) ++source->pending_reads;
        if (!to_device && target->pending_reads == 0) std::memset(to, kPoison, bytes);  // undefined until the copy is waited for
    };
    return submit(s, {current_label(), run, prepare}, call);
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t s) {
    ENTER("cudaMemsetAsync");
    if (const std::string t = range_problem(p, bytes, true); !t.empty())
        return fail(cudaErrorInvalidValue, "cudaMemsetAsync '" + current_label() + "': the target " + t + ".");
    const auto run = [=] {
        {
            const Watched watched;
            std::memset(p, value, bytes);
        }
        copy_written(p, nullptr, bytes);
    };
    return submit(s, {current_label(), run}, call);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    ENTER("cudaStreamCreateWithFlags");
    *s = new CUstream_st{};
    (*s)->id = m.next_id++;
    (*s)->flags = flags;
    m.streams.insert(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    ENTER("cudaStreamDestroy");
    if (const cudaError_t e = known_stream(s, call)) return e;
    const cudaError_t e = drain(s);
    m.streams.erase(s);
    delete s;
    return e;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    ENTER("cudaStreamSynchronize");
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (s->capture) {
        s->capture->invalid = true;
        return fail(cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize of stream " + std::to_string(s->id) + ", which captures.");
    }
    return drain(s);
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    ENTER("cudaStreamQuery");
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (s->capture) {
        s->capture->invalid = true;
        return fail(cudaErrorStreamCaptureUnsupported, "cudaStreamQuery of a capturing stream.");
    }
    if (!s->queue.empty()) run_one(s);
    if (m.broken != cudaSuccess) return m.broken;
    return s->queue.empty() ? drain(s) : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize() {
    ENTER("cudaDeviceSynchronize");
    if (capturing_anywhere())
        if (const cudaError_t e = forbid_in_capture(call)) return e;
    for (auto* s : m.streams)
        if (const cudaError_t e = drain(s)) return e;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
    ENTER("cudaEventCreateWithFlags");
    m.events.insert(*e = new CUevent_st{});
    (*e)->flags = flags;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    ENTER("cudaEventDestroy");
    if (m.events.erase(e) == 0) return fail(cudaErrorInvalidResourceHandle, "cudaEventDestroy of an event that does not exist.");
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    ENTER("cudaEventRecord");
    if (!m.events.contains(e)) return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord of an event that does not exist.");
    if (const cudaError_t error = known_stream(s, call)) return error;
    if (s->capture) {
        e->capture = s->capture;
        e->nodes = s->tail;
        return cudaSuccess;
    }
    e->capture = nullptr;
    e->last = std::make_shared<Marker>(Marker{s});
    const auto run = [marker = e->last] {
        publish(&marker->token);
        marker->done = true;
        marker->kernels = machine().launches;
    };
    return submit(s, {"event", run}, call);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    ENTER("cudaStreamWaitEvent");
    if (const cudaError_t error = known_stream(s, call)) return error;
    if (!m.events.contains(e)) return fail(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent on an event that does not exist.");
    if (e->capture) {  // the waiting stream joins the capture
        if (s->capture && s->capture != e->capture) return fail(cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent joins two captures.");
        if (!s->capture) s->tail.clear();
        s->capture = e->capture;
        s->tail.insert(s->tail.end(), e->nodes.begin(), e->nodes.end());
        return cudaSuccess;
    }
    if (s->capture) {
        s->capture->invalid = true;
        return fail(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent: a capturing stream waits for work that is not captured.");
    }
    if (!e->last) return cudaSuccess;
    const auto wait = [marker = e->last] {
        while (!marker->done && machine().broken == cudaSuccess) run_one(marker->stream);
        observe(&marker->token);
    };
    return submit(s, {"wait", wait}, call);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    ENTER("cudaEventSynchronize");
    if (!m.events.contains(e)) return fail(cudaErrorInvalidResourceHandle, "cudaEventSynchronize of an event that does not exist.");
    if (e->capture) {
        e->capture->invalid = true;
        return fail(cudaErrorCapturedEvent, "cudaEventSynchronize of a captured event.");
    }
    if (const cudaError_t error = forbid_in_capture(call)) return error;
    if (!e->last) return cudaSuccess;
    while (!e->last->done && m.broken == cudaSuccess) run_one(e->last->stream);
    observe(&e->last->token);
    return m.broken;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    ENTER("cudaEventQuery");
    if (!m.events.contains(e)) return fail(cudaErrorInvalidResourceHandle, "cudaEventQuery of an event that does not exist.");
    if (e->capture) {
        e->capture->invalid = true;
        return fail(cudaErrorCapturedEvent, "cudaEventQuery of a captured event.");
    }
    if (const cudaError_t error = forbid_in_capture(call)) return error;
    if (!e->last) return cudaSuccess;
    if (e->last->done) return observe(&e->last->token), cudaSuccess;
    run_one(e->last->stream);  // polling makes progress
    return m.broken != cudaSuccess ? m.broken : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    ENTER("cudaEventElapsedTime");
    for (const auto e : {begin, end}) {
        if (!m.events.contains(e) || (e->flags & cudaEventDisableTiming) != 0 || !e->last)
            return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime needs two recorded events that take the time.");
        if (!e->last->done) return cudaErrorNotReady;
    }
    *milliseconds = static_cast<float>(end->last->kernels - begin->last->kernels);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    ENTER("cudaStreamBeginCapture");
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (s->capture) return fail(cudaErrorIllegalState, "cudaStreamBeginCapture of a stream that captures already.");
    s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), s});
    s->tail.clear();
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
    ENTER("cudaStreamIsCapturing");
    if (const cudaError_t e = known_stream(s, call)) return e;
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    ENTER("cudaStreamEndCapture");
    *graph = nullptr;
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (!s->capture) return fail(cudaErrorIllegalState, "cudaStreamEndCapture of a stream that does not capture.");
    const std::shared_ptr<Capture> capture = s->capture;
    if (capture->origin != s) {
        capture->invalid = true;
        return fail(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture on another stream than the one that began.");
    }
    if (capture->thread != std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed)
        return fail(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture from another thread.");
    std::set<size_t> reached;  // every node must lead to the origin's tail
    std::vector<size_t> open = s->tail;
    while (!open.empty()) {
        const size_t n = open.back();
        open.pop_back();
        if (reached.insert(n).second) open.insert(open.end(), capture->nodes[n].after.begin(), capture->nodes[n].after.end());
    }
    const bool unjoined = reached.size() != capture->nodes.size();
    for (auto* other : m.streams)
        if (other->capture == capture) {
            other->capture = nullptr;
            other->tail.clear();
        }
    if (capture->invalid)
        return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture: an earlier call made the capture invalid (" + m.report + ")");
    if (unjoined) return fail(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture: a forked stream was not joined.");
    m.graphs.insert(*graph = new CUgraph_st{std::move(capture->nodes)});
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    ENTER("cudaGraphInstantiate");
    if (!m.graphs.contains(graph)) return fail(cudaErrorInvalidValue, "cudaGraphInstantiate of a graph that does not exist.");
    const auto e = std::make_shared<CUgraphExec_st>(CUgraphExec_st{graph->nodes, {}});
    std::vector<bool> continued(e->nodes.size(), false);
    for (const Node& n : e->nodes) {
        const bool goes_on = !n.after.empty() && !continued[n.after[0]];
        if (goes_on)
            continued[n.after[0]] = true;
        else
            e->lanes.emplace_back();
        e->lane.push_back(goes_on ? e->lane[n.after[0]] : e->lanes.size() - 1);
    }
    m.execs[*exec = e.get()] = e;
    return cudaSuccess;
}
// Any topological order is legal.
static void run_graph(CUgraphExec_st& exec) {
    Machine& m = machine();
    const std::vector<Node>& nodes = exec.nodes;
    std::vector<bool> done(nodes.size(), false);
    std::vector<std::unique_ptr<char>> tokens(nodes.size() + 2);
    for (auto& token : tokens) token = std::make_unique<char>();
    void *begin = tokens[nodes.size()].get(), *end = tokens[nodes.size() + 1].get();
    publish(begin);
    const auto ready = [&](size_t i) {
        const auto& after = nodes[i].after;
        return !done[i] && std::all_of(after.begin(), after.end(), [&](size_t a) { return done[a]; });
    };
    size_t first = 0;  // nodes before it are done
    for (size_t left = nodes.size(); left > 0 && m.broken == cudaSuccess; --left) {
        while (done[first]) ++first;
        std::vector<size_t> candidates;
        for (size_t i = first; i < nodes.size() && (candidates.empty() || m.settings.seed != 0); ++i)
            if (ready(i)) candidates.push_back(i);
        const size_t i = candidates[m.settings.seed != 0 ? m.random() % candidates.size() : 0];
        exec.lanes[exec.lane[i]].run([&] {
            observe(begin);
            for (const size_t a : nodes[i].after) observe(tokens[a].get());
            nodes[i].work.run();
            publish(tokens[i].get());
            publish(end);
        });
        done[i] = true;
    }
    observe(end);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    ENTER("cudaGraphLaunch");
    if (!m.execs.contains(exec)) return fail(cudaErrorInvalidValue, "cudaGraphLaunch of a graph that does not exist.");
    if (const cudaError_t e = known_stream(s, call)) return e;
    if (s->capture) {
        s->capture->invalid = true;
        return fail(cudaErrorStreamCaptureUnsupported, "cudaGraphLaunch within a capture (a child graph; not emulated).");
    }
    const auto run = [exec = m.execs[exec]] { run_graph(*exec); };
    const auto prepare = [exec = m.execs[exec]] {
        for (const Node& n : exec->nodes)
            if (n.work.prepare) n.work.prepare();
    };
    return submit(s, {"graph", run, prepare}, call);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    ENTER("cudaGraphExecDestroy");
    if (m.execs.erase(exec) == 0) return fail(cudaErrorInvalidValue, "cudaGraphExecDestroy of a graph that does not exist.");
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    ENTER("cudaGraphDestroy");
    if (m.graphs.erase(graph) == 0) return fail(cudaErrorInvalidValue, "cudaGraphDestroy of a graph that does not exist.");
    delete graph;
    return cudaSuccess;
}

}  // extern "C"
