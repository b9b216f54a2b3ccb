#include "data/image_set.h"

#include "data/input_error.h"

namespace jem {
namespace {

struct KnownSet {
    const char* name;
    ImageSetShape shape;
    std::vector<std::string> class_names;
};

const std::vector<KnownSet>& known_sets() {
    static const std::vector<KnownSet> sets = {
        {"mnist",
         {.channels = 1, .height = 28, .width = 28, .num_classes = 10, .num_train = 60000, .num_test = 10000, .flip = false},
         {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}},
        {"fashion-mnist",
         {.channels = 1, .height = 28, .width = 28, .num_classes = 10, .num_train = 60000, .num_test = 10000, .flip = true},
         {"t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"}},
        {"cifar10",
         {.channels = 3, .height = 32, .width = 32, .num_classes = 10, .num_train = 50000, .num_test = 10000, .flip = true},
         {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}},
        {"cifar100",
         {.channels = 3, .height = 32, .width = 32, .num_classes = 100, .num_train = 50000, .num_test = 10000, .flip = true},
         {"apple",       "aquarium_fish", "baby",         "bear",       "beaver",       "bed",        "bee",         "beetle",   "bicycle",
          "bottle",      "bowl",          "boy",          "bridge",     "bus",          "butterfly",  "camel",       "can",      "castle",
          "caterpillar", "cattle",        "chair",        "chimpanzee", "clock",        "cloud",      "cockroach",   "couch",    "crab",
          "crocodile",   "cup",           "dinosaur",     "dolphin",    "elephant",     "flatfish",   "forest",      "fox",      "girl",
          "hamster",     "house",         "kangaroo",     "keyboard",   "lamp",         "lawn_mower", "leopard",     "lion",     "lizard",
          "lobster",     "man",           "maple_tree",   "motorcycle", "mountain",     "mouse",      "mushroom",    "oak_tree", "orange",
          "orchid",      "otter",         "palm_tree",    "pear",       "pickup_truck", "pine_tree",  "plain",       "plate",    "poppy",
          "porcupine",   "possum",        "rabbit",       "raccoon",    "ray",          "road",       "rocket",      "rose",     "sea",
          "seal",        "shark",         "shrew",        "skunk",      "skyscraper",   "snail",      "snake",       "spider",   "squirrel",
          "streetcar",   "sunflower",     "sweet_pepper", "table",      "tank",         "telephone",  "television",  "tiger",    "tractor",
          "train",       "trout",         "tulip",        "turtle",     "wardrobe",     "whale",      "willow_tree", "wolf",     "woman",
          "worm"}},
    };
    return sets;
}

const KnownSet& find_known_set(const std::string& name) {
    std::string names;
    for (const KnownSet& set : known_sets()) {
        if (set.name == name) return set;
        names += (names.empty() ? "" : ", ") + std::string(set.name);
    }
    throw InputError("unknown data set '" + name + "' (known: " + names + "). Give one of these to --data.");
}

}  // namespace

ImageSetShape known_shape(const std::string& name) { return find_known_set(name).shape; }

std::vector<std::string> known_class_names(const std::string& name) { return find_known_set(name).class_names; }

}  // namespace jem
