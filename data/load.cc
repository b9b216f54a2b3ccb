#include "data/load.h"

#include <system_error>

#include "data/cifar.h"
#include "data/idx.h"
#include "data/input_error.h"
#include "data/is_there.h"

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
    const std::vector<std::string> idx_train = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"};
    const std::vector<std::string> idx_test = {"t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};
    const std::string idx_files =
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz";
    return {
        {.name = "mnist",
         .shape = {.channels = 1, .height = 28, .width = 28, .num_classes = 10, .num_train = 60000, .num_test = 10000, .flip = false},
         .class_names = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"},
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
    };
}

std::string how_to_get(const KnownSet& known) {
    return "Give --data-dir a folder with " + known.files + "." + (known.get.empty() ? "" : " " + known.get);
}

InputError missing(const KnownSet& known, const std::string& file, const path& dir) {
    return InputError("missing data of " + known.name + " (no " + file + " in '" + dir.string() + "'). " + how_to_get(known));
}

/// Under any of the names that a file of the table goes by: an idx file may be gzipped, and have a dot for the dash in front of "idx".
path find_file(const KnownSet& known, const path& dir, const std::string& name) {
    std::vector<std::string> names = {name};
    if (const size_t dash = name.find("-idx"); dash != std::string::npos) {
        std::string dotted = name;
        dotted[dash] = '.';
        names = {name + ".gz", name, dotted + ".gz", dotted};
    }
    for (const std::string& candidate : names)
        if (is_there(dir / candidate)) return dir / candidate;
    throw missing(known, name, dir);
}

// Of one part, in a folder that is there.
std::vector<path> files_of(const KnownSet& known, const path& folder, Split split) {
    const std::vector<std::string>& names = split == Split::train ? known.train : known.test;
    const path sub = folder / known.subfolder;
    const bool in_sub = !known.subfolder.empty() && is_there(sub / names[0]) && !is_there(folder / names[0]);
    std::vector<path> files;
    for (const std::string& name : names) files.push_back(find_file(known, in_sub ? sub : folder, name));
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
    throw InputError("unknown data set '" + name + "' (known: " + known_set_names() + "). Give one of these to --data.");
}

path default_data_dir(const std::string& name) { return known_set(name).default_dir; }

ImageSet load_image_set(const KnownSet& known, const path& dir, Split split) {
    const path folder = dir.empty() ? path(known.default_dir) : dir;
    if (folder.empty()) throw InputError("no folder for data set " + known.name + " (it has no default). " + how_to_get(known));
    std::error_code error;
    if (!is_there(folder) || !std::filesystem::is_directory(folder, error)) {
        throw InputError("missing data of " + known.name + " ('" + folder.string() + "' is not a folder). " + how_to_get(known));
    }
    const std::vector<path> files = files_of(known, folder, split);

    ImageSet set{.name = known.name,
                 .channels = known.shape.channels,
                 .height = known.shape.height,
                 .width = known.shape.width,
                 .num_classes = known.shape.num_classes,
                 .class_names = known.class_names,
                 .flip = known.shape.flip,
                 .pixels = {},
                 .labels = {}};
    known.read(set, files);
    require_size(set, known.shape.channels, known.shape.height, known.shape.width);
    return set;
}

std::vector<path> image_files(const std::string& name, const path& dir) {
    const KnownSet& known = known_set(name);
    const path folder = dir.empty() ? path(known.default_dir) : dir;
    std::vector<path> all;
    for (const Split split : {Split::train, Split::test}) {
        try {
            const std::vector<path> files = files_of(known, folder, split);
            all.insert(all.end(), files.begin(), files.end());
        } catch (const InputError&) {  // this part is not there
        }
    }
    return all;
}

ImageSet load_image_set(const std::string& name, const path& dir, Split split) { return load_image_set(known_set(name), dir, split); }

}  // namespace jem
