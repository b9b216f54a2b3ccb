#include "engine/sampling/chain_objectives.h"

namespace jem {
namespace {

class ClimbLse final : public Objective {
public:
    ClimbLse(Device& device, Memory& memory, const std::string& name, int64_t count) : device_(device), memory_(memory), count_(count) {
        lse_ = memory.transient(name + "/lse", static_cast<size_t>(count) * size_of(device.real_type()));
    }

    void queue(const ObjectiveCall& call) override {
        const auto lse = [&] { return call.values.count > 0 ? call.values : Array{memory_.at(lse_), device_.real_type(), count_}; };
        device_.ops().log_sum_exp(lse(), call.network.logits(call.pass));
        device_.ops().lse_backward(call.network.d_logits(call.pass), call.network.logits(call.pass), lse());
    }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_;
    Slot lse_;
};

class ClimbCrossEntropy final : public Objective {
public:
    ClimbCrossEntropy(Device& device, Memory& memory, const std::string& name, int64_t count)
        : device_(device), memory_(memory), count_(count) {
        const size_t bytes = static_cast<size_t>(count) * size_of(device.real_type());
        loss_ = memory.transient(name + "/loss", bytes);
        hit_ = memory.transient(name + "/hit", bytes);
    }

    void queue(const ObjectiveCall& call) override {
        const auto of = [&](Slot slot) { return Array{memory_.at(slot), device_.real_type(), count_}; };
        device_.ops().cross_entropy(call.values.count > 0 ? call.values : of(loss_), of(hit_), call.network.d_logits(call.pass),
                                    call.network.logits(call.pass), call.labels,
                                    static_cast<double>(count_));  // the op weighs the mean
        if (call.hits.count > 0) device_.ops().accumulate(call.hits, of(hit_));
    }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_;
    Slot loss_, hit_;
};

class ClimbClassLogit final : public Objective {
public:
    ClimbClassLogit(Device& device, Memory& memory, const std::string& name, int64_t count, double factor)
        : device_(device), memory_(memory), count_(count), factor_(factor) {
        logit_ = memory.transient(name + "/logit", static_cast<size_t>(count) * size_of(device.real_type()));
    }

    void queue(const ObjectiveCall& call) override {
        const Array logit = call.values.count > 0 ? call.values : Array{memory_.at(logit_), device_.real_type(), count_};
        device_.ops().class_logit(logit, call.network.d_logits(call.pass), call.network.logits(call.pass), call.labels, factor_);
    }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_;
    double factor_;
    Slot logit_;
};

class ClimbApart final : public Objective {
public:
    ClimbApart(Device& device, Memory& memory, const std::string& name, int64_t count, int64_t classes)
        : device_(device), memory_(memory), count_(count), classes_(classes) {
        value_ = memory.transient(name + "/value", static_cast<size_t>(count) * size_of(device.real_type()));
        start_ = memory.keep("samples", name + "/logits at the start", static_cast<size_t>(count * classes) * size_of(device.real_type()));
    }

    bool wants_start() const override { return true; }
    void start(const ObjectiveCall& call) override {
        device_.copy(memory_.at(start_), call.network.logits(call.pass).data, memory_.bytes(start_));
    }
    void queue(const ObjectiveCall& call) override {
        const auto of = [&](Slot slot, int64_t values) { return Array{memory_.at(slot), device_.real_type(), values}; };
        device_.ops().logits_apart(call.values.count > 0 ? call.values : of(value_, count_), call.network.d_logits(call.pass),
                                   call.network.logits(call.pass), of(start_, count_ * classes_), call.labels);
    }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_, classes_;
    Slot value_, start_;
};

}  // namespace

std::unique_ptr<Objective> make_chain_objective(ChainObjective which, Device& device, Memory& memory, const std::string& name,
                                                int64_t count, int64_t classes) {
    switch (which) {
        case ChainObjective::cross_entropy:
            return std::make_unique<ClimbCrossEntropy>(device, memory, name, count);
        case ChainObjective::class_logit:
            return std::make_unique<ClimbClassLogit>(device, memory, name, count, 1);
        case ChainObjective::class_energy:
            return std::make_unique<ClimbClassLogit>(device, memory, name, count, -1);
        case ChainObjective::apart:
            return std::make_unique<ClimbApart>(device, memory, name, count, classes);
        case ChainObjective::lse:
            break;
    }
    return std::make_unique<ClimbLse>(device, memory, name, count);
}

}  // namespace jem
