// SGLD on a leash: x += alpha * clamp(g) + sigma * noise, kept within radius of where the chain began, in L2.
#include "engine/sampling/steppers.h"

namespace jem {
namespace {

class LeashedStepper final : public Stepper {
public:
    LeashedStepper(const SgldSettings& settings, double radius) : settings_(settings), radius_(radius) {}

    void queue(Device& device, const StepCall& c) override {
        SgldSettings settings = settings_;
        settings.first = device.communicator().rank() * c.x.count;  // each rank draws the noise of its own images
        settings.noise_from = c.first_step;
        device.ops().sgld_step(c.x, c.gradient, c.noise, c.state, settings);
        device.ops().project_on_ball(c.x, c.centre, c.norms, radius_);
    }
    // What the chain has to keep for it.
    bool wants_centre() const override { return true; }
    bool wants_norms() const override { return true; }

private:
    SgldSettings settings_;
    double radius_;
};

}  // namespace

std::unique_ptr<Stepper> leashed_stepper(const SgldSettings& settings, double radius) {
    return std::make_unique<LeashedStepper>(settings, radius);
}

}  // namespace jem
