#include "engine/evaluation/network_in_use.h"

namespace jem {

NetworkInUse::NetworkInUse(const TrainedNetwork& trained) : trained_(trained), network_(trained.make()), memory_(trained.device) {
    parameters_ = std::make_unique<Parameters>(trained_.device, memory_, *network_, Parameters::Options{});
    state_ = memory_.keep("scalars", "iteration state", sizeof(IterationState));
}

void NetworkInUse::ready(const std::function<void()>& queue) {
    network_->build(trained_.device, memory_, trained_.conv_algorithm);
    memory_.plan(queue);
    memory_.allocate();
    trained_.load(*parameters_, *network_);
}

NetworkMemory NetworkInUse::passes() {
    return {.weights = parameters_->weights(), .gradient = {}, .statistics = parameters_->statistics(), .state = state()};
}

}  // namespace jem
