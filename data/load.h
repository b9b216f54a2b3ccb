#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/image_folder.h"
#include "data/image_set.h"

namespace jem {

/// A data set that --data knows: a row of the table in load.cc.
struct KnownSet {
    std::string name;
    ImageSetShape shape = {};                        // 0: the user says it, or the files (`images`)
    std::vector<std::string> class_names = {};       // [classes], in the order of the labels (CIFAR-100: the fine ones)
    std::vector<std::string> train = {}, test = {};  // files of either part; idx files go by other customary names, too
    /// Appends what `files` hold, the files of one part in their order. InputError that names the file where one is damaged. None: the set
    /// is a folder of images (image_folder.h).
    void (*read)(ImageSet& set, const std::vector<std::filesystem::path>& files) = nullptr;
    std::string files = {};                  // what a folder must hold, for people
    std::string subfolder = {};              // where the published archive puts the files
    std::string default_dir = {}, get = {};  // where they lie without --data-dir, and how they come there; empty: nowhere
};

const std::vector<KnownSet>& known_sets();
/// InputError that lists the known names for any other.
const KnownSet& known_set(const std::string& name);
/// "mnist, fashion-mnist", with that between the names.
std::string known_set_names(const std::string& between = ", ");

/// The published sizes of data set `name`; opens no file. Of `images` the images and classes in `dir` are counted, by their names, and
/// height and width are 0; so are all counts without such a folder. InputError for an unknown name, and as list_image_folder.
ImageSetShape known_shape(const std::string& name, const std::filesystem::path& dir = {});
/// In the order of the labels; those of `images` are the folders in `dir`, or none where it holds no images.
std::vector<std::string> known_class_names(const std::string& name, const std::filesystem::path& dir = {});

/// Where data set `name` lies without --data-dir: the folder of Debian's package for fashion-mnist, empty for the others.
/// InputError for an unknown name. The folder need not exist.
std::filesystem::path default_data_dir(const std::string& name);

/// The files that load_image_set reads of both parts, as far as they are there.
std::vector<std::filesystem::path> image_files(const std::string& name, const std::filesystem::path& dir);

/// Reads one part of a data set from `dir`, or from the default folder if `dir` is empty.
/// The images keep the files' order; those of `images` are fitted to options.channels and options.size, others are as they are stored.
/// InputError, naming the file, where something is missing or damaged; naming the set, where images are of another size than the table
/// says.
ImageSet load_image_set(const KnownSet& known, const std::filesystem::path& dir, Split split, const LoadOptions& options = {});
ImageSet load_image_set(const std::string& name, const std::filesystem::path& dir, Split split, const LoadOptions& options = {});

/// NAME or NAME:DIR, as people name a set beside --data. InputError for an unknown name, and without DIR where the set has no default
/// folder.
struct NamedSet {
    std::string name;
    std::filesystem::path dir;  // empty: the default
};
NamedSet named_set(const std::string& name_and_dir);
/// Training images of it, by its published size or, of a folder, by the files' names; 0 where there is no such folder.
int64_t training_images_of(const NamedSet& set);

/// A set to compare with: NAME or NAME:DIR of a known set, without DIR in its default folder. Each image is fitted to options.channels x
/// options.size x options.size; labels and class names are the set's own, and `images:DIR` is
/// named as the folder. The errors of load_image_set.
ImageSet load_other_set(const std::string& name_and_dir, Split split, LoadOptions options);

}  // namespace jem
