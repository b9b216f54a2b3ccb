#include "data/load.h"

#include <system_error>

#include "data/cifar.h"
#include "data/idx.h"
#include "data/input_error.h"
#include "data/is_there.h"
#include "data/svhn.h"

namespace jem {
namespace {

using std::filesystem::path;

void read_cifar10(ImageSet& set, const std::vector<path>& files) {
    for (const path& file : files) append_cifar10_file(set.pixels, set.labels, file);
}

void read_cifar100(ImageSet& set, const std::vector<path>& files) {
    for (const path& file : files) append_cifar100_file(set.pixels, set.labels, file);
}

// A new data set is a row here.
std::vector<KnownSet> make_known_sets() {
    const std::vector<std::string> digits = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    const std::vector<std::string> idx_train = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"};
    const std::vector<std::string> idx_test = {"t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};
    const std::string idx_files =
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz";
    return {
        {.name = "mnist",
         .shape = {.channels = 1, .height = 28, .width = 28, .num_classes = 10, .num_train = 60000, .num_test = 10000, .flip = false},
         .class_names = digits,
         .train = idx_train,
         .test = idx_test,
         .read = read_idx_set,
         .files = idx_files},
        {.name = "fashion-mnist",
         .shape = {.channels = 1, .height = 28, .width = 28, .num_classes = 10, .num_train = 60000, .num_test = 10000, .flip = true},
         .class_names = {"t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"},
         .train = idx_train,
         .test = idx_test,
         .read = read_idx_set,
         .files = idx_files,
         .default_dir = "/usr/share/datasets/fashion-mnist",
         .get = "`apt install dataset-fashion-mnist` provides it."},
        {.name = "cifar10",
         .shape = {.channels = 3, .height = 32, .width = 32, .num_classes = 10, .num_train = 50000, .num_test = 10000, .flip = true},
         .class_names = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"},
         .train = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"},
         .test = {"test_batch.bin"},
         .read = read_cifar10,
         .files = "data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version of CIFAR-10",
         .subfolder = "cifar-10-batches-bin"},
        {.name = "cifar100",
         .shape = {.channels = 3, .height = 32, .width = 32, .num_classes = 100, .num_train = 50000, .num_test = 10000, .flip = true},
         .class_names = {"apple",      "aquarium_fish", "baby",         "bear",       "beaver",      "bed",         "bee",
                         "beetle",     "bicycle",       "bottle",       "bowl",       "boy",         "bridge",      "bus",
                         "butterfly",  "camel",         "can",          "castle",     "caterpillar", "cattle",      "chair",
                         "chimpanzee", "clock",         "cloud",        "cockroach",  "couch",       "crab",        "crocodile",
                         "cup",        "dinosaur",      "dolphin",      "elephant",   "flatfish",    "forest",      "fox",
                         "girl",       "hamster",       "house",        "kangaroo",   "keyboard",    "lamp",        "lawn_mower",
                         "leopard",    "lion",          "lizard",       "lobster",    "man",         "maple_tree",  "motorcycle",
                         "mountain",   "mouse",         "mushroom",     "oak_tree",   "orange",      "orchid",      "otter",
                         "palm_tree",  "pear",          "pickup_truck", "pine_tree",  "plain",       "plate",       "poppy",
                         "porcupine",  "possum",        "rabbit",       "raccoon",    "ray",         "road",        "rocket",
                         "rose",       "sea",           "seal",         "shark",      "shrew",       "skunk",       "skyscraper",
                         "snail",      "snake",         "spider",       "squirrel",   "streetcar",   "sunflower",   "sweet_pepper",
                         "table",      "tank",          "telephone",    "television", "tiger",       "tractor",     "train",
                         "trout",      "tulip",         "turtle",       "wardrobe",   "whale",       "willow_tree", "wolf",
                         "woman",      "worm"},
         .train = {"train.bin"},
         .test = {"test.bin"},
         .read = read_cifar100,
         .files = "train.bin and test.bin, the binary version of CIFAR-100",
         .subfolder = "cifar-100-binary"},
        {.name = "svhn",
         .shape = {.channels = 3, .height = 32, .width = 32, .num_classes = 10, .num_train = 73257, .num_test = 26032, .flip = false},
         .class_names = digits,
         .train = {"train_32x32.mat"},
         .test = {"test_32x32.mat"},
         .read = read_svhn_set,
         .files = "train_32x32.mat and test_32x32.mat, SVHN's cropped digits"},
        {.name = "images",
         .shape = {.channels = 3, .height = 0, .width = 0, .num_classes = 0, .num_train = 0, .num_test = 0, .flip = false},
         .files = "a folder of PNG, JPEG or BMP files for each class, or with the folders train and test that hold such folders"},
    };
}

std::string how_to_get(const KnownSet& known, bool named) {
    const std::string give = named ? "Give " + known.name + ":DIR, DIR being" : "Give --data-dir";
    return give + " a folder with " + known.files + "." + (known.get.empty() ? "" : " " + known.get);
}

bool is_folder(const path& p) {
    std::error_code error;
    return is_there(p) && std::filesystem::is_directory(p, error);
}

/// Where the set lies. InputError where that is no folder.
path folder_of(const KnownSet& known, const path& dir, bool named) {
    const path folder = dir.empty() ? path(known.default_dir) : dir;
    if (folder.empty()) throw InputError("no folder for data set " + known.name + " (it has no default). " + how_to_get(known, named));
    if (!is_folder(folder))
        throw InputError("missing data of " + known.name + " ('" + folder.string() + "' is not a folder). " + how_to_get(known, named));
    return folder;
}

/// Under any of the names that a file of the table goes by: an idx file may be gzipped, and have a dot for the dash in front of "idx".
path find_file(const KnownSet& known, const path& dir, const std::string& name, bool named) {
    std::vector<std::string> names = {name};
    if (const size_t dash = name.find("-idx"); dash != std::string::npos) {
        std::string dotted = name;
        dotted[dash] = '.';
        names = {name + ".gz", name, dotted + ".gz", dotted};
    }
    for (const std::string& candidate : names)
        if (is_there(dir / candidate)) return dir / candidate;
    throw InputError("missing data of " + known.name + " (no " + name + " in '" + dir.string() + "'). " + how_to_get(known, named));
}

// Of one part, in a folder that is there.
std::vector<path> files_of(const KnownSet& known, const path& folder, Split split, bool named) {
    const std::vector<std::string>& names = split == Split::train ? known.train : known.test;
    const path sub = folder / known.subfolder;
    const bool in_sub = !known.subfolder.empty() && is_there(sub / names[0]) && !is_there(folder / names[0]);
    std::vector<path> files;
    for (const std::string& name : names) files.push_back(find_file(known, in_sub ? sub : folder, name, named));
    return files;
}

}  // namespace

const std::vector<KnownSet>& known_sets() {
    static const std::vector<KnownSet> sets = make_known_sets();
    return sets;
}

std::string known_set_names(const std::string& between) {
    std::string names;
    for (const KnownSet& known : known_sets()) names += (names.empty() ? "" : between) + known.name;
    return names;
}

const KnownSet& known_set(const std::string& name) {
    for (const KnownSet& known : known_sets())
        if (known.name == name) return known;
    throw InputError("unknown data set '" + name + "' (known: " + known_set_names() + "). Choose one of these.");
}

path default_data_dir(const std::string& name) { return known_set(name).default_dir; }

ImageSetShape known_shape(const std::string& name, const path& dir) {
    const KnownSet& known = known_set(name);
    ImageSetShape shape = known.shape;
    if (known.read != nullptr || dir.empty() || !is_folder(dir)) return shape;
    const ImageFolder train = list_image_folder(dir, Split::train, Classes::needed);
    shape.num_classes = static_cast<int>(train.class_names.size());
    shape.num_train = shape.num_test = std::ssize(train.files);
    if (has_parts(dir))
        shape.num_test = is_folder(dir / "test") ? std::ssize(list_image_folder(dir, Split::test, Classes::needed).files) : 0;
    return shape;
}

std::vector<std::string> known_class_names(const std::string& name, const path& dir) {
    const KnownSet& known = known_set(name);
    if (known.read != nullptr || dir.empty() || !is_folder(dir)) return known.class_names;
    try {
        return list_image_folder(dir, Split::train, Classes::ignored).class_names;
    } catch (const InputError&) {  // there is no image any more
        return {};
    }
}

ImageSet load_image_set(const KnownSet& known, const path& dir, Split split, const LoadOptions& options) {
    std::error_code not_there;
    const bool one_file = known.read == nullptr && options.classes == Classes::ignored && std::filesystem::is_regular_file(dir, not_there);
    const path folder = one_file ? dir : folder_of(known, dir, options.named);
    ImageSet set{.name = known.name,
                 .channels = known.shape.channels,
                 .height = known.shape.height,
                 .width = known.shape.width,
                 .num_classes = known.shape.num_classes,
                 .class_names = known.class_names,
                 .flip = known.shape.flip,
                 .pixels = {},
                 .labels = {}};
    if (known.read == nullptr) {
        if (options.size == 0)
            throw InputError("--image-size is needed (the images of a folder have any size). Give it, such as --image-size 32.");
        read_image_folder(set, list_image_folder(folder, split, options.classes), options);
        return set;
    }
    known.read(set, files_of(known, folder, split, options.named));
    require_size(set, known.shape.channels, known.shape.height, known.shape.width);
    return set;
}

ImageSet load_image_set(const std::string& name, const path& dir, Split split, const LoadOptions& options) {
    return load_image_set(known_set(name), dir, split, options);
}

NamedSet named_set(const std::string& name_and_dir) {
    const size_t colon = name_and_dir.find(':');
    const NamedSet set{.name = name_and_dir.substr(0, colon),
                       .dir = colon == std::string::npos ? path() : path(name_and_dir.substr(colon + 1))};
    if (const KnownSet& known = known_set(set.name); set.dir.empty() && known.default_dir.empty())
        throw InputError("no folder for data set " + set.name + " (it has no default). " + how_to_get(known, true));
    return set;
}

int64_t training_images_of(const NamedSet& set) {
    const KnownSet& known = known_set(set.name);
    if (known.read != nullptr) return known.shape.num_train;
    return is_folder(set.dir) ? std::ssize(list_image_folder(set.dir, Split::train, Classes::ignored).files) : 0;
}

ImageSet load_other_set(const std::string& name_and_dir, Split split, LoadOptions options) {
    const auto [name, dir] = named_set(name_and_dir);
    options.classes = Classes::ignored;
    options.named = true;
    ImageSet set = fitted(load_image_set(name, dir, split, options), options.channels, options.size, options.crop);
    if (known_set(name).read == nullptr) set.name = (dir / "").lexically_normal().parent_path().filename().string();
    return set;
}

std::vector<path> image_files(const std::string& name, const path& dir) {
    const KnownSet& known = known_set(name);
    const path folder = dir.empty() ? path(known.default_dir) : dir;
    std::vector<path> all;
    for (const Split split : {Split::train, Split::test}) {
        try {
            const std::vector<path> files =
                known.read == nullptr ? list_image_folder(folder, split, Classes::ignored).files : files_of(known, folder, split, false);
            all.insert(all.end(), files.begin(), files.end());
        } catch (const InputError&) {  // this part is not there
        }
    }
    return all;
}

}  // namespace jem
