#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/image_set.h"
#include "data/resize.h"

namespace jem {

enum class Split { train, test };

/// Whether a set's classes are to be learned or told apart, or only its images count.
enum class Classes { needed, ignored };

/// How images come into a set. What `size` and the fields behind it say concerns folders of images alone.
struct LoadOptions {
    int channels = 3, size = 0;  // what each image is fitted to; 0: not told
    Crop crop = Crop::centre;
    Classes classes = Classes::needed;
    bool skip_damaged = false;  // leave out what cannot be read; else that is an error
    int64_t at_least = 2;       // images
    bool named = false;         // the set was given as NAME:DIR, which errors then name in place of --data-dir
    std::function<void(int64_t done, int64_t total)> progress = nullptr;
    std::function<void(const std::string& text)> tell = nullptr;  // a line for people: what was left out
};

/// A folder of PNG, JPEG and BMP files, by their names; none has been opened.
struct ImageFolder {
    std::filesystem::path root;                // what file names in errors are relative to
    std::vector<std::string> class_names;      // in the order of their bytes
    std::vector<std::filesystem::path> files;  // [N], class by class, each in the order of names
    std::vector<int32_t> labels;               // [N]
};

/// Lists one part of `folder`. Its parts are the folders train and test, where these hold the images; without them the whole folder is
/// either part. A part has a folder a class, in the order of names, with the class's images in it or deeper; or images alone, which are one
/// class, named as the folder. Other files and hidden ones don't count, links are followed to files and to folders of classes.
/// Where classes are ignored, `folder` may be a file: a set of that image alone. InputError
/// where there is no image, a class has none (unless classes are ignored), or the parts' classes differ.
ImageFolder list_image_folder(const std::filesystem::path& folder, Split split, Classes classes);

/// Whether train and test are folders of their own in it.
bool has_parts(const std::filesystem::path& folder);

/// Reads the images into `set`, each fitted to options.channels x size x size, transparency dropped; names and sizes of the set, too. Files
/// that are damaged or too large are counted, and the first few named: by options.tell if they are skipped, else by the InputError. So is,
/// with an InputError, a class of which nothing is left, and fewer images than options.at_least.
void read_image_folder(ImageSet& set, const ImageFolder& folder, const LoadOptions& options);

}  // namespace jem
