"""Golden files of one training iteration of every member of the family of methods, computed in f64 by PyTorch's autograd.

The files in family/ were made by

    python3 tests/golden/make_family.py --out tests/golden/family

(needs torch, numpy and safetensors; one core, a few seconds). Options, inputs by formula, seeds free of kinks and the form of the
files are make_golden.py's. A file's config names the recipe, and every setting that the case relies on by the engine's key.

Where an attack steps along the signs of its gradient, a seed is one whose signs rounding cannot turn either. What JEM++ does in its inner
steps is done here step by step through the first convolution, with the pixel clamp after each.

Cases of the network igebm: every other block has second convolutions large enough for the cap of their spectral norm, and none is near
it. Their Adam goes on from adam_v.<name>, by formula like the rest, and adam_m.<name> = 0, after optimizer_step steps.
"""

import contextlib
import functools
import math
import sys

import torch
import torch.nn.functional as F

import make_golden as golden

kUnitEps = 1e-10  # of g / (|g| + eps)
kActInitEps = 1e-6
kPixelRange = 2.0 / 255.0  # what attacks are measured in
kUnitVectorEps = 1e-12  # of a / (|a| + eps) in the spectral norm
kCapEps = 1e-6  # of s = sigma + eps
kCapMargin = 0.1  # how far s has to be from 1, where the cap has no derivative
kCapGain = 4.0  # of the second convolutions that are to be capped
kAdamBeta2 = 0.999
kClampFloor = 0.1  # of Adam's clamp
kSecondMoment = 1e-5

kCommon = dict(
    depth=10, width=1, norm="batch", in_channels=3, image_size=8, num_classes=10, energy_head="lse", n_pos=2, n_neg=3, n_lab=4,
    sgld_steps=3, sgld_step_size=4.0, sgld_noise=0.0, sgld_grad_clamp=1.0, sgld_pixel_clamp=True, sampling_norm="batch",
    sam="none", rho=0.2, p_x_weight=1.0, p_y_given_x_weight=1.0, p_x_y_weight=0.0, energy_l2=0.0, energy_l2_form="mean",
    class_conditional="off", label_smoothing=0.0, gradient_clip=0.0,
    optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, iterations=1, kink_free=True, kink_margin=1e-5)

kAttack = dict(attack_objective="energy", attack_norm="linf", attack_eps=8.0, attack_steps=5, attack_step_size=2.0)

# What a recipe's cases have in common. The step sizes move x visibly on random nets.
kRecipes = {
    "softmax": dict(p_x_weight=0.0, sgld_steps=0),
    "sada-jem": dict(),
    "jem": dict(sampling_norm="running", sgld_noise=0.01, sgld_grad_clamp=0.0, sgld_pixel_clamp=False),
    "jem++": dict(weight_decay=4e-4, inner_steps=5, inner_step_size=0.2, outer_step_size=0.0),
    "m-jem": dict(energy_head="linear", energy_l2_form="m-jem", energy_l2=0.5, sgld_noise=0.001),
    "jeat": kAttack,
    "eb-jdat": dict(**kAttack, lr=0.01, attack_weight=0.1, attack_ce_weight=1.0),
    "dat": dict(lr=0.001, sampling_norm="running", sgld_step_size=0.2, sgld_grad_clamp=0.0, attack_objective="ce", attack_norm="l2",
                attack_eps=127.5, attack_steps=6, attack_step_size=25.5),
    "igebm": dict(network="igebm", spectral_norm=True, depth=14, norm="none", sgld_steps=2, sgld_noise=0.01, sgld_noise_first=True,
                  sgld_step_size=40.0, sgld_grad_clamp=0.005, energy_l2=1.0, energy_l2_form="image", p_y_given_x_weight=0.0, n_lab=2,
                  weight_decay=0.0),
}

kIgebmAdam = dict(optimizer="adam", lr=1e-3, adam_beta1=0.0, optimizer_step=10)

# name -> recipe, seed, what differs from kCommon and the recipe's. A seed belongs to the settings beside it; change one and search anew.
# joint_only: its gradient of class_output.bias is exactly 0, of sums that a power of two as the number of images keeps exact.
# igebm: its weight lifts one in fifty of the gradient's values over adam_clamp. igebm_unconditional: its last maps are 2x2, so that a sum
# over space is not its mean; the others' are 1x1.
kCases = {
    "jem": dict(recipe="jem", seed=28089, norm="none", sgld_steps=2, sgld_step_size=50.0, optimizer="adam", lr=1e-4, weight_decay=0.0,
                n_neg=2, n_lab=2),
    "jem_batch": dict(recipe="jem", seed=1, norm="batch"),
    "jempp": dict(recipe="jem++", seed=11),
    "jempp_clamps": dict(recipe="jem++", seed=10, inner_step_size=5.0, sgld_grad_clamp=0.02),
    "jempp_outer": dict(recipe="jem++", seed=8, inner_steps=2, outer_step_size=0.1),
    "jempp_sam": dict(recipe="jem++", seed=3, sam="sam", inner_step_size=1.0),
    "m_jem": dict(recipe="m-jem", seed=8),
    "m_ebm": dict(recipe="m-jem", seed=3, sgld_steps=2, sgld_noise=0.0, energy_l2=0.1, p_y_given_x_weight=0.0),
    "class_chain": dict(recipe="jem", seed=1, class_conditional="chain"),
    "class_loss": dict(recipe="sada-jem", seed=13, sam="sam", class_conditional="loss", energy_l2=0.05),
    "l2_image": dict(recipe="sada-jem", seed=3, sam="sam", p_x_weight=0.8, energy_l2=0.05, energy_l2_form="image"),
    "smoothing_clip": dict(recipe="sada-jem", seed=10, sam="sam", label_smoothing=0.1, gradient_clip=0.5),
    "joint": dict(recipe="jem", seed=1, p_x_y_weight=0.7),
    "joint_only": dict(recipe="jem", seed=7, p_x_weight=0.0, p_y_given_x_weight=0.0, p_x_y_weight=1.0),
    "jempp_joint": dict(recipe="jem++", seed=27, sam="sam", p_x_y_weight=0.7, inner_step_size=1.0, n_lab=2),
    "instance": dict(recipe="sada-jem", seed=32, norm="instance", sam="sam", image_size=12, sgld_steps=2, n_pos=1, n_neg=2, n_lab=2),
    "layer": dict(recipe="sada-jem", seed=14, norm="layer", sam="sam"),
    "act": dict(recipe="sada-jem", seed=2, norm="act", sam="sam", initialized=True),
    "act_init": dict(recipe="sada-jem", seed=1345, norm="act", sam="sam", act_init="first", initialized=False),
    "act_init_chain": dict(recipe="jem", seed=4, norm="act", act_init="first", initialized=False),
    "jeat": dict(recipe="jeat", seed=9, attack_eps=30.0, attack_step_size=10.0, n_lab=2),
    "jeat_ce_l2": dict(recipe="jeat", seed=3, sam="sam", sampling_norm="running", attack_objective="ce", attack_norm="l2", attack_eps=60.0,
                       attack_step_size=20.0, n_lab=2),
    "dat": dict(recipe="dat", seed=6, n_lab=2),
    "eb_jdat": dict(recipe="eb-jdat", seed=6, n_lab=2),
    "eb_jdat_authors": dict(recipe="eb-jdat", seed=10, sam="sam", attack_objective="authors", n_lab=2),
    "igebm": dict(recipe="igebm", seed=2, **kIgebmAdam, adam_clamp=3.0, class_conditional="loss", p_x_weight=10.0),
    "igebm_unconditional": dict(recipe="igebm", seed=10, **kIgebmAdam, adam_clamp=0.0, depth=20, image_size=16, energy_head="linear"),
    "igebm_sam": dict(recipe="igebm", seed=3, sam="sam", lr=0.01, p_y_given_x_weight=1.0),
}


def all_cases():
    cases = {name: {**kCommon, **kRecipes[case["recipe"]], **case} for name, case in kCases.items()}
    for config in cases.values():
        if config["recipe"] == "dat":
            del config["class_conditional"]  # its negatives ascend y_neg's logits whatever it says
    return cases


def is_igebm(config):
    return config.get("network") == "igebm"


def igebm_blocks(config):
    """(name, channels in, channels out, whether it halves) of each block."""
    per_width = (config["depth"] - 2) // 6
    widths = [16 * config["width"] * factor for factor in ((1, 2, 2) if per_width == 2 else (1, 2, 4)) for _ in range(per_width)]
    return [(f"f.block{i}", widths[max(i - 1, 0)], width, i % per_width == 0) for i, width in enumerate(widths)]


def igebm_parameters(config, seed):
    """As golden.make_inputs: parameters, and the spectral norm's vectors as running statistics."""
    params, running = {}, {}

    def weight(name, *shape, gain=1.0):
        name += ".weight"
        params[name] = golden.rounded(gain * golden.signed(seed, name, math.prod(shape)) / math.sqrt(math.prod(shape[1:])), shape)
        if len(shape) == 4:
            running[name + "_u"] = golden.rounded(math.sqrt(3.0) * golden.signed(seed, name + "_u", shape[0]), shape[0])

    def shift(name, n):
        params[name] = golden.rounded(0.3 * golden.signed(seed, name, n), n)

    blocks = igebm_blocks(config)
    weight("f.conv1", blocks[0][1], config["in_channels"], 3, 3)
    for i, (name, width_in, width_out, _) in enumerate(blocks):
        shift(name + ".shift1", width_in)
        weight(name + ".conv1", width_out, width_in, 3, 3)
        shift(name + ".shift2", width_out)
        weight(name + ".conv2", width_out, width_out, 3, 3, gain=kCapGain if i % 2 == 1 else 1.0)
        params[name + ".gain"] = golden.rounded(0.5 + golden.uniforms(seed, name + ".gain", width_out), width_out)
        if width_in != width_out:
            weight(name + ".shortcut", width_out, width_in, 3, 3)
    heads = [("class_output", config["num_classes"])] + [("energy_output", 1)] * golden.has_energy_head(config)
    for name, units in heads:
        weight(name, units, width_out, gain=golden.kHeadGain)
        params[name + ".bias"] = golden.rounded(golden.kHeadGain * golden.signed(seed, name + ".bias", units) / math.sqrt(width_out), units)
    return params, running


def make_inputs(config, seed):
    """make_golden.py's, with the classes of x+ and x-, the starts of the chain that has labels, and the attack's random start."""
    if is_igebm(config):
        params, running = igebm_parameters(config, seed)
        batch = golden.make_batch(config, seed)
    else:
        params, running, batch = golden.make_inputs(config, seed)
    if config.get("optimizer_step", 0) > 0:
        for name, value in params.items():
            adam_v = "adam_v." + name
            batch[adam_v] = golden.rounded(kSecondMoment * (0.5 + golden.uniforms(seed, adam_v, value.size)), value.shape)
    batch["y_pos"] = golden.make_labels(config, seed, "y_pos", config["n_pos"])
    batch["y_neg"] = golden.make_labels(config, seed, "y_neg", config["n_neg"])
    n_lab = config["n_lab"]
    if config["p_x_y_weight"] != 0:
        batch["x_neg_lab_start"] = golden.make_images(config, seed, "x_neg_lab_start", n_lab)
        if config["sgld_noise"] > 0:
            batch["noise_lab"] = golden.make_noise(config, seed, "noise_lab", n_lab)
    if "attack_steps" in config:
        batch["attack_noise"] = golden.make_images(config, seed, "attack_noise", n_lab, gain=1.0)
    return params, running, batch


def class_logit(logits, y):
    return logits.gather(1, y[:, None]).squeeze(1)


class Net(golden.Net):
    """With all norms, in training or evaluation mode."""

    def __init__(self, config, params, running, dtype, watch):
        super().__init__(config, params, running, dtype, watch)
        self.evaluates = config["recipe"] == "dat"
        self.uninitialized = set()
        if not config.get("initialized", True):
            self.uninitialized = {name[: -len(".loc")] for name in params if name.endswith(".loc")}

    def begin_pass(self, diagnostics):
        """Before the forwards whose loss is differentiated; with SAM also before those at the perturbed weights."""

    @contextlib.contextmanager
    def evaluating(self, evaluates):
        """Running statistics within, where `evaluates`."""
        kept, self.evaluates = self.evaluates, self.evaluates or evaluates
        yield
        self.evaluates = kept

    def normalise(self, name, x):
        norm = self.config["norm"]
        if norm == "none":
            return x
        if norm == "act":
            loc, scale = self.params[name + ".loc"], self.params[name + ".scale"]
            if name in self.uninitialized:
                self.uninitialized.remove(name)
                loc.data = -x.detach().mean(dim=(0, 2, 3), keepdim=True)
                scale.data = 1.0 / (x.detach().std(dim=(0, 2, 3), unbiased=True, keepdim=True) + kActInitEps)
            return scale * (x + loc)
        weight, bias, eps = self.params[name + ".weight"], self.params[name + ".bias"], golden.kBatchNormEps
        if norm == "instance":
            return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
        if norm == "layer":
            return F.group_norm(x, 1, weight, bias, eps)
        mean, var = self.running[name + ".running_mean"], self.running[name + ".running_var"]
        if self.evaluates:
            return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        if not self.update_running:
            mean, var = None, None
        return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=golden.kBatchNormMomentum, eps=eps)

    def activate(self, name, x):
        x = self.normalise(name, x)
        self.watch.look(x)
        return F.leaky_relu(x, golden.kSlope)

    def log_density_of_stem(self, stem, y=None):
        """Of each image, from the first convolution's output: f(x)[y] where there is y, else the head of its own or LSE."""
        features = self.features_of_stem(stem)
        if golden.has_energy_head(self.config):
            return F.linear(features, self.params["energy_output.weight"], self.params["energy_output.bias"]).squeeze(1)
        logits = F.linear(features, self.params["class_output.weight"], self.params["class_output.bias"])
        return torch.logsumexp(logits, dim=1) if y is None else class_logit(logits, y)

    def log_density(self, x, y=None):
        return self.log_density_of_stem(self.conv("f.conv1", x), y)

    def is_zero_gradient(self, name):
        """Every conv bias where norms use the batch's or the image's statistics."""
        centred = self.config["norm"] == "instance" or (self.config["norm"] == "batch" and not self.evaluates)
        return centred and name.endswith(".bias") and self.params[name[:-4] + "weight"].dim() == 4


def unit_vector(a):
    return a / (a.norm() + kUnitVectorEps)


class IgebmNet(Net):
    """Residual blocks with shifts and gains in place of norms and biases, under spectral norm."""

    def begin_pass(self, diagnostics):
        """One step of power iteration, from the iteration's u whatever the pass. Its weights serve all forwards of the pass."""
        if self.update_running:
            self.u_at_start = dict(self.running)
        self.weights = {}
        diagnostics["capped"] = 0
        for name, u in self.u_at_start.items():
            conv = name[: -len(".weight_u")]
            weight = self.params[conv + ".weight"]
            m = weight.flatten(1)
            with torch.no_grad():
                v = unit_vector(m.T @ u)
                self.running[name] = u = unit_vector(m @ v)
            sigma = u @ m @ v
            if not conv.endswith(".conv2"):
                self.weights[conv] = weight / sigma
                continue
            s = sigma + kCapEps
            if abs(s.item() - 1) < kCapMargin:
                raise golden.Kink(f"s of {conv} at {s.item():.3f}")
            diagnostics["capped"] += int(s > 1)
            self.weights[conv] = weight / s if s > 1 else weight

    def conv(self, name, x):
        return F.conv2d(x, self.weights[name], padding=1)

    def leaky(self, z):
        self.watch.look(z)
        return F.leaky_relu(z, golden.kSlope)

    def channels(self, name):
        return self.params[name][:, None, None]

    def features_of_stem(self, x):
        x = self.leaky(x)
        for name, width_in, width_out, halves in igebm_blocks(self.config):
            h = self.conv(name + ".conv1", x + self.channels(name + ".shift1"))
            z = self.channels(name + ".gain") * self.conv(name + ".conv2", self.leaky(h) + self.channels(name + ".shift2"))
            y = z + (self.conv(name + ".shortcut", x) if width_in != width_out else x)
            x = self.leaky(F.avg_pool2d(y, 2) if halves else y)
        return F.relu(x).sum(dim=(2, 3))


def net_of(config, *rest):
    return (IgebmNet if is_igebm(config) else Net)(config, *rest)


class IgebmAdam(torch.optim.Adam):
    """Goes on from adam_v.<name>. adam_clamp bounds each gradient value by the moment before the step."""

    def __init__(self, config, net, inputs):
        super().__init__(list(net.params.values()), lr=config["lr"], betas=(config["adam_beta1"], kAdamBeta2),
                         weight_decay=config["weight_decay"])
        self.clamp = config.get("adam_clamp", 0.0)
        for name, p in net.params.items():
            self.state[p] = dict(step=torch.tensor(float(config["optimizer_step"])), exp_avg=torch.zeros_like(p),
                                 exp_avg_sq=inputs["adam_v." + name].clone())

    def step(self):
        for p, state in self.state.items():
            if p.grad is not None and self.clamp > 0:
                bound = self.clamp * (state["exp_avg_sq"] / (1 - kAdamBeta2 ** float(state["step"]))).sqrt() + kClampFloor
                p.grad = p.grad.clamp(-bound, bound)
        super().step()


def make_optimizer(config, net, inputs):
    return (IgebmAdam if config.get("optimizer_step", 0) > 0 else golden.make_optimizer)(config, net, inputs)


def unit(g):
    """Along each image's gradient."""
    return g / (g.flatten(1).norm(dim=1)[:, None, None, None] + kUnitEps)


def clamped(g, limit):
    return g.clamp(-limit, limit) if limit > 0 else g


def inner_steps(net, x, g, p):
    """JEM++: on from x, where LSE's gradient is g, and p at the first convolution's output."""
    config = net.config
    limit = config["sgld_grad_clamp"]
    if config["outer_step_size"] > 0:
        x = (x + config["outer_step_size"] * clamped(g, limit)).clamp(-1, 1)
    for _ in range(config["inner_steps"]):
        x.requires_grad_(True)
        (direction,) = torch.autograd.grad((net.conv("f.conv1", x) * p).sum(), x)
        x = (x.detach() + config["inner_step_size"] * clamped(direction, limit)).clamp(-1, 1)
    return x


def chain(net, start, y, noise, diagnostics):
    """From `start` up the log density, of class y where it is given."""
    config = net.config
    x = start.clone()
    noise_first = config.get("sgld_noise_first", False)
    for step in range(config["sgld_steps"]):
        if noise_first:
            x = x + config["sgld_noise"] * noise[step]
        x.requires_grad_(True)
        stem = net.conv("f.conv1", x)
        g, p = torch.autograd.grad(net.log_density_of_stem(stem, y).sum(), (x, stem))
        x = x.detach()
        if config["recipe"] == "jem++":
            x = inner_steps(net, x, g, p)
            diagnostics["clamped_pixels"] = float((x.abs() == 1).double().mean())
            continue
        x = x + config["sgld_step_size"] * (unit(g) if config["recipe"] == "dat" else clamped(g, config["sgld_grad_clamp"]))
        if noise is not None and not noise_first:
            x = x + config["sgld_noise"] * noise[step]
        if config["sgld_pixel_clamp"]:
            x = x.clamp(-1, 1)
            diagnostics["clamped_pixels"] = float((x.abs() == 1).double().mean())
    diagnostics["x_moved_rms"] = golden.rms(x - start)
    return x


def sample(net, batch, values):
    """x_neg, unless it is there already: once an iteration, whatever the number of passes."""
    if "x_neg" in batch:
        return
    with_class = net.config["recipe"] == "dat" or net.config["class_conditional"] != "off"
    with net.evaluating(net.config["sampling_norm"] == "running"):
        batch["x_neg"] = chain(net, batch["x_neg_start"], batch["y_neg"] if with_class else None, batch.get("noise"),
                               values.setdefault("diagnostics", {}))


def attack_objective(config, logits, y, clean):
    """What is ascended, summed over images."""
    if config["attack_objective"] == "ce":
        return F.cross_entropy(logits, y, reduction="sum")
    if config["attack_objective"] == "energy":
        return -class_logit(logits, y).sum()
    distance = F.normalize(logits, dim=1) - F.normalize(clean, dim=1)
    return class_logit(logits, y).sum() + distance.square().sum()


def on_ball(config, x, centre):
    eps = config["attack_eps"] * kPixelRange
    if config["attack_norm"] == "linf":
        return centre + (x - centre).clamp(-eps, eps)
    way = x - centre
    return centre + way * (eps / way.flatten(1).norm(dim=1).clamp(min=eps))[:, None, None, None]


def attack(net, batch, values, evaluates):
    """x_adv from x_lab, unless it is there already."""
    if "x_adv" in batch:
        return
    config = net.config
    diagnostics = values.setdefault("diagnostics", {})
    x = batch["x_lab"].clone()
    if config["recipe"] != "dat":
        x = (x + config["attack_eps"] * kPixelRange * batch["attack_noise"]).clamp(-1, 1)
    with net.evaluating(evaluates):
        clean = None
        if config["attack_objective"] == "authors":
            with torch.no_grad():
                clean = net.logits(batch["x_lab"])
        for _ in range(config["attack_steps"]):
            x.requires_grad_(True)
            (g,) = torch.autograd.grad(attack_objective(config, net.logits(x), batch["y"], clean), x)
            if config["attack_norm"] == "linf":
                net.watch.look_at_signs({"x~": g}, "attack's gradient")
            x = x.detach() + config["attack_step_size"] * kPixelRange * (g.sign() if config["attack_norm"] == "linf" else unit(g))
            if config["attack_objective"] != "authors":
                projected = on_ball(config, x, batch["x_lab"])
                diagnostics["projected"] = float(((projected - x).abs() > 1e-9).double().mean())
                x = projected
            x = x.clamp(-1, 1)
    diagnostics["attack_clamped"] = float((x.abs() == 1).double().mean())
    batch["x_adv"] = x


def energy_loss(config, real, sampled, values):
    """mean F(x-) - mean F(x+) and its L2 term, from F of each image."""
    f_pos, f_neg = real.mean(), sampled.mean()
    of_real = f_pos.square() if config["energy_l2_form"] == "mean" else real.square().mean()
    of_sampled = sampled.square().mean() if config["energy_l2_form"] == "image" else f_neg.square()
    loss_gen = f_neg - f_pos + config["energy_l2"] * (of_real + of_sampled)
    values.update(f_pos=f_pos, f_neg=f_neg, loss_gen=loss_gen)
    return config["p_x_weight"] * loss_gen


def cross_entropy(config, logits, y):
    return F.cross_entropy(logits, y, label_smoothing=config["label_smoothing"])


def label_loss(net, batch, values):
    """Of x_lab: the cross-entropy and the joint energy's terms, with a chain of its own."""
    config = net.config
    total = 0.0
    logits = net.logits(batch["x_lab"])
    if config["p_y_given_x_weight"] != 0:
        values.update(logits_lab=logits, loss_clf=cross_entropy(config, logits, batch["y"]))
        total = total + config["p_y_given_x_weight"] * values["loss_clf"]
    if config["p_x_y_weight"] != 0:
        f_pos_lab = class_logit(logits, batch["y"]).mean()
        if "x_neg_lab" not in batch:
            with net.evaluating(config["sampling_norm"] == "running"):
                batch["x_neg_lab"] = chain(net, batch["x_neg_lab_start"], batch["y"], batch.get("noise_lab"), {})
        f_neg_lab = net.log_density(batch["x_neg_lab"], batch["y"]).mean()
        values.update(f_pos_lab=f_pos_lab, f_neg_lab=f_neg_lab, loss_joint=f_neg_lab - f_pos_lab, x_neg_lab=batch["x_neg_lab"])
        total = total + config["p_x_y_weight"] * values["loss_joint"]
    return total


def generative_loss(net, batch, values):
    """Of x+ and x-. JEM samples before x+ goes through the network, the others after."""
    config = net.config
    y_pos, y_neg = (batch["y_pos"], batch["y_neg"]) if config["class_conditional"] == "loss" else (None, None)
    if config["recipe"] == "jem":
        sample(net, batch, values)
    real = net.log_density(batch["x_pos"], y_pos)
    sample(net, batch, values)
    sampled = net.log_density(batch["x_neg"], y_neg)
    values["x_neg"] = batch["x_neg"]
    return energy_loss(config, real, sampled, values)


def joint_losses(net, batch, values):
    config = net.config
    total = 0.0
    if config["p_x_weight"] != 0:
        total = total + generative_loss(net, batch, values)
    if config["p_y_given_x_weight"] != 0 or config["p_x_y_weight"] != 0:
        total = total + label_loss(net, batch, values)
    return total


def jeat_losses(net, batch, values):
    config = net.config
    attack(net, batch, values, evaluates=config["sampling_norm"] == "running")
    logits = net.logits(batch["x_adv"])
    sample(net, batch, values)
    sampled = net.log_density(batch["x_neg"])
    loss_clf = cross_entropy(config, logits, batch["y"])
    values.update(x_adv=batch["x_adv"], x_neg=batch["x_neg"], logits_adv=logits, loss_clf=loss_clf)
    return energy_loss(config, torch.logsumexp(logits, dim=1), sampled, values) + config["p_y_given_x_weight"] * loss_clf


def eb_jdat_losses(net, batch, values):
    config = net.config
    total = generative_loss(net, batch, values) + label_loss(net, batch, values)
    attack(net, batch, values, evaluates=True)
    logits = net.logits(batch["x_adv"])
    f_adv = torch.logsumexp(logits, dim=1).mean()
    values.update(x_adv=batch["x_adv"], logits_adv=logits, f_adv=f_adv, loss_adv=f_adv - values["f_pos"],
                  loss_adv_clf=cross_entropy(config, logits, batch["y"]))
    return total + config["attack_weight"] * values["loss_adv"] + config["attack_ce_weight"] * values["loss_adv_clf"]


def dat_losses(net, batch, values):
    config = net.config
    sample(net, batch, values)
    attack(net, batch, values, evaluates=True)
    real, sampled = net.log_density(batch["x_pos"]), net.log_density(batch["x_neg"])
    logits = net.logits(batch["x_adv"])
    loss_gen = torch.cat([F.softplus(-real), F.softplus(sampled)]).mean()
    loss_clf = cross_entropy(config, logits, batch["y"])
    values.update(f_pos=real.mean(), f_neg=sampled.mean(), loss_gen=loss_gen, loss_clf=loss_clf, x_neg=batch["x_neg"], x_adv=batch["x_adv"],
                  logits_adv=logits)
    return config["p_x_weight"] * loss_gen + config["p_y_given_x_weight"] * loss_clf


kLosses = {"jeat": jeat_losses, "eb-jdat": eb_jdat_losses, "dat": dat_losses}


def losses(net, batch, values):
    """The weighted loss; its terms go to `values`. Forwards run in the method's order."""
    net.begin_pass(values.setdefault("diagnostics", {}))
    total = kLosses.get(net.config["recipe"], joint_losses)(net, batch, values)
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            values[name] = value.detach()
    return total


if __name__ == "__main__":
    simulate = functools.partial(golden.simulate, make_inputs=make_inputs, net_of=net_of, losses=losses, make_optimizer=make_optimizer)
    sys.exit(golden.main(__doc__, all_cases(), simulate))
