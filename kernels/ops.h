// The list of ops: what engine and models may ask of a device between convolutions. Implemented once, in ops_impl.h.
//
// Contract of every op: it is queued on the device's stream (or recorded, or only counted, see Device); nothing is
// allocated, nothing is read back; outputs come first and are overwritten unless it says "accumulate" or "update"; an output
// may be the same memory as an input of the same shape. Activations are [N, C/B, H*W, B] (tensor.h). R is the device's real
// type (f32, or f64 on the reference), used for parameters, gradients, statistics, images and logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/images.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/pool.h"
#include "kernels/sampling.h"
#include "kernels/spectral.h"
#include "kernels/state.h"
#include "kernels/tensor.h"

namespace jem {

// One norm layer's values for the batch at hand, R [C] each. beta is the parameter itself.
struct NormCoefficients {
    Array mean, inv_std, scale, beta;
    Array a, b;                  // of the backward pass
    double slope = kLeakySlope;  // of the LeakyReLU behind; 0: ReLU
};

struct BatchNormParameters {
    Array gamma, beta;                // R [C]
    Array running_mean, running_var;  // R [C]
    Array left_out = {};  // R [C], a bias that x goes without, though the running mean has it: with a batch's statistics it would
                          // cancel; empty: none
    double epsilon = kNormEpsilon, momentum = kNormMomentum;
};

// One convolution's estimate of its weights' largest singular value.
struct SpectralNorm {
    Array u, v;     // R [O], R [K]: u' and v
    Array scalars;  // f64 [kSpectralScalars]
    SpectralForm form = SpectralForm::full;
};

enum class RunningStatistics { update, keep };
enum class PoolOver { mean, sum };  // of all positions

struct SgldSettings {
    double step_size = 1, noise = 0, grad_clamp = 1;
    bool pixel_clamp = true;
    uint64_t seed = 0;
    int64_t first = 0;         // number of the first value in the job's batch: draws depend on it
    int64_t noise_from = 0;    // the state's step that given noise begins with
    bool noise_first = false;  // it moves x before the gradient is taken: for whoever queues steps
};

// A step of length 0, whatever it goes along: its noise alone.
inline SgldSettings noise_alone(SgldSettings settings) {
    settings.step_size = settings.grad_clamp = 0;
    settings.pixel_clamp = false;
    return settings;
}

// Images of chains, and what their objective says of each.
struct LangevinPoint {
    Array x, gradient;  // R [N, H*W*C]
    Array value;        // R [N]
};

// The image set on the device.
struct ResidentImages {
    Array pixels;       // u8 [N, H*W*C]
    Array labels;       // i32 [N]
    Array class_order;  // i32 [N], image numbers sorted by class
    Array class_begin;  // i32 [classes + 1]
    int64_t count = 0, height = 0, width = 0, channels = 0, classes = 0;
    int64_t largest_class = 0;

    int64_t pixels_per_image() const { return height * width * channels; }
};

struct BatchDraw {
    RandomStream order, augment;
    bool crop = false, flip = false;
    double noise = 0;
    uint32_t noise_salt = 0;
    uint64_t seed = 0;
    int64_t first = 0, batch = 0;  // number of the first image in the job's batch, and that batch's size; 0: this is all of it
};

// Chains that go on in the places of their classes.
struct ChainDraw {
    Array labels = {};    // i32 [chains]; empty: in any place
    int64_t classes = 0;  // of labels
    int64_t first = 0;    // number of the first chain among an iteration's: draws depend on it
};

struct ChainStart {
    int64_t first_chain;  // global number of the first one: draws depend on it
    RandomStream weights, pixels;
    uint64_t seed;
};

// What the weights of a start's images are made in; nothing for the uniform start.
struct StartScratch {
    Array weights{};  // R [chains, largest_class]
    Array means{};    // f64 [chains]
};

// Starts of one class, made of its images block by block.
struct ClassStarts {
    int64_t begin, size;  // of the class in ResidentImages::class_order
    int64_t starts;
    ChainStart draws;
};

struct EnergyGradient {
    EnergyForm form = EnergyForm::means;
    int64_t both = 0;   // of the binary form: images of the two terms together, of as many ranks as the batch is
    Array labels = {};  // i32 [N], as those of the LSE; empty: none
    bool add = false;   // to what d_logits holds
};

class Ops {
public:
    virtual ~Ops() = default;

    // Normalisation and LeakyReLU ------------------------------------------------------------------------------------
    // mean, inv_std, scale of x's batch; the running statistics updated (unless the state has diverged) or kept.
    virtual void batch_norm_statistics(const NormCoefficients& out, const Tensor& x, const BatchNormParameters& parameters,
                                       RunningStatistics running, const IterationState* state) = 0;
    // The same from sums that a convolution left, R [2, C]: over N, H, W, of x - running_mean and of its square.
    virtual void batch_norm_of_sums(const NormCoefficients& out, Array sums, const Tensor& x, const BatchNormParameters& parameters,
                                    RunningStatistics running, const IterationState* state) = 0;
    // The same from the running statistics; a = b = 0.
    virtual void running_norm_coefficients(const NormCoefficients& out, const BatchNormParameters& parameters) = 0;
    // shift = beta - scale * mean, R [C]: norm(x) = scale * x + shift, for libraries that want it so.
    virtual void norm_shift(Array shift, const NormCoefficients& norm) = 0;
    // y = leaky(scale * (x - mean) + beta)
    virtual void norm_leaky(const Tensor& y, const Tensor& x, const NormCoefficients& norm) = 0;
    virtual void leaky(const Tensor& y, const Tensor& x, double slope = kLeakySlope) = 0;
    // a, b of the coefficients; accumulates d_gamma and d_beta unless they are empty.
    virtual void norm_backward_sums(const NormCoefficients& norm, Array d_gamma, Array d_beta, const Tensor& d_y, const Tensor& x) = 0;
    // The same from sums that a convolution left, R [2, C]: over N, H, W, of dz = leaky' * d_y and of dz * (x - mean).
    virtual void norm_backward_of_sums(const NormCoefficients& norm, Array d_gamma, Array d_beta, Array sums, const Tensor& x) = 0;
    // The same in two steps, for a batch that is spread over ranks: each leaves its own share (moments: mean and M2; sums:
    // sum(dz) and sum(dz * xc); f64 [2, C]), then makes the coefficients of all shares, f64 [ranks, 2, C]. x is one rank's;
    // d_gamma and d_beta receive its share.
    virtual void batch_norm_moments(Array moments, const Tensor& x) = 0;
    virtual void join_moments(const NormCoefficients& out, Array all, const Tensor& x, const BatchNormParameters& parameters,
                              RunningStatistics running, const IterationState* state) = 0;
    virtual void norm_backward_own_sums(Array sums, const NormCoefficients& norm, Array d_gamma, Array d_beta, const Tensor& d_y,
                                        const Tensor& x) = 0;
    virtual void join_backward_sums(const NormCoefficients& norm, Array all, const Tensor& x) = 0;
    // Norms of each image, of `group` channels at a time: norm's arrays are R [N, C], beta among them, and image n's channel c is the
    // channel n * C + c of x seen as one image (of_images), so that the ops above and below serve them. moments, sums: f64 [2, N, C].
    virtual void image_moments(Array moments, const Tensor& x) = 0;
    virtual void group_norm(const NormCoefficients& out, Array moments, Array gamma, Array beta, const Tensor& x, int64_t group,
                            double epsilon) = 0;
    virtual void image_backward_sums(Array sums, const NormCoefficients& norm, const Tensor& d_y, const Tensor& x) = 0;
    virtual void group_norm_backward(const NormCoefficients& norm, Array sums, const Tensor& x, int64_t group) = 0;
    virtual void group_norm_weights(Array d_gamma, Array d_beta, const NormCoefficients& norm, Array sums, const Tensor& x) = 0;
    // y = scale * (x + loc), either of them possibly empty: the norm of it, its gradients (accumulated) from norm_backward_own_sums, and
    // the values that make of a batch, by the moments of all ranks, one of mean 0 and deviation 1.
    virtual void affine_norm(const NormCoefficients& out, Array loc, Array scale) = 0;
    virtual void affine_weights(Array d_loc, Array d_scale, const NormCoefficients& norm, Array sums) = 0;
    virtual void affine_of_moments(Array loc, Array scale, Array all, const Tensor& x) = 0;
    // d_x = gradient through leaky and norm, + residual unless that is null.
    virtual void norm_leaky_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const NormCoefficients& norm,
                                     const Tensor* residual) = 0;
    // The same through norm alone: dz is the gradient between norm and leaky.
    virtual void norm_backward(const Tensor& d_x, const Tensor& dz, const Tensor& x, const NormCoefficients& norm,
                               const Tensor* residual) = 0;
    virtual void leaky_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const Tensor* residual,
                                double slope = kLeakySlope) = 0;
    // d_bias[c] += sum of d_y over N, H, W
    virtual void bias_gradient(Array d_bias, const Tensor& d_y) = 0;
    // y = x + bias[c] (R), + residual unless that is null
    virtual void add_bias(const Tensor& y, const Tensor& x, Array bias, const Tensor* residual) = 0;
    // [N, C, H, W] -> [N, C, 1, 1] of R, and back
    virtual void mean_pool(const Tensor& y, const Tensor& x, PoolOver over = PoolOver::mean) = 0;
    virtual void mean_pool_backward(const Tensor& d_x, const Tensor& d_y, PoolOver over = PoolOver::mean) = 0;
    // The maximum or average of each window, activations of any channel blocks; y has `outputs` of x's size. A window's maximum is the
    // first of equal ones, NaN where it holds one; d_x receives d_y there. d_x and y are other memory than x and d_y.
    virtual void pool(const Tensor& y, const Tensor& x, const Pooling& how) = 0;
    virtual void pool_backward(const Tensor& d_x, const Tensor& d_y, const Tensor& x, const Pooling& how) = 0;
    // y = the parts' channels, one part's behind the other's; and back. Channel blocks may differ; all in memory of their own.
    virtual void concatenate(const Tensor& y, std::span<const Tensor> parts) = 0;
    virtual void concatenate_backward(std::span<const Tensor> d_parts, const Tensor& d_y) = 0;
    // y = x / (1 - rate), or 0 with probability `rate`, drawn anew in every iteration and step. Its own backward: of d_y, with the same
    // settings before the state moves on.
    virtual void dropout(const Tensor& y, const Tensor& x, const IterationState* state, const DropoutSettings& how) = 0;

    // Losses; logits are R [N, classes, 1, 1] ---------------------------------------------------------------------------
    // labels i32 [N], or empty: see LogSumExp.
    virtual void log_sum_exp(Array lse, const Tensor& logits, Array labels = {}) = 0;
    virtual void energy_summary(IterationState* state, Array lse, EnergyTerm term, EnergyScalars scalars, SamPass pass, double l2,
                                EnergyForm form = EnergyForm::means, int64_t both = 0) = 0;
    virtual void energy_backward(const Tensor& d_logits, const Tensor& logits, Array lse, const IterationState* state, EnergyTerm term,
                                 EnergyScalars scalars, SamPass pass, double weight, double l2, const EnergyGradient& how = {}) = 0;
    // The same of EnergyTerm::sampling: the gradient of the sum of LSE. No scalar is read.
    void lse_backward(const Tensor& d_logits, const Tensor& logits, Array lse) {
        energy_backward(d_logits, logits, lse, nullptr, EnergyTerm::sampling, {}, SamPass::at_weights, 1, 0);
    }
    virtual void cross_entropy(Array loss, Array hit, const Tensor& d_logits, const Tensor& logits, Array labels, double weight,
                               double smoothing = 0, bool add = false) = 0;
    // value R [N]: factor * f(x)[label], and the gradient of its sum
    virtual void class_logit(Array value, const Tensor& d_logits, const Tensor& logits, Array labels, double factor = 1) = 0;
    // The same of LogitsApart; start: R [N, classes], the logits where the chain began.
    virtual void logits_apart(Array value, const Tensor& d_logits, const Tensor& logits, Array start, Array labels) = 0;
    // How well values of real images, R, lie above those of drawn ones, R, into the scalar: AUROC.
    virtual void separation(IterationState* state, Array real, Array drawn, int scalar) = 0;
    virtual void classification_summary(IterationState* state, Array loss, Array hit, ClassificationScalars scalars, SamPass pass) = 0;

    // Sampling; images are R [N, H*W, C] --------------------------------------------------------------------------------
    virtual void sgld_step(Array x, Array gradient, Array noise, const IterationState* state, const SgldSettings& settings) = 0;
    virtual void reflect(Array x) = 0;
    // x = start + radius * u, kept in [-1, 1]; u is uniform in [-1, 1]: given, R [N, H*W*C], or drawn where it is empty. first: number of
    // the first value in the job's batch.
    virtual void attack_start(Array x, Array start, Array u, const IterationState* state, double radius, uint64_t seed, int64_t first) = 0;
    // accepted i32 [N]: 1 where the chain is to move to its proposal, made by sgld_step of these settings and, with their pixel clamp,
    // reflect in its place (Metropolis).
    virtual void metropolis(Array accepted, const LangevinPoint& chain, const LangevinPoint& proposal, const IterationState* state,
                            const SgldSettings& settings) = 0;
    // x += step_size * sign(gradient), kept within radius of start and in [-1, 1]. scales: R [N], what each image's step is multiplied by;
    // empty: 1.
    virtual void sign_step(Array x, Array gradient, Array start, double step_size, double radius, Array scales = {}) = 0;
    // x += step_size * gradient / |gradient|, image by image; then kept within radius of centre (L2) and in [-1, 1]. norms: scratch, R [N].
    virtual void normalised_step(Array x, Array gradient, Array norms, double step_size, Array scales = {}) = 0;
    // x += share * (ahead - x) + (1 - share) * (x - before); before becomes what x was
    virtual void momentum_step(Array x, Array before, Array ahead, double share) = 0;
    // to = from in the images that are marked: i32 [N], 0 where not; as many marks as values mark single values
    virtual void copy_images(Array to, Array from, Array marked) = 0;
    virtual void project_on_ball(Array x, Array centre, Array norms, double radius) = 0;
    virtual void sgld_gradient_norm(IterationState* state, Array gradient, int64_t images, int scalar) = 0;
    virtual void draw_chains(Array index, Array fresh, const IterationState* state, int64_t buffer_size, int64_t classes,
                             double reinit_freq, uint64_t seed, const ChainDraw& how = {}) = 0;
    virtual void draw_labels(Array labels, const IterationState* state, int64_t classes, uint64_t seed) = 0;
    virtual void start_images(Array x, Array buffer, Array index, Array fresh, const StartScratch& scratch, const ResidentImages& images,
                              const IterationState* state, const ChainStart& start) = 0;
    // Images for fresh chains: draws is ImageDraw [chains] as bytes, for crop_flip.
    virtual void draw_starts(Array draws, int64_t images, const IterationState* state, const ChainStart& start, bool crop, bool flip) = 0;
    // How the chains went that ended at x and began at start, into the scalars: clamped and way.
    virtual void chain_summary(IterationState* state, Array x, Array start, int64_t images, ChainScalars scalars) = 0;
    // births i32 [buffer size]: the iteration in which an image's chain last began afresh. index, fresh: as draw_chains left them.
    virtual void store_births(Array births, Array index, Array fresh, const IterationState* state) = 0;
    // A buffer whose oldest images make place: where chains go, i32 [chains], and the births of what they are, i32 [chains]; then these
    // into births.
    virtual void places_of_oldest(Array places, Array born, Array births, Array index, Array fresh, const IterationState* state) = 0;
    virtual void store_born(Array births, Array places, Array born, const IterationState* state) = 0;
    virtual void store_chains(Array buffer, Array x, Array index, const IterationState* state) = 0;
    // The same starts as start_images', many of one class. A block of its images, from the first-th on, a multiple of 4, as the factors
    // of a product (StartFactors): z R [block, rows], rows > starts, x R [block, columns], columns > pixels; block a multiple of 4.
    virtual void start_factors(const Tensor& z, const Tensor& x, const ResidentImages& images, const IterationState* state,
                               const ClassStarts& starts, int64_t first) = 0;
    // x R [starts, pixels] from the sum of all blocks' z^T x, R [rows, columns].
    virtual void starts_of_product(Array x, const Tensor& product, const IterationState* state, const ClassStarts& starts) = 0;

    // Batches -----------------------------------------------------------------------------------------------------------
    // draws is ImageDraw [batch] as bytes.
    virtual void draw_images(Array draws, const ResidentImages& images, const IterationState* state, const BatchDraw& draw) = 0;
    virtual void crop_flip(Array x, Array draws, const ResidentImages& images, const IterationState* state, const BatchDraw& draw) = 0;
    // x R, in [-1, 1], of the same number of u8
    virtual void pixel_values(Array x, Array bytes) = 0;
    // y from x, images [N, H, W, C] of R with block = C: bilinear. Of one channel x becomes each of y's.
    virtual void resize(const Tensor& y, const Tensor& x, const Resizing& how) = 0;
    virtual void gather_labels(Array labels, Array draws, const ResidentImages& images) = 0;

    // Parameters, flat R [P] ----------------------------------------------------------------------------------------------
    virtual void fill_zero(Array x) = 0;
    // to = from, rounded to nearest even; each R or the activation type.
    virtual void convert(Array to, Array from) = 0;
    // Weights of a convolution, [rows, taps, columns], from R or the activation type to the activation type [columns, taps, rows], their
    // taps turned by half a circle: a convolution with these is the way back to data of one with stride 1.
    virtual void turn_weights(Array to, Array from, int64_t rows, int64_t taps) = 0;
    // The same weights, turned or as they are, as tiles (weight_tiles.h).
    virtual void tile_weights(Array to, Array from, int64_t rows, int64_t taps, bool turned) = 0;

    // Minimal filtering (winograd.h); all R, images with block = C. Points: R [36, tiles, C] ------------------------------------
    // In front of the products; with leaky(scale[c] * x + shift[c]) in place of x where these are not empty.
    virtual void winograd_input(Array points, const Tensor& x, Array scale, Array shift, double slope) = 0;
    // Behind them; bias may be empty, residual null, or y.
    virtual void winograd_output(const Tensor& y, Array points, Array bias, const Tensor* residual) = 0;
    // Of weights [rows, 3, 3, columns]: [36, rows, columns]; turned: with the taps of the way back to data.
    virtual void winograd_weights(Array points, Array weights, int64_t columns, bool turned) = 0;
    // sum (R) += x, R or the activation type.
    virtual void accumulate(Array sum, Array x) = 0;
    // clip: of the gradient that the optimizer gets, 0: none; the factor goes into the state.
    virtual void gradient_norm(IterationState* state, Array gradient, Array weights, SamForm form, double rho, SamPass pass,
                               double clip = 0) = 0;
    virtual void sam_perturb(Array perturbed, Array weights, Array gradient, const IterationState* state, SamForm form) = 0;
    virtual void sgd_update(Array weights, Array velocity, Array gradient, const IterationState* state, double momentum,
                            double weight_decay, bool nesterov = false) = 0;
    virtual void adam_update(Array weights, Array m, Array v, Array gradient, const IterationState* state, const AdamSettings& how) = 0;
    virtual void ema_update(Array average, Array weights, const IterationState* state, double decay) = 0;

    // Spectral normalisation; weights and gradients R [O, K] --------------------------------------------------------------
    // The estimate of weights from u, R [O], which stays as it is; normalised = the weights by its factor.
    virtual void spectral_norm(const SpectralNorm& out, Array normalised, Array weights, Array u) = 0;
    // In place: the gradient of the normalised weights becomes that of the weights that the estimate was made of.
    virtual void spectral_backward(const SpectralNorm& norm, Array gradient, Array weights) = 0;
    // u = what the estimate has, unless the state has diverged.
    virtual void keep_estimate(Array u, const SpectralNorm& norm, const IterationState* state) = 0;

    // State ---------------------------------------------------------------------------------------------------------------
    // iteration, attempt, learning rate and Adam's corrections; step = 0. Never recorded: it carries values.
    virtual void begin_iteration(IterationState* state, uint32_t iteration, double learning_rate, double adam_correction1,
                                 double adam_correction2, uint64_t attempt = 0) = 0;
    virtual void advance_step(IterationState* state) = 0;
    // states: IterationState [ranks] as bytes, one of each rank of the job.
    virtual void agree_on_state(IterationState* state, Array states, Agreement when, ChainScalars chain) = 0;
};

}  // namespace jem
