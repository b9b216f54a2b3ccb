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
    explicit SignStepper(const AttackLimits& limits) : limits_(limits) {}

    void queue(Device& device, const StepCall& c) override {
        device.ops().sign_step(c.x, c.gradient, c.centre, limits_.step_size, limits_.radius);
    }
    bool wants_centre() const override { return true; }

private:
    const AttackLimits& limits_;
};

class NormalisedStepper final : public Stepper {
public:
    explicit NormalisedStepper(const AttackLimits& limits) : limits_(limits) {}

    void queue(Device& device, const StepCall& c) override {
        device.ops().normalised_step(c.x, c.gradient, c.norms, limits_.step_size);
        device.ops().project_on_ball(c.x, c.centre, c.norms, limits_.radius);
    }
    bool wants_centre() const override { return true; }
    bool wants_norms() const override { return true; }

private:
    const AttackLimits& limits_;
};

}  // namespace

std::unique_ptr<Stepper> sgld_stepper(const SgldSettings& settings, Scalars& scalars, const std::string& scalar) {
    return std::make_unique<SgldStepper>(settings, scalars.number(scalar));
}

std::unique_ptr<Stepper> sign_stepper(const AttackLimits& limits) { return std::make_unique<SignStepper>(limits); }

std::unique_ptr<Stepper> normalised_stepper(const AttackLimits& limits) { return std::make_unique<NormalisedStepper>(limits); }

}  // namespace jem
