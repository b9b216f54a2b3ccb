// How the images of a chain follow their gradient, and what they may not leave.
#pragma once

#include <memory>
#include <string>

#include "engine/device/device.h"
#include "engine/memory/memory.h"
#include "engine/network/scalars.h"
#include "engine/settings/enums.h"

namespace jem {

struct StepCall {
    Array x;                 // R [N, H*W*C], updated
    Array gradient;          // the same, d objective / d x
    Array centre;            // the same, what a projection keeps them near; empty unless one asks for it
    Array norms;             // R [N], scratch; empty unless the stepper asks for it
    Array values;            // R [N], of the objective; empty unless the chain was asked for them
    Array noise;             // R [steps, N, H*W*C], standard normal; empty: drawn
    int64_t first_step = 0;  // of the state, that noise begins with
    int64_t images = 0;
    IterationState* state = nullptr;
};

class Stepper {
public:
    virtual ~Stepper() = default;
    virtual void queue(Device& device, const StepCall& call) = 0;
    // What it does to x before the gradient is taken.
    virtual void queue_before(Device&, const StepCall&) {}
    virtual bool wants_centre() const { return false; }
    virtual bool wants_norms() const { return false; }
};

// x += alpha * clamp(g) + sigma * noise, kept in [-1, 1] (SADA-JEM, Eq. 3; the scripts' alpha). Tells the gradient's norm in the scalar.
// With noise_first x += sigma * noise, and g is that of the moved x.
std::unique_ptr<Stepper> sgld_stepper(const SgldSettings& settings, Scalars& scalars, const std::string& scalar);
// The same step as a proposal, judged by Metropolis and Hastings (MALA): what is left invariant is exp(v / T), v being the objective and
// T = noise^2 / (2 step size), with the pixel clamp in [-1, 1] alone, where proposals are reflected instead of clamped; that needs a noise
// above 0 and at most 0.5, the objective's values, and a v that depends on one image alone. The chain's images are proposals; step k judges
// the one of step k - 1, so that K moves take K + 1 steps. Step 0 begins anew.
class MetropolisStepper final : public Stepper {
public:
    MetropolisStepper(Device& device, Memory& memory, const std::string& name, int64_t images, int64_t pixels, const SgldSettings& settings,
                      int gradient_norm_scalar);

    void queue(Device& device, const StepCall& call) override;
    Array images();    // R [N, H*W*C]: where the chains are
    Array values();    // R [N]: of the objective, there
    Array accepted();  // i32 [N]: whether the last step moved each

private:
    Device& device_;
    Memory& memory_;
    SgldSettings settings_;
    int64_t count_, pixels_;
    int scalar_;
    Slot images_, gradient_, values_, accepted_;
};
// How far an attack goes at a step and in all, in units of x. Read when a step is queued: one that is recorded keeps what it was.
struct AttackLimits {
    double step_size = 0, radius = 0;
};
// Of a length in 1/255 of the pixels' range, as papers give them.
inline double in_units_of_x(double length) { return 2 * length / 255; }
// x += alpha * sign(g), kept within radius of the centre, value by value, and in [-1, 1] (Madry et al. 2018; L-infinity). limits must
// outlive the stepper.
std::unique_ptr<Stepper> sign_stepper(const AttackLimits& limits);
// x += alpha * g / |g| of each image, kept within radius of the centre in L2, and in [-1, 1]. Tells the gradient's norm in the scalar; -1:
// in none.
std::unique_ptr<Stepper> normalised_stepper(const AttackLimits& limits, int scalar = -1);
// One of the two.
std::unique_ptr<Stepper> attack_stepper(AttackNorm norm, const AttackLimits& limits);

}  // namespace jem
