// --features: the network by whose features images are compared.
#pragma once

#include <optional>
#include <string>

#include "engine/evaluation/evaluation.h"

namespace jem {

inline constexpr const char* kInceptionPrefix = "inception:";

// FID's Inception with weights that tools/convert made (inception:FILE), or any checkpoint of this program; none where `features` is
// empty. By the authors' protocol Inception sees images as TensorFlow 1 brought them to it. InputError for a file that is neither, or a
// network for images of another size than the settings'.
std::optional<FeatureNetwork> feature_network(const std::string& features, const Settings& settings, Device& device,
                                              Protocol protocol = Protocol::engine);

}  // namespace jem
