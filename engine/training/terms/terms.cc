#include "engine/training/terms/terms.h"

#include <algorithm>
#include <stdexcept>
#include <variant>

namespace jem {

const std::vector<NamedObjective>& objectives() {
    static const std::vector<NamedObjective> all = {
        {"energy-real", energy_of_real_images, {.loss = "loss_gen", .mean = "f_pos", .second = "energy-sampled", .heeds = "energy_l2"}},
        {"energy-sampled", energy_of_samples, {.loss = "loss_gen", .mean = "f_neg", .heeds = "energy_l2"}},
        {"class-energy-real",
         class_energy_of_real_images,
         {.loss = "loss_gen", .mean = "f_pos", .second = "class-energy-sampled", .labels = true, .heeds = "energy_l2"}},
        {"class-energy-sampled", class_energy_of_samples, {.loss = "loss_gen", .mean = "f_neg", .labels = true, .heeds = "energy_l2"}},
        {"joint-energy-labelled",
         joint_energy_of_labelled_images,
         {.loss = "loss_joint", .mean = "f_pos_lab", .second = "joint-energy-sampled", .labels = true}},
        {"joint-energy-sampled", joint_energy_of_samples, {.loss = "loss_joint", .mean = "f_neg_lab", .labels = true}},
        {"adversarial-energy-real",
         adversarial_energy_of_real_images,
         {.loss = "loss_adv", .mean = "f_pos", .second = "adversarial-energy"}},
        {"adversarial-energy", adversarial_energy, {.loss = "loss_adv", .mean = "f_adv"}},
        {"binary-energy-real", binary_energy_of_real_images, {.loss = "loss_gen", .mean = "f_pos", .second = "binary-energy-sampled"}},
        {"binary-energy-sampled", binary_energy_of_samples, {.loss = "loss_gen", .mean = "f_neg"}},
        {"cross-entropy", cross_entropy_of_labels, {.loss = "loss_clf", .labels = true, .heeds = "label_smoothing"}},
        {"adversarial-cross-entropy", adversarial_cross_entropy, {.loss = "loss_adv_clf", .labels = true, .heeds = "label_smoothing"}},
    };
    return all;
}

const NamedObjective& objective_called(const std::string& name, const std::vector<NamedObjective>& known) {
    for (const NamedObjective& o : known)
        if (o.name == name) return o;
    throw std::logic_error("No term of a loss is called " + name + ".");
}

bool takes_labels(const Method& method, BatchOf batch, const std::vector<NamedObjective>& known) {
    return std::any_of(method.steps.begin(), method.steps.end(), [&](const auto& step) {
        const auto* term = std::get_if<TermSpec>(&step);
        return term != nullptr && term->batch == batch &&
               std::any_of(term->objectives.begin(), term->objectives.end(),
                           [&](const ObjectiveSpec& o) { return objective_called(o.name, known).traits.labels; });
    });
}

}  // namespace jem
