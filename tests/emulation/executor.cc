// One kernel on the CPU. A CUDA thread is a fiber; barriers and shuffles are rendezvous between fibers.
// A thread that meets no rendezvous returns and the next one uses the same fiber, so element-wise kernels never switch.
#include "tests/emulation/executor.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/cuda_on_host.h"
#include "tests/emulation/shared_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
// This file itself is compiled without -fsanitize=thread: the scheduler is not part of the program under test.
#if defined(CUDA_ON_HOST_RACE)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
constexpr bool kRace = true;
#else
constexpr bool kRace = false;
#endif

// The toolkit declares these const, for kernels; the executor knows better.
extern uint3 thread_index asm("threadIdx"), block_index asm("blockIdx");
extern dim3 block_dim asm("blockDim"), grid_dim asm("gridDim");

namespace cuda_on_host {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(CUDA_ON_HOST_RACE)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kPage = 4096;

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* tsan = nullptr;
    bool entered = false;
    int thread = -1;  // index in the block
};

}  // namespace

struct Timeline::Fibers {
    std::vector<std::unique_ptr<Fiber>> all;
    ~Fibers() { clear(); }
    Fiber* add();
    void clear();
};

#if defined(__x86_64__)
extern "C" void cuda_on_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_on_host_switch
.type cuda_on_host_switch,@function
cuda_on_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_host_switch,.-cuda_on_host_switch
)");
#else
#error "port cuda_on_host_switch (20 lines) or use swapcontext, which is about 20 times slower"
#endif

namespace {

enum class State { unstarted, ready, barrier, exchange, done };

struct Thread {
    State state = State::unstarted;
    Fiber* fiber = nullptr;
    Site site = {};
    Exchange kind = {};
    unsigned mask = 0;
    int argument = 0, width = 0;
    uint64_t value = 0, result = 0;
};

struct Warp {
    unsigned waiting = 0, exited = 0, phase = 0;  // lanes
};

struct Tokens {
    char launch, barrier[2], warp[32][2];
};

struct Block {
    const Kernel* kernel = nullptr;
    std::mt19937_64* random = nullptr;
    std::vector<Thread> threads;
    std::vector<int> order;  // in which threads start
    size_t number = 0, started = 0, done = 0, at_barrier = 0;
    std::vector<int> ready;  // taken from the back
    Timeline::Fibers* fibers = nullptr;
    std::vector<Fiber*> idle;
    Fiber scheduler;
    Fiber* current = nullptr;
    std::string error;
    Warp warps[32];
    int first_at_barrier = -1;
    unsigned barrier_phase = 0;
    std::unique_ptr<Tokens> tokens;  // fresh ones for each block: an old address would carry old order
    std::unique_ptr<char> end_token;
};

Block block_now;
bool in_kernel = false;
uint64_t race_count = 0;

std::string at(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string place(int thread) {
    const dim3 b = block_now.kernel->block;
    const unsigned t = static_cast<unsigned>(thread);
    char text[160];
    std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", block_index.x, block_index.y, block_index.z, t % b.x,
                  t / b.x % b.y, t / b.x / b.y);
    return text;
}

void enter_thread(int index) {
    const dim3 b = block_now.kernel->block;
    const unsigned t = static_cast<unsigned>(index);
    thread_index = {t % b.x, t / b.x % b.y, t / b.x / b.y};
}

void switch_to(Fiber& to) {
    Fiber& from = *block_now.current;
    if (&from == &to) return;
    block_now.current = &to;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(CUDA_ON_HOST_RACE)
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    cuda_on_host_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
    if (from.thread >= 0) enter_thread(from.thread);
}

void note_error(const std::string& what) { block_now.error = place(block_now.current->thread) + " " + what; }

// With nothing left to destroy in the caller: its frame and those of the kernel never go on.
[[noreturn]] void abandon() {
    publish(block_now.end_token.get());
    switch_to(block_now.scheduler);
    std::abort();
}

// The current fiber has nothing to do: goes on with a ready thread, or starts one, or ends the block.
void switch_to_next() {
    Block& b = block_now;
    const bool can_start = b.started < b.order.size();
    if (!b.ready.empty() && (!can_start || b.random == nullptr || ((*b.random)() & 1))) {
        const int t = b.ready.back();
        b.ready.pop_back();
        if (b.threads[t].fiber != b.current) switch_to(*b.threads[t].fiber);
    } else if (can_start) {
        Fiber* fiber = b.idle.empty() ? b.fibers->add() : b.idle.back();
        if (!b.idle.empty()) b.idle.pop_back();
        switch_to(*fiber);
    } else {
        switch_to(b.scheduler);
    }
}

[[noreturn]] void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    watch(false);
    Block& b = block_now;
    b.current->entered = true;
    for (;;) {
        Fiber* self = b.current;
        while (b.started < b.order.size()) {
            self->thread = b.order[b.started++];
            b.threads[self->thread].fiber = self;
            enter_thread(self->thread);
            observe(&b.tokens->launch);
            {
                Watched watched;
                b.kernel->body->run();
            }
            publish(b.end_token.get());
            b.threads[self->thread].state = State::done;
            b.warps[self->thread / 32].exited |= 1u << self->thread % 32;
            ++b.done;
            if (kRace || !b.ready.empty()) break;
        }
        self->thread = -1;
        if (!kRace) b.idle.push_back(self);  // to ThreadSanitizer a fiber is a thread
        switch_to_next();
    }
}

void make_ready(int t) {
    block_now.threads[t].state = State::ready;
    block_now.ready.push_back(t);
}

void shuffle_ready() {
    if (block_now.random)
        std::shuffle(block_now.ready.begin(), block_now.ready.end(), *block_now.random);
    else
        std::reverse(block_now.ready.begin(), block_now.ready.end());
}

// Nothing can run and threads are left: says who waits for whom.
std::string describe_deadlock() {
    int barrier = -1, exchange = -1, exited = -1;
    const Block& b = block_now;
    for (int t = 0; t < static_cast<int>(b.threads.size()); ++t) {
        const State s = b.threads[t].state;
        if (s == State::barrier && barrier < 0) barrier = t;
        if (s == State::exchange && exchange < 0) exchange = t;
        if (s == State::done && exited < 0) exited = t;
    }
    std::string text;
    if (barrier >= 0) text = place(barrier) + " waits at __syncthreads " + at(b.threads[barrier].site);
    if (exchange >= 0)
        text += (text.empty() ? "" : " while ") + place(exchange) + " waits at a warp operation " + at(b.threads[exchange].site);
    if (exited >= 0) text += ", but " + place(exited) + " has exited";
    return text + " (" + std::to_string(b.done) + " of " + std::to_string(b.threads.size()) + " threads exited).";
}

void run_block() {
    Unwatched unwatched;
    Block& b = block_now;
    const unsigned n = b.kernel->block.x * b.kernel->block.y * b.kernel->block.z;
    b.threads.assign(n, {});
    b.order.resize(n);
    for (unsigned i = 0; i < n; ++i) b.order[i] = static_cast<int>(i);
    if (b.random) std::shuffle(b.order.begin(), b.order.end(), *b.random);
    b.started = b.done = b.at_barrier = 0;
    b.ready.clear();
    std::fill(std::begin(b.warps), std::end(b.warps), Warp{});
    b.tokens = std::make_unique<Tokens>();
    b.idle.clear();
    for (auto& fiber : b.fibers->all) b.idle.push_back(fiber.get());
    if (b.random) std::shuffle(b.idle.begin(), b.idle.end(), *b.random);
    b.scheduler.thread = -1;
#if defined(CUDA_ON_HOST_RACE)
    b.scheduler.tsan = __tsan_get_current_fiber();
#endif
    b.current = &b.scheduler;
#if defined(__SANITIZE_ADDRESS__)
    if (b.scheduler.stack == nullptr) {
        pthread_attr_t attributes;
        void* stack = nullptr;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack, &b.scheduler.stack_bytes);
        pthread_attr_destroy(&attributes);
        b.scheduler.stack = static_cast<char*>(stack);
    }
#endif
    while (kRace && b.idle.size() < n) b.idle.push_back(b.fibers->add());
    // Thread t of another block must be another thread to ThreadSanitizer, or it would not see races between the two.
    if (kRace) std::rotate(b.idle.begin(), b.idle.begin() + b.number++ * 37 % b.idle.size(), b.idle.end());
    poison_shared_memory(b.kernel->shared_bytes);
    publish(&b.tokens->launch);
    switch_to_next();
    if (b.error.empty() && dynamic_shared_overrun(b.kernel->shared_bytes))
        b.error = place(0) + " or another of its block wrote past the " + std::to_string(b.kernel->shared_bytes) +
                  " bytes of dynamic shared memory.";
    if (b.error.empty() && b.done != n) b.error = describe_deadlock();
}

extern "C" void cuda_on_host_abandon_after_fault() {
    watch(false);
    abandon();
}

void on_fault(int, siginfo_t* info, void* raw_context) {
    if (open_for_work(info->si_addr)) return;
    const std::string what = "touches " + describe(info->si_addr);
    if (!inside_kernel()) {
        std::fprintf(stderr, "cuda_on_host: host code %s\n", what.c_str());
        ::signal(SIGSEGV, SIG_DFL);
        return;  // faults again, for a core dump or a debugger
    }
    block_now.error = place(block_now.current->thread) + " " + what;
    auto* context = static_cast<ucontext_t*>(raw_context);
    context->uc_mcontext.gregs[REG_RSP] = ((context->uc_mcontext.gregs[REG_RSP] - 256) & ~15ll) - 8;
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<long long>(&cuda_on_host_abandon_after_fault);
}

void install_fault_handler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}

struct Installer {
    Installer() { install_fault_handler(); }
} installer;

}  // namespace

Fiber* Timeline::Fibers::add() {
    auto fiber = std::make_unique<Fiber>();
    char* map =
        static_cast<char*>(mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED) std::abort();
    mprotect(map, kPage, PROT_NONE);
    fiber->stack = map + kPage;
    fiber->stack_bytes = kStackBytes;
    void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes);
    *--top = nullptr;  // keeps the ABI's alignment at fiber_main's entry
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber->stack_pointer = top;
#if defined(CUDA_ON_HOST_RACE)
    fiber->tsan = __tsan_create_fiber(0);
#endif
    all.push_back(std::move(fiber));
    return all.back().get();
}

void Timeline::Fibers::clear() {
    for (auto& f : all) {
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(f->stack, f->stack_bytes);
#endif
#if defined(CUDA_ON_HOST_RACE)
        void* self = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(f->tsan, __tsan_switch_to_fiber_no_sync);
        if (f->entered) watch(true);  // it must not end unwatched
        __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
        __tsan_destroy_fiber(f->tsan);
#endif
        munmap(f->stack - kPage, f->stack_bytes + kPage);
    }
    all.clear();
}

Timeline* Timeline::current_ = nullptr;

#if defined(CUDA_ON_HOST_RACE)
Timeline::Timeline() : fibers_(std::make_unique<Fibers>()), tsan_(__tsan_create_fiber(0)) {}
Timeline::~Timeline() { __tsan_destroy_fiber(tsan_); }
void Timeline::run(const std::function<void()>& work) {
    void* caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
    watch(false);
    Timeline* previous = std::exchange(current_, this);
    work();
    current_ = previous;
    watch(true);
    __tsan_switch_to_fiber(caller, __tsan_switch_to_fiber_no_sync);
}
void publish(void* token) { __tsan_release(token); }
void observe(void* token) { __tsan_acquire(token); }
void watch(bool on) {
    if (on)
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__), AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    else
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
#else
Timeline::Timeline() : fibers_(std::make_unique<Fibers>()) {}
Timeline::~Timeline() = default;
void Timeline::run(const std::function<void()>& work) {
    Timeline* previous = std::exchange(current_, this);
    work();
    current_ = previous;
}
#endif

bool inside_kernel() { return in_kernel && block_now.current != nullptr && block_now.current->thread >= 0; }

void fail_kernel(const std::string& what) {
    const Unwatched unwatched;
    if (block_now.error.empty()) note_error(what);
}

void barrier(Site site) {
    Unwatched unwatched;
    Block& b = block_now;
    const int self = b.current->thread;
    Thread& me = b.threads[self];
    if (b.at_barrier == 0) b.first_at_barrier = self;
    const Site other = b.at_barrier == 0 ? site : b.threads[b.first_at_barrier].site;
    if (other.line != site.line || std::strcmp(other.file, site.file) != 0) {
        note_error("waits at __syncthreads " + at(site) + ", but " + place(b.first_at_barrier) + " waits at " + at(other) + ".");
        abandon();
    }
    me.state = State::barrier;
    me.site = site;
    void* token = &b.tokens->barrier[b.barrier_phase & 1];
    publish(token);
    if (++b.at_barrier == b.threads.size()) {
        b.at_barrier = 0;
        ++b.barrier_phase;
        for (int t = 0; t < static_cast<int>(b.threads.size()); ++t) make_ready(t);
        shuffle_ready();
    }
    switch_to_next();
    observe(token);
}

uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int argument, int width, Site site) {
    Unwatched unwatched;
    Block& b = block_now;
    const int self = b.current->thread, warp = self / 32, lane = self % 32;
    if ((mask >> lane & 1) == 0) {
        note_error("is not in the mask of its own warp operation at " + at(site) + ".");
        abandon();
    }
    Thread& me = b.threads[self];
    me.state = State::exchange;
    me.site = site;
    me.kind = kind;
    me.mask = mask;
    me.value = value;
    me.argument = argument;
    me.width = width;
    Warp& w = b.warps[warp];
    const size_t lanes = std::min<size_t>(32, b.threads.size() - warp * 32);
    const unsigned absent = lanes == 32 ? 0 : ~0u << lanes;
    if (mask & (absent | w.exited)) {
        note_error("names lane " + std::to_string(__builtin_ctz(mask & (absent | w.exited))) + " at " + at(site) + ", which " +
                   (mask & absent ? "the block does not have." : "has exited."));
        abandon();
    }
    for (unsigned others = w.waiting & mask; others != 0; others &= others - 1) {
        const Thread& other = b.threads[warp * 32 + __builtin_ctz(others)];
        if (other.mask == mask && other.kind == kind && other.site.line == site.line) break;
        char masks[2][16];
        std::snprintf(masks[0], sizeof masks[0], "%08x", mask);
        std::snprintf(masks[1], sizeof masks[1], "%08x", other.mask);
        {
            note_error("at " + at(site) + " with mask " + masks[0] + " meets a lane at " + at(other.site) + " with mask " + masks[1] + ".");
            abandon();
        }
    }
    w.waiting |= 1u << lane;
    void* token = &b.tokens->warp[warp][w.phase & 1];
    if (kind == Exchange::sync) publish(token);  // shuffles order no memory
    if ((mask & ~w.waiting) == 0) {
        w.waiting &= ~mask;
        ++w.phase;
        uint64_t ballot = 0;
        for (int l = 0; l < 32; ++l)
            if (mask >> l & 1) ballot |= (b.threads[warp * 32 + l].value & 1) << l;
        for (int l = 0; l < 32; ++l) {
            if ((mask >> l & 1) == 0) continue;
            Thread& t = b.threads[warp * 32 + l];
            const int base = l / t.width * t.width, last = base + t.width - 1;
            int source = l;
            switch (kind) {
                case Exchange::down:
                    source = l + t.argument > last ? l : l + t.argument;
                    break;
                case Exchange::up:
                    source = l - t.argument < base ? l : l - t.argument;
                    break;
                case Exchange::exclusive_or:
                    source = (l ^ t.argument) > last ? l : l ^ t.argument;
                    break;
                case Exchange::index:
                    source = base + t.argument % t.width;
                    break;
                default:
                    break;
            }
            if (kind == Exchange::ballot)
                t.result = ballot;
            else if (mask >> source & 1)
                t.result = b.threads[warp * 32 + source].value;
            else
                t.result = ~uint64_t{0};  // undefined on a GPU: a NaN here
            make_ready(warp * 32 + l);
        }
        shuffle_ready();
    }
    switch_to_next();
    if (kind == Exchange::sync) observe(token);
    return me.result;
}

std::string run_kernel(const Kernel& kernel, std::mt19937_64* random) {
    Block& b = block_now;
    b.kernel = &kernel;
    b.random = random;
    b.fibers = &Timeline::fibers_of_current();
    b.error.clear();
    grid_dim = kernel.grid;
    block_dim = kernel.block;
    b.end_token = std::make_unique<char>();
    in_kernel = true;
    const uint64_t blocks = uint64_t{kernel.grid.x} * kernel.grid.y * kernel.grid.z;
    std::vector<uint32_t> order(random ? blocks : 0);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
    if (random) std::shuffle(order.begin(), order.end(), *random);
    for (uint64_t k = 0; k < blocks && b.error.empty(); ++k) {
        const uint64_t i = random ? order[k] : k;
        block_index = {static_cast<unsigned>(i % kernel.grid.x), static_cast<unsigned>(i / kernel.grid.x % kernel.grid.y),
                       static_cast<unsigned>(i / kernel.grid.x / kernel.grid.y)};
        // Shared memory is thread_local: with a system thread a block, ThreadSanitizer sees that blocks do not share it.
        if (kRace)
            std::thread(run_block).join();
        else
            run_block();
    }
    in_kernel = false;
    observe(b.end_token.get());
    b.current = nullptr;
    if (!b.error.empty()) b.fibers->clear();
    return b.error.empty() ? "" : "kernel '" + kernel.label + "', " + b.error;
}

uint64_t races() { return race_count; }
bool checks_races() { return kRace; }

}  // namespace cuda_on_host

#if defined(CUDA_ON_HOST_RACE)
extern "C" void __tsan_on_report(void*) { ++cuda_on_host::race_count; }
extern "C" const char* __tsan_default_options() {
    return "report_signal_unsafe=0:exitcode=0:suppress_equal_stacks=0:suppress_equal_addresses=0:atexit_sleep_ms=0";
}  // tests count the reports
#endif
