#pragma once

#include <filesystem>

namespace jem {

/// Whether there is anything of this path, links followed. InputError, with the system's reason, where that cannot be told: no permission
/// to look, a name that is too long, a link that leads to itself. "Missing" is said only of what is missing.
bool is_there(const std::filesystem::path& path);

}  // namespace jem
