#include "engine/training/terms/terms.h"

#include <stdexcept>

namespace jem {

std::unique_ptr<Objective> make_objective(const std::string& name, const TermContext& context) {
    static const std::vector<NamedObjective> all = {
        {"energy-real", energy_of_real_images},
        {"energy-sampled", energy_of_samples},
        {"class-energy-real", class_energy_of_real_images},
        {"class-energy-sampled", class_energy_of_samples},
        {"joint-energy-labelled", joint_energy_of_labelled_images},
        {"joint-energy-sampled", joint_energy_of_samples},
        {"adversarial-energy-real", adversarial_energy_of_real_images},
        {"adversarial-energy", adversarial_energy},
        {"binary-energy-real", binary_energy_of_real_images},
        {"binary-energy-sampled", binary_energy_of_samples},
        {"cross-entropy", cross_entropy_of_labels},
        {"adversarial-cross-entropy", adversarial_cross_entropy},
    };
    for (const NamedObjective& o : all)
        if (o.name == name) return o.make(context);
    throw std::logic_error("No term of a loss is called " + name + ".");
}

}  // namespace jem
