// What a run's devices chose by time, kept in its folder: it goes on with the same engines, whatever other files hold by then and whatever
// memory is free, and so bit for bit.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "engine/device/device.h"

namespace jem {

// Plans on every rank of the device's job, as the run's file says: rank 0 first, whose choices the others are told; then writes what was
// chosen. Where a device chooses nothing by time all plan at once, and there is no file. Every rank calls it, outside `together`; plan
// must not call the other ranks. Returns, on rank 0, a line for each rank that chose anew what was kept.
std::vector<std::string> plan_as_kept(Device& device, const std::filesystem::path& file, const std::function<void()>& plan);

}  // namespace jem
