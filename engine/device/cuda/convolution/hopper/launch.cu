#include "engine/device/cuda/convolution/hopper/launch.h"

#include <algorithm>

#include "engine/device/cuda/convolution/hopper/kernels.cuh"
#include "engine/device/cuda/runtime.h"

namespace jem::hopper {
namespace {

struct ConvKernel {
    void (*kernel)(ConvParams);
    size_t shared_bytes;
};

template <int kN, int kPerGroup, int kCluster>
ConvKernel kernel_of(const ConvVariant& v) {
    constexpr size_t kBytes = sizeof(ConvShared<kN, kPerGroup>), kMost = 227 * 1024;
    static_assert(kBytes <= kMost);
    if (v.leaky_backward) return {v.norm ? nullptr : conv3x3<kN, kPerGroup, kCluster, false, true>, kBytes};
    return {v.norm ? conv3x3<kN, kPerGroup, kCluster, true, false> : conv3x3<kN, kPerGroup, kCluster, false, false>, kBytes};
}
template <int kN, int kPerGroup>
ConvKernel kernel_of(const ConvVariant& v) {
    if (v.cluster == 1) return kernel_of<kN, kPerGroup, 1>(v);
    if constexpr (kN >= 128)
        if (v.cluster == 2) return kernel_of<kN, kPerGroup, 2>(v);
    return {};
}
template <int kN>
ConvKernel kernel_of(const ConvVariant& v) {
    if (v.pixel_blocks == 4) return kernel_of<kN, 2>(v);
    if (v.pixel_blocks == 2) return kernel_of<kN, 1>(v);
    return {};
}
ConvKernel kernel_of(const ConvVariant& v) {
    switch (v.tile_channels) {
        case 32:
            return kernel_of<32>(v);
        case 64:
            return kernel_of<64>(v);
        case 128:
            return kernel_of<128>(v);
        case 160:
            return kernel_of<160>(v);
        default:
            return {};
    }
}

struct GradKernel {
    void (*kernel)(GradParams);
    size_t shared_bytes;
};
GradKernel grad_kernel_of(int tile_channels) {
    switch (tile_channels) {
        case 32:
            return {grad3x3<32>, sizeof(GradShared<32>)};
        case 64:
            return {grad3x3<64>, sizeof(GradShared<64>)};
        case 80:
            return {grad3x3<80>, sizeof(GradShared<80>)};
        default:
            return {};
    }
}

bool allow(const void* kernel, size_t shared_bytes) {
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)) == cudaSuccess)
        return true;
    (void)cudaGetLastError();  // not to be taken for the next call's
    return false;
}

template <class... P, class... Args>
void launch(const cudaLaunchConfig_t& config, void (*kernel)(P...), Args... args) {
    cuda::check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), "launch a convolution");
}

cudaLaunchConfig_t config_of(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return config;
}

unsigned unsigned_of(int n) { return static_cast<unsigned>(n); }

constexpr unsigned kConvThreads = 384, kGradThreads = 512;

// The blocks of a launch in clusters; lives as long as the configuration.
class InClusters {
public:
    InClusters(cudaLaunchConfig_t& config, int cluster) {
        attribute_.id = cudaLaunchAttributeClusterDimension;
        attribute_.val.clusterDim.x = unsigned_of(cluster);
        attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
        config.attrs = &attribute_;
        config.numAttrs = cluster > 1 ? 1 : 0;
    }

private:
    cudaLaunchAttribute attribute_{};
};

}  // namespace

int prepare(const ConvVariant& variant, int multiprocessors) {
    const ConvKernel k = kernel_of(variant);
    if (k.kernel == nullptr || !allow(reinterpret_cast<const void*>(k.kernel), k.shared_bytes)) return 0;
    if (variant.cluster == 1) return multiprocessors;
    // The two blocks of a cluster share a group of multiprocessors, and some groups have an odd number of them.
    cudaLaunchConfig_t config = config_of(nullptr, unsigned_of(multiprocessors / 2 * 2), kConvThreads, k.shared_bytes);
    const InClusters in_clusters(config, variant.cluster);
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, k.kernel, &config) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return clusters * variant.cluster;
}

void convolve(cudaStream_t stream, const ConvVariant& variant, ConvParams p, int blocks) {
    const ConvKernel k = kernel_of(variant);
    p.units = conv_units(p.shape, variant.tile_channels, variant.pixel_blocks, variant.cluster);
    const int clusters = std::min(p.units, blocks / variant.cluster);
    cudaLaunchConfig_t config = config_of(stream, unsigned_of(clusters * variant.cluster), kConvThreads, k.shared_bytes);
    const InClusters in_clusters(config, variant.cluster);
    launch(config, k.kernel, p);
}

void add_partials(cudaStream_t stream, const float* partials, int rows, int channels, float* sum, float* products) {
    launch(config_of(stream, unsigned_of(2 * channels / kSumColumns), dim3(kSumColumns, kSumRows), 0), partial_sums, partials, rows,
           channels, sum, products);
}

bool prepare_weight_gradient(int tile_channels) {
    const GradKernel k = grad_kernel_of(tile_channels);
    return k.kernel != nullptr && allow(reinterpret_cast<const void*>(k.kernel), k.shared_bytes);
}

void weight_gradient(cudaStream_t stream, int tile_channels, const GradParams& p, uint16_t* dw, float* sum) {
    const GradKernel k = grad_kernel_of(tile_channels);
    launch(config_of(stream, unsigned_of(grad_tiles(p.shape, tile_channels) * p.splits), kGradThreads, k.shared_bytes), k.kernel, p);
    launch(config_of(stream, dim3(unsigned_of(p.shape.k / 32), unsigned_of(p.shape.c / 32), kTaps), dim3(32, 8), 0), grad3x3_sum,
           static_cast<const float*>(p.partials), p.shape, p.splits, dw, sum);
}

}  // namespace jem::hopper
