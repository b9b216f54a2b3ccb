"""What torchattacks makes of a small Wide-ResNet in f64: attacks.json, for tests/engine/evaluation/test_attacks.cc.

    python3 tests/golden/make_attacks.py --out tests/golden/attacks.json

(torch, torchattacks, numpy, safetensors.) Weights and running statistics are make_golden.py's formula, the images' bytes floor(256 u), labels what the
network says of each image, so that every one is right as it is; APGD's starts are x + radius * t / max |t|, or t / |t|, t = 2 u - 1. Losses of
logits and their gradients are autograd's.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
import torchattacks

import make_golden as golden

kSeed = 5
kConfig = {**golden.kDefaults, "n_lab": 6}
kImages, kChannels, kSide = 6, 3, 8


class Evaluated(torch.nn.Module):
    """The net with its running statistics, of images in [0, 1], as torchattacks has them."""

    def __init__(self):
        super().__init__()
        params, running, _ = golden.make_inputs(kConfig, kSeed)
        self.t = {name: torch.tensor(value, dtype=torch.float64) for name, value in {**params, **running}.items()}

    def norm(self, name, x):
        t = self.t
        x = F.batch_norm(x, t[name + ".running_mean"], t[name + ".running_var"], t[name + ".weight"], t[name + ".bias"], False, 0, golden.kBatchNormEps)
        return F.leaky_relu(x, golden.kSlope)

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.t[name + ".weight"], self.t[name + ".bias"], stride, padding)

    def forward(self, images):
        x = self.conv("f.conv1", 2 * images - 1)
        for group in (1, 2, 3):
            name, stride = f"f.layer{group}.0", 1 if group == 1 else 2
            inner = self.conv(name + ".conv2", self.norm(name + ".bn2", self.conv(name + ".conv1", self.norm(name + ".bn1", x))), stride)
            shortcut = name + ".shortcut.0"
            x = inner + (self.conv(shortcut, x, stride, 0) if shortcut + ".weight" in self.t else x)
        x = self.norm("f.bn1", x).mean((2, 3))
        return x @ self.t["class_output.weight"].T + self.t["class_output.bias"]


def starts(name):
    u = golden.uniforms(kSeed, name, kImages * kChannels * kSide * kSide)
    return torch.tensor(2 * u - 1).reshape(kImages, kChannels, kSide, kSide)


def apgd(model, images, labels, norm, eps, loss):
    name = f"start {norm}"
    attack = (torchattacks.APGDT if loss == "t" else torchattacks.APGD)(model, norm="Linf" if norm == "linf" else "L2", eps=eps, steps=20, n_restarts=1,
                                                                       **({} if loss == "t" else {"loss": loss}))
    rand, randn = torch.rand, torch.randn
    broken, best = [], []
    # APGDT takes the first image's step size for all of them in L2: one image at a time
    for at in [[n] for n in range(kImages)] if loss == "t" else [list(range(kImages))]:
        torch.rand = lambda shape, at=at: (starts(name)[at] + 1) / 2
        torch.randn = lambda shape, at=at: starts(name)[at]
        try:
            if loss == "t":
                attack.target_class = 2  # the second likeliest
            _, acc, found, _ = attack.attack_single_run(images[at], labels[at])
        finally:
            torch.rand, torch.randn = rand, randn
        broken += (~acc).int().tolist()
        best += found.tolist()
    return {"broken": broken, "loss_values": best}


def purified(model, x, noise):
    """x in [-1, 1]; noise [steps, N, C, H, W], scaled"""
    for n in noise:
        x = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(torch.logsumexp(model((x + 1) / 2), 1).sum(), x)
        x = (x + g + n).detach().clamp(-1, 1)
    return x


def attack_through_purification(model, images, labels, norm, eps, alpha, scale):
    """PGD up the cross-entropy of the mean logits of chains that pass gradients on as they are. The same noise whenever images are purified."""
    kSteps, kPurifySteps, kChains = 3, 2, 2
    u = golden.uniforms(kSeed, "purification noise", kPurifySteps * kChains * images.numel())
    noise = scale * torch.tensor(4 * u - 2).reshape(kPurifySteps, kChains, *images.shape)
    centre = 2 * images - 1
    x, radius, step = centre.clone(), 2 * eps / 255, 2 * alpha / 255
    wrong = torch.zeros(len(x), dtype=torch.bool)
    for k in range(kSteps + 1):
        ends = [purified(model, x, noise[:, e]).requires_grad_(True) for e in range(kChains)]
        mean = sum(model((end + 1) / 2) for end in ends) / kChains
        wrong |= mean.argmax(1) != labels
        if k == kSteps:
            break
        g = sum(torch.autograd.grad(F.cross_entropy(mean, labels, reduction="sum"), ends))
        with torch.no_grad():
            if norm == "linf":
                x = torch.clamp(x + step * g.sign(), centre - radius, centre + radius).clamp(-1, 1)
            else:
                x = x + step * g / torch.linalg.vector_norm(g, dim=(1, 2, 3), keepdim=True)
                d = x - centre
                length = torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True)
                x = (centre + d * torch.clamp(radius / length, max=1)).clamp(-1, 1)
    return {"norm": norm, "eps": eps, "step": alpha, "steps": kSteps, "purify_steps": kPurifySteps, "chains": kChains, "noise": scale,
            "x": x.flatten().tolist(), "wrong": wrong.int().tolist()}


def loss_at(logits, label, target, kind):
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    if kind == "ce":
        value = F.cross_entropy(z[None], torch.tensor([label]))
    else:
        s = z.sort(descending=True).values
        if kind == "dlr":
            other = s[1] if int(z.argmax()) == label else s[0]
            value = -(z[label] - other) / (s[0] - s[2] + 1e-12)
        else:
            value = -(z[label] - z[target]) / (s[0] - (s[2] + s[3]) / 2 + 1e-12)
    value.backward()
    return {"logits": logits, "label": label, "target": target, "kind": kind, "value": value.item(), "gradient": z.grad.tolist()}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", required=True)
    args = arguments.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    model = Evaluated().eval()
    u = golden.uniforms(kSeed, "bytes", kImages * kChannels * kSide * kSide)
    images = torch.tensor(np.floor(256 * u) / 255).reshape(kImages, kChannels, kSide, kSide)
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(1)
    targets = logits.argsort(dim=1, descending=True)[:, 1]
    out = {"seed": kSeed, "labels": labels.tolist(), "targets": targets.tolist(), "logits": logits.tolist(), "pgd": [], "purified": [], "apgd": [], "losses": []}
    for norm, eps, alpha in (("linf", 8, 2), ("linf", 24, 6), ("l2", 128, 40)):
        kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
        adversarial = kind(model, eps=eps / 255, alpha=alpha / 255, steps=6, random_start=False)(images, labels)
        with torch.no_grad():
            wrong = model(adversarial).argmax(1) != labels
        out["pgd"].append({"norm": norm, "eps": eps, "step": alpha, "steps": 6, "x": (2 * adversarial - 1).flatten().tolist(), "wrong": wrong.int().tolist()})
    for norm, eps, alpha, scale in (("l2", 128, 40, 0.05), ("linf", 24, 8, 0)):
        out["purified"].append(attack_through_purification(model, images, labels, norm, eps, alpha, scale))
    for norm, sizes in (("linf", (4, 16)), ("l2", (64, 200))):
        for eps in sizes:
            for loss in ("ce", "dlr", "t"):
                out["apgd"].append({"norm": norm, "eps": eps, "loss": loss, "steps": 20, **apgd(model, images, labels, norm, eps / 255, loss)})
    generator = np.random.default_rng(1)
    for kind in ("ce", "dlr", "t"):
        for label in (0, 3):
            z = np.round(3 * generator.standard_normal(6), 3).tolist()
            out["losses"].append(loss_at(z, label, 2 if int(np.argmax(z)) != 2 else 4, kind))
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(out, file)
        file.write("\n")


main()
