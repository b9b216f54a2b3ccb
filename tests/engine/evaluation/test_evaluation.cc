// Evaluations of a small network: what is interrupted goes on, attacks stay what they are, and the landscape's middle is the network
// itself.
#include "engine/evaluation/evaluation.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "data/input_error.h"
#include "engine/evaluation/classification.h"
#include "engine/evaluation/intervals.h"
#include "engine/evaluation/landscape.h"
#include "engine/evaluation/made_images.h"
#include "engine/evaluation/metric.h"
#include "engine/evaluation/pgd.h"
#include "engine/evaluation/sample_features.h"
#include "models/wide_resnet.h"
#include "tests/check.h"
#include "tests/temp_folder.h"

namespace jem {
namespace {

constexpr int64_t kImages = 6, kSide = 8, kPixels = kSide * kSide, kClasses = 4;
constexpr double kRounding = 1e-9;  // of sums in f64

ImageSet made_set_of(int64_t count, uint64_t seed) {
    ImageSet set{.name = "made",
                 .channels = 1,
                 .height = kSide,
                 .width = kSide,
                 .num_classes = kClasses,
                 .class_names = {},
                 .pixels = {},
                 .labels = {}};
    for (const double v : TestData(seed).uniforms(count * kPixels, 0, 256)) set.pixels.push_back(static_cast<uint8_t>(v));
    for (int64_t n = 0; n < count; ++n) set.labels.push_back(static_cast<int32_t>(n % kClasses));
    return set;
}

ImageSet made_set() { return made_set_of(kImages, 5); }

struct Subject {
    std::unique_ptr<Device> device = make_reference_device(DType::f64);
    TrainedNetwork trained(uint64_t seed = 3) {
        return {
            .device = *device,
            .conv_algorithm = ConvAlgorithm::direct,
            .size = {.height = kSide, .width = kSide, .channels = 1},
            .classes = kClasses,
            .make =
                [] {
                    return std::make_unique<WideResNet>(WideResNetSettings{
                        .depth = 10, .width = 1, .norm = NormKind::batch, .in_channels = 1, .image_size = kSide, .num_classes = kClasses});
                },
            .load =
                [seed](Parameters& parameters, Network& network) {
                    parameters.initialise(seed);
                    network.prepare(parameters.weights(), parameters.statistics());
                }};
    }
    Evaluation evaluation(EvaluationSettings settings = {}, Journal journal = {}, std::function<bool()> stop = nullptr) {
        return Evaluation(inputs(std::move(settings), std::move(journal), std::move(stop)));
    }
    Evaluation::Inputs inputs(EvaluationSettings settings, Journal journal, std::function<bool()> stop) {
        return {.network = trained(),
                .split = "test",
                .images = made_set(),
                .training = made_set,
                .others = {},
                .made = {},
                .settings = std::move(settings),
                .journal = std::move(journal),
                .progress = nullptr,
                .stop = std::move(stop)};
    }
};

double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::vector<std::vector<double>> rows_of(const std::string& csv) {
    std::vector<std::vector<double>> rows;
    size_t at = csv.find('\n') + 1;
    while (at < csv.size()) {
        const size_t end = csv.find('\n', at);
        std::vector<double> row;
        for (size_t begin = at; begin < end;) {
            const size_t comma = std::min(csv.find(',', begin), end);
            row.push_back(std::stod(csv.substr(begin, comma - begin)));
            begin = comma + 1;
        }
        rows.push_back(row);
        at = end + 1;
    }
    return rows;
}

}  // namespace

TEST_CASE("a_journal_gives_back_what_was_measured_and_forgets_a_line_that_was_cut") {
    const TempFolder folder;
    const auto path = folder.path() / "unfinished.jsonl";
    const auto never = []() -> std::vector<double> { throw std::logic_error("measured again"); };
    {
        Journal journal(path, "weights a");
        CHECK(journal.found() == 0);
        journal.piece("one", [] { return std::vector{0.1, std::nan(""), -1e-300}; });
        journal.piece("two", [] { return std::vector{2.0}; });
    }
    std::ofstream(path, std::ios::app) << R"({"piece": "three", "values": [3)";
    {
        Journal journal(path, "weights a");
        CHECK(journal.found() == 2);
        const std::vector<double> one = journal.piece("one", never);
        CHECK(one[0] == 0.1);
        CHECK(std::isnan(one[1]));
        CHECK(one[2] == -1e-300);
        CHECK(journal.piece("three", [] { return std::vector{4.0}; }) == std::vector{4.0});
    }
    CHECK(Journal(path, "weights a").piece("three", never) == std::vector{4.0});
    CHECK(Journal(path, "weights b").found() == 0);
    for (const std::string start : {"{\"of\": 3}", "{\"of\": []}", "[]", "\"weights a\"", "{"}) {
        folder.write("other.jsonl", start + "\n" + R"({"piece": "one", "values": [3]})" + "\n");
        CHECK(Journal(folder.path() / "other.jsonl", "weights a").found() == 0);
    }
    Journal last(path, "weights a");
    last.remove();
    CHECK(!std::filesystem::exists(path));
}

TEST_CASE("an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not") {
    const TempFolder folder;
    const auto path = folder.path() / "unfinished.jsonl";
    EvaluationSettings settings;
    settings.landscape = {.images = 4, .points = 5, .points_2d = 0, .to = nullptr};
    Subject subject;
    Evaluation whole = subject.evaluation(settings);
    const MetricResult want = metric("landscape").measure(whole);

    int calls = 0;
    Evaluation first = subject.evaluation(settings, Journal(path, "id"), [&] { return ++calls == 2; });
    CHECK_THROWS_AS(metric("landscape").measure(first), Interrupted);
    Evaluation second = subject.evaluation(settings, Journal(path, "id"));
    CHECK(second.journal().found() == 3);  // the centre and two points
    const MetricResult got = metric("landscape").measure(second);
    CHECK(got.values == want.values);
    CHECK(got.files == want.files);
}

TEST_CASE("the_middle_of_the_landscape_is_the_network_and_a_line_ends_at_the_other") {
    Subject subject;
    EvaluationSettings settings;
    settings.landscape = {.images = kImages, .points = 3, .points_2d = 3, .to = [](Parameters& parameters, Network& network) {
                              parameters.initialise(4);
                              network.prepare(parameters.weights(), parameters.statistics());
                          }};
    Evaluation evaluation = subject.evaluation(settings);
    const MetricResult result = metric("landscape").measure(evaluation);
    const double energy = -mean(evaluation.predictions().lse);
    REQUIRE(result.files.size() == 3);
    const auto axis = rows_of(result.files[0].second), plane = rows_of(result.files[1].second), line = rows_of(result.files[2].second);
    CHECK(axis[1][0] == 0);
    CHECK(axis[1][1] == doctest::Approx(energy).epsilon(kRounding));
    CHECK(axis[1][2] == doctest::Approx(kImages * energy).epsilon(kRounding));
    CHECK(plane[4][2] == doctest::Approx(energy).epsilon(kRounding));
    CHECK(plane[1][2] == doctest::Approx(axis[0][1]).epsilon(kRounding));  // b = 0: the axis
    CHECK(std::fabs(axis[0][1] - energy) > 1e-4);
    CHECK(line[0][1] == doctest::Approx(energy).epsilon(kRounding));

    TrainedNetwork other = subject.trained(4);
    NetworkInUse in_use(other);
    Predictor predictor(in_use.device(), in_use.memory(), in_use.network(), other.size, {.largest = kImages});
    in_use.ready([&] { predictor.plan(in_use.passes()); });
    const ImageSet set = made_set();
    CHECK(line[2][1] ==
          doctest::Approx(-mean(predictor.predict(kImages, predictor.images_of(set), in_use.passes()).lse)).epsilon(kRounding));
}

TEST_CASE("a_direction_is_as_long_as_the_weights_filter_by_filter_and_leaves_biases_and_norms") {
    Subject subject;
    const auto network = subject.trained().make();
    const Values weights = TestData(8).normals(network->parameter_count());
    const std::vector<double> d = filter_normalised_direction(*network, weights, 1, 0);
    const auto norm = [](const std::vector<double>& v, int64_t begin, int64_t count) {
        double sum = 0;
        for (int64_t i = begin; i < begin + count; ++i) sum += v[static_cast<size_t>(i)] * v[static_cast<size_t>(i)];
        return std::sqrt(sum);
    };
    for (const TensorInfo& tensor : network->parameters()) {
        const bool filters = tensor.shape.size() > 1;
        const int64_t size = filters ? tensor.count() / tensor.shape[0] : tensor.count();
        for (int64_t begin = tensor.offset; begin < tensor.offset + tensor.count(); begin += size)
            CHECK_MESSAGE(norm(d, begin, size) == doctest::Approx(filters ? norm(weights, begin, size) : 0).epsilon(kRounding),
                          tensor.name);
    }
    CHECK(d != filter_normalised_direction(*network, weights, 1, 1));
    CHECK(d != filter_normalised_direction(*network, weights, 2, 0));
}

TEST_CASE("an_attack_of_an_image_does_not_depend_on_its_batch_and_finds_only_what_is_within_reach") {
    Subject subject;
    Evaluation evaluation = subject.evaluation();
    const Predictions& clean = evaluation.predictions();
    ImageSet set = made_set();
    for (int64_t n = 0; n < kImages; ++n) set.labels[static_cast<size_t>(n)] = static_cast<int32_t>(classified(clean, n).best);
    set.labels[2] = (set.labels[2] + 1) % kClasses;  // wrong as it is
    std::vector<int64_t> numbers(kImages);
    std::iota(numbers.begin(), numbers.end(), 0);
    for (const AttackNorm norm : {AttackNorm::linf, AttackNorm::l2}) {
        const std::string name = norm == AttackNorm::linf ? "linf" : "l2";
        INFO(name);
        const double large = norm == AttackNorm::linf ? 0.5 : 8;
        const auto attack = [&](double radius, int64_t steps, bool random) {
            return PgdAttack{
                .limits = {.step_size = radius / 2, .radius = radius}, .steps = steps, .random_start = random, .restart = 0, .seed = 7};
        };
        Attacker together(subject.trained(), norm, kImages), alone(subject.trained(), norm, 1);
        const std::vector<bool> only_wrong = {false, false, true, false, false, false};
        CHECK(together.breaks(set, numbers, attack(large, 0, false)) == only_wrong);  // no step from the image: misclassified as it is
        CHECK(together.breaks(set, numbers, attack(1e-9, 4, true)) == only_wrong);
        const std::vector<bool> broken = together.breaks(set, numbers, attack(large, 4, true));
        CHECK(std::count(broken.begin(), broken.end(), true) > 1);
        for (const int64_t n : numbers) {
            const auto at = static_cast<size_t>(n);
            CHECK(alone.breaks(set, {n}, attack(large, 4, true))[0] == broken[at]);
        }
        CHECK(together.breaks(set, {4, 1}, attack(large, 4, true)) == std::vector<bool>{broken[4], broken[1]});
        // Where an image's attack has ended, the next one's begins.
        Attacker two(subject.trained(), norm, 2);
        CHECK(two.breaks(set, numbers, attack(large, 7, true)) == together.breaks(set, numbers, attack(large, 7, true)));
        CHECK(two.breaks(set, numbers, attack(large, 0, false)) == only_wrong);
    }
}

TEST_CASE("robust_accuracy_of_nothing_is_accuracy_and_is_named_as_given") {
    Subject subject;
    EvaluationSettings settings;
    settings.pgd.eps = {{"0", 0}, {"0.50", 0.5}};
    settings.pgd.steps = 2;
    settings.pgd.images = 4;
    settings.shuffled = false;
    Evaluation evaluation = subject.evaluation(settings);
    const MetricResult result = metric("pgd").measure(evaluation);
    const Predictions& p = evaluation.predictions();
    int right = 0;
    for (int64_t n = 0; n < 4; ++n) right += classified(p, n).right(p, n) ? 1 : 0;
    CHECK(result.values["robust_accuracy"]["0"] == right / 4.0);
    CHECK(result.values["robust_accuracy"]["0.50"] <= right / 4.0);
    CHECK(result.values["pgd"]["images"] == 4);
}

TEST_CASE("interpolated_images_are_means_of_consecutive_batches_and_noise_keeps_to_the_pixels_range") {
    ImageSet set = made_set();
    for (int k = 0; k < 6; ++k) set.pixels.insert(set.pixels.end(), set.pixels.begin(), set.pixels.end());
    set.labels.resize(set.pixels.size() / kPixels);
    REQUIRE(set.count() == 384);  // three full batches and a rest: two pairs
    std::vector<int64_t> numbers(static_cast<size_t>(set.count()));
    std::iota(numbers.rbegin(), numbers.rend(), 0);
    const MadeImages between("interpolation", set, numbers, 1);
    CHECK(between.count() == 200);
    const auto value = [&](int64_t image, int64_t i) { return 2 * set.pixels[static_cast<size_t>(image * kPixels + i)] / 255.0 - 1; };
    for (const int64_t n : {0, 99, 199}) {
        const std::vector<double> x = between.image(n);
        for (int64_t i = 0; i < kPixels; ++i)
            CHECK(x[static_cast<size_t>(i)] == doctest::Approx((value(383 - n, i) + value(283 - n, i)) / 2));
    }
    for (const std::string name : {"uniform", "gaussian"}) {
        const MadeImages noise(name, set, numbers, 1);
        CHECK(noise.count() == 384);
        double sum = 0, squares = 0, edge = 0;
        for (int64_t n = 0; n < noise.count(); ++n)
            for (const double v : noise.image(n)) sum += v, squares += v * v, edge += std::fabs(v) == 1 ? 1 : 0;
        const double count = 384.0 * kPixels, variance = squares / count;
        CHECK(std::fabs(sum / count) < 5 * std::sqrt(variance / count));
        // of N(0, 1) cut at 1 a share of 0.3173 lies at the edges, and the rest has the variance 0.2911 of its own
        CHECK(std::fabs(variance - (name == "uniform" ? 1.0 / 3 : 0.3173 + 0.6827 * 0.2911)) < 0.02);
        CHECK(std::fabs(edge / count - (name == "uniform" ? 0 : 0.3173)) < 0.02);
        CHECK(noise.image(3) == noise.image(3));
        CHECK(noise.image(3) != noise.image(4));
    }
    CHECK_THROWS_AS(MadeImages("snow", set, numbers, 1), InputError);
}

TEST_CASE("a_set_cannot_be_told_from_itself_and_scores_are_the_predictions") {
    Subject subject;
    Evaluation::Inputs inputs = subject.inputs({}, {}, nullptr);
    ImageSet same = made_set();
    same.name = "same";
    inputs.others = {same};
    Evaluation evaluation(std::move(inputs));
    evaluation.want_gradients();
    const MetricResult result = metric("ood").measure(evaluation);
    for (const char* score : {"px", "py", "pxgrad"}) CHECK(result.values["ood"]["same"]["auroc_" + std::string(score)] == 0.5);
    CHECK(result.values["ood"]["same"]["images"] == kImages);
    CHECK(result.files[0].first == "ood_scores.csv");
    std::string numbers_only = result.files[0].second;
    for (size_t at; (at = numbers_only.find("test,")) != std::string::npos;) numbers_only.erase(at, 5);
    for (size_t at; (at = numbers_only.find("same,")) != std::string::npos;) numbers_only.erase(at, 5);
    const auto rows = rows_of(numbers_only);
    REQUIRE(rows.size() == 2 * kImages);
    const Predictions& p = evaluation.predictions();
    for (size_t n = 0; n < kImages; ++n) {
        CHECK(rows[n][1] == p.lse[n]);
        CHECK(rows[n][2] == classified(p, static_cast<int64_t>(n)).confidence);
        CHECK(rows[n][3] == -p.gradient_norms[n]);
        CHECK(rows[n] == rows[n + kImages]);
    }
}

TEST_CASE("samples_that_are_the_training_images_are_no_distance_from_them_and_drawn_ones_repeat") {
    Subject subject;
    Settings settings;
    settings.in_channels = 1;
    settings.image_size = kSide;
    settings.num_classes = kClasses;
    const auto inputs = [&](SamplesFrom from, Journal journal, std::function<bool()> stop) {
        EvaluationSettings s;
        s.samples = {.from = from, .count = 8, .steps = 2};
        Evaluation::Inputs in = subject.inputs(s, std::move(journal), std::move(stop));
        in.features.emplace(FeatureNetwork{.network = subject.trained(9), .name = "another", .batch = 4});
        in.drawn = DrawnImages{.settings = &settings, .buffer_count = kImages, .buffer = [](int64_t first, int64_t count) {
                                   const ImageSet set = made_set();
                                   std::vector<double> x;
                                   for (int64_t i = first * kPixels; i < (first + count) * kPixels; ++i)
                                       x.push_back(2 * set.pixels[static_cast<size_t>(i)] / 255.0 - 1);
                                   return x;
                               }};
        return in;
    };
    Evaluation same(inputs(SamplesFrom::buffer, {}, nullptr));
    CHECK(metric("fid").measure(same).values["frechet_distance"].get<double>() < 1e-9);
    const MetricResult near = metric("prd").measure(same);
    for (const char* name : {"precision", "recall", "coverage"}) CHECK(near.values[name] == 1);
    CHECK(near.values["sample_quality"]["images"] == kImages);
    CHECK(metric("is").missing(same).find("Inception") != std::string::npos);  // its score is of Inception's classes alone

    Evaluation fresh(inputs(SamplesFrom::fresh, {}, nullptr));
    const double distance = metric("fid").measure(fresh).values["frechet_distance"];
    CHECK(distance > 1e-6);
    const TempFolder folder;
    const auto path = folder.path() / "unfinished.jsonl";
    int calls = 0;
    Evaluation stopped(inputs(SamplesFrom::fresh, Journal(path, "id"), [&] { return ++calls == 3; }));  // when the samples are drawn
    CHECK_THROWS_AS(metric("fid").measure(stopped), Interrupted);
    Evaluation goes_on(inputs(SamplesFrom::fresh, Journal(path, "id"), nullptr));
    CHECK(goes_on.journal().found() > 0);
    CHECK(metric("fid").measure(goes_on).values["frechet_distance"] == distance);
}

TEST_CASE("the_authors_protocol_takes_the_surest_images_of_the_buffer_and_fills_batches") {
    constexpr int64_t kBuffer = 560, kReference = 130, kFew = 100;
    Subject subject;
    subject.device = make_cpu_device({.threads = 1});
    const Values x = TestData(11).uniforms(kBuffer * kPixels, -1, 1);
    const TempFolder folder;
    const auto inputs = [&](Protocol protocol, int64_t buffer, SamplesFrom from) {
        EvaluationSettings s;
        s.protocol = protocol;
        s.samples.from = from;
        Evaluation::Inputs in = subject.inputs(s, {}, nullptr);
        in.reference = [buffer] { return made_set_of(buffer == kFew ? kFew : kReference, 12); };
        in.features.emplace(
            FeatureNetwork{.network = subject.trained(9), .name = "another", .inception = true, .batch = 32, .cache = folder.path()});
        in.drawn = DrawnImages{.buffer_count = buffer, .buffer = [&x](int64_t first, int64_t count) {
                                   return Values(x.begin() + first * kPixels, x.begin() + (first + count) * kPixels);
                               }};
        return in;
    };
    Evaluation whole(inputs(Protocol::engine, kBuffer, SamplesFrom::buffer)),
        authors(inputs(Protocol::authors, kBuffer, SamplesFrom::buffer));
    const double of_all = metric("fid").measure(whole).values["fid"];
    const MetricResult distance = metric("fid").measure(authors), score = metric("is").measure(authors);

    NetworkInUse in_use(subject.trained());
    Predictor predictor(in_use.device(), in_use.memory(), in_use.network(), subject.trained().size, {.largest = kImages});
    in_use.ready([&] { predictor.plan(in_use.passes()); });
    const Predictions p = predictor.predict(kBuffer, predictor.values(x), in_use.passes());
    SampleFeatures& all = whole.sample_features();
    const auto rows = [&](const auto& values, int64_t size, int64_t percent, int64_t count) {
        std::vector<int64_t> chosen = surest_of_each_class(p, percent);
        REQUIRE(std::ssize(chosen) > count);
        REQUIRE(std::ssize(chosen) < count + 50);
        auto out = values;
        out.clear();
        chosen.resize(static_cast<size_t>(count));
        for (const int64_t n : chosen) out.insert(out.end(), values.begin() + n * size, values.begin() + (n + 1) * size);
        return out;
    };
    const int64_t size = all.dimension();
    FeatureAccumulator drawn(size), reference(size);
    drawn.add(rows(all.samples(), size, 90, 500));
    reference.add(std::span(all.reference()).first(static_cast<size_t>(100 * size)));
    CHECK(distance.values["fid"].get<double>() ==
          doctest::Approx(frechet_distance(reference.statistics(), drawn.statistics()).distance).epsilon(kRounding));
    CHECK(std::fabs(distance.values["fid"].get<double>() - of_all) > 1e-6 * of_all);
    CHECK(distance.values["sample_quality"]["images"] == 500);
    CHECK(distance.values["sample_quality"]["reference_images"] == 100);
    const MeanAndDeviation want = inception_score(rows(all.sample_probabilities(), kClasses, 10, 50), kClasses, 1);
    CHECK(score.values["is_mean"].get<double>() == doctest::Approx(want.mean).epsilon(kRounding));
    CHECK(score.values["sample_quality"]["score_images"] == 50);

    const auto kept = [&] { return std::distance(std::filesystem::directory_iterator(folder.path()), {}); };
    CHECK(kept() == 2);
    Evaluation few(inputs(Protocol::authors, kFew, SamplesFrom::buffer)),
        few_of_engine(inputs(Protocol::engine, kFew, SamplesFrom::buffer)), fresh(inputs(Protocol::authors, kBuffer, SamplesFrom::fresh));
    CHECK(metric("fid").measure(few).values["sample_quality"]["images"] == 50);
    CHECK(metric("fid").measure(few_of_engine).values["sample_quality"]["images"] == kFew);
    CHECK(kept() == 4);  // of the same reference images, but statistics of one protocol are not taken for the other's
    CHECK_THROWS_AS(metric("is").measure(few), InputError);  // ten images or fewer fill no batch
    CHECK(metric("fid").missing(fresh).find("--samples buffer") != std::string::npos);
    CHECK(metric("is").missing(authors).empty());
}

TEST_CASE("images_are_taken_by_the_seeds_permutation_or_in_the_files_order") {
    Subject subject;
    EvaluationSettings settings;
    settings.seed = 5;
    Evaluation shuffled_one = subject.evaluation(settings);
    const std::vector<int64_t> some = shuffled_one.first_images(10, 1000), more = shuffled_one.first_images(20, 1000);
    CHECK(std::equal(some.begin(), some.end(), more.begin()));
    CHECK(std::set<int64_t>(more.begin(), more.end()).size() == 20);
    CHECK(!std::is_sorted(more.begin(), more.end()));
    settings.shuffled = false;
    CHECK(subject.evaluation(settings).first_images(3, 2) == std::vector<int64_t>{0, 1});
}

// scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
TEST_CASE("wilson_intervals_equal_scipys") {
    CHECK(wilson_interval(35, 100).low == doctest::Approx(0.26364248243097527).epsilon(1e-12));
    CHECK(wilson_interval(35, 100).high == doctest::Approx(0.44745556703112027).epsilon(1e-12));
    CHECK(wilson_interval(0, 10).low == 0);
    CHECK(wilson_interval(0, 10).high == doctest::Approx(0.27753279986288923).epsilon(1e-12));
    CHECK(wilson_interval(10, 10).high == 1);
    CHECK(wilson_interval(0, 0).high == 1);
}

}  // namespace jem
