#include "data/image_folder.h"

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <iterator>
#include <set>
#include <system_error>
#include <utility>
#include <variant>

#include "data/input_error.h"
#include "data/picture.h"

namespace jem {
namespace {

using std::filesystem::path;

constexpr size_t kMostNamed = 3;

bool is_folder(const path& p) {
    std::error_code ignored;
    return std::filesystem::is_directory(p, ignored);
}

bool has_image_ending(const path& file) {
    std::string ending = file.extension().string();
    for (char& c : ending)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return ending == ".png" || ending == ".jpg" || ending == ".jpeg" || ending == ".bmp";
}

/// What a folder holds of ours, each in the order of the names' bytes.
struct Contents {
    std::vector<path> images, folders;
};

Contents contents_of(const path& folder) {
    Contents contents;
    std::error_code error;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
        if (it->path().filename().string().starts_with('.')) continue;
        std::error_code no_target;
        const std::filesystem::file_status status = it->status(no_target);
        if (std::filesystem::is_directory(status))
            contents.folders.push_back(it->path());
        else if (has_image_ending(it->path()) && (std::filesystem::is_regular_file(status) || !std::filesystem::exists(status)))
            contents.images.push_back(it->path());  // a link that leads nowhere is a damaged file
    }
    if (error) throw InputError("cannot read the folder '" + folder.string() + "' (" + error.message() + "). Check its permissions.");
    const auto by_name = [](const path& a, const path& b) { return a.native() < b.native(); };
    std::sort(contents.images.begin(), contents.images.end(), by_name);
    std::sort(contents.folders.begin(), contents.folders.end(), by_name);
    return contents;
}

/// The images in a folder and below it. Links to folders are not followed here: one may lead back.
void add_images(std::vector<path>& files, const path& folder) {
    const Contents contents = contents_of(folder);
    files.insert(files.end(), contents.images.begin(), contents.images.end());
    std::error_code ignored;
    for (const path& inner : contents.folders)
        if (!std::filesystem::is_symlink(inner, ignored)) add_images(files, inner);
}

/// A link to the folder that it lies in, or to one above.
bool leads_back(const path& link, const path& folder) {
    std::error_code error;
    if (!std::filesystem::is_symlink(link, error)) return false;
    const path target = std::filesystem::canonical(link, error), own = std::filesystem::canonical(folder, error);
    return error || std::mismatch(target.begin(), target.end(), own.begin(), own.end()).first == target.end();
}

std::string joined(const std::vector<std::string>& names) {
    std::string all;
    for (size_t i = 0; i < std::min(names.size(), kMostNamed); ++i) all += (i > 0 ? ", " : "") + names[i];
    return names.size() > kMostNamed ? all + " and " + std::to_string(names.size() - kMostNamed) + " more" : all;
}

std::vector<std::string> class_folders(const path& part) {
    std::vector<std::string> names;
    for (const path& folder : contents_of(part).folders)
        if (!leads_back(folder, part)) names.push_back(folder.filename().string());
    return names;
}

void require_same_classes(const path& folder) {
    const std::vector<std::string> train = class_folders(folder / "train"), test = class_folders(folder / "test");
    std::vector<std::string> only_train, only_test;
    std::set_difference(train.begin(), train.end(), test.begin(), test.end(), std::back_inserter(only_train));
    std::set_difference(test.begin(), test.end(), train.begin(), train.end(), std::back_inserter(only_test));
    if (only_train.empty() && only_test.empty()) return;
    const std::string lacks_test = only_train.empty() ? "" : "test lacks " + joined(only_train);
    const std::string lacks_train = only_test.empty() ? "" : "train lacks " + joined(only_test);
    throw InputError("The folders train and test in '" + folder.string() + "' have different classes (" + lacks_test +
                     (lacks_test.empty() || lacks_train.empty() ? "" : "; ") + lacks_train + "). Give both a folder of every class.");
}

}  // namespace

bool has_parts(const path& folder) {
    const path train = folder / "train", test = folder / "test";
    if (is_folder(train) && is_folder(test)) return true;
    if (!is_folder(train) && !is_folder(test)) return false;
    // One alone may be a class of that name: then it holds images.
    const Contents one = contents_of(is_folder(train) ? train : test);
    return one.images.empty() && !one.folders.empty();
}

ImageFolder list_image_folder(const path& folder, Split split, Classes classes) {
    std::error_code not_there;
    if (classes == Classes::ignored && std::filesystem::is_regular_file(folder, not_there))
        return {.root = folder.parent_path(), .class_names = {"images"}, .files = {folder}, .labels = {0}};
    const bool parts = has_parts(folder);
    ImageFolder out{
        .root = parts ? folder / (split == Split::train ? "train" : "test") : folder, .class_names = {}, .files = {}, .labels = {}};
    if (!is_folder(out.root))
        throw InputError("no folder '" + out.root.string() + "' (the other part of the set has one). Make it, or give another folder.");
    const Contents contents = contents_of(out.root);
    std::vector<std::string> empty;
    for (const path& inner : contents.folders) {
        if (leads_back(inner, out.root)) continue;
        const size_t before = out.files.size();
        add_images(out.files, inner);
        if (out.files.size() == before) {
            empty.push_back(inner.filename().string());
            continue;
        }
        out.labels.resize(out.files.size(), static_cast<int32_t>(out.class_names.size()));
        out.class_names.push_back(inner.filename().string());
    }
    if (!contents.images.empty() && !out.files.empty())
        throw InputError("'" + out.root.string() + "' holds images beside folders of images (such as " +
                         contents.images.front().filename().string() + " and " + out.class_names.front() +
                         "; it is unclear which are classes). Give each class a folder, or keep the images alone.");
    if (!contents.images.empty()) {
        out.files = contents.images;
        out.labels.assign(out.files.size(), 0);
        out.class_names = {"images"};
    }
    if (out.files.empty())
        throw InputError("no images in '" + out.root.string() +
                         "' (files named .png, .jpg, .jpeg and .bmp are looked for, there and in folders of classes). Check the folder.");
    if (classes == Classes::ignored) return out;
    if (parts && is_folder(folder / "train") && is_folder(folder / "test")) require_same_classes(folder);
    if (out.class_names.size() > 1 && !empty.empty())
        throw InputError("a class without images in '" + out.root.string() + "' (" + joined(empty) +
                         "). Put images there, or remove the folder.");
    if (out.class_names.size() < 2)
        throw InputError("one class of images in '" + out.root.string() +
                         "' (a network tells two or more apart). Give a folder that holds a folder a class.");
    return out;
}

void read_image_folder(ImageSet& set, const ImageFolder& folder, const LoadOptions& options) {
    const int64_t count = std::ssize(folder.files);
    const auto image = static_cast<size_t>(options.channels) * static_cast<size_t>(options.size) * static_cast<size_t>(options.size);
    set.channels = options.channels;
    set.height = set.width = options.size;
    set.class_names = folder.class_names;
    set.num_classes = static_cast<int>(folder.class_names.size());
    set.pixels.assign(static_cast<size_t>(count) * image, 0);

    std::vector<std::string> why(static_cast<size_t>(count));
    int64_t done = 0;
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t i = 0; i < count; ++i) {
        try {
            const auto at = static_cast<size_t>(i);
            const std::variant<DecodedPicture, std::string> read = read_picture(folder.files[at]);
            if (const auto* p = std::get_if<DecodedPicture>(&read))
                fit(std::span(set.pixels).subspan(at * image, image),
                    {.pixels = p->pixels, .height = p->height, .width = p->width, .channels = p->channels}, options.channels, options.size,
                    options.crop);
            else
                why[at] = std::get<std::string>(read);
            int64_t now;
#pragma omp atomic capture
            now = ++done;
            if (omp_get_thread_num() == 0 && options.progress) options.progress(now, count);
        } catch (...) {
#pragma omp critical(read_image_folder_failure)
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
    if (options.progress) options.progress(count, count);

    std::vector<std::string> damaged;
    size_t kept = 0;
    for (size_t i = 0; i < why.size(); ++i) {
        if (!why[i].empty()) {
            damaged.push_back(folder.files[i].lexically_relative(folder.root).string() + ": " + why[i]);
            continue;
        }
        if (kept < i) std::copy_n(set.pixels.data() + i * image, image, set.pixels.data() + kept * image);
        ++kept;
        set.labels.push_back(folder.labels[i]);
    }
    set.pixels.resize(kept * image);
    const std::string share = std::to_string(damaged.size()) + " of " + std::to_string(count) + " images in '" + folder.root.string() + "'";
    if (!damaged.empty() && !options.skip_damaged)
        throw InputError(share + " cannot be used (" + joined(damaged) + "). Mend or remove them, or leave them out with --skip-damaged.");
    if (!damaged.empty() && options.tell) options.tell("Left out " + share + " that cannot be used (" + joined(damaged) + ").");
    if (set.count() < options.at_least)
        throw InputError("'" + folder.root.string() + "' has too few images (" + std::to_string(set.count()) + " can be used, at least " +
                         std::to_string(options.at_least) + " are needed). Add some, or give another folder.");
    if (options.classes == Classes::ignored) return;
    for (int32_t label = 0; label < set.num_classes; ++label)
        if (std::find(set.labels.begin(), set.labels.end(), label) == set.labels.end())
            throw InputError("no image of class " + set.class_names[static_cast<size_t>(label)] + " in '" + folder.root.string() +
                             "' can be used (all are damaged). Mend them, or remove the folder.");
}

}  // namespace jem
