#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "engine/device/cuda/convolution/cudnn_graphs.h"
#include "engine/device/cuda/convolution/plan_cache.h"
#include "engine/device/cuda/convolution/planned_call.h"
#include "engine/device/cuda/convolution/plans.h"
#include "engine/device/cuda/cublas_linear.h"
#include "engine/device/cuda/runtime.h"
#include "engine/files/messages.h"
#include "kernels/bf16.h"

namespace jem {
namespace {

using cuda::check;

// The forward pass's forms; forward_with counts on the order.
constexpr std::array kForward = {
    Fusion::bias,       Fusion::bias_residual,       Fusion::bias_sums,       Fusion::bias_residual_sums,
    Fusion::norm_leaky, Fusion::norm_leaky_residual, Fusion::norm_leaky_sums, Fusion::norm_leaky_residual_sums};

Fusion forward_with(ConvFusion around, bool residual) {
    return kForward[(around.activation ? 4u : 0u) + (around.sums ? 2u : 0u) + (residual ? 1u : 0u)];
}

struct Libraries {
    CudaLauncher& launcher;
    Ops& ops;
    GpuDescription gpu;
    CudaPlanSettings settings;
    bool on_device;
    Cudnn cudnn;
    PlanCache cache;
    bool told = false;                                  // that convolutions are being timed
    std::vector<std::unique_ptr<Cudnn>> planners = {};  // one a thread; graphs that they planned refer to them

    DType activation() const { return settings.precision == CudaPrecision::bf16 ? DType::bf16 : DType::f32; }

    // task(i, a cuDNN of its thread's own) for every i < count, on all cores: compiling is most of what planning takes.
    void in_parallel(size_t count, const std::function<void(size_t, const Cudnn&)>& task) {
        constexpr size_t kMostThreads = 16;
        const size_t threads = std::min({count, kMostThreads, size_t{std::max(1u, std::thread::hardware_concurrency())}});
        while (planners.size() < threads) planners.push_back(std::make_unique<Cudnn>(&cudnn));
        int gpu = 0;
        check(cudaGetDevice(&gpu), "ask for the current GPU");
        std::atomic<size_t> next{0};
        std::vector<std::exception_ptr> failures(threads);
        std::vector<std::jthread> workers;
        for (size_t t = 0; t < threads; ++t)
            workers.emplace_back([&, t] {
                try {
                    check(cudaSetDevice(gpu), "use the GPU on another thread");
                    for (size_t i = next++; i < count; i = next++) task(i, *planners[t]);
                } catch (...) {
                    failures[t] = std::current_exception();
                }
            });
        workers.clear();  // joins
        for (const std::exception_ptr& failure : failures)
            if (failure != nullptr) std::rethrow_exception(failure);
    }
};

// Timing on the GPU at hand ---------------------------------------------------------------------------------------------------

class DeviceMemory {
public:
    // Null where there is not enough.
    explicit DeviceMemory(size_t bytes) {
        if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
        (void)cudaGetLastError();
        data_ = nullptr;
    }
    DeviceMemory(const DeviceMemory&) = delete;  // owns it
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    ~DeviceMemory() {
        if (data_ != nullptr) cudaFree(data_);
    }
    std::byte* data() const { return static_cast<std::byte*>(data_); }

private:
    void* data_ = nullptr;
};

class Event {
public:
    Event() { check(cudaEventCreate(&event_), "create an event"); }
    Event(const Event&) = delete;  // owns it
    Event& operator=(const Event&) = delete;
    ~Event() { cudaEventDestroy(event_); }
    cudaEvent_t get() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

// Memory for every operand of one convolution of one batch size, and a clock. Lives while plans are made, never longer.
class Trial {
public:
    Trial(Libraries& lib, const ConvShape& shape, int64_t batch) : lib_(lib), shape_(shape), batch_(batch) {
        const auto bytes = [](int64_t count, DType type) { return aligned(static_cast<size_t>(count) * size_of(type)); };
        const DType type = lib.activation();
        const int64_t x = batch * shape.in_channels * shape.height * shape.width;
        const int64_t y = batch * shape.out_channels * shape.out_height() * shape.out_width();
        const int64_t w = shape.weight_count();
        const std::array<size_t, kParts> sizes = {bytes(x, type),
                                                  bytes(y, type),
                                                  bytes(y, type),
                                                  bytes(w, type),
                                                  bytes(w, DType::f32),
                                                  bytes(x, type),
                                                  bytes(kArrays * widest(), DType::f32)};
        for (size_t i = 0; i < kParts; ++i) {
            offsets_[i] = operand_bytes_;
            operand_bytes_ += sizes[i];
        }
        memory_.emplace(operand_bytes_ + lib.settings.workspace_limit());
        if (possible()) check(cudaMemsetAsync(memory_->data(), 0, operand_bytes_, stream()), "clear memory");
    }

    bool possible() const { return memory_->data() != nullptr; }
    enum Part : size_t { kX, kY, kResidual, kW, kWeightSum, kOtherX, kOfChannels, kParts };
    // One value a channel: of the input and its norm, then of the output and the norm behind it. kSums are two.
    enum OfChannel : int64_t {
        kMean,
        kInvStd,
        kScale,
        kBeta,
        kA,
        kB,
        kShift,
        kBias,
        kNextMean,
        kNextInvStd,
        kNextScale,
        kGamma,
        kRunning,
        kSums,
        kArrays = kSums + 2
    };
    std::byte* at(Part part) const { return memory_->data() + offsets_[part]; }
    std::byte* workspace() const { return memory_->data() + operand_bytes_; }

    // Numbers of about 1 everywhere: what an engine does with zeros says little, and one result is compared with another.
    void fill() {
        // Not periodic in channels, rows or images.
        constexpr size_t kPeriod = 1000003;
        if (!pattern_) {
            std::vector<float> values(kPeriod);
            uint32_t state = 1;
            for (float& v : values) {
                state = state * 1664525u + 1013904223u;
                v = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
            }
            const std::vector<Bf16> narrow(values.begin(), values.end());
            pattern_.emplace(kPeriod * (sizeof(float) + sizeof(Bf16)));
            if (pattern_->data() == nullptr) check(cudaErrorMemoryAllocation, "get memory on the GPU");
            upload(pattern_->data(), values.data(), kPeriod * sizeof(float));
            upload(pattern_->data() + kPeriod * sizeof(float), narrow.data(), kPeriod * sizeof(Bf16));
        }
        for (size_t i = 0; i < kParts; ++i) {
            const bool real = i == kWeightSum || i == kOfChannels || lib_.activation() == DType::f32;
            const std::byte* from = pattern_->data() + (real ? 0 : kPeriod * sizeof(float));
            const size_t piece = kPeriod * (real ? sizeof(float) : sizeof(Bf16));
            const size_t bytes = (i + 1 < kParts ? offsets_[i + 1] : operand_bytes_) - offsets_[i];
            for (size_t done = 0; done < bytes; done += piece)
                check(cudaMemcpyAsync(memory_->data() + offsets_[i] + done, from, std::min(piece, bytes - done), cudaMemcpyDeviceToDevice,
                                      stream()),
                      "copy");
        }
    }

    Tensor y(Part part) const {
        return {at(part), lib_.activation(), batch_, shape_.out_channels, shape_.out_height(), shape_.out_width(), shape_.out_channels};
    }
    Tensor x(Part part) const {
        return {at(part), lib_.activation(), batch_, shape_.in_channels, shape_.height, shape_.width, shape_.in_channels};
    }
    Array of_channel(OfChannel i, int64_t count) const {
        return Array{at(kOfChannels), DType::f32, kArrays * widest()}.slice(i * widest(), count);
    }
    Array of_input(OfChannel i) const { return of_channel(i, shape_.in_channels); }
    Array of_output(OfChannel i) const { return of_channel(i, shape_.out_channels); }
    NormCoefficients norm() const {
        return {.mean = of_input(kMean),
                .inv_std = of_input(kInvStd),
                .scale = of_input(kScale),
                .beta = of_input(kBeta),
                .a = of_input(kA),
                .b = of_input(kB)};
    }
    NormCoefficients next_norm() const {
        return {
            .mean = of_output(kNextMean), .inv_std = of_output(kNextInvStd), .scale = of_output(kNextScale), .beta = {}, .a = {}, .b = {}};
    }
    BatchNormParameters next_parameters() const {
        return {.gamma = of_output(kGamma), .beta = {}, .running_mean = of_output(kRunning), .running_var = {}};
    }
    Array weights(Part part) const { return {at(part), part == kW ? lib_.activation() : DType::f32, shape_.weight_count()}; }

    // Median of several rounds, each long enough for the clock. give_up_after: a first run slower than this ends it (infinity).
    double seconds(const std::function<void()>& run, double give_up_after) {
        constexpr int kWarmUps = 2, kRounds = 3;
        constexpr double kRoundSeconds = 1e-3;
        constexpr int kMostRuns = 64;
        for (int i = 0; i < kWarmUps; ++i) run();
        const double once = timed(run, 1);
        if (once > give_up_after) return INFINITY;
        const int runs = std::clamp(static_cast<int>(kRoundSeconds / std::max(once, 1e-7)), 1, kMostRuns);
        std::array<double, kRounds> rounds{};
        for (double& r : rounds) r = timed(run, runs);
        std::sort(rounds.begin(), rounds.end());
        return rounds[kRounds / 2];
    }

    std::vector<float> download(const Array& array) {
        const auto n = static_cast<size_t>(array.count);
        std::vector<float> out(n);
        if (array.type == DType::f32) {
            check(cudaMemcpyAsync(out.data(), array.data, n * sizeof(float), cudaMemcpyDeviceToHost, stream()), "read back");
            wait();
            return out;
        }
        std::vector<Bf16> narrow(n);
        check(cudaMemcpyAsync(narrow.data(), array.data, n * sizeof(Bf16), cudaMemcpyDeviceToHost, stream()), "read back");
        wait();
        std::copy(narrow.begin(), narrow.end(), out.begin());
        return out;
    }

    void copy(Part to, Part from, size_t bytes) {
        check(cudaMemcpyAsync(at(to), at(from), bytes, cudaMemcpyDeviceToDevice, stream()), "copy");
    }
    void wait() { check(cudaStreamSynchronize(stream()), "wait for the GPU"); }

private:
    cudaStream_t stream() const { return lib_.launcher.stream(); }
    double timed(const std::function<void()>& run, int runs) {
        check(cudaEventRecord(begin_.get(), stream()), "record an event");
        for (int i = 0; i < runs; ++i) run();
        check(cudaEventRecord(end_.get(), stream()), "record an event");
        check(cudaEventSynchronize(end_.get()), "wait for the GPU");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "read a time");
        return 1e-3 * static_cast<double>(milliseconds) / runs;
    }
    void upload(std::byte* to, const void* from, size_t bytes) {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "upload");
        wait();
    }
    int64_t widest() const { return std::max(shape_.in_channels, shape_.out_channels); }

    Libraries& lib_;
    ConvShape shape_;
    int64_t batch_;
    std::array<size_t, kParts> offsets_{};
    size_t operand_bytes_ = 0;
    std::optional<DeviceMemory> memory_, pattern_;
    Event begin_, end_;
};

// Whether two results agree as far as sums in another order, and one rounding to the type, allow. Where a LeakyReLU is passed
// backwards, an input nearer to its kink than the last bit of f32 may take either side: about one in ten million does, and a hundred
// times as many are let pass, far fewer than one wrong row or column of an image.
bool agree(const std::vector<float>& got, const std::vector<float>& want, DType type, bool kinks) {
    constexpr double kAtTheKink = 1e-5;
    double squares = 0;
    for (const float v : want) squares += static_cast<double>(v) * static_cast<double>(v);
    const double rms = std::sqrt(squares / static_cast<double>(want.size()));
    // One unit of bf16 is 2^-8 of a value; the unfused form rounds once more. f32 and TF32: products are the same, sums of
    // up to a few 100000 terms are not.
    const double relative = type == DType::bf16 ? 0x1p-6 : 1e-3, absolute = relative * rms;
    size_t off = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
        off += !(difference <= absolute + relative * std::abs(static_cast<double>(want[i])));
    }
    return rms > 0 && static_cast<double>(off) <= (kinks ? kAtTheKink * static_cast<double>(got.size()) : 0);
}

// Convolutions ------------------------------------------------------------------------------------------------------------------

class CudnnConvPlan final : public ConvPlan {
    static constexpr const char* kNoEngine = "none";  // in the cache

public:
    CudnnConvPlan(Libraries& lib, const ConvShape& shape, const ConvOptions& options)
        : lib_(lib),
          shape_(shape),
          name_(shape.text()),
          algorithm_(options.algorithm),
          calls_(options.calls),
          images_(options.input == ConvInput::images),
          narrows_input_(images_ && lib.activation() != DType::f32) {
        for (const int64_t batch : options.batches) variants_.push_back({.batch = batch, .backward = true});
        for (const int64_t batch : options.forward_only) variants_.push_back({.batch = batch, .backward = false});
        choose();
        if (lib.on_device) lib.cache.save();
    }

    size_t prepared_bytes() const override { return w_bytes(); }
    size_t workspace_bytes() const override { return workspace_bytes_; }

    void prepare(std::byte* prepared, Array weights, std::byte* /*workspace*/) override {
        expect(weights.count == shape_.weight_count() && weights.type == DType::f32, "other weights");
        lib_.ops.convert({prepared, lib_.activation(), weights.count}, weights);
    }

    void forward(const Tensor& y, const Tensor& x, const std::byte* prepared, Array bias, const Tensor* residual,
                 std::byte* workspace) override {
        forward_fused(y, x, {}, prepared, bias, residual, workspace);
    }
    ConvFusion fuses(int64_t batch, ConvFusion wanted, bool residual) const override {
        const Fusion fusion = best(variant(batch), forward_with(wanted, residual));
        return {.activation = has_norm(fusion), .sums = has_sums(fusion)};
    }
    void forward_fused(const Tensor& y, const Tensor& x, const FusedForward& with, const std::byte* prepared, Array bias,
                       const Tensor* residual, std::byte* workspace) override {
        const Variant& v = variant(x.n);
        check_tensors(v, x, y);
        expect(bias.count == shape_.out_channels && bias.type == DType::f32, "another bias");
        if (residual != nullptr) expect_tensor(*residual, "residual", y_dims(v), lib_.activation());
        const ConvFusion around{.activation = with.norm != nullptr, .sums = with.sums.count > 0};
        Fusion fusion = forward_with(around, residual != nullptr);
        if (!around.activation && !around.sums) fusion = best(v, fusion);  // the bias may be an op of its own
        const void* from = narrowed(x, workspace);
        Tensor to = y;
        if (fusion == Fusion::none && residual != nullptr && residual->data == y.data) to.data = take(workspace, y_bytes(v.batch));

        ConvPointers p = operands(const_cast<void*>(from), prepared, to.data);
        p[ConvRole::bias] = bias.data;
        p[ConvRole::residual] = residual != nullptr ? residual->data : nullptr;
        if (around.activation) {
            expect(with.norm->scale.count == shape_.in_channels && with.norm->scale.type == DType::f32, "another norm");
            const Array shift{take(workspace, shift_bytes()), DType::f32, shape_.in_channels};
            lib_.ops.norm_shift(shift, *with.norm);
            p[ConvRole::scale] = with.norm->scale.data;
            p[ConvRole::shift] = shift.data;
        }
        if (around.sums) {
            expect(with.centre.count == shape_.out_channels && with.centre.type == DType::f32, "another centre");
            give_sums(p, with.sums, shape_.out_channels);
            p[ConvRole::centre] = with.centre.data;
        }
        run("conv_forward", v, ConvPass::forward, fusion, p, workspace);
        if (fusion == Fusion::none) lib_.ops.add_bias(y, to, bias, residual);
    }

    void backward_data(const Tensor& d_x, const Tensor& d_y, const std::byte* prepared, std::byte* workspace) override {
        const Variant& v = backward_variant(d_y.n);
        check_tensors(v, d_x, d_y);
        void* to = narrows_input_ ? take(workspace, x_bytes(v.batch)) : d_x.data;
        run("conv_backward_data", v, ConvPass::backward_data, Fusion::none, operands(to, prepared, d_y.data), workspace);
        if (narrows_input_) lib_.ops.convert({d_x.data, DType::f32, d_x.count()}, {to, lib_.activation(), d_x.count()});
    }

    void backward_weights(Array d_w, const Tensor& x, const Tensor& d_y, std::byte* workspace) override {
        const Variant& v = backward_variant(x.n);
        check_tensors(v, x, d_y);
        expect(d_w.count == shape_.weight_count() && d_w.type == DType::f32, "another gradient of the weights");
        const void* from = narrowed(x, workspace);
        const Fusion fusion = best(v, Fusion::accumulate);
        void* to = fusion == Fusion::accumulate ? d_w.data : take(workspace, w_bytes());
        ConvPointers p = operands(const_cast<void*>(from), to, d_y.data);
        p[ConvRole::accumulated_w] = d_w.data;
        run("conv_backward_weights", v, ConvPass::backward_weights, fusion, p, workspace);
        if (fusion == Fusion::none) lib_.ops.accumulate(d_w, {to, lib_.activation(), d_w.count});
    }

    bool fuses_leaky_backward(int64_t batch) const override {
        return best(variant(batch), Fusion::leaky_backward_sums) == Fusion::leaky_backward_sums;
    }
    void backward_data_fused(const Tensor& d_z, const Tensor& d_y, const FusedBackward& with, const std::byte* prepared,
                             std::byte* workspace) override {
        const Variant& v = backward_variant(d_y.n);
        check_tensors(v, d_z, d_y);
        expect_tensor(with.x, "input of the norm", x_dims(v), lib_.activation());
        expect(with.norm.scale.count == shape_.in_channels && with.norm.scale.type == DType::f32, "another norm");
        ConvPointers p = operands(d_z.data, prepared, d_y.data);
        p[ConvRole::norm_input] = with.x.data;
        p[ConvRole::centre] = with.norm.mean.data;
        p[ConvRole::scale] = with.norm.scale.data;
        p[ConvRole::shift] = with.norm.beta.data;
        give_sums(p, with.sums, shape_.in_channels);
        run("conv_backward_data", v, ConvPass::backward_data, Fusion::leaky_backward_sums, p, workspace);
    }

    std::vector<Choice> choices() const override {
        std::vector<Choice> out;
        for (const Variant& v : variants_)
            for (const auto& [what, graph] : v.graphs) {
                const auto [pass, fusion] = what;
                out.push_back({.pass = pass_name(pass) + (fusion == Fusion::none ? "" : std::string(" with ") + fusion_name(fusion)),
                               .engine = graph->engine(graph->rank()),
                               .batch = v.batch,
                               .workspace_bytes = graph->workspace_bytes()});
            }
        if (lib_.on_device) return out;
        for (const Fusion fusion : kForward) out.push_back(fused_candidate(fusion));
        for (const Fusion fusion : {Fusion::accumulate, Fusion::leaky_backward_sums}) out.push_back(fused_candidate(fusion));
        return out;
    }

private:
    using Graph = std::shared_ptr<ConvGraph>;
    using What = std::pair<ConvPass, Fusion>;
    // Engines that are finalised, the heuristics' first one first.
    using Candidates = std::map<What, std::vector<Graph>>;
    // "The whole" is a pass with all the ops around it that are wanted, named by the fusion that would do them all.
    struct Variant {
        int64_t batch = 0;
        bool backward = false;
        std::map<What, Graph> graphs = {};
        std::map<Fusion, Fusion> best = {};  // by the whole: what the convolution does of it
    };
    static Fusion best(const Variant& v, Fusion whole) {
        const auto found = v.best.find(whole);
        return found == v.best.end() ? Fusion::none : found->second;
    }

    void choose() {
        std::vector<Candidates> found;
        if (lib_.on_device) found = candidates();
        for (size_t i = 0; i < variants_.size(); ++i) {
            Variant& v = variants_[i];
            if (lib_.on_device)
                choose_by_time(v, std::move(found[i]));
            else
                choose_first(v);
            for (const auto& [what, graph] : v.graphs) {
                const auto [pass, fusion] = what;
                size_t staged = narrows_input_ ? x_bytes(v.batch) : 0;
                if (has_norm(fusion)) staged += shift_bytes();
                // Behind an unfused convolution the residual is added, which may be where the result goes, or the gradient to the others.
                if (fusion == Fusion::none && pass == ConvPass::forward) staged += y_bytes(v.batch);
                if (fusion == Fusion::none && pass == ConvPass::backward_weights) staged += w_bytes();
                workspace_bytes_ = std::max(workspace_bytes_, staged + aligned(graph->workspace_bytes()));
            }
        }
    }

    size_t elements(int64_t count) const { return aligned(static_cast<size_t>(count) * size_of(lib_.activation())); }
    size_t x_bytes(int64_t batch) const { return elements(batch * shape_.in_channels * shape_.height * shape_.width); }
    size_t y_bytes(int64_t batch) const { return elements(batch * shape_.out_channels * shape_.out_height() * shape_.out_width()); }
    size_t w_bytes() const { return elements(shape_.weight_count()); }
    size_t shift_bytes() const { return aligned(static_cast<size_t>(shape_.in_channels) * sizeof(float)); }
    std::array<int64_t, 4> x_dims(const Variant& v) const { return {v.batch, shape_.in_channels, shape_.height, shape_.width}; }
    std::array<int64_t, 4> y_dims(const Variant& v) const {
        return {v.batch, shape_.out_channels, shape_.out_height(), shape_.out_width()};
    }

    const Variant& variant(int64_t batch) const {
        for (const Variant& v : variants_)
            if (v.batch == batch) return v;
        throw std::logic_error("A convolution of batch " + std::to_string(batch) + " was not planned.");
    }
    const Variant& backward_variant(int64_t batch) const {
        const Variant& v = variant(batch);
        if (!v.backward)
            throw std::logic_error("The backward pass of a convolution of batch " + std::to_string(batch) + " was not planned.");
        return v;
    }
    void check_tensors(const Variant& v, const Tensor& x, const Tensor& y) const {
        expect_tensor(x, "input", x_dims(v), narrows_input_ ? DType::f32 : lib_.activation());
        expect_tensor(y, "output", y_dims(v), lib_.activation());
    }

    static std::byte* take(std::byte*& workspace, size_t bytes) {
        std::byte* taken = workspace;
        workspace += bytes;
        return taken;
    }
    // The images in the activation type.
    const void* narrowed(const Tensor& x, std::byte*& workspace) {
        if (!narrows_input_) return x.data;
        void* to = take(workspace, x_bytes(x.n));
        lib_.ops.convert({to, lib_.activation(), x.count()}, {x.data, DType::f32, x.count()});
        return to;
    }
    static ConvPointers operands(void* x, const void* w, void* y) {
        ConvPointers p;
        p[ConvRole::x] = x;
        p[ConvRole::w] = const_cast<void*>(w);
        p[ConvRole::y] = y;
        return p;
    }

    static void give_sums(ConvPointers& p, const Array& sums, int64_t channels) {
        expect(sums.count == 2 * channels && sums.type == DType::f32, "other sums");
        p[ConvRole::sum] = sums.data;
        p[ConvRole::sum_of_products] = sums.slice(channels, channels).data;
    }

    void run(const char* label, const Variant& v, ConvPass pass, Fusion fusion, const ConvPointers& pointers, std::byte* workspace) {
        const auto found = v.graphs.find({pass, fusion});
        if (found == v.graphs.end())
            throw std::logic_error(std::string("A convolution was called with ") + fusion_name(fusion) + ", which it does not fuse.");
        const ConvGraph& graph = *found->second;
        double bytes = 0;
        for (const ConvOperand& o : operands_of(graph.problem()))
            bytes += static_cast<double>(o.dims[0] * o.dims[1] * o.dims[2] * o.dims[3]) * static_cast<double>(size_of(o.type));
        launch(lib_.launcher, label, {.bytes = bytes, .flops = shape_.flops() * static_cast<double>(v.batch), .shape = name_.c_str()},
               [&] { graph.execute(pointers, workspace); });
    }

    ConvProblem problem(int64_t batch, ConvPass pass, Fusion fusion) const {
        return {.shape = shape_,
                .batch = batch,
                .pass = pass,
                .fusion = fusion,
                .precision = lib_.settings.precision,
                .algorithm = algorithm_,
                .nondeterministic = lib_.settings.nondeterministic,
                .workspace_limit = lib_.settings.workspace_limit()};
    }
    Graph first_graph(int64_t batch, ConvPass pass) const {
        auto graph = std::make_shared<ConvGraph>(lib_.cudnn, problem(batch, pass, Fusion::none));
        graph->finalise_first();
        return graph;
    }
    void choose_first(Variant& v) const {
        v.graphs[{ConvPass::forward, Fusion::none}] = first_graph(v.batch, ConvPass::forward);
        if (!v.backward) return;
        for (const ConvPass pass : {ConvPass::backward_data, ConvPass::backward_weights})
            v.graphs[{pass, Fusion::none}] = first_graph(v.batch, pass);
    }

    // By time -------------------------------------------------------------------------------------------------------------------

    std::string key(int64_t batch, const std::string& what) const {
        return lib_.gpu.title + " | cudnn " + std::to_string(Cudnn::version()) + " | " + shape_.text() + " | " + what + " | batch " +
               std::to_string(batch) + " | " + precision_name(lib_.settings.precision) +
               (algorithm_ == ConvAlgorithm::direct ? " | direct" : "") +
               (lib_.settings.nondeterministic ? " | nondeterministic" : " | deterministic") + " | at most " +
               std::to_string(lib_.settings.workspace_limit() >> 20) + " MiB";
    }

    // Everything of one batch size while it is chosen by time.
    struct Search {
        Trial& trial;
        Variant& v;
        Candidates candidates;
        std::map<What, bool> right = {};  // of fused graphs, as far as they were looked at
        bool filled = false;
    };

    void choose_by_time(Variant& v, Candidates found) {
        Trial trial(lib_, shape_, v.batch);
        if (!trial.possible()) {
            tell("Too little GPU memory is free to time " + shape_.text() + " for batch " + std::to_string(v.batch) +
                 ": cuDNN's first choice is taken.");
            return choose_first(v);
        }
        const std::vector<Fusion> wholes = wholes_of(v);
        Search search{.trial = trial, .v = v, .candidates = std::move(found)};

        std::set<What> used = always_used(v);
        for (const Fusion whole : wholes) {
            v.best[whole] = fastest(search, whole);
            used.insert({pass_of(whole), v.best[whole]});
        }
        for (const What& what : used) graph_of(search, what);
        std::erase_if(v.graphs, [&](const auto& entry) { return !used.contains(entry.first); });
        // Each once more: whatever cuDNN loads at a first call is loaded before a phase is recorded.
        for (const auto& [what, graph] : v.graphs) run_whole(trial, *graph, what.second);
        trial.wait();
    }

    // Whatever is chosen.
    std::set<What> always_used(const Variant& v) const {
        std::set<What> used;
        if (images_) used.insert({ConvPass::forward, Fusion::none});  // its residual, which no network has, is an op
        if (v.backward) used.insert({ConvPass::backward_data, Fusion::none});
        return used;
    }

    // What will be called, with the ops around it, so that they are worth a choice.
    std::vector<Fusion> wholes_of(const Variant& v) const {
        std::set<Fusion> wanted;
        for (const ConvCall& call : calls_) {
            wanted.insert(forward_with({}, call.residual));  // for where norm and sums are ops after all
            wanted.insert(forward_with(call.around, call.residual));
        }
        const auto called = [&](bool ConvFusion::*what) {
            return std::any_of(calls_.begin(), calls_.end(), [&](const ConvCall& c) { return c.around.*what; });
        };
        std::vector<Fusion> wholes;
        for (const Fusion f : kForward) {
            if (images_ && (has_norm(f) || has_residual(f))) continue;
            if (has_sums(f) && !v.backward) continue;  // those passes have no statistics of their batch
            if (calls_.empty() || wanted.contains(f)) wholes.push_back(f);
        }
        if (!v.backward) return wholes;
        if (!images_ && (calls_.empty() || (called(&ConvFusion::activation) && called(&ConvFusion::sums))))
            wholes.push_back(Fusion::leaky_backward_sums);
        wholes.push_back(Fusion::accumulate);
        return wholes;
    }

    // What may be a part of the whole: it does nothing that is not wanted, and the rest are ops.
    static bool part_of(Fusion fusion, Fusion whole) {
        return fusion == Fusion::none || (pass_of(fusion) == pass_of(whole) && has_residual(fusion) == has_residual(whole) &&
                                          has_norm(fusion) <= has_norm(whole) && has_sums(fusion) <= has_sums(whole));
    }

    std::string whole_key(int64_t batch, Fusion whole) const {
        return key(batch, std::string(pass_name(pass_of(whole))) + " or " + fusion_name(whole));
    }
    std::string part_key(int64_t batch, const What& what) const {
        return key(batch, pass_name(what.first) + std::string(" with ") + fusion_name(what.second));
    }

    // Not worth the seconds that compiling takes: on an H100 these took 1.2 to 3.7 times as long as the convolution alone and its ops, for
    // every convolution of WRN-28-10 in bf16 (cuDNN 9.19; for the weights of 1x1 ones as long), as only what comes compiled uses what
    // is new in that generation. In f32, without tensor cores, a residual takes a convolution five times as long.
    bool hopeless(Fusion f) const {
        return lib_.gpu.sm == 90 && (has_norm(f) || has_sums(f) || f == Fusion::accumulate ||
                                     (has_residual(f) && lib_.settings.precision == CudaPrecision::f32));
    }

    // The one that is remembered, else all that there can be.
    std::vector<Fusion> parts_of(Fusion whole, int64_t batch) const {
        std::vector<Fusion> parts = {Fusion::none};
        for (const Fusion f : kForward) parts.push_back(f);
        parts.insert(parts.end(), {Fusion::leaky_backward_sums, Fusion::accumulate});
        std::erase_if(parts, [&](Fusion f) { return !part_of(f, whole) || hopeless(f); });
        if (const auto choice = lib_.cache.find(whole_key(batch, whole)))
            for (const Fusion f : parts)
                if (fusion_name(f) == choice->choice) return {f};
        return parts;
    }

    // How many of the ranked list are tried: a first run must not spend minutes here. Fused ones are compiled, for half a second each,
    // those with sums for two.
    static size_t most_engines(Fusion fusion) {
        return fusion == Fusion::none ? 8 : has_sums(fusion) || fusion == Fusion::accumulate ? 2 : 3;
    }

    // Of every variant all that may be wanted, finalised by all cores: the engine that is remembered, or the first of the ranked list.
    std::vector<Candidates> candidates() {
        struct Task {
            size_t variant;
            What what;
            std::optional<std::string> engine;
            size_t rank;
        };
        std::vector<Task> tasks;
        for (size_t i = 0; i < variants_.size(); ++i) {
            const Variant& v = variants_[i];
            std::set<What> wanted = always_used(v);
            for (const Fusion whole : wholes_of(v))
                for (const Fusion f : parts_of(whole, v.batch)) wanted.insert({pass_of(whole), f});
            for (const What& what : wanted) {
                const auto choice = lib_.cache.find(part_key(v.batch, what));
                if (choice && choice->choice == kNoEngine) continue;
                if (choice)
                    tasks.push_back({i, what, choice->choice, 0});
                else
                    for (size_t rank = 0; rank < most_engines(what.second); ++rank) tasks.push_back({i, what, std::nullopt, rank});
            }
        }
        std::vector<Graph> made(tasks.size());
        lib_.in_parallel(tasks.size(), [&](size_t i, const Cudnn& cudnn) {
            const Task& t = tasks[i];
            try {
                auto graph = std::make_shared<ConvGraph>(cudnn, problem(variants_[t.variant].batch, t.what.first, t.what.second));
                for (size_t rank = t.rank; rank < graph->engines(); ++rank) {
                    if (t.engine && graph->engine(rank) != *t.engine) continue;
                    if (graph->finalise(rank)) made[i] = std::move(graph);
                    break;
                }
            } catch (const CudnnError&) {  // cuDNN does not offer it (any more)
            }
        });
        std::vector<Candidates> out(variants_.size());
        for (size_t i = 0; i < tasks.size(); ++i)
            if (made[i] != nullptr) out[tasks[i].variant][tasks[i].what].push_back(std::move(made[i]));
        return out;
    }

    void begin_timing(Search& s) {
        if (std::exchange(s.filled, true)) return;
        s.trial.fill();
        if (!std::exchange(lib_.told, true))
            tell("Timing the convolutions of this network on " + lib_.gpu.title + ", once" +
                 (lib_.settings.cache_file.empty() ? "" : " (remembered in " + lib_.settings.cache_file + ")") + ".");
    }

    // Which of its parts the convolution does itself: remembered, or the fastest in all, ops included, of those that compute the same.
    Fusion fastest(Search& s, Fusion whole) {
        const ConvPass pass = pass_of(whole);
        const std::vector<Fusion> parts = parts_of(whole, s.v.batch);
        if (parts.size() == 1 && graph_of(s, {pass, parts.front()}) != nullptr) return parts.front();
        begin_timing(s);
        std::vector<std::pair<double, Fusion>> times;
        for (const Fusion f : parts)
            if (const Graph graph = graph_of(s, {pass, f}); graph != nullptr)
                times.push_back({s.trial.seconds([&] { run_whole(s.trial, *graph, whole); }, INFINITY), f});
        std::stable_sort(times.begin(), times.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        for (const auto& [seconds, f] : times) {
            if (f != Fusion::none && !right(s, {pass, f})) continue;
            lib_.cache.remember(whole_key(s.v.batch, whole), {.choice = fusion_name(f), .seconds = seconds});
            return f;
        }
        return Fusion::none;
    }

    // The graph with its fastest engine, remembered or timed; null for a fused one that cuDNN does not offer.
    Graph graph_of(Search& s, const What& what) {
        if (const auto found = s.v.graphs.find(what); found != s.v.graphs.end()) return found->second;
        const std::string remembered_as = part_key(s.v.batch, what);
        std::vector<Graph> engines = std::move(s.candidates[what]);
        Graph graph;
        if (engines.size() == 1 && lib_.cache.find(remembered_as)) {
            graph = engines.front();
        } else {
            begin_timing(s);
            PlanChoice choice{.choice = kNoEngine, .seconds = INFINITY};
            for (const Graph& g : engines) {
                // A slower one must be slower by more than the clock's noise before the heuristics' order is left.
                constexpr double kNoise = 0.98, kHopeless = 3;
                double seconds = INFINITY;
                try {
                    seconds = s.trial.seconds([&] { run_whole(s.trial, *g, what.second); }, kHopeless * choice.seconds);
                } catch (const std::runtime_error&) {  // it was planned but does not run: the next one
                }
                if (seconds >= kNoise * choice.seconds) continue;
                choice = {.choice = g->engine(g->rank()), .seconds = seconds};
                graph = g;
            }
            if (graph == nullptr && what.second == Fusion::none)
                graph = first_graph(s.v.batch, what.first);  // to be timed another time
            else
                lib_.cache.remember(remembered_as, graph != nullptr ? choice : PlanChoice{.choice = kNoEngine, .seconds = 0});
        }
        return s.v.graphs[what] = graph;
    }

    // A fused graph is taken only if it gives, in place, what the convolution alone and the ops give; and, as a run must repeat bit
    // for bit, only if it gives the same bits each time, whatever its engine is marked as.
    bool right(Search& s, const What& what) {
        if (const auto known = s.right.find(what); known != s.right.end()) return known->second;
        return s.right[what] = agrees(s, *graph_of(s, what), *graph_of(s, {what.first, Fusion::none}));
    }
    bool agrees(Search& s, const ConvGraph& graph, const ConvGraph& plain) {
        constexpr int kRepetitions = 4;
        const Fusion fusion = graph.problem().fusion;
        const std::vector<std::vector<float>> want = results(s.trial, plain, fusion), got = results(s.trial, graph, fusion);
        const auto refuse = [&](const char* why) {
            tell(graph.engine(graph.rank()) + " (" + shape_.text() + ", " + fusion_name(fusion) + ") " + why + " and is not used.");
            return false;
        };
        for (size_t i = 0; i < want.size(); ++i)
            if (!agree(got[i], want[i], lib_.activation(), fusion == Fusion::leaky_backward_sums && i == 0))
                return refuse("computes something else than the unfused form");
        if (lib_.settings.nondeterministic) return true;
        const auto same_bits = [](const std::vector<float>& a, const std::vector<float>& b) {
            return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
        };
        for (int i = 1; i < kRepetitions; ++i) {
            const std::vector<std::vector<float>> again = results(s.trial, graph, fusion);
            if (!std::equal(got.begin(), got.end(), again.begin(), same_bits)) return refuse("gives other bits at another time");
        }
        return true;
    }

    // Of the whole, on the same operands each time: the pass's output, and what a norm beside it makes of the sums.
    std::vector<std::vector<float>> results(Trial& trial, const ConvGraph& graph, Fusion whole) const {
        trial.fill();
        trial.copy(Trial::kY, Trial::kResidual, trial.y(Trial::kY).bytes());
        run_whole(trial, graph, whole);
        const auto flat = [](const Tensor& t) { return Array{t.data, t.type, t.count()}; };
        switch (pass_of(whole)) {
            case ConvPass::forward:
                if (!has_sums(whole)) return {trial.download(flat(trial.y(Trial::kY)))};
                return {trial.download(flat(trial.y(Trial::kY))), trial.download(trial.next_norm().mean),
                        trial.download(trial.next_norm().inv_std)};
            case ConvPass::backward_data:
                return {trial.download(flat(trial.x(Trial::kOtherX))), trial.download(trial.norm().a), trial.download(trial.norm().b)};
            case ConvPass::backward_weights:
                break;
        }
        return {trial.download(trial.weights(Trial::kWeightSum))};
    }

    // The whole by a graph that does a part of it, or all, and by the ops that do the rest. In place where the network calls it so:
    // the residual is y, the sum is the gradient of the weights.
    void run_whole(Trial& t, const ConvGraph& graph, Fusion whole) const {
        const Fusion fusion = graph.problem().fusion;
        const Tensor x = t.x(Trial::kX), y = t.y(Trial::kY), other_x = t.x(Trial::kOtherX), residual = t.y(Trial::kResidual);
        ConvPointers p = operands(x.data, t.at(Trial::kW), y.data);
        p[ConvRole::bias] = t.of_output(Trial::kBias).data;
        p[ConvRole::residual] = y.data;
        p[ConvRole::scale] = t.norm().scale.data;
        switch (graph.problem().pass) {
            case ConvPass::forward: {
                if (has_norm(fusion)) {
                    lib_.ops.norm_shift(t.of_input(Trial::kShift), t.norm());
                    p[ConvRole::shift] = t.of_input(Trial::kShift).data;
                } else if (has_norm(whole)) {
                    lib_.ops.norm_leaky(other_x, x, t.norm());
                    p[ConvRole::x] = other_x.data;
                }
                const Array sums = t.of_channel(Trial::kSums, 2 * shape_.out_channels);
                give_sums(p, sums, shape_.out_channels);
                p[ConvRole::centre] = t.next_parameters().running_mean.data;
                graph.execute(p, t.workspace());
                if (fusion == Fusion::none && whole != Fusion::none)
                    lib_.ops.add_bias(y, y, t.of_output(Trial::kBias), has_residual(whole) ? &residual : nullptr);
                if (has_sums(fusion))
                    lib_.ops.batch_norm_of_sums(t.next_norm(), sums, y, t.next_parameters(), RunningStatistics::keep, nullptr);
                else if (has_sums(whole))
                    lib_.ops.batch_norm_statistics(t.next_norm(), y, t.next_parameters(), RunningStatistics::keep, nullptr);
                break;
            }
            case ConvPass::backward_data: {
                const Array sums = t.of_channel(Trial::kSums, 2 * shape_.in_channels);
                give_sums(p, sums, shape_.in_channels);
                p[ConvRole::x] = other_x.data;
                p[ConvRole::norm_input] = x.data;
                p[ConvRole::centre] = t.norm().mean.data;
                p[ConvRole::shift] = t.norm().beta.data;
                graph.execute(p, t.workspace());
                if (fusion == Fusion::leaky_backward_sums) {
                    lib_.ops.norm_backward_of_sums(t.norm(), {}, {}, sums, x);
                    lib_.ops.norm_backward(other_x, other_x, x, t.norm(), nullptr);
                } else if (whole == Fusion::leaky_backward_sums) {
                    lib_.ops.norm_backward_sums(t.norm(), {}, {}, other_x, x);
                    lib_.ops.norm_leaky_backward(other_x, other_x, x, t.norm(), nullptr);
                }
                break;
            }
            case ConvPass::backward_weights:
                if (fusion == Fusion::accumulate) p[ConvRole::w] = p[ConvRole::accumulated_w] = t.at(Trial::kWeightSum);
                graph.execute(p, t.workspace());
                if (fusion == Fusion::none && whole != Fusion::none)
                    lib_.ops.accumulate(t.weights(Trial::kWeightSum), t.weights(Trial::kW));
                break;
        }
    }

    // Without a GPU --------------------------------------------------------------------------------------------------------------

    // Compiled only where the GPU is: each would take seconds.
    Choice fused_candidate(Fusion fusion) const {
        return {.pass = std::string(pass_name(pass_of(fusion))) + " with " + fusion_name(fusion),
                .engine = "not planned (compiled and timed on the GPU)",
                .batch = variants_.empty() ? 0 : variants_.front().batch,
                .workspace_bytes = 0,
                .candidate = true};
    }

    Libraries& lib_;
    ConvShape shape_;
    std::string name_;  // of the shape, for profiles
    ConvAlgorithm algorithm_;
    std::vector<ConvCall> calls_;  // empty: any
    bool images_;                  // nothing stands in front of it
    bool narrows_input_;           // x is f32 images, the convolution reads bf16
    std::vector<Variant> variants_;
    size_t workspace_bytes_ = 0;
};

class LibraryPlans final : public CudaPlans {
public:
    LibraryPlans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings, bool on_device)
        : lib_{launcher,
               ops,
               gpu,
               settings,
               on_device,
               on_device ? Cudnn(launcher.stream()) : Cudnn(gpu),
               PlanCache(on_device ? settings.cache_file : "")},
          linear_(launcher, gpu, settings.precision, on_device) {
        if (!lib_.cache.warning().empty()) tell(lib_.cache.warning());
    }

    std::unique_ptr<ConvPlan> convolution(const ConvShape& shape, const ConvOptions& options) override {
        return std::make_unique<CudnnConvPlan>(lib_, shape, options);
    }
    std::unique_ptr<LinearPlan> linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) override {
        return linear_.plan(in, out, batches);
    }

private:
    Libraries lib_;
    CublasLinear linear_;
};

}  // namespace

std::unique_ptr<CudaPlans> make_library_plans(CudaLauncher& launcher, Ops& ops, const GpuDescription& gpu, const CudaPlanSettings& settings,
                                              bool on_device) {
    return std::make_unique<LibraryPlans>(launcher, ops, gpu, settings, on_device);
}

}  // namespace jem
