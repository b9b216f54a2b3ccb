// L_gen = mean v(x-) - mean v(x+) + l2 (squares of v), in two terms, one for each batch: v = LSE(f(x)) (SADA-JEM, Eq. 2 and Algorithm 1),
// or of labels f(x)[y] (JEM, Eq. 6). What the other forms of it are, EnergyForm says.
#include "engine/training/terms/terms.h"

namespace jem {
namespace {

// Of two terms that make one difference of energies.
struct EnergyNames {
    const char *real, *sampled, *loss, *loss_real;
};
constexpr EnergyNames kGenerative = {"f_pos", "f_neg", "loss_gen", "loss_real"};
constexpr EnergyNames kAdversarial = {"f_pos", "f_adv", "loss_adv", "loss_real_adv"};
constexpr EnergyNames kJoint = {"f_pos_lab", "f_neg_lab", "loss_joint", "loss_real_lab"};

EnergyForm form_of(EnergyL2 form) {
    if (form == EnergyL2::image) return EnergyForm::each;
    return form == EnergyL2::m_jem ? EnergyForm::real : EnergyForm::means;
}

enum class Labels { ignored, taken };

class EnergyOfBatch final : public Objective {
public:
    struct Options {
        EnergyTerm term;
        EnergyNames names;
        Labels labels = Labels::ignored;
        EnergyForm form = EnergyForm::means;
        double l2 = 0;
    };

    EnergyOfBatch(const TermContext& c, const Options& options)
        : device_(c.device),
          memory_(c.memory),
          options_(options),
          count_(c.count),
          both_(c.both),
          ranks_(c.device.communicator().size()),
          weight_(c.weight) {
        scalars_.f_pos = c.scalars.number(options.names.real);
        scalars_.f_neg = c.scalars.number(options.names.sampled);
        scalars_.loss = c.scalars.number(options.names.loss);
        if (options.form != EnergyForm::means) scalars_.loss_real = c.scalars.number(options.names.loss_real);
        lse_ = memory_.transient(c.name + "/" + options.names.loss + "/lse",
                                 static_cast<size_t>(ranks_ * count_) * size_of(device_.real_type()));
    }

    void queue(const ObjectiveCall& call) override {
        Ops& ops = device_.ops();
        Communicator& ranks = device_.communicator();
        const Array labels = options_.labels == Labels::taken ? call.labels : Array{};
        const auto lse = [&] { return Array{memory_.at(lse_), device_.real_type(), ranks_ * count_}; };  // of the whole job
        ops.log_sum_exp(ranks.own(lse()), call.network.logits(call.pass), labels);
        ranks.all_gather(lse());
        ops.energy_summary(call.state, lse(), options_.term, scalars_, call.sam, options_.l2, options_.form, ranks_ * both_);
        // The mean over the job's batch: a rank's share of it weighs less.
        ops.energy_backward(call.network.d_logits(call.pass), call.network.logits(call.pass), ranks.own(lse()), call.state, options_.term,
                            scalars_, call.sam, weight_ / static_cast<double>(ranks_), options_.l2,
                            {.form = options_.form, .both = both_, .labels = labels, .add = call.add});
    }

    // Both batches are in the second's.
    std::optional<std::string> value() const override {
        return options_.term == EnergyTerm::negative ? std::optional<std::string>(options_.names.loss) : std::nullopt;
    }

private:
    Device& device_;
    Memory& memory_;
    Options options_;
    int64_t count_, both_, ranks_;
    double weight_;
    EnergyScalars scalars_;
    Slot lse_;
};

std::unique_ptr<Objective> generative(const TermContext& c, EnergyTerm term, Labels labels) {
    return std::make_unique<EnergyOfBatch>(
        c,
        EnergyOfBatch::Options{
            .term = term, .names = kGenerative, .labels = labels, .form = form_of(c.settings.energy_l2_form), .l2 = c.settings.energy_l2});
}

std::unique_ptr<Objective> joint(const TermContext& c, EnergyTerm term) {
    return std::make_unique<EnergyOfBatch>(c, EnergyOfBatch::Options{.term = term, .names = kJoint, .labels = Labels::taken});
}

std::unique_ptr<Objective> adversarial(const TermContext& c, EnergyTerm term) {
    return std::make_unique<EnergyOfBatch>(c, EnergyOfBatch::Options{.term = term, .names = kAdversarial});
}

std::unique_ptr<Objective> binary(const TermContext& c, EnergyTerm term) {
    return std::make_unique<EnergyOfBatch>(c, EnergyOfBatch::Options{.term = term, .names = kGenerative, .form = EnergyForm::binary});
}

}  // namespace

std::unique_ptr<Objective> energy_of_real_images(const TermContext& c) { return generative(c, EnergyTerm::positive, Labels::ignored); }
std::unique_ptr<Objective> energy_of_samples(const TermContext& c) { return generative(c, EnergyTerm::negative, Labels::ignored); }
std::unique_ptr<Objective> class_energy_of_real_images(const TermContext& c) { return generative(c, EnergyTerm::positive, Labels::taken); }
std::unique_ptr<Objective> class_energy_of_samples(const TermContext& c) { return generative(c, EnergyTerm::negative, Labels::taken); }
std::unique_ptr<Objective> joint_energy_of_labelled_images(const TermContext& c) { return joint(c, EnergyTerm::positive); }
std::unique_ptr<Objective> joint_energy_of_samples(const TermContext& c) { return joint(c, EnergyTerm::negative); }
std::unique_ptr<Objective> adversarial_energy_of_real_images(const TermContext& c) { return adversarial(c, EnergyTerm::positive); }
std::unique_ptr<Objective> adversarial_energy(const TermContext& c) { return adversarial(c, EnergyTerm::negative); }
std::unique_ptr<Objective> binary_energy_of_real_images(const TermContext& c) { return binary(c, EnergyTerm::positive); }
std::unique_ptr<Objective> binary_energy_of_samples(const TermContext& c) { return binary(c, EnergyTerm::negative); }

}  // namespace jem
