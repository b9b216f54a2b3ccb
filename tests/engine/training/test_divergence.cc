// When a run is called diverged, what is done then, and to which state it goes back.
#include "engine/training/divergence.h"

#include <doctest/doctest.h>

#include <cmath>

#include "engine/training/rollback.h"
#include "tests/check.h"

namespace jem {
namespace {

Settings settings() {
    Settings s;
    s.num_classes = 10;
    s.batch_size = 50;
    s.gap_window = 20;
    s.gap_deviations = 10;
    s.chance_iterations = 30;
    return s;
}

// As often as it takes: the iteration, counted from 1, at which it is called diverged; 0: never.
int64_t diverges(DivergenceWatch& watch, int64_t iterations, const std::function<DivergenceWatch::Iteration(int64_t)>& at) {
    for (int64_t i = 1; i <= iterations; ++i)
        if (watch.look(at(i))) return i;
    return 0;
}

}  // namespace

TEST_CASE("a_raised_flag_is_divergence") {
    DivergenceWatch watch(settings());
    CHECK_FALSE(watch.look({}));
    CHECK(watch.look({.raised = true, .gap = {}, .accuracy = {}}));
}

TEST_CASE("an_energy_gap_far_outside_its_last_iterations_is_divergence_and_one_that_drifts_is_not") {
    const auto gap = [](double value) { return DivergenceWatch::Iteration{.raised = false, .gap = value, .accuracy = {}}; };
    const auto wave = [](int64_t i) { return std::sin(static_cast<double>(i)); };
    DivergenceWatch jump(settings());
    CHECK(diverges(jump, 200, [&](int64_t i) { return gap(i == 150 ? 40 : wave(i)); }) == 150);
    DivergenceWatch down(settings());
    CHECK(diverges(down, 200, [&](int64_t i) { return gap(i == 150 ? -40 : wave(i)); }) == 150);
    DivergenceWatch early(settings());  // no window yet to compare with
    CHECK(diverges(early, 20, [&](int64_t i) { return gap(i == 15 ? 40 : wave(i)); }) == 0);
    DivergenceWatch drift(settings());
    CHECK(diverges(drift, 2000, [&](int64_t i) { return gap(0.05 * static_cast<double>(i) + wave(i)); }) == 0);
    DivergenceWatch still(settings());  // without any deviation a small step is none
    CHECK(diverges(still, 100, [&](int64_t i) { return gap(i < 50 ? 1 : 1.05); }) == 0);
    Settings s = settings();
    s.gap_deviations = 0;
    DivergenceWatch off(s);
    CHECK(diverges(off, 200, [&](int64_t i) { return gap(i == 150 ? 1e9 : wave(i)); }) == 0);
}

TEST_CASE("accuracy_that_falls_back_to_chance_is_divergence_and_one_that_was_never_above_it_is_not") {
    const auto accuracy = [](double value) { return DivergenceWatch::Iteration{.raised = false, .gap = {}, .accuracy = value}; };
    DivergenceWatch falls(settings());
    const int64_t at = diverges(falls, 500, [&](int64_t i) { return accuracy(i <= 100 ? 0.5 : 0.1); });
    CHECK(at > 120);
    CHECK(at <= 130);  // a window of chance alone
    DivergenceWatch never(settings());
    CHECK(diverges(never, 500, [&](int64_t) { return accuracy(0.1); }) == 0);
    DivergenceWatch half(settings());  // half as good as it was, but no chance
    CHECK(diverges(half, 500, [&](int64_t i) { return accuracy(i <= 100 ? 0.5 : 0.25); }) == 0);
    Settings s = settings();
    s.chance_iterations = 0;
    DivergenceWatch off(s);
    CHECK(diverges(off, 500, [&](int64_t i) { return accuracy(i <= 100 ? 0.5 : 0.1); }) == 0);
    s = settings();
    s.num_classes = 2;
    DivergenceWatch two(s);
    CHECK(diverges(two, 500, [&](int64_t i) { return accuracy(i <= 100 ? 0.95 : 0.5); }) > 100);
}

TEST_CASE("a_watch_that_remembers_goes_on_as_the_one_it_was_taken_from") {
    const auto at = [](int64_t i) {
        return DivergenceWatch::Iteration{
            .raised = false, .gap = i == 80 ? 100 : std::cos(static_cast<double>(i)), .accuracy = i < 60 ? 0.6 : 0.1};
    };
    for (const int64_t cut : {1, 19, 20, 21, 57, 79}) {
        CAPTURE(cut);
        DivergenceWatch whole(settings()), first(settings()), second(settings());
        CHECK(diverges(whole, 200, at) == diverges(first, cut, at) + [&] {
            second.remember(first.memory());
            return cut + diverges(second, 200, [&](int64_t i) { return at(i + cut); });
        }());
    }
    DivergenceWatch other(settings());
    const std::vector<double> before = other.memory();
    other.remember({1, 2, 3});  // of other settings
    CHECK(other.memory() == before);
}

TEST_CASE("a_run_without_chains_has_its_rate_halved_and_K_left_alone") {
    Recovery r;
    next_remedy(r, false, false);
    CHECK(r.rate_factor == 1);
    CHECK(r.attempt == 1);
    for (int i = 2; i <= 5; ++i) CHECK_FALSE(next_remedy(r, false, false).fresh_buffer);
    CHECK(r.rate_factor == 1.0 / 16);
    CHECK(r.step_factor == 1);
    CHECK(r.in_a_row == 5);
}

TEST_CASE("a_state_is_suspect_once_the_run_diverged_again_before_it_reached_a_newer_one") {
    const std::vector<int64_t> at = {400, 300, 250, 0};
    Recovery r;
    CHECK(choose_state(at, 410, r) == 0);
    CHECK(choose_state(at, 350, r) == 1);  // the newest is from within the trouble
    r.in_a_row = 1;
    r.restored_at = 400;
    CHECK(choose_state(at, 410, r) == 1);
    r.restored_at = 250;
    CHECK(choose_state(at, 410, r) == 0);  // newer ones were reached since
    CHECK(choose_state({250, 0}, 260, r) == 1);
    r.restored_at = 0;
    CHECK(choose_state({0}, 10, r) == 0);  // there is no older one
    CHECK(choose_state({100, 50}, 10, Recovery{}) == 1);
}

TEST_CASE("good_states_give_back_what_was_there_the_newest_two") {
    const auto device = make_cpu_device({.threads = 1});
    const auto buffer = device->allocate(64 * sizeof(float));
    const Array array{buffer->data(), DType::f32, 64};
    GoodStates good(*device);
    const auto fill = [&](float value) {
        const std::vector<float> values(64, value);
        device->upload(array.data, values.data(), array.bytes());
    };
    for (int64_t i = 1; i <= 3; ++i) {
        fill(static_cast<float>(i));
        RunProgress p;
        p.iteration = 100 * i;
        p.watched = {static_cast<double>(i)};
        good.take({array}, p);
    }
    CHECK(good.iterations() == std::vector<int64_t>{300, 200});
    fill(9);
    CHECK(good.restore({array}, 200).watched == std::vector<double>{2});
    float first = 0;
    device->download(&first, array.data, sizeof first);
    CHECK(first == 2);
    good.drop_after(200);
    CHECK(good.iterations() == std::vector<int64_t>{200});
    good.clear();
    CHECK(good.iterations().empty());
}

}  // namespace jem
