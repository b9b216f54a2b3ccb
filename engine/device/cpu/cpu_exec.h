// The four primitives on CPU cores: OpenMP over tiles, SIMD within one. Tiles depend on the shape alone, so the engine's
// own sums do not depend on the number of threads. What runs inside a tile is compiled twice, for AVX2 and for AVX-512, and chosen
// when the program runs: both add in the same order, lane by lane.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "engine/device/cpu/instruction_sets.h"
#include "engine/device/host/host_stream.h"
#include "kernels/operands.h"

namespace jem {

inline constexpr int64_t kLanes = 16;            // channels of a tile, one vector register of f32
inline constexpr int64_t kTileElements = 16384;  // 64 KiB of f32: a thread's share, well above the cost of handing it out
inline constexpr int64_t kMaxChunks = 64;        // rows of partial sums
inline constexpr int64_t kRowsInFloat = 64;      // summed in the operand's type before they are added to a double
inline constexpr int64_t kTilesAtOnce = 8;       // tiles side by side whose rows a column reduction takes while they lie in the first cache
inline constexpr int64_t kSmallCount = 2048;     // items below which starting threads costs more than it gives

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

class CpuExec {
public:
    static constexpr int kPixelsPerItem = 64, kMostChannelsPerItem = 16;

    // partials: scratch for sums, of partials_count doubles; ops run one after another and share it.
    CpuExec(HostStream& stream, int threads, double* partials, int64_t partials_count)
        : stream_(&stream), threads_(threads), avx512_(cpu_has_avx512()), partials_(partials), partials_count_(partials_count) {}

    // Items may differ much in cost (a fresh chain sums over a whole class): handed out as threads come free.
    template <class F>
    void for_each(const char* label, int64_t count, F f) {
        const int threads = threads_;
        stream_->submit(label, {}, [=] {
            const int64_t grain = std::max<int64_t>(1, count / (16 * threads));
            (void)grain;
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads) if (count > 1)
            for (int64_t i = 0; i < count; ++i) f(i);
        });
    }

    template <class F, class O, class... I>
    void for_each(const char* label, Layout l, F f, O out, I... in) {
        const int threads = threads_;
        const bool wide = avx512_;
        const Work work{.bytes = static_cast<double>(l.count()) * static_cast<double>((element_bytes(out) + ... + element_bytes(in)))};
        if constexpr ((is_dense(O{}) && ... && is_dense(I{}))) {
            stream_->submit(label, work, [=] {
                const int64_t count = l.count(), tiles = divide_up(count, kTileElements);
#pragma omp parallel for schedule(static) num_threads(threads) if (count > kSmallCount)
                for (int64_t t = 0; t < tiles; ++t) {
                    const int64_t begin = t * kTileElements, end = std::min(count, begin + kTileElements);
                    wide ? elements_avx512(f, begin, end, 0, out, in...) : elements(f, begin, end, 0, out, in...);
                }
            });
        } else {
            stream_->submit(label, work, [=] {
                const int64_t rows_a_tile = std::max<int64_t>(1, kTileElements / l.block), parts = divide_up(l.rows, rows_a_tile);
#pragma omp parallel for schedule(static) num_threads(threads) if (l.count() > kSmallCount)
                for (int64_t t = 0; t < l.planes * parts; ++t) {
                    const int64_t plane = t / parts, begin = t % parts * rows_a_tile, end = std::min(l.rows, begin + rows_a_tile);
                    wide ? rows_avx512(f, l, plane, begin, end, out, in...) : rows(f, l, plane, begin, end, out, in...);
                }
            });
        }
    }

    template <class F, class... I>
    void column_reduce(const char* label, Layout l, F f, I... in) {
        const int threads = threads_;
        const bool wide = avx512_;
        const int64_t lane_tiles = divide_up(l.block, kLanes), tile_groups = divide_up(lane_tiles, kTilesAtOnce), channels = l.channels();
        const int64_t images_a_chunk = divide_up(l.images(), kMaxChunks), chunks = divide_up(l.images(), images_a_chunk);
        need(label, chunks * channels * F::kSums);
        double* partials = partials_;  // [chunks, kSums, channels]
        const Work work{.bytes = static_cast<double>(l.count()) * static_cast<double>((size_t{0} + ... + element_bytes(in)))};
        stream_->submit(label, work, [=] {
#pragma omp parallel for schedule(static) num_threads(threads) if (l.count() > kSmallCount)
            for (int64_t t = 0; t < chunks * l.blocks * tile_groups; ++t) {
                const int64_t group = t % tile_groups, block = t / tile_groups % l.blocks, chunk = t / tile_groups / l.blocks;
                const int64_t first_tile = group * kTilesAtOnce, tiles = std::min(kTilesAtOnce, lane_tiles - first_tile);
                double sums[kTilesAtOnce][F::kSums][kLanes] = {};
                const int64_t last = std::min(l.images(), (chunk + 1) * images_a_chunk);
                for (int64_t n = chunk * images_a_chunk; n < last; ++n)
                    for (int64_t row = 0; row < l.rows; row += kRowsInFloat)
                        for (int64_t i = 0; i < tiles; ++i) {
                            const int64_t lane = (first_tile + i) * kLanes, c = block * l.block + lane;
                            const Tile tile{((n * l.blocks + block) * l.rows + row) * l.block + lane, std::min(kRowsInFloat, l.rows - row),
                                            l.block, std::min(kLanes, l.block - lane), c};
                            wide ? sum_tile_avx512(sums[i], f, tile, in.within(c)...) : sum_tile(sums[i], f, tile, in.within(c)...);
                        }
                for (int64_t i = 0; i < tiles; ++i)
                    for (int k = 0; k < F::kSums; ++k) {
                        const int64_t lane = (first_tile + i) * kLanes, c = block * l.block + lane;
                        for (int64_t b = 0; b < std::min(kLanes, l.block - lane); ++b)
                            partials[(chunk * F::kSums + k) * channels + c + b] = sums[i][k][b];
                    }
            }
#pragma omp parallel for schedule(static) num_threads(threads) if (chunks * channels > kSmallCount)
            for (int64_t c = 0; c < channels; ++c) {
                double sums[F::kSums] = {};
                for (int64_t chunk = 0; chunk < chunks; ++chunk)
                    for (int k = 0; k < F::kSums; ++k) sums[k] += partials[(chunk * F::kSums + k) * channels + c];
                f.finish(c, sums);
            }
        });
    }

    template <class F, class... I>
    void reduce(const char* label, int64_t count, F f, I... in) {
        const int threads = threads_;
        const int64_t chunk = std::max<int64_t>(4096, divide_up(count, 1024)), chunks = divide_up(count, chunk);
        need(label, chunks * F::kSums);
        double* partials = partials_;  // [chunks, kSums]
        const Work work{.bytes = static_cast<double>(count) * static_cast<double>((size_t{0} + ... + element_bytes(in)))};
        stream_->submit(label, work, [=] {
#pragma omp parallel for schedule(static) num_threads(threads) if (count > kSmallCount)
            for (int64_t t = 0; t < chunks; ++t) {
                double sums[F::kSums][kLanes] = {};
                const int64_t end = std::min(count, (t + 1) * chunk);
                int64_t i = t * chunk;
                for (; i + kLanes <= end; i += kLanes)
#pragma omp simd
                    for (int64_t b = 0; b < kLanes; ++b) {
                        double terms[F::kSums];
                        f.map(terms, in.at(i + b, 0)...);
                        for (int k = 0; k < F::kSums; ++k) sums[k][b] += terms[k];
                    }
                for (; i < end; ++i) {
                    double terms[F::kSums];
                    f.map(terms, in.at(i, 0)...);
                    for (int k = 0; k < F::kSums; ++k) sums[k][0] += terms[k];
                }
                for (int k = 0; k < F::kSums; ++k) {
                    double sum = 0;
                    for (int64_t b = 0; b < kLanes; ++b) sum += sums[k][b];
                    partials[t * F::kSums + k] = sum;
                }
            }
            double sums[F::kSums] = {};
            for (int64_t t = 0; t < chunks; ++t)
                for (int k = 0; k < F::kSums; ++k) sums[k] += partials[t * F::kSums + k];
            f.finish(sums);
        });
    }

private:
    template <class T>
    static constexpr size_t element_bytes(In<T>) {
        return sizeof(T);
    }
    template <class T>
    static constexpr size_t element_bytes(Out<T>) {
        return sizeof(T);
    }
    template <class T>
    static constexpr size_t element_bytes(T) {
        return 0;
    }
    template <class T>
    static constexpr bool is_dense(PerChannel<T>) {
        return false;
    }
    template <class T>
    static constexpr bool is_dense(T) {
        return true;
    }

    template <class F, class O, class... I>
    JEM_INLINE static void elements_of(const F& f, int64_t begin, int64_t end, int64_t c, O out, I... in) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) f(out.at(i, c + (i - begin)), in.at(i, c + (i - begin))...);
    }
    template <class F, class O, class... I>
    static void elements(const F& f, int64_t begin, int64_t end, int64_t c, O out, I... in) {
        elements_of(f, begin, end, c, out, in...);
    }
    template <class F, class O, class... I>
    JEM_AVX512 static void elements_avx512(const F& f, int64_t begin, int64_t end, int64_t c, O out, I... in) {
        elements_of(f, begin, end, c, out, in...);
    }

    // Rows begin .. end of one plane.
    template <class F, class O, class... I>
    JEM_INLINE static void rows_of(const F& f, const Layout& l, int64_t plane, int64_t begin, int64_t end, O out, I... in) {
        const int64_t c = plane % l.blocks * l.block;
        for (int64_t r = begin; r < end; ++r) {
            const int64_t first = (plane * l.rows + r) * l.block;
            if (l.block == kLanes)
                elements_of(f, first, first + kLanes, c, out, in...);
            else
                elements_of(f, first, first + l.block, c, out, in...);
        }
    }
    template <class F, class O, class... I>
    static void rows(const F& f, const Layout& l, int64_t plane, int64_t begin, int64_t end, O out, I... in) {
        rows_of(f, l, plane, begin, end, out, in...);
    }
    template <class F, class O, class... I>
    JEM_AVX512 static void rows_avx512(const F& f, const Layout& l, int64_t plane, int64_t begin, int64_t end, O out, I... in) {
        rows_of(f, l, plane, begin, end, out, in...);
    }

    // Up to kRowsInFloat rows of one image and up to kLanes channels.
    struct Tile {
        int64_t first, rows, stride;  // of elements
        int64_t lanes, channel;
    };
    // One value a channel, converted once a tile.
    template <class R>
    struct HeldChannels {
        R values[kLanes];
        int64_t first;
        R at(int64_t, int64_t c) const { return values[c - first]; }
    };
    template <class T>
    JEM_INLINE static In<T> held(In<T> in, const Tile&) {
        return in;
    }
    template <class T>
    JEM_INLINE static HeldChannels<Real<PerChannel<T>>> held(PerChannel<T> in, const Tile& t) {
        HeldChannels<Real<PerChannel<T>>> out;
        out.first = t.channel;
        for (int64_t b = 0; b < kLanes; ++b) out.values[b] = b < t.lanes ? in.at(0, t.channel + b) : Real<PerChannel<T>>(0);
        return out;
    }

    template <class T>
    JEM_INLINE static void prefetch(const In<T>& in, int64_t i) {
        __builtin_prefetch(in.data + i, 0, 2);
    }
    template <class T>
    JEM_INLINE static void prefetch(const T&, int64_t) {}

    // sums[k][lane] += over a tile. Lanes > 0: their number, known to the compiler.
    template <int64_t Lanes, class F, class Head, class... I>
    JEM_INLINE static void sum_tile_of(double (&sums)[F::kSums][kLanes], const F& f, const Tile& t, Head head, I... in) {
        using R = Real<Head>;
        const int64_t width = Lanes > 0 ? Lanes : t.lanes;
        R partial[F::kSums][kLanes] = {};
        for (int64_t r = 0; r < t.rows; ++r) {
            const int64_t first = t.first + r * t.stride;
            if (t.stride > kLanes) {  // what lies side by side the machine fetches ahead by itself
                prefetch(head, first + kRowsInFloat * t.stride);
                (prefetch(in, first + kRowsInFloat * t.stride), ...);
            }
#pragma omp simd
            for (int64_t b = 0; b < width; ++b) {
                R terms[F::kSums];
                f.map(terms, head.at(first + b, t.channel + b), in.at(first + b, t.channel + b)...);
                for (int k = 0; k < F::kSums; ++k) partial[k][b] += terms[k];
            }
        }
        for (int k = 0; k < F::kSums; ++k)
            for (int64_t b = 0; b < width; ++b) sums[k][b] += static_cast<double>(partial[k][b]);
    }
    template <class F, class... I>
    static void sum_tile(double (&sums)[F::kSums][kLanes], const F& f, const Tile& t, I... in) {
        t.lanes == kLanes ? sum_tile_of<kLanes>(sums, f, t, held(in, t)...) : sum_tile_of<0>(sums, f, t, held(in, t)...);
    }
    template <class F, class... I>
    JEM_AVX512 static void sum_tile_avx512(double (&sums)[F::kSums][kLanes], const F& f, const Tile& t, I... in) {
        t.lanes == kLanes ? sum_tile_of<kLanes>(sums, f, t, held(in, t)...) : sum_tile_of<0>(sums, f, t, held(in, t)...);
    }

    void need(const char* label, int64_t doubles) const {
        if (doubles > partials_count_)
            throw std::length_error(std::string(label) + " needs " + std::to_string(doubles) + " partial sums (there is room for " +
                                    std::to_string(partials_count_) + "). Lower --width.");
    }

    HostStream* stream_;
    int threads_;
    bool avx512_;
    double* partials_;
    int64_t partials_count_;
};

}  // namespace jem
