// Exactly one training iteration on given tensors, with everything of interest laid open.
#pragma once

#include <cstdint>
#include <string>

#include "engine/files/safetensors.h"
#include "engine/network/network.h"
#include "engine/settings/settings.h"

namespace jem {

struct StepInput {
    const SafetensorsFile& checkpoint;  // weights, statistics; optionally velocity.<name>, or adam_m.<name> and adam_v.<name>
    std::string checkpoint_path;
    const SafetensorsFile& batch;  // x_pos, x_neg_start [N,C,H,W], x_lab [N,C,H,W], y i64 [N]; optionally noise [K,N,C,H,W]
    std::string batch_path;
    int64_t optimizer_step = 0;  // steps made before this one (Adam's bias correction)
    int64_t iterations = 1;      // on the same batch; the dump is of the last one
};

// The dump: x_neg, f_pos, f_neg, loss_gen, loss_clf, logits_lab, grad1.<name>, grad2.<name> (with SAM), grad_norm,
// param.<name>, running.<name>. f32, or f64 where the device computes in it. With several iterations also the curves
// f_pos_curve, f_neg_curve, loss_gen_curve, loss_clf_curve, grad_norm_curve [iterations].
// settings.lr is used as it is. Throws InputError for tensors that are missing or do not fit the settings.
SafetensorsFile run_step(Device& device, Network& network, const Settings& settings, const StepInput& input);

}  // namespace jem
