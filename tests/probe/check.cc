// Host check: what can be known without a GPU. The kernels' index functions (layout.h) run here against plain loops, wgmma operands are
// read through the very descriptors the kernels build, and the mbarrier protocol runs in a model with a random scheduler. Copies of the
// kernels' loops are marked [twin].
#include <algorithm>
#include <cmath>
#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/device/cuda/convolution/hopper/layout.h"

using namespace jem;
using namespace jem::hopper;

static int failures = 0, checks = 0;
static void expect(bool ok, const std::string& what) {
    ++checks;
    if (!ok && ++failures <= 40) std::printf("FAIL  %s\n", what.c_str());
}
static std::string name(const Shape& s) {
    return "[" + std::to_string(s.n) + ", " + std::to_string(s.h) + "x" + std::to_string(s.w) + ", " + std::to_string(s.c) + "->" +
           std::to_string(s.k) + "]";
}
static float to_bf16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    std::memcpy(&f, &u, 4);
    return f;
}
static float norm_leaky(float x, float scale, float shift) {
    const float z = std::fma(x, scale, shift);
    return z > 0 ? z : 0.2f * z;
}
static std::mt19937 rng(1);
static int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }
static std::vector<float> integers(size_t n, int low, int high) {
    std::vector<float> v(n);
    for (float& f : v) f = (float)integer(low, high);
    return v;
}

// Shared memory, one float per element of 2 bytes; NaN = never written.
struct Memory {
    std::vector<float> v;
    explicit Memory(int bytes) : v(bytes / 2, NAN) {}
    void write(uint32_t byte, float f, const char* what) {
        expect(byte % 2 == 0 && byte / 2 < v.size(), std::string(what) + ": address in range");
        if (byte / 2 < v.size()) expect(std::isnan(v[byte / 2]), std::string(what) + ": written once"), v[byte / 2] = f;
    }
    float read(uint32_t byte) const { return byte / 2 < v.size() ? v[byte / 2] : NAN; }
};
// D (64 x n, row major) += A * B, operands read as the descriptors say. `rows`: how many rows of A count (the others may be anything).
static void multiply(std::vector<float>& d, int n, const Memory& a, uint64_t da, bool a_mn, const Memory& b, uint64_t db, bool b_mn,
                     int rows = 64) {
    const Descriptor x = read_descriptor(da), y = read_descriptor(db);
    std::vector<float> right(16 * n);
    for (int k = 0; k < 16; ++k)
        for (int j = 0; j < n; ++j) right[k * n + j] = b.read(operand_address(y, b_mn, j, k));
    for (int i = 0; i < rows; ++i)
        for (int k = 0; k < 16; ++k) {
            const float left = a.read(operand_address(x, a_mn, i, k));
            for (int j = 0; j < n; ++j) d[i * n + j] += left * right[k * n + j];
        }
}

static void check_descriptors() {
    for (int i = 0; i < 1000; ++i) {
        const uint32_t address = integer(0, (1 << 14) - 1) * 16, lbo = integer(0, (1 << 14) - 1) * 16, sbo = integer(0, (1 << 14) - 1) * 16;
        const Descriptor d = read_descriptor(make_descriptor(address, lbo, sbo, i % 4));
        expect(d.address == address && d.lbo == lbo && d.sbo == sbo && d.swizzle == i % 4, "descriptor fields");
    }
    std::set<int> seen;
    for (int t = 0; t < 128; ++t)
        for (int i = 0; i < 80; ++i) seen.insert(acc_row(t, i) * 160 + acc_col(t, i));
    expect(seen.size() == 64 * 160 && *seen.rbegin() == 64 * 160 - 1, "accumulators cover the 64 x 160 tile");
    for (int t = 0; t < 128; ++t)
        for (int i = 0; i < 80; i += 2)
            expect(acc_row(t, i) == acc_row(t, i + 1) && acc_col(t, i) + 1 == acc_col(t, i + 1), "accumulators come in pairs");
    // Swizzle of 128 bytes: every 8 rows of 16 bytes at the same k touch all 32 banks.
    for (int k = 0; k < 64; k += 8) {
        std::set<int> pieces;
        for (int i = 0; i < 8; ++i) pieces.insert(operand_address({2048, 16, 1024, kSwizzle128}, false, i, k) / 16 % 8);
        expect(pieces.size() == 8, "swizzled rows");
    }
}

template <int kN, int kPerGroup, int kCluster = 1>
static void check_conv(const Shape& s, bool norm, bool residual) {
    using Tile = ConvTile<kN, kPerGroup>;
    const std::string id = "conv " + name(s) + " tile of " + std::to_string(kN) + " per group " + std::to_string(kPerGroup) +
                           (norm ? " norm" : "") + (residual ? " residual" : "");
    const int pixels = s.n * s.h * s.w;
    const auto x = integers((size_t)pixels * s.c, -3, 3), w = integers((size_t)s.k * kTaps * s.c, -2, 2),
               res = integers((size_t)pixels * s.k, -9, 9);
    const auto scale = integers(s.c, 1, 2), shift = integers(s.c, -3, 3), centre = integers(s.k, -5, 5);
    // plain loops
    std::vector<float> act(x), want((size_t)pixels * s.k);
    if (norm)
        for (size_t i = 0; i < act.size(); ++i) act[i] = to_bf16(norm_leaky(x[i], scale[i % s.c], shift[i % s.c]));
    for (int n = 0; n < s.n; ++n)
        for (int y = 0; y < s.h; ++y)
            for (int c0 = 0; c0 < s.w; ++c0) {
                std::vector<float> acc(s.k, 0.f);
                for (int tap = 0; tap < kTaps; ++tap) {
                    const int yy = y + tap / 3 - 1, xx = c0 + tap % 3 - 1;
                    if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
                    const float* const from = &act[((size_t)(n * s.h + yy) * s.w + xx) * s.c];
                    for (int k = 0; k < s.k; ++k) {
                        const float* const weight = &w[((size_t)k * kTaps + tap) * s.c];
                        float sum = 0;
                        for (int c = 0; c < s.c; ++c) sum += from[c] * weight[c];
                        acc[k] += sum;
                    }
                }
                for (int k = 0; k < s.k; ++k) {
                    const size_t at = ((size_t)(n * s.h + y) * s.w + c0) * s.k + k;
                    want[at] = to_bf16(acc[k]);
                    if (residual) want[at] = to_bf16(want[at] + res[at]);
                }
            }
    // packed weights
    std::vector<float> packed(w.size(), NAN);
    for (int k = 0; k < s.k; ++k)
        for (int tap = 0; tap < kTaps; ++tap)
            for (int c = 0; c < s.c; ++c) {
                float& to = packed[weight_tile_offset(s.k, kTaps, k, tap, c)];
                expect(std::isnan(to), id + ": packed weights do not overlap");
                to = w[krsc_index(s, k, tap, c)];
            }
    // [twin] the kernel
    std::vector<float> got(want.size(), NAN), partials((size_t)pixel_blocks(s) * 2 * s.k, NAN);
    for (int tile = 0; tile < conv_units(s, kN, Tile::kBlocks, kCluster) * kCluster; ++tile) {
        const TileAt at = tile_at(s, kN, tile / kCluster, kCluster, tile % kCluster);
        std::vector<std::vector<float>> acc(Tile::kBlocks, std::vector<float>(64 * kN, 0.f));
        std::vector<int> source(Tile::kPixels);
        for (int t = 0; t < kLoaders; ++t)
            for (int pixel = t; pixel < Tile::kPixels; pixel += kLoaders) source[pixel] = Tile::source(s, at.m, pixel);
        for (int chunk = 0; chunk < chunks(s); ++chunk) {
            Memory a(Tile::kABytes);
            for (int t = 0; t < kLoaders; ++t) {
                const int slice = Tile::load_slice(t), channel = chunk * kChunk + slice * kVec;
                for (int first = 0; first < Tile::kRounds; first += Tile::kBatch)
                    for (int i = 0; i < Tile::kBatch; ++i) {
                        const int pixel = Tile::load_pixel(t, first + i), from = pixel < Tile::kPixels ? source[pixel] : -1;
                        if (pixel >= Tile::kPixels) continue;
                        for (int j = 0; j < kVec; ++j) {
                            expect(from < 0 || (size_t)(from + channel + j) < x.size(), id + ": load in range");
                            float v = from < 0 ? 0 : x[from + channel + j];
                            if (norm && from >= 0) v = to_bf16(norm_leaky(v, scale[channel + j], shift[channel + j]));
                            a.write(Tile::a_offset(slice, pixel) + 2 * j, v, (id + " A").c_str());
                        }
                    }
            }
            for (int tap = 0; tap < kTaps; ++tap) {
                Memory b(Tile::kWeightBytes);
                for (int half = 0; half < kCluster; ++half) {  // each block of a cluster copies its part
                    constexpr int kPart = Tile::kWeightBytes / kCluster;
                    const int64_t from = weight_piece(s, at.n * kN, chunk, tap) + half * (kPart / 2);
                    expect(from % kVec == 0 && (size_t)from + kPart / 2 <= packed.size(), id + ": copy of B in range, aligned");
                    for (int i = 0; i < kPart / 2; ++i) b.write(half * kPart + 2 * i, packed[(size_t)(from + i)], (id + " B").c_str());
                }
                for (int step = 0; step < kChunk / 16; ++step)
                    for (int block = 0; block < Tile::kBlocks; ++block)
                        multiply(acc[block], kN, a, Tile::a_descriptor(0, block, tap, step), false, b, Tile::b_descriptor(0, step), false);
            }
        }
        for (int block = 0; block < Tile::kBlocks; ++block) {
            const int g = at.m * Tile::kBlocks + block;
            if (g >= pixel_blocks(s)) continue;
            Memory staging(Tile::kStagingBytes);
            for (int t = 0; t < 128; ++t)
                for (int i = 0; i < kN / 2; ++i)
                    staging.write(Tile::staging_offset(acc_row(t, i), acc_col(t, i)),
                                  to_bf16(acc[block][acc_row(t, i) * kN + acc_col(t, i)]), (id + " staging").c_str());
            std::vector<float> scratch(Tile::kRowsAtOnce * 2 * kN, NAN);
            expect(scratch.size() * 4 <= (size_t)Tile::kStagingBytes, "scratch fits");
            for (int t = 0; t < 128; ++t) {
                const int vector = Tile::out_vector(t), first = Tile::out_first_row(t), channel = at.n * kN + vector * kVec;
                if (first >= Tile::kRowsAtOnce) continue;
                const BlockAt where = block_at(s, g);
                float sum[kVec] = {}, squares[kVec] = {};
                for (int row = first; row < kBlockPixels; row += Tile::kRowsAtOnce) {
                    const int to = pixel_offset(s, where.image, where.y + row / kEdge, where.x + row % kEdge, s.k) + channel;
                    expect(to == block_offset(s, g, row, s.k) + channel, id + ": row offset");
                    for (int j = 0; j < kVec; ++j) {
                        float v = staging.read(Tile::staging_offset(row, vector * kVec) + 2 * j);
                        if (residual) v = to_bf16(v + res[to + j]);
                        expect(std::isnan(got[to + j]), id + ": stored once");
                        got[to + j] = v;
                        sum[j] += v - centre[channel + j], squares[j] += (v - centre[channel + j]) * (v - centre[channel + j]);
                    }
                }
                for (int j = 0; j < kVec; ++j)
                    scratch[first * 2 * kN + vector * kVec + j] = sum[j], scratch[(first * 2 + 1) * kN + vector * kVec + j] = squares[j];
            }
            for (int t = 0; t < 128; ++t)
                for (int i = t; i < 2 * kN; i += 128) {
                    float total = 0;
                    for (int r = 0; r < Tile::kRowsAtOnce; ++r) total += scratch[r * 2 * kN + i];
                    float& to = partials[partial_index(s, g, i / kN, at.n * kN + i % kN)];
                    expect(std::isnan(to), id + ": partial sums stored once");
                    to = total;
                }
        }
    }
    expect(got == want, id + ": output equals plain loops");
    const int columns = 2 * s.k;  // of all blocks: [sums, squares][k]
    std::vector<double> sums(columns, 0), plain(columns, 0);
    for (int g = 0; g < pixel_blocks(s); ++g)
        for (int c = 0; c < columns; ++c) sums[c] += partials[(size_t)g * columns + c];
    for (size_t i = 0; i < want.size(); ++i) {
        const int k = (int)(i % s.k);
        plain[k] += want[i] - centre[k], plain[s.k + k] += (double)(want[i] - centre[k]) * (want[i] - centre[k]);
    }
    bool close = true;
    for (int c = 0; c < columns; ++c) close &= std::fabs(sums[c] - plain[c]) <= 1e-5 * (1 + std::fabs(plain[c]));
    expect(close, id + ": sums equal plain loops");
}

template <int kN>
static void check_grad(const Shape& s, int splits) {
    const std::string id = "wgrad " + name(s) + " tile of " + std::to_string(kN) + " splits " + std::to_string(splits);
    const int pixels = s.n * s.h * s.w;
    const auto x = integers((size_t)pixels * s.c, -3, 3), dy = integers((size_t)pixels * s.k, -2, 2);
    std::vector<float> want((size_t)s.k * kTaps * s.c, 0.f), partials((size_t)splits * want.size(), NAN), got(want.size(), NAN);
    for (int p = 0; p < pixels; ++p)
        for (int tap = 0; tap < kTaps; ++tap) {
            const int n = p / (s.h * s.w), y = p / s.w % s.h + tap / 3 - 1, xx = p % s.w + tap % 3 - 1;
            if (y < 0 || y >= s.h || xx < 0 || xx >= s.w) continue;
            for (int k = 0; k < s.k; ++k)
                for (int c = 0; c < s.c; ++c)
                    want[krsc_index(s, k, tap, c)] += dy[(size_t)p * s.k + k] * x[((size_t)(n * s.h + y) * s.w + xx) * s.c + c];
        }
    for (int block = 0; block < grad_tiles(s, kN) * splits; ++block) {  // [twin]
        const GradAt at = grad_at(s, kN, block);
        const int first = grad_first(s, at.split, splits), count = grad_first(s, at.split + 1, splits) - first;
        expect(at.split < splits && count >= 0, id + ": split");
        std::vector<std::vector<float>> acc(kTaps, std::vector<float>(64 * kN, 0.f));
        for (int j = 0; j < count; ++j) {
            const BlockAt where = block_at(s, first + j);
            Memory a(kGradABytes), b(GradTile<kN>::kBBytes);
            for (int t = 0; t < kGradLoaders; ++t) {
                for (int i = 0; i < kGradARounds; ++i) {
                    const GradItem item = grad_a_item(t, i);
                    const int channel = at.m * kGradM + item.slice * kVec;
                    const int from =
                        pixel_offset(s, where.image, where.y + item.pixel / kHaloEdge - 1, where.x + item.pixel % kHaloEdge - 1, s.c);
                    const bool real = from >= 0 && channel < s.c;
                    if (item.pixel < kHaloPixels)
                        for (int e = 0; e < kVec; ++e)
                            a.write(item.slice * kGradASliceBytes + item.pixel * kVecBytes + 2 * e, real ? x[from + channel + e] : 0,
                                    (id + " A").c_str());
                }
                for (int i = 0; i < GradTile<kN>::kBRounds; ++i) {
                    const GradItem item = grad_b_item(t, i);
                    const int from = pixel_offset(s, where.image, where.y + item.pixel / kEdge, where.x + item.pixel % kEdge, s.k) +
                                     at.n * kN + item.slice * kVec;
                    for (int e = 0; e < kVec; ++e)
                        b.write(item.slice * kGradBSliceBytes + item.pixel * kVecBytes + 2 * e, dy[from + e], (id + " B").c_str());
                }
            }
            for (int step = 0; step < kBlockPixels / 16; ++step)
                for (int consumer = 0; consumer < kGradGroups; ++consumer)
                    for (int i = 0; i < kGradTaps; ++i) {
                        const int tap = consumer * kGradTaps + i;
                        multiply(acc[tap], kN, a, grad_a_descriptor(0, tap, step), true, b, grad_b_descriptor(0, step), true);
                    }
        }
        for (int tap = 0; tap < kTaps; ++tap)
            for (int t = 0; t < 128; ++t)
                for (int i = 0; i < kN / 2; ++i) {
                    const int c = at.m * kGradM + acc_row(t, i), k = at.n * kN + acc_col(t, i);
                    if (c >= s.c) continue;
                    float& to = partials[grad_partial_index(s, at.split, tap, c, k)];
                    expect(std::isnan(to), id + ": partial stored once");
                    to = acc[tap][acc_row(t, i) * kN + acc_col(t, i)];
                }
    }
    for (int bz = 0; bz < kTaps; ++bz)  // [twin] grad3x3_sum
        for (int by = 0; by < s.c / 32; ++by)
            for (int bx = 0; bx < s.k / 32; ++bx)
                for (int ty = 0; ty < 32; ++ty)
                    for (int tx = 0; tx < 32; ++tx) {
                        float total = 0;
                        for (int split = 0; split < splits; ++split)
                            total += partials[grad_partial_index(s, split, bz, by * 32 + ty, bx * 32 + tx)];
                        got[krsc_index(s, bx * 32 + tx, bz, by * 32 + ty)] = total;
                    }
    expect(got == want, id + ": equals plain loops");
}

// Mbarrier model --------------------------------------------------------------------------------------------------------------

// Threads and warps are coroutines. Whoever can go on is picked at random; copies and wgmma finish at random times. Every stage carries a
// tag (which use it holds); readers check it when they start and when they end, so both a consumer that runs ahead and a producer that
// overwrites too early show.
struct Barrier {
    int expected = 0, pending = 0, phase = 0;
    int64_t bytes = 0;
    explicit Barrier(int count) : expected(count), pending(count) {}
    void settle() {
        if (pending == 0 && bytes == 0) pending = expected, ++phase;
    }
    void arrive(int64_t announced = 0) {
        expect(pending > 0, "mbarrier: no more arrivals than announced in a phase");
        bytes += announced, --pending;
        settle();
    }
    void complete(int64_t n) { bytes -= n, settle(); }
    bool done(uint32_t parity) const { return (uint32_t)(phase & 1) != parity; }  // the phase with this parity is complete
};
struct Actor {
    struct promise_type {
        Actor get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { std::abort(); }
        std::suspend_always yield_value(std::nullptr_t) { return {}; }
    };
    std::coroutine_handle<promise_type> handle;
};
struct Machine {
    std::vector<Actor> actors;
    struct Event {
        int owner;
        std::function<void()> run;
    };
    std::deque<Event> events;  // copies and wgmma groups on their way; those of one owner end in order
    std::mt19937 dice;
    explicit Machine(unsigned seed) : dice(seed) {}
    ~Machine() {
        for (Actor& a : actors) a.handle.destroy();
    }
    void later(int owner, std::function<void()> run) { events.push_back({owner, std::move(run)}); }
    long progress = 0;
    bool run() {  // false: nobody can go on, or nobody got anywhere
        long quiet = 0, before = 0;
        while (true) {
            std::vector<int> alive;
            for (int i = 0; i < (int)actors.size(); ++i)
                if (!actors[i].handle.done()) alive.push_back(i);
            if (alive.empty() && events.empty()) return true;
            if (!events.empty() && (alive.empty() || dice() % 4 == 0)) {
                const size_t pick = dice() % events.size();
                size_t first = pick;
                for (size_t i = 0; i < pick; ++i)
                    if (events[i].owner == events[pick].owner) {
                        first = i;
                        break;
                    }
                auto f = std::move(events[first].run);
                events.erase(events.begin() + (long)first);
                f(), ++progress;
            } else if (!alive.empty()) {
                const int favourite = (int)(dice() % 3 == 0 ? dice() % alive.size() : alive.size() - 1 - dice() % (alive.size() / 2 + 1));
                actors[alive[favourite]].handle.resume();
            }
            if (progress != before)
                before = progress, quiet = 0;
            else if (++quiet > 60000)
                return false;
        }
    }
};
#define AWAIT(condition) \
    while (!(condition)) co_yield nullptr

struct ConvModel {
    int stages_a, stages_b, tiles, chunk_count;
    bool one_thread;  // the prototype: a thread that loads A also fills B, before it arrives for A
    int blocks;       // of threads in the cluster
    struct Block {
        std::vector<Barrier> full_a, empty_a, full_b, empty_b;
        std::vector<std::vector<int>> tag_a, tag_b;  // [stage][loader], [stage][half]
        std::vector<std::vector<int>> table;         // [2][loader]: tile whose offsets a loader wrote
        int sync_count = 0, sync_phase = 0;
        std::vector<int> groups_done;  // per consumer warp
    } block[2];
    Machine m;
    static constexpr int kPieceBytes = ConvTile<160, 2>::kWeightBytes;
    ConvModel(int a, int b, int t, int c, bool one, unsigned seed, int cluster = 1)
        : stages_a(a), stages_b(b), tiles(t), chunk_count(c), one_thread(one), blocks(cluster), m(seed) {
        const int loaders = one ? 128 : kLoaders;
        for (int r = 0; r < blocks; ++r) {
            Block& k = block[r];
            k.full_a.assign(a, Barrier(loaders)), k.empty_a.assign(a, Barrier(8)), k.full_b.assign(b, Barrier(1)),
                k.empty_b.assign(b, Barrier(8 * blocks));
            k.tag_a.assign(a, std::vector<int>(loaders, -1)), k.tag_b.assign(b, std::vector<int>(blocks, -1)),
                k.table.assign(2, std::vector<int>(loaders, -1)), k.groups_done.assign(8, 0);
            for (int i = 0; i < loaders; ++i) m.actors.push_back(load_a(k, i, loaders));
            if (!one) m.actors.push_back(load_b(r));
            for (int w = 0; w < 8; ++w) m.actors.push_back(consume(r, w));
        }
    }
    template <class R>
    static void step(R& r, int stages) {
        if (++r.stage == stages) r.stage = 0, r.parity ^= 1;
    }  // Ring::advance with stages at run time
    Actor load_a(Block& k, int t, int loaders) {
        Ring<1> ring, ring_b;
        int use = 0, use_b = 0, which = 0;
        for (int tile = 0; tile < tiles; ++tile, which ^= 1) {
            k.table[which][t] = tile;
            {
                const int phase = k.sync_phase;
                if (++k.sync_count == loaders) k.sync_count = 0, ++k.sync_phase;
                AWAIT(k.sync_phase != phase);
            }
            for (int chunk = 0; chunk < chunk_count; ++chunk, ++use, step(ring, stages_a)) {
                AWAIT(k.empty_a[ring.stage].done(ring.empty_parity()));
                for (int i = 0; i < loaders; i += 7) expect(k.table[which][i] == tile, "model: table of offsets is this tile's");
                if (one_thread && t == 0)
                    for (int tap = 0; tap < kTaps; ++tap, ++use_b, step(ring_b, stages_b)) {
                        AWAIT(k.empty_b[ring_b.stage].done(ring_b.empty_parity()));
                        copy_b(0, ring_b.stage, use_b);
                    }
                co_yield nullptr;
                k.tag_a[ring.stage][t] = use, ++m.progress;
                co_yield nullptr;
                k.full_a[ring.stage].arrive();
            }
        }
    }
    void copy_b(int r, int stage, int use) {  // announces all at home, sends its part to everybody
        block[r].full_b[stage].arrive(kPieceBytes), ++m.progress;
        for (int to = 0; to < blocks; ++to)
            m.later(1000 + stage * 4 + r * 2 + to,
                    [this, r, to, stage, use] { block[to].tag_b[stage][r] = use, block[to].full_b[stage].complete(kPieceBytes / blocks); });
    }
    Actor load_b(int r) {
        Ring<1> ring;
        const int total = tiles * chunk_count * kTaps;
        for (int use = 0; use < total; ++use, step(ring, stages_b)) {
            AWAIT(block[r].empty_b[ring.stage].done(ring.empty_parity()));
            copy_b(r, ring.stage, use);
        }
    }
    void look(int r, int a, int use_a, int b, int use_b, const char* when) {
        bool ok = true;
        for (int v : block[r].tag_b[b]) ok &= v == use_b;
        for (int v : block[r].tag_a[a]) ok &= v == use_a;
        expect(ok, std::string("model: stages hold what the multiplication wants, ") + when);
    }
    Actor consume(int r, int warp) {
        Ring<1> ring_a, ring_b;
        Block& k = block[r];
        int use_a = 0, use_b = 0, groups = 0;
        const auto release_b = [this](int stage) {
            for (int to = 0; to < blocks; ++to) block[to].empty_b[stage].arrive();
        };
        for (int tile = 0; tile < tiles; ++tile) {
            int used_a = -1, used_b = -1;
            for (int chunk = 0; chunk < chunk_count; ++chunk, ++use_a) {
                AWAIT(k.full_a[ring_a.stage].done(ring_a.full_parity()));
                for (int tap = 0; tap < kTaps; ++tap, ++use_b) {
                    AWAIT(k.full_b[ring_b.stage].done(ring_b.full_parity()));
                    const int a = ring_a.stage, b = ring_b.stage, ua = use_a, ub = use_b;
                    look(r, a, ua, b, ub, "at the start");
                    ++groups, ++m.progress;
                    m.later(r * 8 + warp,
                            [this, r, warp, a, b, ua, ub] { look(r, a, ua, b, ub, "at the end"), ++block[r].groups_done[warp]; });
                    AWAIT(k.groups_done[warp] >= groups - 1);
                    if (used_b >= 0) release_b(used_b);
                    if (tap == 0 && used_a >= 0) k.empty_a[used_a].arrive();
                    used_b = ring_b.stage;
                    step(ring_b, stages_b);
                }
                used_a = ring_a.stage;
                step(ring_a, stages_a);
            }
            AWAIT(k.groups_done[warp] >= groups);
            release_b(used_b), k.empty_a[used_a].arrive();
            co_yield nullptr;  // epilogue
        }
    }
};

struct GradModel {
    int stages, lag, count;
    std::vector<Barrier> full, empty;
    std::vector<std::vector<int>> tag;
    std::vector<int> groups_done, copies_done;
    Machine m;
    GradModel(int s, int l, int c, unsigned seed) : stages(s), lag(l), count(c), m(seed) {
        full.assign(s, Barrier(kGradLoaders)), empty.assign(s, Barrier(4 * kGradGroups)), tag.assign(s, std::vector<int>(kGradLoaders, -1));
        groups_done.assign(4 * kGradGroups, 0), copies_done.assign(kGradLoaders, 0);
        for (int t = 0; t < kGradLoaders; ++t) m.actors.push_back(load(t));
        for (int w = 0; w < 4 * kGradGroups; ++w) m.actors.push_back(consume(w));
    }
    Actor load(int t) {
        Ring<1> ring, behind;
        for (int j = 0; j < count + lag; ++j) {
            if (j < count) {
                AWAIT(empty[ring.stage].done(ring.empty_parity()));
                const int stage = ring.stage;
                m.later(100 + t, [this, stage, t, j] { tag[stage][t] = j, ++copies_done[t]; }), ++m.progress;
                ConvModel::step(ring, stages);
            }
            if (j >= lag) {
                AWAIT(copies_done[t] >= j + 1 - lag);  // groups 0 .. j - lag, of which those from `count` on are empty
                full[behind.stage].arrive();
                ConvModel::step(behind, stages);
            }
        }
    }
    Actor consume(int warp) {
        Ring<1> ring;
        int used = -1;
        for (int j = 0; j < count; ++j) {
            AWAIT(full[ring.stage].done(ring.full_parity()));
            const int stage = ring.stage;
            look(stage, j, "at the start"), ++m.progress;
            m.later(warp, [this, warp, stage, j] { look(stage, j, "at the end"), ++groups_done[warp]; });
            AWAIT(groups_done[warp] >= j);
            if (used >= 0) empty[used].arrive();
            used = ring.stage;
            ConvModel::step(ring, stages);
        }
        AWAIT(groups_done[warp] >= count);
    }
    void look(int stage, int use, const char* when) {
        bool ok = true;
        for (int v : tag[stage]) ok &= v == use;
        expect(ok, std::string("model: wgrad stages hold what the multiplication wants, ") + when);
    }
};

static void check_barriers() {
    for (unsigned seed = 0; seed < 6; ++seed) {
        expect(ConvModel(ConvTile<160, 2>::kStagesA, ConvTile<160, 2>::kStagesB, 3, 5, false, seed).m.run(),
               "model: 4 blocks a tile comes to its end");
        expect(ConvModel(ConvTile<160, 1>::kStagesA, ConvTile<160, 1>::kStagesB, 3, 5, false, seed).m.run(),
               "model: 2 blocks a tile comes to its end");
        expect(ConvModel(2, 2, 3, 2, false, seed).m.run(), "model: two stages of each are enough");
        expect(ConvModel(ConvTile<160, 2>::kStagesA, ConvTile<160, 2>::kStagesB, 3, 5, false, seed, 2).m.run(),
               "model: a cluster of two, 4 blocks a tile, comes to its end");
        expect(ConvModel(ConvTile<160, 1>::kStagesA, ConvTile<160, 1>::kStagesB, 3, 5, false, seed, 2).m.run(),
               "model: a cluster of two, 2 blocks a tile, comes to its end");
        expect(ConvModel(2, 2, 3, 2, false, seed, 2).m.run(), "model: a cluster of two with two stages of each");
        for (int count : {0, 1, 2, 3, 7, 8, 9, 30})
            expect(GradModel(kGradStages, kGradLag, count, seed).m.run(), "model: wgrad comes to its end, blocks " + std::to_string(count));
    }
    // The model finds what is wrong: the prototype's single thread for A and B with 8 stages, and a lag too large for the ring.
    const int before = failures;
    expect(!ConvModel(3, 8, 1, 2, true, 1).m.run(), "model: one thread for A and B hangs with 8 stages of B");
    expect(ConvModel(3, 10, 1, 2, true, 1).m.run(), "model: one thread for A and B runs with 10 stages of B");
    expect(!GradModel(4, 4, 20, 1).m.run(), "model: a lag of all stages hangs");
    if (failures == before) std::printf("ok    the barrier model finds the prototype's deadlock\n");
}

int main() {
    const auto part = [](const char* what, auto f) {
        const int before = failures, done = checks;
        f();
        std::printf("%s  %s (%d checks)\n", failures == before ? "ok  " : "FAIL", what, checks - done);
        std::fflush(stdout);
    };
    part("descriptors, accumulators", check_descriptors);
    part("convolution, image borders", [] {
        check_conv<160, 2>({1, 16, 16, 32, 160}, false, false);
        check_conv<160, 1>({1, 16, 16, 32, 160}, true, true);
        check_conv<160, 2>({1, 32, 32, 64, 160}, true, true);
        check_conv<160, 2>({2, 8, 16, 96, 160}, false, true);
    });
    part("convolution, tiles across images and odd ends", [] {
        check_conv<160, 2>({4, 8, 8, 64, 320}, true, true);
        check_conv<160, 2>({3, 8, 8, 32, 160}, true, true);
        check_conv<160, 2>({5, 8, 8, 32, 320}, false, true);
        check_conv<160, 1>({3, 8, 8, 32, 320}, true, false);
        check_conv<160, 2>({1, 24, 8, 32, 160}, false, false);
        check_conv<160, 2>({1, 16, 16, 160, 160}, true, true);
        check_conv<160, 2, 2>({1, 32, 32, 32, 160}, true, true);
        check_conv<160, 1, 2>({5, 8, 8, 64, 320}, true, true);
        check_conv<160, 2, 2>({3, 8, 8, 32, 320}, false, false);
    });
    part("convolution, tiles of 128, 64, 32 channels", [] {
        check_conv<128, 2>({1, 16, 16, 64, 128}, true, true);
        check_conv<128, 1>({3, 8, 8, 32, 256}, false, true);
        check_conv<128, 2, 2>({5, 8, 8, 32, 256}, true, false);
        check_conv<128, 1, 2>({1, 16, 16, 32, 128}, false, false);
        check_conv<64, 2>({2, 8, 16, 32, 192}, false, true);
        check_conv<64, 1>({3, 8, 8, 96, 64}, true, true);
        check_conv<32, 2>({1, 24, 8, 32, 96}, true, false);
        check_conv<32, 1>({3, 8, 8, 64, 32}, false, true);
    });
    part("weight gradient", [] {
        check_grad<80>({1, 16, 16, 64, 80 * 2}, 1);
        check_grad<80>({2, 16, 16, 160, 160}, 3);
        check_grad<80>({5, 8, 8, 160, 160}, 2);
        check_grad<80>({1, 32, 32, 160, 160}, 5);
        check_grad<80>({3, 8, 8, 320, 160}, 3);
        check_grad<64>({2, 16, 8, 96, 128}, 3);
        check_grad<64>({3, 8, 8, 64, 64}, 1);
        check_grad<32>({2, 8, 16, 32, 96}, 2);
        check_grad<32>({5, 8, 8, 160, 32}, 4);
    });
    part("offsets fit 31 bits", [] {
        for (const Shape& s : {Shape{128, 32, 32, 160, 160}, Shape{256, 32, 32, 160, 320}, Shape{256, 16, 16, 320, 640}})
            expect((int64_t)s.n * s.h * s.w * std::max(s.c, s.k) < INT32_MAX, name(s));
    });
    part("mbarrier protocol", check_barriers);
    std::printf("%s: %d checks, %d failures\n", failures ? "FAIL" : "PASS", checks, failures);
    return failures != 0;
}
