// L_clf: the mean of -log p(y|x) over a batch with labels; with --label-smoothing of smoothed targets.
#include "engine/training/terms/terms.h"

namespace jem {
namespace {

class CrossEntropyOfLabels final : public Objective {
public:
    CrossEntropyOfLabels(const TermContext& c, const char* loss, bool accuracy)
        : device_(c.device),
          memory_(c.memory),
          count_(c.count),
          ranks_(c.device.communicator().size()),
          weight_(c.weight),
          smoothing_(c.settings.label_smoothing),
          name_(loss) {
        scalars_.loss = c.scalars.number(loss);
        scalars_.accuracy = accuracy ? c.scalars.number("accuracy") : -1;
        const size_t bytes = static_cast<size_t>(ranks_ * count_) * size_of(device_.real_type());
        loss_ = memory_.transient(c.name + "/loss", bytes);
        hit_ = memory_.transient(c.name + "/hit", bytes);
    }

    void queue(const ObjectiveCall& call) override {
        Ops& ops = device_.ops();
        Communicator& ranks = device_.communicator();
        const auto of_job = [&](Slot slot) { return Array{memory_.at(slot), device_.real_type(), ranks_ * count_}; };
        ops.cross_entropy(ranks.own(of_job(loss_)), ranks.own(of_job(hit_)), call.network.d_logits(call.pass),
                          call.network.logits(call.pass), call.labels, weight_ / static_cast<double>(ranks_), smoothing_, call.add);
        ranks.all_gather(of_job(loss_));
        ranks.all_gather(of_job(hit_));
        ops.classification_summary(call.state, of_job(loss_), of_job(hit_), scalars_, call.sam);
    }
    std::optional<std::string> value() const override { return name_; }

private:
    Device& device_;
    Memory& memory_;
    int64_t count_, ranks_;
    double weight_, smoothing_;
    std::string name_;  // of the scalar
    ClassificationScalars scalars_;
    Slot loss_, hit_;
};

}  // namespace

std::unique_ptr<Objective> cross_entropy_of_labels(const TermContext& context) {
    return std::make_unique<CrossEntropyOfLabels>(context, "loss_clf", true);
}
std::unique_ptr<Objective> adversarial_cross_entropy(const TermContext& context) {
    return std::make_unique<CrossEntropyOfLabels>(context, "loss_adv_clf", false);
}

}  // namespace jem
