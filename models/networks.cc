#include "models/networks.h"

namespace jem {

WideResNetSettings wide_resnet_settings(const Settings& s) {
    return {.depth = s.depth,
            .width = s.width,
            .norm = s.norm,
            .norm_batch = s.norm_statistics == NormStatistics::job ? NormBatch::of_job : NormBatch::of_rank,
            .recompute = s.recompute,
            .in_channels = s.in_channels,
            .image_size = s.image_size,
            .num_classes = s.num_classes,
            .energy_head = s.energy_head == Head::energy};
}

std::unique_ptr<Network> make_network(const Settings& s) { return std::make_unique<WideResNet>(wide_resnet_settings(s)); }

std::optional<UnsupportedSize> unsupported_size(const Settings& s) { return unsupported_size(wide_resnet_settings(s)); }

}  // namespace jem
