// The instructions of sm_90a that work on while the thread goes on. What they do takes effect late: without a seed at the last moment, with
// one at a random time. In the race build their accesses are told to ThreadSanitizer as those of the thread that issues (copies) or waits
// (wgmma). This file itself is not instrumented.
#include "tests/emulation/hopper_on_host.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/emulation/executor.h"

#if defined(CUDA_ON_HOST_RACE) || defined(CUDA_ON_HOST_INIT)
extern "C" {
void __tsan_read_range(void* address, size_t bytes);
void __tsan_write_range(void* address, size_t bytes);
}
#endif

namespace jem::hopper {

using namespace cuda_on_host;

namespace {

constexpr uint32_t kSharedStart = 2048;  // shared memory does not begin at address 0
constexpr int kGroup = 128, kRows = 64, kDepth = 16;

struct Barrier {
    int expected = 0, pending = 0;
    unsigned phase = 0;
    int64_t bytes = 0;                                                                      // announced and not yet there
    std::unique_ptr<std::array<char, 2>> tokens = std::make_unique<std::array<char, 2>>();  // by the phase's parity
    void settle() {
        if (pending == 0 && bytes == 0) pending = expected, ++phase;
    }
};

struct Meeting {  // bar.sync, barrier.cluster
    int arrived = 0;
    unsigned round = 0;
    std::unique_ptr<std::array<char, 2>> tokens = std::make_unique<std::array<char, 2>>();
};

struct Copy {
    uint8_t* to;
    const void* from;
    bool real;
};

// D of wgmma in flight. The registers are NaN until the wait that retires the last of them.
struct Sums {
    int n;
    std::vector<float> d;  // [64][n]
    std::array<float*, kGroup> registers = {};
    std::array<int, kGroup> in_flight = {};
    explicit Sums(int columns) : n(columns), d(static_cast<size_t>(kRows * columns)) {}
};

struct Operation {
    int n;
    bool trans_a, trans_b;
    uint64_t a, b;
    std::shared_ptr<Sums> sums;
    int issued = 0, retired = 0;
    bool done = false;
    char read_by[kGroup / 32] = {};  // by warp; tokens, too
};

struct Group {  // a warpgroup
    std::deque<Operation> operations;
    size_t first = 0;  // number of the oldest one kept
    Operation& at(size_t number) { return operations[number - first]; }
};

struct Lane {
    bool fenced = false;
    size_t issued = 0, committed = 0, retired = 0;  // wgmma
    std::deque<size_t> groups;                      // what had been issued at each commit
    std::deque<std::vector<Copy>> copies{1};        // cp.async by groups, the last one open
    std::vector<std::shared_ptr<Sums>> sums;        // in flight
};

struct Machine final : Extension {
    std::map<std::pair<int, uint32_t>, Barrier> barriers;  // by rank and offset
    std::map<std::pair<int, int>, Meeting> meetings;       // by rank and name; rank -1: of the cluster
    int groups_of_block = (threads_of_block() + kGroup - 1) / kGroup;
    std::vector<Group> groups = std::vector<Group>(static_cast<size_t>(groups_of_block * blocks_of_cluster()));
    std::vector<Lane> lanes = std::vector<Lane>(static_cast<size_t>(threads_of_block() * blocks_of_cluster()));
    std::string left_undone() const override;
};

Machine& machine() {
    auto& all = extension();
    if (all == nullptr) all = std::make_unique<Machine>();
    return static_cast<Machine&>(*all);
}
int rank() { return current_thread() / threads_of_block(); }
int number_in_block() { return current_thread() % threads_of_block(); }
int lane_of_group() { return number_in_block() % kGroup; }
Lane& lane() { return machine().lanes[static_cast<size_t>(current_thread())]; }
Group& group() {
    Machine& m = machine();
    return m.groups[static_cast<size_t>(rank() * m.groups_of_block + number_in_block() / kGroup)];
}

std::string text_of(int64_t n) { return std::to_string(n); }
std::string at(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string("at ") + (slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

// The text is made where it is needed, and gone before the thread is abandoned.
template <class Text>
void require(bool ok, const Text& text) {
    if (ok) return;
    fail_kernel(text());
    abandon_kernel();
}

void note_reads([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_RACE) || defined(CUDA_ON_HOST_INIT)
    const Watched watched;
    __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
void note_writes([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_RACE)
    const Watched watched;
    __tsan_write_range(p, bytes);
#endif
}
// What a copy will read, so that the thread that issues it is told of a fault.
void touch(const void* from, size_t bytes) {
    note_reads(from, bytes);
    const Watched watched;  // as whoever faults must be
    const auto* p = static_cast<const volatile char*>(from);
    for (size_t i = 0; i < bytes; i += 8) (void)p[i];
    (void)p[bytes - 1];
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Offset in the block's own shared memory.
uint32_t offset_of(const void* p, size_t bytes, const char* what) {
    const auto offset = static_cast<const uint8_t*>(p) - shared_memory_of(rank());
    require(offset >= 0 && static_cast<size_t>(offset) + bytes <= shared_bytes(), [&] {
        return std::string(what) + " at offset " + text_of(offset) + " of " + text_of(static_cast<int64_t>(shared_bytes())) +
               " bytes of dynamic shared memory.";
    });
    return static_cast<uint32_t>(offset);
}

Barrier& barrier_at(int target, uint32_t offset, const char* what) {
    auto& all = machine().barriers;
    const auto found = all.find({target, offset});
    require(found != all.end(), [&] {
        return std::string(what) + " a barrier that does not exist, at offset " + text_of(offset) + " of block " + text_of(target) +
               " of the cluster.";
    });
    note_reads(shared_memory_of(target) + offset, sizeof(uint64_t));
    return found->second;
}

void arrive(uint64_t* b, int target, int bytes) {
    const uint32_t offset = offset_of(b, sizeof *b, "uses a barrier");
    require(target >= 0 && target < blocks_of_cluster(),
            [&] { return "arrives at a barrier of block " + text_of(target) + ", which the cluster does not have."; });
    require(!block_ended(target), [&] { return "arrives at a barrier of block " + text_of(target) + " of the cluster, which has ended."; });
    Barrier& barrier = barrier_at(target, offset, "arrives at");
    require(barrier.pending > 0, [&] {
        return "arrives at a barrier (offset " + text_of(offset) + "): more arrivals than a phase takes, " + text_of(barrier.expected) +
               ".";
    });
    publish(&(*barrier.tokens)[barrier.phase & 1]);
    barrier.bytes += bytes;
    --barrier.pending;
    barrier.settle();
    give_way();
}

void copy_in_bulk(void* to, const void* from, int bytes, uint64_t* barrier, int first, int last) {
    require(aligned(from) && aligned(to) && bytes > 0 && bytes % 16 == 0, [&] {
        char text[120];
        std::snprintf(text, sizeof text, "issues a bulk copy of %d bytes from %p to %p: not a multiple of 16.", bytes, from, to);
        return std::string(text);
    });
    const auto size = static_cast<size_t>(bytes);
    const uint32_t place = offset_of(to, size, "copies to"), which = offset_of(barrier, sizeof *barrier, "uses a barrier");
    touch(from, size);
    for (int target = first; target <= last; ++target) {
        require(!block_ended(target), [&] { return "copies into block " + text_of(target) + " of the cluster, which has ended."; });
        Barrier& b = barrier_at(target, which, "copies for");
        uint8_t* const there = shared_memory_of(target) + place;
        note_writes(there, size);
        publish(&(*b.tokens)[b.phase & 1]);
        take_effect_later([there, from, size, target, &b, issuer = current_thread()] {
            if (block_ended(target))
                return fail_kernel(issuer, "has a copy on its way into block " + text_of(target) + " of the cluster, which has ended.");
            std::memcpy(there, from, size);
            b.bytes -= static_cast<int64_t>(size);
            b.settle();
        });
    }
}

struct BarrierWait final : Wait {
    const Barrier& barrier;
    uint32_t offset, parity;
    unsigned name;
    int stage;
    Site site;
    BarrierWait(const Barrier& b, uint32_t o, uint32_t p, unsigned n, int s, Site l)
        : barrier(b), offset(o), parity(p), name(n), stage(s), site(l) {}
    bool over() const override { return (barrier.phase & 1) != parity; }
    std::string what() const override {
        return at(site) + " for parity " + text_of(parity) + " of the barrier at offset " + text_of(offset) + " (name " + text_of(name) +
               ", stage " + text_of(stage) + "), which is in phase " + text_of(barrier.phase) + " and lacks " + text_of(barrier.pending) +
               " of " + text_of(barrier.expected) + " arrivals and " + text_of(barrier.bytes) + " bytes";
    }
};

struct MeetingWait final : Wait {
    const Meeting& meeting;
    int name, threads;
    unsigned round;
    Site site;
    MeetingWait(const Meeting& m, int n, int count, Site s) : meeting(m), name(n), threads(count), round(m.round), site(s) {}
    bool over() const override { return meeting.round != round; }
    std::string what() const override {
        return at(site) + (name < 0 ? " for the cluster" : " at named barrier " + text_of(name)) + ", where " + text_of(meeting.arrived) +
               " of " + text_of(threads) + " threads are";
    }
};

void meet(int home, int name, int threads, Site site) {
    Meeting& m = machine().meetings[{home, name}];
    const MeetingWait wait(m, name, threads, site);
    char* const token = &(*m.tokens)[m.round & 1];
    publish(token);
    if (++m.arrived == threads) m.arrived = 0, ++m.round;
    wait_until(wait);
    observe(token);
}

void perform(std::vector<Copy>& copies) {
    for (const Copy& c : copies) {
        if (c.real)
            std::memcpy(c.to, c.from, 16);
        else
            std::memset(c.to, 0, 16);
    }
    copies.clear();
}

// wgmma --------------------------------------------------------------------------------------------------------------------------

// The bytes of element (i, k), all 16 of whose neighbours in memory are used, too.
const uint8_t* element(const uint8_t* memory, const Descriptor& d, bool mn_major, int i, int k) {
    const uint32_t offset = operand_address(d, mn_major, i, k) - kSharedStart;
    require(offset < shared_bytes(), [&] {
        return "waits for a wgmma that reads offset " + text_of(static_cast<int32_t>(offset)) + " of " +
               text_of(static_cast<int64_t>(shared_bytes())) + " bytes of dynamic shared memory.";
    });
    return memory + offset;
}
float from_bf16(const uint8_t* p) { return __uint_as_float(static_cast<uint32_t>(p[0] | p[1] << 8) << 16); }

constexpr int kMaxColumns = 160;

void execute(Operation& o) {
    static float left[kRows][kDepth], right[kDepth][kMaxColumns];
    const Descriptor a = read_descriptor(o.a), b = read_descriptor(o.b);
    const uint8_t* const memory = shared_memory_of(rank());
    for (int i = 0; i < kRows; ++i)
        for (int k = 0; k < kDepth; ++k) left[i][k] = from_bf16(element(memory, a, o.trans_a, i, k));
    for (int j = 0; j < o.n; ++j)
        for (int k = 0; k < kDepth; ++k) right[k][j] = from_bf16(element(memory, b, o.trans_b, j, k));
    for (int i = 0; i < kRows; ++i) {
        float sum[kMaxColumns] = {};
        for (int k = 0; k < kDepth; ++k)
            for (int j = 0; j < o.n; ++j) sum[j] += left[i][k] * right[k][j];
        float* const d = o.sums->d.data() + i * o.n;
        for (int j = 0; j < o.n; ++j) d[j] += sum[j];
    }
    o.done = true;
}

// All before `count`, which all threads have issued.
void execute_until(Group& g, size_t count) {
    for (size_t i = g.first; i < count; ++i)
        if (!g.at(i).done) execute(g.at(i));
}

// Rows (columns, of B) [begin, end) of an operand, in pieces of 16 bytes or more.
[[maybe_unused]] void note_operand(uint64_t descriptor, bool mn_major, int begin, int end) {
    const Descriptor d = read_descriptor(descriptor);
    const uint8_t* const memory = shared_memory_of(rank());
    const uint8_t* from = nullptr;
    size_t bytes = 0;
    const auto add = [&](int i, int k) {
        const uint8_t* const p = element(memory, d, mn_major, i, k);
        if (from == nullptr || p != from + bytes) {
            if (from != nullptr) note_reads(from, bytes);
            from = p;
            bytes = 0;
        }
        bytes += 16;
    };
    for (int k = 0; k < kDepth; k += mn_major ? 1 : 8)
        for (int i = begin; i < end; i += mn_major ? 8 : 1) add(i, k);
    note_reads(from, bytes);
}

// What a warp reads is read by that of its lanes that comes first to the end of the wait, and the others know: whichever lane arrives
// somewhere after it vouches for its warp.
void note_operands([[maybe_unused]] Group& g, [[maybe_unused]] size_t begin, [[maybe_unused]] size_t end) {
#ifdef CUDA_ON_HOST_RACE
    if (begin == end) return;
    const int warp = lane_of_group() / 32;
    char& read = g.at(end - 1).read_by[warp];
    if (read != 0) return observe(&read);
    for (size_t i = begin; i < end; ++i) {
        const Operation& o = g.at(i);
        note_operand(o.a, o.trans_a, warp * 16, warp * 16 + 16);
        note_operand(o.b, o.trans_b, 0, o.n);
    }
    read = 1;
    publish(&read);
#endif
}

// One that this thread's wait has found done.
void retire(Operation& o) {
    const int t = lane_of_group();
    ++o.retired;
    Sums& sums = *o.sums;
    const auto lane_number = static_cast<size_t>(t);
    if (--sums.in_flight[lane_number] > 0) return;
    float* const d = std::exchange(sums.registers[lane_number], nullptr);
    for (int i = 0; i < o.n / 2; ++i) d[i] = sums.d[static_cast<size_t>(acc_row(t, i) * o.n + acc_col(t, i))];
    std::erase(lane().sums, o.sums);
}

struct WgmmaWait final : Wait {
    Group& g;
    size_t count;
    Site site;
    WgmmaWait(Group& group, size_t n, Site s) : g(group), count(n), site(s) {}
    const Operation* missing() const {
        for (size_t i = g.first; i < count; ++i)
            if (g.at(i).issued < kGroup) return &g.at(i);
        return nullptr;
    }
    bool over() const override { return missing() == nullptr; }
    std::string what() const override {
        const Operation* o = missing();
        return at(site) + " for a wgmma that " + (o != nullptr ? text_of(o->issued) : "all") + " of 128 threads have issued";
    }
};

std::string Machine::left_undone() const {
    for (const auto& [where, b] : barriers)
        if (b.pending != b.expected || b.bytes != 0)
            return "block " + text_of(where.first) + " of a cluster ended with a phase of the barrier at offset " + text_of(where.second) +
                   " left half done: it lacks " + text_of(b.pending) + " of " + text_of(b.expected) + " arrivals and " + text_of(b.bytes) +
                   " bytes.";
    for (const Lane& l : lanes)
        if (l.retired != l.issued) return "a thread ended without a wait for its last wgmma.";
    return "";
}

}  // namespace

uint8_t* dynamic_shared() {
    const Unwatched unwatched;
    return shared_memory_of(rank());
}
uint32_t shared_address(const void* p) {
    const Unwatched unwatched;
    return kSharedStart + offset_of(p, 0, "takes an address");
}

void barrier_init(uint64_t* b, int arrivals) {
    const Unwatched unwatched;
    const uint32_t offset = offset_of(b, sizeof *b, "makes a barrier");
    require(offset % 8 == 0 && arrivals > 0,
            [&] { return "makes a barrier of " + text_of(arrivals) + " arrivals at offset " + text_of(offset) + "."; });
    auto& all = machine().barriers;
    require(!all.contains({rank(), offset}), [&] { return "makes a barrier where there is one, at offset " + text_of(offset) + "."; });
    note_writes(b, sizeof *b);
    Barrier& barrier = all[{rank(), offset}];
    barrier.expected = barrier.pending = arrivals;
}
void barrier_arrive(uint64_t* b) {
    const Unwatched unwatched;
    arrive(b, rank(), 0);
}
void barrier_arrive_expect(uint64_t* b, int bytes) {
    const Unwatched unwatched;
    arrive(b, rank(), bytes);
}
void barrier_arrive_at(uint64_t* b, int target) {
    const Unwatched unwatched;
    arrive(b, target, 0);
}
void barrier_wait(uint64_t* b, uint32_t parity, Trouble*, unsigned name, int stage, Site site) {
    const Unwatched unwatched;
    const uint32_t offset = offset_of(b, sizeof *b, "uses a barrier");
    const Barrier& barrier = barrier_at(rank(), offset, "waits for");
    wait_until(BarrierWait(barrier, offset, parity, name, stage, site));
    observe(&(*barrier.tokens)[parity & 1]);
}

void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier) {
    const Unwatched unwatched;
    copy_in_bulk(to, from, bytes, barrier, rank(), rank());
}
void bulk_copy_to_both(void* to, const void* from, int bytes, uint64_t* barrier) {
    const Unwatched unwatched;
    require(blocks_of_cluster() == 2, [] { return std::string("copies to both blocks of a cluster that has one."); });
    copy_in_bulk(to, from, bytes, barrier, 0, 1);
}

int cluster_rank() {
    const Unwatched unwatched;
    return rank();
}
void cluster_sync(Site site) {
    const Unwatched unwatched;
    meet(-1, -1, threads_of_block() * blocks_of_cluster(), site);
}

void vector_copy(uint32_t to, const void* from, bool real) {
    const Unwatched unwatched;
    const uint32_t offset = to - kSharedStart;
    require(size_t{offset} + 16 <= shared_bytes() && to % 16 == 0 && aligned(from), [&] {
        char text[120];
        std::snprintf(text, sizeof text, "copies 16 bytes from %p to offset %d of %zu: misaligned or outside.", from,
                      static_cast<int>(offset), shared_bytes());
        return std::string(text);
    });
    uint8_t* const there = shared_memory_of(rank()) + offset;
    if (real) touch(from, 16);
    note_writes(there, 16);
    auto& open = lane().copies.back();
    open.push_back({there, from, real});
    if (auto* random = kernel_random(); random != nullptr && ((*random)() & 1) != 0) {
        std::vector<Copy> one{open.back()};
        open.pop_back();
        perform(one);
    }
}
void vector_copy_commit() {
    const Unwatched unwatched;
    lane().copies.emplace_back();
}

void wgmma_fence() {
    const Unwatched unwatched;
    lane().fenced = true;
}
void wgmma_commit() {
    const Unwatched unwatched;
    Lane& l = lane();
    l.groups.push_back(l.issued);
}

namespace on_host {

void named_barrier(int name, int threads, Site site) {
    const Unwatched unwatched;
    meet(rank(), name, threads, site);
}

void vector_copy_wait(int pending) {
    const Unwatched unwatched;
    auto& copies = lane().copies;
    for (; copies.size() > static_cast<size_t>(pending) + 1; copies.pop_front()) perform(copies.front());
}

void wgmma(float* d, int n, bool trans_a, bool trans_b, uint64_t a, uint64_t b) {
    const Unwatched unwatched;
    Lane& l = lane();
    Group& g = group();
    const int t = lane_of_group();
    const auto lane_number = static_cast<size_t>(t);
    const size_t number = l.issued++;
    const bool first = number == g.first + g.operations.size();
    if (first) g.operations.push_back({n, trans_a, trans_b, a, b, nullptr});
    Operation& o = g.at(number);
    require(o.n == n && o.a == a && o.b == b && o.trans_a == trans_a && o.trans_b == trans_b,
            [] { return std::string("issues another wgmma than its warpgroup."); });
    const auto same = [&](const std::shared_ptr<Sums>& s) { return s->registers[lane_number] == d; };
    const auto found = std::find_if(l.sums.begin(), l.sums.end(), same);
    const bool in_flight = found != l.sums.end();
    if (first) o.sums = in_flight ? *found : std::make_shared<Sums>(n);
    require(o.sums->n == n && (in_flight ? *found == o.sums : o.sums->in_flight[lane_number] == 0),
            [] { return std::string("issues a wgmma into other registers than its warpgroup."); });
    if (!in_flight) {
        require(l.fenced, [] { return std::string("issues a wgmma without wgmma.fence after the last use of its registers."); });
        for (int i = 0; i < n / 2; ++i) {
            o.sums->d[static_cast<size_t>(acc_row(t, i) * n + acc_col(t, i))] = d[i];
            d[i] = std::numeric_limits<float>::quiet_NaN();
        }
        o.sums->registers[lane_number] = d;
        l.sums.push_back(o.sums);
    }
    ++o.sums->in_flight[lane_number];
    // Executed early, by chance, or when somebody waits for it.
    auto* const random = kernel_random();
    if (++o.issued == kGroup && random != nullptr && ((*random)() & 1) != 0) execute_until(g, number + 1);
}

void wgmma_wait(int pending, Site site) {
    const Unwatched unwatched;
    Lane& l = lane();
    Group& g = group();
    if (l.groups.size() <= static_cast<size_t>(pending)) return;
    const size_t count = l.groups[l.groups.size() - 1 - static_cast<size_t>(pending)];
    wait_until(WgmmaWait(g, count, site));
    execute_until(g, count);
    note_operands(g, l.retired, count);
    for (; l.retired < count; ++l.retired) retire(g.at(l.retired));
    while (l.groups.size() > static_cast<size_t>(pending)) l.groups.pop_front();
    for (; !g.operations.empty() && g.operations.front().retired == kGroup; ++g.first) g.operations.pop_front();
    l.fenced = false;
}

}  // namespace on_host

}  // namespace jem::hopper
