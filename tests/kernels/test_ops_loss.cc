// Energies and cross-entropy against loops in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/check.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

// Roundings of a row's value: one for each exponential and sum, largest for the 1000 classes, whose sum has a thousand additions.
constexpr double kRow = 16;
// exp(x - lse) carries the roundings of x and lse, which are as large as the logits (up to 60 here).
constexpr double kSoftmax = 4, kLargestLogit = 60;
// The summaries are sums in double of values that are exact.
constexpr double kDouble = 1e-13;

struct Size {
    int64_t rows, classes;
};
const Size kSizes[] = {{1, 1}, {1, 10}, {3, 2}, {7, 100}, {130, 10}, {5, 1000}, {2100, 10}};

struct Rows {
    Values logits, lse, softmax;
};

Rows random_rows(const Size& s, uint64_t seed, double spread) {
    Rows r;
    TestData data(seed);
    for (int64_t n = 0; n < s.rows; ++n) {
        const double offset = n % 3 == 1 ? 40 : n % 3 == 2 ? -45 : 0;  // exp of it alone is beyond what a sum of f32 keeps
        Values row;
        for (int64_t c = 0; c < s.classes; ++c) row.push_back(static_cast<float>(offset + spread * data.uniform(-1, 1)));
        double sum = 0;
        for (const double v : row) sum += std::exp(v);
        r.lse.push_back(std::log(sum));
        for (const double v : row) r.softmax.push_back(std::exp(v) / sum);
        r.logits.insert(r.logits.end(), row.begin(), row.end());
    }
    return r;
}

Extent extent(const Size& s) { return {.n = s.rows, .c = s.classes, .block = s.classes}; }

TEST_CASE("log_sum_exp_is_exact_to_rounding_wherever_the_logits_lie") {
    on_every_device([](OnDevice& m) {
        for (const Size& s : kSizes) {
            INFO(s.rows << " rows of " << s.classes);
            const Rows rows = random_rows(s, 1, 5);
            const Array lse = m.unwritten(s.rows);
            m.ops().log_sum_exp(lse, m.tensor(extent(s), rows.logits));
            check_close("lse", m.read(lse), rows.lse, m.roundings(kRow));
        }
    });
}

TEST_CASE("log_sum_exp_neither_overflows_nor_hides_a_nan") {
    on_every_device([](OnDevice& m) {
        const double huge = static_cast<double>(3e38f), nan = std::nan("");
        const Values logits = {huge, -huge, 0, -huge, -huge, -huge, nan, 1, 2, 1, nan, 2, 1, 2, nan, 1e4, 1e4, 1e4, HUGE_VAL, 0, 0};
        const Array lse = m.unwritten(7);
        m.ops().log_sum_exp(lse, m.tensor({.n = 7, .c = 3, .block = 3}, logits));
        const Values got = m.read(lse);
        check_close("finite rows", {got[0], got[1], got[5]}, {huge, -huge, 1e4 + std::log(3.0)}, m.roundings(kRow));
        CHECK(std::isnan(got[2]));
        CHECK(std::isnan(got[3]));
        CHECK(std::isnan(got[4]));
        CHECK_FALSE(std::isfinite(got[6]));
    });
}

constexpr EnergyTerm kTerms[] = {EnergyTerm::sampling, EnergyTerm::positive, EnergyTerm::negative};

TEST_CASE("energy_summary_writes_the_mean_and_with_the_negative_term_the_loss") {
    on_every_device([](OnDevice& m) {
        for (const int64_t count : {1, 3, 64, 1000})
            for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed})
                for (const double l2 : {0.0, 0.3}) {
                    INFO(count << " images, pass " << static_cast<int>(pass) << ", l2 " << l2);
                    const size_t p = static_cast<size_t>(pass);
                    TestData data(2);
                    const Values positive = data.normals(count, 3), negative = data.normals(count, -2);
                    double fp = 0, fq = 0;
                    for (const double v : positive) fp += v / static_cast<double>(count);
                    for (const double v : negative) fq += v / static_cast<double>(count);
                    IterationState start;
                    start.scalars[kEnergy.f_pos][0] = start.scalars[kEnergy.f_pos][1] = start.scalars[kEnergy.f_neg][0] =
                        start.scalars[kEnergy.f_neg][1] = start.scalars[kEnergy.loss][0] = start.scalars[kEnergy.loss][1] = 99;
                    IterationState* state = m.state(start);
                    m.ops().energy_summary(state, m.real(positive), EnergyTerm::positive, kEnergy, pass, l2);
                    IterationState got = m.read(state);
                    check_close("f_pos", {got.scalars[kEnergy.f_pos][p], got.scalars[kEnergy.f_pos][1 - p]}, {fp, 99},
                                {.relative = kDouble});
                    check_equal("the rest is untouched",
                                {got.scalars[kEnergy.f_neg][0], got.scalars[kEnergy.f_neg][1], got.scalars[kEnergy.loss][0],
                                 got.scalars[kEnergy.loss][1]},
                                {99, 99, 99, 99});
                    m.ops().energy_summary(state, m.real(negative), EnergyTerm::negative, kEnergy, pass, l2);
                    got = m.read(state);
                    check_close("f_pos, f_neg",
                                {got.scalars[kEnergy.f_pos][p], got.scalars[kEnergy.f_neg][p], got.scalars[kEnergy.f_neg][1 - p]},
                                {fp, fq, 99}, {.relative = kDouble});
                    check_close("loss_gen", {got.scalars[kEnergy.loss][p], got.scalars[kEnergy.loss][1 - p]},
                                {fq - fp + l2 * (fp * fp + fq * fq), 99}, {.absolute = kDouble, .relative = kDouble});
                    CHECK(got.diverged == 0);
                }
    });
}

TEST_CASE("energy_summary_raises_the_flag_for_non_finite_and_exploding_values_and_never_lowers_it") {
    on_every_device([](OnDevice& m) {
        const auto flag_after = [&](const Values& lse, EnergyTerm term, double f_pos) {
            IterationState start;
            start.scalars[kEnergy.f_pos][0] = f_pos;
            IterationState* state = m.state(start);
            m.ops().energy_summary(state, m.real(lse), term, kEnergy, SamPass::at_weights, 0);
            return m.read(state).diverged;
        };
        const double nan = std::nan("");
        for (const EnergyTerm term : {EnergyTerm::positive, EnergyTerm::negative}) {
            CHECK(flag_after({1, 2}, term, 0) == 0);
            CHECK(flag_after({1, nan}, term, 0) == 1);
            CHECK(flag_after({HUGE_VAL, 1}, term, 0) == 1);
            CHECK(flag_after({-HUGE_VAL, 1}, term, 0) == 1);
        }
        // The loss is -f_pos here; the authors' limit itself still passes.
        CHECK(flag_after({0}, EnergyTerm::negative, 1e5) == 0);
        CHECK(flag_after({0}, EnergyTerm::negative, -1e5) == 0);
        CHECK(flag_after({0}, EnergyTerm::negative, 100001) == 1);
        CHECK(flag_after({0}, EnergyTerm::negative, -100001) == 1);
        CHECK(flag_after({0}, EnergyTerm::negative, nan) == 1);
        CHECK(flag_after({2e5}, EnergyTerm::positive, 0) == 0);  // large energies alone are no divergence
        IterationState raised;
        raised.diverged = 1;
        IterationState* state = m.state(raised);
        m.ops().energy_summary(state, m.real({1}), EnergyTerm::positive, kEnergy, SamPass::at_weights, 0);
        m.ops().energy_summary(state, m.real({1}), EnergyTerm::negative, kEnergy, SamPass::at_weights, 0);
        CHECK(m.read(state).diverged == 1);
    });
}

TEST_CASE("energy_backward_is_the_term_s_coefficient_times_softmax") {
    on_every_device([](OnDevice& m) {
        IterationState start;
        start.scalars[kEnergy.f_pos][0] = 1.25, start.scalars[kEnergy.f_pos][1] = -2.5, start.scalars[kEnergy.f_neg][0] = 3.75,
        start.scalars[kEnergy.f_neg][1] = -0.5;
        const IterationState* state = m.state(start);
        constexpr double kWeight = 0.7, kL2 = 0.4;
        for (const Size& s : kSizes)
            for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed})
                for (const EnergyTerm term : kTerms) {
                    INFO(s.rows << " rows of " << s.classes << ", pass " << static_cast<int>(pass) << ", term " << static_cast<int>(term));
                    const size_t p = static_cast<size_t>(pass);
                    const Rows rows = random_rows(s, 3, 3);
                    double factor = 1;
                    if (term == EnergyTerm::positive)
                        factor = kWeight / static_cast<double>(s.rows) * (-1 + 2 * kL2 * start.scalars[kEnergy.f_pos][p]);
                    if (term == EnergyTerm::negative)
                        factor = kWeight / static_cast<double>(s.rows) * (1 + 2 * kL2 * start.scalars[kEnergy.f_neg][p]);
                    Values want;
                    for (const double v : rows.softmax) want.push_back(factor * v);
                    const Tensor logits = m.tensor(extent(s), rows.logits), out = m.unwritten(extent(s));
                    const Array lse = m.real(rows.lse);
                    m.ops().energy_backward(out, logits, lse, state, term, kEnergy, pass, kWeight, kL2);
                    // lse goes in rounded to the device's type
                    const Tolerance tolerance{.absolute = 0, .relative = kSoftmax * kLargestLogit * m.rounding()};
                    check_close("d_logits", m.read(out), want, tolerance);
                    m.ops().energy_backward(logits, logits, lse, state, term, kEnergy, pass, kWeight, kL2);
                    check_equal("d_logits == logits", m.read(logits), m.read(out));
                }
    });
}

TEST_CASE("cross_entropy_gives_loss_hit_and_gradient_of_the_mean") {
    on_every_device([](OnDevice& m) {
        constexpr double kWeight = 0.6;
        for (const Size& s : kSizes) {
            INFO(s.rows << " rows of " << s.classes);
            const Rows rows = random_rows(s, 4, 4);
            TestData data(5);
            std::vector<int32_t> labels;
            Values loss, hit, d_logits;
            for (int64_t n = 0; n < s.rows; ++n) {
                const auto row = rows.logits.begin() + n * s.classes;
                const int64_t best = std::max_element(row, row + s.classes) - row;
                const int64_t label = n % 2 == 0 ? best : data.index(s.classes);
                labels.push_back(static_cast<int32_t>(label));
                loss.push_back(rows.lse[static_cast<size_t>(n)] - row[label]);
                hit.push_back(label == best ? 1 : 0);
                for (int64_t c = 0; c < s.classes; ++c)
                    d_logits.push_back(kWeight / static_cast<double>(s.rows) *
                                       (rows.softmax[static_cast<size_t>(n * s.classes + c)] - (c == label ? 1 : 0)));
            }
            const Tensor logits = m.tensor(extent(s), rows.logits), out = m.unwritten(extent(s));
            const Array got_loss = m.unwritten(s.rows), got_hit = m.unwritten(s.rows), truth = m.integers(labels);
            m.ops().cross_entropy(got_loss, got_hit, out, logits, truth, kWeight);
            check_close("loss", m.read(got_loss), loss, m.roundings(kRow, kLargestLogit));
            check_equal("hit", m.read(got_hit), hit);
            check_close("d_logits", m.read(out), d_logits, m.roundings(kSoftmax * kLargestLogit, kWeight / static_cast<double>(s.rows)));
            m.ops().cross_entropy(got_loss, got_hit, logits, logits, truth, kWeight);
            check_equal("d_logits == logits", m.read(logits), m.read(out));
            check_close("loss when d_logits == logits", m.read(got_loss), loss, m.roundings(kRow, kLargestLogit));
        }
    });
}

TEST_CASE("class_logit_reads_the_label_s_logit_whose_gradient_is_one_there") {
    on_every_device([](OnDevice& m) {
        for (const Size& s : kSizes) {
            INFO(s.rows << " rows of " << s.classes);
            const Rows rows = random_rows(s, 6, 4);
            TestData data(7);
            std::vector<int32_t> labels;
            Values value, d_logits(static_cast<size_t>(s.rows * s.classes));
            for (int64_t n = 0; n < s.rows; ++n) {
                labels.push_back(static_cast<int32_t>(data.index(s.classes)));
                const auto at = static_cast<size_t>(n * s.classes + labels.back());
                value.push_back(rows.logits[at]);
                d_logits[at] = 1;
            }
            const Tensor logits = m.tensor(extent(s), rows.logits), out = m.unwritten(extent(s));
            const Array got = m.unwritten(s.rows), same = m.unwritten(s.rows), truth = m.integers(labels);
            m.ops().class_logit(got, out, logits, truth);
            check_equal("value", m.read(got), value);
            check_equal("d_logits", m.read(out), d_logits);
            m.ops().class_logit(same, logits, logits, truth);
            check_equal("value, d_logits == logits", m.read(same), value);
            check_equal("d_logits == logits", m.read(logits), d_logits);
        }
    });
}

TEST_CASE("of_equal_logits_the_first_is_the_prediction") {
    on_every_device([](OnDevice& m) {
        const Array loss = m.unwritten(3), hit = m.unwritten(3);
        m.ops().cross_entropy(loss, hit, m.unwritten(Extent{.n = 3, .c = 3, .block = 3}),
                              m.tensor({.n = 3, .c = 3, .block = 3}, {1, 5, 5, 1, 5, 5, 2, 2, 2}), m.integers({1, 2, 0}), 1);
        check_equal("hit", m.read(hit), {1, 0, 1});
    });
}

TEST_CASE("classification_summary_writes_means_and_the_accuracy_at_the_weights_only") {
    on_every_device([](OnDevice& m) {
        for (const int64_t count : {1, 5, 128, 3000}) {
            TestData data(6);
            const Values loss = data.uniforms(count, 0, 4);
            Values hit;
            double mean = 0, hits = 0;
            for (const double v : loss) {
                mean += v / static_cast<double>(count);
                hit.push_back(data.index(3) == 0 ? 1 : 0);
                hits += hit.back();
            }
            IterationState start;
            start.scalars[kClassification.loss][0] = start.scalars[kClassification.loss][1] = start.scalars[kClassification.accuracy][0] =
                99;
            IterationState* state = m.state(start);
            m.ops().classification_summary(state, m.real(loss), m.real(hit), kClassification, SamPass::at_perturbed);
            IterationState got = m.read(state);
            check_close(
                "perturbed",
                {got.scalars[kClassification.loss][0], got.scalars[kClassification.loss][1], got.scalars[kClassification.accuracy][0]},
                {99, mean, 99}, {.relative = kDouble});
            m.ops().classification_summary(state, m.real(loss), m.real(hit), kClassification, SamPass::at_weights);
            got = m.read(state);
            check_close(
                "at the weights",
                {got.scalars[kClassification.loss][0], got.scalars[kClassification.loss][1], got.scalars[kClassification.accuracy][0]},
                {mean, mean, hits / static_cast<double>(count)}, {.relative = kDouble});
            CHECK(got.diverged == 0);
            for (const double bad : {std::nan(""), HUGE_VAL}) {
                Values broken = loss;
                broken.back() = bad;
                IterationState* other = m.state();
                m.ops().classification_summary(other, m.real(broken), m.real(hit), kClassification, SamPass::at_weights);
                CHECK(m.read(other).diverged == 1);
            }
        }
    });
}

}  // namespace
}  // namespace jem
