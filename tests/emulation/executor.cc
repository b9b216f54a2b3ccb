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
constexpr size_t kPage = 4096, kCanaryBytes = 1024;
constexpr int kMaxCluster = 2, kMaxWarps = 32 * kMaxCluster;

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* tsan = nullptr;
    bool entered = false;
    int thread = -1;  // number in the cluster
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

enum class State { unstarted, ready, barrier, exchange, waiting, done };

struct Thread {
    State state = State::unstarted;
    Fiber* fiber = nullptr;
    Site site = {};
    Exchange kind = {};
    unsigned mask = 0;
    int argument = 0, width = 0;
    uint64_t value = 0, result = 0;
    const Wait* wait = nullptr;
};

struct Warp {
    unsigned waiting = 0, exited = 0, phase = 0;  // lanes
};

struct Tokens {
    char launch, barrier[2], warp[kMaxWarps][2];
};

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};

// The blocks of a cluster, mostly one, count as one.
struct Block {
    const Kernel* kernel = nullptr;
    std::mt19937_64* random = nullptr;
    std::vector<Thread> threads;
    std::vector<int> order;  // in which threads start
    size_t number = 0, started = 0, done = 0, at_barrier = 0;
    std::vector<int> ready;  // taken from the back
    std::vector<int> waiting;
    std::vector<std::function<void()>> events;
    Timeline::Fibers* fibers = nullptr;
    std::vector<Fiber*> idle;
    Fiber scheduler;
    Fiber* current = nullptr;
    std::string error;
    int per_block = 0, warps_per_block = 0;
    uint3 first = {};            // index of the first block
    int left[kMaxCluster] = {};  // threads of each that have not ended
    std::unique_ptr<uint8_t, Free> shared[kMaxCluster];
    std::unique_ptr<Extension> extension;
    Warp warps[kMaxWarps];
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
    const unsigned t = static_cast<unsigned>(thread % block_now.per_block), rank = static_cast<unsigned>(thread / block_now.per_block);
    const uint3 first = block_now.first;
    char text[160];
    std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", first.x + rank, first.y, first.z, t % b.x, t / b.x % b.y,
                  t / b.x / b.y);
    return text;
}

void enter_thread(int number) {
    const dim3 b = block_now.kernel->block;
    unsigned t = static_cast<unsigned>(number);
    if (block_now.kernel->cluster > 1) {
        const unsigned n = static_cast<unsigned>(block_now.per_block);
        block_index.x = block_now.first.x + t / n;
        t %= n;
    }
    thread_index = {t % b.x, t / b.x % b.y, t / b.x / b.y};
}

int warp_of(int thread) { return thread / block_now.per_block * block_now.warps_per_block + thread % block_now.per_block / 32; }
int lane_of(int thread) { return thread % block_now.per_block % 32; }

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

// Those go on whose wait is over, but for some warps.
bool wake(uint64_t asleep) {
    Block& b = block_now;
    const size_t before = b.waiting.size();
    std::erase_if(b.waiting, [&](int t) {
        if ((asleep >> warp_of(t) & 1) != 0 || !b.threads[t].wait->over()) return false;
        make_ready(t);
        return true;
    });
    if (b.waiting.size() == before) return false;
    shuffle_ready();
    return true;
}

void let_happen(size_t i) {
    Block& b = block_now;
    const std::function<void()> event = std::move(b.events[i]);
    b.events.erase(b.events.begin() + static_cast<ptrdiff_t>(i));
    event();
}

// Waits and events have their turn when nothing else can run, with a seed now and then before.
void poll() {
    Block& b = block_now;
    const auto busy = [&] { return !b.ready.empty() || b.started < b.order.size(); };
    if (b.random != nullptr) {
        if (busy() && (*b.random)() % 8 != 0) return;
        if (!b.events.empty() && ((*b.random)() & 1) != 0) let_happen((*b.random)() % b.events.size());
        wake((*b.random)());
    }
    while (!busy() && !wake(0) && !b.events.empty() && b.error.empty()) let_happen(b.random ? (*b.random)() % b.events.size() : 0);
}

// The current fiber has nothing to do: goes on with a ready thread, or starts one, or ends the block.
void switch_to_next() {
    Block& b = block_now;
    if (!b.waiting.empty() || !b.events.empty()) {
        poll();
        if (!b.error.empty()) abandon();
    }
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
            b.warps[warp_of(self->thread)].exited |= 1u << lane_of(self->thread);
            --b.left[self->thread / b.per_block];
            ++b.done;
            if (kRace || !b.ready.empty() || (b.random && !b.waiting.empty())) break;
        }
        self->thread = -1;
        if (!kRace) b.idle.push_back(self);  // to ThreadSanitizer a fiber is a thread
        switch_to_next();
    }
}

// Waits alike of threads side by side are told once.
std::string describe_waits() {
    const Block& b = block_now;
    std::string text, last, first_place;
    int alike = 0, told = 0;
    const auto tell = [&] {
        if (alike == 0 || ++told > 12) return;
        text += (text.empty() ? "" : "; ") + first_place + (alike > 1 ? " and " + std::to_string(alike - 1) + " more" : "") + " " + last;
    };
    for (int t = 0; t < static_cast<int>(b.threads.size()); ++t) {
        if (b.threads[t].state != State::waiting) continue;
        const std::string what = "waits " + b.threads[t].wait->what();
        const bool same = alike > 0 && what == last && t % b.per_block != 0;
        if (!same) {
            tell();
            alike = 0;
            last = what;
            first_place = place(t);
        }
        ++alike;
    }
    tell();
    return text + (told > 12 ? "; ..." : "");
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
    std::string text = describe_waits();
    if (barrier >= 0) text += (text.empty() ? "" : " while ") + place(barrier) + " waits at __syncthreads " + at(b.threads[barrier].site);
    if (exchange >= 0)
        text += (text.empty() ? "" : " while ") + place(exchange) + " waits at a warp operation " + at(b.threads[exchange].site);
    if (exited >= 0) text += ", but " + place(exited) + " has exited";
    return text + " (" + std::to_string(b.done) + " of " + std::to_string(b.threads.size()) + " threads exited).";
}

// Of memory that shared_memory_of() gave out.
bool canary_overwritten() {
    const size_t bytes = block_now.kernel->shared_bytes;
    const auto written = [bytes](const auto& memory) {
        return memory && std::any_of(memory.get() + bytes, memory.get() + bytes + kCanaryBytes, [](uint8_t c) { return c != 0xff; });
    };
    return std::any_of(std::begin(block_now.shared), std::end(block_now.shared), written);
}

void run_block() {
    Unwatched unwatched;
    Block& b = block_now;
    const unsigned per_block = b.kernel->block.x * b.kernel->block.y * b.kernel->block.z;
    const unsigned n = per_block * static_cast<unsigned>(b.kernel->cluster);
    b.per_block = static_cast<int>(per_block);
    b.warps_per_block = (b.per_block + 31) / 32;
    b.first = block_index;
    std::fill(std::begin(b.left), std::end(b.left), b.per_block);
    for (auto& memory : b.shared) memory.reset();
    b.extension.reset();
    b.waiting.clear();
    b.events.clear();
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
    if (b.error.empty() && (dynamic_shared_overrun(b.kernel->shared_bytes) || canary_overwritten()))
        b.error = place(0) + " or another of its block wrote past the " + std::to_string(b.kernel->shared_bytes) +
                  " bytes of dynamic shared memory.";
    if (b.error.empty() && b.done != n) b.error = describe_deadlock();
    if (b.error.empty() && b.extension) b.error = b.extension->left_undone();
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

void fail_kernel(int thread, const std::string& what) {
    if (block_now.error.empty()) block_now.error = place(thread) + " " + what;
}
void abandon_kernel() { abandon(); }

void wait_until(const Wait& wait) {
    Block& b = block_now;
    if ((b.random == nullptr || (*b.random)() % 3 != 0) && wait.over()) return;
    const int self = b.current->thread;
    b.threads[self].state = State::waiting;
    b.threads[self].wait = &wait;
    b.waiting.push_back(self);
    switch_to_next();
}
void give_way() {
    Block& b = block_now;
    if (b.random == nullptr || (*b.random)() % 4 != 0) return;
    make_ready(b.current->thread);
    shuffle_ready();
    switch_to_next();
}
void take_effect_later(std::function<void()> event) { block_now.events.push_back(std::move(event)); }
std::unique_ptr<Extension>& extension() { return block_now.extension; }
int current_thread() { return block_now.current->thread; }
int threads_of_block() { return block_now.per_block; }
int blocks_of_cluster() { return block_now.kernel->cluster; }
bool block_ended(int rank) { return block_now.left[rank] == 0; }
size_t shared_bytes() { return block_now.kernel->shared_bytes; }
std::mt19937_64* kernel_random() { return block_now.random; }

// New memory for each block: to ThreadSanitizer nobody has ever touched it.
uint8_t* shared_memory_of(int rank) {
    Block& b = block_now;
    if (b.shared[rank] == nullptr) {
        const size_t bytes = (b.kernel->shared_bytes + kCanaryBytes + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
        b.shared[rank].reset(static_cast<uint8_t*>(std::aligned_alloc(kSharedAlign, bytes)));
        std::memset(b.shared[rank].get(), 0xff, bytes);
    }
    return b.shared[rank].get();
}

void barrier(Site site) {
    Unwatched unwatched;
    Block& b = block_now;
    const int self = b.current->thread;
    if (b.kernel->cluster > 1) {  // static shared memory, which the blocks of a cluster would have in common here, does not come alone
        note_error("waits at __syncthreads " + at(site) + " in a kernel of a cluster: use the cluster's barrier.");
        abandon();
    }
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
    const int self = b.current->thread, warp = warp_of(self), lane = lane_of(self), first = self - lane;
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
    const int lanes = std::min(32, b.per_block - first % b.per_block);
    const unsigned absent = lanes == 32 ? 0 : ~0u << lanes;
    if (mask & (absent | w.exited)) {
        note_error("names lane " + std::to_string(__builtin_ctz(mask & (absent | w.exited))) + " at " + at(site) + ", which " +
                   (mask & absent ? "the block does not have." : "has exited."));
        abandon();
    }
    for (unsigned others = w.waiting & mask; others != 0; others &= others - 1) {
        const Thread& other = b.threads[first + __builtin_ctz(others)];
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
            if (mask >> l & 1) ballot |= (b.threads[first + l].value & 1) << l;
        for (int l = 0; l < 32; ++l) {
            if ((mask >> l & 1) == 0) continue;
            Thread& t = b.threads[first + l];
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
                t.result = b.threads[first + source].value;
            else
                t.result = ~uint64_t{0};  // undefined on a GPU: a NaN here
            make_ready(first + l);
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
    const unsigned cluster = static_cast<unsigned>(kernel.cluster), across = kernel.grid.x / cluster;
    const uint64_t blocks = uint64_t{across} * kernel.grid.y * kernel.grid.z;
    std::vector<uint32_t> order(random ? blocks : 0);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
    if (random) std::shuffle(order.begin(), order.end(), *random);
    for (uint64_t k = 0; k < blocks && b.error.empty(); ++k) {
        const uint64_t i = random ? order[k] : k;
        block_index = {static_cast<unsigned>(i % across) * cluster, static_cast<unsigned>(i / across % kernel.grid.y),
                       static_cast<unsigned>(i / across / kernel.grid.y)};
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
