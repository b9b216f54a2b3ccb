#include "engine/device/cuda/convolution/cudnn_graphs.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "kernels/cuda/cuda_launcher.h"
#include "kernels/norm.h"

namespace jem {
namespace {

namespace fe = cudnn_frontend;
using fe::DataType_t;
using TensorPtr = std::shared_ptr<fe::graph::Tensor_attributes>;
using Dims = std::vector<int64_t>;

constexpr int64_t kOldestCudnn = 90800;  // the first that plans from a description
constexpr int64_t kOrderedSums = 91100;  // the first that can be asked for sums in a fixed order
// Many of cuDNN's kernels count elements with 32 bits. It accepts larger tensors (2^33 elements were tried) without a word.
constexpr int64_t kMostElements = (int64_t{1} << 31) - 1;
// Tensor core engines read 16 bytes of channels at a time. With other counts cuDNN converts whole tensors in its scratch
// (161 channels: 44 MB in place of 131 bytes). Images are the exception: they have so few that it has engines for them.
constexpr int64_t kChannelMultiple = 8;
constexpr int64_t kMostImageChannels = 4;

DataType_t cudnn_type(DType type) {
    switch (type) {
        case DType::f32:
            return DataType_t::FLOAT;
        case DType::bf16:
            return DataType_t::BFLOAT16;
        default:
            throw std::logic_error("A cuDNN graph was given a tensor that is neither f32 nor bf16.");
    }
}

std::string text(const std::array<int64_t, 4>& dims) {
    std::string out;
    for (const int64_t d : dims) out += (out.empty() ? "" : "x") + std::to_string(d);
    return out;
}

// "Cannot plan conv 3x3 16->160 on 32x32, batch 64, backward_weights (accumulate), bf16"
std::string describe(const ConvProblem& p) {
    return "the convolution " + p.shape.text() + ", batch " + std::to_string(p.batch) + ", " + pass_name(p.pass) +
           (p.fusion == Fusion::none ? "" : std::string(" with ") + fusion_name(p.fusion)) + ", " + precision_name(p.precision);
}

std::string one_line(std::string text) {
    constexpr size_t kMost = 400;
    std::replace_if(
        text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
    if (text.size() > kMost) text = text.substr(0, kMost) + " ...";
    return text;
}

void check(fe::error_t status, const ConvProblem& problem, const char* call) {
    if (status.is_good()) return;
    throw CudnnError("cuDNN cannot plan " + describe(problem) + " (" + call + ": " + one_line(status.get_message()) +
                     "). Choose another --precision, --width or batch size.");
}

void check(cudnnStatus_t status, const char* what) {
    if (status == CUDNN_STATUS_SUCCESS) return;
    throw CudnnError(std::string("cuDNN could not ") + what + " (" + cudnnGetErrorString(status) +
                     "). Look at nvidia-smi, or run with --device cpu.");
}

Dims strides_nhwc(const Dims& d) { return {d[1] * d[2] * d[3], 1, d[1] * d[3], d[1]}; }

int64_t uid_of(ConvRole role) { return static_cast<int64_t>(role) + 1; }

}  // namespace

void check_operands(const ConvProblem& p, const std::vector<ConvOperand>& operands) {
    const auto refuse = [&](const std::string& problem, const std::string& why, const std::string& advice) {
        throw CudnnError(problem + " in " + describe(p) + " (" + why + "). " + advice);
    };
    const ConvShape& s = p.shape;
    const auto odd = [](int64_t side) { return side > 0 && side % 2 == 1; };
    if (p.batch < 1 || s.in_channels < 1 || s.out_channels < 1 || !odd(s.kernel.height) || !odd(s.kernel.width) || s.stride.height < 1 ||
        s.stride.width < 1 || s.padding.height < 0 || s.padding.width < 0 || s.height < 1 || s.width < 1 || s.out_height() < 1 ||
        s.out_width() < 1)
        refuse("Sizes that are no convolution's",
               "batch, channels, sizes and stride must be positive, the kernel odd, the padding not negative", "Correct the shape.");
    if (p.fusion != Fusion::none && pass_of(p.fusion) != p.pass)
        refuse("A fusion of another pass", fusion_name(p.fusion), "Ask for one that goes with the pass.");
    for (const int64_t c : {s.in_channels, s.out_channels})
        if (c % kChannelMultiple != 0 && !(c == s.in_channels && c <= kMostImageChannels))
            refuse(std::to_string(c) + " channels",
                   "no multiple of " + std::to_string(kChannelMultiple) + ": cuDNN would convert whole tensors in its scratch",
                   "Choose another --width.");
    const std::vector<ConvOperand> wanted = operands_of(p);
    if (operands.size() != wanted.size())
        refuse("Missing or unknown tensors", "the fusion says which there are", "Take those of operands_of.");
    for (size_t i = 0; i < wanted.size(); ++i) {
        const ConvOperand &o = operands[i], &w = wanted[i];
        if (o.role != w.role || o.dims != w.dims || o.type != w.type)
            refuse(std::string("A wrong tensor ") + role_name(w.role),
                   text(o.dims) + (o.type != w.type ? " of another type" : "") + ", expected " + text(w.dims) +
                       "; cuDNN takes some of these and computes something else",
                   "Correct the tensor.");
        int64_t count = 1;
        for (const int64_t d : o.dims) {
            if (d > kMostElements / count)
                refuse(std::string("More than 2^31 - 1 elements of ") + role_name(o.role), text(o.dims) + "; engines count with 32 bits",
                       "Lower --batch-size, --gen-batch-size or --width.");
            count *= d;
        }
    }
}

// The library ---------------------------------------------------------------------------------------------------------------

struct Cudnn::Impl {
    std::shared_ptr<fe::DeviceProperties> described;  // null: the GPU at hand
    int sm = 0;
    cudnnHandle_t handle = nullptr;
    cudnnHandle_t executing = nullptr;  // what work is queued by: handle, or another's
    const CudaLauncher* launcher = nullptr;

    ~Impl() {
        if (handle != nullptr) cudnnDestroy(handle);
    }
};

int64_t Cudnn::version() { return static_cast<int64_t>(cudnnGetVersion()); }

bool Cudnn::has_driver() {
    int driver = 0;
    const cudaError_t status = cudaDriverGetVersion(&driver);
    if (status != cudaSuccess) (void)cudaGetLastError();
    return status == cudaSuccess && driver > 0;
}

namespace {
// cuDNN loads NVRTC by name when it compiles a graph, and looks beside itself; this program knows where the toolkit is.
void find_nvrtc() { (void)dlopen(("libnvrtc.so." + std::to_string(CUDART_VERSION / 1000)).c_str(), RTLD_LAZY | RTLD_GLOBAL); }

void check_version() {
    if (Cudnn::version() >= kOldestCudnn) return;
    throw CudnnError("cuDNN " + std::to_string(Cudnn::version() / 10000) + "." + std::to_string(Cudnn::version() / 100 % 100) +
                     " was found (9.8 or newer is needed). Install a newer one, or run with --device cpu.");
}
}  // namespace

Cudnn::Cudnn(const GpuDescription& gpu) : impl_(std::make_unique<Impl>()) {
    check_version();
    impl_->described = std::make_shared<fe::DeviceProperties>();
    impl_->sm = gpu.sm;
    if (has_driver()) find_nvrtc();
    fe::error_t status = impl_->described->deserialize({gpu.json.begin(), gpu.json.end()});
    if (status.is_bad())
        throw CudnnError("cuDNN does not understand the description of " + gpu.title + " (" + one_line(status.get_message()) +
                         "). Correct " + gpu.name + ".");
}

Cudnn::Cudnn(const CudaLauncher& launcher) : impl_(std::make_unique<Impl>()) {
    check_version();
    find_nvrtc();
    check(cudnnCreate(&impl_->handle), "start");
    impl_->executing = impl_->handle;
    impl_->launcher = &launcher;
}

Cudnn::Cudnn(const Cudnn* executing) : impl_(std::make_unique<Impl>()) {
    check(cudnnCreate(&impl_->handle), "start");
    impl_->executing = executing->impl().executing;
    impl_->launcher = executing->impl().launcher;
}

Cudnn::~Cudnn() = default;

// The graphs ----------------------------------------------------------------------------------------------------------------

// A graph with access to its list of engines: the frontend has setters that filter it, but no getters.
struct ConvGraph::Impl : fe::graph::Graph {
    const Cudnn::Impl* cudnn = nullptr;
    ConvProblem problem;
    std::vector<int64_t> ranked;  // indices into the frontend's list
    size_t finalised = SIZE_MAX;  // rank
    size_t workspace = 0;
    mutable std::unordered_map<int64_t, void*> pack;  // by uid; made once, so that executing allocates none of it

    bool has_note(int64_t index, std::initializer_list<fe::NumericalNote_t> any) const {
        const auto& notes = plans.numeric_notes[static_cast<size_t>(index)];
        return std::find_first_of(notes.begin(), notes.end(), any.begin(), any.end()) != notes.end();
    }
    bool supported(int64_t index) { return plans.check_support_at_index(index).is_good(); }

    TensorPtr tensor_of(const ConvOperand& o) {
        const Dims dims(o.dims.begin(), o.dims.end());
        return tensor(fe::graph::Tensor_attributes()
                          .set_name(role_name(o.role))
                          .set_uid(uid_of(o.role))
                          .set_dim(dims)
                          .set_stride(strides_nhwc(dims))
                          .set_data_type(cudnn_type(o.type))
                          .set_alignment(kConvAlignment));
    }
    static void name_output(const TensorPtr& t, const ConvOperand& o) {
        const Dims dims(o.dims.begin(), o.dims.end());
        t->set_output(true)
            .set_name(role_name(o.role))
            .set_uid(uid_of(o.role))
            .set_dim(dims)
            .set_stride(strides_nhwc(dims))
            .set_data_type(cudnn_type(o.type))
            .set_alignment(kConvAlignment);
    }
    static fe::graph::Pointwise_attributes pointwise_of(fe::PointwiseMode_t mode) {
        return fe::graph::Pointwise_attributes().set_mode(mode).set_compute_data_type(DataType_t::FLOAT);
    }
    TensorPtr add(const TensorPtr& a, const TensorPtr& b) { return pointwise(a, b, pointwise_of(fe::PointwiseMode_t::ADD)); }
    TensorPtr subtract(const TensorPtr& a, const TensorPtr& b) { return pointwise(a, b, pointwise_of(fe::PointwiseMode_t::SUB)); }
    TensorPtr multiply(const TensorPtr& a, const TensorPtr& b) { return pointwise(a, b, pointwise_of(fe::PointwiseMode_t::MUL)); }
    TensorPtr sum(const TensorPtr& t) {
        return reduction(t, fe::graph::Reduction_attributes()
                                .set_mode(fe::ReductionMode_t::ADD)
                                // Left to itself cuDNN adds with atomics, and marks no engine for it.
                                .set_is_deterministic(!problem.nondeterministic)
                                .set_compute_data_type(DataType_t::FLOAT));
    }
    template <class Attributes>
    Attributes geometry() const {
        const ConvShape& s = problem.shape;
        return Attributes()
            .set_padding({s.padding.height, s.padding.width})
            .set_stride({s.stride.height, s.stride.width})
            .set_dilation({1, 1});
    }

    void lay_out();
};

void ConvGraph::Impl::lay_out() {
    const std::vector<ConvOperand> operands = operands_of(problem);
    check_operands(problem, operands);
    for (const ConvOperand& o : operands) pack[uid_of(o.role)] = nullptr;
    const auto operand = [&](ConvRole role) -> const ConvOperand& {
        return *std::find_if(operands.begin(), operands.end(), [&](const ConvOperand& o) { return o.role == role; });
    };
    const auto input = [&](ConvRole role) { return tensor_of(operand(role)); };
    const auto output = [&](const TensorPtr& t, ConvRole role) { name_output(t, operand(role)); };

    if (cudnn->described) set_device_properties(cudnn->described);
    // Without it the frontend asks the CUDA runtime for a GPU that may not be there.
    if (cudnn->sm > 0) set_sm_version(cudnn->sm);
    const DataType_t type = cudnn_type(activation_type(problem.precision));
    set_io_data_type(type).set_intermediate_data_type(DataType_t::FLOAT).set_compute_data_type(DataType_t::FLOAT);

    switch (problem.pass) {
        case ConvPass::forward: {
            TensorPtr x = input(ConvRole::x);
            if (has_norm(problem.fusion)) {
                // cuDNN takes a prologue in bf16 only if what it hands on has the type of the tensors.
                x = multiply(x, input(ConvRole::scale));
                x->set_data_type(type);
                x = add(x, input(ConvRole::shift));
                x->set_data_type(type);
                x = pointwise(x, pointwise_of(fe::PointwiseMode_t::RELU_FWD).set_relu_lower_clip_slope(problem.slope));
                x->set_data_type(type);
            }
            TensorPtr y = conv_fprop(x, input(ConvRole::w), geometry<fe::graph::Conv_fprop_attributes>());
            if (problem.fusion != Fusion::none) y = add(y, input(ConvRole::bias));
            if (has_residual(problem.fusion)) y = add(y, input(ConvRole::residual));
            output(y, ConvRole::y);
            if (has_sums(problem.fusion)) {
                const TensorPtr d = subtract(y, input(ConvRole::centre));
                output(sum(d), ConvRole::sum);
                output(sum(multiply(d, d)), ConvRole::sum_of_products);
            }
            break;
        }
        case ConvPass::backward_data: {
            TensorPtr d = conv_dgrad(input(ConvRole::y), input(ConvRole::w), geometry<fe::graph::Conv_dgrad_attributes>());
            if (problem.fusion == Fusion::leaky_backward_sums) {
                const Dims dims(operand(ConvRole::x).dims.begin(), operand(ConvRole::x).dims.end());
                d->set_dim(dims).set_stride(strides_nhwc(dims));
                const TensorPtr x = input(ConvRole::norm_input);
                const TensorPtr xc = subtract(x, input(ConvRole::centre));
                const TensorPtr z = add(multiply(xc, input(ConvRole::scale)), input(ConvRole::shift));
                const TensorPtr d_z = pointwise(d, z, pointwise_of(fe::PointwiseMode_t::RELU_BWD).set_relu_lower_clip_slope(problem.slope));
                output(d_z, ConvRole::x);
                output(sum(d_z), ConvRole::sum);
                output(sum(multiply(d_z, xc)), ConvRole::sum_of_products);
            } else {
                output(d, ConvRole::x);
            }
            break;
        }
        case ConvPass::backward_weights: {
            TensorPtr d = conv_wgrad(input(ConvRole::y), input(ConvRole::x), geometry<fe::graph::Conv_wgrad_attributes>());
            if (problem.fusion == Fusion::accumulate) {
                const Dims dims(operand(ConvRole::w).dims.begin(), operand(ConvRole::w).dims.end());
                d->set_dim(dims).set_stride(strides_nhwc(dims));
                d = add(d, input(ConvRole::accumulated_w));
            }
            output(d, ConvRole::w);
            break;
        }
    }
}

ConvGraph::ConvGraph(const Cudnn& cudnn, const ConvProblem& problem) : impl_(std::make_unique<Impl>()) {
    Impl& g = *impl_;
    g.cudnn = &cudnn.impl();
    g.problem = problem;
    if (has_sums(problem.fusion) && !problem.nondeterministic && Cudnn::version() < kOrderedSums)
        throw CudnnError("cuDNN cannot plan " + describe(problem) + " (before 9.11 its sums have no fixed order). Install a newer one.");
    try {
        g.lay_out();
        check(g.validate(), problem, "validate");
        check(g.cudnn->handle != nullptr ? g.build_operation_graph(g.cudnn->handle) : g.build_operation_graph(), problem,
              "build the operation graph");
        check(g.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}), problem, "ask the heuristics");
    } catch (const fe::cudnnException& e) {
        throw CudnnError("cuDNN cannot plan " + describe(problem) + " (" + one_line(e.what()) +
                         "). Choose another --precision or --width.");
    }
    using Note = fe::NumericalNote_t;
    std::vector<Note> barred = {Note::REDUCED_PRECISION_REDUCTION};  // sums are f32
    if (problem.precision == CudaPrecision::f32) barred.insert(barred.end(), {Note::TENSOR_CORE, Note::DOWN_CONVERT_INPUTS});
    if (!problem.nondeterministic) barred.push_back(Note::NONDETERMINISTIC);
    if (problem.algorithm == ConvAlgorithm::direct)
        barred.insert(barred.end(),
                      {Note::WINOGRAD, Note::WINOGRAD_TILE_4x4, Note::WINOGRAD_TILE_6x6, Note::WINOGRAD_TILE_13x13, Note::FFT});
    g.deselect_numeric_notes(barred);
    g.deselect_workspace_greater_than(static_cast<int64_t>(problem.workspace_limit));
    for (int64_t i = 0; i < g.get_execution_plan_count(); ++i)
        if (g.supported(i)) g.ranked.push_back(i);
    if (g.ranked.empty())
        throw CudnnError("cuDNN has no engine for " + describe(problem) + " (none of " + std::to_string(g.get_execution_plan_count()) +
                         " is " + (problem.nondeterministic ? "" : "deterministic, ") + "within the precision and needs at most " +
                         std::to_string(problem.workspace_limit >> 20) + " MiB of workspace). Choose another --precision.");
}

ConvGraph::~ConvGraph() = default;

size_t ConvGraph::engines() const { return impl_->ranked.size(); }

std::string ConvGraph::engine(size_t rank) const {
    std::string name;
    if (impl_->get_plan_name_at_index(impl_->ranked.at(rank), name).is_bad()) return "cudnn engine without a name";
    std::replace(name.begin(), name.end(), '_', ' ');
    return "cudnn " + name;
}

bool ConvGraph::nondeterministic(size_t rank) const {
    return impl_->has_note(impl_->ranked.at(rank), {fe::NumericalNote_t::NONDETERMINISTIC});
}

bool ConvGraph::uses_tensor_cores(size_t rank) const {
    return impl_->has_note(impl_->ranked.at(rank), {fe::NumericalNote_t::TENSOR_CORE, fe::NumericalNote_t::DOWN_CONVERT_INPUTS});
}

bool ConvGraph::finalise(size_t rank, std::string* why) {
    Impl& g = *impl_;
    const int64_t index = g.ranked.at(rank);
    const auto refused = [&](const std::string& reason) {
        if (why != nullptr) *why = one_line(reason);
        return false;
    };
    try {
        fe::error_t status = g.build_plan_at_index(index);
        int64_t workspace = 0;
        if (status.is_good()) status = g.get_workspace_size_plan_at_index(index, workspace);
        if (status.is_bad()) return refused(status.get_message());
        if (workspace < 0 || static_cast<size_t>(workspace) > g.problem.workspace_limit)
            return refused("it needs " + std::to_string(workspace) + " bytes of workspace");
        g.workspace = static_cast<size_t>(workspace);
    } catch (const fe::cudnnException& e) {
        return refused(e.what());
    }
    g.finalised = rank;
    return true;
}

void ConvGraph::finalise_first() {
    std::string reasons;
    for (size_t rank = 0; rank < engines(); ++rank) {
        std::string why;
        if (finalise(rank, &why)) return;
        reasons += (reasons.empty() ? "" : "; ") + engine(rank) + ": " + why;
    }
    throw CudnnError("cuDNN finalises no engine for " + describe(impl_->problem) + " (" + one_line(reasons) +
                     "). Choose another --precision or --width.");
}

size_t ConvGraph::rank() const { return impl_->finalised; }
size_t ConvGraph::workspace_bytes() const { return impl_->workspace; }
const ConvProblem& ConvGraph::problem() const { return impl_->problem; }

void ConvGraph::execute(const ConvPointers& pointers, std::byte* workspace) const {
    const Impl& g = *impl_;
    const auto refuse = [&](const std::string& why) {
        throw std::runtime_error("cuDNN could not run " + describe(g.problem) + " (" + why +
                                 "). If the cause may be an earlier operation, run again with CUDA_LAUNCH_BLOCKING=1.");
    };
    if (g.cudnn->executing == nullptr || g.finalised == SIZE_MAX) refuse("it was only planned");
    check_addresses(g.problem, pointers, WeightForm::plain);
    for (auto& [uid, address] : g.pack) address = pointers.data[static_cast<size_t>(uid - 1)];
    check(cudnnSetStream(g.cudnn->executing, g.cudnn->launcher->stream()), "use the stream");
    fe::error_t status = g.execute_plan_at_index(g.cudnn->executing, g.pack, workspace, g.ranked[g.finalised]);
    if (status.is_bad()) refuse(engine(g.finalised) + ": " + one_line(status.get_message()));
}

}  // namespace jem
