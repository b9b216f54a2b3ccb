// What a method is made of, as data: the steps of an iteration's first pass, in order. The trainer makes phases of them. A recipe is code
// that makes one of its settings; a configuration may bring one of its own, as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "engine/settings/enums.h"

namespace jem {

struct Settings;

enum class BatchOf {
    labelled,        // x_lab, augmented, with its labels
    real,            // x+
    chain,           // x-: where the chain of the generative batch's size ended
    labelled_chain,  // the same of the labelled batch's, under its labels: samples of p(x|y)
    adversarial,     // x~: where an attack on x_lab ended, with its labels
};

struct ObjectiveSpec {
    std::string name;  // one of engine/training/terms
    double weight = 1;
    std::string setting = "";  // key of the one that the weight is taken from; empty: from none
    bool operator==(const ObjectiveSpec&) const = default;
};

// A term of the loss: its batch runs forward and backward, in each of SAM's passes, through one head.
struct TermSpec {
    std::string name;  // of its phase
    BatchOf batch;
    std::vector<ObjectiveSpec> objectives;  // what is wanted of the logits; their gradients add up
    Head head = Head::classes;
    bool operator==(const TermSpec&) const = default;
};

enum class ChainStepper { sgld, attack, normalised };  // attack: as --attack-norm has it; normalised: g / |g| of each image

// Steps on images of the replay buffer, which are stored again after the first term that takes them; of `adversarial` on x_lab.
struct ChainSpec {
    std::string name;                // of its phase
    BatchOf makes = BatchOf::chain;  // or another one that chains make
    ChainObjective climbs = ChainObjective::lse;
    Head head = Head::classes;  // of LSE
    ChainStepper stepper = ChainStepper::sgld;
    bool evaluation_mode = false;  // of norms, whatever --sampling-norm says
    bool operator==(const ChainSpec&) const = default;
};

struct Method {
    std::vector<std::variant<ChainSpec, TermSpec>> steps;
    bool running_statistics = false;  // in all passes, which leave them alone
    bool nesterov = false;            // SGD's momentum
    bool chains_take_labels = false;  // of x-: those of x+, place by place
    bool attacks_start_apart = true;  // from x_lab: a random way inside the ball
    bool operator==(const Method&) const = default;
};

inline bool is_of_chain(BatchOf batch) { return batch != BatchOf::labelled && batch != BatchOf::real; }

// Whether a term takes that batch; whether a chain makes it.
bool has_term(const Method& method, BatchOf batch);
bool has_chain(const Method& method, BatchOf batch);
// Whether it draws x_lab, for a term or for attacks; x+ or starts of x-.
bool draws_labelled(const Method& method);
bool draws_generative(const Method& method);
// Whether there are terms of both x+ and x-.
bool tells_apart(const Method& method);
// Whether x- are of classes that are drawn for them.
bool draws_classes(const Method& method);
// Keys of what recipes make their steps of: where a configuration has the steps, nothing else reads them but weights that name one.
const std::vector<std::string>& settings_of_recipes();
// Whether chains of either kind go on in the places that their classes have.
bool takes_places(const Method& method);
// Whether some objective's weight is taken from the setting of that key.
bool is_weight(const Method& method, const std::string& key);

// As the key "method" of a configuration holds it. The reader takes keys that are left out for the defaults above, and throws InputError
// for what is no method at all; whether its parts fit together is another question (engine/training/own_method.h).
nlohmann::ordered_json to_json(const Method& method);
Method method_of_json(const nlohmann::json& json);

// The number that a setting is; InputError where it is none.
double weight_by(const Settings& settings, const std::string& key);
// With the weights that the settings give.
Method with_weights(Method method, const Settings& settings);
// Without objectives that weigh nothing, terms that are left without objectives, and chains that no term takes then.
Method without_idle_parts(Method method);

}  // namespace jem
