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
            .spectral_norm = s.spectral_norm,
            .dropout = s.dropout,
            .seed = s.seed,
            .energy_head = s.energy_head == Head::energy};
}

static void take_buffer(Settings& s, const SafetensorsFile& file) {
    const char* const buffer = "replay_buffer";  // [N, C, H, W]
    if (file.has(buffer) && file.at(buffer).shape.size() == 4) s.image_size = file.at(buffer).shape[2];
}

static IgebmSettings igebm_settings(const Settings& s) {
    return {.depth = s.depth,
            .width = s.width,
            .spectral_norm = s.spectral_norm,
            .in_channels = s.in_channels,
            .image_size = s.image_size,
            .num_classes = s.num_classes,
            .dropout = s.dropout,
            .seed = s.seed,
            .energy_head = s.energy_head == Head::energy};
}

void take_shapes(Settings& s, const SafetensorsFile& file) {
    take_buffer(s, file);
    if (const std::optional<IgebmSettings> found = igebm_from_shapes(file)) {
        s.network = NetworkKind::igebm;
        s.norm = NormKind::none;
        s.depth = found->depth;
        s.width = found->width;
        s.spectral_norm = found->spectral_norm;
        s.in_channels = found->in_channels;
        s.num_classes = found->num_classes;
        return;
    }
    s.spectral_norm = file.has("f.conv1.weight_u");
    const WideResNetSettings found = settings_from_shapes(file, wide_resnet_settings(s));
    s.depth = found.depth;
    s.width = found.width;
    s.norm = found.norm;
    s.in_channels = found.in_channels;
    s.num_classes = found.num_classes;
}

std::unique_ptr<Network> make_network(const Settings& s) {
    if (s.network == NetworkKind::igebm) return std::make_unique<Igebm>(igebm_settings(s));
    return std::make_unique<WideResNet>(wide_resnet_settings(s));
}

std::string network_title(const Settings& s) {
    return (s.network == NetworkKind::igebm ? "IGEBM-" : "WRN-") + std::to_string(s.depth) + "-" + std::to_string(s.width);
}

std::optional<UnsupportedSize> unsupported_size(const Settings& s) {
    return s.network == NetworkKind::igebm ? unsupported_size(igebm_settings(s)) : unsupported_size(wide_resnet_settings(s));
}

}  // namespace jem
