// A 3x3 stride-1 NHWC bf16 convolution and its weight gradient for Hopper (sm_90a): wgmma on halo tiles without swizzle. Index arithmetic:
// layout.h.
//
// conv3x3: 384 threads, three warpgroups; one block of threads per SM, tiles dealt out in turn.
// Warpgroup 0, warps 0 to 2, load A: global -> registers -> [scale * (x - mean) + beta, LeakyReLU 0.2] -> shared memory, 32 channels of all
// halos a stage. Its warp 3 loads B: one bulk copy of 10240 bytes (a tap of a chunk) a stage. The two must not share a thread: with fewer
// than nine stages of B a thread that fills both waits for B's first stage of a chunk to be let go of while the consumers wait for its part
// of A.
// Warpgroups 1 and 2: kPerGroup pixel blocks each; for every chunk and tap two k steps of m64n160k16, then the epilogue.
// kCluster 2: two blocks of threads with the same output channels; each loads half of every piece of B and sends it to both, which halves
// what B asks of the L2 (at full speed 256 rows x 160 read 20 bytes per SM and clock without, 12 with; 128 rows 36 and 20).
//
// mbarriers (phases: Ring in layout.h)
// full_a: 96 arrivals, one per loading thread, after its stores and a fence that makes them visible to the async proxy, by which wgmma
// reads.
// full_b: 1 arrival that announces 10240 bytes; the phase completes when the copy engine has delivered them.
// empty_a, empty_b: 8 arrivals, one per consumer warp: wgmma.wait_group is per warp, so each warp vouches for its own reads. In a cluster
// of two a warp arrives at empty_b of both blocks of threads (16 arrivals), because the other's copies write here too. The other's half may
// land before this block has announced its 10240 bytes: the phase still lacks this block's arrival, so it cannot complete early.
// Consumers keep one group of wgmma in flight: after issuing step u they wait for step u - 1 and let go of what u - 1 read, A with a
// chunk's last tap.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "tests/probe/layout.h"
#ifdef EMULATED
#include "tests/probe/emulated.h"  // the same operations for the host: emulate.cc
#else
#include "tests/probe/sm90.cuh"
#include "wgmma.h"
#endif

using bf16 = __nv_bfloat16;
constexpr float kSlope = 0.2f;
// For timing only: without epilogue, loads of A, loads of B.
enum Skip : int { kSkipNothing = 0, kSkipStores = 1, kSkipLoads = 2, kSkipWeights = 4 };

struct ConvParams {
    Shape shape;
    const bf16 *x, *w, *residual;               // w packed (weight_index)
    const float *mean, *scale, *beta, *centre;  // per input channel; centre per output channel
    bf16* y;
    float* partials;  // partial_index: sums of (y - centre) and of its square per pixel block
    Trouble* trouble;
    int units, skip;
};

__device__ __forceinline__ void unpack(uint32_t v, float& low, float& high) {
    low = __uint_as_float(v << 16), high = __uint_as_float(v & 0xffff0000u);
}
__device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ float norm_leaky(float x, float mean, float scale, float beta) {
    const float z = fmaf(x - mean, scale, beta);
    return z > 0 ? z : kSlope * z;
}

template <int kPerGroup>
struct ConvShared {
    using Tile = ConvTile<kPerGroup>;
    uint8_t a[Tile::kStagesA][Tile::kABytes];
    uint8_t b[Tile::kStagesB][kWeightBytes];
    uint8_t staging[2][kStagingBytes];
    float norm[3][kMaxChannels];
    int source[2][Tile::kPixels];
    uint64_t full_a[Tile::kStagesA], empty_a[Tile::kStagesA], full_b[Tile::kStagesB], empty_b[Tile::kStagesB];
};

template <int kPerGroup, int kCluster, bool kNorm>
__device__ __forceinline__ void load_a(const ConvParams& p, ConvShared<kPerGroup>& s, int rank, int t) {
    using Tile = ConvTile<kPerGroup>;
    constexpr int kRounds = Tile::kRounds, kBatch = Tile::kBatch;
    const int slice = Tile::load_slice(t);
    Ring<Tile::kStagesA> ring;
    int table = 0;
    for (int unit = blockIdx.x / kCluster; unit < p.units; unit += gridDim.x / kCluster, table ^= 1) {
        // Where each halo pixel's channel 0 lies, -1 for padding. Two tables: who fills one has passed the barrier of the tile before, and
        // so everybody has finished with the tile before that.
        int* const source = s.source[table];
        const int m = tile_at(p.shape, unit, kCluster, rank).m;
        for (int pixel = t; pixel < Tile::kPixels; pixel += kLoaders) source[pixel] = Tile::source(p.shape, m, pixel);
        loaders_sync();
        for (int chunk = 0; chunk < chunks(p.shape); ++chunk, ring.advance()) {
            const int channel = chunk * kChunk + slice * kVec;
            uint8_t* const to = s.a[ring.stage];
            barrier_wait(&s.empty_a[ring.stage], ring.empty_parity(), p.trouble, kEmptyA, ring.stage);
            if (!(p.skip & kSkipLoads)) {
                float mean[kVec], scale[kVec], beta[kVec];
                if (kNorm) {
#pragma unroll
                    for (int j = 0; j < kVec; ++j)
                        mean[j] = s.norm[0][channel + j], scale[j] = s.norm[1][channel + j], beta[j] = s.norm[2][channel + j];
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
                        if (kNorm) {
#pragma unroll
                            for (int j = 0; j < 4; ++j) {
                                float low, high;
                                unpack(word[j], low, high);
                                low = norm_leaky(low, mean[2 * j], scale[2 * j], beta[2 * j]);
                                high = norm_leaky(high, mean[2 * j + 1], scale[2 * j + 1], beta[2 * j + 1]);
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

template <int kPerGroup, int kCluster>
__device__ __forceinline__ void load_b(const ConvParams& p, ConvShared<kPerGroup>& s, int rank) {
    constexpr int kPart = kWeightBytes / kCluster;
    Ring<ConvTile<kPerGroup>::kStagesB> ring;
    for (int unit = blockIdx.x / kCluster; unit < p.units; unit += gridDim.x / kCluster) {
        const int n = tile_at(p.shape, unit, kCluster, rank).n;
        for (int chunk = 0; chunk < chunks(p.shape); ++chunk)
            for (int tap = 0; tap < kTaps; ++tap, ring.advance()) {
                uint64_t* const full = &s.full_b[ring.stage];
                barrier_wait(&s.empty_b[ring.stage], ring.empty_parity(), p.trouble, kEmptyB, ring.stage);
                if (p.skip & kSkipWeights) {
                    barrier_arrive(full);
                    continue;
                }
                barrier_arrive_expect(full, kWeightBytes);
                const bf16* const from = p.w + weight_piece(p.shape, n, chunk, tap) + rank * (kPart / 2);
                if (kCluster == 1)
                    bulk_copy(s.b[ring.stage], from, kPart, full);
                else
                    bulk_copy_to_both(s.b[ring.stage] + rank * kPart, from, kPart, full);
            }
    }
}

// One m64 block of a warpgroup: rounded to bf16, plus the residual and rounded again (as an addition after a convolution would), stored;
// the sums are of what was stored. Sums within a block of pixels run in a fixed order.
template <bool kResidual, bool kSums>
__device__ __forceinline__ void conv_epilogue(const ConvParams& p, uint8_t* staging, const float (&acc)[kConvN / 2], int g, int n_tile,
                                              int t, int consumer) {
    if (g >= pixel_blocks(p.shape)) return;  // the same for the whole warpgroup
    group_sync(consumer);
#pragma unroll
    for (int i = 0; i < kConvN / 2; i += 2)
        *reinterpret_cast<uint32_t*>(staging + staging_offset(acc_row(t, i), acc_col(t, i))) = pack(acc[i], acc[i + 1]);
    group_sync(consumer);
    const int vector = out_vector(t), first = out_first_row(t), channel = n_tile * kConvN + vector * kVec;
    const BlockAt at = block_at(p.shape, g);
    float sum[kVec] = {}, squares[kVec] = {}, centre[kVec] = {};
    if (kSums) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) centre[j] = p.centre[channel + j];
    }
    constexpr int kRowBatch = 4;  // rows of the residual on their way at once
    const auto offset = [&](int row) {
        return pixel_offset(p.shape, at.image, at.y + row / kEdge, at.x + row % kEdge, p.shape.k) + channel;
    };
    if (first < kRowsAtOnce)
        for (int start = first; start < kBlockPixels; start += kRowBatch * kRowsAtOnce) {
            uint4 other[kRowBatch];
            if (kResidual) {
#pragma unroll
                for (int i = 0; i < kRowBatch; ++i) {
                    const int row = start + i * kRowsAtOnce;
                    if (row < kBlockPixels) other[i] = __ldg(reinterpret_cast<const uint4*>(p.residual + offset(row)));
                }
            }
#pragma unroll
            for (int i = 0; i < kRowBatch; ++i) {
                const int row = start + i * kRowsAtOnce;
                if (row >= kBlockPixels) break;
                const uint4 v = *reinterpret_cast<const uint4*>(staging + staging_offset(row, vector * kVec));
                uint32_t word[4] = {v.x, v.y, v.z, v.w};
                const uint32_t added[4] = {other[i].x, other[i].y, other[i].z, other[i].w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float low, high;
                    unpack(word[j], low, high);
                    if (kResidual) {
                        float a, b;
                        unpack(added[j], a, b);
                        word[j] = pack(low + a, high + b);
                        unpack(word[j], low, high);
                    }
                    if (kSums) {
                        low -= centre[2 * j], high -= centre[2 * j + 1];
                        sum[2 * j] += low, sum[2 * j + 1] += high;
                        squares[2 * j] = fmaf(low, low, squares[2 * j]), squares[2 * j + 1] = fmaf(high, high, squares[2 * j + 1]);
                    }
                }
                *reinterpret_cast<uint4*>(p.y + offset(row)) = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
    if (kSums) {
        group_sync(consumer);
        float* const scratch = reinterpret_cast<float*>(staging);  // [6 rows at once][2][160]
        if (first < kRowsAtOnce) {
#pragma unroll
            for (int j = 0; j < kVec; ++j) {
                scratch[first * 2 * kConvN + vector * kVec + j] = sum[j];
                scratch[(first * 2 + 1) * kConvN + vector * kVec + j] = squares[j];
            }
        }
        group_sync(consumer);
        for (int i = t; i < 2 * kConvN; i += 128) {
            float total = 0;
#pragma unroll
            for (int r = 0; r < kRowsAtOnce; ++r) total += scratch[r * 2 * kConvN + i];
            p.partials[partial_index(p.shape, g, n_tile, i / kConvN, i % kConvN)] = total;
        }
    }
}

template <int kPerGroup, int kCluster, bool kNorm, bool kResidual, bool kSums>
__global__ void __launch_bounds__(384, 1) conv3x3(const __grid_constant__ ConvParams p) {
    using Tile = ConvTile<kPerGroup>;
    ConvShared<kPerGroup>& s = *reinterpret_cast<ConvShared<kPerGroup>*>(dynamic_shared());
    const int group = threadIdx.x / 128, t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Tile::kStagesA; ++i) barrier_init(&s.full_a[i], kLoaders), barrier_init(&s.empty_a[i], 8);
        for (int i = 0; i < Tile::kStagesB; ++i) barrier_init(&s.full_b[i], 1), barrier_init(&s.empty_b[i], 8 * kCluster);
        fence_barrier_init();
    }
    if (kNorm)
        for (int i = threadIdx.x; i < p.shape.c; i += 384) s.norm[0][i] = p.mean[i], s.norm[1][i] = p.scale[i], s.norm[2][i] = p.beta[i];
    const int rank = kCluster == 1 ? 0 : cluster_rank();
    if (kCluster == 1)
        __syncthreads();
    else
        cluster_sync();  // the other's barriers exist before anything is sent there
    if (group == 0) {
        registers_down<88>();
        if (t < kLoaders)
            load_a<kPerGroup, kCluster, kNorm>(p, s, rank, t);
        else if (t == kLoaders)
            load_b<kPerGroup, kCluster>(p, s, rank);
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
            const TileAt at = tile_at(p.shape, unit, kCluster, rank);
            float acc[kPerGroup][kConvN / 2];
#pragma unroll
            for (int m = 0; m < kPerGroup; ++m) {
#pragma unroll
                for (int i = 0; i < kConvN / 2; ++i) acc[m][i] = 0;
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
                            wgmma_n160<0, 0>(acc[m], Tile::a_descriptor(a, consumer * kPerGroup + m, tap, step), db);
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
                if (!(p.skip & kSkipStores))
                    conv_epilogue<kResidual, kSums>(p, s.staging[consumer], acc[m], at.m * Tile::kBlocks + consumer * kPerGroup + m, at.n,
                                                    t, consumer);
            }
        }
    }
    if (kCluster == 2) cluster_sync();  // neither leaves while the other may still send something here
}

// columns of a [rows][columns] matrix added up, in an order that depends on nothing but `rows`. Block: 32 columns, 32 x 32 threads.
__global__ void __launch_bounds__(1024) column_sums(const float* m, int rows, int columns, float* out) {
    __shared__ float part[32][33];
    const int column = blockIdx.x * 32 + threadIdx.x;
    float total = 0;
    for (int r = threadIdx.y; r < rows; r += 32) total += m[(int64_t)r * columns + column];
    part[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0) {
        for (int i = 1; i < 32; ++i) total += part[i][threadIdx.x];
        out[column] = total;
    }
}

// Weight gradient -------------------------------------------------------------------------------------------------------------

// Warpgroup 0 copies (cp.async, zeros where there is padding), 1 to 3 multiply. A stage: halo of x and dy of one pixel block, 23040 bytes.
// full: 128 arrivals; a loading thread arrives for stage j - 3 when it has issued stage j and its copies for j - 3 are there (and fenced
// for the async proxy), so three stages are always on their way. empty: 12 arrivals, one per consumer warp.
struct GradParams {
    Shape shape;
    const bf16 *x, *dy;
    float* partials;  // grad_partial_index
    Trouble* trouble;
    int splits;
};
struct GradShared {
    uint8_t a[kGradStages][kGradABytes];
    uint8_t b[kGradStages][kGradBBytes];
    uint64_t full[kGradStages], empty[kGradStages];
};

__device__ __forceinline__ void grad_load(const GradParams& p, GradShared& s, const GradAt& at, int first, int count, int t) {
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
            for (int i = 0; i < kGradBRounds; ++i) {
                const GradItem item = grad_b_item(t, i);
                const int from = pixel_offset(p.shape, block.image, block.y + item.pixel / kEdge, block.x + item.pixel % kEdge, p.shape.k);
                vector_copy(b + item.slice * kGradBSliceBytes + item.pixel * kVecBytes, p.dy + from + at.n * kGradN + item.slice * kVec,
                            true);
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

__device__ __forceinline__ void grad_multiply(const GradParams& p, GradShared& s, const GradAt& at, int count, int consumer, int t) {
    float acc[kGradTaps][kGradN / 2];
#pragma unroll
    for (int i = 0; i < kGradTaps; ++i) {
#pragma unroll
        for (int j = 0; j < kGradN / 2; ++j) acc[i][j] = 0;
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
            for (int i = 0; i < kGradTaps; ++i) wgmma_n80<1, 1>(acc[i], grad_a_descriptor(a, consumer * kGradTaps + i, step), db);
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
        for (int j = 0; j < kGradN / 2; j += 2) {
            const int c = at.m * kGradM + acc_row(t, j), k = at.n * kGradN + acc_col(t, j);
            if (c < p.shape.c)
                *reinterpret_cast<float2*>(p.partials + grad_partial_index(p.shape, at.split, consumer * kGradTaps + i, c, k)) =
                    make_float2(acc[i][j], acc[i][j + 1]);
        }
    }
}

__global__ void __launch_bounds__(512, 1) weight_gradient(const __grid_constant__ GradParams p) {
    GradShared& s = *reinterpret_cast<GradShared*>(dynamic_shared());
    const int group = threadIdx.x / 128, t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kGradStages; ++i) barrier_init(&s.full[i], kGradLoaders), barrier_init(&s.empty[i], 4 * kGradGroups);
        fence_barrier_init();
    }
    __syncthreads();
    const GradAt at = grad_at(p.shape, blockIdx.x);
    const int first = grad_first(p.shape, at.split, p.splits), count = grad_first(p.shape, at.split + 1, p.splits) - first;
    if (group == 0) {
        registers_down<56>();
        grad_load(p, s, at, first, count, t);
    } else {
        registers_up<152>();
        grad_multiply(p, s, at, count, group - 1, t);
    }
}

// dw[k][tap][c] = partials of all splits, added in the order of the splits. Block: one tap, 32 c x 32 k, 32 x 8 threads.
__global__ void __launch_bounds__(256) weight_gradient_sum(const float* partials, Shape s, int splits, float* dw) {
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
    for (int i = 0; i < 4; ++i) dw[krsc_index(s, k0 + threadIdx.y + i * 8, tap, c0 + threadIdx.x)] = tile[threadIdx.x][threadIdx.y + i * 8];
}
