// L_gen = mean LSE(x-) - mean LSE(x+) + l2 (both means squared), in two terms: one for each batch (SADA-JEM, Eq. 2 and Algorithm 1).
#include "engine/training/terms/terms.h"

namespace jem {
namespace {

class EnergyOfBatch final : public Objective {
public:
    EnergyOfBatch(const TermContext& c, EnergyTerm term)
        : device_(c.device),
          memory_(c.memory),
          term_(term),
          count_(c.count),
          ranks_(c.device.communicator().size()),
          weight_(c.weight),
          l2_(c.settings.energy_l2) {
        scalars_.f_pos = c.scalars.number("f_pos");
        scalars_.f_neg = c.scalars.number("f_neg");
        scalars_.loss = c.scalars.number("loss_gen");
        lse_ = memory_.transient(c.name + "/lse", static_cast<size_t>(ranks_ * count_) * size_of(device_.real_type()));
    }

    void queue(const ObjectiveCall& call) override {
        Ops& ops = device_.ops();
        Communicator& ranks = device_.communicator();
        const auto lse = [&] { return Array{memory_.at(lse_), device_.real_type(), ranks_ * count_}; };  // of the whole job
        ops.log_sum_exp(ranks.own(lse()), call.network.logits(call.pass));
        ranks.all_gather(lse());
        ops.energy_summary(call.state, lse(), term_, scalars_, call.sam, l2_);
        // The mean over the job's batch: a rank's share of it weighs less.
        ops.energy_backward(call.network.d_logits(call.pass), call.network.logits(call.pass), ranks.own(lse()), call.state, term_, scalars_,
                            call.sam, weight_ / static_cast<double>(ranks_), l2_);
    }

    // Both means are in the second's.
    std::optional<std::string> value() const override {
        return term_ == EnergyTerm::negative ? std::optional<std::string>("loss_gen") : std::nullopt;
    }

private:
    Device& device_;
    Memory& memory_;
    EnergyTerm term_;
    int64_t count_, ranks_;
    double weight_, l2_;
    EnergyScalars scalars_;
    Slot lse_;
};

}  // namespace

std::unique_ptr<Objective> energy_of_real_images(const TermContext& context) {
    return std::make_unique<EnergyOfBatch>(context, EnergyTerm::positive);
}
std::unique_ptr<Objective> energy_of_samples(const TermContext& context) {
    return std::make_unique<EnergyOfBatch>(context, EnergyTerm::negative);
}

}  // namespace jem
