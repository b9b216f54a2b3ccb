// Recipes, their JSON form, checks of ranges, the learning rate over time.
#include "engine/settings/settings.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string>

#include "data/input_error.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/schedule.h"
#include "engine/settings/table.h"

namespace jem {
namespace {

// The text of the InputError that run must throw; empty where it throws none.
std::string error_of(const std::function<void()>& run) {
    try {
        run();
    } catch (const InputError& e) {
        return e.what();
    }
    return "";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// A setting that would pass for a run's.
Settings complete() {
    Settings s = recipe("sada-jem");
    s.data = "cifar10";
    s.in_channels = 3;
    s.image_size = 32;
    s.num_classes = 10;
    return s;
}

// Every field differs from its default.
Settings unusual() {
    Settings s;
    s.recipe = "softmax";
    s.network = NetworkKind::igebm;
    s.spectral_norm = true;
    s.adam_beta1 = 0.5;
    s.adam_clamp = 2.5;
    s.sgld_noise_first = true;
    s.grow_steps_at = 0.7;
    s.init_data = "svhn:elsewhere";
    s.buffer_order = BufferOrder::fifo;
    s.seed = 0xFEDCBA9876543210u;  // beyond what an int64 or a double holds
    s.depth = 16;
    s.width = 3;
    s.norm = NormKind::none;
    s.norm_statistics = NormStatistics::job;
    s.act_init = ActInit::data;
    s.dropout = 0.4;
    s.in_channels = 1;
    s.image_size = 28;
    s.num_classes = 7;
    s.precision = "bf16";
    s.energy_head = Head::energy;
    s.conv_algorithm = ConvAlgorithm::direct;
    s.data = "mnist";
    s.data_dir = "a \"quoted\" folder\n\xC3\xA9";
    s.n_valid = 123;
    s.labels_per_class = 45;
    s.split_seed = 0xFEDCBA9876543211u;
    s.augment = false;
    s.recompute = true;
    s.gen_augment = Augment::crop;
    s.flip = Flip::on;
    s.skip_damaged = true;
    s.input_noise = 0.03;
    s.input_noise_on = InputNoiseOn::both;
    s.epochs = 3;
    s.iterations = 17;
    s.batch_size = 11;
    s.gen_batch_size = 13;
    s.optimizer = Optimizer::adam;
    s.lr = 1e-4;
    s.momentum = 0.8;
    s.weight_decay = 4e-4;
    s.warmup_iterations = 5;
    s.lr_schedule = LrSchedule::cosine;
    s.lr_milestones = {1, 2};
    s.lr_decay = 0.3;
    s.ema = 0.999;
    s.gradient_clip = 2;
    s.label_smoothing = 0.1;
    s.sgld_steps = 4;
    s.sgld_step_size = 0.7;
    s.sgld_noise = 0.01;
    s.attack_objective = AttackObjective::ce;
    s.attack_norm = AttackNorm::l2;
    s.attack_eps = 4;
    s.attack_step_size = 1;
    s.attack_steps = 3;
    s.attack_weight = 0.2;
    s.attack_ce_weight = 0.3;
    s.sgld_grad_clamp = 0;
    s.inner_steps = 3;
    s.inner_step_size = 0.3;
    s.outer_step_size = 0.4;
    s.p_x_y_weight = 0.6;
    s.class_conditional = ClassConditional::chain;
    s.energy_l2_form = EnergyL2::image;
    s.sgld_pixel_clamp = false;
    s.sampling_norm = SamplingNorm::running;
    s.buffer_size = 77;
    s.reinit_freq = 0.1;
    s.init = StartForm::images;
    s.sam = SamForm::asam_sign;
    s.sam_local = true;
    s.rho = 2.0 / 3;
    s.p_x_weight = 0.1;
    s.p_y_given_x_weight = 0.2;
    s.energy_l2 = 0.3;
    s.start_from = "other/last.safetensors";
    s.checkpoint_interval = 9;
    s.archive_interval = 5;
    s.metric_interval = 2;
    s.metrics = "nll,fid";
    s.features = "other/best.safetensors";
    s.log_interval = 3;
    s.sample_interval = 0;
    s.sample_every = 7;
    s.keep = 4;
    s.best_by = BestBy::energy_gap;
    s.on_divergence = OnDivergence::stop;
    s.max_rollbacks = 9;
    s.gap_deviations = 12.5;
    s.gap_window = 40;
    s.chance_iterations = 0;
    s.norm_statistics = NormStatistics::job;
    s.sam_local = true;
    return s;
}

}  // namespace

TEST_CASE("sada_jem_has_the_numbers_of_the_paper") {
    const Settings s = recipe("sada-jem");
    CHECK(s.recipe == "sada-jem");
    CHECK(s.depth == 28);
    CHECK(s.width == 10);
    CHECK(s.norm == NormKind::batch);
    CHECK(s.precision == "f32");
    CHECK(s.conv_algorithm == ConvAlgorithm::automatic);
    CHECK(s.n_valid == 0);
    CHECK(s.labels_per_class == 0);
    CHECK(s.augment);
    CHECK(s.gen_augment == Augment::off);
    CHECK(s.input_noise == 0);
    CHECK(s.input_noise_on == InputNoiseOn::generative);
    CHECK_FALSE(s.split_seed);
    CHECK(s.epochs == 200);
    CHECK(s.iterations == -1);
    CHECK(s.batch_size == 128);
    CHECK(s.gen_batch_size == 64);
    CHECK(s.optimizer == Optimizer::sgd);
    CHECK(s.lr == 0.1);
    CHECK(s.momentum == 0.9);
    CHECK(s.weight_decay == 5e-4);
    CHECK(s.warmup_iterations == 1000);
    CHECK(s.lr_schedule == LrSchedule::step);
    CHECK(s.lr_milestones == std::vector<int64_t>{60, 120, 180});
    CHECK(s.lr_decay == 0.2);
    CHECK(s.ema == 0);
    CHECK(s.sgld_steps == 10);
    CHECK(s.sgld_step_size == 1);
    CHECK(s.sgld_noise == 0);
    CHECK(s.sgld_grad_clamp == 1);
    CHECK(s.sgld_pixel_clamp);
    CHECK(s.sampling_norm == SamplingNorm::batch);
    CHECK(s.buffer_size == 10000);
    CHECK(s.reinit_freq == 0.05);
    CHECK(s.init == StartForm::informative);
    CHECK(s.sam == SamForm::sam);
    CHECK(s.rho == 0.2);
    CHECK(s.p_x_weight == 1);
    CHECK(s.p_y_given_x_weight == 1);
    CHECK(s.energy_l2 == 0);
    CHECK(s.samples());
    CHECK(s.classifies());
    CHECK(s.sgld().step_size == 1);
    CHECK(s.sgld().grad_clamp == 1);
    CHECK(s.sgld().noise == 0);
    CHECK(s.sgld().pixel_clamp);
    CHECK(s.sgld().seed == s.seed);
}

TEST_CASE("softmax_recipes_train_the_classifier_alone") {
    for (const char* name : {"softmax", "softmax+sam"}) {
        CAPTURE(std::string(name));
        const Settings s = recipe(name);
        CHECK(s.recipe == name);
        CHECK(s.p_x_weight == 0);
        CHECK(s.p_y_given_x_weight == 1);
        CHECK(s.sgld_steps == 0);
        CHECK_FALSE(s.samples());
        CHECK(s.optimizer == Optimizer::sgd);
        CHECK(s.lr == 0.1);
        CHECK(s.norm == NormKind::batch);
        CHECK(s.input_noise_on == InputNoiseOn::both);
        CHECK((s.sam == SamForm::none) == (std::string(name) == "softmax"));
    }
    CHECK(recipe("softmax+sam").sam == SamForm::sam);
    CHECK(recipe("softmax+sam").rho == 0.2);
}

TEST_CASE("every_recipe_is_valid_and_unknown_ones_list_the_known") {
    for (const std::string& name : recipe_names()) {
        CAPTURE(name);
        Settings s = recipe(name);
        s.data = "cifar10";
        s.in_channels = 3;
        s.image_size = 32;
        s.num_classes = 10;
        CHECK_NOTHROW(validate(s));
    }
    const std::string text = error_of([] { recipe("sada_jem"); });
    CHECK(mentions(text, "sada_jem"));
    for (const std::string& name : recipe_names()) CHECK(mentions(text, " " + name));
}

TEST_CASE("settings_survive_json_field_by_field") {
    const Settings s = unusual();
    const auto json = to_json(s), defaults = to_json(Settings{});
    CHECK(json.size() == 92);  // a new setting belongs into unusual() and into this number
    for (const auto& entry : json.items()) {
        const std::string key = entry.key();
        const auto& value = entry.value();
        CAPTURE(key);
        CHECK(value != defaults.at(key));
    }
    Settings back;
    merge_json(back, nlohmann::json::parse(json.dump()));
    CHECK(to_json(back) == json);
    // Some that a double could not carry, and enumerations, not by way of to_json.
    CHECK(back.seed == s.seed);
    CHECK(back.rho == s.rho);
    CHECK(back.data_dir == s.data_dir);
    CHECK(back.norm == NormKind::none);
    CHECK(back.sam == SamForm::asam_sign);
    CHECK(back.init == StartForm::images);
    CHECK(back.init_data == "svhn:elsewhere");
    CHECK(back.lr_milestones == s.lr_milestones);
}

TEST_CASE("each_key_of_the_json_is_a_setting_of_its_own") {
    const auto changed = to_json(unusual()), defaults = to_json(Settings{});
    for (const auto& entry : changed.items()) {
        const std::string key = entry.key();
        const auto& value = entry.value();
        CAPTURE(key);
        Settings s;
        merge_json(s, nlohmann::json{{key, value}});
        auto expected = defaults;
        expected[key] = value;
        CHECK(to_json(s) == expected);  // this one alone
    }
}

TEST_CASE("every_enum_value_has_a_name_that_reads_back") {
    const auto all = [](const std::string& key, const std::set<std::string>& names, size_t count) {
        CHECK(names.size() == count);
        for (const std::string& name : names) {
            CAPTURE(key);
            CAPTURE(name);
            Settings s;
            merge_json(s, nlohmann::json{{key, name}});
            CHECK(to_json(s).at(key) == name);
        }
    };
    all("norm", {"none", "batch", "instance", "layer", "act"}, EnumNames<NormKind>::all().size());
    all("act_init", {"first", "data"}, EnumNames<ActInit>::all().size());
    all("network", {"wide-resnet", "igebm"}, EnumNames<NetworkKind>::all().size());
    all("buffer_order", {"in-place", "fifo"}, EnumNames<BufferOrder>::all().size());
    all("input_noise_on", {"generative", "both"}, EnumNames<InputNoiseOn>::all().size());
    all("optimizer", {"sgd", "adam"}, EnumNames<Optimizer>::all().size());
    all("lr_schedule", {"step", "cosine"}, EnumNames<LrSchedule>::all().size());
    all("sampling_norm", {"batch", "running"}, EnumNames<SamplingNorm>::all().size());
    all("init", {"informative", "uniform", "gaussian", "cifar100:a/folder"}, EnumNames<StartForm>::all().size());
    all("sam", {"none", "sam", "asam", "asam-sign"}, EnumNames<SamForm>::all().size());
    all("energy_head", {"lse", "linear"}, EnumNames<Head>::all().size());
    all("conv_algorithm", {"auto", "direct", "own"}, EnumNames<ConvAlgorithm>::all().size());
}

TEST_CASE("where_chains_start_is_a_word_or_a_set_and_the_last_one_given_holds") {
    const auto& table = settings_table();
    const auto init = std::find_if(table.begin(), table.end(), [](const Setting& row) { return row.key == "init"; });
    REQUIRE(init != table.end());
    Settings s;
    const auto given = [&](const char* text) {
        init->parse(s, "--init", text);
        return to_json(s).at("init").get<std::string>();
    };
    CHECK(given("cifar100:a/b") == "cifar100:a/b");
    CHECK(s.init == StartForm::images);
    CHECK(given("noise") == "uniform");
    CHECK(s.init_data.empty());
    CHECK(given("fashion-mnist") == "fashion-mnist");
    CHECK(given("a/folder") == "images:a/folder");
    CHECK(given("gm") == "informative");
    CHECK(mentions(error_of([&] { given("cifar1000:a"); }), "uniform"));
    merge_json(s, nlohmann::json{{"init", "svhn:there"}});
    CHECK(s.init == StartForm::images);
    merge_json(s, nlohmann::json{{"init", "gaussian"}});
    CHECK(s.init_data.empty());
}

TEST_CASE("bad_configurations_are_refused_with_the_key_in_the_text") {
    const auto merge = [](const char* text) {
        return error_of([&] {
            Settings s;
            merge_json(s, nlohmann::json::parse(text));
        });
    };
    CHECK(mentions(merge(R"({"dept": 28})"), "\"dept\""));
    CHECK(mentions(merge(R"({"depth": "28"})"), "\"depth\""));
    CHECK(mentions(merge(R"({"depth": null})"), "\"depth\""));
    CHECK(mentions(merge(R"({"depth": [28]})"), "\"depth\""));
    CHECK(mentions(merge(R"({"depth": 28.5})"), "\"depth\""));  // not cut to 28
    CHECK(mentions(merge(R"({"depth": true})"), "\"depth\""));
    CHECK(mentions(merge(R"({"seed": -1})"), "\"seed\""));  // not wrapped around
    CHECK(mentions(merge(R"({"seed": 1.5})"), "\"seed\""));
    CHECK(mentions(merge(R"({"lr": "0.1"})"), "\"lr\""));
    CHECK(mentions(merge(R"({"lr": {}})"), "\"lr\""));
    CHECK(mentions(merge(R"({"augment": "on"})"), "\"augment\""));
    CHECK(mentions(merge(R"({"augment": 1})"), "\"augment\""));
    CHECK(mentions(merge(R"({"data": 7})"), "\"data\""));
    CHECK(mentions(merge(R"({"norm": 1})"), "\"norm\""));
    CHECK(mentions(merge(R"({"lr_milestones": 60})"), "\"lr_milestones\""));
    CHECK(mentions(merge(R"({"lr_milestones": [60, "120"]})"), "\"lr_milestones\""));
    CHECK(mentions(merge(R"({"lr_milestones": [60.5]})"), "\"lr_milestones\""));
    const std::string bad_enum = merge(R"({"sam": "sum"})");
    for (const char* part : {"sam", "\"sum\"", "none", "asam-sign"}) CHECK(mentions(bad_enum, part));
    CHECK(mentions(merge("[]"), "object"));
    CHECK(mentions(merge("3"), "object"));
    CHECK(merge("{}").empty());
    CHECK(merge(R"({"lr": 1, "lr_milestones": []})").empty());  // an integer will do for a number
}

TEST_CASE("a_value_of_any_number_of_levels_is_refused_as_any_other_of_another_type") {
    const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
    for (const std::string key : {"seed", "lr_milestones", "data", "augment", "sam", "split_seed"}) {
        const nlohmann::json json = nlohmann::json::parse("{\"" + key + "\": " + deep + "}");
        Settings s;
        CHECK(mentions(error_of([&] { merge_json(s, json); }), "\"" + key + "\""));
    }
}

TEST_CASE("absent_keys_keep_what_was_there") {
    Settings s = unusual();
    merge_json(s, nlohmann::json{{"depth", 22}});
    auto expected = to_json(unusual());
    expected["depth"] = 22;
    CHECK(to_json(s) == expected);
}

TEST_CASE("a_configuration_starts_from_the_recipe_that_it_names") {
    for (const std::string& name : recipe_names()) {
        CAPTURE(name);
        CHECK(to_json(settings_of_config({{"recipe", name}})) == to_json(recipe(name)));
        Settings changed = recipe(name);
        changed.rho = 0.7;
        CHECK(to_json(settings_of_config({{"rho", 0.7}, {"recipe", name}})) == to_json(changed));
    }
    CHECK(mentions(error_of([] { settings_of_config({{"recipe", "sam"}}); }), "\"sam\""));
}

TEST_CASE("an_error_of_a_configuration_names_where_it_stands") {
    for (const nlohmann::json& wrong :
         {nlohmann::json{{"dept", 28}}, nlohmann::json{{"depth", "28"}}, nlohmann::json{{"sam", "sum"}}, nlohmann::json(3)})
        CHECK(mentions(error_of([&] { settings_of_config(wrong, "some/config.json"); }), "some/config.json"));
}

TEST_CASE("a_run_of_before_a_setting_was_there_means_what_it_did") {
    nlohmann::json old = nlohmann::json::parse(to_json(recipe("sada-jem")).dump());
    old["seed"] = 5u;
    old.erase("split_seed");
    old.erase("input_noise_on");
    const Settings s = settings_of_run(old);
    CHECK(s.input_noise_on == InputNoiseOn::both);
    CHECK(s.seed_of_split() == 5);
    old["split_seed"] = 9u;
    old["input_noise_on"] = "generative";
    CHECK(settings_of_run(old).input_noise_on == InputNoiseOn::generative);
    CHECK(settings_of_run(old).seed_of_split() == 9);
    nlohmann::json dat = nlohmann::json::parse(to_json(recipe("dat")).dump());
    CHECK(settings_of_run(dat).grow_steps_at > 0);
    dat.erase("grow_steps_at");
    CHECK(settings_of_run(dat).grow_steps_at == 0);
}

TEST_CASE("an_epoch_is_of_the_labelled_images_but_with_few_labels_of_those_of_p_of_x") {
    Settings s = complete();
    CHECK(s.num_labelled(50000) == 50000);
    CHECK(s.iterations_per_epoch(50000) == 390);  // 50000 / 128
    s.labels_per_class = 40;
    CHECK(s.num_labelled(50000) == 400);
    CHECK(s.iterations_per_epoch(50000) == 781);  // 50000 / 64
    CHECK(s.images_per_iteration() == 64);
    s.p_y_given_x_weight = 0;
    CHECK(s.iterations_per_epoch(50000) == 781);
    for (double Settings::*weight : {&Settings::p_y_given_x_weight, &Settings::p_x_y_weight}) {
        s.p_x_weight = s.p_y_given_x_weight = s.p_x_y_weight = 0;
        s.*weight = 1;
        CHECK(s.iterations_per_epoch(50000) == 3);  // 400 / 128
        CHECK(s.images_per_iteration() == 128);
    }
}

TEST_CASE("a_recipe_whose_p_of_x_takes_labels_refuses_to_have_few_of_them") {
    for (const std::string& name : recipe_names()) {
        CAPTURE(name);
        Settings s = recipe(name);
        s.labels_per_class = 4;
        const std::string text = error_of([&] { method_of(s); });
        CHECK(mentions(text, "--labels-per-class is not of recipe " + name) == (name == "dat" || name == "jeat" || name == "igebm"));
        s.p_x_weight = 0;
        CHECK_NOTHROW(method_of(s));
    }
}

TEST_CASE("the_rate_for_cifar100_is_the_recipe_s_own") {
    struct Rate {
        std::string recipe;
        double elsewhere, cifar100;
    };
    const std::vector<Rate> rates = {{"sada-jem", 0.1, 0.01},    {"jem", 1e-4, 1e-4},     {"jem++", 0.1, 0.01}, {"m-jem", 0.1, 0.01},
                                     {"jeat", 0.1, 0.01},        {"eb-jdat", 0.01, 0.01}, {"dat", 1e-3, 0.01},  {"softmax", 0.1, 0.01},
                                     {"softmax+sam", 0.1, 0.01}, {"igebm", 3e-4, 3e-4}};
    CHECK(rates.size() == recipe_names().size());
    for (const Rate& rate : rates) {
        CAPTURE(rate.recipe);
        Settings s = recipe(rate.recipe);
        s.data = "cifar10";
        fit_rate_to_data(s);
        CHECK(s.lr == rate.elsewhere);
        s.data = "cifar100";
        fit_rate_to_data(s);
        CHECK(s.lr == rate.cifar100);
    }
}

TEST_CASE("learning_rate_warms_up_linearly_from_zero") {
    Settings s;
    s.lr = 0.1;
    s.warmup_iterations = 1000;
    CHECK(learning_rate(s, 0, 390, 78000) == 0);
    CHECK(learning_rate(s, 1, 390, 78000) == doctest::Approx(0.0001).epsilon(1e-12));
    CHECK(learning_rate(s, 500, 390, 78000) == doctest::Approx(0.05).epsilon(1e-12));
    CHECK(learning_rate(s, 999, 390, 78000) == doctest::Approx(0.0999).epsilon(1e-12));
    CHECK(learning_rate(s, 1000, 390, 78000) == 0.1);
    s.warmup_iterations = 0;
    CHECK(learning_rate(s, 0, 390, 78000) == 0.1);
}

TEST_CASE("learning_rate_falls_at_the_beginning_of_each_milestone_epoch") {
    Settings s;
    s.lr = 0.1;
    s.warmup_iterations = 1000;
    s.lr_milestones = {60, 120, 180};
    s.lr_decay = 0.2;
    const auto at = [&](int64_t i) { return learning_rate(s, i, 390, 78000); };
    CHECK(at(60 * 390 - 1) == 0.1);
    CHECK(at(60 * 390) == doctest::Approx(0.02).epsilon(1e-12));
    CHECK(at(120 * 390 - 1) == doctest::Approx(0.02).epsilon(1e-12));
    CHECK(at(120 * 390) == doctest::Approx(0.004).epsilon(1e-12));
    CHECK(at(180 * 390 - 1) == doctest::Approx(0.004).epsilon(1e-12));
    CHECK(at(180 * 390) == doctest::Approx(0.0008).epsilon(1e-12));
    CHECK(at(77999) == doctest::Approx(0.0008).epsilon(1e-12));
    s.lr_milestones = {};
    CHECK(at(77999) == 0.1);
    s.warmup_iterations = 60 * 390 + 10;  // a warm-up beyond a milestone: first the warm-up
    s.lr_milestones = {60};
    CHECK(at(60 * 390) == doctest::Approx(0.1 * 23400 / 23410).epsilon(1e-12));
    CHECK(at(60 * 390 + 10) == doctest::Approx(0.02).epsilon(1e-12));
}

TEST_CASE("learning_rate_follows_half_a_cosine_over_all_iterations") {
    Settings s;
    s.lr = 0.2;
    s.warmup_iterations = 10;
    s.lr_schedule = LrSchedule::cosine;
    const auto at = [&](int64_t i) { return learning_rate(s, i, 10, 100); };
    CHECK(at(5) == doctest::Approx(0.1).epsilon(1e-12));
    CHECK(at(10) == doctest::Approx(0.1 * (1 + std::cos(3.14159265358979323846 / 10))).epsilon(1e-12));
    CHECK(at(50) == doctest::Approx(0.1).epsilon(1e-12));
    CHECK(at(75) == doctest::Approx(0.1 * (1 - std::sqrt(0.5))).epsilon(1e-12));
    CHECK(at(99) > 0);
    CHECK(at(99) < 1e-4);
    for (int64_t i = 11; i < 100; ++i) CHECK(at(i) < at(i - 1));
}

TEST_CASE("values_out_of_range_are_refused_with_their_flag") {
    CHECK_NOTHROW(validate(complete()));
    struct Range {
        const char* flag;
        std::function<void(Settings&, double)> set;
        std::vector<double> good, bad;
    };
    const auto integer = [](int64_t Settings::*member) { return [member](Settings& s, double v) { s.*member = static_cast<int64_t>(v); }; };
    const auto number = [](double Settings::*member) { return [member](Settings& s, double v) { s.*member = v; }; };
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    const std::vector<Range> ranges = {
        {"--depth", integer(&Settings::depth), {10, 16, 22, 28, 40}, {-2, 0, 1006}},
        {"--width", integer(&Settings::width), {1, 2, 10, 32}, {-1, 0, 33}},
        {"--in-channels", integer(&Settings::in_channels), {1, 3}, {-1, 0, 2, 4}},
        {"--image-size", integer(&Settings::image_size), {8, 28, 32, 64}, {0, 7, 65}},
        {"--num-classes", integer(&Settings::num_classes), {2, 100, 10000}, {-1, 0, 1, 10001}},
        {"--n-valid", integer(&Settings::n_valid), {0, 5000}, {-1}},
        {"--labels-per-class",
         [](Settings& s, double v) { s.init = StartForm::uniform, s.labels_per_class = static_cast<int64_t>(v); },
         {0, 1, 1e9},
         {-1, 2e9}},
        {"--input-noise", number(&Settings::input_noise), {0, 0.03}, {-0.1, nan, inf}},
        {"--epochs", integer(&Settings::epochs), {0, 200}, {-1}},
        {"--iterations", integer(&Settings::iterations), {-1, 0, 1000000}, {-2}},
        {"--batch-size", integer(&Settings::batch_size), {1, 128, 65536}, {-1, 0, 65537}},
        {"--gen-batch-size", integer(&Settings::gen_batch_size), {1, 64}, {-1, 0}},
        {"--lr", number(&Settings::lr), {0, 0.1, 1000}, {-0.1, 1001, nan, inf}},
        {"--momentum", number(&Settings::momentum), {0, 0.9, 1}, {-0.1, 1.1, nan}},
        {"--weight-decay", number(&Settings::weight_decay), {0, 5e-4}, {-1e-4, nan}},
        {"--warmup-iterations", integer(&Settings::warmup_iterations), {0, 1000}, {-1}},
        {"--lr-decay", number(&Settings::lr_decay), {0, 0.2, 1}, {-0.1, 1.5, nan}},
        {"--ema", number(&Settings::ema), {0, 0.999}, {-0.1, 1, 1.1, nan}},
        {"--sgld-steps", integer(&Settings::sgld_steps), {0, 20}, {-1}},
        {"--sgld-step-size", number(&Settings::sgld_step_size), {0, 1}, {-1, nan, inf}},
        {"--sgld-noise", number(&Settings::sgld_noise), {0, 0.01}, {-0.01, nan}},
        {"--sgld-grad-clamp", number(&Settings::sgld_grad_clamp), {0, 1}, {-1, nan}},
        {"--buffer-size", integer(&Settings::buffer_size), {1, 10000}, {-1, 0}},
        {"--reinit-freq", number(&Settings::reinit_freq), {0, 0.05, 1}, {-0.1, 1.1, nan}},
        {"--rho", number(&Settings::rho), {0, 0.2, 2}, {-0.1, nan}},
        {"--p-x-weight", number(&Settings::p_x_weight), {0, 1}, {-1, nan, inf}},
        {"--p-y-given-x-weight", number(&Settings::p_y_given_x_weight), {0, 1}, {-1, nan}},
        {"--energy-l2", number(&Settings::energy_l2), {0, 0.01}, {-1, nan}},
        {"--checkpoint-interval", integer(&Settings::checkpoint_interval), {0, 10}, {-1}},
        {"--log-interval", integer(&Settings::log_interval), {1, 10}, {-1, 0}},
        {"--sample-interval", integer(&Settings::sample_interval), {0, 1}, {-1}},
        {"--lr-milestones",
         [](Settings& s, double v) {
             s.lr_milestones = {60, static_cast<int64_t>(v)};
         },
         {1, 120},
         {-1, 0}},
    };
    for (const Range& range : ranges) {
        CAPTURE(std::string(range.flag));
        for (const double value : range.good) {
            CAPTURE(value);
            Settings s = complete();
            range.set(s, value);
            CHECK_NOTHROW(validate(s));
        }
        for (const double value : range.bad) {
            CAPTURE(value);
            Settings s = complete();
            range.set(s, value);
            CHECK(error_of([&] { validate(s); }).starts_with(std::string(range.flag) + " "));
        }
    }
    Settings few = complete();
    few.labels_per_class = 4;  // what reads other labels is refused, and says what does not
    CHECK(mentions(error_of([&] { validate(few); }), "--labels-per-class 4 beside --init informative"));
    few.init = StartForm::gaussian;
    few.class_conditional = ClassConditional::loss;
    CHECK(mentions(error_of([&] { validate(few); }), "--labels-per-class 4 beside --class-conditional loss"));
    few.class_conditional = ClassConditional::chain;
    CHECK_NOTHROW(validate(few));
    Settings classifier = recipe("softmax");  // nothing starts, whatever --init says
    classifier.in_channels = 3, classifier.image_size = 32, classifier.num_classes = 10, classifier.labels_per_class = 4;
    CHECK_NOTHROW(validate(classifier));
    Settings nothing = complete();
    nothing.p_x_weight = nothing.p_y_given_x_weight = 0;
    CHECK(mentions(error_of([&] { validate(nothing); }), "nothing to train"));
}

}  // namespace jem
