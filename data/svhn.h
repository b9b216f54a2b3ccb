#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/image_set.h"

namespace jem {

/// Appends an SVHN file's images (cropped digits): MATLAB 5 with X, uint8 [32,32,3,N], and y, uint8 or double [N,1], whose 10 is the digit
/// 0. `files` is one file. Class, rank and sizes are checked before data is read, and every checksum. InputError that names the file and
/// what is wrong; so, too, in a build without libmatio.
void read_svhn_set(ImageSet& set, const std::vector<std::filesystem::path>& files);

/// What to do for this build to read SVHN; empty where it does.
std::string missing_matio();
/// "1.5.23"; empty where it is missing.
std::string matio_version();

}  // namespace jem
