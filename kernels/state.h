// What a training iteration reads and reports on the device, so that a recorded phase sees new values when it is replayed.
#pragma once

#include <cstdint>

namespace jem {

enum class SamPass : int { at_weights = 0, at_perturbed = 1 };  // SAM's two gradients; without SAM only the first
inline constexpr int kNumPasses = 2;
inline constexpr int kNumScalars = 24;

// |L_gen| beyond this counts as divergence (the authors' scripts).
inline constexpr double kDivergedLoss = 1e5;

// Doubles whatever the engine's precision: a handful of scalars, and the host reads them without knowing it.
struct IterationState {
    // Written at the start of an iteration.
    uint32_t iteration = 0;  // counted from 0
    uint32_t step = 0;       // SGLD step within the iteration, advanced on the device
    uint64_t attempt = 0;    // how often the run has gone back to an earlier state: other random numbers each time
    double learning_rate = 0;
    // Adam's bias corrections, once for all parameters: learning_rate / (1 - beta1^t) and sqrt(1 - beta2^t), t counted from 1
    double adam_rate = 0, adam_root = 1;

    // Results of the method's terms and chains, in the pass that the second index names; those of one pass alone are in the first.
    // Which is which, whoever builds an iteration decides and names (engine/network/scalars.h).
    double scalars[kNumScalars][kNumPasses] = {};
    double grad_norm = 0;      // plain L2 norm of the gradient at the weights
    double perturb_scale = 0;  // rho / (norm + 1e-12)
    double clip_factor = 1;    // of the gradient that the optimizer gets

    // Sticky: raised by anything non-finite or exploding. Parameters, momentum, averages, running statistics and the
    // replay buffer do not change while it is up.
    int32_t diverged = 0;
    int32_t padding = 0;
};

}  // namespace jem
