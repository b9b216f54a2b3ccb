// A network in use, with its running statistics: images in; logits, energies, features and the gradient at the images out. Evaluation,
// sampling and every metric ask this.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/image_set.h"
#include "engine/network/network.h"

namespace jem {

// What the network says of a set of images, on the host.
struct Predictions {
    int64_t classes = 0;
    std::vector<double> logits;          // [N, classes]
    std::vector<double> lse;             // [N], minus the energy: LSE of the logits, or of the energy's own head
    std::vector<double> gradient_norms;  // [N], |d LSE / d x|; empty unless the predictor wants gradients
    std::vector<int32_t> labels;         // [N], the set's own; empty where nobody gave any

    int64_t count() const { return classes > 0 ? static_cast<int64_t>(logits.size()) / classes : 0; }
    void append(const Predictions& more);  // the images behind these, of the same network
};

class Predictor {
public:
    struct ImageSize {
        int64_t height = 0, width = 0, channels = 0;
        int64_t pixels() const { return height * width * channels; }
    };
    enum class Wants { logits, gradients };  // gradients: those of the images as well
    struct Options {
        int64_t largest = 0;  // images of the largest set
        int64_t batch = 0;    // images at a time; 0: as many as the device takes best
        Wants wants = Wants::logits;
        bool features = false;             // to be handed out as well
        Head energy_head = Head::classes;  // where it is the energy's own, images go through the network once more for it
    };

    // Of one batch, on the device, valid until the next one.
    struct Batch {
        int64_t first, count;  // numbers of its images
        Array logits;          // R [count, classes]
        Array lse;             // R [count]
        Array features;        // R [count, C], what the head reads; empty unless wanted
        Array gradients;       // R [count, H*W*C], d LSE / d x; empty unless wanted
    };
    // Puts images into `to`, R [count, H*W*C], the first being number `first` of the set.
    using Source = std::function<void(const Array& to, int64_t first)>;
    using Visit = std::function<void(const Batch&)>;
    using Progress = std::function<void(int64_t done)>;

    // Registers one pass for all sets; the network must not have been built. A set that does not fill its last
    // batch is padded with what the batch before left: with running statistics an image's result is its own.
    Predictor(Device& device, Memory& memory, Network& network, const ImageSize& size, const Options& options);

    // To be run inside Memory::plan.
    void plan(const NetworkMemory& memory);

    // The network must be prepared with memory.weights. The batches, one after the other.
    void run(int64_t count, const Source& source, const NetworkMemory& memory, const Visit& visit);
    // One batch, of count <= batch() images, on the host.
    Predictions predict_batch(int64_t first, int64_t count, const Source& source, const NetworkMemory& memory);
    // All of it on the host.
    Predictions predict(int64_t count, const Source& source, const NetworkMemory& memory, const Progress& progress = nullptr);

    // Sources, which what they are made of must outlive: an image set, InputError where its images have another size, and [N, H, W, C] of
    // bytes or of values in [-1, 1].
    Source images_of(const ImageSet& set);
    Source bytes(std::span<const uint8_t> pixels);
    Source values(std::span<const double> pixels);

    // Images of a batch.
    int64_t batch() const { return batch_; }

private:
    static constexpr int64_t kLargestBatch = 100;

    Tensor images();
    void queue(const NetworkMemory& memory);
    Batch run_batch(int64_t first, int64_t count, const Source& source, const NetworkMemory& memory);

    Device& device_;
    Memory& memory_;
    Network& network_;
    ImageSize size_;
    int64_t batch_;
    Wants wants_;
    bool features_;
    int pass_ = -1, energy_pass_ = -1;  // the same where the classes' logits are the energy
    Slot images_, bytes_, lse_, gradients_;
};

}  // namespace jem
