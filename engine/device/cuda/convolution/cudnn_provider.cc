#include "engine/device/cuda/convolution/cudnn_provider.h"

#include <mutex>
#include <utility>
#include <vector>

#include "engine/device/cuda/convolution/cudnn_graphs.h"

namespace jem {
namespace {

class CudnnEngine final : public ConvEngine {
public:
    CudnnEngine(const Cudnn& cudnn, const ConvProblem& problem) : graph_(cudnn, problem) {}

    std::string name() const override { return graph_.engine(graph_.rank()); }
    size_t workspace_bytes() const override { return graph_.workspace_bytes(); }
    void run(const ConvPointers& pointers, std::byte* workspace) const override { graph_.execute(pointers, workspace); }

    ConvGraph& graph() { return graph_; }

private:
    ConvGraph graph_;
};

class CudnnProvider final : public ConvProvider {
public:
    CudnnProvider(CudaLauncher& launcher, const GpuDescription& gpu, bool on_device)
        : sm_(gpu.sm), on_device_(on_device), cudnn_(on_device ? Cudnn(launcher) : Cudnn(gpu)) {}

    std::string name() const override { return "cudnn " + std::to_string(Cudnn::version()); }

    // Some are not worth the seconds that compiling takes: on an H100 these took 1.2 to 3.7 times as long as the convolution alone and its
    // ops, for every convolution of WRN-28-10 in bf16 (cuDNN 9.19; for the weights of 1x1 ones as long), as only what comes compiled uses
    // what is new in that generation. In f32, without tensor cores, a residual takes a convolution five times as long.
    bool supports(const ConvProblem& p) const override {
        const Fusion f = p.fusion;
        return sm_ != 90 ||
               !(has_norm(f) || has_sums(f) || f == Fusion::accumulate || (has_residual(f) && p.precision == CudaPrecision::f32));
    }
    // A first run must not spend minutes here. Fused ones are compiled, for half a second each, those with sums for two.
    // Of tf32's gradients of weights all are tried: the first eight reached 20 to 45 % of an H100's peak.
    size_t tries(const ConvProblem& p) const override {
        constexpr size_t kAll = 24;  // cuDNN 9.19 lists 19 to 21
        if (p.fusion == Fusion::none) return p.precision == CudaPrecision::tf32 && p.pass == ConvPass::backward_weights ? kAll : 8;
        return has_sums(p.fusion) || p.fusion == Fusion::accumulate ? 2 : 3;
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& problem, size_t rank) override {
        return made(problem, [rank](ConvGraph& graph) { return rank < graph.engines() && graph.finalise(rank); });
    }
    std::unique_ptr<ConvEngine> engine(const ConvProblem& problem, const std::string& name) override {
        return made(problem, [&name](ConvGraph& graph) {
            for (size_t rank = 0; rank < graph.engines(); ++rank)
                if (graph.engine(rank) == name) return graph.finalise(rank);
            return false;
        });
    }
    std::unique_ptr<ConvEngine> first(const ConvProblem& problem) override {
        auto engine = std::make_unique<CudnnEngine>(cudnn_, problem);
        engine->graph().finalise_first();
        return engine;
    }

private:
    template <class Finalise>
    std::unique_ptr<ConvEngine> made(const ConvProblem& problem, Finalise finalise) {
        const Planner planner(*this);
        try {
            auto engine = std::make_unique<CudnnEngine>(planner.cudnn(), problem);
            if (finalise(engine->graph())) return engine;
        } catch (const CudnnError&) {  // cuDNN does not offer it (any more)
        }
        return nullptr;
    }

    // A cuDNN that no other thread plans with meanwhile.
    class Planner {
    public:
        explicit Planner(CudnnProvider& of) : of_(of) {
            if (!of_.on_device_) return;
            const std::lock_guard lock(of_.mutex_);
            if (of_.idle_.empty()) {
                of_.planners_.push_back(std::make_unique<Cudnn>(&of_.cudnn_));
                of_.idle_.push_back(of_.planners_.back().get());
            }
            mine_ = of_.idle_.back();
            of_.idle_.pop_back();
        }
        Planner(const Planner&) = delete;  // gives it back once
        Planner& operator=(const Planner&) = delete;
        ~Planner() {
            if (mine_ == nullptr) return;
            const std::lock_guard lock(of_.mutex_);
            of_.idle_.push_back(mine_);
        }
        const Cudnn& cudnn() const { return mine_ != nullptr ? *mine_ : of_.cudnn_; }

    private:
        CudnnProvider& of_;
        const Cudnn* mine_ = nullptr;
    };

    int sm_;
    bool on_device_;
    Cudnn cudnn_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Cudnn>> planners_;  // graphs that they planned refer to them
    std::vector<const Cudnn*> idle_;
};

}  // namespace

std::unique_ptr<ConvProvider> make_cudnn_provider(CudaLauncher& launcher, const GpuDescription& gpu, bool on_device) {
    return std::make_unique<CudnnProvider>(launcher, gpu, on_device);
}

}  // namespace jem
