#include "tests/engine/training/job.h"

#include <algorithm>
#include <limits>

#include "engine/settings/recipes/recipes.h"
#include "engine/training/iteration.h"
#include "tests/engine/training/golden.h"

namespace jem {
namespace {

constexpr int kSide = 9, kClasses = 3;
constexpr int64_t kPixels = int64_t{kSide} * kSide, kImages = 24;

}  // namespace

ImageSet job_images() {
    ImageSet set;
    set.name = "mnist";
    set.channels = 1;
    set.height = set.width = kSide;
    set.num_classes = kClasses;
    set.flip = true;
    TestData data(7);
    for (int64_t i = 0; i < kImages; ++i) {
        set.labels.push_back(static_cast<int32_t>(i % kClasses));
        for (int64_t p = 0; p < kPixels; ++p) set.pixels.push_back(static_cast<uint8_t>(data.index(256)));
    }
    return set;
}

Settings small_job() {
    Settings s;
    s.depth = 10;
    s.width = 1;
    s.in_channels = 1;
    s.image_size = kSide;
    s.num_classes = kClasses;
    s.batch_size = 8;
    s.gen_batch_size = 4;
    s.lr = 0.05;
    s.sgld_steps = 2;
    s.sgld_noise = 0.02;
    s.input_noise = 0.03;
    s.input_noise_on = InputNoiseOn::both;
    s.buffer_size = 10;
    s.reinit_freq = 0.3;
    s.norm_statistics = NormStatistics::job;
    return s;
}

Settings small_job_of(const std::string& name) {
    const Settings job = small_job();
    Settings s = recipe(name);
    s.depth = job.depth;
    s.width = job.width;
    if (s.network == NetworkKind::igebm) s.depth = 14;
    s.in_channels = job.in_channels;
    s.image_size = job.image_size;
    s.num_classes = job.num_classes;
    s.batch_size = job.batch_size;
    s.gen_batch_size = job.gen_batch_size;
    s.buffer_size = job.buffer_size;
    s.sgld_steps = s.sgld_steps > 0 ? job.sgld_steps : 0;
    s.attack_steps = 2;
    s.norm_statistics = job.norm_statistics;
    return s;
}

Outcome train(Device& device, Ranks& ranks, const Settings& s, const JobOptions& options) {
    device.join(ranks);
    const std::unique_ptr<Network> made = make_network(s);
    Network& network = *made;
    const ImageSet set = job_images();
    Memory memory(device, Memory::Sharing::by_lifetime, Memory::Guards::always);
    ImageSet starts = set;  // other images than the training set's: these, upside down
    std::reverse(starts.pixels.begin(), starts.pixels.end());
    TrainingIteration::DataSource source = TrainingIteration::source_of(set);
    source.starts = starts.count();
    TrainingIteration iteration(device, memory, network, s, source, options.known);
    iteration.plan();
    memory.allocate();
    iteration.upload(set, starts);
    iteration.parameters().initialise(1);
    iteration.prepare_weights();
    if (options.execution == Execution::replayed) iteration.record();
    if (s.samples()) {
        iteration.begin(0, 0, 0);
        iteration.buffer().fill(iteration.start_store().view(), iteration.state(), [](int64_t) {});
    }
    iteration.begin(0, 0, 0);
    iteration.initialise_norms();
    Outcome out;
    for (int64_t i = 0; i < options.iterations; ++i) {
        if (options.before) options.before(i);
        iteration.begin(i, s.lr, i);
        for (const TrainingIteration::Phase& phase : iteration.phases())
            for (int64_t k = 0; k < phase.repeats; ++k) {
                iteration.run(phase);
                if (phase.name == "draw" && i + 1 == options.iterations && ranks.rank() == options.disturbed)
                    upload_values(device, iteration.chain().images().slice(0, 1), Values{std::numeric_limits<double>::quiet_NaN()});
            }
        IterationState state;
        iteration.read_state(state);
        device.synchronize();
        device.communicator().check();
        for (const std::string& name : iteration.scalars().names())
            for (const SamPass pass : {SamPass::at_weights, SamPass::at_perturbed})
                out.scalars.push_back(iteration.scalars().value(state, name, pass));
        for (const double v : {state.grad_norm, static_cast<double>(state.diverged)}) out.scalars.push_back(v);
    }
    Parameters& p = iteration.parameters();
    out.weights = download_values(device, p.weights());
    out.velocity = download_values(device, p.velocity());
    out.statistics = download_values(device, p.statistics());
    if (s.samples()) out.buffer = download_values(device, iteration.buffer().images());
    memory.check_guards();
    return out;
}

void check_same_everywhere(const std::vector<Outcome>& outcomes) {
    for (const Outcome& o : outcomes) {
        check_equal("weights of all ranks", o.weights, outcomes[0].weights);
        check_equal("velocity of all ranks", o.velocity, outcomes[0].velocity);
        check_equal("running statistics of all ranks", o.statistics, outcomes[0].statistics);
        check_equal("buffers of all ranks", o.buffer, outcomes[0].buffer);
    }
}

}  // namespace jem
