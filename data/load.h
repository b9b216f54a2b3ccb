#pragma once

#include <filesystem>
#include <string>

#include "data/image_set.h"

namespace jem {

enum class Split { train, test };

/// Where data set `name` lies without --data-dir: the folder of Debian's package for fashion-mnist, empty for the others.
/// InputError for an unknown name. The folder need not exist.
std::filesystem::path default_data_dir(const std::string& name);

/// Reads one part of data set `name` (mnist, fashion-mnist, cifar10, cifar100) from `dir`, or from the default folder if `dir` is empty.
/// The images keep the files' order. InputError, naming the file, where something is missing or damaged.
ImageSet load_image_set(const std::string& name, const std::filesystem::path& dir, Split split);

}  // namespace jem
