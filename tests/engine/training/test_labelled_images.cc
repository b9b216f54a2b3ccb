// Few labels: which images have one, and that nothing reads another.
#include "engine/training/labelled_images.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/settings/recipes/recipes.h"
#include "kernels/images.h"
#include "tests/engine/training/runs.h"

namespace jem {
namespace {

Settings with_few_labels(int64_t per_class) {
    Settings s = small();
    s.labels_per_class = per_class;
    s.init = StartForm::gaussian;
    return s;
}

// The images as a batch holds them where nothing is done to them, and the number of each in the set; no two of these are alike.
std::map<Values, int64_t> numbers_of(const ImageSet& set) {
    std::map<Values, int64_t> numbers;
    for (int64_t i = 0; i < set.count(); ++i) {
        Values image;
        for (int64_t p = 0; p < kPixels; ++p)
            image.push_back(static_cast<double>(pixel_value<float>(set.pixels[static_cast<size_t>(i * kPixels + p)])));
        numbers[image] = i;
    }
    REQUIRE(std::ssize(numbers) == set.count());
    return numbers;
}

std::vector<int64_t> found_in(const std::map<Values, int64_t>& numbers, const Values& batch) {
    std::vector<int64_t> found;
    for (auto at = batch.begin(); at != batch.end(); at += kPixels) {
        const auto image = numbers.find(Values(at, at + kPixels));
        REQUIRE(image != numbers.end());
        found.push_back(image->second);
    }
    return found;
}

std::set<int64_t> chosen_of(const ImageSet& all, const ImageSet& chosen) {
    const std::map<Values, int64_t> numbers = numbers_of(all);
    std::set<int64_t> found;
    for (const auto& entry : numbers_of(chosen)) found.insert(numbers.at(entry.first));
    return found;
}

// Gives another label to as many images as can have one without another choice.
int64_t relabel_unchosen(ImageSet& set, const Settings& s) {
    const ImageSet chosen = labelled_images(set, s);
    int64_t changed = 0;
    for (int32_t& label : set.labels) {
        const int32_t was = std::exchange(label, (label + 1) % kClasses);
        const ImageSet now = labelled_images(set, s);
        if (now.pixels == chosen.pixels && now.labels == chosen.labels)
            ++changed;
        else
            label = was;
    }
    return changed;
}

}  // namespace

TEST_CASE("the_labelled_images_are_so_many_of_each_class_and_the_split_seed_alone_chooses_them") {
    const ImageSet set = images(60, 1);
    Settings s = with_few_labels(4);
    s.split_seed = 5;
    const ImageSet few = labelled_images(set, s);
    REQUIRE(few.count() == 4 * kClasses);
    for (int32_t c = 0; c < kClasses; ++c) CHECK(std::count(few.labels.begin(), few.labels.end(), c) == 4);
    CHECK(few.flip == set.flip);
    const std::map<Values, int64_t> numbers = numbers_of(set);
    for (const auto& [image, i] : numbers_of(few))
        CHECK(few.labels[static_cast<size_t>(i)] == set.labels[static_cast<size_t>(numbers.at(image))]);

    const std::set<int64_t> chosen = chosen_of(set, few);
    const auto chosen_by = [&](const Settings& by) { return chosen_of(set, labelled_images(set, by)); };
    Settings other = recipe("softmax");
    other.seed = 77;
    other.batch_size = 3;
    other.labels_per_class = 4;
    other.split_seed = 5;
    CHECK(chosen_by(other) == chosen);
    s.split_seed = 6;
    CHECK(chosen_by(s) != chosen);
    s.split_seed.reset();
    s.seed = 5;  // it chooses where nothing else is said
    CHECK(chosen_by(s) == chosen);
    s.labels_per_class = 7;
    const std::set<int64_t> more = chosen_by(s);
    CHECK(std::includes(more.begin(), more.end(), chosen.begin(), chosen.end()));
}

TEST_CASE("with_few_labels_labelled_batches_hold_no_other_image_and_p_of_x_sees_all") {
    Settings s = with_few_labels(4);
    s.augment = false;
    s.input_noise = 0;
    const ImageSet set = images(kTrainImages, 1);
    const std::set<int64_t> chosen = chosen_of(set, labelled_images(set, s));
    const auto device = make_cpu_device({.threads = 1});
    WideResNet network(wide_resnet_settings(s));
    Memory memory(*device);
    TrainingIteration iteration(*device, memory, network, s, TrainingIteration::source_of(set));
    iteration.plan();
    memory.allocate();
    iteration.upload(set);
    iteration.begin(0, 0, 0);
    iteration.buffer().fill(iteration.store().view(), iteration.state(), [](int64_t) {});

    const std::map<Values, int64_t> numbers = numbers_of(set);
    std::set<int64_t> seen_labelled, seen_real;
    for (int64_t i = 0; i < 60; ++i) {
        iteration.begin(i, 0, i);
        iteration.run("draw");
        const std::vector<int64_t> drawn = found_in(numbers, download_values(*device, iteration.labelled().images()));
        std::vector<int32_t> labels(drawn.size());
        device->download(labels.data(), iteration.labelled().labels().data, labels.size() * sizeof(int32_t));
        for (size_t n = 0; n < drawn.size(); ++n) CHECK(labels[n] == set.labels[static_cast<size_t>(drawn[n])]);
        seen_labelled.insert(drawn.begin(), drawn.end());
        for (const int64_t image : found_in(numbers, download_values(*device, iteration.real().images()))) seen_real.insert(image);
    }
    CHECK(seen_labelled == chosen);
    CHECK(std::ssize(seen_real) == set.count());
}

TEST_CASE("a_run_with_few_labels_reads_no_other") {
    std::vector<Variant> all;
    const auto add = [&](const char* name, auto change) {
        Settings s = with_few_labels(3);
        s.iterations = 3;
        s.log_interval = 1;
        change(s);
        all.push_back({name, s});
    };
    add("Gaussian start", [](Settings&) {});
    add("uniform start", [](Settings& s) { s.init = StartForm::uniform; });
    add("chains of classes", [](Settings& s) { s.class_conditional = ClassConditional::chain, s.p_x_y_weight = 0.5; });
    add("p(x|y) alone", [](Settings& s) { s.p_x_weight = 0, s.p_x_y_weight = 1; });
    add("energy head", [](Settings& s) { s.energy_head = Head::energy; });
    add("eb-jdat", [](Settings& s) { s.recipe = "eb-jdat", s.attack_steps = 1; });
    add("softmax", [](Settings& s) { s.recipe = "softmax", s.p_x_weight = 0; });
    for (const Variant& v : all) {
        CAPTURE(v.name);
        const auto run_of = [&](const path& folder, const Settings& s, bool relabelled) {
            RunOptions o;
            if (relabelled) o.alter_train = [&](ImageSet& set) { CHECK(relabel_unchosen(set, v.settings) > kTrainImages / 2); };
            train(folder, s, o);
        };
        const TempFolder a, b;
        run_of(a.path(), v.settings, false);
        run_of(b.path(), v.settings, true);
        check_same_run(b.path(), a.path());
        if (v.settings.p_y_given_x_weight == 0) continue;
        Settings every = v.settings;
        every.labels_per_class = 0;
        const TempFolder c, d;
        run_of(c.path(), every, false);
        run_of(d.path(), every, true);
        CHECK(metrics(d.path()) != metrics(c.path()));
    }
}

TEST_CASE("with_few_labels_p_of_x_is_what_it_was") {
    const auto positive = [](int64_t labels_per_class) {
        const TempFolder folder;
        Settings s = with_few_labels(labels_per_class);
        s.iterations = 1;
        s.log_interval = 1;
        train(folder.path(), s);
        const auto line = metrics(folder.path()).at(0);
        return std::pair{line.at("f_pos"), line.at("f_neg")};
    };
    CHECK(positive(3) == positive(0));
}

TEST_CASE("an_epoch_of_few_labels_is_one_of_p_of_x_and_without_it_one_of_the_labelled_images") {
    Settings s = with_few_labels(8);
    s.iterations = -1;
    s.epochs = 2;
    const TempFolder folder, classifier;
    CHECK(train(folder.path(), s).result.iterations == 2 * (kTrainImages / s.gen_batch_size));
    s.p_x_weight = 0;
    CHECK(train(classifier.path(), s).result.iterations == 2 * (8 * kClasses / kBatch));
}

TEST_CASE("more_labels_than_a_class_has_images_and_more_images_than_have_labels_are_errors_that_say_what_to_give") {
    const TempFolder folder;
    const auto error = [&](const Settings& s, const RunOptions& o = {}) { return error_of([&] { train(folder.path(), s, o); }); };
    RunOptions named;
    named.alter_train = [](ImageSet& set) { set.class_names = {"ant", "bee", "cat"}; };  // 9, 9 and 8 images
    CHECK(mentions(error(with_few_labels(9), named), "--labels-per-class is 9 (the training set has 8 images of class 2 (cat)). Give 8 "));
    RunOptions without;
    without.alter_train = [](ImageSet& set) { std::replace(set.labels.begin(), set.labels.end(), 1, 2); };
    CHECK(mentions(error(with_few_labels(1), without), "has 0 images of class 1). Leave it out, or the class."));
    CHECK(mentions(error(with_few_labels(2)),
                   "--batch-size is 8 (there are 6 labelled images by --labels-per-class 2). Give --batch-size 6 or less."));
    Settings s = with_few_labels(2);
    s.batch_size = 6;
    s.iterations = 2;
    CHECK(train(folder.path(), s).result.end == TrainingEnd::finished);
    CHECK_FALSE(RunFolder(folder.path()).read_config().labels_per_class == 0);
}

}  // namespace jem
