// Recipes compose: what a setting says holds of every recipe, or the recipe refuses it and says why.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/ranks/ranks.h"
#include "engine/settings/recipes/recipes.h"
#include "job.h"

namespace jem {
namespace {

struct Change {
    std::string name;
    std::function<void(Settings&)> make;
    std::function<bool(const Settings&)> touches;  // whether an iteration of these settings is another one then
};

bool always(const Settings&) { return true; }
bool attacks(const Settings& s) { return has_chain(method_of(s), BatchOf::adversarial); }
bool samples(const Settings& s) { return s.generates(); }
bool binary(const Settings& s) { return s.recipe == "dat"; }

const std::vector<Change>& changes() {
    static const std::vector<Change> all = {
        {"sam", [](Settings& s) { s.sam = s.sam == SamForm::sam ? SamForm::none : SamForm::sam, s.rho = 0.5; }, always},
        {"asam", [](Settings& s) { s.sam = SamForm::asam, s.rho = 0.7; }, always},
        {"norm", [](Settings& s) { s.norm = s.norm == NormKind::none ? NormKind::batch : NormKind::none; }, always},
        {"instance norm", [](Settings& s) { s.norm = NormKind::instance; }, always},
        {"layer norm", [](Settings& s) { s.norm = NormKind::layer; }, always},
        {"act norm", [](Settings& s) { s.norm = NormKind::act; }, always},
        {"act norm of data", [](Settings& s) { s.norm = NormKind::act, s.act_init = ActInit::data; }, always},
        {"dropout", [](Settings& s) { s.dropout = 0.3; }, always},
        {"optimizer", [](Settings& s) { s.optimizer = s.optimizer == Optimizer::adam ? Optimizer::sgd : Optimizer::adam; }, always},
        {"ema", [](Settings& s) { s.ema = 0.9; }, [](const Settings&) { return false; }},  // of the average alone
        {"gradient_clip", [](Settings& s) { s.gradient_clip = 1e-3; }, [](const Settings& s) { return s.optimizer == Optimizer::sgd; }},
        {"label_smoothing", [](Settings& s) { s.label_smoothing = 0.2; }, always},
        {"gen_augment", [](Settings& s) { s.gen_augment = s.gen_augment == Augment::off ? Augment::both : Augment::off; },
         [](const Settings& s) { return has_term(method_of(s), BatchOf::real); }},
        {"energy_l2", [](Settings& s) { s.energy_l2 += 0.2; }, samples},
        {"energy_l2_form", [](Settings& s) { s.energy_l2 = 0.3, s.energy_l2_form = EnergyL2::image; }, samples},
        {"class_conditional chain", [](Settings& s) { s.class_conditional = ClassConditional::chain; },
         [](const Settings& s) { return s.energy_head == Head::classes; }},
        {"class_conditional loss", [](Settings& s) { s.class_conditional = ClassConditional::loss; },
         [](const Settings& s) { return s.energy_head == Head::classes && !s.loss_is_of_classes(); }},
        {"p_x_y_weight", [](Settings& s) { s.p_x_y_weight = 0.5; }, always},
        {"energy_head", [](Settings& s) { s.energy_head = Head::energy; },
         [](const Settings& s) { return samples(s) && s.recipe != "m-jem"; }},
        {"inner_steps", [](Settings& s) { s.inner_steps = 7; }, samples},
        {"sgld_steps", [](Settings& s) { s.sgld_steps = 3; }, samples},
        {"sampling_norm",
         [](Settings& s) { s.sampling_norm = s.sampling_norm == SamplingNorm::batch ? SamplingNorm::running : SamplingNorm::batch; },
         [](const Settings& s) { return samples(s) && s.norm == NormKind::batch && !binary(s); }},
        {"init",
         [](Settings& s) { s.init = s.init == StartForm::gaussian ? StartForm::uniform : StartForm::gaussian, s.reinit_freq = 0.9; },
         samples},
        {"init images", [](Settings& s) { s.init = StartForm::images, s.init_data = "fashion-mnist", s.reinit_freq = 0.9; }, samples},
        {"grow_steps_at", [](Settings& s) { s.grow_steps_at = s.grow_steps_at > 0 ? 0 : 0.5; }, [](const Settings&) { return false; }},
        {"labels_per_class",
         [](Settings& s) {
             s.labels_per_class = 3;
             if (s.init == StartForm::informative) s.init = StartForm::gaussian;
         },
         always},
        {"p_x_weight", [](Settings& s) { s.p_x_weight = 0.4; }, always},
        {"p_y_given_x_weight", [](Settings& s) { s.p_y_given_x_weight = 0.4; }, always},
        {"attack_norm", [](Settings& s) { s.attack_norm = s.attack_norm == AttackNorm::linf ? AttackNorm::l2 : AttackNorm::linf; },
         attacks},
        {"attack_objective", [](Settings& s) { s.attack_objective = AttackObjective::authors; }, attacks},
        {"attack_steps", [](Settings& s) { s.attack_steps = 3; }, attacks},
    };
    return all;
}

bool finite(const Outcome& o) {
    return std::all_of(o.weights.begin(), o.weights.end(), [](double w) { return std::isfinite(w); });
}

Outcome train_alone(const Settings& s) {
    const auto device = make_cpu_device({.threads = 1});
    return train(*device, lone_rank(), s, {.iterations = 1});
}

}  // namespace

TEST_CASE("what_a_setting_says_holds_of_every_recipe_or_is_refused_with_a_reason") {
    size_t ran = 0, refused = 0;
    for (const std::string& name : recipe_names()) {
        const Outcome plain = train_alone(small_job_of(name));
        CHECK(finite(plain));
        for (const Change& change : changes()) {
            INFO(name << " with " << change.name);
            Settings s = small_job_of(name);
            change.make(s);
            try {
                validate(s);
                const Outcome changed = train_alone(s);
                ++ran;
                CHECK(finite(changed));
                if (change.touches(small_job_of(name))) CHECK((changed.weights != plain.weights || changed.statistics != plain.statistics));
            } catch (const InputError& e) {
                ++refused;
                const std::string why = e.what();
                CHECK(why.find("--") != std::string::npos);
                CHECK(why.find(". ") != std::string::npos);
            }
        }
    }
    CHECK(ran > 8 * refused);  // refusals are the exception
    CHECK(refused > 0);
}

}  // namespace jem
