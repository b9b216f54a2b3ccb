// Told of every access by the calls that -fsanitize=thread puts into the code: this build links these functions in place of
// ThreadSanitizer's. Only the code under test is compiled so; the emulation's own accesses are not seen.
#include "tests/emulation/written.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "tests/emulation/control.h"
#include "tests/emulation/executor.h"

namespace cuda_on_host {

std::string describe_unwritten(const void* address) {
    std::string text = "bytes that nobody wrote, in " + describe(address);
    if (text.ends_with('.')) text.pop_back();
    return text;
}

bool checks_bounds() {
#ifdef __SANITIZE_ADDRESS__
    return true;
#else
    return false;
#endif
}
bool checks_accesses() { return checks_races() || checks_reads() || checks_bounds(); }

#ifndef CUDA_ON_HOST_INIT

bool checks_reads() { return false; }

#else

namespace {

struct Shadow {
    char* begin = nullptr;
    std::vector<char> written;  // a byte each
};
// By address. last: most accesses in a row are to one allocation.
std::map<char*, Shadow> watched;
Shadow* last = nullptr;

Shadow* watched_at(const void* address) {
    auto* p = static_cast<char*>(const_cast<void*>(address));
    const auto holds = [p](const Shadow* w) { return w != nullptr && p >= w->begin && p < w->begin + w->written.size(); };
    if (holds(last)) return last;
    auto it = watched.upper_bound(p);
    if (it == watched.begin()) return nullptr;
    Shadow* w = &std::prev(it)->second;
    return holds(w) ? last = w : nullptr;
}

void set_written(void* memory, size_t bytes, bool on) {
    Shadow* w = watched_at(memory);
    if (w == nullptr) return;
    const auto at = static_cast<size_t>(static_cast<char*>(memory) - w->begin);
    std::memset(w->written.data() + at, on ? 1 : 0, std::min(bytes, w->written.size() - at));
}

}  // namespace

bool checks_reads() { return true; }

void watch_writes(char* memory, size_t bytes) { watched[memory] = {memory, std::vector<char>(bytes)}; }
void unwatch_writes(char* memory) {
    watched.erase(memory);
    last = nullptr;
}
void note_unwritten(void* memory, size_t bytes) { set_written(memory, bytes, false); }

void copy_written(void* to, const void* from, size_t bytes) {
    if (from == nullptr) return set_written(to, bytes, true);
    const Shadow* source = watched_at(from);
    const std::vector<char> state(
        source->written.begin() + (static_cast<const char*>(from) - source->begin),
        source->written.begin() + (static_cast<const char*>(from) - source->begin) + static_cast<ptrdiff_t>(bytes));
    Shadow* target = watched_at(to);
    std::copy(state.begin(), state.end(), target->written.begin() + (static_cast<char*>(to) - target->begin));
}

const char* first_unwritten(const void* memory, size_t bytes) {
    const Shadow* w = watched_at(memory);
    if (w == nullptr) return nullptr;
    const auto at = static_cast<size_t>(static_cast<const char*>(memory) - w->begin);
    const char* begin = w->written.data() + at;
    const void* found = std::memchr(begin, 0, std::min(bytes, w->written.size() - at));
    return found == nullptr ? nullptr : static_cast<const char*>(memory) + (static_cast<const char*>(found) - begin);
}

namespace {

// Reads of unwritten bytes by the kernel that runs, and whose.
struct Read {
    const char* address;
    size_t bytes;
    uint3 block, thread;
};
std::vector<Read> suspects;

void on_write(void* address, size_t bytes) {
    if (inside_kernel()) set_written(address, bytes, true);
}

void on_read(void* address, size_t bytes) {
    if (inside_kernel() && first_unwritten(address, bytes) != nullptr)
        suspects.push_back({static_cast<const char*>(address), bytes, blockIdx, threadIdx});
}

}  // namespace

std::string unwritten_reads() {
    std::string text;
    for (const Read& r : std::exchange(suspects, {})) {
        const char* unwritten = first_unwritten(r.address, r.bytes);
        if (unwritten == nullptr || !text.empty()) continue;
        char place[160];
        std::snprintf(place, sizeof place, "block (%u,%u,%u) thread (%u,%u,%u) reads ", r.block.x, r.block.y, r.block.z, r.thread.x,
                      r.thread.y, r.thread.z);
        text = place + describe_unwritten(unwritten);
    }
    return text;
}

#endif

}  // namespace cuda_on_host

#ifdef CUDA_ON_HOST_INIT

using cuda_on_host::on_read;
using cuda_on_host::on_write;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_thread_fence(int) {}  // nothing here runs at the same time
void __tsan_read_range(void* p, size_t n) { on_read(p, n); }
void __tsan_write_range(void* p, size_t n) { on_write(p, n); }
#define ACCESS(n)                                               \
    void __tsan_read##n(void* p) { on_read(p, n); }             \
    void __tsan_write##n(void* p) { on_write(p, n); }           \
    void __tsan_unaligned_read##n(void* p) { on_read(p, n); }   \
    void __tsan_unaligned_write##n(void* p) { on_write(p, n); } \
    void __tsan_volatile_read##n(void* p) { on_read(p, n); }    \
    void __tsan_volatile_write##n(void* p) { on_write(p, n); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

// Atomics are the host's alone (reference counts, flags): one thread runs kernels, and none of them has any.
#define ATOMIC(bits, type)                                                                                                     \
    type __tsan_atomic##bits##_load(const volatile type* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }              \
    void __tsan_atomic##bits##_store(volatile type* p, type v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }              \
    type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
    type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
    type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
    type __tsan_atomic##bits##_fetch_or(volatile type* p, type v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type v, int, int) {                    \
        return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
    }                                                                                                                          \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v, int, int) {                      \
        return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                          \
    }
ATOMIC(8, unsigned char)
ATOMIC(32, unsigned)
ATOMIC(64, unsigned long)
#undef ATOMIC

}  // extern "C"

#endif
