// What every planned operation of NVIDIA's libraries shares: checks of its operands, and the one way in which it is launched.
#pragma once

#include <array>
#include <stdexcept>
#include <string>

#include "kernels/cuda/cuda_launcher.h"
#include "kernels/tensor.h"

namespace jem {

// Of what lies one behind the other in a workspace.
constexpr size_t aligned(size_t bytes) {
    constexpr size_t kAlignment = 256;
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// One launch: announced, counted, timed; only counted in a dry run.
template <class Run>
void launch(CudaLauncher& launcher, const char* label, const Work& work, Run run) {
    if (!launcher.announce(label, work)) return;
    struct Launched {
        CudaLauncher& launcher;
        ~Launched() { launcher.launched(); }
    } launched{launcher};
    run();
}

inline void expect(bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("A planned operation was called with ") + what + ".");
}

inline void expect_tensor(const Tensor& t, const char* what, std::array<int64_t, 4> dims, DType type) {
    if (t.n == dims[0] && t.c == dims[1] && t.h == dims[2] && t.w == dims[3] && t.type == type && t.block == t.c) return;
    throw std::logic_error(std::string("A planned operation was called with another ") + what + ": " + std::to_string(t.n) + "x" +
                           std::to_string(t.c) + "x" + std::to_string(t.h) + "x" + std::to_string(t.w) + ", expected " +
                           std::to_string(dims[0]) + "x" + std::to_string(dims[1]) + "x" + std::to_string(dims[2]) + "x" +
                           std::to_string(dims[3]) + " of its own type with channels side by side.");
}

}  // namespace jem
