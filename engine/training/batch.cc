#include "engine/training/batch.h"

namespace jem {

Batch::Batch(Device& device, Memory& memory, const Options& options) : device_(device), memory_(memory), options_(options) {
    const auto count = static_cast<size_t>(options.count);
    images_ = memory.keep("samples", options.name + " images",
                          count * static_cast<size_t>(options.height * options.width * options.channels) * size_of(device.real_type()));
    if (options.with_labels) labels_ = memory.keep("samples", "labels", count * sizeof(int32_t));
    if (options.drawn) draws_ = memory.keep("samples", options.name + " draws", count * sizeof(ImageDraw));
}

Tensor Batch::tensor() {
    return {memory_.at(images_), device_.real_type(), options_.count,   options_.channels,
            options_.height,     options_.width,      options_.channels};
}

Array Batch::images() {
    const Tensor t = tensor();
    return {t.data, t.type, t.count()};
}

Array Batch::labels() { return labels_.valid() ? Array{memory_.at(labels_), DType::i32, options_.count} : Array{}; }

void Batch::draw(const ResidentImages& from, const IterationState* state) {
    Ops& ops = device_.ops();
    const Array draws{memory_.at(draws_), DType::u8, static_cast<int64_t>(memory_.bytes(draws_))};
    ops.draw_images(draws, from, state, options_.how);
    ops.crop_flip(images(), draws, from, state, options_.how);
    if (labels_.valid()) ops.gather_labels(labels(), draws, from);
}

}  // namespace jem
