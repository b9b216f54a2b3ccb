// jem_engine sample
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "data/input_error.h"
#include "data/load.h"
#include "engine/files/output_file.h"
#include "engine/network/file_tensors.h"
#include "engine/network/predictor.h"
#include "engine/run/checkpoint.h"
#include "engine/sampling/sampler.h"
#include "tools/jem_engine/console.h"
#include "tools/jem_engine/options.h"
#include "tools/jem_engine/sheet.h"

namespace jem {
namespace {

constexpr int64_t kMostChains = 100;       // in a batch
constexpr int64_t kDefaultSteps = 20;      // of fresh chains
constexpr int64_t kMostTries = 10;         // chains a wanted sample of --class, before giving up
constexpr int64_t kCandidatesASample = 4;  // of which --pick best|worst chooses one
constexpr int64_t kLeastColumns = 5;       // below that a row a class makes no sheet
constexpr int64_t kPlainColumns = 10;
constexpr int64_t kSheetPixels = 64;            // each image is enlarged to about so many
constexpr float kBlank = 2 * 235.0f / 255 - 1;  // the sheet's own background

struct SampleOptions {
    CommonOptions common;
    SettingsFlags flags;
    std::string checkpoint, from = "prior", sheet, raw, weights = "last", pick = "random";
    std::optional<int64_t> steps, label;
    int64_t count = 100;
};

struct Sample {
    std::vector<float> pixels;  // [H, W, C]
    std::vector<double> logits;
    int64_t label = 0;  // the first of the largest logits
    double confidence = 0, lse = 0;
};

Sample described(std::vector<float> pixels, std::vector<double> logits, double lse) {
    Sample s;
    s.label = std::max_element(logits.begin(), logits.end()) - logits.begin();
    const double largest = logits[static_cast<size_t>(s.label)];
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - largest);
    s.confidence = 1 / sum;
    s.lse = lse;
    s.pixels = std::move(pixels);
    s.logits = std::move(logits);
    return s;
}

// Best or worst first; equal ones keep their order.
template <class T, class Lse>
void sort_by_lse(std::vector<T>& items, const std::string& pick, Lse lse) {
    if (pick == "random") return;
    std::stable_sort(items.begin(), items.end(),
                     [&](const T& a, const T& b) { return pick == "best" ? lse(a) > lse(b) : lse(a) < lse(b); });
}

// The checkpoint's own, or that of the state beside it.
SavedBuffer buffer_of(const Checkpoint& checkpoint) {
    if (std::optional<SavedBuffer> found = find_buffer(checkpoint.file, checkpoint.path)) return *std::move(found);
    throw InputError("There is no replay buffer (neither in " + checkpoint.path + " nor in " + states_beside(checkpoint.path)[0].string() +
                     "). Use --from prior, or a run that trained with --p-x-weight above 0.");
}

class SampleRun {
public:
    SampleRun(const SampleOptions& options, const Checkpoint& checkpoint, Console& console);

    std::vector<Sample> run();
    bool diverged() const { return diverged_; }
    int64_t steps() const { return steps_; }
    const std::string& buffer_path() const { return buffer_path_; }

private:
    void choose_from_buffer();
    void start(int64_t batch);
    std::vector<Sample> describe(const std::vector<double>& pixels);

    const SampleOptions& o_;
    Settings s_;
    Console& console_;
    int64_t pixels_ = 0, wanted_ = 0, limit_ = 0, chains_ = 0, steps_ = 0;
    bool diverged_ = false;

    std::string buffer_path_;
    FileTensor buffer_;            // [N, C, H, W]
    std::vector<int64_t> chosen_;  // its images, in the order in which they are continued

    std::unique_ptr<Device> device_;
    std::unique_ptr<NetworkInUse> network_;
    std::unique_ptr<Predictor> predictor_;
    std::unique_ptr<Sampler> sampler_;
};

SampleRun::SampleRun(const SampleOptions& options, const Checkpoint& checkpoint, Console& console)
    : o_(options), s_(checkpoint.settings), console_(console) {
    const bool buffer = o_.from == "buffer";
    if (o_.from == "noise") s_.init = StartForm::uniform;
    steps_ = o_.steps ? *o_.steps : o_.flags.given("--sgld-steps") ? s_.sgld_steps : buffer ? 0 : kDefaultSteps;
    pixels_ = s_.in_channels * s_.image_size * s_.image_size;
    wanted_ = o_.count;
    ImageSet train;
    if (buffer) {
        const SavedBuffer saved = buffer_of(checkpoint);
        buffer_path_ = saved.path;
        buffer_ = saved.images;
        const std::vector<int64_t>& shape = buffer_.shape;
        if (shape.size() != 4 || shape[0] < 1 || shape[1] != s_.in_channels || shape[2] != s_.image_size || shape[3] != s_.image_size)
            throw InputError("The replay buffer of " + buffer_path_ +
                             " holds no images of the network's size. Use its own run's checkpoint.");
        limit_ = shape[0];
    } else {
        if (o_.pick != "random") wanted_ *= kCandidatesASample;
        limit_ = o_.label ? wanted_ * kMostTries : wanted_;
        if (s_.init != StartForm::uniform)
            train = load_training_images(s_, [&](int64_t done, int64_t total) { console.progress("Reading images", done, total); }).train;
    }
    chains_ = std::min({kMostChains, wanted_, limit_});

    device_ = make_device(o_.common, s_.precision);
    network_ = std::make_unique<NetworkInUse>(trained_network(*device_, checkpoint, o_.weights));
    const bool choose_by_logits = buffer && (o_.label || o_.pick != "random");
    predictor_ = std::make_unique<Predictor>(
        *device_, network_->memory(), network_->network(),
        Predictor::ImageSize{.height = s_.image_size, .width = s_.image_size, .channels = s_.in_channels},
        Predictor::Options{.largest = choose_by_logits ? std::max(limit_, chains_) : chains_, .energy_head = s_.energy_head});
    sampler_ = std::make_unique<Sampler>(
        *device_, network_->network(), network_->memory(), s_,
        Sampler::Options{.chains = chains_, .steps = steps_, .starts = buffer ? Sampler::Starts::given : Sampler::Starts::fresh}, train);
    say_what_is_skipped(checkpoint.file, checkpoint.path, network_->network());
    network_->ready([&] {
        sampler_->plan(network_->passes(), network_->state());
        predictor_->plan(network_->passes());
    });
    sampler_->ready(network_->passes(), network_->state());
    if (!buffer && s_.init == StartForm::informative && o_.label && !sampler_->has_class(*o_.label))
        throw InputError(
            fmt::format("--class is {} (no training image has it, so no chain starts there). Give another, or --from noise.", *o_.label));
    if (buffer) choose_from_buffer();
}

void SampleRun::choose_from_buffer() {
    const int64_t n = limit_;
    if (!o_.label && o_.pick == "random") {
        for (int64_t i = 0; i < n; ++i)
            chosen_.push_back(
                shuffled(static_cast<uint32_t>(i), static_cast<uint32_t>(n), s_.seed, RandomStream::buffer_index, kFirstSampleDraw));
        return;
    }
    std::vector<std::pair<int64_t, double>> found;  // index, LSE
    for (int64_t first = 0; first < n; first += predictor_->batch()) {
        std::vector<int64_t> indices(static_cast<size_t>(std::min(predictor_->batch(), n - first)));
        std::iota(indices.begin(), indices.end(), first);
        const std::vector<Sample> samples = describe(images_of_buffer(buffer_, indices));
        for (size_t i = 0; i < samples.size(); ++i)
            if (!o_.label || samples[i].label == *o_.label) found.emplace_back(indices[i], samples[i].lse);
        console_.progress("Choosing from the buffer", first + static_cast<int64_t>(indices.size()), n);
    }
    sort_by_lse(found, o_.pick, [](const auto& f) { return f.second; });
    for (const auto& [index, lse] : found) chosen_.push_back(index);
    limit_ = static_cast<int64_t>(chosen_.size());
}

// The chains of a batch; those beyond the limit only fill it up.
void SampleRun::start(int64_t batch) {
    const bool fresh = o_.from != "buffer";
    std::vector<int64_t> indices, classes;
    for (int64_t i = batch * chains_; i < (batch + 1) * chains_; ++i) {
        if (!fresh) indices.push_back(chosen_[static_cast<size_t>(i % limit_)]);
        classes.push_back(o_.label.value_or(i % s_.num_classes));
    }
    if (fresh)
        sampler_->start_fresh(classes);
    else
        sampler_->start_at(images_of_buffer(buffer_, indices));
}

std::vector<Sample> SampleRun::describe(const std::vector<double>& pixels) {
    const Predictions p =
        predictor_->predict(static_cast<int64_t>(pixels.size()) / pixels_, predictor_->values(pixels), network_->passes());
    std::vector<Sample> out;
    for (int64_t n = 0; n < p.count(); ++n) {
        out.push_back(described({pixels.begin() + n * pixels_, pixels.begin() + (n + 1) * pixels_},
                                {p.logits.begin() + n * p.classes, p.logits.begin() + (n + 1) * p.classes}, p.lse[static_cast<size_t>(n)]));
        diverged_ = diverged_ || !std::isfinite(out.back().lse);
    }
    return out;
}

std::vector<Sample> SampleRun::run() {
    const int64_t batches = (limit_ + chains_ - 1) / chains_;
    std::vector<Sample> found;
    for (int64_t batch = 0; batch < batches && std::ssize(found) < wanted_ && !diverged_; ++batch) {
        sampler_->begin(kFirstSampleDraw + static_cast<uint32_t>(batch));
        start(batch);
        sampler_->run([&](int64_t done) { console_.progress("Sampling", batch * steps_ + done, batches * steps_); });
        std::vector<Sample> samples = describe(sampler_->download());
        diverged_ = diverged_ || sampler_->diverged();
        samples.resize(static_cast<size_t>(std::min(chains_, limit_ - batch * chains_)));
        for (Sample& s : samples)
            if ((!o_.label || s.label == *o_.label) && std::ssize(found) < wanted_) found.push_back(std::move(s));
    }
    if (found.empty() && !diverged_)
        throw std::runtime_error(fmt::format("No sample is predicted as class {} ({} were tried). Give another --class, or more --steps.",
                                             o_.label.value_or(0), limit_ > 0 ? limit_ : buffer_.num_elements() / pixels_));
    sort_by_lse(found, o_.pick, [](const Sample& s) { return s.lse; });
    if (std::ssize(found) > o_.count) found.resize(static_cast<size_t>(o_.count));
    return found;
}

// A class a row where there are enough columns for it, else one after the other.
void write_class_sheet(const std::string& path, const std::vector<Sample>& samples, const Settings& s, bool one_class) {
    const int64_t per_class = std::ssize(samples) / s.num_classes;
    const bool rows = !one_class && per_class >= kLeastColumns;
    const int64_t columns = rows ? per_class : kPlainColumns;
    std::vector<float> images;
    int64_t cells = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
        const bool new_class = i > 0 && samples[i].label != samples[i - 1].label;
        for (; rows && new_class && cells % columns != 0; ++cells) images.insert(images.end(), samples[i].pixels.size(), kBlank);
        images.insert(images.end(), samples[i].pixels.begin(), samples[i].pixels.end());
        ++cells;
    }
    write_sheet(path, images,
                {.count = static_cast<int>(cells),
                 .height = static_cast<int>(s.image_size),
                 .width = static_cast<int>(s.image_size),
                 .channels = static_cast<int>(s.in_channels),
                 .columns = static_cast<int>(std::min(columns, cells)),
                 .scale = static_cast<int>(std::max<int64_t>(1, kSheetPixels / s.image_size))});
}

void write_raw(const std::string& path, const std::vector<Sample>& samples, const Settings& s) {
    const int64_t n = std::ssize(samples), pixels = s.in_channels * s.image_size * s.image_size;
    std::vector<float> images(static_cast<size_t>(n * pixels)), logits, lse;
    std::vector<int64_t> labels;
    for (const Sample& sample : samples) {
        const auto image = std::span(images).subspan(labels.size() * sample.pixels.size(), sample.pixels.size());
        transpose(std::span<const float>(sample.pixels), s.in_channels, image);
        logits.insert(logits.end(), sample.logits.begin(), sample.logits.end());
        lse.push_back(static_cast<float>(sample.lse));
        labels.push_back(sample.label);
    }
    SafetensorsFile file;
    file.tensors["images"] = make_file_tensor(std::span<const float>(images), {n, s.in_channels, s.image_size, s.image_size});
    file.tensors["labels"] = make_file_tensor(std::span<const int64_t>(labels), {n});
    file.tensors["logits"] = make_file_tensor(std::span<const float>(logits), {n, s.num_classes});
    file.tensors["lse"] = make_file_tensor(std::span<const float>(lse), {n});
    file.write_atomically(path);
}

int sample(const SampleOptions& o) {
    if (o.checkpoint.empty())
        throw InputError("--checkpoint is needed (a safetensors file). Give one, such as RUN/checkpoints/last.safetensors.");
    const std::string sheet = o.sheet.empty() && o.raw.empty() ? "samples.png" : o.sheet;
    std::vector<NamedPath> inputs = {{"--checkpoint", o.checkpoint}};
    if (o.from == "buffer")
        for (const std::filesystem::path& state : states_beside(o.checkpoint)) inputs.push_back({"the replay buffer's file", state});
    const Checkpoint checkpoint = read_checkpoint(o.checkpoint, o.flags, o.common);
    const Settings& s = checkpoint.settings;
    if (!s.data.empty())
        for (const std::filesystem::path& file : image_files(s.data, s.data_dir)) inputs.push_back({"a file of " + s.data, file});
    check_outputs({{"--sheet", sheet}, {"--raw", o.raw}}, inputs);
    if (o.label && (*o.label < 0 || *o.label >= s.num_classes))
        throw InputError(fmt::format("--class is {} (the network knows 0 to {}). Give one of these.", *o.label, s.num_classes - 1));
    Console console(o.common.quiet);
    SampleRun run(o, checkpoint, console);
    std::vector<Sample> samples = run.run();
    if (run.diverged()) {
        std::fprintf(stderr,
                     "error: Sampling diverged (a gradient or logit was not finite). Use --sgld-grad-clamp 1 and --sgld-pixel-clamp on, "
                     "or an earlier checkpoint.\n");
        return kExitDiverged;
    }
    if (std::ssize(samples) < o.count)
        console.message(fmt::format("Only {} of {} samples were found{}.", samples.size(), o.count,
                                    o.label ? fmt::format(" that are predicted as class {}", *o.label) : " in the buffer"));
    if (!o.label || o.pick == "random")
        std::stable_sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) {
            return a.label != b.label ? a.label < b.label : a.confidence > b.confidence;
        });
    if (!o.raw.empty()) write_raw(o.raw, samples, s);
    if (!sheet.empty()) write_class_sheet(sheet, samples, s, o.label.has_value());

    std::vector<int64_t> counts(static_cast<size_t>(s.num_classes));
    double mean_lse = 0;
    for (const Sample& one : samples) {
        ++counts[static_cast<size_t>(one.label)];
        mean_lse += one.lse / static_cast<double>(samples.size());
    }
    nlohmann::ordered_json json = {{"checkpoint", o.checkpoint}, {"weights", o.weights}, {"from", o.from},
                                   {"steps", run.steps()},       {"seed", s.seed},       {"images", samples.size()},
                                   {"mean_lse", mean_lse},       {"counts", counts}};
    if (!sheet.empty()) json["sheet"] = sheet;
    if (!o.raw.empty()) json["raw"] = o.raw;
    if (!o.common.json) {
        if (!sheet.empty()) fmt::print("sheet     {}\n", sheet);
        if (!o.raw.empty()) fmt::print("tensors   {}\n", o.raw);
        fmt::print("samples   {} from {}, {} SGLD steps{}\n", samples.size(), o.from, run.steps(),
                   run.buffer_path().empty() ? "" : " on " + run.buffer_path());
        fmt::print("mean LSE  {:.4f}\npredicted as\n", mean_lse);
        const std::vector<std::string> names = s.data.empty() ? std::vector<std::string>{} : known_class_names(s.data, s.data_dir);
        for (size_t c = 0; c < counts.size(); ++c)
            if (counts[c] > 0) fmt::print("  {:>3} {:<14} {}\n", c, c < names.size() ? names[c] : "", counts[c]);
    }
    print_result(o.common, json);
    return kExitDone;
}

}  // namespace

Command add_sample(CLI::App& app) {
    auto o = std::make_shared<SampleOptions>();
    constexpr auto last = CLI::MultiOptionPolicy::TakeLast;
    app.add_option("--checkpoint", o->checkpoint, "Weights and running statistics")->multi_option_policy(last);
    app.add_option("--from", o->from, "Where chains start: prior (--init), buffer (the replay buffer), noise (uniform)")
        ->check(CLI::IsMember({"prior", "buffer", "noise"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option_function<int64_t>(
           "--steps", [o = o.get()](int64_t v) { o->steps = v; }, "SGLD steps; 20, or 0 from the buffer, unless given")
        ->transform(whole_number_in(0, 100000))
        ->multi_option_policy(last);
    app.add_option("--count", o->count, "Images")->transform(whole_number_in(1, 100000))->capture_default_str()->multi_option_policy(last);
    app.add_option_function<int64_t>(
           "--class", [o = o.get()](int64_t v) { o->label = v; }, "Only samples predicted as this class; prior: from its Gaussian")
        ->transform(whole_number_in(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()))
        ->multi_option_policy(last);
    app.add_option("--pick", o->pick,
                   "Which: random, or the best or worst by LSE, of the whole buffer or of " + std::to_string(kCandidatesASample) +
                       " chains an image")
        ->check(CLI::IsMember({"random", "best", "worst"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--weights", o->weights, "The last ones, or their moving average")
        ->check(CLI::IsMember({"last", "ema"}))
        ->capture_default_str()
        ->multi_option_policy(last);
    app.add_option("--sheet", o->sheet, "PNG to write, a class a row (samples.png where neither this nor --raw is given)")
        ->multi_option_policy(last);
    app.add_option("--raw", o->raw, "Safetensors to write: images [N,C,H,W], labels (predicted), logits, lse")->multi_option_policy(last);
    o->flags.add_to(app, SettingsFlags::Kind::sampling);
    o->common.add_to(app);
    return [o] { return sample(*o); };
}

}  // namespace jem
