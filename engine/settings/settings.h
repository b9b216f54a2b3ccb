// Every hyper-parameter of a run, and its JSON form (a run's config.json). Flags, keys and ranges: table.h.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/settings/enums.h"
#include "engine/settings/method.h"
#include "kernels/ops.h"

namespace jem {

enum class Augment { off, flip, crop, both };  // what is done to an image, where its data set may be flipped
enum class Flip { automatic, on, off };        // automatic: as the data set has it
enum class InputNoiseOn { generative, both };  // the real images of p(x) alone, or the labelled ones too
enum class OnDivergence { rollback, stop };
enum class BestBy { accuracy, energy_gap, frechet };

struct Settings {
    std::string recipe = "sada-jem";
    uint64_t seed = 1;

    // Network. Sizes of 0: as the data set has them.
    NetworkKind network = NetworkKind::wide_resnet;
    int64_t depth = 28, width = 10;
    NormKind norm = NormKind::batch;
    NormStatistics norm_statistics = NormStatistics::rank;
    ActInit act_init = ActInit::first;
    bool spectral_norm = false;
    double dropout = 0;  // share of the values between a block's two convolutions
    int64_t in_channels = 0, image_size = 0, num_classes = 0;
    std::string precision = "f32";
    Head energy_head = Head::classes;  // whose LSE is minus the energy
    ConvAlgorithm conv_algorithm = ConvAlgorithm::automatic;
    bool recompute = false;  // keep one activation a block instead of two

    // Data
    std::string data, data_dir;
    int64_t n_valid = 0;                 // images held out of the training set
    int64_t labels_per_class = 0;        // training images of each class whose label is used; 0: all
    std::optional<uint64_t> split_seed;  // chooses both; none: seed does
    bool augment = true;
    Augment gen_augment = Augment::off;
    Flip flip = Flip::automatic;  // whether augmentation may mirror images
    bool skip_damaged = false;    // files of `images` that cannot be read
    double input_noise = 0;
    InputNoiseOn input_noise_on = InputNoiseOn::generative;

    // Schedule
    int64_t epochs = 200;
    int64_t iterations = -1;  // -1: as many as the epochs have
    int64_t batch_size = 128, gen_batch_size = 64;
    Optimizer optimizer = Optimizer::sgd;
    double lr = 0.1, momentum = 0.9, weight_decay = 5e-4;
    double adam_beta1 = 0.9;
    double adam_clamp = 0;  // of a gradient's values, in deviations; 0: none
    int64_t warmup_iterations = 1000;
    LrSchedule lr_schedule = LrSchedule::step;
    std::vector<int64_t> lr_milestones = {60, 120, 180};  // epochs
    double lr_decay = 0.2;
    double ema = 0;            // 0: none
    double gradient_clip = 0;  // largest norm of the gradient that the optimizer gets; 0: none
    double label_smoothing = 0;

    // Sampling
    int64_t sgld_steps = 10;
    double grow_steps_at = 0;  // AUROC from which K grows, beginning with 0; 0: K stays
    double sgld_step_size = 1, sgld_noise = 0, sgld_grad_clamp = 1;
    bool sgld_pixel_clamp = true;
    bool sgld_noise_first = false;  // it moves x before the gradient is taken
    // JEM++'s proximal step: through the first convolution alone, which is linear, so that all of them go the same way. 0: a plain step.
    int64_t inner_steps = 0;
    double inner_step_size = 0.2, outer_step_size = 0;
    SamplingNorm sampling_norm = SamplingNorm::batch;
    int64_t buffer_size = 10000;
    BufferOrder buffer_order = BufferOrder::in_place;
    double reinit_freq = 0.05;
    StartForm init = StartForm::informative;
    std::string init_data;  // of StartForm::images: the set, NAME or NAME:DIR

    // Objective
    SamForm sam = SamForm::sam;
    double rho = 0.2;
    bool sam_local = false;  // with several ranks: each perturbs along its own gradient
    double p_x_weight = 1, p_y_given_x_weight = 1, p_x_y_weight = 0, energy_l2 = 0;
    EnergyL2 energy_l2_form = EnergyL2::mean;
    ClassConditional class_conditional = ClassConditional::off;

    // Adversarial images
    AttackObjective attack_objective = AttackObjective::energy;
    AttackNorm attack_norm = AttackNorm::linf;
    double attack_eps = 8, attack_step_size = 2;  // in 1/255 of the pixels' range
    int64_t attack_steps = 10;
    double attack_weight = 0.1, attack_ce_weight = 1;  // of eb-jdat's two terms on them

    // Run folder
    std::string start_from;           // a checkpoint whose weights the run begins with; empty: random ones
    int64_t checkpoint_interval = 0;  // iterations; 0: at the end of each epoch only
    int64_t archive_interval = 0;     // epochs; 0: none
    int64_t metric_interval = 0;      // epochs between measurements of `metrics`; 0: none
    std::string metrics = "accuracy,ece", features;
    int64_t log_interval = 10;
    int64_t sample_interval = 1;  // epochs
    int64_t sample_every = 0;     // iterations; 0: by epochs alone
    int64_t keep = 2;             // states of checkpoints, the last one among them
    BestBy best_by = BestBy::accuracy;
    OnDivergence on_divergence = OnDivergence::rollback;
    int64_t max_rollbacks = 5;        // in a row
    double gap_deviations = 50;       // of the energy gap from its last gap_window iterations, that count as divergence; 0: none do
    int64_t gap_window = 500;         // iterations
    int64_t chance_iterations = 200;  // of an accuracy at chance that count as divergence; 0: none do

    // In place of the recipe's, whose values of the settings above hold all the same.
    std::optional<Method> own_method;

    bool generates() const;  // by x-
    bool samples() const;    // by chains of the replay buffer, of any kind
    bool chains_are_of_classes() const { return class_conditional != ClassConditional::off && energy_head == Head::classes; }
    bool loss_is_of_classes() const { return chains_are_of_classes() && class_conditional == ClassConditional::loss; }
    bool classifies() const;  // labelled images, or such as are made of them
    // Of so many training images.
    int64_t num_labelled(int64_t images) const { return labels_per_class > 0 ? labels_per_class * num_classes : images; }
    // An epoch sees the labelled images once, where there are any; those of p(x) where few of these have a label.
    bool epochs_are_of_labelled() const { return (classifies() || p_x_y_weight != 0) && !(labels_per_class > 0 && generates()); }
    int64_t images_per_iteration() const { return epochs_are_of_labelled() ? batch_size : gen_batch_size; }
    int64_t iterations_per_epoch(int64_t images) const {
        return (epochs_are_of_labelled() ? num_labelled(images) : images) / images_per_iteration();
    }
    uint64_t seed_of_split() const { return split_seed.value_or(seed); }
    SgldSettings sgld() const;
};

// For people: the recipe, and whether its steps are others.
std::string title_of(const Settings& settings);
// Of settings that do not sample.
std::string why_no_samples(const Settings& settings);

// Throws InputError naming the flag for values that contradict each other or are out of range.
void validate(const Settings& settings);

nlohmann::ordered_json to_json(const Settings& settings);
// Values that are absent keep what `settings` holds; an unknown key or a wrong type is an InputError that names it and `where` it stands.
void merge_json(Settings& settings, const nlohmann::json& json, const std::string& where = "the configuration");
// A configuration that a person gives: on top of the recipe that it names.
Settings settings_of_config(const nlohmann::json& json, const std::string& where = "the configuration");
// What a run has written: settings younger than it mean what it did.
Settings settings_of_run(const nlohmann::json& json, const std::string& where = "the configuration");

// Names as on the command line.
template <class E>
struct EnumNames;
#define JEM_ENUM_NAMES(Type, ...)                                                       \
    template <>                                                                         \
    struct EnumNames<Type> {                                                            \
        static const std::vector<std::pair<std::string, Type>>& all() {                 \
            static const std::vector<std::pair<std::string, Type>> names = __VA_ARGS__; \
            return names;                                                               \
        }                                                                               \
    }
JEM_ENUM_NAMES(Optimizer, {{"sgd", Optimizer::sgd}, {"adam", Optimizer::adam}});
JEM_ENUM_NAMES(LrSchedule, {{"step", LrSchedule::step}, {"cosine", LrSchedule::cosine}});
JEM_ENUM_NAMES(Augment, {{"off", Augment::off}, {"flip", Augment::flip}, {"crop", Augment::crop}, {"on", Augment::both}});
JEM_ENUM_NAMES(Flip, {{"auto", Flip::automatic}, {"on", Flip::on}, {"off", Flip::off}});
JEM_ENUM_NAMES(InputNoiseOn, {{"generative", InputNoiseOn::generative}, {"both", InputNoiseOn::both}});
JEM_ENUM_NAMES(OnDivergence, {{"rollback", OnDivergence::rollback}, {"stop", OnDivergence::stop}});
JEM_ENUM_NAMES(BestBy, {{"accuracy", BestBy::accuracy}, {"energy-gap", BestBy::energy_gap}, {"frechet", BestBy::frechet}});
JEM_ENUM_NAMES(NetworkKind, {{"wide-resnet", NetworkKind::wide_resnet}, {"igebm", NetworkKind::igebm}});
JEM_ENUM_NAMES(BufferOrder, {{"in-place", BufferOrder::in_place}, {"fifo", BufferOrder::fifo}});
JEM_ENUM_NAMES(NormKind, {{"none", NormKind::none},
                          {"batch", NormKind::batch},
                          {"instance", NormKind::instance},
                          {"layer", NormKind::layer},
                          {"act", NormKind::act}});
JEM_ENUM_NAMES(ActInit, {{"first", ActInit::first}, {"data", ActInit::data}});
JEM_ENUM_NAMES(NormStatistics, {{"rank", NormStatistics::rank}, {"job", NormStatistics::job}});
JEM_ENUM_NAMES(EnergyL2, {{"mean", EnergyL2::mean}, {"image", EnergyL2::image}, {"m-jem", EnergyL2::m_jem}});
JEM_ENUM_NAMES(ClassConditional, {{"off", ClassConditional::off}, {"chain", ClassConditional::chain}, {"loss", ClassConditional::loss}});
JEM_ENUM_NAMES(AttackObjective, {{"energy", AttackObjective::energy}, {"ce", AttackObjective::ce}, {"authors", AttackObjective::authors}});
JEM_ENUM_NAMES(AttackNorm, {{"linf", AttackNorm::linf}, {"l2", AttackNorm::l2}});
JEM_ENUM_NAMES(SamplingNorm, {{"batch", SamplingNorm::batch}, {"running", SamplingNorm::running}});
JEM_ENUM_NAMES(StartForm, {{"informative", StartForm::informative},
                           {"uniform", StartForm::uniform},
                           {"gaussian", StartForm::gaussian},
                           {"images", StartForm::images}});
JEM_ENUM_NAMES(SamForm, {{"none", SamForm::none}, {"sam", SamForm::sam}, {"asam", SamForm::asam}, {"asam-sign", SamForm::asam_sign}});
JEM_ENUM_NAMES(Head, {{"lse", Head::classes}, {"linear", Head::energy}});
JEM_ENUM_NAMES(ConvAlgorithm, {{"auto", ConvAlgorithm::automatic}, {"direct", ConvAlgorithm::direct}, {"own", ConvAlgorithm::own}});
JEM_ENUM_NAMES(BatchOf, {{"labelled", BatchOf::labelled},
                         {"real", BatchOf::real},
                         {"chain", BatchOf::chain},
                         {"labelled-chain", BatchOf::labelled_chain},
                         {"adversarial", BatchOf::adversarial}});
JEM_ENUM_NAMES(ChainObjective, {{"lse", ChainObjective::lse},
                                {"cross-entropy", ChainObjective::cross_entropy},
                                {"class-logit", ChainObjective::class_logit},
                                {"class-energy", ChainObjective::class_energy},
                                {"apart", ChainObjective::apart}});
JEM_ENUM_NAMES(ChainStepper, {{"sgld", ChainStepper::sgld}, {"attack", ChainStepper::attack}, {"normalised", ChainStepper::normalised}});
#undef JEM_ENUM_NAMES

template <class E>
std::string name_of(E value) {
    for (const auto& [name, v] : EnumNames<E>::all())
        if (v == value) return name;
    return "?";
}

}  // namespace jem
