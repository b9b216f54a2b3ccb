// The LSE energy, E(x) = -LSE(f(x)) (SADA-JEM, Eq. 4), and softmax cross-entropy. One item is one row of logits, [N, classes].
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/state.h"

namespace jem {

// log(sum(exp(row))) with the largest term taken out; a NaN in the row comes out as NaN.
template <class R>
JEM_HD R log_sum_exp(const R* row, int64_t classes) {
    R largest = row[0];
    for (int64_t c = 1; c < classes; ++c) largest = row[c] > largest ? row[c] : largest;
    R sum = R(0);
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(row[c] - largest);
    return largest + std::log(sum);
}

// lse[n] = LSE(logits[n]), minus the energy of x; with labels that of one class alone, its logit: minus the energy of x and y.
template <class R>
struct LogSumExp {
    R* lse;
    const R* logits;
    const int32_t* labels;  // [N], below classes; null: over all of them
    int64_t classes;

    JEM_HD void operator()(int64_t n) const {
        lse[n] = labels == nullptr ? log_sum_exp(logits + n * classes, classes) : logits[n * classes + labels[n]];
    }
};

// Which term of the objective a batch belongs to.
enum class EnergyTerm : int {
    sampling,  // sum of LSE over the batch: SGLD climbs it
    positive,  // px * (-fp + l2 * fp^2), fp the mean of LSE over real images
    negative,  // px * (+fq + l2 * fq^2), fq the same over samples
};

// What the two terms make of each image's v = LSE(f(x)) together. fp and fq are its means over real images and over samples.
enum class EnergyForm : int {
    means,   // L_gen = fq - fp + l2 * (fp^2 + fq^2)
    each,    // with the mean of each image's squares in place of the mean's square (Du & Mordatch 2019)
    real,    // the same of real images alone (M-JEM's scripts)
    binary,  // the mean over the images of both of log(1 + exp(-v+)) and log(1 + exp(v-)): real against made ones (DAT)
};

// Which scalars of the state the two energy terms share: fp, fq and L_gen; what the real images add to it, where the negative term cannot
// tell that from fp.
struct EnergyScalars {
    int f_pos = 0, f_neg = 0, loss = 0, loss_real = 0;
};

// log(1 + exp(v)), for v of any size.
JEM_HD inline double soft_plus(double v) { return (v > 0 ? v : 0) + std::log1p(std::exp(v > 0 ? -v : v)); }

JEM_HD inline bool squares_each(EnergyForm form, EnergyTerm term) {
    return form == EnergyForm::each || (form == EnergyForm::real && term == EnergyTerm::positive);
}

// One item: f = mean(lse) into the state; with the negative term also L_gen and the divergence check.
template <class R>
struct EnergySummary {
    IterationState* state;
    const R* lse;  // [N]
    int64_t count;
    EnergyTerm term;
    EnergyScalars scalars;
    int pass;
    double l2;
    EnergyForm form;
    int64_t both;  // images of the two terms together; of the binary form

    JEM_HD void operator()(int64_t) const {
        const double sign = term == EnergyTerm::positive ? -1 : 1;
        double sum = 0, of_each = 0;
        for (int64_t n = 0; n < count; ++n) {
            const double v = static_cast<double>(lse[n]);
            sum += v;
            of_each += form == EnergyForm::binary ? soft_plus(sign * v) : v * v;
        }
        const double f = sum / static_cast<double>(count);
        state->scalars[term == EnergyTerm::positive ? scalars.f_pos : scalars.f_neg][pass] = f;
        if (!(f - f == 0)) state->diverged = 1;
        double own = sign * f + l2 * (squares_each(form, term) ? of_each / static_cast<double>(count) : f * f);
        if (form == EnergyForm::binary) own = of_each / static_cast<double>(both);
        if (term == EnergyTerm::positive && form != EnergyForm::means) state->scalars[scalars.loss_real][pass] = own;
        if (term != EnergyTerm::negative) return;
        const double fp = state->scalars[scalars.f_pos][pass];
        const double loss = form == EnergyForm::means ? f - fp + l2 * (fp * fp + f * f) : own + state->scalars[scalars.loss_real][pass];
        state->scalars[scalars.loss][pass] = loss;
        if (!(loss <= kDivergedLoss && loss >= -kDivergedLoss)) state->diverged = 1;
    }
};

// d_logits[n, :] = coefficient * softmax(logits[n]), the gradient of the batch's term; with labels coefficient * onehot.
template <class R>
struct EnergyBackward {
    R* d_logits;
    const R* logits;
    const R* lse;
    const int32_t* labels;  // as those of lse; null: none
    const IterationState* state;
    int64_t count, classes;
    EnergyTerm term;
    EnergyScalars scalars;
    int pass;
    double weight, l2;  // px and the energy L2
    EnergyForm form;
    int64_t both;  // as EnergySummary's, of as many ranks as count is
    bool add;      // to what d_logits holds

    JEM_HD double coefficient(double v) const {
        if (term == EnergyTerm::sampling) return 1;
        const double sign = term == EnergyTerm::positive ? -1 : 1;
        if (form == EnergyForm::binary) return weight * sign / (1 + std::exp(-sign * v)) / static_cast<double>(both);
        const double mean = state->scalars[term == EnergyTerm::positive ? scalars.f_pos : scalars.f_neg][pass];
        return weight * (sign + 2 * l2 * (squares_each(form, term) ? v : mean)) / static_cast<double>(count);
    }
    JEM_HD void operator()(int64_t n) const {
        const R factor = static_cast<R>(coefficient(static_cast<double>(lse[n])));
        for (int64_t c = 0; c < classes; ++c) {
            const bool counts = labels == nullptr || c == labels[n];
            const R d = counts ? factor * std::exp(logits[n * classes + c] - lse[n]) : R(0);
            R& to = d_logits[n * classes + c];
            to = add ? to + d : d;
        }
    }
};

// loss[n] = -sum over classes of target * log softmax(logits[n]), hit[n] = 1 where the first largest logit is the label's,
// d_logits = weight / N * (softmax - target); target = (1 - smoothing) * onehot + smoothing / classes (Szegedy et al. 2016).
template <class R>
struct CrossEntropy {
    R *loss, *hit, *d_logits;
    const R* logits;
    const int32_t* labels;  // [N], below classes
    int64_t count, classes;
    double weight;  // p(y|x)'s
    double smoothing;
    bool add;  // to what d_logits holds

    JEM_HD void operator()(int64_t n) const {
        const R* row = logits + n * classes;
        const R lse = log_sum_exp(row, classes);
        const int64_t label = labels[n];
        int64_t best = 0;
        for (int64_t c = 1; c < classes; ++c)
            if (row[c] > row[best]) best = c;
        const R of_all = static_cast<R>(smoothing / static_cast<double>(classes)), of_label = R(1) - static_cast<R>(smoothing);
        R smoothed = R(0);
        if (smoothing > 0)
            for (int64_t c = 0; c < classes; ++c) smoothed += of_all * (lse - row[c]);
        loss[n] = of_label * (lse - row[label]) + smoothed;
        hit[n] = best == label ? R(1) : R(0);
        const R factor = static_cast<R>(weight / static_cast<double>(count));
        for (int64_t c = 0; c < classes; ++c) {
            const R d = factor * (std::exp(row[c] - lse) - of_all - (c == label ? of_label : R(0)));
            R& to = d_logits[n * classes + c];
            to = add ? to + d : d;
        }
    }
};

// One item is one row: value[n] = factor * logits[n][label], d_logits = factor * onehot, the gradient of the sum of the values.
template <class R>
struct ClassLogit {
    R *value, *d_logits;
    const R* logits;
    const int32_t* labels;  // [N], below classes
    int64_t classes;
    double factor;

    JEM_HD void operator()(int64_t n) const {
        const int64_t label = labels[n];
        const R f = static_cast<R>(factor);
        value[n] = f * logits[n * classes + label];  // before d_logits, which may be the same memory
        for (int64_t c = 0; c < classes; ++c) d_logits[n * classes + c] = c == label ? f : R(0);
    }
};

// One item is one row z: value[n] = z[label] + |z / |z| - z0 / |z0||^2, and its gradient (the attack of EB-JDAT's scripts).
template <class R>
struct LogitsApart {
    R *value, *d_logits;
    const R *logits, *start;  // start: z0
    const int32_t* labels;    // [N], below classes
    int64_t classes;

    JEM_HD R length(const R* row) const {
        R sum = R(0);
        for (int64_t c = 0; c < classes; ++c) sum += row[c] * row[c];
        return std::sqrt(sum);
    }
    JEM_HD void operator()(int64_t n) const {
        const R *z = logits + n * classes, *z0 = start + n * classes;
        const R norm = length(z), norm0 = length(z0), of_label = z[labels[n]];
        R squares = R(0), along = R(0);  // of the difference of directions; along z's
        for (int64_t c = 0; c < classes; ++c) {
            const R u = z[c] / norm, d = u - z0[c] / norm0;
            squares += d * d;
            along += u * d;
        }
        value[n] = of_label + squares;
        for (int64_t c = 0; c < classes; ++c) {  // d_logits may be the same memory: each is read before it is written
            const R u = z[c] / norm, d = u - z0[c] / norm0;
            d_logits[n * classes + c] = R(2) * (d - along * u) / norm + (c == labels[n] ? R(1) : R(0));
        }
    }
};

// Reduction over the values of real images: the share of pairs with a drawn image in which the real one's is the larger, ties counting a
// half: the area under the ROC curve (AUROC). Sums of halves are exact.
template <class R>
struct Separation {
    static constexpr int kSums = 1;
    IterationState* state;
    const R* drawn;  // [count]
    int64_t count;
    double pairs;
    int scalar;

    JEM_HD void map(double (&sums)[kSums], R real) const {
        int64_t halves = 0;
        JEM_UNROLL(1)
        for (int64_t n = 0; n < count; ++n) halves += (real > drawn[n] ? 1 : 0) + (real >= drawn[n] ? 1 : 0);
        sums[0] = 0.5 * static_cast<double>(halves);
    }
    JEM_HD void finish(const double (&sums)[kSums]) const { state->scalars[scalar][0] = sums[0] / pairs; }
};

struct ClassificationScalars {
    int loss = 0, accuracy = 0;  // the second in the first pass alone; -1: nobody asks for it
};

// One item: means of loss and hits into the state.
template <class R>
struct ClassificationSummary {
    IterationState* state;
    const R *loss, *hit;
    int64_t count;
    ClassificationScalars scalars;
    int pass;

    JEM_HD void operator()(int64_t) const {
        double sum = 0, hits = 0;
        for (int64_t n = 0; n < count; ++n) {
            sum += static_cast<double>(loss[n]);
            hits += static_cast<double>(hit[n]);
        }
        const double mean = sum / static_cast<double>(count);
        state->scalars[scalars.loss][pass] = mean;
        if (pass == static_cast<int>(SamPass::at_weights) && scalars.accuracy >= 0)
            state->scalars[scalars.accuracy][0] = hits / static_cast<double>(count);
        if (!(mean - mean == 0)) state->diverged = 1;
    }
};

// Which results of an iteration the ranks have each for itself, and come to agree on.
enum class Agreement : int {
    after_sampling,   // how the chains went
    after_own_norms,  // with SAM's perturbation from the rank's own gradient: that gradient's norm
};

// Where the results of a chain stand in a state.
struct ChainScalars {
    int norm = 0;     // of the gradient at x in the last step, root mean square over the batch
    int way = 0;      // |x_K - x_0|, root mean square over the batch
    int clamped = 0;  // share of x_K's values that lie at -1 or 1
};

// One item: what is each rank's own becomes the job's, and a flag that is up on one goes up on all.
struct AgreeOnState {
    IterationState* state;
    const IterationState* states;  // [ranks]
    int64_t ranks;
    Agreement when;
    ChainScalars chain;  // of after_sampling

    JEM_HD void operator()(int64_t) const {
        double norm_squares = 0, way_squares = 0, clamped = 0, gradient_squares = 0;
        int32_t diverged = 0;
        for (int64_t r = 0; r < ranks; ++r) {
            const auto& of_rank = states[r].scalars;
            norm_squares += of_rank[chain.norm][0] * of_rank[chain.norm][0];
            way_squares += of_rank[chain.way][0] * of_rank[chain.way][0];
            clamped += of_rank[chain.clamped][0];
            gradient_squares += states[r].grad_norm * states[r].grad_norm;
            diverged |= states[r].diverged;
        }
        state->diverged = diverged;
        const double n = static_cast<double>(ranks);
        if (when == Agreement::after_sampling) {
            state->scalars[chain.norm][0] = std::sqrt(norm_squares / n);
            state->scalars[chain.way][0] = std::sqrt(way_squares / n);
            state->scalars[chain.clamped][0] = clamped / n;
        }
        // Each rank's gradient carries a weight of 1 / ranks, so that the sum is the mean: taken out again.
        if (when == Agreement::after_own_norms) state->grad_norm = std::sqrt(gradient_squares * n);
    }
};

}  // namespace jem
