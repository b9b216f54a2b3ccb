#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/image_set.h"

namespace jem {

enum class Split { train, test };

/// A data set that --data knows: a row of the table in load.cc.
struct KnownSet {
    std::string name;
    ImageSetShape shape;
    std::vector<std::string> class_names;  // [classes], in the order of the labels (CIFAR-100: the fine ones)
    std::vector<std::string> train, test;  // files of either part; idx files go by other customary names, too
    /// Appends what `files` hold, the files of one part in their order. InputError that names the file where one is damaged.
    void (*read)(ImageSet& set, const std::vector<std::filesystem::path>& files);
    std::string files;                       // what a folder must hold, for people
    std::string subfolder = {};              // where the published archive puts the files
    std::string default_dir = {}, get = {};  // where they lie without --data-dir, and how they come there; empty: nowhere
};

const std::vector<KnownSet>& known_sets();
/// InputError that lists the known names for any other.
const KnownSet& known_set(const std::string& name);
/// "mnist, fashion-mnist", with that between the names.
std::string known_set_names(const std::string& between = ", ");

/// The published sizes of data set `name`. Opens no file. InputError for an unknown name.
inline ImageSetShape known_shape(const std::string& name) { return known_set(name).shape; }
inline const std::vector<std::string>& known_class_names(const std::string& name) { return known_set(name).class_names; }

/// Where data set `name` lies without --data-dir: the folder of Debian's package for fashion-mnist, empty for the others.
/// InputError for an unknown name. The folder need not exist.
std::filesystem::path default_data_dir(const std::string& name);

/// The files that load_image_set reads of both parts, as far as they are there.
std::vector<std::filesystem::path> image_files(const std::string& name, const std::filesystem::path& dir);

/// Reads one part of a data set from `dir`, or from the default folder if `dir` is empty.
/// The images keep the files' order. InputError, naming the file, where something is missing or damaged; naming the set, where images
/// are of another size than the table says.
ImageSet load_image_set(const KnownSet& known, const std::filesystem::path& dir, Split split);
ImageSet load_image_set(const std::string& name, const std::filesystem::path& dir, Split split);

}  // namespace jem
