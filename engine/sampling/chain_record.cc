#include "engine/sampling/chain_record.h"

#include <algorithm>
#include <cstddef>

#include "engine/network/parameters.h"

namespace jem {

std::vector<int64_t> ChainRecord::frame_steps(int64_t steps, int64_t every) {
    std::vector<int64_t> at;
    if (every < 1) return at;
    for (int64_t step = 0; step < steps; step += every) at.push_back(step);
    at.push_back(steps);
    return at;
}

ChainRecord::ChainRecord(Device& device, Memory& memory, const Options& o)
    : device_(device), memory_(memory), options_(o), frame_steps_(frame_steps(o.steps, o.frame_every)) {
    const size_t real = size_of(device.real_type()), chains = static_cast<size_t>(o.chains), steps = static_cast<size_t>(o.steps);
    if (!frame_steps_.empty())
        frames_ = memory.keep("samples", "frames of chains", frame_steps_.size() * chains * static_cast<size_t>(o.pixels) * real);
    if (o.trace) {
        values_ = memory.keep("samples", "values of chains", (steps + 1) * chains * real);
        norms_ = memory.keep("samples", "gradient norms of chains", std::max<size_t>(1, steps) * sizeof(double));
    }
    if (o.accepted) accepted_ = memory.keep("samples", "accepted moves", std::max<size_t>(1, steps) * chains * sizeof(int32_t));
}

void ChainRecord::frame(int64_t step, Array images) {
    const auto at = std::find(frame_steps_.begin(), frame_steps_.end(), step);
    if (at == frame_steps_.end()) return;
    const Array slot =
        real(frames_, std::ssize(frame_steps_) * images.count).slice((at - frame_steps_.begin()) * images.count, images.count);
    device_.copy(slot.data, images.data, images.bytes());
}

void ChainRecord::values(int64_t step, Array values) {
    if (!values_.valid()) return;
    const Array slot = real(values_, (options_.steps + 1) * options_.chains).slice(step * options_.chains, options_.chains);
    device_.copy(slot.data, values.data, values.bytes());
}

void ChainRecord::gradient_norm(int64_t step, const IterationState* state) {
    if (!norms_.valid() || step >= options_.steps) return;
    const auto* from = reinterpret_cast<const std::byte*>(state) + offsetof(IterationState, scalars) +
                       static_cast<size_t>(options_.gradient_norm) * sizeof state->scalars[0];
    device_.copy(memory_.at(norms_) + static_cast<size_t>(step) * sizeof(double), from, sizeof(double));
}

void ChainRecord::accepted(int64_t step, Array accepted) {
    if (!accepted_.valid() || step < 1) return;
    device_.copy(memory_.at(accepted_) + static_cast<size_t>(step - 1) * accepted.bytes(), accepted.data, accepted.bytes());
}

ChainCourse ChainRecord::download() {
    const int64_t chains = options_.chains;
    ChainCourse course;
    course.frame_steps = frame_steps_;
    if (frames_.valid()) course.frames = download_values(device_, real(frames_, std::ssize(frame_steps_) * chains * options_.pixels));
    if (values_.valid()) {
        course.values = download_values(device_, real(values_, (options_.steps + 1) * chains));
        course.gradient_norms.resize(static_cast<size_t>(options_.steps));
        device_.download(course.gradient_norms.data(), memory_.at(norms_), course.gradient_norms.size() * sizeof(double));
    }
    if (accepted_.valid()) {
        course.accepted.resize(static_cast<size_t>(options_.steps * chains));
        device_.download(course.accepted.data(), memory_.at(accepted_), course.accepted.size() * sizeof(int32_t));
    }
    return course;
}

}  // namespace jem
