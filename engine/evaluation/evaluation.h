// One evaluation of a trained network: the images it is measured on, what several metrics read, and how it is interrupted and goes on.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/image_set.h"
#include "engine/evaluation/interrupted.h"
#include "engine/evaluation/journal.h"
#include "engine/evaluation/network_in_use.h"
#include "engine/settings/settings.h"
#include "kernels/random.h"

namespace jem {

enum class Protocol { engine, authors };

// A number as it was given: it names what was measured with it.
struct NamedNumber {
    std::string text;
    double value = 0;
};

struct PgdSettings {
    AttackNorm norm = AttackNorm::linf;
    std::vector<NamedNumber> eps;     // in 1/255 of the pixel range; empty: the paper's
    std::optional<double> step_size;  // likewise; none: 2, or 2.5 eps / steps with l2
    int64_t steps = 50, restarts = 1, images = 1000;
    bool random_start = true;
    int64_t purify_steps = 0, eot = 15;  // steps before an image is classified, 0: none; and the chains of them an attack sees
    double eot_noise = 0;                // deviation of the noise that each chain begins with
};

struct ApgdSettings {
    std::optional<NamedNumber> eps;  // in 1/255 of the pixel range; none: 8, or 128 with l2
    int64_t restarts = 1;            // images and norm are PGD's
};

struct LandscapeSettings {
    int64_t images = 1000;                          // of the training set
    int64_t points = 51, points_2d = 21;            // along an axis of [-1, 1]; 0: not measured
    std::function<void(Parameters&, Network&)> to;  // the weights at the other end of a line; empty: no line
};

enum class SamplesFrom { buffer, fresh };
struct SampleSettings {
    SamplesFrom from = SamplesFrom::fresh;
    int64_t count = 10000, steps = 20;  // of fresh chains, from p0
};

struct EvaluationSettings {
    uint64_t seed = 1;
    bool shuffled = true;  // n of N images: the first of the documented permutation, or of the file
    Protocol protocol = Protocol::engine;
    bool ood_px = true, ood_py = true, ood_pxgrad = true;  // scores
    PgdSettings pgd;
    ApgdSettings apgd;
    LandscapeSettings landscape;
    SampleSettings samples;
};

// Images that the evaluated network has drawn, or can draw.
struct DrawnImages {
    const Settings* settings = nullptr;                                                 // of fresh chains
    int64_t buffer_count = 0;                                                           // of the replay buffer; 0: there is none
    std::function<std::vector<double>(int64_t first, int64_t count)> buffer = nullptr;  // its images, [count, H, W, C] in [-1, 1]
    std::function<ImageSet()> starts = nullptr;  // what fresh chains are made from; null: the training set
};

// By whose features images are compared.
struct FeatureNetwork {
    TrainedNetwork network;
    std::string name;        // told with what is measured by it
    bool inception = false;  // FID's own: only then is the distance called so
    int64_t batch = 100;
    std::filesystem::path cache = {};  // folder of what is kept of reference sets; empty: nothing is
};

class SampleFeatures;

double seconds_since(std::chrono::steady_clock::time_point start);

// What a pass forward and backward to the images costs, in passes forward: backward to data is as many products.
inline constexpr double kGradientCost = 2;

class Evaluation {
public:
    struct Inputs {
        TrainedNetwork network;
        std::string split;                                      // of images, for names
        ImageSet images;                                        // that are evaluated, with labels
        std::function<ImageSet()> training;                     // the training set; called once, when a metric asks for it
        std::function<ImageSet()> reference = nullptr;          // of drawn images, likewise; null: the training set
        std::vector<ImageSet> others;                           // strangers, of the network's size
        std::vector<std::string> made;                          // strangers that are made: of made_set_names()
        std::optional<Predictions> predictions = std::nullopt;  // of images, where somebody made them already; with labels
        std::optional<FeatureNetwork> features = std::nullopt;
        std::optional<DrawnImages> drawn = std::nullopt;
        EvaluationSettings settings;
        Journal journal;
        std::function<void(const std::string& what, int64_t done, int64_t total)> progress;
        std::function<bool()> stop;
        std::function<void(const std::string& text)> tell = nullptr;
    };
    explicit Evaluation(Inputs inputs);
    ~Evaluation();

    const EvaluationSettings& settings() const { return in_.settings; }
    const TrainedNetwork& network() const { return in_.network; }
    const ImageSet& images() const { return in_.images; }
    const std::string& split() const { return in_.split; }
    const std::vector<ImageSet>& others() const { return in_.others; }
    const std::vector<std::string>& made() const { return in_.made; }
    const ImageSet& training();
    const ImageSet& reference();  // what drawn images are compared with
    const std::optional<FeatureNetwork>& features() const { return in_.features; }
    const std::optional<DrawnImages>& drawn() const { return in_.drawn; }
    Journal& journal() { return in_.journal; }
    void tell(const std::string& text) const {
        if (in_.tell) in_.tell(text);
    }
    // Tells it. Throws Interrupted where somebody asked to stop.
    void progress(const std::string& what, int64_t done, int64_t total) const;

    // Of all evaluated images; made when first asked for. with_gradients: gradient_norms too. std::runtime_error where logits are not
    // finite.
    const Predictions& predictions();
    double predicting_seconds() const { return predicting_seconds_; }  // that these took; 0 where they were given, or never asked for
    bool gradients() const { return gradients_; }
    void want_gradients() { gradients_ = true; }  // before predictions() is first called
    // Of other images, by the predictor that made those; `name` is the journal's.
    using MakeSource = std::function<Predictor::Source(Predictor&)>;
    Predictions predict(const std::string& name, int64_t count, const MakeSource& source);
    SampleFeatures& sample_features();
    // Seconds that an image takes forward: of one batch, the second time.
    double seconds_forward();
    // The same of the network for features.
    double seconds_features();

    // Numbers of the first `count` of `total` images, in the order that the settings give.
    std::vector<int64_t> first_images(int64_t count, int64_t total) const;

private:
    struct Running {
        NetworkInUse network;
        Predictor predictor;
        explicit Running(const Evaluation& evaluation);
    };
    Running& running();

    Inputs in_;
    bool gradients_ = false;
    std::optional<double> seconds_forward_;
    double predicting_seconds_ = 0;
    std::unique_ptr<Running> running_;
    std::optional<Predictions> predictions_;
    std::optional<ImageSet> training_, reference_;
    std::unique_ptr<SampleFeatures> sample_features_;
};

// The images of these numbers, [n, H*W*C] in [-1, 1], as a predictor's source; `set` and `numbers` must outlive it.
Predictor::Source chosen_images(Predictor& predictor, const ImageSet& set, const std::vector<int64_t>& numbers);

}  // namespace jem
