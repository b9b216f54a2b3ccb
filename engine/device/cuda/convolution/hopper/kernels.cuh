// A 3x3 stride-1 NHWC bf16 convolution and its weight gradient for Hopper (sm_90a): wgmma on halo tiles without swizzle. Index arithmetic:
// layout.h. Whether it is right and fast is for the search to find out (search.h), against cuDNN.
//
// conv3x3: 384 threads, three warpgroups; one block of threads per SM, tiles dealt out in turn.
// Warpgroup 0, warps 0 to 2, load A: global -> registers -> [scale * x + shift, LeakyReLU] -> shared memory, 32 channels of all halos a
// stage. Its warp 3 loads B: one bulk copy (a tap of a chunk, 10240 bytes of 160 channels) a stage. The two must not share a thread: with
// fewer than nine stages of B a thread that fills both waits for B's first stage of a chunk to be let go of while the consumers wait for
// its part of A. Warpgroups 1 and 2: kPerGroup pixel blocks each; for every chunk and tap two k steps of m64nNk16, then the epilogue.
// kCluster 2: two blocks of threads with the same output channels; each loads half of every piece of B and sends it to both, which halves
// what B asks of the L2 (at full speed 256 rows x 160 read 20 bytes per SM and clock without, 12 with; 128 rows 36 and 20).
//
// mbarriers (phases: Ring in layout.h)
// full_a: 96 arrivals, one per loading thread, after its stores and a fence that makes them visible to the async proxy, by which wgmma
// reads.
// full_b: 1 arrival that announces the bytes; the phase completes when the copy engine has delivered them.
// empty_a, empty_b: 8 arrivals, one per consumer warp: wgmma.wait_group is per warp, so each warp vouches for its own reads. In a cluster
// of two a warp arrives at empty_b of both blocks of threads (16 arrivals), because the other's copies write here too. The other's half may
// land before this block has announced its bytes: the phase still lacks this block's arrival, so it cannot complete early.
// Consumers keep one group of wgmma in flight: after issuing step u they wait for step u - 1 and let go of what u - 1 read, A with a
// chunk's last tap.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "engine/device/cuda/convolution/hopper/instructions.h"
#include "engine/device/cuda/convolution/hopper/layout.h"
#include "engine/device/cuda/convolution/hopper/params.h"

namespace jem::hopper {

// For timing only, and then the output is wrong: without epilogue, loads of A, loads of B.
enum Skip : int { kSkipNothing = 0, kSkipStores = 1, kSkipLoads = 2, kSkipWeights = 4 };

__device__ __forceinline__ void unpack(uint32_t v, float& low, float& high) {
    low = __uint_as_float(v << 16), high = __uint_as_float(v & 0xffff0000u);
}
__device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
__device__ __forceinline__ float norm_leaky(float x, float scale, float shift, float slope) {
    const float z = fmaf(x, scale, shift);
    return z > 0 ? z : slope * z;
}

template <int kN, int kPerGroup>
struct ConvShared {
    using Tile = ConvTile<kN, kPerGroup>;
    uint8_t a[Tile::kStagesA][Tile::kABytes];
    uint8_t b[Tile::kStagesB][Tile::kWeightBytes];
    uint8_t staging[2][Tile::kStagingBytes];
    float norm[2][kMaxNormChannels];
    int source[2][Tile::kPixels];
    uint64_t full_a[Tile::kStagesA], empty_a[Tile::kStagesA], full_b[Tile::kStagesB], empty_b[Tile::kStagesB];
};

template <int kN, int kPerGroup, int kCluster, bool kNorm, int kSkip>
__device__ __forceinline__ void load_a(const ConvParams& p, ConvShared<kN, kPerGroup>& s, int rank, int t) {
    using Tile = ConvTile<kN, kPerGroup>;
    constexpr int kRounds = Tile::kRounds, kBatch = Tile::kBatch;
    const int slice = Tile::load_slice(t);
    Ring<Tile::kStagesA> ring;
    int table = 0;
    for (int unit = blockIdx.x / kCluster; unit < p.units; unit += gridDim.x / kCluster, table ^= 1) {
        // Where each halo pixel's channel 0 lies, -1 for padding. Two tables: who fills one has passed the barrier of the tile before, and
        // so everybody has finished with the tile before that.
        int* const source = s.source[table];
        const int m = tile_at(p.shape, kN, unit, kCluster, rank).m;
        for (int pixel = t; pixel < Tile::kPixels; pixel += kLoaders) source[pixel] = Tile::source(p.shape, m, pixel);
        loaders_sync();
        for (int chunk = 0; chunk < chunks(p.shape); ++chunk, ring.advance()) {
            const int channel = chunk * kChunk + slice * kVec;
            uint8_t* const to = s.a[ring.stage];
            barrier_wait(&s.empty_a[ring.stage], ring.empty_parity(), p.trouble, kEmptyA, ring.stage);
            if constexpr (!(kSkip & kSkipLoads)) {
                float scale[kVec], shift[kVec];
                if constexpr (kNorm) {
#pragma unroll
                    for (int j = 0; j < kVec; ++j) scale[j] = s.norm[0][channel + j], shift[j] = s.norm[1][channel + j];
                }
#pragma unroll 1
                for (int first = 0; first < kRounds; first += kBatch) {
                    uint4 v[kBatch];
                    bool real[kBatch];
#pragma unroll
                    for (int i = 0; i < kBatch; ++i) {
                        const int pixel = Tile::load_pixel(t, first + i), at = pixel < Tile::kPixels ? source[pixel] : -1;
                        real[i] = at >= 0;
                        v[i] = real[i] ? __ldg(reinterpret_cast<const uint4*>(p.x + at + channel)) : make_uint4(0, 0, 0, 0);
                    }
#pragma unroll
                    for (int i = 0; i < kBatch; ++i) {
                        uint32_t word[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
                        if constexpr (kNorm) {
#pragma unroll
                            for (int j = 0; j < 4; ++j) {
                                float low, high;
                                unpack(word[j], low, high);
                                low = norm_leaky(low, scale[2 * j], shift[2 * j], p.slope);
                                high = norm_leaky(high, scale[2 * j + 1], shift[2 * j + 1], p.slope);
                                word[j] = real[i] ? pack(low, high) : 0;  // padding is padding of the activation, not of x
                            }
                        }
                        const int pixel = Tile::load_pixel(t, first + i);
                        if (pixel < Tile::kPixels)
                            *reinterpret_cast<uint4*>(to + Tile::a_offset(slice, pixel)) = make_uint4(word[0], word[1], word[2], word[3]);
                    }
                }
            }
            fence_async_proxy();
            barrier_arrive(&s.full_a[ring.stage]);
        }
    }
}

template <int kN, int kPerGroup, int kCluster, int kSkip>
__device__ __forceinline__ void load_b(const ConvParams& p, ConvShared<kN, kPerGroup>& s, int rank) {
    using Tile = ConvTile<kN, kPerGroup>;
    constexpr int kPart = Tile::kWeightBytes / kCluster;
    Ring<Tile::kStagesB> ring;
    for (int unit = blockIdx.x / kCluster; unit < p.units; unit += gridDim.x / kCluster) {
        const int n = tile_at(p.shape, kN, unit, kCluster, rank).n;
        for (int chunk = 0; chunk < chunks(p.shape); ++chunk)
            for (int tap = 0; tap < kTaps; ++tap, ring.advance()) {
                uint64_t* const full = &s.full_b[ring.stage];
                barrier_wait(&s.empty_b[ring.stage], ring.empty_parity(), p.trouble, kEmptyB, ring.stage);
                if constexpr (kSkip & kSkipWeights) {
                    barrier_arrive(full);
                    continue;
                }
                barrier_arrive_expect(full, Tile::kWeightBytes);
                const uint16_t* const from = p.w + weight_piece(p.shape, n * kN, chunk, tap) + rank * (kPart / 2);
                if constexpr (kCluster == 1)
                    bulk_copy(s.b[ring.stage], from, kPart, full);
                else
                    bulk_copy_to_both(s.b[ring.stage] + rank * kPart, from, kPart, full);
            }
    }
}

// The constants of 8 neighbouring channels.
struct ChannelValues {
    float v[kVec];
    __device__ __forceinline__ explicit ChannelValues(const float* from) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) v[j] = from != nullptr ? from[j] : 0.0f;
    }
};

// One m64 block of a warpgroup: with its bias rounded to bf16; then with the residual, rounded again (as an addition after a convolution
// would), or through leaky'; stored; the sums are of what was stored. Sums within a block of pixels run in a fixed order.
template <int kN, int kPerGroup, bool kLeakyBackward>
__device__ __forceinline__ void conv_epilogue(const ConvParams& p, uint8_t* staging, float (&acc)[kN / 2], int g, int n_tile, int t,
                                              int consumer) {
    using Tile = ConvTile<kN, kPerGroup>;
    if (g >= pixel_blocks(p.shape)) return;  // the same for the whole warpgroup
    const int first_channel = n_tile * kN;
    group_sync(consumer);
#pragma unroll
    for (int i = 0; i < kN / 2; i += 4) {  // two rows of the same two channels
        float2 bias{};
        if (!kLeakyBackward && p.bias != nullptr) bias = __ldg(reinterpret_cast<const float2*>(p.bias + first_channel + acc_col(t, i)));
#pragma unroll
        for (int j = i; j < i + 4; j += 2)
            *reinterpret_cast<uint32_t*>(staging + Tile::staging_offset(acc_row(t, j), acc_col(t, j))) =
                pack(acc[j] + bias.x, acc[j + 1] + bias.y);
    }
    group_sync(consumer);
    const int vector = Tile::out_vector(t), first = Tile::out_first_row(t), channel = first_channel + vector * kVec;
    const BlockAt at = block_at(p.shape, g);
    const bool with_sums = p.partials != nullptr;
    const uint16_t* const others = kLeakyBackward ? p.behind_x : p.residual;
    const ChannelValues centre(kLeakyBackward || with_sums ? p.centre + channel : nullptr);
    const ChannelValues scale(kLeakyBackward ? p.behind_scale + channel : nullptr);
    const ChannelValues shift(kLeakyBackward ? p.behind_shift + channel : nullptr);
    float sum[kVec] = {}, products[kVec] = {};
    constexpr int kRowBatch = 4;  // rows of the other tensor on their way at once
    const auto offset = [&](int row) {
        return pixel_offset(p.shape, at.image, at.y + row / kEdge, at.x + row % kEdge, p.shape.k) + channel;
    };
    if (first < Tile::kRowsAtOnce)
        for (int start = first; start < kBlockPixels; start += kRowBatch * Tile::kRowsAtOnce) {
            uint4 other[kRowBatch] = {};
            if (others != nullptr) {  // not by the read-only path: the residual may be y
#pragma unroll
                for (int i = 0; i < kRowBatch; ++i) {
                    const int row = start + i * Tile::kRowsAtOnce;
                    if (row < kBlockPixels) other[i] = *reinterpret_cast<const uint4*>(others + offset(row));
                }
            }
#pragma unroll
            for (int i = 0; i < kRowBatch; ++i) {
                const int row = start + i * Tile::kRowsAtOnce;
                if (row >= kBlockPixels) break;
                const uint4 v = *reinterpret_cast<const uint4*>(staging + Tile::staging_offset(row, vector * kVec));
                uint32_t word[4] = {v.x, v.y, v.z, v.w};
                const uint32_t beside[4] = {other[i].x, other[i].y, other[i].z, other[i].w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float low, high, a, b;
                    unpack(word[j], low, high);
                    unpack(beside[j], a, b);
                    if constexpr (kLeakyBackward) {
                        a -= centre.v[2 * j], b -= centre.v[2 * j + 1];
                        if (!(fmaf(scale.v[2 * j], a, shift.v[2 * j]) > 0)) low *= p.slope;
                        if (!(fmaf(scale.v[2 * j + 1], b, shift.v[2 * j + 1]) > 0)) high *= p.slope;
                        word[j] = pack(low, high);
                        unpack(word[j], low, high);
                        sum[2 * j] += low, sum[2 * j + 1] += high;
                        products[2 * j] = fmaf(low, a, products[2 * j]), products[2 * j + 1] = fmaf(high, b, products[2 * j + 1]);
                    } else {
                        if (others != nullptr) {
                            word[j] = pack(low + a, high + b);
                            unpack(word[j], low, high);
                        }
                        low -= centre.v[2 * j], high -= centre.v[2 * j + 1];
                        sum[2 * j] += low, sum[2 * j + 1] += high;
                        products[2 * j] = fmaf(low, low, products[2 * j]), products[2 * j + 1] = fmaf(high, high, products[2 * j + 1]);
                    }
                }
                *reinterpret_cast<uint4*>(p.y + offset(row)) = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
    if (!with_sums) return;
    group_sync(consumer);
    float* const scratch = reinterpret_cast<float*>(staging);  // [rows at once][2][kN]
    if (first < Tile::kRowsAtOnce) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
            scratch[first * 2 * kN + vector * kVec + j] = sum[j];
            scratch[(first * 2 + 1) * kN + vector * kVec + j] = products[j];
        }
    }
    group_sync(consumer);
    for (int i = t; i < 2 * kN; i += 128) {
        float total = 0;
#pragma unroll
        for (int r = 0; r < Tile::kRowsAtOnce; ++r) total += scratch[r * 2 * kN + i];
        p.partials[partial_index(p.shape, g, i / kN, first_channel + i % kN)] = total;
    }
}

template <int kN, int kPerGroup, int kCluster, bool kNorm, bool kLeakyBackward, int kSkip = kSkipNothing>
__global__ void __launch_bounds__(384, 1) conv3x3(const __grid_constant__ ConvParams p) {
    using Tile = ConvTile<kN, kPerGroup>;
    using Shared = ConvShared<kN, kPerGroup>;
    Shared& s = *reinterpret_cast<Shared*>(dynamic_shared());
    const int group = threadIdx.x / 128, t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Tile::kStagesA; ++i) barrier_init(&s.full_a[i], kLoaders), barrier_init(&s.empty_a[i], 8);
        for (int i = 0; i < Tile::kStagesB; ++i) barrier_init(&s.full_b[i], 1), barrier_init(&s.empty_b[i], 8 * kCluster);
        fence_barrier_init();
    }
    if (kNorm)
        for (int i = threadIdx.x; i < p.shape.c; i += 384) s.norm[0][i] = p.scale[i], s.norm[1][i] = p.shift[i];
    const int rank = kCluster == 1 ? 0 : cluster_rank();
    if (kCluster == 1)
        __syncthreads();
    else
        cluster_sync();  // the other's barriers exist before anything is sent there
    if (group == 0) {
        registers_down<88>();
        if (t < kLoaders)
            load_a<kN, kPerGroup, kCluster, kNorm, kSkip>(p, s, rank, t);
        else if (t == kLoaders)
            load_b<kN, kPerGroup, kCluster, kSkip>(p, s, rank);
    } else {
        registers_up<208>();
        const int consumer = group - 1;
        const int lane = t % 32;
        const auto release_a = [&](int stage) {
            if (lane == 0) barrier_arrive(&s.empty_a[stage]);
        };
        const auto release_b = [&](int stage) {
            if (kCluster == 1 && lane == 0) barrier_arrive(&s.empty_b[stage]);
            if (kCluster == 2 && lane < 2) barrier_arrive_at(&s.empty_b[stage], lane);
        };
        Ring<Tile::kStagesA> ring_a;
        Ring<Tile::kStagesB> ring_b;
        for (int unit = blockIdx.x / kCluster; unit < p.units; unit += gridDim.x / kCluster) {
            const TileAt at = tile_at(p.shape, kN, unit, kCluster, rank);
            float acc[kPerGroup][kN / 2];
#pragma unroll
            for (int m = 0; m < kPerGroup; ++m) {
#pragma unroll
                for (int i = 0; i < kN / 2; ++i) acc[m][i] = 0;
                hold(acc[m]);
            }
            int used_a = -1, used_b = -1;  // stages of the step before, within this tile
            for (int chunk = 0; chunk < chunks(p.shape); ++chunk) {
                barrier_wait(&s.full_a[ring_a.stage], ring_a.full_parity(), p.trouble, kFullA, ring_a.stage);
                const uint32_t a = shared_address(s.a[ring_a.stage]);
#pragma unroll
                for (int tap = 0; tap < kTaps; ++tap) {
                    barrier_wait(&s.full_b[ring_b.stage], ring_b.full_parity(), p.trouble, kFullB, ring_b.stage);
                    const uint32_t b = shared_address(s.b[ring_b.stage]);
                    wgmma_fence();
#pragma unroll
                    for (int step = 0; step < kChunk / 16; ++step) {
                        const uint64_t db = Tile::b_descriptor(b, step);
#pragma unroll
                        for (int m = 0; m < kPerGroup; ++m)
                            wgmma<0, 0>(acc[m], Tile::a_descriptor(a, consumer * kPerGroup + m, tap, step), db);
                    }
                    wgmma_commit();
                    wgmma_wait<1>();
                    if (used_b >= 0) release_b(used_b);
                    if (tap == 0 && used_a >= 0) release_a(used_a);
                    used_b = ring_b.stage;
                    ring_b.advance();
                }
                used_a = ring_a.stage;
                ring_a.advance();
            }
            wgmma_wait<0>();
            release_b(used_b), release_a(used_a);
#pragma unroll
            for (int m = 0; m < kPerGroup; ++m) {
                hold(acc[m]);
                // Skipped at run time (no slope is negative): products that nobody could read ptxas would leave out as well.
                if (!(kSkip & kSkipStores) || p.slope < 0)
                    conv_epilogue<kN, kPerGroup, kLeakyBackward>(p, s.staging[consumer], acc[m],
                                                                 at.m * Tile::kBlocks + consumer * kPerGroup + m, at.n, t, consumer);
            }
        }
    }
    if (kCluster == 2) cluster_sync();  // neither leaves while the other may still send something here
}

// The partial sums of all pixel blocks added up, [rows][2][channels] to [channels] each, in an order that depends on nothing but `rows`.
// Block: 8 columns, 8 x 64 threads.
constexpr int kSumColumns = 8, kSumRows = 64;
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    partial_sums(const float* partials, int rows, int channels, float* sum, float* products) {
    __shared__ float part[kSumRows][kSumColumns + 1];
    const int columns = 2 * channels, column = blockIdx.x * kSumColumns + threadIdx.x;
    float total = 0;
#pragma unroll 4
    for (int r = threadIdx.y; r < rows; r += kSumRows) total += partials[(int64_t)r * columns + column];
    part[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y != 0) return;
#pragma unroll
    for (int i = 1; i < kSumRows; ++i) total += part[i][threadIdx.x];
    (column < channels ? sum : products - channels)[column] = total;
}

// Weight gradient -------------------------------------------------------------------------------------------------------------

// Warpgroup 0 copies (cp.async, zeros where there is padding), 1 to 3 multiply. A stage: halo of x and dy of one pixel block.
// full: 128 arrivals; a loading thread arrives for stage j - 3 when it has issued stage j and its copies for j - 3 are there (and fenced
// for the async proxy), so three stages are always on their way. empty: 12 arrivals, one per consumer warp.
template <int kN>
struct GradShared {
    uint8_t a[kGradStages][kGradABytes];
    uint8_t b[kGradStages][GradTile<kN>::kBBytes];
    uint64_t full[kGradStages], empty[kGradStages];
};

template <int kN>
__device__ __forceinline__ void grad_load(const GradParams& p, GradShared<kN>& s, const GradAt& at, int first, int count, int t) {
    Ring<kGradStages> ring, behind;
    for (int j = 0; j < count + kGradLag; ++j) {
        if (j < count) {
            barrier_wait(&s.empty[ring.stage], ring.empty_parity(), p.trouble, kGradEmpty, ring.stage);
            const int g = first + j;
            const BlockAt block = block_at(p.shape, g);
            const uint32_t a = shared_address(s.a[ring.stage]), b = shared_address(s.b[ring.stage]);
#pragma unroll 1
            for (int i = 0; i < kGradARounds; ++i) {
                const GradItem item = grad_a_item(t, i);
                const int channel = at.m * kGradM + item.slice * kVec;
                const int from = pixel_offset(p.shape, block.image, block.y + item.pixel / kHaloEdge - 1,
                                              block.x + item.pixel % kHaloEdge - 1, p.shape.c);
                const bool real = from >= 0 && channel < p.shape.c;  // 160 channels fill two and a half M tiles
                if (item.pixel < kHaloPixels)
                    vector_copy(a + item.slice * kGradASliceBytes + item.pixel * kVecBytes, real ? p.x + from + channel : p.x, real);
            }
#pragma unroll
            for (int i = 0; i < GradTile<kN>::kBRounds; ++i) {
                const GradItem item = grad_b_item(t, i);
                const int from = pixel_offset(p.shape, block.image, block.y + item.pixel / kEdge, block.x + item.pixel % kEdge, p.shape.k);
                vector_copy(b + item.slice * kGradBSliceBytes + item.pixel * kVecBytes, p.dy + from + at.n * kN + item.slice * kVec, true);
            }
            ring.advance();
        }
        vector_copy_commit();  // also without copies, so that groups and stages keep step
        if (j >= kGradLag) {
            vector_copy_wait<kGradLag>();
            fence_async_proxy();
            barrier_arrive(&s.full[behind.stage]);
            behind.advance();
        }
    }
}

template <int kN>
__device__ __forceinline__ void grad_multiply(const GradParams& p, GradShared<kN>& s, const GradAt& at, int count, int consumer, int t) {
    float acc[kGradTaps][kN / 2];
#pragma unroll
    for (int i = 0; i < kGradTaps; ++i) {
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) acc[i][j] = 0;
        hold(acc[i]);
    }
    const bool speaker = t % 32 == 0;
    Ring<kGradStages> ring;
    int used = -1;
    for (int j = 0; j < count; ++j) {
        barrier_wait(&s.full[ring.stage], ring.full_parity(), p.trouble, kGradFull, ring.stage);
        const uint32_t a = shared_address(s.a[ring.stage]), b = shared_address(s.b[ring.stage]);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kBlockPixels / 16; ++step) {
            const uint64_t db = grad_b_descriptor(b, step);
#pragma unroll
            for (int i = 0; i < kGradTaps; ++i) wgmma<1, 1>(acc[i], grad_a_descriptor(a, consumer * kGradTaps + i, step), db);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (speaker && used >= 0) barrier_arrive(&s.empty[used]);
        used = ring.stage;
        ring.advance();
    }
    wgmma_wait<0>();  // nobody waits for the last stage to be let go of
#pragma unroll
    for (int i = 0; i < kGradTaps; ++i) {
        hold(acc[i]);
#pragma unroll
        for (int j = 0; j < kN / 2; j += 2) {
            const int c = at.m * kGradM + acc_row(t, j), k = at.n * kN + acc_col(t, j);
            if (c < p.shape.c)
                *reinterpret_cast<float2*>(p.partials + grad_partial_index(p.shape, at.split, consumer * kGradTaps + i, c, k)) =
                    make_float2(acc[i][j], acc[i][j + 1]);
        }
    }
}

template <int kN>
__global__ void __launch_bounds__(512, 1) grad3x3(const __grid_constant__ GradParams p) {
    GradShared<kN>& s = *reinterpret_cast<GradShared<kN>*>(dynamic_shared());
    const int group = threadIdx.x / 128, t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kGradStages; ++i) barrier_init(&s.full[i], kGradLoaders), barrier_init(&s.empty[i], 4 * kGradGroups);
        fence_barrier_init();
    }
    __syncthreads();
    const GradAt at = grad_at(p.shape, kN, blockIdx.x);
    const int first = grad_first(p.shape, at.split, p.splits), count = grad_first(p.shape, at.split + 1, p.splits) - first;
    if (group == 0) {
        registers_down<56>();
        grad_load<kN>(p, s, at, first, count, t);
    } else {
        registers_up<152>();
        grad_multiply<kN>(p, s, at, count, group - 1, t);
    }
}

// dw[k][tap][c] = partials of all splits, added in the order of the splits: rounded to bf16, or added to what is there in f32 (sum not
// null). Block: one tap, 32 c x 32 k, 32 x 8 threads.
static __global__ void __launch_bounds__(256) grad3x3_sum(const float* partials, Shape s, int splits, uint16_t* dw, float* sum) {
    __shared__ float tile[32][33];
    const int tap = blockIdx.z, c0 = blockIdx.y * 32, k0 = blockIdx.x * 32;
    float total[4] = {};
    for (int split = 0; split < splits; ++split) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] += partials[grad_partial_index(s, split, tap, c0 + threadIdx.y + i * 8, k0 + threadIdx.x)];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[threadIdx.y + i * 8][threadIdx.x] = total[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float value = tile[threadIdx.x][threadIdx.y + i * 8];
        const int64_t to = krsc_index(s, k0 + threadIdx.y + i * 8, tap, c0 + threadIdx.x);
        if (sum != nullptr)
            sum[to] += value;
        else
            dw[to] = __bfloat16_as_ushort(__float2bfloat16(value));
    }
}

}  // namespace jem::hopper
