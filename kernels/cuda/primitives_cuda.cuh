// The four primitives on CUDA: one generic kernel each, and a second stage for the two that sum. Every sum has a fixed order
// that depends on the shape alone: within a thread, within a block, then the blocks one after another. No atomics.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/cuda/cuda_launcher.h"
#include "kernels/cuda/operands_cuda.cuh"
#include "kernels/qualifiers.h"
#include "kernels/tensor.h"

namespace jem::cuda {

inline constexpr uint32_t kBlock = 256, kWarp = 32, kWarps = kBlock / kWarp;
inline constexpr uint32_t kSumBlocks = 1024;      // of a reduction's stage one: fills the largest GPU
inline constexpr uint32_t kElementsAThread = 16;  // at least, where stage one has fewer blocks than that
// The same of a column reduction: about two blocks a multiprocessor, as what a block does behind its rows costs as much as many rows
// (H100, 160 channels of 65536 rows: 1024 blocks take 1.4 times as long). kCudaPartials follows from it.
inline constexpr uint32_t kColumnBlocks = 256;
inline constexpr uint32_t kRowsAThread = 8;
inline constexpr uint32_t kRowsInFloat = 64;    // summed in the compute type before they are added to a double
inline constexpr int kLoadsInFlight = 8;        // of a thread's rows, whatever the number of tensors
inline constexpr uint32_t kFinishChannels = 8;  // of a block that finishes; as many threads read side by side

template <int N, class F, class... O>
__device__ void apply(const F& f, uint32_t i, uint32_t c, const O&... operands) {
    const auto run = [&](Pack<Element<O>, N>... packs) {
        for (int k = 0; k < N; ++k) f(packs.v[k]...);
        (store<N>(operands, i, packs), ...);
    };
    run(load<N>(operands, i, c)...);
}

// Whether an item has many loads under way. Told that two blocks a multiprocessor will do, ptxas keeps them in registers; left to itself
// (0) it makes room for more threads, and waits for one load after the other.
template <class F>
inline constexpr bool kLoadsAhead = requires {
    requires F::kLoadsAhead;
};
template <class F>
__global__ void __launch_bounds__(kBlock, kLoadsAhead<F> ? 2 : 0) for_each_item(F f, int64_t count) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (i < count) f(i);
}

template <int N, class F, class... O>
__global__ void __launch_bounds__(kBlock) for_each_element(F f, Shape s, O... operands) {
    const uint32_t first = (blockIdx.x * kBlock + threadIdx.x) * N;
    if (first + N <= s.count) {
        apply<N>(f, first, s.channel(first), operands...);
    } else if constexpr (N > 1) {
        JEM_UNROLL(1)
        for (uint32_t i = first; i < s.count; ++i) apply<1>(f, i, s.channel(i), operands...);
    }
}

// Over the threads of a warp whose numbers are equal modulo kApart; the results are valid in its first kApart.
template <uint32_t kApart = 1, int K>
__device__ void sum_warp(double (&sums)[K]) {
    for (int k = 0; k < K; ++k)
        for (uint32_t distance = kWarp / 2; distance >= kApart; distance /= 2) sums[k] += __shfl_down_sync(0xffffffffu, sums[k], distance);
}

// Over the threads of a block; the result is valid in thread 0.
template <int K>
__device__ void sum_block(double (&sums)[K]) {
    __shared__ double of_warp[K][kWarps];
    sum_warp(sums);
    for (int k = 0; threadIdx.x % kWarp == 0 && k < K; ++k) of_warp[k][threadIdx.x / kWarp] = sums[k];
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int k = 0; k < K; ++k)
        for (uint32_t w = 1; w < kWarps; ++w) sums[k] += of_warp[k][w];
}

// Several rows of an operand's column, loaded before the first is used.
template <class P, int U>
struct RowsAhead {
    P row[U];
};
template <int U, class C>
__device__ auto load_rows(const C& column, const uint32_t (&index)[U]) {
    RowsAhead<decltype(column.at(0)), U> ahead;
    for (int u = 0; u < U; ++u) ahead.row[u] = column.at(index[u]);
    return ahead;
}

// The rows begin, begin + step ... below end of N channels, added to sums[k * N + n][thread], U of them at a time. index(row): its first
// element. Column by value: registers.
template <class R, int N, int U, class F, class Index, class... C>
__device__ void sum_rows(double (*sums)[kBlock], uint32_t thread, const F& f, uint32_t begin, uint32_t end, uint32_t step,
                         const Index& index, C... columns) {
    constexpr int K = F::kSums;
    static_assert(kRowsInFloat % U == 0);
    const uint32_t count = begin < end ? (end - 1 - begin) / step + 1 : 0;
    for (uint32_t r = 0; r < count;) {
        const uint32_t last = r + kRowsInFloat < count ? r + kRowsInFloat : count;
        R partial[K][N] = {};
        const auto sum_some = [&](auto whole) {
            // Behind the end the last row is read again and not added: a load that depends on a condition would wait for it.
            uint32_t at[U];
            for (uint32_t u = 0; u < U; ++u) at[u] = index(begin + (whole.value || r + u < last ? r + u : last - 1) * step);
            const auto add = [&](const auto&... ahead) {
                for (uint32_t u = 0; u < U; ++u)
                    for (int n = 0; n < N; ++n) {
                        R terms[K];
                        f.map(terms, ahead.row[u].v[n]...);
                        for (int k = 0; k < K; ++k) partial[k][n] += whole.value || r + u < last ? terms[k] : R(0);
                    }
            };
            add(load_rows<U>(columns, at)...);
        };
        JEM_UNROLL(1)
        for (; r + U <= last; r += U) sum_some(std::true_type{});
        if (r < last) sum_some(std::false_type{});
        r = last;
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < N; ++n) sums[k * N + n][thread] += static_cast<double>(partial[k][n]);
    }
}

// Stage one: a block sums a chunk of the rows for blockDim.x * N channels. partials: [chunks, kSums, channels].
template <class R, int N, class F, class... I>
__global__ void __launch_bounds__(kBlock, 2) column_partials(F f, Shape s, uint32_t rows_a_chunk, double* partials, I... in) {
    constexpr int K = F::kSums, kTensors = (0 + ... + int{kDense<I>});
    __shared__ double of_thread[K * N][kBlock];
    const uint32_t c = (blockIdx.x * blockDim.x + threadIdx.x) * N, begin = blockIdx.y * rows_a_chunk, rows = s.count / s.channels;
    const uint32_t end = begin + rows_a_chunk < rows ? begin + rows_a_chunk : rows;
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int kn = 0; kn < K * N; ++kn) of_thread[kn][thread] = 0;
    const uint32_t first = begin + threadIdx.y;
    if (c < s.channels && s.blocks == 1)
        sum_rows<R, N, kLoadsInFlight / kTensors>(
            of_thread, thread, f, first, end, blockDim.y, [&](uint32_t row) { return row * s.block + c; }, Column<N, I>(in, s, c)...);
    else if (c < s.channels)
        sum_rows<R, N, 1>(
            of_thread, thread, f, first, end, blockDim.y, [&](uint32_t row) { return s.index(row, c); }, Column<N, I>(in, s, c)...);
    __syncthreads();
    // All threads share the block's sums, each down a column of threads.
    const uint32_t width = blockDim.x * N;
    for (uint32_t sum = thread; sum < K * width; sum += blockDim.x * blockDim.y) {
        const uint32_t k = sum / width, x = sum % width, channel = blockIdx.x * width + x;
        if (channel >= s.channels) continue;
        double total = 0;
        for (uint32_t y = 0; y < blockDim.y; ++y) total += of_thread[k * N + x % N][y * blockDim.x + x / N];
        partials[(blockIdx.y * K + k) * s.channels + channel] = total;
    }
}

// A block sums the chunks of kFinishChannels channels: each thread some, then the threads of a warp, then the warps.
template <class F>
__global__ void __launch_bounds__(kBlock) column_finish(F f, uint32_t channels, uint32_t chunks, const double* partials) {
    constexpr int K = F::kSums;
    constexpr uint32_t kLanes = kBlock / kFinishChannels;
    __shared__ double of_warp[K][kWarps][kFinishChannels];
    const uint32_t x = threadIdx.x % kFinishChannels, lane = threadIdx.x / kFinishChannels, c = blockIdx.x * kFinishChannels + x;
    const uint32_t count = c < channels && lane < chunks ? (chunks - 1 - lane) / kLanes + 1 : 0;
    double sums[K] = {};
    JEM_UNROLL(8)  // loads in flight
    for (uint32_t i = 0; i < count; ++i)
        for (int k = 0; k < K; ++k) sums[k] += partials[((lane + i * kLanes) * K + static_cast<uint32_t>(k)) * channels + c];
    sum_warp<kFinishChannels>(sums);
    for (int k = 0; threadIdx.x % kWarp < kFinishChannels && k < K; ++k) of_warp[k][threadIdx.x / kWarp][x] = sums[k];
    __syncthreads();
    if (threadIdx.x >= kFinishChannels || c >= channels) return;
    for (int k = 0; k < K; ++k) {
        sums[k] = 0;
        for (uint32_t w = 0; w < kWarps; ++w) sums[k] += of_warp[k][w][x];
    }
    f.finish(c, sums);
}

// partials: [blocks, kSums]
template <class F, class... I>
__global__ void __launch_bounds__(kBlock) reduce_partials(F f, uint32_t count, double* partials, I... in) {
    constexpr int K = F::kSums;
    double sums[K] = {};
    JEM_UNROLL(4)
    for (uint32_t i = blockIdx.x * kBlock + threadIdx.x; i < count; i += gridDim.x * kBlock) {
        double terms[K];
        f.map(terms, in.at(i, 0)...);
        for (int k = 0; k < K; ++k) sums[k] += terms[k];
    }
    sum_block(sums);
    if (threadIdx.x != 0) return;
    for (int k = 0; k < K; ++k) partials[blockIdx.x * K + k] = sums[k];
}

template <class F>
__global__ void __launch_bounds__(kBlock) reduce_finish(F f, uint32_t blocks, const double* partials) {
    constexpr int K = F::kSums;
    double sums[K] = {};
    for (uint32_t b = threadIdx.x; b < blocks; b += kBlock)
        for (int k = 0; k < K; ++k) sums[k] += partials[b * K + k];
    sum_block(sums);
    if (threadIdx.x == 0) f.finish(sums);
}

}  // namespace jem::cuda

namespace jem {

class CudaExec {
public:
    static constexpr int kPixelsPerItem = 4, kMostChannelsPerItem = 1;

    // partials: scratch for sums, of partials_count doubles on the device; ops run one after another and share it, but for those of a side
    // queue, which takes no sums.
    CudaExec(CudaLauncher& launcher, double* partials, int64_t partials_count)
        : launcher_(&launcher), partials_(partials), partials_count_(partials_count) {}

    template <class F>
    void for_each(const char* label, int64_t count, F f) {
        if (count == 0) return;
        launch(label, 0, cuda::for_each_item<F>, dim3(checked(label, divide_up(count, cuda::kBlock))), dim3(cuda::kBlock), f, count);
    }

    template <class F, class O, class... I>
    void for_each(const char* label, Layout l, F f, O out, I... in) {
        if (l.count() == 0) return;
        constexpr int kPack = std::max({cuda::kPackOf<O>, cuda::kPackOf<I>...});
        const bool packs = fits<kPack>(l, out) && (fits<kPack>(l, in) && ...);
        const auto kernel = packs ? cuda::for_each_element<kPack, F, O, I...> : cuda::for_each_element<1, F, O, I...>;
        const dim3 grid(divide_up(l.count(), (packs ? kPack : 1) * cuda::kBlock));
        launch(label, bytes(l, out, in...), kernel, grid, dim3(cuda::kBlock), f, shape(label, l), out, in...);
    }

    template <class F, class Head, class... I>
    void column_reduce(const char* label, Layout l, F f, Head head, I... in) {
        if (l.channels() == 0) return;
        constexpr int kPack = cuda::kPackOf<Head>;
        const cuda::Shape s = shape(label, l);
        const bool packs = fits<kPack>(l, head) && (fits<kPack>(l, in) && ...) && l.block % kPack == 0;
        const int64_t width = packs ? kPack : 1, columns = s.channels / width;
        const int64_t tiles = divide_up(columns, cuda::kWarp), lanes = divide_up(columns, tiles), depth = cuda::kBlock / lanes;
        const int64_t rows = l.images() * l.rows, room = partials_count_ / (F::kSums * int64_t{s.channels});
        if (room == 0) throw std::length_error(std::string(label) + " of " + std::to_string(s.channels) + " channels. Lower --width.");
        const int64_t wanted = std::min(std::max<int64_t>(1, cuda::kColumnBlocks / tiles), room);
        const int64_t rows_a_chunk = std::max<int64_t>(divide_up(rows, wanted), depth * cuda::kRowsAThread);
        const int64_t chunks = divide_up(rows, rows_a_chunk);
        if (chunks > 0) {
            const auto kernel =
                packs ? cuda::column_partials<Real<Head>, kPack, F, Head, I...> : cuda::column_partials<Real<Head>, 1, F, Head, I...>;
            launch(label, bytes(l, head, in...), kernel, dim3(tiles, chunks), dim3(lanes, depth), f, s, rows_a_chunk, partials_, head,
                   in...);
        }
        launch(label, 0, cuda::column_finish<F>, dim3(divide_up(s.channels, cuda::kFinishChannels)), dim3(cuda::kBlock), f, s.channels,
               chunks, partials_);
    }

    template <class F, class... I>
    void reduce(const char* label, int64_t count, F f, I... in) {
        const int64_t blocks = std::min<int64_t>(cuda::kSumBlocks, divide_up(count, cuda::kBlock * cuda::kElementsAThread));
        need(label, blocks * F::kSums);
        const double read = static_cast<double>(count) * static_cast<double>((size_t{0} + ... + sizeof(Element<I>)));
        if (blocks > 0)
            launch(label, read, cuda::reduce_partials<F, I...>, dim3(blocks), dim3(cuda::kBlock), f, checked(label, count), partials_,
                   in...);
        launch(label, 0, cuda::reduce_finish<F>, dim3(1), dim3(cuda::kBlock), f, blocks, partials_);
    }

private:
    static constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

    static uint32_t checked(const char* label, int64_t count) {
        if (count < 0 || count > 0x7fffffff)
            throw std::length_error(std::string(label) + " of " + std::to_string(count) + " elements (the kernels count to 2^31 - 1). " +
                                    "Lower the batch size or --width.");
        return static_cast<uint32_t>(count);
    }
    static cuda::Shape shape(const char* label, const Layout& l) {
        const auto u32 = [label](int64_t value) { return checked(label, value); };
        return {u32(l.count()), u32(l.rows * l.block), u32(l.rows), u32(l.block), u32(l.blocks), u32(l.channels())};
    }
    void need(const char* label, int64_t doubles) const {
        if (doubles > partials_count_)
            throw std::length_error(std::string(label) + " needs " + std::to_string(doubles) + " partial sums (there is room for " +
                                    std::to_string(partials_count_) + "). Lower --width.");
    }

    // Read and written; what is one value a channel stays in the caches and is not counted.
    template <class... O>
    static double bytes(const Layout& l, const O&...) {
        return static_cast<double>(l.count()) * static_cast<double>((size_t{0} + ... + (cuda::kDense<O> ? sizeof(Element<O>) : 0)));
    }

    // Whether an operand can be moved N elements at a time.
    template <int N, class O>
    static bool fits(const Layout& l, const O& o) {
        if constexpr (cuda::kDense<O> || cuda::kOfChannel<O>)
            return (cuda::kDense<O> || l.block % N == 0) && reinterpret_cast<uintptr_t>(o.data) % alignof(cuda::Pack<Element<O>, N>) == 0;
        else
            return true;
    }

    // The only place that launches.
    template <class... P, class... Args>
    void launch(const char* label, double bytes, void (*kernel)(P...), dim3 grid, dim3 block, Args... args) {
        static_assert((std::is_trivially_copyable_v<P> && ...));
        if (!launcher_->announce(label, {.bytes = bytes})) return;
        const cudaLaunchConfig_t config = {
            .gridDim = grid, .blockDim = block, .dynamicSmemBytes = 0, .stream = launcher_->stream(), .attrs = nullptr, .numAttrs = 0};
        const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
        launcher_->launched();
        if (status != cudaSuccess)
            throw std::runtime_error(std::string("launch of ") + label + " failed (" + cudaGetErrorString(status) +
                                     "). If the cause may be an earlier operation, run again with CUDA_LAUNCH_BLOCKING=1.");
    }

    CudaLauncher* launcher_;
    double* partials_;
    int64_t partials_count_;
};

}  // namespace jem
