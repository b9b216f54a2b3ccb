// Flags that several commands share, and what is made of them.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/image_set.h"
#include "data/load.h"
#include "engine/device/device.h"
#include "engine/evaluation/network_in_use.h"
#include "engine/files/safetensors.h"
#include "engine/network/network.h"
#include "engine/network/parameters.h"
#include "engine/settings/recipes/recipes.h"
#include "engine/settings/settings.h"
#include "engine/settings/table.h"
#include "models/networks.h"

namespace jem {

// --device --threads --seed --quiet --json --nondeterministic --overlap, on every command.
struct CommonOptions {
    std::string device = "auto", overlap = "off";
    int threads = 0;
    std::optional<uint64_t> seed;
    bool quiet = false, json = false, nondeterministic = false;

    void add_to(CLI::App& app);
};

// The hyper-parameters as flags. Each flag given on the command line overrides one setting of whatever they are applied to.
class SettingsFlags {
public:
    using Kind = Setting::Use;
    void add_to(CLI::App& app, Kind kind);
    // Says on stderr where the authors' scripts mean something else by a flag.
    void apply(Settings& settings) const;
    bool given(const std::string& flag) const;  // "--depth", or one of its aliases

private:
    // InputError for a flag that the recipe, or another setting, leaves without effect.
    void refuse_unheeded(const Settings& settings) const;
    void refuse_unheeded_by(const Method& method) const;
    struct Given {
        const CLI::Option* option;
        const Setting* setting;
        std::string flag, text;  // as it was given
    };
    void add(const Setting& setting, const std::string& flag, const std::string& help, const std::string& group);
    std::vector<Given> in_order() const;  // of the command line: of several names of one setting the last counts

    CLI::App* app_ = nullptr;
    std::vector<Given> given_;
};

// The JSON of a configuration; InputError for a file that is none.
nlohmann::json read_config(const std::string& path);

// What --recipe and --config say before the flags: the recipe's values, and the file's on top. Either may be empty; of both: sada-jem.
struct BegunSettings {
    Settings settings;
    bool lr_given = false;  // by the file
};
BegunSettings begin_settings(const std::string& recipe, const std::string& config);

// The command line with the values of a flag that takes several joined by commas ("--decay_epochs 60 120" has two), and with "on" behind a
// switch that stands alone: only so can an empty value be told from none.
std::vector<std::string> values_spelt_out(int argc, char** argv);

// For options that count: decimal digits alone, within the range. To be used as a transform: what it leaves CLI11 reads the same way.
CLI::Validator whole_number_in(int64_t low, int64_t high);

// The device of --device and --precision; with several ranks after Job::join, and the caller makes it join them. InputError for what this
// build or machine does not have. auto: a GPU if there is one, else the CPU, and a line on stderr says why where this build has the CUDA
// parts.
std::unique_ptr<Device> make_device(const CommonOptions& common, const std::string& precision);

// InputError for ranks of torchrun on a device that they cannot work together on.
void refuse_without_mpi(const Device& device);

// Where a file lies that is kept between runs and may be deleted: $XDG_CACHE_HOME/jem_engine/NAME; empty without a home folder.
std::string user_cache_file(const std::string& name);

// Sizes that were left at 0 are taken from the data set's; without one they are an InputError naming the flag.
void fill_in_sizes(Settings& settings);

// All that can be told of settings before anything is read: ranges, contradictions, what the network does not support. Sizes filled in.
void check_settings(const Settings& settings);
// InputError naming the flag where the network's sizes are not those of settings.data.
void check_sizes(const Settings& settings);

// What is known of settings.data before a file is opened. Of `images`: sizes as the network has them, and as many images as their folder
// holds, or, without one, as CIFAR-10 has.
ImageSetShape shape_of(const Settings& settings);
// Whether the test images are others than the training images; not so in a folder of images without parts.
bool has_test_set(const Settings& settings);

// The images, after checking that they have the network's size. verbose: says on stderr how long it took.
using ReadProgress = std::function<void(int64_t done, int64_t total)>;
ImageSet load_images(const Settings& settings, Split split, const ReadProgress& progress = nullptr);

// The training set, without the images that --n-valid holds out (--split-seed chooses them), and these.
struct TrainingImages {
    ImageSet train, held_out;
};
TrainingImages load_training_images(const Settings& settings, const ReadProgress& progress = nullptr);

// Images of the set that chains start from (--init NAME:DIR), by its published size or a folder's names; 0 where they start from none.
int64_t start_count(const Settings& settings);
// What fresh chains are made from: the training set, another (--init NAME:DIR), or nothing.
ImageSet load_start_images(const Settings& settings, const ReadProgress& progress = nullptr);

// A checkpoint and the settings it was made with (for a bare one what its shapes tell, else defaults), with the flags on top.
struct Checkpoint {
    std::string path;
    SafetensorsFile file;
    Settings settings;  // n_valid is 0 where --data names another set than the run's; split_seed is the run's
    bool bare = false;
};
Checkpoint read_checkpoint(const std::string& path, const SettingsFlags& flags, const CommonOptions& common);

// Weights (--weights last|ema) and running statistics of a checkpoint, ready for the network to run.
void load_weights(Parameters& parameters, Network& network, const Checkpoint& checkpoint, const std::string& which);

// The checkpoint's network; the checkpoint must outlive it.
TrainedNetwork trained_network(Device& device, const Checkpoint& checkpoint, const std::string& weights);

// On stderr, where a published checkpoint holds tensors that are not read.
void say_what_is_skipped(const SafetensorsFile& file, const std::string& path, const Network& network);

// As a word of a shell's command line.
std::string for_shell(const std::string& word);

// --json: the result as one line, the last of stdout.
void print_result(const CommonOptions& common, const nlohmann::ordered_json& json);

// Each command: adds itself to the program; run returns the exit code.
using Command = std::function<int()>;
Command add_train(CLI::App& app);
Command add_watch(CLI::App& app);
Command add_sample(CLI::App& app);
Command add_evaluate(CLI::App& app);
Command add_plan(CLI::App& app);
Command add_step(CLI::App& app);
Command add_selftest(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_info(CLI::App& app);

inline constexpr int kExitDone = 0, kExitFailed = 1, kExitUsage = 2, kExitDiverged = 3, kExitInterrupted = 130;
inline constexpr int kExitReaderGone = 141;  // as shells report SIGPIPE

}  // namespace jem
