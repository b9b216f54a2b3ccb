#include "engine/evaluation/purification.h"

#include <algorithm>

#include "engine/evaluation/apgd.h"
#include "engine/evaluation/attack_starts.h"

namespace jem {
namespace {

constexpr int kDrawBits = 22;  // an attack purifies its images less often than 2^22 times

}  // namespace

PurifiedAttacker::PurifiedAttacker(const TrainedNetwork& trained, AttackNorm norm, int64_t batch, const Purification& how)
    : network_(trained),
      norm_(norm),
      batch_(batch),
      pixels_(trained.size.pixels()),
      classes_(trained.classes),
      how_(how),
      chain_(network_.device(), network_.network(), network_.memory(),
             {.name = "purification",
              .count = batch * how.chains,
              .height = trained.size.height,
              .width = trained.size.width,
              .channels = trained.size.channels,
              .norm = NormMode::running,
              .head = trained.energy_head,
              .given_noise_steps = how.given_noise ? how.steps : 0,
              .first_step = how.start_noise > 0 ? 1 : 0},
             sgld_stepper({.noise = how.noise, .grad_clamp = 0}, scalars_, "purification_gradient_norm")),
      pass_(network_.network().add_pass(
          {.name = "attack", .batch = batch * how.chains, .norm = NormMode::running, .gradients = Gradients::input})),
      stepper_(attack_stepper(norm, limits_)) {
    Memory& memory = network_.memory();
    const size_t real = size_of(network_.device().real_type()), bytes = static_cast<size_t>(batch * pixels_) * real;
    x_ = memory.keep("samples", "attack/x", bytes);
    centre_ = memory.keep("samples", "attack/centre", bytes);
    gradient_ = memory.keep("samples", "attack/gradient", bytes * static_cast<size_t>(how.chains));
    norms_ = memory.keep("samples", "attack/norms", static_cast<size_t>(batch) * real);
    network_.ready([&] {
        classify();
        climb();
    });
    classify_ = capture(network_.device(), [&] { classify(); });
}

Array PurifiedAttacker::of_chain(Array all, int64_t chain) const {
    const int64_t count = all.count / how_.chains;
    all.data = static_cast<std::byte*>(all.data) + static_cast<size_t>(chain * count) * size_of(all.type);
    all.count = count;
    return all;
}

void PurifiedAttacker::classify() {
    if (how_.start_noise > 0) {
        Ops& ops = network_.device().ops();
        const Array x = chain_.images();
        ops.sgld_step(x, x, {}, network_.state(), noise_alone({.noise = how_.start_noise}));
        ops.advance_step(network_.state());  // its draw is step 0's
    }
    for (int64_t k = 0; k < how_.steps; ++k) chain_.step(network_.passes(), network_.state());
    network_.network().forward(pass_, network_.passes(), chain_.tensor());
}

// From the gradient at the logits of all chains to a step of the images.
void PurifiedAttacker::climb() {
    Device& device = network_.device();
    Tensor d_x = chain_.tensor();
    d_x.data = network_.memory().at(gradient_);
    network_.network().backward(pass_, network_.passes(), chain_.tensor(), &d_x);
    const Array all{d_x.data, d_x.type, d_x.count()}, sum = of_chain(all, 0);
    for (int64_t e = 1; e < how_.chains; ++e) device.ops().accumulate(sum, of_chain(all, e));
    stepper_->queue(device, {.x = of_batch(x_),
                             .gradient = sum,
                             .centre = of_batch(centre_),
                             .norms = {network_.memory().at(norms_), device.real_type(), batch_},
                             .values = {},
                             .noise = {},
                             .images = batch_,
                             .state = network_.state()});
}

// Of the purified images of all chains, [chains, batch, classes].
std::vector<double> PurifiedAttacker::logits() {
    Device& device = network_.device();
    device.ops().begin_iteration(network_.state(), draw_++, 0, 1, 1);
    classify_->replay();
    const Tensor out = network_.network().logits(pass_);
    return download_values(device, {out.data, out.type, out.count()});
}

std::vector<bool> PurifiedAttacker::wrong(const std::vector<double>& images, const std::vector<int32_t>& labels) {
    draw_ = 0;
    return verdict(images, labels);
}

std::vector<bool> PurifiedAttacker::verdict(const std::vector<double>& images, const std::vector<int32_t>& labels) {
    const int64_t count = std::ssize(labels), places = batch_ * how_.chains;
    std::vector<double> filled;  // all places hold chains of these images, in turn
    for (int64_t i = 0; i < places; ++i)
        filled.insert(filled.end(), images.begin() + i % count * pixels_, images.begin() + (i % count + 1) * pixels_);
    std::vector<double> sums(static_cast<size_t>(count * classes_), 0.0);
    for (int64_t found = 0; found < how_.verdict_chains;) {
        upload_values(network_.device(), chain_.images(), filled);
        const std::vector<double> all = logits();
        for (int64_t i = 0; i + count <= places && found < how_.verdict_chains; i += count, ++found)
            for (int64_t c = 0; c < count * classes_; ++c) sums[static_cast<size_t>(c)] += all[static_cast<size_t>(i * classes_ + c)];
    }
    std::vector<bool> out;
    for (int64_t n = 0; n < count; ++n)
        out.push_back(misclassified(std::span(sums).subspan(static_cast<size_t>(n * classes_), static_cast<size_t>(classes_)),
                                    labels[static_cast<size_t>(n)]));
    return out;
}

std::vector<bool> PurifiedAttacker::breaks(const ImageSet& set, const std::vector<int64_t>& images, const PgdAttack& attack,
                                           const Attacker::Done& done) {
    Device& device = network_.device();
    const AttackBatch batch = full_batch(set, images, batch_);
    std::vector<double> start = batch.centres;
    if (attack.random_start)
        start = attack_starts(batch.centres, batch.numbers,
                              {.norm = norm_, .radius = attack.limits.radius, .seed = attack.seed, .number = attack.restart});
    upload_values(device, of_batch(centre_), batch.centres);
    upload_values(device, of_batch(x_), start);
    limits_ = attack.limits;
    draw_ = (attack.restart + 1) << kDrawBits;
    const auto climb_graph = capture(device, [&] { climb(); });

    std::vector<bool> broken(images.size(), false);
    for (int64_t k = 0;; ++k) {
        const Array x = of_batch(x_);
        for (int64_t e = 0; e < how_.chains; ++e) device.copy(of_chain(chain_.images(), e).data, x.data, x.bytes());
        const std::vector<double> all = logits();
        std::vector<double> gradient(all.size());
        std::vector<size_t> doubtful;
        for (int64_t n = 0; n < batch_; ++n) {
            const auto at = static_cast<size_t>(n);
            std::vector<double> mean(static_cast<size_t>(classes_), 0.0);
            for (int64_t e = 0; e < how_.chains; ++e)
                for (size_t c = 0; c < mean.size(); ++c)
                    mean[c] += all[static_cast<size_t>((e * batch_ + n) * classes_) + c] / static_cast<double>(how_.chains);
            const LossAtLogits loss = loss_at_logits(ApgdLoss::cross_entropy, mean, batch.labels[at], 0);
            for (int64_t e = 0; e < how_.chains; ++e)
                std::copy(loss.gradient.begin(), loss.gradient.end(), gradient.begin() + (e * batch_ + n) * classes_);
            if (at < broken.size() && !broken[at] && (k == attack.steps || misclassified(mean, batch.labels[at]))) doubtful.push_back(at);
        }
        const std::vector<double> points = doubtful.empty() ? std::vector<double>() : download_values(device, x);
        if (k < attack.steps) {  // before the doubtful ones are looked at: that takes the memory of what this pass left for the way back
            const Tensor d_out = network_.network().d_logits(pass_);
            upload_values(device, {d_out.data, d_out.type, d_out.count()}, gradient);
            climb_graph->replay();
        }
        if (!doubtful.empty()) {
            std::vector<double> chosen;
            std::vector<int32_t> labels;
            for (const size_t n : doubtful) {
                const auto first = points.begin() + static_cast<int64_t>(n) * pixels_;
                chosen.insert(chosen.end(), first, first + pixels_);
                labels.push_back(batch.labels[n]);
            }
            const std::vector<bool> wrong = verdict(chosen, labels);
            for (size_t i = 0; i < doubtful.size(); ++i) broken[doubtful[i]] = wrong[i];
        }
        if (done) done(std::min(k + 1, attack.steps));
        if (k == attack.steps || std::all_of(broken.begin(), broken.end(), [](bool b) { return b; })) return broken;
    }
}

}  // namespace jem
