#include "data/load.h"

#include <system_error>
#include <vector>

#include "data/cifar.h"
#include "data/idx.h"
#include "data/input_error.h"
#include "data/is_there.h"

namespace jem {
namespace {

using std::filesystem::path;

bool is_cifar(const std::string& name) { return name == "cifar10" || name == "cifar100"; }

std::vector<std::string> cifar_files(const std::string& name, Split split) {
    if (name == "cifar100") return {split == Split::train ? "train.bin" : "test.bin"};
    if (split == Split::test) return {"test_batch.bin"};
    return {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"};
}

std::string expected_files(const std::string& name) {
    if (name == "cifar10") return "data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version of CIFAR-10";
    if (name == "cifar100") return "train.bin and test.bin, the binary version of CIFAR-100";
    return "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz";
}

std::string how_to_get(const std::string& name) {
    const std::string hint = "Give --data-dir a folder with " + expected_files(name) + ".";
    return name == "fashion-mnist" ? hint + " `apt install dataset-fashion-mnist` provides it." : hint;
}

InputError missing(const std::string& name, const std::string& file, const path& dir) {
    return InputError("missing data of " + name + " (no " + file + " in '" + dir.string() + "'). " + how_to_get(name));
}

/// The file of one idx kind ("images-idx3" or "labels-idx1") under any of its customary names.
path find_idx_file(const std::string& name, const path& dir, Split split, const std::string& kind) {
    const std::string dashed = (split == Split::train ? "train-" : "t10k-") + kind + "-ubyte";
    std::string dotted = dashed;
    dotted[dashed.find("-idx")] = '.';
    for (const std::string& candidate : {dashed + ".gz", dashed, dotted + ".gz", dotted}) {
        if (is_there(dir / candidate)) return dir / candidate;
    }
    throw missing(name, dashed, dir);
}

void load_idx(ImageSet& set, const path& dir, Split split) {
    const path image_file = find_idx_file(set.name, dir, split, "images-idx3");
    const path label_file = find_idx_file(set.name, dir, split, "labels-idx1");
    set.labels = read_idx_labels(label_file, set.num_classes);
    set.pixels = read_idx_images(image_file, set.height, set.width);
    const size_t num_images = set.pixels.size() / (static_cast<size_t>(set.height) * set.width);
    if (num_images != set.labels.size()) {
        throw damaged_data_file(label_file, 4,
                                std::to_string(set.labels.size()) + " labels, expected " + std::to_string(num_images) +
                                    ", the number of images in '" + image_file.filename().string() + "'");
    }
}

void load_cifar(ImageSet& set, const path& dir, Split split) {
    const std::vector<std::string> files = cifar_files(set.name, split);
    const path subfolder = dir / (set.name == "cifar10" ? "cifar-10-batches-bin" : "cifar-100-binary");
    const path folder = is_there(subfolder / files[0]) && !is_there(dir / files[0]) ? subfolder : dir;
    for (const std::string& file : files) {
        if (!is_there(folder / file)) throw missing(set.name, file, folder);
    }
    for (const std::string& file : files) {
        if (set.name == "cifar10") {
            append_cifar10_file(set.pixels, set.labels, folder / file);
        } else {
            append_cifar100_file(set.pixels, set.labels, folder / file);
        }
    }
}

}  // namespace

path default_data_dir(const std::string& name) {
    known_shape(name);  // throws for an unknown name
    return name == "fashion-mnist" ? "/usr/share/datasets/fashion-mnist" : "";
}

ImageSet load_image_set(const std::string& name, const path& dir, Split split) {
    const ImageSetShape shape = known_shape(name);
    const path folder = dir.empty() ? default_data_dir(name) : dir;
    if (folder.empty()) throw InputError("no folder for data set " + name + " (it has no default). " + how_to_get(name));
    std::error_code error;
    if (!is_there(folder) || !std::filesystem::is_directory(folder, error)) {
        throw InputError("missing data of " + name + " ('" + folder.string() + "' is not a folder). " + how_to_get(name));
    }
    ImageSet set{.name = name,
                 .channels = shape.channels,
                 .height = shape.height,
                 .width = shape.width,
                 .num_classes = shape.num_classes,
                 .class_names = known_class_names(name),
                 .pixels = {},
                 .labels = {}};
    if (is_cifar(name)) {
        load_cifar(set, folder, split);
    } else {
        load_idx(set, folder, split);
    }
    return set;
}

}  // namespace jem
