// What cuDNN plans for GPUs that are not here, and what is refused before cuDNN sees it. Nothing is executed.
#include <doctest/doctest.h>

#include "tests/temp_folder.h"

#ifndef JEM_HAS_CUDA

TEST_CASE("cuda plans") { MESSAGE("SKIPPED: this build has no CUDA parts"); }

#else

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/device/cuda/convolution/cudnn_graphs.h"
#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/cuda_device.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/training/trainer.h"
#include "models/inception.h"
#include "models/wide_resnet.h"

namespace jem {
namespace {

constexpr std::array kPrecisions = {CudaPrecision::f32, CudaPrecision::tf32, CudaPrecision::bf16};
constexpr std::array kPasses = {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weights};

ConvShape conv(int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride) {
    return {.in_channels = in, .out_channels = out, .height = size, .width = size, .kernel = kernel, .stride = stride};
}

// The convolutions of WRN-d-width (16 or deeper) on 3x32x32.
std::set<ConvShape> convolutions_of(int64_t width) {
    std::set<ConvShape> shapes = {conv(3, 16, 32, 3, 1)};
    int64_t in = 16, size = 32;
    for (int64_t group = 0; group < 3; ++group) {
        const int64_t out = (16 << group) * width, stride = group > 0 ? 2 : 1;
        shapes.insert({conv(in, out, size, 3, 1), conv(out, out, size, 3, stride), conv(in, out, size, 1, stride),
                       conv(out, out, size / stride, 3, 1)});
        in = out;
        size /= stride;
    }
    return shapes;
}

std::string error_of(const std::function<void()>& run) {
    try {
        run();
    } catch (const std::runtime_error& e) {
        return e.what();
    }
    return "no error";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Counts, and never lets anything run.
class Counter final : public CudaLauncher {
public:
    struct Launch {
        std::string label;
        double bytes, flops;
    };
    bool announce(const char* label, const Work& work) override {
        launches.push_back({label, work.bytes, work.flops});
        return false;
    }
    void launched() noexcept override {}
    cudaStream_t stream() const override { return nullptr; }
    std::vector<std::string> labels() {
        std::vector<std::string> out;
        for (const Launch& l : launches) out.push_back(l.label);
        launches.clear();
        return out;
    }
    std::vector<Launch> launches;
};

struct Planned {
    explicit Planned(CudaPrecision precision, const std::string& gpu = "h100")
        : ops(make_cuda_ops(counter, nullptr, precision == CudaPrecision::bf16 ? DType::bf16 : DType::f32)),
          plans(make_library_plans(counter, *ops, describe_gpu(gpu), {.precision = precision, .cache_file = ""}, false)) {}
    Counter counter;
    std::unique_ptr<Ops> ops;
    std::unique_ptr<CudaPlans> plans;
};

std::byte* address(size_t at) { return reinterpret_cast<std::byte*>((size_t{1} << 46) + at); }

}  // namespace

// cuDNN 9.19 crashes where it plans for another GPU in a process that sees one (on an H100).
// With CUDA_VISIBLE_DEVICES= in the environment these run there as well.
TEST_SUITE_BEGIN("planning without a GPU" * doctest::skip([] {
                     std::string why;
                     return !visible_gpus(why).empty();
                 }()));

TEST_CASE("cuda plans: every convolution of WRN-28-10 and 16-4 finalises for six GPUs in every precision they have") {
    constexpr size_t kLimit = size_t{512} << 20;
    std::set<ConvShape> shapes = convolutions_of(10);
    shapes.merge(convolutions_of(4));
    int graphs = 0;
    for (const std::string& name : gpu_names()) {
        const GpuDescription gpu = describe_gpu(name);
        const Cudnn cudnn(gpu);
        for (const CudaPrecision precision : kPrecisions) {
            if (!gpu.supports(precision)) continue;
            INFO(name, " ", precision_name(precision));
            size_t nondeterministic = 0, tensor_cores = 0, over_the_limit = 0, unnamed = 0;
            for (const ConvShape& shape : shapes)
                for (const int64_t batch : {64, 128})
                    for (const ConvPass pass : kPasses) {
                        ConvGraph graph(cudnn,
                                        {.shape = shape, .batch = batch, .pass = pass, .precision = precision, .workspace_limit = kLimit});
                        graph.finalise_first();
                        for (size_t rank = 0; rank < graph.engines(); ++rank) {
                            nondeterministic += graph.nondeterministic(rank);
                            tensor_cores += graph.uses_tensor_cores(rank);
                        }
                        over_the_limit += graph.workspace_bytes() > kLimit;
                        unnamed += !graph.engine(graph.rank()).starts_with("cudnn eng");
                        ++graphs;
                    }
            CHECK(nondeterministic == 0);
            CHECK(over_the_limit == 0);
            CHECK(unnamed == 0);
            CHECK((tensor_cores == 0) == (precision == CudaPrecision::f32));
        }
    }
    // 12 and 12 shapes that share the first, 2 batches, 3 passes; the T4 in f32 alone
    CHECK(graphs == 23 * 2 * 3 * (1 + 5 * 3));
}

TEST_CASE("cuda plans: the network asks for these convolutions, and gets a choice for each pass and batch") {
    for (const int64_t depth : {16, 28}) {
        const int64_t width = depth == 28 ? 10 : 4;
        const auto device = make_cuda_planning_device(describe_gpu("h100"), {.precision = CudaPrecision::bf16, .plan_cache = ""});
        Memory memory(*device);
        WideResNet network(
            {.depth = depth, .width = width, .norm = NormKind::batch, .in_channels = 3, .image_size = 32, .num_classes = 10});
        network.add_pass({"one", 64, NormMode::batch_update, Gradients::weights});
        network.add_pass({"other", 128, NormMode::batch_update, Gradients::weights});
        network.build(*device, memory, ConvAlgorithm::automatic);
        std::set<std::string> wanted, got;
        for (const ConvShape& shape : convolutions_of(width))
            for (const ConvPass pass : kPasses)
                for (const char* batch : {" 64", " 128"}) wanted.insert(shape.text() + " " + pass_name(pass) + batch);
        int candidates = 0;
        for (const auto& [shape, choice] : network.convolution_choices()) {
            if (choice.candidate) {
                ++candidates;
                continue;
            }
            got.insert(shape + " " + choice.pass + " " + std::to_string(choice.batch));
            CHECK(choice.engine.starts_with("cudnn eng"));
        }
        CHECK(got == wanted);
        CHECK(candidates == 10 * static_cast<int>(convolutions_of(width).size()));
        CHECK(contains(network.head_engine(), "cublasLt"));
    }
}

TEST_CASE("cuda plans: Inception has an engine for each of its convolutions and a plan of memory") {
    for (const auto& [gpu, precision] :
         {std::pair{"h100", CudaPrecision::f32}, std::pair{"h100", CudaPrecision::bf16}, std::pair{"t4", CudaPrecision::f32}}) {
        INFO(std::string(gpu), " ", precision_name(precision));
        const auto device = make_cuda_planning_device(describe_gpu(gpu), {.precision = precision, .plan_cache = ""});
        Memory memory(*device);
        Inception network(InceptionSettings{});
        Parameters parameters(*device, memory, network, Parameters::Options{});
        const int pass = network.add_pass({"features", kInceptionBatch, NormMode::running, Gradients::none});
        const Slot images = memory.keep("samples", "images", size_t{kInceptionBatch} * 3 * 32 * 32 * size_of(device->real_type()));
        network.build(*device, memory, ConvAlgorithm::automatic);
        memory.plan([&] {
            network.forward(pass,
                            {.weights = parameters.weights(), .gradient = {}, .statistics = parameters.statistics(), .state = nullptr},
                            {memory.at(images), device->real_type(), kInceptionBatch, 3, 32, 32, 3});
        });
        memory.pack();
        std::set<std::string> kernels;
        for (const auto& [shape, choice] : network.convolution_choices())
            if (!choice.candidate) {
                CHECK(choice.engine.starts_with("cudnn eng"));
                kernels.insert(shape);
            }
        CHECK(kernels.size() > 30);
        CHECK(memory.arena_bytes() > 0);
    }
}

TEST_CASE("cuda plans: direct convolutions leave Winograd and FFT out, nondeterministic ones come only when asked for") {
    const Cudnn cudnn(describe_gpu("a100"));
    size_t all = 0, direct = 0, nondeterministic = 0;
    for (const ConvPass pass : kPasses) {
        ConvProblem problem{.shape = conv(64, 64, 32, 3, 1), .batch = 64, .pass = pass};
        all += ConvGraph(cudnn, problem).engines();
        problem.algorithm = ConvAlgorithm::direct;
        direct += ConvGraph(cudnn, problem).engines();
        problem.nondeterministic = true;
        nondeterministic += ConvGraph(cudnn, problem).engines();
    }
    CHECK(direct < all);
    CHECK(nondeterministic > direct);
}

TEST_CASE("cuda plans: an engine that needs more workspace than allowed is not planned") {
    const Cudnn cudnn(describe_gpu("h100"));
    ConvProblem problem{.shape = conv(160, 160, 32, 3, 1), .batch = 64, .pass = ConvPass::forward};
    ConvGraph wide(cudnn, problem);
    wide.finalise_first();
    problem.workspace_limit = size_t{4} << 20;
    ConvGraph narrow(cudnn, problem);
    narrow.finalise_first();
    CHECK(wide.workspace_bytes() > problem.workspace_limit);
    CHECK(narrow.workspace_bytes() <= problem.workspace_limit);
    for (size_t rank = 0; rank < narrow.engines(); ++rank)
        if (narrow.finalise(rank)) CHECK(narrow.workspace_bytes() <= problem.workspace_limit);
}

TEST_CASE("cuda plans: what cuDNN would accept and compute wrongly is refused before it is asked") {
    const ConvProblem fine{.shape = conv(160, 160, 32, 3, 1), .batch = 64, .pass = ConvPass::forward, .fusion = Fusion::bias_residual};
    CHECK(error_of([&] { check_operands(fine, operands_of(fine)); }) == "no error");

    const auto refusal = [&](ConvRole role, const std::function<void(ConvOperand&)>& spoil) {
        std::vector<ConvOperand> operands = operands_of(fine);
        const auto found = std::find_if(operands.begin(), operands.end(), [&](const ConvOperand& o) { return o.role == role; });
        REQUIRE(found != operands.end());
        spoil(*found);
        return error_of([&] { check_operands(fine, operands); });
    };
    // half the channels: a grouped convolution without a word
    CHECK(contains(refusal(ConvRole::w, [](ConvOperand& o) { o.dims[1] = 80; }), "wrong tensor w"));
    // explicit sizes of a pointwise operand
    CHECK(contains(refusal(ConvRole::residual, [](ConvOperand& o) { o.dims[2] = 31; }), "wrong tensor residual"));
    CHECK(contains(refusal(ConvRole::y, [](ConvOperand& o) { o.dims[0] = 32; }), "wrong tensor y"));
    CHECK(contains(refusal(ConvRole::bias, [](ConvOperand& o) { o.dims[1] = 161; }), "wrong tensor bias"));
    CHECK(contains(refusal(ConvRole::x, [](ConvOperand& o) { o.type = DType::bf16; }), "another type"));
    // two tensors of one name
    CHECK(contains(refusal(ConvRole::residual, [](ConvOperand& o) { o.role = ConvRole::bias; }), "wrong tensor residual"));
    CHECK(contains(error_of([&] { check_operands(fine, {operands_of(fine)[0]}); }), "Missing"));

    const auto refused = [](ConvProblem problem) { return error_of([&] { ConvGraph(Cudnn(describe_gpu("h100")), problem); }); };
    ConvProblem p = fine;
    p.fusion = Fusion::none;
    p.precision = CudaPrecision::bf16;
    for (const int64_t channels : {161, 162, 164, 5}) {
        p.shape = conv(channels, 160, 32, 3, 1);
        CHECK(contains(refused(p), "no multiple of 8"));
        p.shape = conv(160, channels, 32, 3, 1);
        CHECK(contains(refused(p), "no multiple of 8"));
    }
    p.shape = fine.shape;
    p.batch = 1 << 16;  // 2^33 elements and more
    CHECK(contains(refused(p), "2^31"));
    p.batch = 13108;  // the first with 2^31
    CHECK(contains(refused(p), "2^31"));
    p.batch = 13107;
    CHECK(refused(p) == "no error");
    for (const int64_t batch : {0, -1}) {
        p.batch = batch;
        CHECK(contains(refused(p), "must be positive"));
    }
    p.batch = 64;
    p.shape.kernel = 2;
    CHECK(contains(refused(p), "odd"));
    p = fine;
    p.pass = ConvPass::backward_data;
    CHECK(contains(refused(p), "fusion of another pass"));
}

TEST_CASE("cuda plans: a T4 has neither tf32 nor bf16 and says so, f32 works") {
    const GpuDescription t4 = describe_gpu("t4");
    for (const CudaPrecision precision : {CudaPrecision::tf32, CudaPrecision::bf16}) {
        const std::string error = error_of([&] { make_cuda_planning_device(t4, {.precision = precision, .plan_cache = ""}); });
        CHECK(contains(error, std::string("Tesla T4 (sm_75) has no ") + precision_name(precision)));
        CHECK(contains(error, "Choose --precision f32."));
    }
    CHECK(error_of([&] { make_cuda_planning_device(t4, {.plan_cache = ""}); }) == "no error");
}

TEST_CASE("cuda plans: a pass announces each cuDNN call and each op, and nothing else") {
    const std::vector<std::string> forward = {"conv_forward", "add_bias"};
    const std::vector<std::string> data = {"conv_backward_data"};
    const std::vector<std::string> weights = {"conv_backward_weights", "accumulate"};
    for (const CudaPrecision precision : kPrecisions) {
        INFO(precision_name(precision));
        Planned planned(precision);
        const DType type = precision == CudaPrecision::bf16 ? DType::bf16 : DType::f32;
        const ConvShape shape = conv(32, 64, 16, 3, 2);
        const auto plan = planned.plans->convolution(shape, {.batches = {8}});
        const Tensor x{address(0), type, 8, 32, 16, 16, 32}, y{address(1 << 20), type, 8, 64, 8, 8, 64};
        const Array w{address(2 << 20), DType::f32, shape.weight_count()}, bias{address(3 << 20), DType::f32, 64};
        std::byte *prepared = address(4 << 20), *workspace = address(5 << 20);
        CHECK(planned.counter.labels().empty());
        plan->prepare(prepared, w, workspace);
        CHECK(planned.counter.labels() == std::vector<std::string>{"convert"});
        plan->forward(y, x, prepared, bias, nullptr, workspace);
        REQUIRE(planned.counter.launches.size() == 2);
        CHECK(planned.counter.launches[0].flops == shape.flops() * 8);
        const auto elements = static_cast<double>(x.count() + y.count() + shape.weight_count());
        CHECK(planned.counter.launches[0].bytes == elements * static_cast<double>(size_of(type)));
        CHECK(planned.counter.labels() == forward);
        plan->forward(y, x, prepared, bias, &y, workspace);
        CHECK(planned.counter.labels() == forward);
        plan->backward_data(x, y, prepared, workspace);
        CHECK(planned.counter.labels() == data);
        plan->backward_weights(w, x, y, workspace);
        CHECK(planned.counter.labels() == weights);
        // Room for the result that cannot go onto the residual, or for the gradient before it is added.
        CHECK(plan->workspace_bytes() >= std::max(y.bytes(), static_cast<size_t>(shape.weight_count()) * size_of(type)));
        CHECK(plan->prepared_bytes() >= static_cast<size_t>(shape.weight_count()) * size_of(type));

        // Wrong operands are a programmer's mistake and never reach cuDNN.
        Tensor other = x;
        other.n = 4;
        CHECK_THROWS_AS(plan->forward(y, other, prepared, bias, nullptr, workspace), std::logic_error);
        other = y;
        other.h = 7;
        CHECK_THROWS_AS(plan->forward(other, x, prepared, bias, nullptr, workspace), std::logic_error);
        CHECK_THROWS_AS(plan->forward(y, x, prepared, bias, &other, workspace), std::logic_error);
        CHECK_THROWS_AS(plan->forward(y, x, prepared, Array{bias.data, DType::f32, 63}, nullptr, workspace), std::logic_error);
        other = x;
        other.block = 16;
        CHECK_THROWS_AS(plan->backward_data(other, y, prepared, workspace), std::logic_error);
        CHECK_THROWS_AS(plan->backward_weights(w.slice(0, 8), x, y, workspace), std::logic_error);
        CHECK(planned.counter.labels().empty());
    }
}

TEST_CASE("cuda plans: in bf16 the images are narrowed in front of the first convolution, their gradient widened behind it") {
    const ConvShape stem = conv(3, 16, 32, 3, 1);
    for (const CudaPrecision precision : {CudaPrecision::f32, CudaPrecision::bf16}) {
        const bool narrow = precision == CudaPrecision::bf16;
        Planned planned(precision);
        const auto plan = planned.plans->convolution(stem, {.batches = {8}, .input = ConvInput::images});
        const Tensor x{address(0), DType::f32, 8, 3, 32, 32, 3};
        const Tensor y{address(1 << 20), narrow ? DType::bf16 : DType::f32, 8, 16, 32, 32, 16};
        const Array w{address(2 << 20), DType::f32, stem.weight_count()}, bias{address(3 << 20), DType::f32, 16};
        const auto with = [&](std::vector<std::string> labels, bool in_front) {
            if (narrow) labels.insert(in_front ? labels.begin() : labels.end(), "convert");
            return labels;
        };
        plan->forward(y, x, address(0), bias, nullptr, address(0));
        CHECK(planned.counter.labels() == with({"conv_forward", "add_bias"}, true));
        plan->backward_data(x, y, address(0), address(0));
        CHECK(planned.counter.labels() == with({"conv_backward_data"}, false));
        plan->backward_weights(w, x, y, address(0));
        CHECK(planned.counter.labels() == with({"conv_backward_weights", "accumulate"}, true));
    }
}

TEST_CASE("cuda plans: the linear head is one launch a call, with the scratch NVIDIA advises where there is no GPU to ask") {
    for (const auto& [gpu, mib] : {std::pair<const char*, size_t>{"h100", 32}, {"b200", 32}, {"a100", 4}}) {
        Planned planned(CudaPrecision::f32, gpu);
        const auto plan = planned.plans->linear(640, 10, {64});
        CHECK(plan->workspace_bytes() == mib << 20);
        CHECK(plan->engine() == "cublasLt: heuristics need a device");
        const Tensor x{address(0), DType::f32, 64, 640, 1, 1, 640}, y{address(1 << 20), DType::f32, 64, 10, 1, 1, 10};
        const Array w{address(2 << 20), DType::f32, 6400}, b{address(3 << 20), DType::f32, 10};
        plan->forward(y, x, w, b, nullptr);
        plan->backward_data(x, y, w, nullptr);
        plan->backward_weights(w, x, y, nullptr);
        for (const Counter::Launch& l : planned.counter.launches) CHECK(l.flops == 2.0 * 64 * 640 * 10);
        CHECK(planned.counter.labels() == std::vector<std::string>{"linear_forward", "linear_backward_data", "linear_backward_weights"});
        Tensor other = x;
        other.n = 63;
        CHECK_THROWS_AS(plan->forward(y, other, w, b, nullptr), std::logic_error);
        CHECK_THROWS_AS(plan->forward(y, x, w.slice(0, 6399), b, nullptr), std::logic_error);
    }
}

TEST_CASE("cuda plans: nothing that lives at the same time shares memory, and f32 activations need what they need in plain loops") {
    Settings s = recipe("sada-jem");
    s.data = "cifar10";
    s.depth = 16;
    s.width = 2;
    s.in_channels = 3;
    s.image_size = 32;
    s.num_classes = 10;
    const ImageSetShape shape = known_shape("cifar10");
    const auto activations = [&](Device& device) {
        WideResNet network({.depth = 16, .width = 2, .norm = NormKind::batch, .in_channels = 3, .image_size = 32, .num_classes = 10});
        TrainingParts parts(device, network, s, {.shape = shape, .count = 50000}, 10000);
        parts.memory.pack();
        size_t end = 0, overlaps = 0;
        const std::vector<Memory::Placement> placed = parts.memory.placements();
        for (const auto& a : placed)
            for (const auto& b : placed) {
                if (&a >= &b || a.first_use > a.last_use || b.first_use > b.last_use) continue;
                const bool at_once = a.first_use <= b.last_use && b.first_use <= a.last_use;
                overlaps += at_once && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
                end = std::max({end, a.offset + a.bytes, b.offset + b.bytes});
            }
        CHECK(overlaps == 0);
        CHECK(end <= parts.memory.arena_bytes());
        for (const MemoryRegion& r : parts.memory.regions())
            if (r.name == "activations") return r.bytes;
        return size_t{0};
    };
    const auto loops = make_reference_device(DType::f32), cpu = make_cpu_device({.threads = 1});
    const auto f32 = make_cuda_planning_device(describe_gpu("h100"), {.plan_cache = ""});
    const auto bf16 = make_cuda_planning_device(describe_gpu("h100"), {.precision = CudaPrecision::bf16, .plan_cache = ""});
    const size_t of_loops = activations(*loops), of_f32 = activations(*f32), of_bf16 = activations(*bf16);
    CHECK(of_f32 == of_loops);
    CHECK(activations(*cpu) < of_loops);  // its convolutions take the activation in front of them
    // all but features, logits and losses, which stay f32
    CHECK(of_bf16 < of_f32 / 2 + of_f32 / 50);
    CHECK(of_bf16 >= of_f32 / 2);
}

TEST_CASE("cuda plans: a device that only plans predicts time from the GPU's peaks, and refuses to run or to give memory") {
    const GpuDescription gpu = describe_gpu("a100");
    const auto device = make_cuda_planning_device(gpu, {.precision = CudaPrecision::tf32, .plan_cache = ""});
    CHECK_THROWS_AS(device->allocate(1), std::logic_error);
    const ConvShape shape = conv(160, 160, 32, 3, 1);
    const auto plan = device->plan_convolution(shape, {.batches = {64}});
    const Tensor x{address(0), DType::f32, 64, 160, 32, 32, 160};
    const auto run = [&] { plan->backward_data(x, x, address(0), address(0)); };
    CHECK_THROWS_AS(run(), std::logic_error);
    device->begin_dry_run();
    run();
    const WorkRow row = device->end_dry_run().at("conv_backward_data");
    CHECK(row.launches == 1);
    CHECK(row.seconds == doctest::Approx(std::max(row.flops / 156e12, row.bytes / 2039e9)));
    CHECK(row.flops == shape.flops() * 64);
}

TEST_CASE("cuda plans: a graph that was only planned refuses to run") {
    const Cudnn cudnn(describe_gpu("h100"));
    ConvGraph graph(cudnn, {.shape = conv(16, 16, 8, 3, 1), .batch = 2});
    graph.finalise_first();
    CHECK(contains(error_of([&] { graph.execute({}, nullptr); }), "only planned"));
}

TEST_SUITE_END();

TEST_CASE("gpu descriptions: six GPUs by name, and a file with cuDNN's keys, each of which is missed by name") {
    CHECK(gpu_names() == std::vector<std::string>{"t4", "a100", "rtx4090", "h100", "b200", "rtx5090"});
    const TempFolder folder;
    const auto read = [&](const std::string& text) { return describe_gpu(folder.write("gpu.json", text).string()); };
    for (const std::string& name : gpu_names()) {
        const GpuDescription gpu = describe_gpu(name), again = read(gpu.json);
        CHECK(again.title == gpu.title);
        CHECK(again.sm == gpu.sm);
        CHECK(again.memory_bytes == gpu.memory_bytes);
        CHECK(again.multiprocessors == gpu.multiprocessors);
        CHECK(again.bandwidth == 0);  // a description holds no peaks of its own
        CHECK(gpu.bandwidth > 0);
        CHECK(gpu.flops_f32 > 0);
        CHECK((gpu.flops_bf16 > 0) == gpu.supports(CudaPrecision::bf16));
        CHECK((gpu.flops_tf32 > 0) == gpu.supports(CudaPrecision::tf32));
    }
    using Json = nlohmann::json;
    const Json whole = Json::parse(describe_gpu("h100").json);
    for (const auto& [key, value] : whole.items()) {
        Json without = whole, wrong = whole;
        without.erase(key);
        wrong[key] = nullptr;
        const std::string missing = error_of([&] { read(without.dump()); }), broken = error_of([&] { read(wrong.dump()); });
        CHECK(contains(missing, "the key " + key + " is missing"));
        CHECK(contains(broken, key));
        CHECK_THROWS_AS(read(wrong.dump()), InputError);
    }
    const auto with = [&](const char* key, const Json& value) {
        Json changed = whole;
        changed[key] = value;
        return error_of([&] { read(changed.dump()); });
    };
    CHECK(contains(with("deviceVer", 90), "100 * major"));
    CHECK(contains(with("deviceVer", 905), "100 * major"));
    CHECK(contains(with("totalGlobalMem", -1), "totalGlobalMem"));
    CHECK(contains(with("totalGlobalMem", "80 GB"), "totalGlobalMem"));
    CHECK(contains(with("maxGridSize", {1, 2}), "three"));
    CHECK(contains(with("warpSize", 64), "warpSize"));
    CHECK(contains(with("bandwidth", 0), "bandwidth"));
    CHECK(contains(with("flopsBF16", "fast"), "flopsBF16"));
    CHECK(contains(error_of([&] { read("{\"deviceVer\": "); }), "no JSON object"));
    CHECK(contains(error_of([&] { read(""); }), "no JSON object"));
    CHECK(contains(error_of([&] { describe_gpu("h2000"); }), "rtx4090"));
    CHECK(contains(error_of([&] { describe_gpu("h2000"); }), "neither a known name nor a file"));
    // What is there and cannot be opened is not called missing: here a link to itself, as a test that runs as root may read all else.
    const auto link = folder.path() / "link.json";
    std::filesystem::create_symlink(link, link);
    CHECK(contains(error_of([&] { describe_gpu(link.string()); }), "cannot be read: Too many levels"));
    CHECK(contains(error_of([&] { describe_gpu(folder.path().string()); }), "describes no GPU"));

    Json peaks = whole;
    peaks["bandwidth"] = 1e12;
    peaks["flopsF32"] = 2e13;
    const GpuDescription own = read(peaks.dump());
    CHECK(own.bandwidth == 1e12);
    CHECK(own.flops_f32 == 2e13);
    CHECK(!contains(own.json, "bandwidth"));  // cuDNN's keys only
    Cudnn plans_for_it(own);
}

}  // namespace jem

#endif
