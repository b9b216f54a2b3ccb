#include "engine/evaluation/pgd.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/evaluation/attack_batches.h"
#include "engine/evaluation/attack_starts.h"
#include "engine/evaluation/classification.h"
#include "engine/evaluation/intervals.h"
#include "engine/evaluation/metric.h"
#include "engine/evaluation/purification.h"

namespace jem {
namespace {

constexpr int64_t kLargestBatch = 64;
constexpr int64_t kImagesAPiece = 256;     // of work that is kept; within one an image whose attack has ended makes place for the next
constexpr int64_t kLargestPass = 300;      // images of all chains where they are purified
constexpr int64_t kStepsBetweenLooks = 5;  // only then is an attack of a broken image known to have ended
constexpr double kRelativeL2Step = 2.5;    // of eps / steps: from any point of the ball each other one can be reached
constexpr const char* kFile = "robustness.csv";

// The paper's (Fig. 5).
std::vector<NamedNumber> default_eps(AttackNorm norm) {
    std::vector<NamedNumber> all;
    for (const int eps : norm == AttackNorm::linf ? std::vector{1, 2, 4, 8, 12, 16, 22, 30} : std::vector{32, 64, 128})
        all.push_back({std::to_string(eps), static_cast<double>(eps)});
    return all;
}

std::vector<NamedNumber> eps_of(const PgdSettings& s) { return s.eps.empty() ? default_eps(s.norm) : s.eps; }

double step_of(const PgdSettings& s, Protocol protocol, double eps) {
    if (s.step_size) return *s.step_size;
    const bool of_eps = s.norm == AttackNorm::l2 && protocol == Protocol::engine && s.steps > 0;
    return of_eps ? kRelativeL2Step * eps / static_cast<double>(s.steps) : 2;
}

// The attack that the settings ask for, made when it is first needed.
class ChosenAttack {
public:
    ChosenAttack(Evaluation& e, const PgdSettings& s, int64_t images)
        : e_(e),
          purification_{.steps = s.purify_steps, .chains = s.eot, .start_noise = s.eot_noise},
          norm_(s.norm),
          batch_(purifies() ? std::min(images, std::max<int64_t>(1, kLargestPass / s.eot))
                            : e.network().best_batch(kLargestBatch, images)) {}

    bool purifies() const { return purification_.steps > 0 || purification_.start_noise > 0; }
    int64_t batch() const { return batch_; }
    int64_t piece() const { return purifies() ? batch_ : std::max(kImagesAPiece, batch_); }
    std::string name() const {
        if (!purifies()) return "";
        return fmt::format(" through {} steps of {} chains", purification_.steps, purification_.chains) +
               (purification_.start_noise > 0 ? fmt::format(" from noise of {}", purification_.start_noise) : "");
    }

    // Those of the images that are classified right without an attack.
    std::vector<int64_t> right(const std::vector<int64_t>& images) {
        if (!purifies()) {
            const Predictions& clean = e_.predictions();
            std::vector<int64_t> found;
            for (const int64_t n : images)
                if (classified(clean, n).right(clean, n)) found.push_back(n);
            return found;
        }
        return unbroken(e_, images, {.name = "pgd none" + name(), .batch = batch_, .steps = 1},
                        [&](const std::vector<int64_t>& batch, const Attacker::Done&) {
                            std::vector<int32_t> labels;
                            for (const int64_t n : batch) labels.push_back(e_.images().labels[static_cast<size_t>(n)]);
                            return purified().wrong(pixels_of(e_.images(), batch), labels);
                        });
    }

    std::vector<bool> breaks(const std::vector<int64_t>& images, const PgdAttack& attack, const Attacker::Done& done) {
        if (purifies()) return purified().breaks(e_.images(), images, attack, done);
        if (!plain_) plain_.emplace(e_.network(), norm_, batch_);
        return plain_->breaks(e_.images(), images, attack, done);
    }

private:
    PurifiedAttacker& purified() {
        if (!purified_) purified_.emplace(e_.network(), norm_, batch_, purification_);
        return *purified_;
    }

    Evaluation& e_;
    Purification purification_;
    AttackNorm norm_;
    int64_t batch_;
    std::optional<Attacker> plain_;
    std::optional<PurifiedAttacker> purified_;
};

MetricResult measure(Evaluation& e) {
    const PgdSettings& s = e.settings().pgd;
    const std::vector<int64_t> images = e.first_images(s.images, e.images().count());
    ChosenAttack chosen(e, s, std::ssize(images));
    const std::vector<int64_t> right = chosen.right(images);  // an image that is misclassified as it is needs no attack

    const std::string norm = s.norm == AttackNorm::linf ? "linf" : "l2";
    MetricResult result;
    result.values["robust_accuracy"] = nlohmann::ordered_json::object();
    result.values["robust_accuracy_interval"] = nlohmann::ordered_json::object();
    std::string csv = "norm,eps,robust_accuracy,low,high,images\n";
    for (const NamedNumber& eps : eps_of(s)) {
        std::vector<int64_t> left = right;
        for (int64_t restart = 0; restart < s.restarts && eps.value > 0 && !left.empty(); ++restart) {
            const double step = step_of(s, e.settings().protocol, eps.value);
            const PgdAttack attack = {.limits = {.step_size = in_units_of_x(step), .radius = in_units_of_x(eps.value)},
                                      .steps = s.steps,
                                      .random_start = s.random_start,
                                      .restart = static_cast<uint32_t>(restart),
                                      .seed = e.settings().seed};
            left =
                unbroken(e, left,
                         {.name = fmt::format("pgd {} eps {} step {} of {} start {}{}{}", norm, eps.text, step, s.steps,
                                              s.random_start ? "" : "at the image ", restart, chosen.name()),
                          .batch = chosen.piece(),
                          .steps = s.steps},
                         [&](const std::vector<int64_t>& batch, const Attacker::Done& done) { return chosen.breaks(batch, attack, done); });
        }
        const double robust = static_cast<double>(left.size()) / static_cast<double>(images.size());
        const Interval interval = wilson_interval(std::ssize(left), std::ssize(images));
        result.values["robust_accuracy"][eps.text] = robust;
        result.values["robust_accuracy_interval"][eps.text] = {interval.low, interval.high};
        csv += fmt::format("{},{},{},{},{},{}\n", norm, eps.text, robust, interval.low, interval.high, images.size());
    }
    result.values["pgd"] = {{"norm", norm},           {"images", images.size()},        {"steps", s.steps},
                            {"restarts", s.restarts}, {"random_start", s.random_start}, {"purify_steps", s.purify_steps}};
    if (chosen.purifies()) result.values["pgd"]["eot"] = s.eot;
    if (s.eot_noise > 0) result.values["pgd"]["eot_noise"] = s.eot_noise;
    result.files.emplace_back(kFile, csv);
    return result;
}

// At most: an attack of a broken image ends early. With purification those that are doubtful on the way come on top.
Cost cost(Evaluation& e) {
    const PgdSettings& s = e.settings().pgd;
    const auto images = static_cast<double>(std::min(s.images, e.images().count()));
    const auto attacks = static_cast<double>(eps_of(s).size()) * static_cast<double>(s.restarts);
    const auto steps = static_cast<double>(s.steps);
    if (s.purify_steps == 0 && s.eot_noise == 0) return {.forward = images * attacks, .gradient = images * attacks * steps};
    const auto purify = static_cast<double>(s.purify_steps), eot = static_cast<double>(s.eot);
    const double verdicts = images * (1 + attacks) * static_cast<double>(Purification{}.verdict_chains);
    return {.forward = verdicts, .gradient = verdicts * purify + images * attacks * steps * eot * (purify + 1)};
}

}  // namespace

Attacker::Attacker(const TrainedNetwork& trained, AttackNorm norm, int64_t batch)
    : network_(trained),
      norm_(norm),
      batch_(batch),
      chain_(network_.device(), network_.network(), network_.memory(),
             {.name = "attack",
              .count = batch,
              .height = trained.size.height,
              .width = trained.size.width,
              .channels = trained.size.channels,
              .objective = ChainObjective::cross_entropy,
              .norm = NormMode::running},
             attack_stepper(norm, limits_)) {
    network_.ready([&] {
        chain_.step(network_.passes(), network_.state());
        chain_.look(network_.passes(), network_.state());
    });
}

// Puts images of these numbers, as many as places, where their attack begins.
void Attacker::load(const ImageSet& set, const std::vector<int64_t>& numbers, const std::vector<int64_t>& places, const PgdAttack& attack) {
    Device& device = network_.device();
    const AttackBatch batch = full_batch(set, numbers, std::ssize(numbers));
    std::vector<double> start = batch.centres;
    if (attack.random_start)
        start = attack_starts(batch.centres, batch.numbers,
                              {.norm = norm_, .radius = attack.limits.radius, .seed = attack.seed, .number = attack.restart});
    const int64_t pixels = chain_.images().count / batch_;
    for (int64_t i = 0; i < std::ssize(places); ++i) {
        const int64_t place = places[static_cast<size_t>(i)];
        const auto image = [&](const std::vector<double>& of) {
            return std::span(of).subspan(static_cast<size_t>(i * pixels), static_cast<size_t>(pixels));
        };
        upload_values(device, chain_.centre().slice(place * pixels, pixels), image(batch.centres));
        upload_values(device, chain_.images().slice(place * pixels, pixels), image(start));
        upload_values(device, chain_.hits().slice(place, 1), std::vector<double>{0});
        device.upload(chain_.labels().slice(place, 1).data, &batch.labels[static_cast<size_t>(i)], sizeof(int32_t));
    }
}

std::vector<bool> Attacker::breaks(const ImageSet& set, const std::vector<int64_t>& images, const PgdAttack& attack, const Done& done) {
    Device& device = network_.device();
    limits_ = attack.limits;
    device.ops().begin_iteration(network_.state(), attack.restart, 0, 1, 1);
    const auto step = capture(device, [&] { chain_.step(network_.passes(), network_.state()); });

    // An image whose attack has ended makes place for the next one; those that are left over at the end are attacked for nothing.
    struct Place {
        int64_t image = -1, steps = 0, looks = 0;  // its number among the images; none: -1
    };
    std::vector<Place> places(static_cast<size_t>(batch_));
    std::vector<bool> broken(images.size(), false);
    const int64_t count = std::ssize(images);
    int64_t loaded = 0, ended = 0;
    while (ended < count) {
        std::vector<int64_t> numbers, free;
        for (int64_t i = 0; i < batch_; ++i) {
            Place& place = places[static_cast<size_t>(i)];
            const bool at_first = loaded < count || place.looks == 0;  // a first batch is filled up with what it has
            if (place.image >= 0 || !at_first) continue;
            free.push_back(i);
            numbers.push_back(images[static_cast<size_t>(loaded < count ? loaded : i % count)]);
            place = {.image = loaded < count ? loaded++ : -1};
        }
        if (!free.empty()) load(set, numbers, free, attack);
        int64_t steps = kStepsBetweenLooks;
        for (const Place& place : places)
            if (place.image >= 0) steps = std::min(steps, attack.steps - place.steps);
        for (int64_t k = 0; k < steps; ++k) step->replay();
        bool at_the_end = false;
        for (Place& place : places) {
            place.steps += steps;
            place.looks += steps;
            at_the_end = at_the_end || (place.image >= 0 && place.steps == attack.steps);
        }
        if (at_the_end) {
            chain_.look(network_.passes(), network_.state());
            for (Place& place : places) ++place.looks;
        }
        const std::vector<double> hits = download_values(device, chain_.hits());
        int64_t made = 0;
        for (size_t i = 0; i < places.size(); ++i) {
            Place& place = places[i];
            if (place.image < 0) continue;
            const bool breaks = hits[i] < static_cast<double>(place.looks);
            if (breaks || place.steps == attack.steps) {
                broken[static_cast<size_t>(place.image)] = breaks;
                place.image = -1;
                ++ended;
            } else {
                made += place.steps;
            }
        }
        if (done) done((ended * attack.steps + made) / count);
    }
    return broken;
}

Metric pgd_metric() {
    return {.name = "pgd",
            .help = "accuracy under attacks of a growing size, and robustness.csv",
            .measure = measure,
            .file_names = {kFile},
            .cost = cost};
}

}  // namespace jem
