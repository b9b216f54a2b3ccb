// SAM's norm and perturbation, and the optimizers. Everything runs over one flat array of parameters.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/qualifiers.h"
#include "kernels/state.h"

namespace jem {

enum class SamForm : int {
    none,
    sam,        // e = rho * g / (|g| + 1e-12)                 (SADA-JEM, Eq. 7)
    asam,       // e = rho * w^2 * g / (| |w| g | + 1e-12)      (the L2 form of Kwon et al. 2021, Eq. 8)
    asam_sign,  // e = rho * |w| * sign(g), sign(0) = 0         (the sup-norm form that the paper prints)
};

inline constexpr double kSamEpsilon = 1e-12, kClipEpsilon = 1e-6;

// Reduction over all parameters: |g|^2 and the norm of the form. Writes grad_norm and perturb_scale, and of the gradient that the
// optimizer gets what it is multiplied by, so that its norm stays below `clip` (Pascanu et al. 2013; PyTorch's epsilon). Raises the flag on
// a gradient that is not finite.
template <class R>
struct GradientNorm {
    static constexpr int kSums = 2;
    IterationState* state;
    SamForm form;
    double rho;
    SamPass pass;
    double clip;  // 0: none

    JEM_HD void map(double (&sums)[kSums], R g, R w) const {
        const double square = static_cast<double>(g) * static_cast<double>(g);
        sums[0] = square;
        sums[1] = form == SamForm::asam ? square * static_cast<double>(w) * static_cast<double>(w) : square;
    }
    JEM_HD void finish(const double (&sums)[kSums]) const {
        if (!(sums[0] - sums[0] == 0)) state->diverged = 1;
        const double factor = clip > 0 ? clip / (std::sqrt(sums[0]) + kClipEpsilon) : 1;
        state->clip_factor = factor < 1 ? factor : 1;
        if (pass == SamPass::at_perturbed) return;
        state->grad_norm = std::sqrt(sums[0]);
        state->perturb_scale = form == SamForm::asam_sign ? rho : rho / (std::sqrt(sums[1]) + kSamEpsilon);
    }
};

// w_perturbed = w + e
template <class R>
struct SamPerturb {
    const IterationState* state;
    SamForm form;

    template <class Y>
    JEM_HD void operator()(Y&& perturbed, R w, R g) const {
        const R scale = static_cast<R>(state->perturb_scale);
        R e = scale * g;
        if (form == SamForm::asam) e = scale * w * w * g;
        if (form == SamForm::asam_sign) {
            const R magnitude = w < R(0) ? -w : w;
            e = g > R(0) ? scale * magnitude : g < R(0) ? -(scale * magnitude) : R(0);
        }
        perturbed = w + e;
    }
};

// v = momentum * v + (g + decay * w); w -= lr * v, or by Nesterov lr * (g + decay * w + momentum * v). g is the clipped gradient.
template <class R>
struct SgdUpdate {
    const IterationState* state;
    R momentum, weight_decay;
    bool nesterov;

    template <class W, class V>
    JEM_HD void operator()(W&& w, V&& v, R g) const {
        if (state->diverged != 0) return;
        const R decayed = static_cast<R>(state->clip_factor) * g + weight_decay * w, velocity = momentum * v + decayed;
        v = velocity;
        w = w - static_cast<R>(state->learning_rate) * (nesterov ? decayed + momentum * velocity : velocity);
    }
};

struct AdamSettings {
    double weight_decay = 0, beta1 = 0.9;
    double clamp = 0;  // of each value of the gradient, in deviations as its second moment has them; 0: none
};

// Adam (Kingma & Ba 2015) with decay added to the clipped gradient; epsilon outside the corrected root. The clamp is that of IGEBM's
// custom_adam.py: at clamp * sqrt(v / (1 - beta2^(t-1))) + 0.1, with v and t - 1 as they were before this update.
template <class R, bool Clamps>
struct AdamUpdate {
    static constexpr double kBeta2 = 0.999, kEpsilon = 1e-8, kClampFloor = 0.1;
    const IterationState* state;
    R weight_decay, from_new, clamp;  // from_new: 1 - beta1

    JEM_HD R clamped(R g, R v) const {
        const double before = 1 - (1 - state->adam_root * state->adam_root) / kBeta2;  // 1 - beta2^(t-1)
        const R deviations = before > 1e-9 ? clamp / static_cast<R>(std::sqrt(before)) : R(0);
        const R limit = deviations * std::sqrt(v) + R(kClampFloor);
        return g < -limit ? -limit : g > limit ? limit : g;  // comparisons keep a NaN
    }

    template <class W, class M, class V>
    JEM_HD void operator()(W&& w, M&& m, V&& v, R g) const {
        if (state->diverged != 0) return;
        R own = static_cast<R>(state->clip_factor) * g;
        if constexpr (Clamps) own = clamped(own, v);
        const R decayed = own + weight_decay * w;
        const R first = m + from_new * (decayed - m);
        const R second = R(kBeta2) * v + R(1 - kBeta2) * decayed * decayed;
        m = first;
        v = second;
        const R root = std::sqrt(second) / static_cast<R>(state->adam_root) + R(kEpsilon);
        w = w - static_cast<R>(state->adam_rate) * first / root;
    }
};

// ema = decay * ema + (1 - decay) * w
template <class R>
struct EmaUpdate {
    const IterationState* state;
    R decay;

    template <class E>
    JEM_HD void operator()(E&& ema, R w) const {
        if (state->diverged != 0) return;
        ema = ema + (R(1) - decay) * (w - ema);
    }
};

}  // namespace jem
