// Finalises every fused graph for one GPU and one precision, without a GPU: run with nodevice_libcuda.c as libcuda.so.1.
// One GPU a process: with that library, what cuDNN offers a GPU depends on those that were asked for before.
//   fused_graph_check GPU PRECISION     a line for each: fusion, shape, then engine, workspace and seconds, or "refused" and why
//   ... --nondeterministic              those with sums only, in any order
#include <chrono>
#include <cstdio>
#include <cstring>

#include "engine/device/cuda/convolution/cudnn_graphs.h"

namespace jem {
namespace {

constexpr std::array kFusions = {Fusion::bias,       Fusion::bias_residual,       Fusion::bias_sums,       Fusion::bias_residual_sums,
                                 Fusion::norm_leaky, Fusion::norm_leaky_residual, Fusion::norm_leaky_sums, Fusion::norm_leaky_residual_sums,
                                 Fusion::accumulate, Fusion::leaky_backward_sums};
// Of WRN-28-10: the most frequent kind, and one that halves the image.
constexpr std::array kShapes = {ConvShape{.in_channels = 160, .out_channels = 160, .height = 32, .width = 32, .kernel = 3, .stride = 1},
                                ConvShape{.in_channels = 320, .out_channels = 320, .height = 32, .width = 32, .kernel = 3, .stride = 2}};

int run(const char* gpu, const char* precision, bool nondeterministic) {
    const Cudnn cudnn(describe_gpu(gpu));
    for (const CudaPrecision p : {CudaPrecision::f32, CudaPrecision::tf32, CudaPrecision::bf16}) {
        if (std::strcmp(precision_name(p), precision) != 0) continue;
        for (const Fusion fusion : kFusions)
            for (const ConvShape& shape : kShapes) {
                if (nondeterministic && !has_sums(fusion)) continue;
                const auto start = std::chrono::steady_clock::now();
                std::printf("%s, %s: ", fusion_name(fusion), shape.text().c_str());
                try {
                    ConvGraph graph(cudnn, {.shape = shape,
                                            .batch = 64,
                                            .pass = pass_of(fusion),
                                            .fusion = fusion,
                                            .precision = p,
                                            .nondeterministic = nondeterministic});
                    graph.finalise_first();
                    std::printf("%s, of %zu, %zu bytes", graph.engine(graph.rank()).c_str(), graph.engines(), graph.workspace_bytes());
                } catch (const CudnnError& e) {
                    std::printf("refused: %s", e.what());
                }
                std::printf(", %.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
                std::fflush(stdout);
            }
        return 0;
    }
    std::fprintf(stderr, "There is no precision %s.\n", precision);
    return 2;
}

}  // namespace
}  // namespace jem

int main(int argc, char** argv) {
    const bool nondeterministic = argc == 4 && std::strcmp(argv[3], "--nondeterministic") == 0;
    if (argc != 3 && !nondeterministic) return std::fprintf(stderr, "Usage: fused_graph_check GPU f32|tf32|bf16 [--nondeterministic]\n"), 2;
    if (!jem::Cudnn::has_driver()) return std::fprintf(stderr, "There is no libcuda.so.1.\n"), 1;
    return jem::run(argv[1], argv[2], nondeterministic);
}
