// How the images of a chain follow their gradient, and what they may not leave.
#pragma once

#include <memory>
#include <string>

#include "engine/device/device.h"
#include "engine/network/scalars.h"

namespace jem {

struct StepCall {
    Array x;         // R [N, H*W*C], updated
    Array gradient;  // the same, d objective / d x
    Array start;     // the same, where the chain began; empty unless a projection asks for it
    Array noise;     // R [steps, N, H*W*C], standard normal; empty: drawn
    int64_t images = 0;
    IterationState* state = nullptr;
};

class Stepper {
public:
    virtual ~Stepper() = default;
    virtual void queue(Device& device, const StepCall& call) = 0;
    virtual bool wants_start() const { return false; }
};

// x += alpha * clamp(g) + sigma * noise, kept in [-1, 1] (SADA-JEM, Eq. 3; the scripts' alpha). Tells the gradient's norm in the scalar.
std::unique_ptr<Stepper> sgld_stepper(const SgldSettings& settings, Scalars& scalars, const std::string& scalar);
// x += alpha * sign(g), kept within radius of the start, value by value, and in [-1, 1] (Madry et al. 2018).
std::unique_ptr<Stepper> sign_stepper(double step_size, double radius);

}  // namespace jem
