#include "engine/training/own_method.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

constexpr double kLargestWeight = 1e6;  // as the flags'

// Phases that every iteration has, or may have.
const std::set<std::string> kOtherPhases = {"draw", "store", "store of classes", "perturb", "second", "update"};

std::string flag_of(const std::string& key) {
    for (const Setting& s : settings_table())
        if (s.key == key) return s.flag();
    return key;
}

std::string value_of(const std::string& key, const Settings& settings) {
    for (const Setting& s : settings_table())
        if (s.key == key) return s.get(settings).dump();
    return "";
}

class Check {
public:
    Check(const Settings& settings, const Method& method, const std::vector<NamedObjective>& known, std::string when)
        : s_(settings), m_(method), known_(known), when_(std::move(when)) {}

    // Step by step: what comes later may ask for what came before.
    void steps() {
        if (!has_steps<TermSpec>()) refuse("\"method\" has no term", "there would be nothing to learn from", "Add a step with \"term\"");
        for (const auto& step : m_.steps) {
            if (const auto* chain = std::get_if<ChainSpec>(&step))
                look_at(*chain);
            else
                look_at(std::get<TermSpec>(step));
        }
        for (const auto& [first, used] : used_)
            if (!traits(first).second.empty() && !used_.contains(traits(first).second))
                refuse("Objective " + first + " stands alone",
                       "it is the first half of a difference whose second is " + traits(first).second,
                       "Give a later term the objective " + traits(first).second);
    }

    // Of all steps together, with those that weigh nothing.
    void whole() {
        bool through_head = false, length = false, sgld = false;
        for (const auto& step : m_.steps) {
            if (const auto* term = std::get_if<TermSpec>(&step)) through_head |= term->head == Head::energy;
            if (const auto* chain = std::get_if<ChainSpec>(&step)) {
                length |= chain->stepper == ChainStepper::normalised;
                sgld |= chain->stepper == ChainStepper::sgld;
            }
        }
        if (s_.energy_head == Head::energy && !through_head)
            refuse("--energy-head linear is trained by no term", "none has \"head\": \"linear\", and the energy would stay a random one",
                   "Give it to a term, or leave --energy-head at lse");
        if (length && !sgld)
            for (const auto& [key, wrong] : {std::pair{"inner_steps", s_.inner_steps > 0}, std::pair{"sgld_noise", s_.sgld_noise > 0}})
                if (wrong)
                    refuse(flag_of(key) + " " + value_of(key, s_) + " has no effect",
                           "all chains take normalised steps, which are of one length", "Set it to 0");
        if (m_.running_statistics && s_.dropout > 0)
            refuse("--dropout has no effect", "with \"running_statistics\" all passes are in evaluation mode, in which nothing is dropped",
                   "Leave one of them out");
        const bool chains_take = m_.chains_take_labels && has_chain(m_, BatchOf::chain);
        if (s_.labels_per_class > 0 && (chains_take || takes_labels(m_, BatchOf::real, known_)))
            refuse("--labels-per-class " + std::to_string(s_.labels_per_class) + " beside labels of the batch real",
                   chains_take ? "\"chains_take_labels\" takes that of every image of p(x)" : "a term takes that of every image of p(x)",
                   "Leave one of them out");
        for (const std::string& key : settings_of_recipes())
            if (!is_weight(m_, key) && value_of(key, s_) != value_of(key, recipe(s_.recipe)))
                refuse(flag_of(key) + " has no effect beside a method of one's own",
                       key + " is for the steps of recipes, and no weight names it",
                       "Leave it out, or give it as a weight where it is one");
        for (const NamedObjective& o : known_) {
            const std::string& key = o.traits.heeds;
            if (key.empty() || weight_by(s_, key) == 0) continue;
            const bool heeded = std::any_of(used_.begin(), used_.end(), [&](const auto& used) { return traits(used.first).heeds == key; });
            if (!heeded)
                refuse(flag_of(key) + " " + value_of(key, s_) + " has no effect",
                       "the method has no objective that heeds it, such as " + o.name, "Set it to 0");
        }
    }

private:
    struct Used {
        const TermSpec* term;
        double weight;
    };

    [[noreturn]] void refuse(const std::string& problem, const std::string& why, const std::string& what) const {
        throw InputError(when_ + problem + " (" + why + "). " + what + ".");
    }

    template <class Step>
    bool has_steps() const {
        return std::any_of(m_.steps.begin(), m_.steps.end(), [](const auto& step) { return std::holds_alternative<Step>(step); });
    }

    const ChainSpec* chain_of(BatchOf batch) const {
        for (const auto& step : m_.steps)
            if (const auto* chain = std::get_if<ChainSpec>(&step); chain != nullptr && chain->makes == batch) return chain;
        return nullptr;
    }

    const ObjectiveTraits& traits(const std::string& name) const { return objective_called(name, known_).traits; }

    bool has_labels(BatchOf batch) const { return !is_of_chain(batch) || chain_of(batch)->climbs != ChainObjective::lse; }

    void take_name(const std::string& name) {
        if (kOtherPhases.contains(name)) refuse("A step is called " + name, "that is a phase of every iteration", "Choose another name");
        if (!names_.insert(name).second)
            refuse("Two steps come to be called " + name,
                   "each is a phase of that name; an attack has another one, its own name and \" start\"", "Choose other names");
    }

    void look_at_head(const std::string& what, Head head) const {
        if (head == Head::energy && s_.energy_head != Head::energy)
            refuse(what + " is of the head linear", "--energy-head is " + name_of(s_.energy_head) + ": the network has none",
                   "Set \"energy_head\": \"linear\", or leave \"head\" out");
    }

    void look_at(const ChainSpec& c) {
        const std::string chain = "Chain " + c.name, makes = name_of(c.makes), climbs = name_of(c.climbs);
        const bool attack = c.makes == BatchOf::adversarial;
        take_name(c.name);
        if (attack) take_name(c.name + " start");
        if (!is_of_chain(c.makes))
            refuse(chain + " makes the batch " + makes, "that one is drawn from the data",
                   "Let it make chain, labelled-chain or adversarial");
        if (!made_.insert(c.makes).second) refuse("Two chains make the batch " + makes, "an iteration has one of each", "Leave one out");
        if (attack != (c.stepper == ChainStepper::attack))
            refuse(chain + " makes the batch " + makes + " by the stepper " + name_of(c.stepper),
                   attack ? "adversarial images stay in the ball of --attack-eps, which the stepper attack alone knows"
                          : "that one is of adversarial images, whose ball it keeps to",
                   attack ? "Give it \"stepper\": \"attack\"; --attack-norm l2 normalises its steps" : "Give it sgld or normalised");
        if (c.climbs == ChainObjective::apart && !attack)
            refuse(chain + " climbs apart", "that is away from the logits at the start of an attack, and it makes the batch " + makes,
                   "Let it climb lse or class-logit");
        look_at_head(chain, c.head);
        if (c.head == Head::energy && c.climbs != ChainObjective::lse)
            refuse(chain + " climbs " + climbs + " of the head linear", "that head knows no classes",
                   "Let it climb lse, or leave \"head\" out");
        if (c.makes == BatchOf::chain && m_.chains_take_labels && c.climbs == ChainObjective::lse)
            refuse("\"chains_take_labels\" has no effect", "chain " + c.name + " climbs lse, which takes no labels",
                   "Let it climb class-logit, or leave the key out");
        if (c.makes == BatchOf::chain && m_.chains_take_labels && !has_term(m_, BatchOf::real))
            refuse("\"chains_take_labels\" has nothing to take", "no term is of the batch real", "Add one, or leave the key out");
        if (!has_term(m_, c.makes))
            refuse(chain + " makes the batch " + makes + " for nobody", "no term takes that", "Add a term of it, or leave the chain out");
    }

    void look_at(const TermSpec& t) {
        const std::string term = "Term " + t.name, batch = name_of(t.batch);
        take_name(t.name);
        look_at_head(term, t.head);
        if (is_of_chain(t.batch) && !made_.contains(t.batch))
            refuse(term + " is of the batch " + batch, "no chain before it makes that",
                   "Put a chain with \"makes\": \"" + batch + "\" before it");
        if (t.objectives.empty())
            refuse(term + " has no objectives", "its images would go through the network for nothing", "Give it one, or leave it out");
        for (const ObjectiveSpec& o : t.objectives) look_at(t, o);
    }

    void look_at(const TermSpec& t, const ObjectiveSpec& o) {
        const std::string objective = "Objective " + o.name + " of term " + t.name;
        std::string all;
        bool is_known = false;
        for (const NamedObjective& k : known_) {
            is_known |= k.name == o.name;
            all += " " + k.name;
        }
        if (!is_known) refuse("Term " + t.name + " has the objective \"" + o.name + "\"", "known:" + all, "Choose one of these");
        if (!std::isfinite(o.weight) || o.weight < 0 || o.weight > kLargestWeight)
            refuse(
                objective + " has a weight of " + nlohmann::json(o.weight).dump() + (o.setting.empty() ? "" : ", by " + flag_of(o.setting)),
                "0 to 1000000 is allowed", "Give one in range");
        const ObjectiveTraits& its = traits(o.name);
        if (its.labels && t.head == Head::energy)
            refuse(objective + " is of the head linear", "it takes classes, and that head knows none", "Leave the term's \"head\" out");
        if (its.labels && !has_labels(t.batch))
            refuse(objective + " has no labels", "the images of the batch " + name_of(t.batch) + " have climbed lse, and are of no class",
                   "Let their chain climb class-logit, or choose an objective without labels");
        if (used_.contains(o.name)) refuse("Objective " + o.name + " is there twice", "both would write " + its.loss, "Leave one out");
        for (const auto& [name, used] : used_) look_at_pair(t, o, name, used);
        const bool is_second =
            std::any_of(known_.begin(), known_.end(), [&](const NamedObjective& k) { return k.traits.second == o.name; });
        const bool begun = std::any_of(used_.begin(), used_.end(), [&](const auto& used) { return traits(used.first).second == o.name; });
        if (is_second && !begun)
            for (const NamedObjective& k : known_)
                if (k.traits.second == o.name)
                    refuse(objective + " has no first half", "it ends a difference that " + k.name + " begins",
                           "Give a term before it the objective " + k.name);
        used_.insert({o.name, {&t, o.weight}});
    }

    // Of an objective and one before it.
    void look_at_pair(const TermSpec& t, const ObjectiveSpec& o, const std::string& before, const Used& used) const {
        const ObjectiveTraits &its = traits(o.name), &others = traits(before);
        const bool halves = others.second == o.name;
        const std::string both = "Objectives " + before + " and " + o.name;
        if (halves && used.term == &t)
            refuse(both + " are of one term", "they are the two halves of a difference, of two batches", "Give them to two terms");
        if (halves && used.weight != o.weight)
            refuse(both + " weigh " + nlohmann::json(used.weight).dump() + " and " + nlohmann::json(o.weight).dump(),
                   "they are the two halves of one difference, which has one weight", "Give both the same");
        if (!halves && its.loss == others.loss)
            refuse(both + " are both there", "both would write " + its.loss, "Leave one out, or choose another pair");
        if (!its.mean.empty() && its.mean == others.mean && (used.term != &t || its.labels != others.labels))
            refuse(both + " mean two things by " + its.mean, "it is the mean over one batch, with labels or without",
                   "Give them to one term, and take such as both take labels or none");
    }

    const Settings& s_;
    const Method& m_;
    const std::vector<NamedObjective>& known_;
    std::string when_;  // in front of an error
    std::set<std::string> names_;
    std::set<BatchOf> made_;
    std::map<std::string, Used> used_;  // objectives by name
};

}  // namespace

Method checked_method(const Settings& s, const std::vector<NamedObjective>& known) {
    if (!s.own_method) return method_of(s);
    const Method all = with_weights(*s.own_method, s);
    Check check(s, all, known, "");
    check.steps();
    check.whole();
    const Method left = method_of(s);
    if (left.steps.empty()) throw InputError("All weights of \"method\" are 0 (there is nothing to train). Make one positive.");
    if (left != all) Check(s, left, known, "Without what weighs 0: ").steps();
    return left;
}

}  // namespace jem
