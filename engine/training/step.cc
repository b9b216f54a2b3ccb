#include "engine/training/step.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <variant>
#include <vector>

#include "data/input_error.h"
#include "engine/network/file_tensors.h"
#include "engine/run/checkpoint.h"
#include "engine/training/iteration.h"
#include "engine/training/own_method.h"

namespace jem {
namespace {

// The batch size of an image tensor, after checking that it is [N, C, H, W] as the settings say.
int64_t batch_of(const StepInput& input, const std::string& name, const Settings& s) {
    if (!input.batch.has(name)) throw InputError(input.batch_path + " has no tensor " + name + " (the objective needs it). Add it.");
    const std::vector<int64_t>& shape = input.batch.at(name).shape;
    const std::vector<int64_t> wanted = {s.in_channels, s.image_size, s.image_size};
    if (shape.size() != 4 || shape[0] < 1 || std::vector<int64_t>(shape.begin() + 1, shape.end()) != wanted)
        throw InputError("Tensor " + name + " of " + input.batch_path + " has the wrong shape ([N, " + std::to_string(s.in_channels) +
                         ", " + std::to_string(s.image_size) + ", " + std::to_string(s.image_size) +
                         "] was expected). Give --in-channels and --image-size.");
    return shape[0];
}

FileTensor vector_tensor(const std::vector<double>& values, DType type, std::vector<int64_t> shape) {
    if (type == DType::f64) return make_file_tensor(std::span<const double>(values), std::move(shape));
    const std::vector<float> floats(values.begin(), values.end());
    return make_file_tensor(std::span<const float>(floats), std::move(shape));
}

}  // namespace

SafetensorsFile run_step(Device& device, Network& network, const Settings& s, const StepInput& input) {
    TrainingIteration::GivenBatches given;
    // Noise in place of the generator's, of so many chains.
    const auto has_noise = [&](const std::string& name, int64_t chains) {
        if (!input.batch.has(name) || s.sgld_steps == 0) return false;
        if (input.batch.at(name).shape != std::vector<int64_t>{s.sgld_steps, chains, s.in_channels, s.image_size, s.image_size})
            throw InputError("Tensor " + name + " of " + input.batch_path +
                             " is not [K, N, C, H, W] with K = --sgld-steps. Correct it, or leave it out.");
        return true;
    };
    const Method method = checked_method(s);
    const bool adversarial = has_chain(method, BatchOf::adversarial), of_classes = has_chain(method, BatchOf::labelled_chain);
    const auto keeps_logits = [&](BatchOf batch) {
        return std::any_of(method.steps.begin(), method.steps.end(), [batch](const auto& step) {
            const auto* term = std::get_if<TermSpec>(&step);
            return term != nullptr && term->batch == batch && term->head == Head::classes;
        });
    };
    if (has_term(method, BatchOf::real)) given.positive = batch_of(input, "x_pos", s);
    if (s.generates()) {
        given.negative = batch_of(input, "x_neg_start", s);
        given.noise = has_noise("noise", given.negative);
    }
    if (draws_labelled(method)) given.labelled = batch_of(input, "x_lab", s);
    given.attack_noise = adversarial && method.attacks_start_apart && input.batch.has("attack_noise");
    if (given.attack_noise && batch_of(input, "attack_noise", s) != given.labelled)
        throw InputError("Tensor attack_noise of " + input.batch_path +
                         " has other images than x_lab (it is where their attacks start). Give as many.");
    if (of_classes) {
        if (batch_of(input, "x_neg_lab_start", s) != given.labelled)
            throw InputError("Tensor x_neg_lab_start of " + input.batch_path +
                             " has other images than x_lab (it is one chain each). Give as many.");
        given.noise_lab = has_noise("noise_lab", given.labelled);
    }

    Memory memory(device);
    TrainingIteration iteration(device, memory, network, s, given);
    iteration.keep_logits(true);
    iteration.plan();
    memory.allocate();
    Parameters& parameters = iteration.parameters();
    parameters.load(input.checkpoint, input.checkpoint_path, other_tensors());
    if (s.optimizer == Optimizer::adam) {
        parameters.load_array(parameters.velocity(), input.checkpoint, "adam_m.");
        parameters.load_array(parameters.second(), input.checkpoint, "adam_v.");
    } else {
        parameters.load_array(parameters.velocity(), input.checkpoint, "velocity.");
    }
    if (s.ema > 0 && !parameters.load_array(parameters.average(), input.checkpoint, "ema."))
        device.copy(parameters.average().data, parameters.weights().data, parameters.weights().bytes());

    const auto upload_images = [&](Array to, const std::string& name) { upload_tensor(device, to, input.batch.floating(name)); };
    const auto upload_labels = [&](Array to, const std::string& name, const std::string& of) {
        if (!input.batch.has(name))
            throw InputError(input.batch_path + " has no tensor " + name + " (the labels of " + of + "). Add it as int64 [N].");
        const std::vector<int64_t> y = input.batch.ints(name);
        if (std::ssize(y) != to.count)
            throw InputError("Tensor " + name + " of " + input.batch_path + " has " + std::to_string(y.size()) + " labels (" + of +
                             " has " + std::to_string(to.count) + " images). Give one each.");
        for (const int64_t label : y)
            if (label < 0 || label >= s.num_classes)
                throw InputError("Tensor " + name + " of " + input.batch_path + " has label " + std::to_string(label) + " (0 to " +
                                 std::to_string(s.num_classes - 1) + " are allowed). Give --num-classes.");
        const std::vector<int32_t> labels(y.begin(), y.end());
        device.upload(to.data, labels.data(), labels.size() * sizeof(int32_t));
    };
    if (has_term(method, BatchOf::real)) {
        upload_images(iteration.real().images(), "x_pos");
        if (takes_labels(method, BatchOf::real)) upload_labels(iteration.real().labels(), "y_pos", "x_pos");
    }
    if (given.attack_noise) upload_images(iteration.attack_noise(), "attack_noise");
    if (s.generates()) {
        if (given.noise) upload_images(iteration.chain().noise(), "noise");
        if (iteration.chain().labels().count > 0) upload_labels(iteration.chain().labels(), "y_neg", "x_neg_start");
    }
    if (draws_labelled(method)) {
        upload_images(iteration.labelled().images(), "x_lab");
        upload_labels(iteration.labelled().labels(), "y", "x_lab");
    }
    if (of_classes) {
        if (iteration.chain(BatchOf::labelled_chain).labels().count > 0)
            upload_labels(iteration.chain(BatchOf::labelled_chain).labels(), "y", "x_neg_lab_start");
        if (given.noise_lab) upload_images(iteration.chain(BatchOf::labelled_chain).noise(), "noise_lab");
    }

    iteration.record();
    iteration.prepare_weights();
    const DType type = device.real_type();
    SafetensorsFile dump;
    // What lies on the device goes on changing, and ends with this call.
    const auto take = [&](const SafetensorsFile& on_device) {
        for (const auto& [name, tensor] : on_device.tensors)
            dump.tensors[name] = make_file_tensor(tensor.type, tensor.bytes(), tensor.shape);
    };
    const auto dump_gradient = [&](const std::string& prefix) {
        device.synchronize();
        SafetensorsFile gradient;
        parameters.save_array(parameters.gradient(), gradient, prefix);
        take(gradient);
    };
    const auto scalar = [&](const std::string& name, double value) { dump.tensors[name] = vector_tensor({value}, type, {1}); };

    std::map<std::string, std::vector<double>> curves;
    IterationState state;
    for (int64_t i = 0; i < input.iterations; ++i) {
        if (s.generates()) upload_images(iteration.chain().images(), "x_neg_start");
        if (of_classes) upload_images(iteration.chain(BatchOf::labelled_chain).images(), "x_neg_lab_start");
        iteration.begin(i, s.lr, input.optimizer_step + i);
        if (i == 0 && holds_unset_norms(input.checkpoint)) iteration.initialise_norms();
        for (const TrainingIteration::Phase& phase : iteration.phases()) {
            for (int64_t k = 0; k < phase.repeats; ++k) iteration.run(phase);
            if (phase.name == "perturb") dump_gradient("grad1.");
            if (phase.name == "second") dump_gradient("grad2.");
        }
        iteration.read_state(state);
        for (const char* name : {"f_pos", "f_neg", "loss_gen", "loss_clf"})
            curves[name + std::string("_curve")].push_back(iteration.scalars().value(state, name));
        curves["grad_norm_curve"].push_back(state.grad_norm);
    }

    SafetensorsFile results;
    const auto scalars = [&](std::initializer_list<const char*> names) {  // those that somebody writes
        for (const char* name : names)
            if (iteration.scalars().has(name)) scalar(name, iteration.scalars().value(state, name));
    };
    if (s.generates()) {
        results.tensors["x_neg"] =
            tensor_on(device, iteration.chain().images(), {given.negative, s.in_channels, s.image_size, s.image_size});
        scalars({"f_pos", "f_neg", "loss_gen"});
    }
    if (of_classes) {
        results.tensors["x_neg_lab"] = tensor_on(device, iteration.chain(BatchOf::labelled_chain).images(),
                                                 {given.labelled, s.in_channels, s.image_size, s.image_size});
        scalars({"f_pos_lab", "f_neg_lab", "loss_joint"});
    }
    scalars({"loss_clf"});
    if (keeps_logits(BatchOf::labelled))
        results.tensors["logits_lab"] = tensor_on(device, iteration.kept_logits(), {given.labelled, s.num_classes});
    if (adversarial) {
        results.tensors["x_adv"] =
            tensor_on(device, iteration.chain(BatchOf::adversarial).images(), {given.labelled, s.in_channels, s.image_size, s.image_size});
        if (keeps_logits(BatchOf::adversarial))
            results.tensors["logits_adv"] = tensor_on(device, iteration.kept_logits(BatchOf::adversarial), {given.labelled, s.num_classes});
        scalars({"f_adv", "loss_adv", "loss_adv_clf"});
    }
    scalar("grad_norm", state.grad_norm);
    parameters.save_array(parameters.weights(), results, "param.");
    parameters.save_statistics(results, "running.");
    take(results);
    // What takes no part: its gradient is zero and it stays as it is.
    for (const auto& [name, tensor] : input.checkpoint.tensors) {
        if (!starts_with_any(name, network.idle_prefixes())) continue;
        dump.tensors["param." + name] = vector_tensor(input.checkpoint.doubles(name), type, tensor.shape);
        const std::vector<double> zeros(static_cast<size_t>(tensor.num_elements()));
        dump.tensors["grad1." + name] = vector_tensor(zeros, type, tensor.shape);
        if (s.sam != SamForm::none) dump.tensors["grad2." + name] = vector_tensor(zeros, type, tensor.shape);
    }
    if (input.iterations > 1)
        for (const auto& [name, values] : curves) dump.tensors[name] = vector_tensor(values, type, {input.iterations});
    if (state.diverged != 0) dump.metadata["diverged"] = "true";
    return dump;
}

}  // namespace jem
