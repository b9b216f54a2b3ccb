// The objectives that a loss is made of, by name. One file each; terms.cc lists them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/memory/memory.h"
#include "engine/network/objective.h"
#include "engine/network/scalars.h"
#include "engine/settings/method.h"
#include "engine/settings/settings.h"

namespace jem {

// What an objective is made for: one pass over one batch.
struct TermContext {
    Device& device;
    Memory& memory;
    Scalars& scalars;
    const Settings& settings;
    std::string name;  // of the pass, for the plan of memory
    int64_t count;     // images of this rank's share; every rank has as many
    int64_t both;      // of this batch and that of a difference's other half together, likewise
    double weight;     // of the objective, for the mean over the whole job's batch
};

// What a method may do with an objective.
struct ObjectiveTraits {
    std::string loss;         // the scalar of its value, which no other may write but for the two halves of one difference
    std::string mean = {};    // the scalar of its batch's mean, which objectives of one term alone may share
    std::string second = {};  // of the first half of a difference: the objective that is the other, and holds the value of both
    bool labels = false;      // whether it takes its batch's
    std::string heeds = {};   // key of a setting that only some objectives heed; empty: of none
};

struct NamedObjective {
    std::string name;
    std::unique_ptr<Objective> (*make)(const TermContext&);
    ObjectiveTraits traits;
};

// One a line.
std::unique_ptr<Objective> energy_of_real_images(const TermContext& context);
std::unique_ptr<Objective> energy_of_samples(const TermContext& context);
// The same of images with labels: log p(x, y) + const = f(x)[y].
std::unique_ptr<Objective> class_energy_of_real_images(const TermContext& context);
std::unique_ptr<Objective> class_energy_of_samples(const TermContext& context);
std::unique_ptr<Objective> joint_energy_of_labelled_images(const TermContext& context);
std::unique_ptr<Objective> joint_energy_of_samples(const TermContext& context);
// Of real against adversarial images, with --attack-weight (EB-JDAT).
std::unique_ptr<Objective> adversarial_energy_of_real_images(const TermContext& context);
std::unique_ptr<Objective> adversarial_energy(const TermContext& context);
// Real against made images by binary cross-entropy on their energies (DAT).
std::unique_ptr<Objective> binary_energy_of_real_images(const TermContext& context);
std::unique_ptr<Objective> binary_energy_of_samples(const TermContext& context);
std::unique_ptr<Objective> cross_entropy_of_labels(const TermContext& context);
std::unique_ptr<Objective> adversarial_cross_entropy(const TermContext& context);

// All of them, by name. Whoever is given `known` goes by that list in their place.
const std::vector<NamedObjective>& objectives();
// Throws std::logic_error for a name that none has.
const NamedObjective& objective_called(const std::string& name, const std::vector<NamedObjective>& known = objectives());
// Whether some term takes that batch's labels.
bool takes_labels(const Method& method, BatchOf batch, const std::vector<NamedObjective>& known = objectives());

}  // namespace jem
