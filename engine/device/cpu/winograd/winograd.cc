#include "engine/device/cpu/winograd/winograd.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "engine/device/cpu/vectors.h"
#include "engine/device/cpu/winograd/point_product.h"
#include "engine/device/cpu/winograd/winograd_schemes.h"
#include "kernels/norm.h"

namespace jem::winograd {
namespace {

// Tiles -----------------------------------------------------------------------------------------------------------------------

constexpr int64_t kPadding = 16;  // floats between the matrices of two points, which would otherwise meet in the same lines of a cache

// A matrix a point.
struct Points {
    float* data;
    int64_t stride;  // from one point to the next
};
constexpr int64_t stride_of(int64_t rows, int64_t columns) { return rows * columns + kPadding; }

// An activation's shape.
struct Side {
    int64_t channels, height, width;
};
// Where its values lie.
template <class A, int Lanes>
struct Order {
    static constexpr bool kBlocks = std::is_same_v<A, float>;  // of Lanes channels, else channels last
    // So many channels lie side by side.
    JEM_INLINE static int64_t block(const Side& s) { return kBlocks ? Lanes : s.channels; }
    // The first pixel's value of a channel that begins a vector.
    JEM_INLINE static int64_t first(const Side& s, int64_t image, int64_t channel) {
        const int64_t pixels = s.height * s.width;
        return kBlocks ? (image * s.channels + channel) * pixels : image * s.channels * pixels + channel;
    }
};
Side input_side(const ConvShape& s) { return {s.in_channels, s.height, s.width}; }
Side output_side(const ConvShape& s) { return {s.out_channels, s.out_height(), s.out_width()}; }

struct Tiling {
    int64_t rows, columns, count;  // of a batch
    struct At {
        int64_t image, row, column;
    };
    At at(int64_t tile) const { return {tile / (rows * columns), tile / columns % rows, tile % columns}; }
};
template <class Scheme>
Tiling tiling(const Side& out, int64_t batch) {
    const int64_t rows = (out.height + Scheme::kOutStep - 1) / Scheme::kOutStep,
                  columns = (out.width + Scheme::kOutStep - 1) / Scheme::kOutStep;
    return {rows, columns, batch * rows * columns};
}

// body(first of Lanes channels, tile from first, its place), channels that share a line of the cache side by side.
template <class A, int Lanes, class Body>
JEM_INLINE void each_tile(const Side& side, const Tiling& tiles, int64_t first, int64_t count, const Body& body) {
    const int64_t together = std::max<int64_t>(16, Order<A, Lanes>::block(side));
    for (int64_t group = 0; group < side.channels; group += together)
        for (int64_t t = 0; t < count; ++t) {
            const Tiling::At at = tiles.at(first + t);
            for (int64_t c = group; c < std::min(group + together, side.channels); c += Lanes) body(c, t, at);
        }
}

// Asks for the pixels of tiles first .. first + count of an activation, before they are needed: products leave the memory idle. What a
// tile shares with its neighbours is left to them.
template <class A, int Lanes>
struct Ahead {
    const A* data;  // may be null
    Side side;
    int64_t first, count, step;

    // The share of `part` out of `parts` calls. Part of its caller: g++ takes a function of prefetches alone for one without effect.
    JEM_INLINE void fetch(const Tiling& tiles, int64_t part, int64_t parts) const {
        constexpr int64_t kLine = 64 / sizeof(A);
        if (data == nullptr || count <= 0) return;
        const int64_t block = Order<A, Lanes>::block(side), units = count * (side.channels / block);
        for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
            const Tiling::At at = tiles.at(first + unit % count);
            const A* plane = data + Order<A, Lanes>::first(side, at.image, unit / count * block);
            const int64_t row_end = std::min(side.height, (at.row + 1) * step), columns = std::min(step, side.width - at.column * step);
            for (int64_t row = at.row * step; row < row_end; ++row) {
                const A* line = plane + (row * side.width + at.column * step) * block;
                for (int64_t i = 0; i < columns * block; i += kLine) __builtin_prefetch(line + i, 0, 2);
            }
        }
    }
};

// Which of a tile's rows lie outside of the image. With stride 1, where its height is a multiple of four, none but the first and the last.
enum class Outside { none, first, last, both, any };

// The transform of a tile of Size by Size values whose corner lies at (row, column) of a plane, over its columns and then its rows, into
// one matrix a point. What lies outside of the image is zero. With Rows any it is read from the nearest pixel that is inside, and masked;
// else a column outside is the first or the last one.
template <int Size, int PointsASide, int Lanes, Outside Rows, class A, class Read, class Transform>
JEM_INLINE void tile_to_points(float* to, int64_t stride, const A* plane, const Side& side, int64_t row, int64_t column, const Read& read,
                               const Transform& transform) {
    using V = Vector<Lanes>;
    using Mask = typename VectorOf<Lanes>::Mask;
    constexpr bool kMasked = Rows == Outside::any;
    V half[PointsASide * Size], values[Size], p[PointsASide];
    const int64_t block = Order<A, Lanes>::block(side);
    const A* rows[Size];
    int32_t row_mask[Size];
#pragma GCC unroll 9
    for (int r = 0; r < Size; ++r) {
        const int64_t inside = kMasked || r == 0 || r == Size - 1 ? std::clamp<int64_t>(row + r, 0, side.height - 1) : row + r;
        rows[r] = plane + inside * side.width * block;
        row_mask[r] = inside == row + r ? -1 : 0;
    }
#pragma GCC unroll 9
    for (int c = 0; c < Size; ++c) {
        const bool at_end = (c == 0 && column < 0) || (c == Size - 1 && column + c >= side.width);
        if (!kMasked && at_end) {
#pragma GCC unroll 9
            for (int i = 0; i < PointsASide; ++i) half[i * Size + c] = V{};
            continue;
        }
        const int64_t inside = kMasked ? std::clamp<int64_t>(column + c, 0, side.width - 1) : column + c;
        const int32_t column_mask = inside == column + c ? -1 : 0;
#pragma GCC unroll 9
        for (int r = 0; r < Size; ++r) {
            constexpr bool kFirst = Rows == Outside::first || Rows == Outside::both, kLast = Rows == Outside::last || Rows == Outside::both;
            if ((kFirst && r == 0) || (kLast && r == Size - 1)) {
                values[r] = V{};
                continue;
            }
            read(values[r], rows[r] + inside * block);
            if constexpr (kMasked) {
                const Mask mask = Mask{} + (row_mask[r] & column_mask);
                values[r] = reinterpret_cast<V>(reinterpret_cast<Mask>(values[r]) & mask);
            }
        }
        transform(values, 1, p);
#pragma GCC unroll 9
        for (int i = 0; i < PointsASide; ++i) half[i * Size + c] = p[i];
    }
#pragma GCC unroll 9
    for (int i = 0; i < PointsASide; ++i) {
        transform(half + i * Size, 1, p);
#pragma GCC unroll 9
        for (int j = 0; j < PointsASide; ++j) store(to + (i * PointsASide + j) * stride, p[j]);
    }
}
template <int Size, int PointsASide, int Lanes, class A, class Read, class Transform>
JEM_INLINE void to_points(float* to, int64_t stride, const A* plane, const Side& side, int64_t row, int64_t column, const Read& read,
                          const Transform& transform) {
    const auto with = [&]<Outside Rows>(std::integral_constant<Outside, Rows>) JEM_INLINE_LAMBDA {
        tile_to_points<Size, PointsASide, Lanes, Rows>(to, stride, plane, side, row, column, read, transform);
    };
    const bool first = row < 0, last = (row + Size > side.height);
    if (std::min(row, column) < -1 || row + Size > side.height + 1 || column + Size > side.width + 1)
        with(std::integral_constant<Outside, Outside::any>{});
    else if (first && last)
        with(std::integral_constant<Outside, Outside::both>{});
    else if (first)
        with(std::integral_constant<Outside, Outside::first>{});
    else if (last)
        with(std::integral_constant<Outside, Outside::last>{});
    else
        with(std::integral_constant<Outside, Outside::none>{});
}

template <class V>
struct ReadPlain {
    template <class A>
    JEM_INLINE void operator()(V& v, const A* from) const {
        load(v, from);
    }
};
template <class V>
struct ReadActivated {
    V mean, scale, beta;
    float slope;
    JEM_INLINE ReadActivated(const NormInFront& norm, int64_t channel) : slope(norm.slope) {
        load(mean, norm.mean + channel);
        load(scale, norm.scale + channel);
        load(beta, norm.beta + channel);
    }
    template <class A>
    JEM_INLINE void operator()(V& v, const A* from) const {
        V x;
        load(x, from);
        const V z = (x - mean) * scale + beta;
        v = z > 0.0f ? z : slope * z;
    }
};

// Tiles first .. first + count of the input, into points [count, channels].
template <class Scheme, int Lanes, class A>
JEM_INLINE void input_to_points(const Points& to, const Side& side, const Tiling& tiles, int64_t first, int64_t count, const A* x,
                                const NormInFront* norm) {
    using V = Vector<Lanes>;
    const auto transform = [](const V* d, int s, V(&p)[Scheme::kPoints]) JEM_INLINE_LAMBDA { Scheme::input(d, s, p); };
    each_tile<A, Lanes>(side, tiles, first, count, [&](int64_t c, int64_t t, const Tiling::At& at) JEM_INLINE_LAMBDA {
        float* points = to.data + t * side.channels + c;
        const A* image = x + Order<A, Lanes>::first(side, at.image, c);
        const int64_t row = at.row * Scheme::kInStep + Scheme::kInFirst, column = at.column * Scheme::kInStep + Scheme::kInFirst;
        if (norm != nullptr)
            to_points<Scheme::kIn, Scheme::kPoints, Lanes>(points, to.stride, image, side, row, column, ReadActivated<V>(*norm, c),
                                                           transform);
        else
            to_points<Scheme::kIn, Scheme::kPoints, Lanes>(points, to.stride, image, side, row, column, ReadPlain<V>{}, transform);
    });
}

// The same of the output's gradient, by the transpose of what makes outputs from points.
template <class Scheme, int Lanes, class A>
JEM_INLINE void gradient_to_points(const Points& to, const Side& side, const Tiling& tiles, int64_t first, int64_t count, const A* d_y) {
    using V = Vector<Lanes>;
    const auto transform = [](const V* d, int s, V(&p)[Scheme::kPoints]) JEM_INLINE_LAMBDA { Scheme::gradient(d, s, p); };
    each_tile<A, Lanes>(side, tiles, first, count, [&](int64_t c, int64_t t, const Tiling::At& at) JEM_INLINE_LAMBDA {
        to_points<Scheme::kOut, Scheme::kPoints, Lanes>(to.data + t * side.channels + c, to.stride,
                                                        d_y + Order<A, Lanes>::first(side, at.image, c), side, at.row * Scheme::kOutStep,
                                                        at.column * Scheme::kOutStep, ReadPlain<V>{}, transform);
    });
}

// What is done with a result: write(value, index), and sums of two values a channel, of what is written.
template <class V, class A, bool Sums>
struct WriteForward {
    static constexpr bool kSums = Sums;
    A* to;
    const A* residual;
    V bias, centre;
    JEM_INLINE WriteForward(const ForwardOutput& o, int64_t channel)
        : to(static_cast<A*>(o.y)), residual(static_cast<const A*>(o.residual)), centre{} {
        load(bias, o.bias + channel);
        if constexpr (Sums) load(centre, o.centre + channel);
    }
    JEM_INLINE void operator()(const V& value, int64_t i, V (&sums)[2]) const {
        V y = value + bias;
        if (residual != nullptr) {
            V r;
            load(r, residual + i);
            y += r;
        }
        round_to<A>(y);
        store(to + i, y);
        if constexpr (Sums) {
            const V d = y - centre;
            sums[0] += d;
            sums[1] += d * d;
        }
    }
};
template <class V, class A>
struct WriteBackward {
    static constexpr bool kSums = false;
    A* to;
    JEM_INLINE WriteBackward(const BackwardOutput& o, int64_t) : to(static_cast<A*>(o.d_x)) {}
    JEM_INLINE void operator()(const V& value, int64_t i, V (&)[2]) const {
        V d_x = value;
        round_to<A>(d_x);
        store(to + i, d_x);
    }
};
template <class V, class A>
struct WriteLeakyBackward {
    static constexpr bool kSums = true;
    A* to;
    const A* input;
    V mean, scale, beta;
    float slope;
    JEM_INLINE WriteLeakyBackward(const BackwardOutput& o, int64_t channel)
        : to(static_cast<A*>(o.d_x)), input(static_cast<const A*>(o.x)), slope(o.norm.slope) {
        load(mean, o.norm.mean + channel);
        load(scale, o.norm.scale + channel);
        load(beta, o.norm.beta + channel);
    }
    JEM_INLINE void operator()(const V& value, int64_t i, V (&sums)[2]) const {
        V x;
        load(x, input + i);
        const V centred = x - mean, z = centred * scale + beta;
        V d_z = z > 0.0f ? value : slope * value;
        round_to<A>(d_z);
        store(to + i, d_z);
        sums[0] += d_z;
        sums[1] += d_z * centred;
    }
};

// Points [count, channels] to the tiles of the output. partial [2, channels]: the sums over these tiles.
template <class Scheme, int Lanes, class A, class Write, class Out>
JEM_INLINE void points_to_output(const Points& from, const Side& side, const Tiling& tiles, int64_t first, int64_t count, const Out& out,
                                 float* partial) {
    using V = Vector<Lanes>;
    constexpr int kPoints = Scheme::kPoints, kOut = Scheme::kOut;
    if constexpr (Write::kSums) std::fill_n(partial, 2 * side.channels, 0.0f);
    each_tile<A, Lanes>(side, tiles, first, count, [&](int64_t c, int64_t t, const Tiling::At& at) JEM_INLINE_LAMBDA {
        const Write write(out, c);
        const float* m = from.data + t * side.channels + c;
        V half[kOut * kPoints], column[kPoints], y[kOut];
#pragma GCC unroll 9
        for (int j = 0; j < kPoints; ++j) {
#pragma GCC unroll 9
            for (int i = 0; i < kPoints; ++i) load(column[i], m + (i * kPoints + j) * from.stride);
            Scheme::output(column, 1, y);
#pragma GCC unroll 9
            for (int i = 0; i < kOut; ++i) half[i * kPoints + j] = y[i];
        }
        const int64_t row = at.row * Scheme::kOutStep, left = at.column * Scheme::kOutStep;
        const int64_t rows = std::min<int64_t>(kOut, side.height - row), columns = std::min<int64_t>(kOut, side.width - left);
        const int64_t block = Order<A, Lanes>::block(side);
        const int64_t corner = Order<A, Lanes>::first(side, at.image, c) + (row * side.width + left) * block;
        V sums[2] = {};
        if (rows == kOut && columns == kOut)
#pragma GCC unroll 9
            for (int i = 0; i < kOut; ++i) {
                Scheme::output(half + i * kPoints, 1, y);
#pragma GCC unroll 9
                for (int j = 0; j < kOut; ++j) write(y[j], corner + (i * side.width + j) * block, sums);
            }
        else
            for (int64_t i = 0; i < rows; ++i) {
                Scheme::output(half + i * kPoints, 1, y);
                for (int64_t j = 0; j < columns; ++j) write(y[j], corner + (i * side.width + j) * block, sums);
            }
        if constexpr (Write::kSums)
            for (int k = 0; k < 2; ++k) {
                float* to = partial + k * side.channels + c;
                V all;
                load(all, to);
                store(to, all + sums[k]);
            }
    });
}

// Passes ----------------------------------------------------------------------------------------------------------------------

// Tiles that go through transform, products and transform together, and so what their points take: as much as stays in a core's own
// cache, but enough rows for the products. It depends on nothing but the shape, and so do sums over a block's tiles.
constexpr int64_t kHotBytes = int64_t{480} << 10;
constexpr int64_t kMinTiles = 12, kMaxTiles = 48;
template <class Scheme>
int64_t tiles_a_block(const ConvShape& s, int64_t tiles) {
    const int64_t a_tile = Scheme::kPoints * Scheme::kPoints * (s.in_channels + s.out_channels) * int64_t{sizeof(float)};
    const int64_t most = std::clamp(kHotBytes / a_tile, kMinTiles, kMaxTiles);
    // Blocks of one size, and a multiple of four of them, so that two or four threads have as much to do.
    const int64_t blocks = (tiles + most - 1) / most, shared = (blocks + 3) / 4 * 4;
    return (tiles + shared - 1) / shared;
}
// For weights the tiles are what the products sum over, and all threads work on the same. Both schemes' points then take about as much.
template <class Scheme>
constexpr int64_t kTilesOfGradient = Scheme::kPoints == 6 ? 128 : 64;
constexpr int64_t kTilesATask = 8;

size_t aligned(int64_t floats) { return (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64; }

template <class Scheme>
int64_t filter_floats(const ConvShape& s) {
    return Scheme::kFilters * Scheme::kFilters * stride_of(s.in_channels, s.out_channels);
}

// Filters [kFilters^2] of [columns / (2 Lanes), depth, 2 Lanes], columns being the channels of the result and depth those summed over.
template <class Scheme, int Lanes, class A, bool ToData>
JEM_INLINE void transform_panel(const ConvShape& s, float* to, const float* w, int64_t column) {
    using V = Vector<Lanes>;
    constexpr int kFilters = Scheme::kFilters;
    const int64_t columns = ToData ? s.in_channels : s.out_channels, depth = ToData ? s.out_channels : s.in_channels;
    const int64_t vectors = std::min(kVectorsARow, (columns - column) / Lanes), stride = stride_of(columns, depth);
    for (int64_t k = 0; k < depth; ++k)
        for (int64_t v = 0; v < vectors; ++v) {
            V g[9], half[kFilters * 3];
            for (int tap = 0; tap < 9; ++tap) {
                const int64_t c = column + v * Lanes;
                V& to_tap = g[ToData ? 8 - tap : tap];
                if constexpr (ToData)
                    load(to_tap, w + (k * 9 + tap) * columns + c);
                else
                    for (int lane = 0; lane < Lanes; ++lane) to_tap[lane] = w[((c + lane) * 9 + tap) * depth + k];
                round_to<A>(to_tap);
            }
            for (int i = 0; i < kFilters; ++i)
                for (int x = 0; x < 3; ++x)
                    half[i * 3 + x] = Scheme::kFilter[i][0] * g[x] + Scheme::kFilter[i][1] * g[3 + x] + Scheme::kFilter[i][2] * g[6 + x];
            for (int i = 0; i < kFilters; ++i)
                for (int j = 0; j < kFilters; ++j) {
                    const V* h = half + i * 3;
                    store(to + (i * kFilters + j) * stride + column * depth + (k * vectors + v) * Lanes,
                          Scheme::kFilter[j][0] * h[0] + Scheme::kFilter[j][1] * h[1] + Scheme::kFilter[j][2] * h[2]);
                }
        }
}

template <class Scheme, int Lanes, class A, bool ToData>
void transform_weights(const Problem& p, float* to, const float* w) {
    const int64_t columns = ToData ? p.shape.in_channels : p.shape.out_channels, panel = kVectorsARow * Lanes;
    const bool avx512 = cpu_has_avx512();
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t column = 0; column < columns; column += panel)
        run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA { transform_panel<Scheme, Lanes, A, ToData>(p.shape, to, w, column); });
}

template <class Scheme>
struct TileBlocks {
    Tiling tiles;
    int64_t size, count;
    TileBlocks(const Problem& p, const Side& out)
        : tiles(tiling<Scheme>(out, p.batch)), size(tiles_a_block<Scheme>(p.shape, tiles.count)), count((tiles.count + size - 1) / size) {}
    // of one thread's points on a side with so many channels
    int64_t floats(int64_t channels) const { return Scheme::kPoints * Scheme::kPoints * stride_of(size, channels); }
};

// Scratch: sums of blocks | a thread's points, for each thread.
template <class Scheme>
size_t tiles_scratch_bytes(const Problem& p, const Side& in, const Side& out) {
    const TileBlocks<Scheme> blocks(p, out);
    return aligned(blocks.count * 2 * out.channels) +
           static_cast<size_t>(p.threads) * (aligned(blocks.floats(in.channels)) + aligned(blocks.floats(out.channels)));
}

template <class Scheme, int Lanes, class A, class Write, class Out>
void run_tiles(const Problem& p, const Side& in, const Side& out, const Out& result, const A* x, const NormInFront* norm,
               const float* filters, std::byte* scratch) {
    const TileBlocks<Scheme> blocks(p, out);
    auto* partial = reinterpret_cast<float*>(scratch);
    std::byte* points = scratch + aligned(blocks.count * 2 * out.channels);
    const size_t of_input = aligned(blocks.floats(in.channels)), of_output = aligned(blocks.floats(out.channels));
    const int64_t filter_stride = stride_of(in.channels, out.channels);
    const bool avx512 = cpu_has_avx512();
    // In order, so that a thread's next block is the one that it asks for.
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t b = 0; b < blocks.count; ++b) {
        std::byte* own = points + static_cast<size_t>(omp_get_thread_num()) * (of_input + of_output);
        const int64_t first = b * blocks.size, count = std::min(blocks.size, blocks.tiles.count - first);
        const Points from{reinterpret_cast<float*>(own), stride_of(blocks.size, in.channels)};
        const Points to{reinterpret_cast<float*>(own + of_input), stride_of(blocks.size, out.channels)};
        const Ahead<A, Lanes> next{x, in, first + count, std::min(blocks.size, blocks.tiles.count - first - count), Scheme::kInStep};
        const Ahead<A, Lanes> written{static_cast<const A*>(result.written()), out, first, count, Scheme::kOutStep};
        const Ahead<A, Lanes> read{static_cast<const A*>(result.read()), out, first, count, Scheme::kOutStep};
        run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA { input_to_points<Scheme, Lanes>(from, in, blocks.tiles, first, count, x, norm); });
        for (int i = 0; i < Scheme::kPoints; ++i)
            for (int j = 0; j < Scheme::kPoints; ++j) {
                const int point = i * Scheme::kPoints + j, filter = Scheme::filter(i) * Scheme::kFilters + Scheme::filter(j);
                next.fetch(blocks.tiles, point, Scheme::kPoints * Scheme::kPoints);
                written.fetch(blocks.tiles, point, Scheme::kPoints * Scheme::kPoints);
                read.fetch(blocks.tiles, point, Scheme::kPoints * Scheme::kPoints);
                product<Lanes>(avx512, count, out.channels,
                               {.a = from.data + point * from.stride,
                                .a_row = in.channels,
                                .a_depth = 1,
                                .b = filters + filter * filter_stride,
                                .b_depth = 0,
                                .depth = in.channels,
                                .c = to.data + point * to.stride,
                                .c_row = out.channels,
                                .accumulate = false},
                               in.channels);
            }
        run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA {
            points_to_output<Scheme, Lanes, A, Write>(to, out, blocks.tiles, first, count, result, partial + b * 2 * out.channels);
        });
    }
    if constexpr (Write::kSums)
        for (int64_t i = 0; i < 2 * out.channels; ++i) {
            double sum = 0;
            for (int64_t b = 0; b < blocks.count; ++b) sum += static_cast<double>(partial[b * 2 * out.channels + i]);
            result.sums[i] = static_cast<float>(sum);
        }
}

// Scratch: points of the input | points of the output's gradient | filters' gradients.
template <class Scheme>
struct GradientScratch {
    int64_t tiles, input, output, filters;  // floats but the first
    GradientScratch(const Problem& p, const Tiling& all)
        : tiles(std::min(kTilesOfGradient<Scheme>, all.count)),
          input(Scheme::kPoints * Scheme::kPoints * stride_of(tiles, p.shape.in_channels)),
          output(Scheme::kPoints * Scheme::kPoints * stride_of(tiles, p.shape.out_channels)),
          filters(filter_floats<Scheme>(p.shape)) {}
    size_t bytes() const { return aligned(input) + aligned(output) + aligned(filters); }
};

// Rows first .. first + some of one filter's gradient, [out channels, in channels].
template <class Scheme, int Lanes>
void filter_gradient(bool avx512, const ConvShape& s, const Points& to, int filter, int64_t first, int64_t some, const Points& x,
                     const Points& d_y, int64_t tiles, bool accumulate) {
    for (int i = 0; i < Scheme::kPoints; ++i)
        for (int j = 0; j < Scheme::kPoints; ++j) {
            if (Scheme::filter(i) * Scheme::kFilters + Scheme::filter(j) != filter) continue;
            const int64_t point = i * Scheme::kPoints + j;
            product<Lanes>(avx512, some, s.in_channels,
                           {.a = d_y.data + point * d_y.stride + first,
                            .a_row = 1,
                            .a_depth = s.out_channels,
                            .b = x.data + point * x.stride,
                            .b_depth = s.in_channels,
                            .depth = tiles,
                            .c = to.data + filter * to.stride + first * s.in_channels,
                            .c_row = s.in_channels,
                            .accumulate = accumulate},
                           1);
            accumulate = true;
        }
}

// d_w [first .. first + some, 3, 3, in channels] += the transpose of what makes points of a filter.
template <class Scheme, int Lanes>
JEM_INLINE void filters_to_weights(const ConvShape& s, float* d_w, const Points& from, int64_t first, int64_t some) {
    using V = Vector<Lanes>;
    constexpr int kFilters = Scheme::kFilters;
    for (int64_t o = first; o < first + some; ++o)
        for (int64_t c = 0; c < s.in_channels; c += Lanes) {
            V half[3 * kFilters] = {};
            for (int i = 0; i < kFilters; ++i)
                for (int j = 0; j < kFilters; ++j) {
                    V g;
                    load(g, from.data + (i * kFilters + j) * from.stride + o * s.in_channels + c);
                    for (int y = 0; y < 3; ++y) half[y * kFilters + j] += Scheme::kFilter[i][y] * g;
                }
            for (int y = 0; y < 3; ++y)
                for (int x = 0; x < 3; ++x) {
                    float* to = d_w + ((o * 3 + y) * 3 + x) * s.in_channels + c;
                    V sum;
                    load(sum, to);
                    for (int j = 0; j < kFilters; ++j) sum += Scheme::kFilter[j][x] * half[y * kFilters + j];
                    store(to, sum);
                }
        }
}

template <class Scheme, int Lanes, class A>
void run_gradient(const Problem& p, float* d_w, const A* x, const NormInFront* norm, const A* d_y, std::byte* scratch) {
    constexpr int kFilters = Scheme::kFilters * Scheme::kFilters;
    const ConvShape& s = p.shape;
    const Side in = input_side(p.shape), out = output_side(p.shape);
    const Tiling tiles = tiling<Scheme>(out, p.batch);
    const GradientScratch<Scheme> sizes(p, tiles);
    const Points from{reinterpret_cast<float*>(scratch), stride_of(sizes.tiles, in.channels)};
    const Points d_from{reinterpret_cast<float*>(scratch + aligned(sizes.input)), stride_of(sizes.tiles, out.channels)};
    const Points filters{reinterpret_cast<float*>(scratch + aligned(sizes.input) + aligned(sizes.output)),
                         stride_of(in.channels, out.channels)};
    const bool avx512 = cpu_has_avx512();
    constexpr int64_t kRows = 4 * kProductRows<Lanes>;
    const int64_t groups = (out.channels + kRows - 1) / kRows;
#pragma omp parallel num_threads(p.threads)
    {
        for (int64_t chunk = 0; chunk < tiles.count; chunk += sizes.tiles) {
            const int64_t here = std::min(sizes.tiles, tiles.count - chunk), left = std::min(sizes.tiles, tiles.count - chunk - here);
            const Ahead<A, Lanes> next_x{x, in, chunk + here, left, Scheme::kInStep},
                next_d_y{d_y, out, chunk + here, left, Scheme::kOutStep};
#pragma omp for schedule(static)
            for (int64_t t = 0; t < here; t += kTilesATask)
                run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA {
                    const int64_t some = std::min(kTilesATask, here - t);
                    input_to_points<Scheme, Lanes>({from.data + t * in.channels, from.stride}, in, tiles, chunk + t, some, x, norm);
                    gradient_to_points<Scheme, Lanes>({d_from.data + t * out.channels, d_from.stride}, out, tiles, chunk + t, some, d_y);
                });
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < kFilters * groups; ++task) {
                next_x.fetch(tiles, task, kFilters * groups);
                next_d_y.fetch(tiles, task, kFilters * groups);
                // Filters of many points come last in their numbering and take longest.
                const auto filter = static_cast<int>(kFilters - 1 - task / groups);
                const int64_t group = task % groups, begin = group * out.channels / groups, end = (group + 1) * out.channels / groups;
                filter_gradient<Scheme, Lanes>(avx512, s, filters, filter, begin, end - begin, from, d_from, here, chunk > 0);
            }
        }
#pragma omp for schedule(static)
        for (int64_t o = 0; o < out.channels; ++o)
            run<Lanes>(avx512, [&]() JEM_INLINE_LAMBDA { filters_to_weights<Scheme, Lanes>(s, d_w, filters, o, 1); });
    }
}

// f(scheme, lanes, type of the activations) of a problem.
template <int Lanes>
using Width = std::integral_constant<int, Lanes>;
template <class Scheme, class F>
auto choose_type(const Problem& p, F f) {
    if (p.type == DType::bf16) return f(Scheme{}, Width<16>{}, Bf16{});
    return p.lanes == 16 ? f(Scheme{}, Width<16>{}, float{}) : f(Scheme{}, Width<8>{}, float{});
}
template <class Strided, class F>
auto choose(const Problem& p, F f) {
    return p.shape.stride == 1 ? choose_type<Stride1>(p, f) : choose_type<Strided>(p, f);
}

}  // namespace

bool can(const ConvShape& s, int64_t lanes, DType type) {
    return s.kernel == 3 && s.padding == 1 && (s.stride == 1 || s.stride == 2) && (lanes == 16 || (lanes == 8 && type == DType::f32)) &&
           (type == DType::f32 || type == DType::bf16) && s.in_channels % lanes == 0 && s.out_channels % lanes == 0;
}

size_t transformed_bytes(const ConvShape& s) { return aligned(s.stride == 1 ? filter_floats<Stride1>(s) : filter_floats<Stride2>(s)); }

void transform_weights_forward(const Problem& p, float* transformed, const float* weights) {
    choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        transform_weights<Scheme, Lanes::value, A, false>(p, transformed, weights);
    });
}
void transform_weights_backward(const Problem& p, float* transformed, const float* weights) {
    choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        transform_weights<Scheme, Lanes::value, A, true>(p, transformed, weights);
    });
}

size_t forward_scratch_bytes(const Problem& p) {
    return choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        return tiles_scratch_bytes<Scheme>(p, input_side(p.shape), output_side(p.shape));
    });
}
size_t backward_data_scratch_bytes(const Problem& p) {
    return choose<Stride2ToData>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        return tiles_scratch_bytes<Scheme>(p, output_side(p.shape), input_side(p.shape));
    });
}
size_t backward_weights_scratch_bytes(const Problem& p) {
    return choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        return GradientScratch<Scheme>(p, tiling<Scheme>(output_side(p.shape), p.batch)).bytes();
    });
}

void forward(const Problem& p, const ForwardOutput& out, const void* x, const NormInFront* norm, const float* transformed,
             std::byte* scratch) {
    choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        const auto with = [&]<class Write>(std::type_identity<Write>) {
            run_tiles<Scheme, Lanes::value, A, Write>(p, input_side(p.shape), output_side(p.shape), out, static_cast<const A*>(x), norm,
                                                      transformed, scratch);
        };
        using V = Vector<Lanes::value>;
        if (out.sums != nullptr)
            with(std::type_identity<WriteForward<V, A, true>>{});
        else
            with(std::type_identity<WriteForward<V, A, false>>{});
    });
}

void backward_data(const Problem& p, const BackwardOutput& out, const void* d_y, const float* transformed, std::byte* scratch) {
    choose<Stride2ToData>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        const auto with = [&]<class Write>(std::type_identity<Write>) {
            run_tiles<Scheme, Lanes::value, A, Write>(p, output_side(p.shape), input_side(p.shape), out, static_cast<const A*>(d_y),
                                                      nullptr, transformed, scratch);
        };
        using V = Vector<Lanes::value>;
        if (out.x != nullptr)
            with(std::type_identity<WriteLeakyBackward<V, A>>{});
        else
            with(std::type_identity<WriteBackward<V, A>>{});
    });
}

void backward_weights(const Problem& p, float* d_w, const void* x, const NormInFront* norm, const void* d_y, std::byte* scratch) {
    choose<Stride2>(p, [&]<class Scheme, class Lanes, class A>(Scheme, Lanes, A) {
        run_gradient<Scheme, Lanes::value, A>(p, d_w, static_cast<const A*>(x), norm, static_cast<const A*>(d_y), scratch);
    });
}

}  // namespace jem::winograd
