// Natural images of any batch, by a term alone: the mean of -v + l2 v^2 with v = LSE(f(x)) and l2 from --energy-l2.
#include "engine/training/terms/terms.h"

namespace jem {
namespace {

class LowEnergy final : public Objective {
public:
    explicit LowEnergy(const TermContext& c)
        : device_(c.device),
          memory_(c.memory),
          count_(c.count),
          ranks_(c.device.communicator().size()),
          weight_(c.weight),
          l2_(c.settings.energy_l2) {
        scalars_.f_pos = c.scalars.number("f_low");
        scalars_.loss_real = c.scalars.number("loss_low");
        lse_ = memory_.transient(c.name + "/low energy/lse", static_cast<size_t>(ranks_ * count_) * size_of(device_.real_type()));
    }

    // Ops alone, which write what they find into scalars of the state on the device: it is recorded once, and replayed.
    void queue(const ObjectiveCall& call) override {
        Ops& ops = device_.ops();
        Communicator& ranks = device_.communicator();
        // Of the whole job. Asked for at each use: by that the plan of memory sees how long it has to live.
        const auto lse = [&] { return Array{memory_.at(lse_), device_.real_type(), ranks_ * count_}; };
        ops.log_sum_exp(ranks.own(lse()), call.network.logits(call.pass));
        ranks.all_gather(lse());
        ops.energy_summary(call.state, lse(), EnergyTerm::positive, scalars_, call.sam, l2_, EnergyForm::each);
        // The mean over the job's batch: a rank's share of it weighs less.
        ops.energy_backward(call.network.d_logits(call.pass), call.network.logits(call.pass), ranks.own(lse()), call.state,
                            EnergyTerm::positive, scalars_, call.sam, weight_ / static_cast<double>(ranks_), l2_,
                            {.form = EnergyForm::each, .add = call.add});
    }
    std::optional<std::string> value() const override { return "loss_low"; }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_, ranks_;
    double weight_, l2_;
    EnergyScalars scalars_;
    Slot lse_;
};

}  // namespace

std::unique_ptr<Objective> low_energy(const TermContext& context) { return std::make_unique<LowEnergy>(context); }

}  // namespace jem
