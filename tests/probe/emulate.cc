// Host check: the kernels' own source (conv_sm90.cuh) on the host, against plain loops. What is emulated: emulated.h.
#include "tests/probe/conv_sm90.cuh"

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

static int failures = 0;
static std::mt19937 dice(7);
static void expect(bool ok, const std::string& what) {
    if (!ok && ++failures <= 30) std::printf("FAIL  %s\n", what.c_str());
}

namespace emulation {
Index thread, block, grid, threads;
struct Barrier {
    int expected = 0, pending = 0, phase = 0;
    int64_t bytes = 0;
};
struct Operation {
    int n;
    bool trans_a, trans_b;
    uint64_t a, b;
    float* d[128];
    int issued = 0;
    bool done = false;
};
// A warpgroup's wgmma; `first`: number of the oldest one kept.
struct Group {
    std::deque<Operation> operations;
    size_t first = 0;
};
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Index thread;
    int rank = 0;
    bool finished = false;
    std::function<bool()> condition;
    const char* where = "";
    size_t issued = 0;            // wgmma of this thread
    std::vector<size_t> commits;  // how many had been issued at each commit
    struct Copy {
        uint8_t* to;
        uint8_t data[16];
        const void* from;
        bool real;
    };
    std::deque<std::vector<Copy>> copies{1};  // cp.async groups, the last one open
};
struct Meeting {
    int arrived = 0, round = 0;
};
static std::vector<std::unique_ptr<Fiber>> fibers;
static Fiber* current = nullptr;
static ucontext_t scheduler;
static std::vector<std::vector<uint8_t>> memories;
static std::map<std::pair<int, uint32_t>, Barrier> barriers;
static std::map<std::pair<int, int>, Meeting> meetings;
static std::map<std::pair<int, int>, Group> groups;
static std::vector<std::function<void()>> events;
static std::vector<int> running;  // threads of each block that have not ended
static std::function<void()> body;

uint8_t* memory(int r) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memories[(size_t)r].data()) + 1023) / 1024 * 1024);
}
int rank() { return current->rank; }
static uint32_t offset(const void* p) { return (uint32_t)(static_cast<const uint8_t*>(p) - memory(rank())); }
void wait_until(std::function<bool()> condition, const char* where) {
    if (dice() % 3 && condition()) return;
    current->condition = std::move(condition), current->where = where;
    swapcontext(&current->context, &scheduler);
}
static void settle(Barrier& b) {
    if (b.pending == 0 && b.bytes == 0) b.pending = b.expected, ++b.phase;
}
void barrier_init(uint64_t* b, int arrivals) { barriers[{rank(), offset(b)}] = {arrivals, arrivals, 0, 0}; }
void barrier_arrive(uint64_t* b, int r, int bytes) {
    const auto found = barriers.find({r, offset(b)});
    if (found == barriers.end()) return expect(false, "arrival at a barrier that does not exist (any more)");
    expect(found->second.pending > 0, "more arrivals than a phase takes");
    expect(running[(size_t)r] > 0, "arrival at a block that has ended");
    found->second.bytes += bytes, --found->second.pending;
    settle(found->second);
}
bool barrier_done(uint64_t* b, uint32_t parity) { return (uint32_t)(barriers.at({rank(), offset(b)}).phase & 1) != parity; }
void bulk(void* to, const void* from, int bytes, uint64_t* barrier, int blocks) {
    expect(reinterpret_cast<uintptr_t>(from) % 16 == 0 && offset(to) % 16 == 0 && bytes % 16 == 0, "bulk copy: alignment");
    const uint32_t where = offset(to), which = offset(barrier);
    for (int r = 0; r < blocks; ++r) {
        const int target = blocks == 1 ? rank() : r;
        events.push_back([=] {
            expect(running[(size_t)target] > 0, "copy into a block that has ended");
            std::memcpy(memory(target) + where, from, (size_t)bytes);
            Barrier& b = barriers.at({target, which});
            b.bytes -= bytes;
            settle(b);
        });
    }
}
void meet(int name, int count) {
    const int home = name < 0 ? -1 : rank();
    if (name < 0) count = (int)fibers.size();
    Meeting& m = meetings[{home, name}];
    const int round = m.round;
    if (++m.arrived == count) m.arrived = 0, ++m.round;
    wait_until([&m, round] { return m.round != round; }, name < 0 ? "cluster" : name ? "named barrier" : "__syncthreads");
}
static void perform(std::vector<Fiber::Copy>& group) {
    for (auto& c : group) {
        if (c.real)
            std::memcpy(c.to, c.from, 16);
        else
            std::memset(c.to, 0, 16);
    }
    group.clear();
}
void copy(uint8_t* to, const void* from, bool real) {
    expect(reinterpret_cast<uintptr_t>(to) % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0, "cp.async: alignment");
    if (dice() % 2)
        current->copies.back().push_back({to, {}, from, real});
    else if (real)
        std::memcpy(to, from, 16);  // at once
    else
        std::memset(to, 0, 16);
}
void copy_commit() { current->copies.emplace_back(); }
void copy_wait(int pending) {
    while ((int)current->copies.size() - 1 > pending) perform(current->copies.front()), current->copies.pop_front();
}
static Group& group_of(const Fiber& f) { return groups[{f.rank, (int)f.thread.x / 128}]; }
static float element(int r, uint32_t address) {
    const uint8_t* const p = memory(r) + (address - kSharedStart);
    uint32_t u = (uint32_t)(p[0] | p[1] << 8) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
static void execute(int r, Operation& o) {
    const Descriptor a = read_descriptor(o.a), b = read_descriptor(o.b);
    std::vector<float> left(64 * 16), right(16 * (size_t)o.n), d(64 * (size_t)o.n, 0.f);
    for (int i = 0; i < 64; ++i)
        for (int k = 0; k < 16; ++k) left[(size_t)(i * 16 + k)] = element(r, operand_address(a, o.trans_a, i, k));
    for (int k = 0; k < 16; ++k)
        for (int j = 0; j < o.n; ++j) right[(size_t)(k * o.n + j)] = element(r, operand_address(b, o.trans_b, j, k));
    for (int i = 0; i < 64; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < o.n; ++j) d[(size_t)(i * o.n + j)] += left[(size_t)(i * 16 + k)] * right[(size_t)(k * o.n + j)];
    for (int t = 0; t < 128; ++t)
        for (int i = 0; i < o.n / 2; ++i) o.d[t][i] += d[(size_t)(acc_row(t, i) * o.n + acc_col(t, i))];
    o.done = true;
}
void multiply(float* d, int n, bool trans_a, bool trans_b, uint64_t a, uint64_t b) {
    Group& g = group_of(*current);
    const size_t number = current->issued++;
    while (g.first + g.operations.size() <= number) g.operations.push_back({n, trans_a, trans_b, a, b, {}, 0, false});
    Operation& o = g.operations[number - g.first];
    expect(o.n == n && o.a == a && o.b == b && o.trans_a == trans_a && o.trans_b == trans_b,
           "the threads of a warpgroup issue the same wgmma");
    o.d[current->thread.x % 128] = d;
    ++o.issued;
}
void multiply_commit() { current->commits.push_back(current->issued); }
static bool executed(Fiber& f, size_t count) {  // all wgmma before number `count`, if all threads have issued them
    Group& g = group_of(f);
    for (size_t i = g.first; i < count; ++i) {
        Operation& o = g.operations[i - g.first];
        if (o.done) continue;
        if (o.issued < 128) return false;
        execute(f.rank, o);
    }
    while (!g.operations.empty() && g.operations.front().done && g.operations.size() > 64) g.operations.pop_front(), ++g.first;
    return true;
}
void multiply_wait(int pending) {
    if ((int)current->commits.size() <= pending) return;
    const size_t count = current->commits[current->commits.size() - 1 - (size_t)pending];
    Fiber* const f = current;
    wait_until([f, count] { return executed(*f, count); }, "wgmma");
}
static void enter() {
    body();
    current->finished = true;
    --running[(size_t)current->rank];
    swapcontext(&current->context, &scheduler);
}
static void run_cluster(int blocks, unsigned first_block, size_t shared_bytes) {
    fibers.clear(), barriers.clear(), meetings.clear(), groups.clear(), events.clear(), memories.clear(),
        running.assign((size_t)blocks, (int)(threads.x * threads.y));
    for (int r = 0; r < blocks; ++r) memories.emplace_back(shared_bytes + 2048, (uint8_t)0xff);  // NaN wherever nothing was written
    for (int r = 0; r < blocks; ++r)
        for (unsigned t = 0; t < threads.x * threads.y; ++t) {
            auto f = std::make_unique<Fiber>();
            constexpr size_t kStack = 48 * 1024;
            f->stack = std::make_unique<char[]>(kStack);
            f->thread = {t % threads.x, t / threads.x, 0}, f->rank = r;
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = f->stack.get(), f->context.uc_stack.ss_size = kStack, f->context.uc_link = nullptr;
            makecontext(&f->context, enter, 0);
            fibers.push_back(std::move(f));
        }
    const Index at = block;
    while (true) {
        bool alive = false, moved = false;
        const bool patient = dice() % 4 == 0;  // in the other rounds some fibers sleep, warp by warp
        uint32_t asleep = dice();
        const size_t start = dice() % fibers.size();
        for (size_t i = 0; i < fibers.size(); ++i) {
            Fiber& f = *fibers[(start + i) % fibers.size()];
            if (f.finished) continue;
            alive = true;
            if (!patient && asleep >> ((start + i) % fibers.size() / 32 % 32) & 1) continue;
            current = &f, thread = f.thread;
            block = {first_block + (unsigned)f.rank, at.y, at.z};
            if (f.condition && !f.condition()) continue;
            f.condition = nullptr;
            moved = true;
            swapcontext(&scheduler, &f.context);
        }
        if (!events.empty() && (dice() % 2 || !moved)) {
            const size_t i = dice() % events.size();
            auto e = std::move(events[i]);
            events.erase(events.begin() + (long)i);
            e();
            moved = true;
        }
        if (!alive && events.empty()) {
            for (const auto& [where, b] : barriers) expect(b.pending == b.expected && b.bytes == 0, "a phase is left half done");
            return;
        }
        if (!moved && patient) {
            std::map<std::string, int> waiting;
            for (auto& f : fibers)
                if (!f->finished)
                    ++waiting["block " + std::to_string(f->rank) + " warp " + std::to_string(f->thread.x / 32) + " at " + f->where];
            for (auto& [what, count] : waiting) std::printf("      %s: %d threads\n", what.c_str(), count);
            expect(false, "hang");
            return;
        }
    }
}
// Blocks of a one-dimensional grid, or of z * y * x blocks one by one.
static void launch(Index blocks, Index threads_of_block, int cluster, size_t shared_bytes, std::function<void()> kernel) {
    grid = blocks, threads = threads_of_block, body = std::move(kernel);
    for (unsigned z = 0; z < std::max(blocks.z, 1u); ++z)
        for (unsigned y = 0; y < std::max(blocks.y, 1u); ++y)
            for (unsigned x = 0; x < blocks.x; x += (unsigned)cluster) {
                block = {x, y, z};
                run_cluster(cluster, x, shared_bytes);
            }
}
}  // namespace emulation

static float round_bf16(float f) { return __bfloat162float(__float2bfloat16(f)); }
static std::vector<bf16> integers(size_t n, int low, int high) {
    std::vector<bf16> v(n + 8);
    for (bf16& f : v) f = __float2bfloat16((float)std::uniform_int_distribution<int>(low, high)(dice));
    return v;
}
static std::vector<float> floats(size_t n, float low, float high) {
    std::vector<float> v(n);
    for (float& f : v) f = std::uniform_real_distribution<float>(low, high)(dice);
    return v;
}
static std::string name(const Shape& s) {
    return "[" + std::to_string(s.n) + ", " + std::to_string(s.h) + "x" + std::to_string(s.w) + ", " + std::to_string(s.c) + "->" +
           std::to_string(s.k) + "]";
}
template <class T>
static T* aligned(std::vector<T>& v) {  // 16 bytes, as device memory is
    expect(reinterpret_cast<uintptr_t>(v.data()) % 16 == 0, "host memory is aligned");
    return v.data();
}

template <int kPerGroup, int kCluster, bool kNorm, bool kResidual, bool kSums>
static void check_conv(const Shape& s, int blocks_of_threads) {
    const size_t pixels = (size_t)(s.n * s.h * s.w);
    auto x = integers(pixels * s.c, -3, 3), w = integers((size_t)s.k * 9 * s.c, -2, 2), packed = w,
         residual = integers(pixels * s.k, -9, 9), y = residual;
    auto mean = floats(s.c, -1, 1), scale = floats(s.c, .5f, 1.5f), beta = floats(s.c, -1, 1), centre = floats(s.k, -2, 2);
    for (int k = 0; k < s.k; ++k)
        for (int tap = 0; tap < 9; ++tap)
            for (int c = 0; c < s.c; ++c) packed[(size_t)weight_index(s, k, tap, c)] = w[(size_t)krsc_index(s, k, tap, c)];
    std::vector<float> partials((size_t)pixel_blocks(s) * 2 * s.k, NAN), sums(2 * (size_t)s.k, NAN);
    std::memset(static_cast<void*>(y.data()), 0xff, pixels * s.k * 2);
    const ConvParams p{s,           aligned(x),      aligned(packed), aligned(residual),
                       mean.data(), scale.data(),    beta.data(),     centre.data(),
                       aligned(y),  partials.data(), nullptr,         conv_units(s, ConvTile<kPerGroup>::kBlocks, kCluster),
                       kSkipNothing};
    emulation::launch({(unsigned)(blocks_of_threads * kCluster), 1, 1}, {384, 1, 1}, kCluster, sizeof(ConvShared<kPerGroup>),
                      [&p] { conv3x3<kPerGroup, kCluster, kNorm, kResidual, kSums>(p); });
    const std::string id = "conv3x3<" + std::to_string(kPerGroup) + ", " + std::to_string(kCluster) + (kNorm ? ", norm" : "") +
                           (kResidual ? ", residual" : "") + (kSums ? ", sums" : "") + "> " + name(s) + " on " +
                           std::to_string(blocks_of_threads);
    std::vector<double> plain(2 * (size_t)s.k, 0);
    int wrong = 0;
    for (size_t q = 0; q < pixels; ++q) {
        const int n = (int)(q / (size_t)(s.h * s.w)), py = (int)(q / (size_t)s.w) % s.h, px = (int)(q % (size_t)s.w);
        std::vector<float> sum((size_t)s.k, 0.f);
        for (int tap = 0; tap < 9; ++tap) {
            const int yy = py + tap / 3 - 1, xx = px + tap % 3 - 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
            for (int c = 0; c < s.c; ++c) {
                float v = __bfloat162float(x[((size_t)(n * s.h + yy) * s.w + xx) * s.c + c]);
                if (kNorm) v = round_bf16(norm_leaky(v, mean[c], scale[c], beta[c]));
                for (int k = 0; k < s.k; ++k) sum[k] += v * __bfloat162float(w[((size_t)k * 9 + tap) * s.c + c]);
            }
        }
        for (int k = 0; k < s.k; ++k) {
            float want = round_bf16(sum[k]);
            if (kResidual) want = round_bf16(want + __bfloat162float(residual[q * s.k + k]));
            const float got = __bfloat162float(y[q * s.k + k]);
            wrong += kNorm ? !(std::fabs(got - want) <= .01f * (std::fabs(want) + std::fabs(sum[k])) + .01f) : !(got == want);
            const int column = k / kConvN * 2 * kConvN + k % kConvN;
            plain[(size_t)column] += got - centre[k], plain[(size_t)(column + kConvN)] += (double)(got - centre[k]) * (got - centre[k]);
        }
    }
    expect(wrong == 0, id + ": " + std::to_string(wrong) + " of " + std::to_string(pixels * s.k) + " wrong");
    if (!kSums) return;
    emulation::launch({(unsigned)(2 * s.k / 32), 1, 1}, {32, 32, 1}, 1, 0,
                      [&] { column_sums(partials.data(), pixel_blocks(s), 2 * s.k, sums.data()); });
    bool close = true;
    for (size_t i = 0; i < sums.size(); ++i) {
        const double squares = plain[i / (2 * kConvN) * 2 * kConvN + kConvN + i % kConvN];
        close &= std::fabs(sums[i] - plain[i]) <= 1e-5 * (std::sqrt(squares * (double)pixels) + squares);
    }
    expect(close, id + ": sums");
}
static void check_grad(const Shape& s, int splits) {
    const size_t pixels = (size_t)(s.n * s.h * s.w), weights = (size_t)s.k * 9 * s.c;
    auto x = integers(pixels * s.c, -3, 3), dy = integers(pixels * s.k, -2, 2);
    std::vector<float> partials(weights * splits, NAN), dw(weights, NAN), want(weights, 0.f);
    const GradParams p{s, aligned(x), aligned(dy), partials.data(), nullptr, splits};
    emulation::launch({(unsigned)(grad_m_tiles(s) * grad_n_tiles(s) * splits), 1, 1}, {512, 1, 1}, 1, sizeof(GradShared),
                      [&p] { weight_gradient(p); });
    emulation::launch({(unsigned)s.k / 32, (unsigned)s.c / 32, 9}, {32, 8, 1}, 1, 0,
                      [&] { weight_gradient_sum(partials.data(), s, splits, dw.data()); });
    for (size_t q = 0; q < pixels; ++q)
        for (int tap = 0; tap < 9; ++tap) {
            const int yy = (int)(q / (size_t)s.w) % s.h + tap / 3 - 1, xx = (int)(q % (size_t)s.w) + tap % 3 - 1;
            if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
            const size_t from = (size_t)((long)q + (tap / 3 - 1) * s.w + tap % 3 - 1);
            for (int k = 0; k < s.k; ++k)
                for (int c = 0; c < s.c; ++c)
                    want[((size_t)k * 9 + tap) * s.c + c] += __bfloat162float(dy[q * s.k + k]) * __bfloat162float(x[from * s.c + c]);
        }
    expect(dw == want, "weight_gradient " + name(s) + " splits " + std::to_string(splits));
}

int main() {
    const auto part = [](const char* what, auto f) {
        const int before = failures;
        f();
        std::printf("%s  %s\n", failures == before ? "ok  " : "FAIL", what);
        std::fflush(stdout);
    };
    part("conv3x3, 256 rows", [] {
        check_conv<2, 1, false, false, false>({1, 16, 16, 64, 160}, 1);
        check_conv<2, 1, false, true, true>({5, 8, 8, 32, 320}, 3);
        check_conv<2, 1, true, true, true>({1, 32, 16, 96, 160}, 1);
        check_conv<2, 1, false, false, false>({1, 32, 32, 160, 160}, 2);
    });
    part("conv3x3, 128 rows", [] {
        check_conv<1, 1, false, false, true>({3, 8, 8, 64, 320}, 2);
        check_conv<1, 1, true, true, true>({1, 32, 16, 96, 160}, 1);
        check_conv<1, 1, false, true, false>({1, 16, 32, 160, 160}, 2);
    });
    part("conv3x3, two blocks of threads in a cluster", [] {
        check_conv<2, 2, false, false, false>({5, 16, 16, 32, 160}, 1);
        check_conv<1, 2, true, true, true>({9, 8, 8, 64, 320}, 2);
        check_conv<1, 2, false, false, false>({2, 32, 16, 160, 160}, 1);
    });
    part("weight_gradient", [] {
        check_grad({3, 16, 16, 64, 160}, 1);
        check_grad({5, 8, 8, 160, 160}, 2);
        check_grad({7, 16, 16, 96, 160}, 1);
    });
    std::printf("%s: the kernels' source on the host, %d failures\n", failures ? "FAIL" : "PASS", failures);
    return failures != 0;
}
