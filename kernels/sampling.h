// Input-gradient SGLD, its starting points and the replay buffer. Images are [N, H*W, C] (block = C) and live in [-1, 1].
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/images.h"
#include "kernels/loss.h"
#include "kernels/qualifiers.h"
#include "kernels/random.h"
#include "kernels/state.h"

namespace jem {

// Where a fresh chain starts. -1 in `fresh` means: the replay buffer's image.
enum class StartForm : int {
    informative,  // p0(x): a mixture over classes of N(mu_c, Sigma_c + 1e-4 I) (JEM++; SADA-JEM, section 3.2)
    gaussian,     // one N(mu, Sigma + 1e-4 I) over all images
    uniform,      // U(-1, 1) (JEM)
    images,       // one of another set's (DAT)
};

// Whether it is made of the images of Gaussians: else nothing is multiplied.
inline bool is_of_gaussians(StartForm form) { return form == StartForm::informative || form == StartForm::gaussian; }
// Whether all images that it is made of are one class.
inline bool is_of_one_class(StartForm form) { return form == StartForm::gaussian || form == StartForm::images; }

// Fours of the job's batch that a rank's values touch, `count` from number `first` on; the outer ones may be its own in part.
JEM_HD inline int64_t fours_touched(int64_t first, int64_t count) { return (first % 4 + count + 3) / 4; }

// One item is four neighbouring values of the job's batch: x = clamp(x + alpha * clamp(g) + sigma * noise)    (SADA-JEM, Eq. 3, alpha as in
// the scripts)
template <class R>
struct SgldStep {
    R* x;            // [count], updated
    const R* g;      // [count], d LSE / d x
    const R* noise;  // [steps, count] standard normal, or null: drawn
    const IterationState* state;
    int64_t count;
    int64_t first;       // number of x[0] in the job's batch: the noise depends on it
    int64_t noise_from;  // the state's step that noise begins with
    double step_size, noise_scale;
    double grad_clamp;  // 0: none
    bool pixel_clamp;
    uint64_t seed;

    JEM_HD int64_t items() const { return fours_touched(first, count); }

    JEM_HD void operator()(int64_t item) const {
        const int64_t quad = first / 4 + item;
        Normal4 drawn = {};
        if (noise_scale > 0 && noise == nullptr)
            drawn = normals_of(random4(seed, RandomStream::sgld_noise, *state, state->step, static_cast<uint64_t>(quad)));
        const R limit = static_cast<R>(grad_clamp);
        for (int k = 0; k < 4; ++k) {
            const int64_t i = quad * 4 + k - first;
            if (i >= count) return;
            if (i < 0) continue;
            R d = g[i];
            if (grad_clamp > 0) d = d < -limit ? -limit : d > limit ? limit : d;  // comparisons keep a NaN
            R value = x[i] + static_cast<R>(step_size) * d;
            if (noise_scale > 0)
                value += static_cast<R>(noise_scale) *
                         (noise == nullptr ? static_cast<R>(drawn.v[k]) : noise[(state->step - noise_from) * count + i]);
            if (pixel_clamp) value = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
            x[i] = value;
        }
    }
};

// One item is four neighbouring values of the job's batch: x = clamp(start + radius * u), u uniform in [-1, 1]: where attacks begin.
template <class R>
struct RandomWay {
    R* x;            // [count]
    const R* start;  // [count]
    const R* u;      // [count], or null: drawn
    const IterationState* state;
    int64_t count;
    int64_t first;  // number of x[0] in the job's batch: draws depend on it
    double radius;
    uint64_t seed;

    JEM_HD int64_t items() const { return fours_touched(first, count); }

    JEM_HD void operator()(int64_t item) const {
        const int64_t quad = first / 4 + item;
        const Random4 drawn = random4(seed, RandomStream::training_attack, *state, 0, static_cast<uint64_t>(quad));
        for (int k = 0; k < 4; ++k) {
            const int64_t i = quad * 4 + k - first;
            if (i >= count) return;
            if (i < 0) continue;
            const R way = u != nullptr ? u[i] : R(2) * static_cast<R>(uniform_of(drawn.v[k])) - R(1);
            const R value = start[i] + static_cast<R>(radius) * way;
            x[i] = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
        }
    }
};

// One item is one value: into [-1, 1] by reflection at both ends, as often as it takes; what lies there stays bit for bit.
template <class R>
struct Reflect {
    R* x;  // updated

    JEM_HD void operator()(int64_t i) const {
        if (x[i] >= R(-1) && x[i] <= R(1)) return;
        R turn = x[i] + R(1);  // of a period of 4: up from 0 to 2, down again
        turn -= R(4) * std::floor(turn / R(4));
        x[i] = turn > R(2) ? R(3) - turn : turn - R(1);
    }
};

// log of the density at y in [-1, 1], up to a constant of sigma, of a draw of N(mean, sigma^2) that is reflected into [-1, 1]: the sum over
// all places that reflection takes to y. Those farther from the mean than 5 are left out, so sigma may be 0.5 at most.
JEM_HD inline double log_of_reflected_normal(double y, double mean, double sigma) {
    constexpr int kPlaces = 7;                               // y and its mirror images at 2 - y, each a period of 4 on
    const double m = mean - 4 * std::floor(mean / 4 + 0.5);  // in [-2, 2)
    const auto squared = [&](int place) {
        const double d = (place < 3 ? y + 4 * (place - 1) : 4 * (place - 3) - 6 - y) - m;
        return d * d;
    };
    double nearest = squared(0), sum = 0;
    JEM_UNROLL(1)  // rolled up: a GPU's registers do not hold several exponentials at once
    for (int place = 1; place < kPlaces; ++place) nearest = squared(place) < nearest ? squared(place) : nearest;
    JEM_UNROLL(1)
    for (int place = 0; place < kPlaces; ++place) sum += std::exp((nearest - squared(place)) / (2 * sigma * sigma));
    return std::log(sum) - nearest / (2 * sigma * sigma);
}

// One item is one chain: whether its proposal y, drawn around mean(x) = x + alpha * clamp(g(x)) with deviation sigma, becomes its image:
// with probability min(1, exp((v(y) - v(x)) / T) q(x|y) / q(y|x)), T = sigma^2 / (2 alpha) (Roberts & Tweedie 1996, MALA), which leaves
// exp(v / T) as it is, whatever clamps the gradient. In step 0 there is no proposal yet: what is there becomes the chain's image. One that
// is not finite never does.
template <class R>
struct Metropolis {
    int32_t* accepted;           // [N], 1 or 0
    const R *x, *g, *value;      // [N, row], [N, row], [N]: where the chain is
    const R *y, *y_g, *y_value;  // the proposal
    const IterationState* state;
    int64_t row, first;  // first: number of the first chain in the job's batch
    double step_size, noise_scale, grad_clamp;
    bool reflected;  // whether the proposal was, into [-1, 1]
    uint64_t seed;

    JEM_HD double log_of_move(R to, R from, R gradient) const {
        const double slope = static_cast<double>(gradient);
        const double d = grad_clamp > 0 && slope < -grad_clamp ? -grad_clamp : grad_clamp > 0 && slope > grad_clamp ? grad_clamp : slope;
        const double mean = static_cast<double>(from) + step_size * d, away = (static_cast<double>(to) - mean) / noise_scale;
        return reflected ? log_of_reflected_normal(static_cast<double>(to), mean, noise_scale) : -0.5 * away * away;
    }
    JEM_HD void operator()(int64_t n) const {
        if (state->step == 0) {
            accepted[n] = 1;
            return;
        }
        double ratio = (static_cast<double>(y_value[n]) - static_cast<double>(value[n])) * 2 * step_size / (noise_scale * noise_scale);
        JEM_UNROLL(1)
        for (int way = 0; way < 2; ++way) {  // back, and there
            const R *to = way == 0 ? x : y, *from = way == 0 ? y : x, *slope = way == 0 ? y_g : g;
            double sum = 0;
            JEM_UNROLL(1)
            for (int64_t i = n * row; i < (n + 1) * row; ++i) sum += log_of_move(to[i], from[i], slope[i]);
            ratio += way == 0 ? sum : -sum;
        }
        const Random4 drawn = random4(seed, RandomStream::metropolis, *state, state->step, static_cast<uint64_t>(first + n));
        accepted[n] = std::log(static_cast<double>(uniform_of(drawn.v[0]))) < ratio ? 1 : 0;  // not where it is a NaN
    }
};

// Reduction over the batch's input gradient: its norm for the log, the flag for anything not finite.
template <class R>
struct SgldGradientNorm {
    static constexpr int kSums = 1;
    IterationState* state;
    double images;
    int norm;  // the scalar: root mean square over the batch of |d f / d x|

    JEM_HD void map(double (&sums)[kSums], R g) const { sums[0] = static_cast<double>(g) * static_cast<double>(g); }
    JEM_HD void finish(const double (&sums)[kSums]) const {
        state->scalars[norm][0] = std::sqrt(sums[0] / images);
        if (!(sums[0] - sums[0] == 0)) state->diverged = 1;
    }
};

// Reduction over a batch of chains' values: how far they got, and how much of them lies at the ends of [-1, 1].
template <class R>
struct ChainSummary {
    static constexpr int kSums = 2;
    IterationState* state;
    double images, values;
    ChainScalars scalars;

    JEM_HD void map(double (&sums)[kSums], R x, R start) const {
        const double d = static_cast<double>(x) - static_cast<double>(start);
        sums[0] = d * d;
        sums[1] = x <= R(-1) || x >= R(1) ? 1 : 0;
    }
    JEM_HD void finish(const double (&sums)[kSums]) const {
        state->scalars[scalars.way][0] = std::sqrt(sums[0] / images);
        state->scalars[scalars.clamped][0] = sums[1] / values;
    }
};

// One item is one value: x + alpha * sign(g), kept within radius of the start and in [-1, 1] (Madry et al. 2018; L-infinity). sign(0) = 0.
template <class R>
struct SignStep {
    R* x;             // [N, row], updated
    const R* g;       // d objective / d x
    const R* start;   // where the chain began
    const R* scales;  // [N], of each image's step; null: 1
    int64_t row;
    double step_size, radius;

    JEM_HD void operator()(int64_t i) const {
        const R sign = g[i] > R(0) ? R(1) : g[i] < R(0) ? R(-1) : g[i];  // comparisons keep a NaN
        const R low = start[i] - static_cast<R>(radius), high = start[i] + static_cast<R>(radius);
        const R step = scales == nullptr ? static_cast<R>(step_size) : static_cast<R>(step_size) * scales[i / row];
        R value = x[i] + step * sign;
        value = value < low ? low : value > high ? high : value;
        x[i] = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
    }
};

// One item is one image: the L2 norm of its row of a - b, or of a where b is null.
template <class R>
struct RowDistance {
    R* out;          // [N]
    const R *a, *b;  // [N, row]
    int64_t row;

    JEM_HD void operator()(int64_t n) const {
        double sum = 0;
        for (int64_t i = n * row; i < (n + 1) * row; ++i) {
            const double d = static_cast<double>(b == nullptr ? a[i] : a[i] - b[i]);
            sum += d * d;
        }
        out[n] = static_cast<R>(std::sqrt(sum));
    }
};

// One item is one value: x + alpha * g / |g| of its image. Where the gradient is 0 the image stays.
template <class R>
struct NormalisedStep {
    R* x;             // [N, row], updated
    const R* g;       // [N, row], d objective / d x
    const R* norms;   // [N], of g's rows
    const R* scales;  // [N], of each image's step; null: 1
    int64_t row;
    double step_size;

    JEM_HD void operator()(int64_t i) const {
        const R norm = norms[i / row];
        const R step = scales == nullptr ? static_cast<R>(step_size) : static_cast<R>(step_size) * scales[i / row];
        if (norm != R(0)) x[i] += step * (g[i] / norm);  // of a NaN too
    }
};

// One item is one value: from x a share of the way to `ahead`, and the rest of the way that x came from `before`, where x is left behind
// (Croce & Hein 2020, eq. 3).
template <class R>
struct MomentumStep {
    R *x, *before;
    const R* ahead;
    double share;

    JEM_HD void operator()(int64_t i) const {
        const R at = x[i], a = static_cast<R>(share);
        x[i] = at + a * (ahead[i] - at) + (R(1) - a) * (at - before[i]);
        before[i] = at;
    }
};

// One item is one value: to = from in the rows that are marked.
template <class R>
struct CopyRows {
    R* to;
    const R* from;
    const int32_t* marked;  // [N], 0: not
    int64_t row;

    JEM_HD void operator()(int64_t i) const {
        if (marked[i / row] != 0) to[i] = from[i];
    }
};

// One item is one value: kept within an L2 ball around the start, then in [-1, 1]    (Madry et al. 2018)
template <class R>
struct ProjectOnBall {
    R* x;                // [N, row], updated
    const R* start;      // [N, row], the ball's centre
    const R* distances;  // [N], of x's rows from start's
    int64_t row;
    double radius;

    JEM_HD void operator()(int64_t i) const {
        const R distance = distances[i / row], limit = static_cast<R>(radius);
        R value = distance > limit ? start[i] + (x[i] - start[i]) * (limit / distance) : x[i];
        value = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
        x[i] = value;
    }
};

// The places of a class in a buffer that holds as many images of each, one more of the first ones where it does not divide.
struct ClassPlaces {
    uint32_t begin, count;

    JEM_HD ClassPlaces(uint32_t label, uint32_t size, uint32_t classes) {
        const uint32_t each = size / classes, more = size % classes;
        begin = label * each + (label < more ? label : more);
        count = each + (label < more ? 1 : 0);
    }
};

// One item is one chain: which buffer image it continues, and whether (and from which class) it starts afresh.
struct DrawChains {
    int32_t* index;         // [N] into the buffer
    int32_t* fresh;         // [N] class, or -1
    const int32_t* labels;  // [N]: of whose class's places, and from which class; null: of any
    const IterationState* state;
    uint32_t buffer_size, num_classes;  // num_classes: that chains start from
    uint32_t labelled_classes;          // of labels
    int64_t first;                      // number of the first chain among an iteration's: draws depend on it
    double reinit_freq;
    uint64_t seed;

    JEM_HD void operator()(int64_t n) const {
        const auto element = static_cast<uint64_t>(first + n);
        const Random4 which = random4(seed, RandomStream::buffer_index, *state, 0, element);
        const Random4 choice = random4(seed, RandomStream::reinit_choice, *state, 0, element);
        const bool start = static_cast<double>(uniform_of(choice.v[0])) < reinit_freq;
        int32_t from = static_cast<int32_t>(index_of(choice.v[1], num_classes));
        index[n] = static_cast<int32_t>(index_of(which.v[0], buffer_size));
        if (labels != nullptr) {
            const ClassPlaces places(static_cast<uint32_t>(labels[n]), buffer_size, labelled_classes);
            index[n] = static_cast<int32_t>(places.begin + index_of(which.v[0], places.count));
            if (num_classes == labelled_classes) from = labels[n];
        }
        fresh[n] = start ? from : -1;
    }
};

// One item is one chain: a class for it, each as likely.
struct DrawLabels {
    int32_t* labels;  // [N]
    const IterationState* state;
    uint32_t classes;
    uint64_t seed;

    JEM_HD void operator()(int64_t n) const {
        labels[n] =
            static_cast<int32_t>(index_of(random4(seed, RandomStream::chain_labels, *state, 0, static_cast<uint64_t>(n)).v[0], classes));
    }
};

// One item is four weights of one chain: z ~ N(0, 1), one for each image of the chain's class.
template <class R>
struct StartWeights {
    R* weights;  // [chains, stride]
    const int32_t* fresh;
    const int32_t* class_begin;  // [classes + 1]
    const IterationState* state;
    int64_t stride, first_chain;
    RandomStream stream;
    uint64_t seed;

    JEM_HD void operator()(int64_t item) const {
        const int64_t quads = (stride + 3) / 4, chain = item / quads, first = item % quads * 4;
        if (fresh[chain] < 0) return;
        const int64_t size = class_begin[fresh[chain] + 1] - class_begin[fresh[chain]];
        const uint64_t element = static_cast<uint64_t>((first_chain + chain) * quads + first / 4);
        const Normal4 z = normals_of(random4(seed, stream, *state, 0, element));
        for (int k = 0; k < 4 && first + k < size; ++k) weights[chain * stride + first + k] = static_cast<R>(z.v[k]);
    }
};

template <class R>
struct StartWeightsOfChain {
    R* weights;  // [chains, stride]
    const int32_t* fresh;
    const int32_t* class_begin;
    int64_t stride;

    // So many of a chain's weights are in use; 0 where it goes on.
    JEM_HD int64_t count(int64_t chain) const { return fresh[chain] < 0 ? 0 : class_begin[fresh[chain] + 1] - class_begin[fresh[chain]]; }
};

// A GPU waits for a load hundreds of cycles, and for the next one as long again where the loop's end lies between the two. So a thread
// has many under way: weights, images.
constexpr int kWeightsAhead = 32, kImagesAhead = 16;

// One item is one chain. In the order of the images, so that the sum does not depend on what computes it.
template <class R>
struct MeanStartWeights {
    StartWeightsOfChain<R> of;
    double* means;  // [chains], written where a chain is fresh

    static constexpr bool kLoadsAhead = true;

    JEM_HD void operator()(int64_t chain) const {
        const int64_t size = of.count(chain);
        if (size == 0) return;
        const R* z = of.weights + chain * of.stride;
        double sum = 0;
        int64_t i = 0;
        for (; i + kWeightsAhead <= size; i += kWeightsAhead) {
            R some[kWeightsAhead];
            for (int k = 0; k < kWeightsAhead; ++k) some[k] = z[i + k];
            for (int k = 0; k < kWeightsAhead; ++k) sum += static_cast<double>(some[k]);
        }
        for (; i < size; ++i) sum += static_cast<double>(z[i]);
        means[chain] = sum / static_cast<double>(size);
    }
};

// z -> 1/N + (z - mean z) / sqrt(N), so that the weighted sum of the class's images is mu + (X - mu)^T z / sqrt(N): covariance Sigma
// without any covariance matrix. One item is Width weights of one chain.
template <class R, int Width>
struct CentreStartWeights {
    StartWeightsOfChain<R> of;
    const double* means;

    JEM_HD void operator()(int64_t item) const {
        const int64_t parts = (of.stride + Width - 1) / Width, chain = item / parts, first = item % parts * Width;
        const int64_t size = of.count(chain), end = size - first < Width ? size : first + Width;
        if (first >= end) return;
        const double each = 1.0 / static_cast<double>(size), root = std::sqrt(static_cast<double>(size));
        R* z = of.weights + chain * of.stride;
        for (int64_t i = first; i < end; ++i) z[i] = static_cast<R>(each + (static_cast<double>(z[i]) - means[chain]) / root);
    }
};

inline constexpr double kStartNoise = 0.01;  // sqrt of the 1e-4 added to the covariance

// One item is Width neighbouring values of one chain: the buffer's image, or a fresh one.
template <class R, int Width>
struct StartImages {
    R* x;             // [chains, pixels]
    const R* buffer;  // [buffer_size, pixels], or null where every chain is fresh
    const int32_t *index, *fresh;
    const R* weights;            // [chains, stride], null for the uniform start
    const uint8_t* images;       // [N, pixels]
    const int32_t* class_order;  // image numbers sorted by class
    const int32_t* class_begin;  // [classes + 1]
    const IterationState* state;
    int64_t pixels, stride, first_chain;
    RandomStream stream;
    uint64_t seed;

    static constexpr bool kLoadsAhead = Width == 4;  // a CPU's items are wide
    // Of four pixels in one register.
    JEM_HD static R pixel(uint32_t four, int k) { return static_cast<R>(four >> 8 * k & 0xFFu); }

    JEM_HD void operator()(int64_t item) const {
        const int64_t parts = (pixels + Width - 1) / Width, chain = item / parts, first = item % parts * Width;
        const int64_t width = pixels - first < Width ? pixels - first : Width;
        R* out = x + chain * pixels + first;
        const int32_t label = fresh[chain];
        if (label < 0) {
            const R* from = buffer + static_cast<int64_t>(index[chain]) * pixels + first;
            for (int64_t k = 0; k < width; ++k) out[k] = from[k];
            return;
        }
        R sum[Width];
        for (int k = 0; k < Width; ++k) sum[k] = R(0);
        if (weights != nullptr) {
            const int64_t begin = class_begin[label], size = class_begin[label + 1] - begin;
            const R* weight = weights + chain * stride;
            const int32_t* number = class_order + begin;
            const uint8_t* here = images + first;
            int64_t i = 0;
            if (kLoadsAhead && width == Width && pixels % Width == 0) {
                for (; i + kImagesAhead <= size; i += kImagesAhead) {
                    const uint8_t* at[kImagesAhead];
                    uint32_t four[kImagesAhead];
                    for (int n = 0; n < kImagesAhead; ++n) at[n] = here + static_cast<int64_t>(number[i + n]) * pixels;
                    for (int n = 0; n < kImagesAhead; ++n) std::memcpy(&four[n], __builtin_assume_aligned(at[n], Width), sizeof four[n]);
                    for (int n = 0; n < kImagesAhead; ++n)
                        for (int k = 0; k < Width; ++k) sum[k] += weight[i + n] * pixel(four[n], k);
                }
            }
            for (; i < size; ++i) {
                const uint8_t* image = here + static_cast<int64_t>(number[i]) * pixels;
                if (width == Width) {
                    for (int k = 0; k < Width; ++k) sum[k] += weight[i] * static_cast<R>(image[k]);
                } else {
                    for (int k = 0; k < Width; ++k)
                        if (k < width) sum[k] += weight[i] * static_cast<R>(image[k]);
                }
            }
        }
        // Width is a multiple of 4, so that an element's draw does not depend on it.
        for (int k = 0; k < Width; k += 4) {
            if (k >= width) break;
            const uint64_t element = static_cast<uint64_t>((first_chain + chain) * ((pixels + 3) / 4) + (first + k) / 4);
            const Random4 r = random4(seed, stream, *state, 0, element);
            const Normal4 u = normals_of(r);
            for (int j = 0; j < 4; ++j) {
                if (k + j >= width) break;
                R value = weights == nullptr ? R(2) * static_cast<R>(uniform_of(r.v[j])) - R(1)
                                             : R(2.0 / 255) * sum[k + j] - R(1) + static_cast<R>(kStartNoise) * static_cast<R>(u.v[j]);
                out[k + j] = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
            }
        }
    }
};

// Many starts of one class at once, as a product. With its images X [N, pixels] and Z [N, starts] ~ N(0, 1) a start is
//   mu + (X - mu)^T z / sqrt(N) = X^T z / sqrt(N) + (1/N - mean z / sqrt(N)) * sum of X's rows,
// and a column of ones beside Z and beside X makes the two sums part of P = [Z 1]^T [X 1], which adds up over blocks of images.

// One item is four images of one column of [Z 1]. Zero where there is no such start or image.
template <class R>
struct StartFactors {
    R* z;  // [images, columns], images a multiple of 4; the last column is the ones'
    const IterationState* state;
    int64_t columns, starts, first_chain;  // starts < columns
    int64_t first, size;                   // of the class: the block's first image, a multiple of 4, and how many there are
    int64_t stride;                        // of the largest class: the draws are StartWeights'
    RandomStream stream;
    uint64_t seed;

    JEM_HD void operator()(int64_t item) const {
        const int64_t quad = item / columns, column = item % columns, image = first + 4 * quad;
        Normal4 drawn = {};
        if (column < starts && image < size)
            drawn = normals_of(
                random4(seed, stream, *state, 0, static_cast<uint64_t>((first_chain + column) * ((stride + 3) / 4) + image / 4)));
        for (int k = 0; k < 4; ++k) {
            const R value = column == columns - 1 ? R(1) : static_cast<R>(drawn.v[k]);
            z[(4 * quad + k) * columns + column] = image + k < size ? value : R(0);
        }
    }
};

// One item is Width neighbouring values of a row of [X 1].
template <class R, int Width>
struct StartPixels {
    R* x;                            // [images, columns]; behind the column of ones they are 0
    const uint8_t* images;           // [N, pixels]
    const int32_t* order;            // numbers of the class's images from the block's first on
    int64_t columns, pixels, count;  // count: images that there are; the rest of the block is 0

    JEM_HD void operator()(int64_t item) const {
        const int64_t parts = (columns + Width - 1) / Width, row = item / parts, begin = item % parts * Width;
        R* out = x + row * columns + begin;
        const bool there = row < count;
        const uint8_t* image = images + (there ? static_cast<int64_t>(order[row]) * pixels + begin : 0);
        if (there && begin + Width <= pixels) {
            for (int k = 0; k < Width; ++k) out[k] = pixel_value<R>(image[k]);
            return;
        }
        for (int64_t k = 0; k < Width && begin + k < columns; ++k) {
            const int64_t p = begin + k;
            out[k] = !there || p > pixels ? R(0) : p == pixels ? R(1) : pixel_value<R>(image[k]);
        }
    }
};

// One item is Width neighbouring values of one start, of the product of all blocks.
template <class R, int Width>
struct StartsOfProduct {
    R* x;              // [starts, pixels]
    const R* product;  // [rows, columns]: a row a start, the last one the sum of the images; in column `pixels` the sum of the weights
    const IterationState* state;
    int64_t rows, columns, pixels, size, first_chain;
    RandomStream stream;
    uint64_t seed;

    JEM_HD void operator()(int64_t item) const {
        const int64_t parts = (pixels + Width - 1) / Width, start = item / parts, begin = item % parts * Width;
        const R *own = product + start * columns, *sum = product + (rows - 1) * columns;
        const double n = static_cast<double>(size), root = std::sqrt(n);
        const R scale = static_cast<R>(1 / root), of_sum = static_cast<R>((1 - static_cast<double>(own[pixels]) / root) / n);
        for (int64_t p = begin; p < begin + Width && p < pixels; p += 4) {
            const uint64_t element = static_cast<uint64_t>((first_chain + start) * ((pixels + 3) / 4) + p / 4);
            const Normal4 u = normals_of(random4(seed, stream, *state, 0, element));
            for (int k = 0; k < 4; ++k) {
                if (p + k >= pixels) break;
                const R value = scale * own[p + k] + of_sum * sum[p + k] + static_cast<R>(kStartNoise) * static_cast<R>(u.v[k]);
                x[start * pixels + p + k] = value < R(-1) ? R(-1) : value > R(1) ? R(1) : value;
            }
        }
    }
};

// One item is one chain: where it began afresh and is what its place in the buffer becomes, the place's birth is this iteration.
struct StoreBirths {
    int32_t* births;  // [buffer_size]
    const int32_t *index, *fresh;
    const IterationState* state;
    int64_t chains;

    JEM_HD void operator()(int64_t chain) const {
        if (state->diverged != 0 || fresh[chain] < 0) return;
        for (int64_t later = chain + 1; later < chains; ++later)
            if (index[later] == index[chain]) return;
        births[index[chain]] = static_cast<int32_t>(state->iteration);
    }
};

// One item is one chain: where it goes in a buffer whose oldest images make place, and when it last began afresh.
struct PlacesOfOldest {
    int32_t *places, *born;        // [N]
    const int32_t *index, *fresh;  // [N], as drawn
    const int32_t* births;         // [buffer_size]
    const IterationState* state;
    int64_t chains, buffer_size;

    JEM_HD void operator()(int64_t chain) const {
        places[chain] = static_cast<int32_t>((static_cast<int64_t>(state->iteration) * chains + chain) % buffer_size);
        born[chain] = fresh[chain] < 0 ? births[index[chain]] : static_cast<int32_t>(state->iteration);
    }
};

// One item is one chain: births[places[chain]] = born[chain]; of equal places the last chain's.
struct StoreBorn {
    int32_t* births;
    const int32_t *places, *born;
    const IterationState* state;
    int64_t chains;

    JEM_HD void operator()(int64_t chain) const {
        if (state->diverged != 0) return;
        for (int64_t later = chain + 1; later < chains; ++later)
            if (places[later] == places[chain]) return;
        births[places[chain]] = born[chain];
    }
};

// Item (chain, pixel): buffer[index[chain]] = x[chain]. Of equal indices the last chain wins, whatever the order of work.
template <class R>
struct StoreChains {
    R* buffer;
    const R* x;
    const int32_t* index;
    const IterationState* state;
    int64_t chains, pixels;

    JEM_HD void operator()(int64_t item) const {
        if (state->diverged != 0) return;
        const int64_t chain = item / pixels, pixel = item % pixels;
        for (int64_t later = chain + 1; later < chains; ++later)
            if (index[later] == index[chain]) return;
        buffer[static_cast<int64_t>(index[chain]) * pixels + pixel] = x[item];
    }
};

}  // namespace jem
