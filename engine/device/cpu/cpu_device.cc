#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "engine/device/cpu/conv_plan.h"
#include "engine/device/cpu/cpu_exec.h"
#include "engine/device/cpu/linear_plan.h"
#include "engine/device/cpu/onednn.h"
#include "engine/device/cpu/processors.h"
#include "engine/device/host/host_device.h"
#include "kernels/bf16.h"
#include "kernels/ops_impl.h"

namespace jem {
namespace {

// Room for the partial sums of 2048 channels, two a channel.
constexpr int64_t kPartialSums = kMaxChunks * 2048 * 2;

int threads_of_process() {
    const std::set<int> cores = physical_cores();
    return threads_that_pay(cores.empty() ? omp_get_num_procs() : static_cast<double>(cores.size()), cpu_quota());
}

std::string cpu_model() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);)
        if (line.starts_with("model name") && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
    return "unknown CPU";
}

// A: activations. f32 lies in blocks of channels as wide as a vector, for minimal filtering; bf16 has its channels side by side.
template <class A>
class CpuDevice final : public HostDevice {
public:
    explicit CpuDevice(const CpuOptions& options)
        : threads_(granted_threads(options.threads > 0 ? options.threads : threads_of_process())),
          partials_(HostDevice::allocate(kPartialSums * sizeof(double))),
          ops_(CpuExec(stream_, threads_, reinterpret_cast<double*>(partials_->data()), kPartialSums)) {}

    std::string name() const override { return "cpu"; }
    std::string description() const override {
        return cpu_model() + ", " + std::to_string(threads_) + (threads_ == 1 ? " thread" : " threads") + ", oneDNN " + onednn::version() +
               " (" + onednn::instruction_set() + ")";
    }
    DType real_type() const override { return DType::f32; }
    DType activation_type() const override { return DTypeOf<A>::value; }
    int64_t channel_block(int64_t channels) const override {
        if (activation_type() != DType::f32) return channels;
        const int64_t block = onednn::preferred_block();
        return channels % block == 0 ? block : channels;
    }
    // Activations that fit into a cache are worth more than weights that are read less often, as long as they are read for more
    // activations than they are weights. Of WRN-10-2, 16-4 and 28-10, whose convolutions have 1.5, 4.4 and 14 weights an activation, on
    // two threads: gradients of images took 0.90, 1.10 and 1.13 times as long in batches of 16 as in batches of 64. Steps of an attack on
    // WRN-16-4 took 0.91 to 0.95 times as long in batches of 24 as of 48, predictions of WRN-28-10 1.01 in batches of 72 as of 100.
    int64_t best_batch(int64_t weights, int64_t activations, int64_t most) const override {
        constexpr int64_t kBalance = 5, kLeastAThread = 8, kMultiple = 8;
        const int64_t balanced = kBalance * weights / std::max<int64_t>(activations, 1),
                      wanted = std::max(balanced, kLeastAThread * threads_);
        return std::min(most, (wanted + kMultiple - 1) / kMultiple * kMultiple);
    }
    std::unique_ptr<ConvPlan> plan_convolution(const ConvShape& shape, const ConvOptions& options) override {
        refuse_under_capture("plan a convolution");
        return cpu_conv_provider(activation_type(), shape, options)
            .plan({.stream = stream_, .ops = ops_, .threads = threads_, .activation = activation_type()}, shape, options);
    }
    std::unique_ptr<LinearPlan> plan_linear(int64_t in, int64_t out, const std::vector<int64_t>& batches) override {
        refuse_under_capture("plan a linear layer");
        return make_cpu_linear_plan(stream_, in, out, batches);
    }
    Ops& ops() override { return ops_; }

private:
    int threads_;
    std::unique_ptr<Buffer> partials_;
    OpsOn<CpuExec, float, A> ops_;
};

}  // namespace

int threads_of_rank(Ranks& ranks) {
    struct Place {
        char machine[256];
        cpu_set_t cores;
    };
    std::vector<Place> places(static_cast<size_t>(ranks.size()));
    Place& mine = places[static_cast<size_t>(ranks.rank())];
    gethostname(mine.machine, sizeof mine.machine - 1);
    const std::set<int> cores = physical_cores();
    for (const int core : cores) CPU_SET(core, &mine.cores);
    ranks.all_gather(places.data(), sizeof(Place));
    double threads = 0;
    const auto sharing = [&](const auto& counts) {  // ranks of this machine that it counts
        return std::count_if(places.begin(), places.end(), [&](const Place& p) {
            return std::strcmp(p.machine, places[static_cast<size_t>(ranks.rank())].machine) == 0 && counts(p);
        });
    };
    for (const int core : cores)
        threads += 1.0 / static_cast<double>(sharing([core](const Place& p) { return CPU_ISSET(core, &p.cores); }));
    const auto on_machine = static_cast<double>(sharing([](const Place&) { return true; }));
    return threads_that_pay(threads, cpu_quota() / on_machine);  // as a rule in one container
}

bool cpu_has_bf16() { return onednn::has_bf16(); }

std::unique_ptr<Device> make_cpu_device(const CpuOptions& options) {
    if (options.activation == DType::bf16) return std::make_unique<CpuDevice<Bf16>>(options);
    return std::make_unique<CpuDevice<float>>(options);
}

}  // namespace jem
