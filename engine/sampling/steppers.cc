#include "engine/sampling/steppers.h"

namespace jem {
namespace {

class SgldStepper final : public Stepper {
public:
    SgldStepper(const SgldSettings& settings, int scalar) : settings_(settings), scalar_(scalar) {}

    void queue(Device& device, const StepCall& c) override {
        SgldSettings settings = settings_of(device, c);
        if (settings.noise_first) settings.noise = 0;
        device.ops().sgld_gradient_norm(c.state, c.gradient, c.images, scalar_);
        device.ops().sgld_step(c.x, c.gradient, c.noise, c.state, settings);
    }
    void queue_before(Device& device, const StepCall& c) override {
        if (!settings_.noise_first || settings_.noise == 0) return;
        device.ops().sgld_step(c.x, c.x, c.noise, c.state, noise_alone(settings_of(device, c)));
    }

private:
    SgldSettings settings_of(Device& device, const StepCall& c) const {
        SgldSettings settings = settings_;
        settings.first = device.communicator().rank() * c.x.count;
        settings.noise_from = c.first_step;
        return settings;
    }

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
    NormalisedStepper(const AttackLimits& limits, int scalar) : limits_(limits), scalar_(scalar) {}

    void queue(Device& device, const StepCall& c) override {
        if (scalar_ >= 0) device.ops().sgld_gradient_norm(c.state, c.gradient, c.images, scalar_);
        device.ops().normalised_step(c.x, c.gradient, c.norms, limits_.step_size);
        device.ops().project_on_ball(c.x, c.centre, c.norms, limits_.radius);
    }
    bool wants_centre() const override { return true; }
    bool wants_norms() const override { return true; }

private:
    const AttackLimits& limits_;
    int scalar_;
};

}  // namespace

MetropolisStepper::MetropolisStepper(Device& device, Memory& memory, const std::string& name, int64_t images, int64_t pixels,
                                     const SgldSettings& settings, int gradient_norm_scalar)
    : device_(device), memory_(memory), settings_(settings), count_(images), pixels_(pixels), scalar_(gradient_norm_scalar) {
    const size_t each = static_cast<size_t>(images) * size_of(device.real_type()), all = each * static_cast<size_t>(pixels);
    images_ = memory.keep("samples", name + "/where chains are", all);
    gradient_ = memory.keep("samples", name + "/gradient there", all);
    values_ = memory.keep("samples", name + "/values there", each);
    accepted_ = memory.keep("samples", name + "/accepted", static_cast<size_t>(images) * sizeof(int32_t));
}

Array MetropolisStepper::images() { return {memory_.at(images_), device_.real_type(), count_ * pixels_}; }
Array MetropolisStepper::values() { return {memory_.at(values_), device_.real_type(), count_}; }
Array MetropolisStepper::accepted() { return {memory_.at(accepted_), DType::i32, count_}; }

void MetropolisStepper::queue(Device& device, const StepCall& c) {
    SgldSettings settings = settings_;
    settings.first = device.communicator().rank() * c.x.count;
    settings.noise_from = c.first_step;
    const LangevinPoint chain = {images(), {memory_.at(gradient_), device.real_type(), count_ * pixels_}, values()};
    Ops& ops = device.ops();
    ops.metropolis(accepted(), chain, {c.x, c.gradient, c.values}, c.state, settings);
    ops.copy_images(chain.x, c.x, accepted());
    ops.copy_images(chain.gradient, c.gradient, accepted());
    ops.copy_images(chain.value, c.values, accepted());
    ops.sgld_gradient_norm(c.state, chain.gradient, c.images, scalar_);
    device.copy(c.x.data, chain.x.data, c.x.bytes());
    const bool reflect = settings.pixel_clamp;
    settings.pixel_clamp = false;
    ops.sgld_step(c.x, chain.gradient, c.noise, c.state, settings);
    if (reflect) ops.reflect(c.x);
}

std::unique_ptr<Stepper> sgld_stepper(const SgldSettings& settings, Scalars& scalars, const std::string& scalar) {
    return std::make_unique<SgldStepper>(settings, scalars.number(scalar));
}

std::unique_ptr<Stepper> sign_stepper(const AttackLimits& limits) { return std::make_unique<SignStepper>(limits); }

std::unique_ptr<Stepper> normalised_stepper(const AttackLimits& limits, int scalar) {
    return std::make_unique<NormalisedStepper>(limits, scalar);
}

std::unique_ptr<Stepper> attack_stepper(AttackNorm norm, const AttackLimits& limits) {
    return norm == AttackNorm::linf ? sign_stepper(limits) : normalised_stepper(limits);
}

}  // namespace jem
