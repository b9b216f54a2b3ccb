#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>

namespace jem {

/// Opens a file of a data set to be read; returns its bytes. InputError, with the system's reason, where that is not possible.
uint64_t open_data_file(std::ifstream& stream, const std::filesystem::path& file);

}  // namespace jem
