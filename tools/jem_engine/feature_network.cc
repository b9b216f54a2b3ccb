#include "tools/jem_engine/feature_network.h"

#include <fmt/format.h>

#include <cstring>
#include <memory>

#include "data/input_error.h"
#include "data/is_there.h"
#include "models/inception.h"
#include "tools/jem_engine/options.h"

namespace jem {

std::optional<FeatureNetwork> feature_network(const std::string& features, const Settings& s, Device& device, Protocol protocol) {
    if (features.empty()) return std::nullopt;
    const std::string cache = user_cache_file("features");
    if (features.starts_with(kInceptionPrefix)) {
        const std::string path = features.substr(std::strlen(kInceptionPrefix));
        if (!is_there(path))
            throw InputError("--features " + features +
                             " (there is no such file). tools/convert makes it of pytorch-fid's weights: docs/conversion.md.");
        const InceptionSettings inception = {.height = s.image_size,
                                             .width = s.image_size,
                                             .in_channels = s.in_channels,
                                             .input = protocol == Protocol::authors ? InceptionInput::tf1 : InceptionInput::pytorch_fid};
        return FeatureNetwork{.network = {.device = device,
                                          .conv_algorithm = s.conv_algorithm,
                                          .size = {.height = s.image_size, .width = s.image_size, .channels = s.in_channels},
                                          .classes = 1008,
                                          .make = [inception] { return std::make_unique<Inception>(inception); },
                                          .load =
                                              [path](Parameters& parameters, Network& network) {
                                                  load_inception_weights(parameters, path);
                                                  network.prepare(parameters.weights(), parameters.statistics());
                                              }},
                              .name = "inception",
                              .inception = true,
                              .batch = kInceptionBatch,
                              .cache = cache};
    }
    const auto checkpoint = std::make_shared<const Checkpoint>(read_checkpoint(features, {}, {}));
    const Settings& own = checkpoint->settings;
    if (own.in_channels != s.in_channels || own.image_size != s.image_size)
        throw InputError(
            fmt::format("--features {} is a network for images of {}x{}x{} (the evaluated one's are {}x{}x{}). Give one of the same size.",
                        features, own.in_channels, own.image_size, own.image_size, s.in_channels, s.image_size, s.image_size));
    TrainedNetwork network = trained_network(device, *checkpoint, "last");
    network.load = [checkpoint, load = network.load](Parameters& p, Network& n) { load(p, n); };  // keeps it alive
    return FeatureNetwork{.network = network, .name = std::filesystem::path(features).lexically_normal().string(), .cache = cache};
}

}  // namespace jem
