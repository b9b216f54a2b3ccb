#include "engine/sampling/steppers.h"

namespace jem {
namespace {

class SgldStepper final : public Stepper {
public:
    SgldStepper(const SgldSettings& settings, int scalar) : settings_(settings), scalar_(scalar) {}

    void queue(Device& device, const StepCall& c) override {
        SgldSettings settings = settings_;
        settings.first = device.communicator().rank() * c.x.count;
        device.ops().sgld_gradient_norm(c.state, c.gradient, c.images, scalar_);
        device.ops().sgld_step(c.x, c.gradient, c.noise, c.state, settings);
    }

private:
    SgldSettings settings_;
    int scalar_;
};

class SignStepper final : public Stepper {
public:
    SignStepper(double step_size, double radius) : step_size_(step_size), radius_(radius) {}

    void queue(Device& device, const StepCall& c) override { device.ops().sign_step(c.x, c.gradient, c.start, step_size_, radius_); }
    bool wants_start() const override { return true; }

private:
    double step_size_, radius_;
};

}  // namespace

std::unique_ptr<Stepper> sgld_stepper(const SgldSettings& settings, Scalars& scalars, const std::string& scalar) {
    return std::make_unique<SgldStepper>(settings, scalars.number(scalar));
}

std::unique_ptr<Stepper> sign_stepper(double step_size, double radius) { return std::make_unique<SignStepper>(step_size, radius); }

}  // namespace jem
