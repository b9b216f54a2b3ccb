// Networks by what the settings say. A new one is a file of its own, and a line here.
#pragma once

#include <memory>
#include <optional>

#include "engine/settings/settings.h"
#include "models/igebm.h"
#include "models/wide_resnet.h"

namespace jem {

WideResNetSettings wide_resnet_settings(const Settings& settings);

// Sizes of 0 must have been filled in. Throws as the network's constructor does.
std::unique_ptr<Network> make_network(const Settings& settings);
// "WRN-28-10", "IGEBM-14-8": for people.
std::string network_title(const Settings& settings);
// Takes over what the shapes of a file's tensors tell of the network, and of its images those of a replay buffer.
void take_shapes(Settings& settings, const SafetensorsFile& file);
// The first size that the network does not have.
std::optional<UnsupportedSize> unsupported_size(const Settings& settings);

}  // namespace jem
