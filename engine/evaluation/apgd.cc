#include "engine/evaluation/apgd.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/evaluation/attack_batches.h"
#include "engine/evaluation/attack_starts.h"
#include "engine/evaluation/classification.h"
#include "engine/evaluation/intervals.h"
#include "engine/evaluation/metric.h"
#include "engine/sampling/steppers.h"

namespace jem {
namespace {

constexpr double kTiny = 1e-12;  // AutoAttack's, of the ratio's divisor
// Of the first, the shortest and the shrinking period between looks at the step size, in steps of the whole.
constexpr double kFirstPeriod = 0.22, kLeastPeriod = 0.06, kShorter = 0.03;
constexpr double kRising = 0.75;    // the share of steps that must raise the loss for the size to stay
constexpr double kMomentum = 0.75;  // of the way ahead; the rest goes on as before
constexpr int64_t kLargestBatch = 100, kTargets = 9;
constexpr double kEpsLinf = 8, kEpsL2 = 128;
constexpr uint32_t kFirstStart = 1000000;  // PGD's restarts are numbered from 0

int64_t of_steps(double share, int64_t steps) { return std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(steps))); }

// When the step size of each image is halved, and the attack goes back to its best point.
class StepSizes {
public:
    StepSizes(int64_t images, int64_t steps, double first, const std::vector<double>& losses)
        : sizes(static_cast<size_t>(images), first),
          least_(of_steps(kLeastPeriod, steps)),
          shorter_(of_steps(kShorter, steps)),
          period_(of_steps(kFirstPeriod, steps)),
          best_at_check_(losses),
          halved_(static_cast<size_t>(images), true) {}

    // After a step with these losses; marks the images whose size was halved. Empty where it was no time to look.
    std::vector<int32_t> look(const std::vector<double>& losses, const std::vector<double>& best) {
        history_.push_back(losses);
        if (++since_check_ < period_) return {};
        std::vector<int32_t> marked(losses.size(), 0);
        for (size_t n = 0; n < losses.size(); ++n) {
            int64_t rises = 0;
            for (int64_t c = 0; c < period_; ++c) {
                const int64_t at = std::ssize(history_) - 1 - c;
                rises += history_[static_cast<size_t>(at)][n] > (at > 0 ? history_[static_cast<size_t>(at - 1)][n] : 0.0) ? 1 : 0;
            }
            const bool stuck = !halved_[n] && best_at_check_[n] >= best[n];
            halved_[n] = stuck || static_cast<double>(rises) <= kRising * static_cast<double>(period_);
            best_at_check_[n] = best[n];
            if (!halved_[n]) continue;
            sizes[n] /= 2;
            marked[n] = 1;
        }
        since_check_ = 0;
        period_ = std::max(period_ - shorter_, least_);
        return marked;
    }

    std::vector<double> sizes;

private:
    int64_t least_, shorter_, period_, since_check_ = 0;
    std::vector<std::vector<double>> history_;  // of losses, step by step
    std::vector<double> best_at_check_;
    std::vector<bool> halved_;
};

std::vector<int64_t> sorted(std::span<const double> logits) {
    std::vector<int64_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    return order;
}

}  // namespace

bool misclassified(std::span<const double> logits, int64_t label) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin() != label;
}

LossAtLogits loss_at_logits(ApgdLoss loss, std::span<const double> z, int64_t label, int64_t target) {
    LossAtLogits out{0, std::vector<double>(z.size(), 0.0)};
    const auto at = [&](int64_t y) { return z[static_cast<size_t>(y)]; };
    const auto add = [&](int64_t y, double v) { out.gradient[static_cast<size_t>(y)] += v; };
    const std::vector<int64_t> order = sorted(z);
    if (loss == ApgdLoss::cross_entropy) {
        double sum = 0;
        for (const double v : z) sum += std::exp(v - at(order[0]));
        for (size_t y = 0; y < z.size(); ++y) out.gradient[y] = std::exp(z[y] - at(order[0])) / sum;
        add(label, -1);
        out.value = at(order[0]) + std::log(sum) - at(label);
        return out;
    }
    const bool targeted = loss == ApgdLoss::targeted_dlr;
    const int64_t other = targeted ? target : order[0] == label ? order[1] : order[0];
    const double above = at(label) - at(other);
    const double below = at(order[0]) - (targeted ? (at(order[2]) + at(order[3])) / 2 : at(order[2])) + kTiny;
    out.value = -above / below;
    add(label, -1 / below);
    add(other, 1 / below);
    const double slope = above / (below * below);
    add(order[0], slope);
    if (targeted) {
        add(order[2], -slope / 2);
        add(order[3], -slope / 2);
    } else {
        add(order[2], -slope);
    }
    return out;
}

Apgd::Apgd(const TrainedNetwork& trained, AttackNorm norm, int64_t batch)
    : network_(trained), norm_(norm), batch_(batch), pixels_(trained.size.pixels()), classes_(trained.classes), size_(trained.size) {
    pass_ = network_.network().add_pass({.name = "attack", .batch = batch, .norm = NormMode::running, .gradients = Gradients::input});
    Memory& memory = network_.memory();
    const size_t real = size_of(network_.device().real_type()), each = static_cast<size_t>(batch);
    for (const auto& [slot, name] : {std::pair{&x_, "x"},
                                     {&before_, "before"},
                                     {&ahead_, "ahead"},
                                     {&gradient_, "gradient"},
                                     {&centre_, "centre"},
                                     {&best_, "best"},
                                     {&best_gradient_, "best gradient"}})
        *slot = memory.keep("samples", std::string("attack/") + name, each * static_cast<size_t>(pixels_) * real);
    norms_ = memory.keep("samples", "attack/norms", each * real);
    scales_ = memory.keep("samples", "attack/scales", each * real);
    marked_ = memory.keep("samples", "attack/marked", each * sizeof(int32_t));
    network_.ready([&] {
        forward();
        backward();
        step(1, 1);
    });
}

Tensor Apgd::x() {
    return {network_.memory().at(x_), network_.device().real_type(), batch_, size_.channels, size_.height, size_.width, size_.channels};
}

void Apgd::forward() { network_.network().forward(pass_, network_.passes(), x()); }

void Apgd::backward() {
    Tensor d_x = x();
    d_x.data = network_.memory().at(gradient_);
    network_.network().backward(pass_, network_.passes(), x(), &d_x);
}

// By each image's own step size along the gradient, with momentum.
void Apgd::step(double radius, double share) {
    Ops& ops = network_.device().ops();
    network_.device().copy(images(ahead_).data, images(x_).data, images(x_).bytes());
    if (norm_ == AttackNorm::linf) {
        ops.sign_step(images(ahead_), images(gradient_), images(centre_), 1, radius, values(scales_));
    } else {
        ops.normalised_step(images(ahead_), images(gradient_), values(norms_), 1, values(scales_));
        ops.project_on_ball(images(ahead_), images(centre_), values(norms_), radius);
    }
    ops.momentum_step(images(x_), images(before_), images(ahead_), share);
    if (norm_ == AttackNorm::linf)
        ops.sign_step(images(x_), images(gradient_), images(centre_), 0, radius);  // no step: back within reach
    else
        ops.project_on_ball(images(x_), images(centre_), values(norms_), radius);
}

void Apgd::copy_marked(Slot to, Slot from, const std::vector<int32_t>& marked) {
    const Array on_device{network_.memory().at(marked_), DType::i32, batch_};
    network_.device().upload(on_device.data, marked.data(), marked.size() * sizeof(int32_t));
    network_.device().ops().copy_images(images(to), images(from), on_device);
}

ApgdResult Apgd::run(const ImageSet& set, const std::vector<int64_t>& numbers, const std::vector<int64_t>& targets,
                     const ApgdAttack& attack, const std::function<void(int64_t)>& done) {
    Device& device = network_.device();
    const auto n_images = static_cast<int64_t>(numbers.size());
    const AttackBatch batch = full_batch(set, numbers, batch_);
    const std::vector<double>& centres = batch.centres;
    std::vector<double> start = attack.begin;
    if (start.empty())
        start = attack_starts(
            centres, batch.numbers,
            {.norm = norm_, .radius = attack.radius, .within = AttackStart::Within::edge, .seed = attack.seed, .number = attack.start});
    while (start.size() < centres.size()) start.push_back(start[start.size() - static_cast<size_t>(n_images * pixels_)]);
    upload_values(device, images(centre_), centres);
    upload_values(device, images(x_), start);
    upload_values(device, images(before_), start);

    std::vector<bool> broken(numbers.size(), false);
    std::vector<double> losses(static_cast<size_t>(batch_));
    const auto forward_graph = capture(device, [&] { forward(); });
    const auto backward_graph = capture(device, [&] { backward(); });
    // Losses and gradient where x is.
    const auto look = [&] {
        forward_graph->replay();
        const Tensor out = network_.network().logits(pass_), d_out = network_.network().d_logits(pass_);
        const std::vector<double> logits = download_values(device, {out.data, out.type, out.count()});
        std::vector<double> gradient;
        for (int64_t i = 0; i < batch_; ++i) {
            const auto z = std::span(logits).subspan(static_cast<size_t>(i * classes_), static_cast<size_t>(classes_));
            const auto at = static_cast<size_t>(i);
            const LossAtLogits loss =
                loss_at_logits(attack.loss, z, batch.labels[at], targets.empty() ? 0 : targets[static_cast<size_t>(i % n_images)]);
            losses[at] = loss.value;
            gradient.insert(gradient.end(), loss.gradient.begin(), loss.gradient.end());
            if (i < n_images) broken[at] = broken[at] || misclassified(z, batch.labels[at]);
        }
        upload_values(device, {d_out.data, d_out.type, d_out.count()}, gradient);
        backward_graph->replay();
    };
    look();
    device.copy(images(best_).data, images(x_).data, images(x_).bytes());
    device.copy(images(best_gradient_).data, images(gradient_).data, images(x_).bytes());
    std::vector<double> best = losses;
    StepSizes sizes(batch_, attack.steps, 2 * attack.radius, losses);
    const auto first_step = capture(device, [&] { step(attack.radius, 1); });
    const auto next_step = capture(device, [&] { step(attack.radius, kMomentum); });
    for (int64_t k = 0; k < attack.steps; ++k) {
        if (std::all_of(broken.begin(), broken.end(), [](bool b) { return b; })) break;
        upload_values(device, values(scales_), sizes.sizes);
        (k == 0 ? first_step : next_step)->replay();
        look();
        std::vector<int32_t> better(static_cast<size_t>(batch_), 0);
        for (size_t i = 0; i < better.size(); ++i)
            if (losses[i] > best[i]) better[i] = 1, best[i] = losses[i];
        copy_marked(best_, x_, better);
        copy_marked(best_gradient_, gradient_, better);
        const std::vector<int32_t> halved = sizes.look(losses, best);
        if (!halved.empty()) {
            copy_marked(x_, best_, halved);
            copy_marked(gradient_, best_gradient_, halved);
        }
        if (done) done(k + 1);
    }
    device.synchronize();
    best.resize(numbers.size());
    return {broken, best};
}

namespace {

double eps_of(const Evaluation& e) {
    const ApgdSettings& s = e.settings().apgd;
    return s.eps ? s.eps->value : e.settings().pgd.norm == AttackNorm::linf ? kEpsLinf : kEpsL2;
}

MetricResult measure(Evaluation& e) {
    const ApgdSettings& s = e.settings().apgd;
    const AttackNorm norm = e.settings().pgd.norm;
    const double eps = eps_of(e);
    const std::vector<int64_t> images = e.first_images(e.settings().pgd.images, e.images().count());
    const Predictions& clean = e.predictions();
    const int64_t classes = e.network().classes;
    std::vector<int64_t> left;
    for (const int64_t n : images)
        if (classified(clean, n).right(clean, n)) left.push_back(n);
    // The classes by the image's own logits, the likeliest first.
    const auto ranked = [&](int64_t n) {
        return sorted(std::span(clean.logits).subspan(static_cast<size_t>(n * classes), static_cast<size_t>(classes)));
    };
    std::optional<Apgd> attacker;
    const auto attack = [&](ApgdLoss loss, const std::string& name, int64_t rank) {
        for (int64_t restart = 0; restart < s.restarts && eps > 0 && !left.empty(); ++restart) {
            if (!attacker) attacker.emplace(e.network(), norm, e.network().best_batch(kLargestBatch, std::ssize(left)));
            const ApgdAttack of_batch = {
                .loss = loss,
                .radius = in_units_of_x(eps),
                .start = kFirstStart + static_cast<uint32_t>(rank + 100 * static_cast<int64_t>(loss) + 1000 * restart),
                .seed = e.settings().seed};
            left = unbroken(e, left,
                            {.name = fmt::format("apgd {} {} eps {} rank {} start {}", name, norm == AttackNorm::linf ? "linf" : "l2", eps,
                                                 rank, restart),
                             .batch = attacker->batch(),
                             .steps = of_batch.steps},
                            [&](const std::vector<int64_t>& batch, const std::function<void(int64_t)>& done) {
                                std::vector<int64_t> targets;
                                if (loss == ApgdLoss::targeted_dlr)
                                    for (const int64_t n : batch) targets.push_back(ranked(n)[static_cast<size_t>(rank)]);
                                return attacker->run(e.images(), batch, targets, of_batch, done).broken;
                            });
        }
    };
    nlohmann::ordered_json values = {{"norm", norm == AttackNorm::linf ? "linf" : "l2"}, {"eps", eps}, {"images", images.size()}};
    const auto keep = [&](const char* name) { values[name] = static_cast<double>(left.size()) / static_cast<double>(images.size()); };
    attack(ApgdLoss::cross_entropy, "ce", 0);
    keep("ce");
    if (classes >= 3) {
        attack(ApgdLoss::dlr, "dlr", 0);
        keep("dlr");
    }
    if (classes >= 4) {
        for (int64_t rank = 1; rank <= std::min(kTargets, classes - 1); ++rank) attack(ApgdLoss::targeted_dlr, "t", rank);
        keep("t");
    }
    keep("all");
    const Interval interval = wilson_interval(std::ssize(left), std::ssize(images));
    values["interval"] = {interval.low, interval.high};
    MetricResult result;
    result.values["apgd"] = values;
    return result;
}

// At most: what one attack breaks the next ones leave out.
Cost cost(Evaluation& e) {
    const auto images = static_cast<double>(std::min(e.settings().pgd.images, e.images().count()));
    return {.gradient = images * 100 * static_cast<double>(e.settings().apgd.restarts) * static_cast<double>(2 + kTargets)};
}

}  // namespace

Metric apgd_metric() {
    return {.name = "apgd", .help = "accuracy under AutoAttack's gradient attacks, one after the other", .measure = measure, .cost = cost};
}

}  // namespace jem
