// Recording and replay, dry runs, and what repeats bit for bit.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <stdexcept>

#include "tests/check.h"
#include "tests/on_device.h"
#include "tests/scalars.h"

namespace jem {
namespace {

// A little network, its loss and its update: every kind of op and plan once, in memory of its own.
class Step {
public:
    explicit Step(OnDevice& m) : m_(m) {
        Device& device = m.device();
        TestData data(1);
        const auto extent = [&](int64_t c) { return Extent{.n = kBatch, .c = c, .h = 32, .w = 32, .block = device.channel_block(c)}; };
        const Extent features{.n = kBatch, .c = kChannels, .block = kChannels}, classes{.n = kBatch, .c = kClasses, .block = kClasses};
        const auto convolution = [&](int64_t in, int64_t stride) {
            Conv c;
            const ConvShape shape{.in_channels = in, .out_channels = kChannels, .height = 32, .width = 32, .kernel = 3, .stride = stride};
            c.plan = device.plan_convolution(shape, {.batches = {kBatch}, .algorithm = ConvAlgorithm::direct});
            c.w = m.real(data.normals(shape.weight_count(), 0, 0.1));
            c.d_w = m.real(Values(static_cast<size_t>(c.w.count)));
            c.prepared = bytes(c.plan->prepared_bytes());
            c.workspace = bytes(c.plan->workspace_bytes());
            return c;
        };
        stem_ = convolution(3, 1);
        conv_ = convolution(kChannels, 1);
        linear_ = device.plan_linear(kChannels, kClasses, {kBatch});
        linear_workspace_ = bytes(linear_->workspace_bytes());
        std::vector<uint8_t> pixels(40 * 3072);
        for (uint8_t& b : pixels) b = static_cast<uint8_t>(data.index(256));
        std::vector<int32_t> labels(40), order(40), begin = {0, 40};
        for (size_t i = 0; i < 40; ++i) labels[i] = static_cast<int32_t>(i % kClasses), order[i] = static_cast<int32_t>(i);
        images_ = {.pixels = m.bytes(pixels),
                   .labels = m.integers(labels),
                   .class_order = m.integers(order),
                   .class_begin = m.integers(begin),
                   .count = 40,
                   .height = 32,
                   .width = 32,
                   .channels = 3,
                   .classes = 1,
                   .largest_class = 40};
        draws_ = m.bytes(std::vector<uint8_t>(kBatch * sizeof(ImageDraw)));
        labels_ = m.integers(std::vector<int32_t>(kBatch));
        index_ = m.integers(std::vector<int32_t>(kBatch));
        fresh_ = m.integers(std::vector<int32_t>(kBatch));
        start_weights_ = m.real(Values(kBatch * 40));
        start_means_ = {m.raw(nullptr, kBatch * sizeof(double)), DType::f64, kBatch};
        buffer_ = m.real(data.uniforms(30 * 3072, -1, 1));
        x_ = m.unwritten(extent(3)), d_x_ = m.unwritten(extent(3));
        h_ = m.unwritten(extent(kChannels)), a_ = m.unwritten(extent(kChannels)), y_ = m.unwritten(extent(kChannels));
        pooled_ = m.unwritten(features), d_pooled_ = m.unwritten(features);
        logits_ = m.unwritten(classes), d_logits_ = m.unwritten(classes);
        head_ = m.real(data.normals(kChannels * kClasses)), d_head_ = m.real(Values(kChannels * kClasses));
        bias_ = m.real(data.normals(kChannels)), d_bias_ = m.real(Values(kChannels)), head_bias_ = m.real(data.normals(kClasses));
        lse_ = m.unwritten(kBatch), loss_ = m.unwritten(kBatch), hit_ = m.unwritten(kBatch);
        velocity_ = m.real(Values(static_cast<size_t>(conv_.w.count))), second_ = m.real(Values(static_cast<size_t>(conv_.w.count)));
        perturbed_ = m.unwritten(conv_.w.count);
        parameters_ = {.gamma = m.real(data.uniforms(kChannels, 0.5, 2)),
                       .beta = m.real(data.normals(kChannels)),
                       .running_mean = m.real(Values(kChannels)),
                       .running_var = m.real(Values(kChannels, 1.0))};
        norm_ = {.mean = m.unwritten(kChannels),
                 .inv_std = m.unwritten(kChannels),
                 .scale = m.unwritten(kChannels),
                 .beta = parameters_.beta,
                 .a = m.unwritten(kChannels),
                 .b = m.unwritten(kChannels)};
        state_ = m.state();
    }

    void begin(uint32_t iteration, double learning_rate) { m_.ops().begin_iteration(state_, iteration, learning_rate, 0.1, 0.001); }

    // Everything but the convolutions' and the head's own arithmetic, which is oneDNN's on the CPU.
    void own_ops() {
        Ops& ops = m_.ops();
        const BatchDraw draw{.order = RandomStream::labelled_order,
                             .augment = RandomStream::labelled_augment,
                             .crop = true,
                             .flip = true,
                             .noise = 0.03,
                             .noise_salt = 1,
                             .seed = 5};
        const Array pixels{x_.data, x_.type, x_.count()}, gradient{d_x_.data, d_x_.type, d_x_.count()};
        ops.draw_images(draws_, images_, state_, draw);
        ops.crop_flip(pixels, draws_, images_, state_, draw);
        ops.gather_labels(labels_, draws_, images_);
        ops.draw_chains(index_, fresh_, state_, 30, 1, 0.5, 5);
        ops.start_images(gradient, buffer_, index_, fresh_, {start_weights_, start_means_}, images_, state_,
                         {.first_chain = 0, .weights = RandomStream::init_weights, .pixels = RandomStream::init_pixels, .seed = 5});
        ops.sgld_gradient_norm(state_, gradient, kBatch, kChain.norm);
        ops.sgld_step(pixels, gradient, {}, state_, {.noise = 0.01, .seed = 5});
        ops.advance_step(state_);
        ops.store_chains(buffer_, pixels, index_, state_);
    }
    void activations() {
        Ops& ops = m_.ops();
        ops.batch_norm_statistics(norm_, h_, parameters_, RunningStatistics::update, state_);
        ops.norm_leaky(a_, h_, norm_);
        ops.norm_backward_sums(norm_, velocity_.slice(0, kChannels), velocity_.slice(kChannels, kChannels), a_, h_);
        ops.norm_leaky_backward(y_, a_, h_, norm_, &h_);
        ops.leaky(a_, y_);
        ops.leaky_backward(y_, a_, h_, nullptr);
        ops.bias_gradient(d_bias_, y_);
        ops.mean_pool(pooled_, y_);
    }
    void losses_and_updates() {
        Ops& ops = m_.ops();
        ops.log_sum_exp(lse_, logits_);
        for (const EnergyTerm term : {EnergyTerm::positive, EnergyTerm::negative}) {
            ops.energy_summary(state_, lse_, term, kEnergy, SamPass::at_weights, 0.1);
            ops.energy_backward(d_logits_, logits_, lse_, state_, term, kEnergy, SamPass::at_weights, 1, 0.1);
        }
        ops.cross_entropy(loss_, hit_, d_logits_, logits_, labels_, 1);
        ops.classification_summary(state_, loss_, hit_, kClassification, SamPass::at_weights);
        ops.gradient_norm(state_, conv_.d_w, conv_.w, SamForm::asam, 0.2, SamPass::at_weights);
        ops.sam_perturb(perturbed_, conv_.w, conv_.d_w, state_, SamForm::asam);
        ops.sgd_update(conv_.w, velocity_, conv_.d_w, state_, 0.9, 1e-3);
        ops.adam_update(stem_.w, velocity_.slice(0, stem_.w.count), second_.slice(0, stem_.w.count), stem_.d_w, state_,
                        {.weight_decay = 1e-3});
        ops.ema_update(perturbed_, conv_.w, state_, 0.9);
        ops.fill_zero(d_head_);
    }
    void all() {
        own_ops();
        stem_.plan->prepare(stem_.prepared, stem_.w, stem_.workspace);
        stem_.plan->forward(h_, x_, stem_.prepared, bias_, nullptr, stem_.workspace);
        activations();
        conv_.plan->prepare(conv_.prepared, conv_.w, conv_.workspace);
        conv_.plan->forward(h_, a_, conv_.prepared, bias_, &y_, conv_.workspace);
        m_.ops().mean_pool(pooled_, h_);
        linear_->forward(logits_, pooled_, head_, head_bias_, linear_workspace_);
        linear_->backward_weights(d_head_, pooled_, logits_, linear_workspace_);
        linear_->backward_data(d_pooled_, logits_, head_, linear_workspace_);
        m_.ops().mean_pool_backward(y_, d_pooled_);
        conv_.plan->backward_weights(conv_.d_w, a_, y_, conv_.workspace);
        conv_.plan->backward_data(h_, y_, conv_.prepared, conv_.workspace);
        stem_.plan->backward_weights(stem_.d_w, x_, h_, stem_.workspace);
        stem_.plan->backward_data(d_x_, h_, stem_.prepared, stem_.workspace);
        losses_and_updates();
        m_.device().copy(perturbed_.data, conv_.d_w.data, conv_.d_w.bytes() / 2);
    }
    void without_libraries(const Values& h, const Values& logits) {
        m_.write(h_, h);
        m_.write(logits_, logits);
        own_ops();
        activations();
        m_.ops().mean_pool_backward(y_, pooled_);
        losses_and_updates();
    }

    // Every bit that the step leaves behind, as doubles.
    Values results() {
        Values out;
        for (const Tensor& t : {x_, d_x_, h_, a_, y_, pooled_, logits_, d_logits_})
            for (const double v : m_.read(t)) out.push_back(v);
        for (const Array& a : {labels_,
                               index_,
                               fresh_,
                               buffer_,
                               lse_,
                               loss_,
                               hit_,
                               head_,
                               d_head_,
                               bias_,
                               d_bias_,
                               velocity_,
                               second_,
                               perturbed_,
                               norm_.mean,
                               norm_.inv_std,
                               norm_.scale,
                               norm_.a,
                               norm_.b,
                               parameters_.running_mean,
                               parameters_.running_var,
                               stem_.w,
                               stem_.d_w,
                               conv_.w,
                               conv_.d_w})
            for (const double v : m_.read(a)) out.push_back(v);
        const IterationState s = m_.read(state_);
        for (const double v :
             {s.learning_rate, s.scalars[kEnergy.f_pos][0], s.scalars[kEnergy.f_neg][0], s.scalars[kEnergy.loss][0],
              s.scalars[kClassification.loss][0], s.scalars[kClassification.accuracy][0], s.grad_norm, s.perturb_scale,
              s.scalars[kChain.norm][0], static_cast<double>(s.step), static_cast<double>(s.iteration), static_cast<double>(s.diverged)})
            out.push_back(v);
        return out;
    }
    IterationState state() { return m_.read(state_); }
    Values conv_weights() { return m_.read(conv_.w); }
    static constexpr int64_t kBatch = 4, kChannels = 16, kClasses = 10;

private:
    struct Conv {
        std::unique_ptr<ConvPlan> plan;
        Array w, d_w;
        std::byte *prepared = nullptr, *workspace = nullptr;
    };
    std::byte* bytes(size_t count) { return static_cast<std::byte*>(m_.raw(nullptr, count)); }

    OnDevice& m_;
    Conv stem_, conv_;
    std::unique_ptr<LinearPlan> linear_;
    std::byte* linear_workspace_ = nullptr;
    ResidentImages images_;
    Array draws_, labels_, index_, fresh_, start_weights_, start_means_, buffer_;
    Tensor x_, d_x_, h_, a_, y_, pooled_, d_pooled_, logits_, d_logits_;
    Array head_, d_head_, bias_, d_bias_, head_bias_, lse_, loss_, hit_, velocity_, second_, perturbed_;
    BatchNormParameters parameters_;
    NormCoefficients norm_;
    IterationState* state_ = nullptr;
};

void check_no_nan(const Values& values) {
    size_t nans = 0;
    for (const double v : values) nans += std::isnan(v) ? 1 : 0;
    CHECK(nans == 0);
}

TEST_CASE("replay_equals_eager_bit_for_bit") {
    on_every_device([](OnDevice& m) {
        Step eager(m), recorded(m);
        const auto graph = capture(m.device(), [&] { recorded.all(); });
        for (uint32_t iteration = 0; iteration < 3; ++iteration) {
            INFO("iteration " << iteration);
            // The graph reads the iteration's values from the device's memory.
            eager.begin(iteration, 1e-6 * (iteration + 1));
            eager.all();
            recorded.begin(iteration, 1e-6 * (iteration + 1));
            graph->replay();
            check_equal("results", recorded.results(), eager.results());
        }
        CHECK(eager.state().diverged == 0);
        check_no_nan(eager.results());
    });
}

TEST_CASE("recording_runs_nothing") {
    on_every_device([](OnDevice& m) {
        Step step(m);
        step.begin(0, 0.1);
        const Values before = step.results();
        const int64_t queued = m.device().launches();
        const auto graph = capture(m.device(), [&] { step.all(); });
        check_equal("results", step.results(), before);
        CHECK(graph->launches() > 40);
        CHECK(m.device().launches() == queued + graph->launches());
        graph->replay();
        CHECK(m.device().launches() == queued + 2 * graph->launches());
    });
}

TEST_CASE("a_replayed_graph_sees_new_values_in_device_memory") {
    on_every_device([](OnDevice& m) {
        const Array w = m.real({1, 2}), v = m.real({0, 0}), g = m.real({1, 1});
        IterationState* state = m.state();
        const auto graph = capture(m.device(), [&] { m.ops().sgd_update(w, v, g, state, 0, 0); });
        m.ops().begin_iteration(state, 0, 0.5, 1, 1);
        graph->replay();
        check_equal("lr 0.5", m.read(w), {0.5, 1.5});
        m.ops().begin_iteration(state, 1, 0.25, 1, 1);
        m.write(g, {-1, 2});
        graph->replay();
        check_equal("lr 0.25, another gradient", m.read(w), {0.75, 1});
        IterationState raised;
        raised.diverged = 1, raised.learning_rate = 1;
        m.write(state, raised);
        graph->replay();
        check_equal("diverged", m.read(w), {0.75, 1});
    });
}

TEST_CASE("a_recorded_step_counter_advances_at_each_replay") {
    on_every_device([](OnDevice& m) {
        IterationState* state = m.state();
        const Array x = m.real(Values(4)), g = m.real(Values(4)), noise = m.real({1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 300, 400});
        const auto graph = capture(m.device(), [&] {
            m.ops().sgld_step(x, g, noise, state, {.noise = 1, .pixel_clamp = false});
            m.ops().advance_step(state);
        });
        for (int step = 0; step < 3; ++step) graph->replay();
        check_equal("x", m.read(x), {111, 222, 333, 444});
    });
}

TEST_CASE("nothing_is_allocated_planned_synchronised_or_read_back_under_capture") {
    on_every_device([](OnDevice& m) {
        Device& device = m.device();
        const Array a = m.real({1, 2, 3}), b = m.real({4, 5});
        const auto graph = capture(device, [&] { m.ops().fill_zero(a); });
        float host[3] = {};
        const std::function<void()> forbidden[] = {
            [&] { device.allocate(16); },
            [&] { device.plan_convolution({.in_channels = 16, .out_channels = 16, .height = 8, .width = 8}, {.batches = {1}}); },
            [&] { device.plan_linear(4, 2, {1}); },
            [&] { device.synchronize(); },
            [&] { device.upload(a.data, host, sizeof host); },
            [&] { device.download(host, a.data, sizeof host); },
            [&] { device.read_back(a.data, sizeof host); },
            [&] { device.begin_capture(); },
            [&] { device.begin_dry_run(); },
            [&] { graph->replay(); },
        };
        for (size_t i = 0; i < std::size(forbidden); ++i) {
            INFO("call " << i);
            CHECK_THROWS_AS(capture(device,
                                    [&] {
                                        CHECK_THROWS_AS(forbidden[i](), CaptureError);
                                        throw std::runtime_error("out of the capture");
                                    }),
                            std::runtime_error);
            // Nothing of it has happened, and the device runs ops again.
            check_equal("a", m.read(a), {1, 2, 3});
            m.write(b, {4, 5});
            m.ops().fill_zero(b);
            check_equal("b", m.read(b), {0, 0});
        }
        CHECK_THROWS_AS(device.end_capture(), CaptureError);
    });
}

TEST_CASE("what_is_read_back_stays_with_the_device_until_it_is_taken") {
    on_every_device([](OnDevice& m) {
        const Array x = m.real({1, 2, 3});
        std::vector<std::byte> was(x.bytes()), taken(x.bytes());
        m.device().download(was.data(), x.data, was.size());
        const int64_t ticket = m.device().read_back(x.data, x.bytes());
        m.ops().fill_zero(x);
        m.device().synchronize();
        m.device().take(ticket, taken.data());
        CHECK(taken == was);
        for (size_t i = 0; i < Device::kReadBacks; ++i) m.device().read_back(x.data, x.bytes());
        CHECK_THROWS_AS(m.device().take(ticket, taken.data()), std::logic_error);  // another lies there by now
        CHECK(taken == was);
        CHECK_THROWS_AS(m.device().read_back(x.data, Device::kReadBackBytes + 1), std::logic_error);
    });
}

TEST_CASE("a_capture_that_throws_leaves_the_device_usable_and_forgets_what_was_recorded") {
    on_every_device([](OnDevice& m) {
        const Array a = m.real({1, 2, 3}), b = m.real({4, 5, 6});
        CHECK_THROWS_AS(capture(m.device(),
                                [&] {
                                    m.ops().fill_zero(a);
                                    throw std::runtime_error("on purpose");
                                }),
                        std::runtime_error);
        check_equal("a after the exception", m.read(a), {1, 2, 3});
        m.ops().fill_zero(b);
        check_equal("b at once", m.read(b), {0, 0, 0});
        m.write(b, {4, 5, 6});
        const auto graph = capture(m.device(), [&] { m.ops().fill_zero(b); });
        CHECK(graph->launches() == 1);
        graph->replay();
        check_equal("b replayed", m.read(b), {0, 0, 0});
        check_equal("a is not part of it", m.read(a), {1, 2, 3});
    });
}

TEST_CASE("dry_run_executes_nothing_and_counts_launches") {
    on_every_device([](OnDevice& m) {
        Step step(m);
        step.begin(0, 0.1);
        const Values before = step.results();
        const int64_t queued = m.device().launches();
        m.device().begin_dry_run();
        step.all();
        const int64_t counted = m.device().launches() - queued;
        const WorkReport report = m.device().end_dry_run();
        check_equal("results", step.results(), before);
        int64_t launches = 0;
        for (const auto& row : report) {
            INFO(row.first);
            CHECK(row.second.launches > 0);
            CHECK(row.second.seconds == 0);
            launches += row.second.launches;
        }
        CHECK(launches == counted);
        const int64_t before_run = m.device().launches();
        step.all();
        CHECK(m.device().launches() - before_run == counted);
        // Twice as many multiply-adds as each output has terms: 4 images of 32x32x16 outputs.
        constexpr double kStemFlops = 2.0 * 4 * 1024 * 16 * 27, kConvFlops = 2.0 * 4 * 1024 * 16 * 144;
        for (const char* label : {"conv_forward", "conv_backward_data", "conv_backward_weights"}) {
            INFO(label);
            REQUIRE(report.count(label) == 1);
            CHECK(report.at(label).launches == 2);
            CHECK(report.at(label).flops == kStemFlops + kConvFlops);
        }
        for (const char* label : {"linear_forward", "linear_backward_data", "linear_backward_weights"})
            CHECK(report.at(label).flops == 2.0 * 4 * 16 * 10);
        // Afterwards ops run again.
        const Array a = m.real({1, 2});
        m.ops().fill_zero(a);
        check_equal("a", m.read(a), {0, 0});
    });
}

TEST_CASE("a_dry_run_needs_no_memory") {
    on_every_device([](OnDevice& m) {
        Device& device = m.device();
        const auto plan = device.plan_convolution({.in_channels = 3, .out_channels = 16, .height = 8, .width = 8}, {.batches = {2}});
        const DType type = device.activation_type();
        const auto nowhere = [&](int64_t c) { return Tensor{nullptr, type, 2, c, 8, 8, device.channel_block(c)}; };
        device.begin_dry_run();
        plan->prepare(nullptr, {nullptr, type, 16 * 27}, nullptr);
        const Tensor residual = nowhere(16);
        plan->forward(nowhere(16), nowhere(3), nullptr, {nullptr, type, 16}, &residual, nullptr);
        plan->backward_data(nowhere(3), nowhere(16), nullptr, nullptr);
        plan->backward_weights({nullptr, type, 16 * 27}, nowhere(3), nowhere(16), nullptr);
        m.ops().leaky(nowhere(16), nowhere(16));
        m.ops().fill_zero({nullptr, type, 100});
        device.copy(nullptr, nullptr, 1000);
        int64_t launches = 0;
        for (const auto& [label, row] : device.end_dry_run()) launches += row.launches;
        CHECK(launches >= 7);
    });
}

TEST_CASE("profile_counts_eager_and_on_cpus_replayed_ops_by_label") {
    on_every_device([](OnDevice& m) {
        const Array a = m.real(Values(1000)), b = m.real(Values(1000));
        const auto graph = capture(m.device(), [&] { m.ops().fill_zero(a); });
        m.ops().fill_zero(a);
        m.device().begin_profile();
        m.ops().fill_zero(b);
        graph->replay();
        graph->replay();
        const WorkReport report = m.device().end_profile();
        m.ops().fill_zero(a);
        REQUIRE(report.count("fill_zero") == 1);
        CHECK(report.size() == 1);
        CHECK(report.at("fill_zero").launches == (m.device().name() == "cuda" ? 1 : 3));  // what a GPU replays is not told apart
        CHECK(report.at("fill_zero").seconds > 0);
    });
}

// The engine's own ops, on sizes with many tiles, chunks and threads' shares.
Values run_own_ops(int threads) {
    const auto device = make_cpu_device({.threads = threads});
    OnDevice m(*device);
    Step step(m);
    TestData data(2);
    for (uint32_t iteration = 0; iteration < 2; ++iteration) {
        step.begin(iteration, 0.05);
        step.without_libraries(data.normals(Step::kBatch * Step::kChannels * 1024), data.normals(Step::kBatch * Step::kClasses));
    }
    Values out = step.results();
    // Sums over more images than chunks, and reductions over more than one chunk.
    const Extent e{.n = 150, .c = 33, .h = 5, .w = 5, .block = 33};
    const Array d_bias = m.real(Values(33)), g = m.real(data.normals(123457)), w = m.real(data.normals(123457));
    m.ops().bias_gradient(d_bias, m.tensor(e, data.normals(e.count())));
    IterationState* state = m.state();
    m.ops().gradient_norm(state, g, w, SamForm::asam, 0.2, SamPass::at_weights);
    for (const double v : m.read(d_bias)) out.push_back(v);
    out.push_back(m.read(state).grad_norm);
    out.push_back(m.read(state).perturb_scale);
    return out;
}

TEST_CASE("own_ops_give_the_same_bits_for_any_number_of_threads") {
    const Values one = run_own_ops(1);
    check_no_nan(Values(one.end() - 35, one.end()));
    check_equal("1 and 2 threads", run_own_ops(2), one);
    check_equal("1 and 3 threads", run_own_ops(3), one);
}

TEST_CASE("repeated_runs_give_the_same_bits") {
    const auto run = [](std::unique_ptr<Device> device) {
        OnDevice m(*device);
        Step step(m);
        for (uint32_t iteration = 0; iteration < 2; ++iteration) {
            step.begin(iteration, 0.05);
            step.all();
        }
        return step.results();
    };
    check_equal("cpu", run(make_cpu_device({.threads = 2})), run(make_cpu_device({.threads = 2})));
    check_equal("reference", run(make_reference_device(DType::f32)), run(make_reference_device(DType::f32)));
}

}  // namespace
}  // namespace jem
