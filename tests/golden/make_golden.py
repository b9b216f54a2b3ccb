"""Golden files of one training iteration, computed in f64 by PyTorch's autograd.

The files in this folder were made by

    python3 tests/golden/make_golden.py --out tests/golden

(needs torch, numpy and safetensors; one core, some ten seconds). `--case NAME` makes one of them, `--search` looks for new seeds
from 1 upwards in place of the table's, `--compare-f32` prints how far PyTorch's own f32 is from its f64 on the same inputs.

Inputs are not stored: they come from a formula (`uniforms`, `make_inputs`) that the C++ test repeats. All are rounded to f32, so that
an f32 and an f64 engine get identical numbers. Gradients, parameters and statistics are stored as probes (`probe`), the rest in full.

Seeds are chosen so that rounding cannot decide anything (kink-free): no LeakyReLU input of any forward of the iteration is nearer
to 0 than kink_margin of its layer's rms, and PyTorch's f32 has the same sign at every one of them. Where the sign of a gradient decides
(ASAM's sup-norm form, Adam's first step), no entry of that gradient is nearer to 0 than kSignMargin of its tensor's rms, either.
The clamps of gradient and pixels are continuous and need no such care.
"""

import argparse
import hashlib
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

kSlope = 0.2
kBatchNormEps = 1e-5
kBatchNormMomentum = 0.9
kSamEps = 1e-12
kClipEps = 1e-6
kHeadGain = 2.0
kProbeSamples = 48
# f32 moves a gradient's entries by up to 5e-5 of the tensor's rms (the small ones by less), so a margin like 1e-9 would leave signs to its
# rounding. Several of a net's 77,000 entries are usually nearer than this: one seed in some hundred to some thousand passes.
kSignMargin = 5e-5
# How far PyTorch's f32 may be from its f64 (`compare`) at a seed that a search finds: half of what the tests allow an engine.
kReach = {"logits": 2e-6, "x_neg": 2e-5, "x_neg_lab": 2e-5, "x_adv": 2e-5, "grad1": 4e-5, "grad2": 4e-5, "param": 5e-6, "running": 4e-6}
kZeroGradientNoise = 1e-12  # what f64 may leave of a conv bias's gradient, against its weight's gradient

kDefaults = dict(
    depth=10, width=1, norm="batch", in_channels=3, image_size=8, num_classes=10, n_pos=2, n_neg=3, n_lab=4,
    sgld_steps=5, sgld_step_size=1.0, sgld_noise=0.0, sgld_grad_clamp=1.0, sgld_pixel_clamp=True,
    sam="sam", rho=0.2, p_x_weight=1.0, p_y_given_x_weight=1.0, energy_l2=0.0,
    optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, iterations=1, kink_free=True,
    kink_margin=1e-5)  # f32 moves activations by some 1e-6 of their rms

# name -> what differs from kDefaults. A seed belongs to the settings beside it; change one and search anew.
# curve: small lr and no batch of one image, else f32 itself leaves f64's path within ten iterations.
# four_groups has 4 million LeakyReLU inputs, always some at 0: it stores only what a flipped sign hardly moves.
kCases = {
    "sam": dict(seed=19),
    "sam_k1": dict(seed=8, sgld_steps=1, sgld_step_size=10.0, sgld_grad_clamp=0.03),
    "sam_k0": dict(seed=3, sgld_steps=0),
    "clamps": dict(seed=21, sgld_step_size=10.0, sgld_grad_clamp=0.02),
    "no_clamps": dict(seed=26, sgld_step_size=10.0, sgld_grad_clamp=0.0, sgld_pixel_clamp=False),
    "norm_none": dict(seed=1, norm="none", sgld_step_size=50.0),
    "no_sam": dict(seed=3, sam="none", sgld_step_size=4.0, weight_decay=0.02),
    "asam": dict(seed=26, sam="asam", rho=2.0),
    "asam_sign": dict(seed=1460, sam="asam-sign", rho=0.1, sgld_steps=1, n_pos=2, n_neg=2, n_lab=2),
    "wide_odd": dict(seed=10, width=2, in_channels=1, num_classes=7, image_size=10, n_pos=1, n_neg=2, n_lab=2, sgld_steps=2,
                     sgld_step_size=4.0),
    "deep": dict(seed=1, depth=16, n_pos=2, n_neg=2, n_lab=3, sgld_steps=3, sgld_step_size=4.0),
    "weights_l2": dict(seed=11, p_x_weight=0.7, p_y_given_x_weight=1.3, energy_l2=0.05),
    "noise": dict(seed=8, sgld_noise=0.01),
    "adam": dict(seed=179, optimizer="adam", lr=1e-3, sam="none", sgld_steps=1, n_pos=2, n_neg=2, n_lab=2),
    "softmax_sam": dict(seed=1, p_x_weight=0.0, sgld_steps=0),
    "px_only": dict(seed=3, p_y_given_x_weight=0.0, sgld_steps=3, sgld_step_size=4.0),
    "energy_head": dict(seed=3, energy_head="linear", p_x_weight=0.8, energy_l2=0.05, sgld_steps=3, sgld_step_size=4.0),
    "four_groups": dict(seed=1, image_size=64, n_pos=1, n_neg=1, n_lab=2, sgld_steps=1, sgld_step_size=50.0,
                        kink_free=False),
    "curve": dict(seed=453, iterations=10, lr=0.002, n_pos=2, n_neg=2, n_lab=2, sgld_steps=2, sgld_step_size=4.0, kink_margin=5e-6),
}


def fnv1a64(name):
    value = 0xCBF29CE484222325
    for byte in name.encode("utf-8"):
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def splitmix64(z):
    """Element-wise on a uint64 array, modulo 2^64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed, name, count):
    """u(seed, name, e) for e < count: in [0, 1), multiples of 2^-53."""
    base = splitmix64(np.array([seed ^ fnv1a64(name)], dtype=np.uint64))
    bits = splitmix64(base + np.arange(count, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def signed(seed, name, count):
    return 2.0 * uniforms(seed, name, count) - 1.0


def has_energy_head(config):
    return config.get("energy_head", "lse") == "linear"


def layers(config):
    """The net as a list of (kind, name, shape...), in the order of the forward pass. conv: (out, in, kernel); bn: (channels,)."""
    blocks = (config["depth"] - 4) // 6
    found = [("conv", "f.conv1", 16, config["in_channels"], 3)]
    width_in = 16
    for group in range(4 if config["image_size"] >= 64 else 3):
        width_out = 16 * config["width"] * 2**group
        for block in range(blocks):
            name = f"f.layer{group + 1}.{block}"
            strided = group > 0 and block == 0
            found += [("bn", name + ".bn1", width_in), ("conv", name + ".conv1", width_out, width_in, 3),
                      ("bn", name + ".bn2", width_out), ("conv", name + ".conv2", width_out, width_out, 3)]
            if strided or width_in != width_out:
                found.append(("conv", name + ".shortcut.0", width_out, width_in, 1))
            width_in = width_out
    found += [("bn", "f.bn1", width_in), ("linear", "class_output", config["num_classes"], width_in)]
    if has_energy_head(config):
        found.append(("linear", "energy_output", 1, width_in))
    return [layer for layer in found if layer[0] != "bn" or config["norm"] != "none"]


def rounded(values, shape):
    return values.astype(np.float32).astype(np.float64).reshape(shape)


def make_images(config, seed, name, *counts, gain=0.9):
    shape = (*counts, config["in_channels"], config["image_size"], config["image_size"])
    return rounded(gain * signed(seed, name, math.prod(shape)), shape)


def make_noise(config, seed, name, count):
    return make_images(config, seed, name, config["sgld_steps"], count, gain=math.sqrt(3.0))


def make_labels(config, seed, name, count):
    return np.floor(uniforms(seed, name, count) * config["num_classes"]).astype(np.int64)


def make_inputs(config, seed):
    """Parameters, running statistics and batch as f64 arrays that hold f32 values; y as int64."""
    params, running = {}, {}
    for kind, name, *shape in layers(config):
        if kind == "bn":
            n = shape[0]
            scale, shift, form = (".scale", ".loc", (1, n, 1, 1)) if config["norm"] == "act" else (".weight", ".bias", n)
            params[name + scale] = rounded(0.5 + uniforms(seed, name + scale, n), form)
            params[name + shift] = rounded(0.3 * signed(seed, name + shift, n), form)
            if config["norm"] == "batch":
                running[name + ".running_mean"] = rounded(0.2 * signed(seed, name + ".running_mean", n), n)
                running[name + ".running_var"] = rounded(0.5 + uniforms(seed, name + ".running_var", n), n)
            continue
        full = (shape[0], shape[1], shape[2], shape[2]) if kind == "conv" else tuple(shape)
        fan_in = math.prod(full[1:])
        gain = kHeadGain if kind == "linear" else 1.0
        params[name + ".weight"] = rounded(gain * signed(seed, name + ".weight", math.prod(full)) / math.sqrt(fan_in), full)
        params[name + ".bias"] = rounded(gain * signed(seed, name + ".bias", full[0]) / math.sqrt(fan_in), full[0])
    return params, running, make_batch(config, seed)


def make_batch(config, seed):
    batch = {}
    for name, count in (("x_pos", config["n_pos"]), ("x_neg_start", config["n_neg"]), ("x_lab", config["n_lab"])):
        batch[name] = make_images(config, seed, name, count)
    batch["y"] = make_labels(config, seed, "y", config["n_lab"])
    if config["sgld_noise"] > 0:
        batch["noise"] = make_noise(config, seed, "noise", config["n_neg"])
    return batch


class Kink(Exception):
    """A value so close to 0 that rounding may choose its sign."""


class Watch:
    """Sees every LeakyReLU input: its distance from 0 and its signs."""

    def __init__(self, margin):
        self.margin = margin
        self.nearest = math.inf
        self.signs = hashlib.sha256()

    def look(self, z):
        z = z.detach()
        nearest = float(z.abs().min() / z.square().mean().sqrt())
        self.nearest = min(self.nearest, nearest)
        if nearest < self.margin:
            raise Kink(f"LeakyReLU input at {nearest:.1e} of its layer's rms")
        self.signs.update(np.packbits((z > 0).numpy()).tobytes())

    def look_at_signs(self, grads, what):
        """Of gradients whose every sign is a step."""
        if self.margin > 0:
            check_signs(grads, what)
        for g in grads.values():
            self.signs.update(np.packbits((g > 0).numpy()).tobytes())


class Net:
    def __init__(self, config, params, running, dtype, watch):
        self.config = config
        self.watch = watch
        self.params = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in params.items()}
        self.running = {name: torch.tensor(value, dtype=dtype) for name, value in running.items()}
        self.update_running = True

    def conv(self, name, x, stride=1):
        weight = self.params[name + ".weight"]
        return F.conv2d(x, weight, self.params[name + ".bias"], stride=stride, padding=weight.shape[-1] // 2)

    def activate(self, name, x):
        """Batch norm with batch statistics, then LeakyReLU."""
        if self.config["norm"] == "batch":
            mean = self.running[name + ".running_mean"] if self.update_running else None
            var = self.running[name + ".running_var"] if self.update_running else None
            x = F.batch_norm(x, mean, var, self.params[name + ".weight"], self.params[name + ".bias"], training=True,
                             momentum=kBatchNormMomentum, eps=kBatchNormEps)
        self.watch.look(x)
        return F.leaky_relu(x, kSlope)

    def features(self, x):
        return self.features_of_stem(self.conv("f.conv1", x))

    def features_of_stem(self, x):
        """What follows the first convolution."""
        for group in range(4 if self.config["image_size"] >= 64 else 3):
            for block in range((self.config["depth"] - 4) // 6):
                name = f"f.layer{group + 1}.{block}"
                stride = 2 if group > 0 and block == 0 else 1
                y = self.conv(name + ".conv1", self.activate(name + ".bn1", x))
                y = self.conv(name + ".conv2", self.activate(name + ".bn2", y), stride)
                shortcut = name + ".shortcut.0"
                x = y + (self.conv(shortcut, x, stride) if shortcut + ".weight" in self.params else x)
        return self.activate("f.bn1", x).mean(dim=(2, 3))

    def logits(self, x):
        return F.linear(self.features(x), self.params["class_output.weight"], self.params["class_output.bias"])

    def lse(self, x):
        """Minus the energy: of the classes' logits, or of a unit of its own."""
        if has_energy_head(self.config):
            return F.linear(self.features(x), self.params["energy_output.weight"], self.params["energy_output.bias"]).squeeze(1)
        return torch.logsumexp(self.logits(x), dim=1)

    def is_zero_gradient(self, name):
        """Every conv bias where norms use batch statistics: a channel's constant never reaches the output."""
        return self.config["norm"] == "batch" and name.endswith(".bias") and self.params[name[:-4] + "weight"].dim() == 4

    def gradients(self, loss):
        """d loss / d parameters that it depends on, with exact zeros in place of the rounding noise of the conv biases."""
        grads = dict(zip(self.params, torch.autograd.grad(loss, list(self.params.values()), allow_unused=True)))
        grads = {name: g for name, g in grads.items() if g is not None}
        for name in grads:
            if self.is_zero_gradient(name):
                noise = grads[name].norm() / grads[name[:-4] + "weight"].norm()
                assert grads[name].dtype != torch.float64 or noise < kZeroGradientNoise, f"{name}: gradient {noise:.1e}, not 0"
                grads[name] = torch.zeros_like(grads[name])
        return grads


def sgld(net, batch, diagnostics):
    config = net.config
    x = batch["x_neg_start"].clone()
    for step in range(config["sgld_steps"]):
        x.requires_grad_(True)
        (g,) = torch.autograd.grad(net.lse(x).sum(), x)
        x = x.detach()
        if config["sgld_grad_clamp"] > 0:
            diagnostics["clamped_gradients"] = float((g.abs() > config["sgld_grad_clamp"]).double().mean())
            g = g.clamp(-config["sgld_grad_clamp"], config["sgld_grad_clamp"])
        x = x + config["sgld_step_size"] * g
        if config["sgld_noise"] > 0:
            x = x + config["sgld_noise"] * batch["noise"][step]
        if config["sgld_pixel_clamp"]:
            diagnostics["clamped_pixels"] = float((x.abs() > 1).double().mean())
            x = x.clamp(-1, 1)
    diagnostics["x_moved_rms"] = float((x - batch["x_neg_start"]).square().mean().sqrt())
    return x


def losses(net, batch, values):
    """The weighted loss. Forwards run in the order x+, SGLD (unless x_neg is there already), x-, x_lab; terms go to `values`."""
    config = net.config
    total = 0.0
    if config["p_x_weight"] != 0:
        f_pos = net.lse(batch["x_pos"]).mean()
        if "x_neg" not in batch:
            batch["x_neg"] = sgld(net, batch, values.setdefault("diagnostics", {}))
        f_neg = net.lse(batch["x_neg"]).mean()
        loss_gen = f_neg - f_pos + config["energy_l2"] * (f_pos.square() + f_neg.square())
        total = total + config["p_x_weight"] * loss_gen
        values.update(f_pos=f_pos.detach(), f_neg=f_neg.detach(), loss_gen=loss_gen.detach(), x_neg=batch["x_neg"])
    if config["p_y_given_x_weight"] != 0:
        logits = net.logits(batch["x_lab"])
        loss_clf = F.cross_entropy(logits, batch["y"])
        total = total + config["p_y_given_x_weight"] * loss_clf
        values.update(loss_clf=loss_clf.detach(), logits_lab=logits.detach())
    return total


def perturbation(config, params, grads):
    rho = config["rho"]
    if config["sam"] == "asam-sign":
        return {name: rho * params[name].abs() * grads[name].sign() for name in grads}
    scale = {name: params[name].square() if config["sam"] == "asam" else 1.0 for name in grads}
    weighted = [(params[name].abs() if config["sam"] == "asam" else 1.0) * grads[name] for name in grads]
    norm = torch.sqrt(sum(g.square().sum() for g in weighted))
    return {name: rho * scale[name] * grads[name] / (norm + kSamEps) for name in grads}


def check_signs(grads, what):
    """Entries of a gradient whose sign decides must not be near 0. Gradients that are exactly 0 have no sign to lose."""
    for name, g in grads.items():
        rms = g.square().mean().sqrt()
        if rms > 0 and g.abs().min() < kSignMargin * rms:
            raise Kink(f"{what} of {name} near 0")


def steps_by_sign(config):
    """Adam's first step does, where moments of earlier ones are not given."""
    return config["optimizer"] == "adam" and config.get("optimizer_step", 0) == 0


def norm_of(grads):
    return torch.sqrt(sum(g.square().sum() for g in grads.values()))


def iterate(net, optimizer, batch, careful, losses):
    """One iteration; returns the dump's values, grads by name under "grad1" and "grad2"."""
    config = net.config
    batch = dict(batch)  # x_neg belongs to this iteration
    values = {}
    net.update_running = True
    grad1 = net.gradients(losses(net, batch, values))
    values["grad1"] = grad1
    values["grad_norm"] = norm_of(grad1)
    grad = grad1
    if config["sam"] != "none":
        if careful and config["sam"] == "asam-sign":
            check_signs(grad1, "first gradient")
        with torch.no_grad():
            kept = {name: p.clone() for name, p in net.params.items()}
            for name, e in perturbation(config, kept, grad1).items():
                net.params[name] += e
        net.update_running = False
        grad = net.gradients(losses(net, batch, {}))
        values["grad2"] = grad
        with torch.no_grad():
            for name, p in net.params.items():
                p.copy_(kept[name])
    if careful and steps_by_sign(config):
        check_signs({name: g + config["weight_decay"] * net.params[name].detach() for name, g in grad.items() if g.abs().max() > 0},
                    "decayed gradient")
    factor = 1.0
    if config.get("gradient_clip", 0.0) > 0:
        factor = float((config["gradient_clip"] / (norm_of(grad) + kClipEps)).clamp(max=1.0))
        values.setdefault("diagnostics", {})["clip"] = factor
    for name, p in net.params.items():
        p.grad = factor * grad[name] if name in grad else None
    optimizer.step()
    return values


def make_optimizer(config, net, inputs):
    tensors = list(net.params.values())
    if config["optimizer"] == "adam":
        return torch.optim.Adam(tensors, lr=config["lr"], weight_decay=config["weight_decay"])
    return torch.optim.SGD(tensors, lr=config["lr"], momentum=config["momentum"], weight_decay=config["weight_decay"],
                           nesterov=config.get("recipe") == "dat")


def simulate(config, seed, dtype, careful, make_inputs=make_inputs, net_of=Net, losses=losses, make_optimizer=make_optimizer):
    """All iterations of a case. `careful`: raises Kink where rounding could decide something."""
    params, running, arrays = make_inputs(config, seed)
    watch = Watch(config["kink_margin"] if careful else 0.0)
    net = net_of(config, params, running, dtype, watch)
    batch = {name: torch.tensor(value, dtype=dtype if value.dtype == np.float64 else None) for name, value in arrays.items()}
    optimizer = make_optimizer(config, net, batch)
    history = [iterate(net, optimizer, batch, careful, losses) for _ in range(config["iterations"])]
    return net, watch, history


_probe_signs = np.zeros(0)


def probe(tensor):
    """[L2 norm, sum of v[e] * (2 u(0, "probe", e) - 1), then v[i * (n / count)] for i < count = min(n, kProbeSamples)], file order."""
    global _probe_signs
    v = tensor.detach().double().contiguous().numpy().ravel()
    if v.size > _probe_signs.size:
        _probe_signs = signed(0, "probe", v.size)
    count = min(v.size, kProbeSamples)
    samples = v[:: v.size // count][:count]
    return np.concatenate([[np.sqrt(np.sum(v * v)), np.sum(v * _probe_signs[: v.size])], samples])


# By the names of the dump; a case has those of its terms.
kScalars = ("f_pos", "f_neg", "loss_gen", "loss_clf", "grad_norm", "f_pos_lab", "f_neg_lab", "loss_joint", "f_adv", "loss_adv",
            "loss_adv_clf")
kImages = ("x_neg", "x_neg_lab", "x_adv")
kLogits = ("logits_lab", "logits_adv")


def stored_tensors(config, net, history):
    """Name -> f64 array."""
    stored = {}
    for name in kScalars:
        if name in history[0]:
            stored[name] = np.array([float(values[name]) for values in history])
    once = config["iterations"] == 1
    for name in (*kImages, *kLogits):
        if once and name in history[0] and (config["kink_free"] or name in kLogits):
            stored[name] = history[0][name].double().contiguous().numpy()
    if once and config["kink_free"]:
        for kind in ("grad1", "grad2"):
            for name, g in history[0].get(kind, {}).items():
                stored[f"{kind}.{name}"] = probe(g)
    if once and not config["kink_free"]:
        del stored["grad_norm"]
    else:
        stored.update({f"param.{name}": probe(p) for name, p in net.params.items()})
    stored.update({f"running.{name}": probe(r) for name, r in net.running.items()})
    return stored


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


def farthest(got, want, scale):
    return float((got.double() - want.double()).abs().max()) / scale if scale > 0 else 0.0


def compare(single, double):
    """Kind -> the largest difference of the f32 run. Tensors against their own rms, x in pixels' units, scalars against max(1, |.|)."""
    net32, _, history32 = single
    net64, _, history64 = double
    worst = {}

    def note(kind, value):
        worst[kind] = max(worst.get(kind, 0.0), value)

    for got, want in zip(history32, history64):
        for name in kScalars:
            if name in want:
                note(name, abs(float(got[name]) - float(want[name])) / max(1.0, abs(float(want[name]))))
    got, want = history32[-1], history64[-1]
    for name in kImages:
        if name in want:
            note(name, farthest(got[name], want[name], 1.0))
    for name in kLogits:
        if name in want:
            note("logits", farthest(got[name], want[name], rms(want[name])))
    for kind in ("grad1", "grad2"):
        for name, g in want.get(kind, {}).items():
            note(kind, farthest(got[kind][name], g, rms(g)))
            p32, p64 = probe(got[kind][name]), probe(g)
            if p64[0] > 0:
                note(kind + " norm", abs(p32[0] - p64[0]) / p64[0])
                note(kind + " dot", abs(p32[1] - p64[1]) / p64[0])
    for name, p in net64.params.items():
        note("param", farthest(net32.params[name].detach(), p.detach(), rms(p.detach())))
    for name, r in net64.running.items():
        note("running", farthest(net32.running[name], r, rms(r)))
    return worst


def same_signs(config, single, double):
    """Whether f32 took every decision as f64 did."""
    if single[1].signs.digest() != double[1].signs.digest():
        return False
    deciding = []
    if config["sam"] == "asam-sign":
        deciding.append("grad1")
    if steps_by_sign(config):
        deciding.append("grad2" if config["sam"] != "none" else "grad1")
    return all(torch.equal(g.sign(), single[2][0][kind][name].sign().double())
               for kind in deciding for name, g in double[2][0][kind].items())


def in_reach(worst):
    """Of `compare`'s differences."""
    return all(worst.get(kind, 0.0) <= reach for kind, reach in kReach.items())


def find_seed(simulate, config, first, tries):
    for seed in range(first, first + tries):
        try:
            double = simulate(config, seed, torch.float64, careful=True)
        except Kink:
            continue
        single = simulate(config, seed, torch.float32, careful=False)
        if same_signs(config, single, double) and (config["iterations"] > 1 or in_reach(compare(single, double))):
            return seed
    raise SystemExit(f"no kink-free seed in {first}..{first + tries - 1} (rounding could decide in each). Make the case smaller.")


def all_cases():
    return {name: {**kDefaults, **case} for name, case in kCases.items()}


def main(doc, cases, simulate):
    """The command line of a script that makes files of `cases`, name -> config, by its own `simulate`."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--out", help="folder for <case>.safetensors; nothing is written without it")
    parser.add_argument("--case", action="append", choices=list(cases), help="only this one; may be given again")
    parser.add_argument("--search", action="store_true", help="look for the first seed that will do, in place of the table's")
    parser.add_argument("--tries", type=int, default=4000, help="seeds to try with --search")
    parser.add_argument("--compare-f32", action="store_true", help="print PyTorch's f32 against its f64")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.out:
        os.makedirs(args.out, exist_ok=True)

    comparisons = {}
    for case in args.case or cases:
        config = {**cases[case], "has_noise": cases[case]["sgld_noise"] > 0}
        if args.search and config["kink_free"]:
            config["seed"] = find_seed(simulate, config, 1, args.tries)
        try:
            double = simulate(config, config["seed"], torch.float64, careful=config["kink_free"])
        except Kink as kink:
            raise SystemExit(f"{case}: seed {config['seed']} is not kink-free ({kink}). "
                             "Run with --search and put the seed it prints into the table.")
        if config["kink_free"] or args.compare_f32:
            single = simulate(config, config["seed"], torch.float32, careful=False)
            if config["kink_free"] and not same_signs(config, single, double):
                raise SystemExit(f"{case}: f32 decides otherwise than f64 at seed {config['seed']}. Run with --search.")
            comparisons[case] = compare(single, double)
        net, watch, history = double
        stored = stored_tensors(config, net, history)
        size = sum(value.nbytes for value in stored.values())
        if args.out:
            path = os.path.join(args.out, case + ".safetensors")
            save_file(stored, path, metadata={"config": json.dumps(config, sort_keys=True)})
            os.chmod(path, 0o644)
            size = os.path.getsize(path)
        diagnostics = " ".join(f"{name}={value:.2g}" for name, value in history[0].get("diagnostics", {}).items())
        print(f"{case}: seed {config['seed']}, nearest kink {watch.nearest:.1e}, {len(stored)} tensors, {size} bytes, "
              f"grad_norm {float(history[0]['grad_norm']):.3g} {diagnostics}", flush=True)

    if args.compare_f32:
        kinds = list(dict.fromkeys(kind for worst in comparisons.values() for kind in worst))
        print("\n| case | " + " | ".join(kinds) + " |\n|---" + "|---" * len(kinds) + "|")
        for case, worst in comparisons.items():
            print(f"| {case} | " + " | ".join(f"{worst[kind]:.1e}" if kind in worst else "" for kind in kinds) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(__doc__, all_cases(), simulate))
