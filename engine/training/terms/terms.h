// The objectives that a loss is made of, by name. One file each; terms.cc lists them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/memory/memory.h"
#include "engine/network/objective.h"
#include "engine/network/scalars.h"
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
    int64_t both;      // of x+ and x- together, likewise
    double weight;     // of the objective, for the mean over the whole job's batch
};

struct NamedObjective {
    std::string name;
    std::unique_ptr<Objective> (*make)(const TermContext&);
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

// Throws std::logic_error for a name that none has.
std::unique_ptr<Objective> make_objective(const std::string& name, const TermContext& context);

}  // namespace jem
