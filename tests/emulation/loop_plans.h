// In place of cuDNN and cuBLASLt: the reference's loops, each launched as a kernel of one thread on the launcher's stream, so that
// order, capture, bounds and races are checked for convolutions as well. They are a provider like any other: the device's own search
// chooses among them.
#pragma once

#include <string>
#include <vector>

#include "engine/device/cuda/batched_product.h"
#include "engine/device/cuda/convolution/provider.h"
#include "engine/device/cuda/cuda_device.h"
#include "kernels/cuda/cuda_launcher.h"

namespace jem {

struct LoopEngine {
    // near: right, but other bits than those of the others. other_bits: and others each time.
    enum class Fault { none, near, other_bits, wrong };
    std::string name;
    int kernels = 1;  // that it launches; the emulated machine's clock counts them
    Fault fault = Fault::none;
    int more_back = 0;  // kernels of a gradient besides
};
struct Loops {
    std::string name = "loops 1";
    // What they can take over from the ops around: the norm and LeakyReLU in front; the sums for the norm behind, and on the way back
    // LeakyReLU and the sums behind it.
    bool activation = false, sums = false;
    bool turned = false;    // its forward engines are offered as the way back to data, too
    bool hopper = false;    // the kernels for Hopper GPUs are offered beside them
    bool winograd = false;  // and minimal filtering, by loops between its transforms
    std::vector<LoopEngine> plain = {{.name = "loops"}}, fused = {{.name = "loops, fused"}};
};
// Products by loops, each a kernel of one thread; two ranks of them.
BatchedProducts loop_products();
std::unique_ptr<ConvProvider> make_loop_provider(CudaLauncher& launcher, const Loops& loops);

// plan_cache: a file, or empty.
MakeCudaPlans loop_plans(CudaPrecision precision, const std::vector<Loops>& providers = {{}}, const std::string& plan_cache = "");

// What a test wants fused. The plain engine is so slow that the search takes the fused one where there is one.
enum class LoopFusion { none, activation, sums, both };
Loops loops_with(LoopFusion fusion);

}  // namespace jem
