"""What tests/cli/test_peer.sh runs: tools/peer_recipes.py against the engine's settings and against tests/golden's scripts, in f64.

    python3 peer_cases.py PROGRAM      in an empty folder
"""
import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from unittest import mock

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.dont_write_bytecode = True
sys.path[:0] = [os.path.join(ROOT, "tools"), os.path.join(ROOT, "tests", "golden")]
import make_family as family  # noqa: E402  (found by the line above)
from compare_pytorch import make_files  # noqa: E402
from peer_recipes import RECIPES, ClampedAdam, Settings, kBufferSize  # noqa: E402

PROGRAM = sys.argv[1]
SEED = 1
STEPS, ITERATIONS = 4, 2  # the second one has momentum, moved statistics and, of Adam, other corrections
HEAD_GAIN = 60.0  # of the classes' weights, so that a limit of 1 is one for some values of the gradients; IGEBM's limit already is
# The two scripts differ in the order of sums alone: some 1e-15, which the steps of such a network enlarge.
TOLERANCE = 1e-9
SIZES = {"n_pos": 2, "n_neg": 3, "n_lab": 4, "image_size": 8, "in_channels": 3, "sgld_steps": STEPS}
# A sample has the class of the real image in its place. The last maps are 2x2, so that a sum is no mean. Adam has moments from before.
IGEBM_SIZES = {**SIZES, "n_pos": 3, "image_size": 16, "optimizer_step": 10}
DEPTHS = {"igebm": (14, 20)}  # else 10


def depths_of(recipe):
    return DEPTHS.get(recipe, (10,))


def settings_of_engine(recipe):
    out = f"run of {recipe}"
    subprocess.run([PROGRAM, "train", "--recipe", recipe, "--data", "cifar10", "--data-dir", "data", "--depth", str(depths_of(recipe)[0]),
                    "--width", "1", "--device", "cpu", "--iterations", "0", "--buffer-size", "100", "--out", out, "--quiet"],
                   check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "config.json"), encoding="utf-8") as file:
        return json.load(file)


def trainer_of(recipe, **sizes):
    return RECIPES[recipe](argparse.Namespace(**{"depth": depths_of(recipe)[0], "width": 1, "in_channels": 3, "num_classes": 10,
                                                 "compile": False, "precision": "f32", "device": "cpu", "steps": STEPS, **sizes}))


def make_inputs(config, seed):
    params, running, batch = family.make_inputs(config, seed)
    if family.is_igebm(config):
        batch["y_pos"] = batch["y_neg"]
    else:
        params["class_output.weight"] = HEAD_GAIN * params["class_output.weight"]
    return params, running, batch


def near(got, want, scale, what):
    off = float((torch.as_tensor(got, dtype=torch.float64) - want).detach().abs().max())
    assert off <= TOLERANCE * float(scale), f"{what} is off by {off:.2g}, beside {float(scale):.2g}"


def check_iterations(recipe, engine, depth):
    sizes = IGEBM_SIZES if recipe == "igebm" else SIZES
    config = {**family.kCommon, **engine, **sizes, "depth": depth, "iterations": ITERATIONS, "kink_free": False}
    net, _, history = family.golden.simulate(config, SEED, torch.float64, False, make_inputs, family.net_of, family.losses,
                                             family.make_optimizer)
    diagnostics = history[0]["diagnostics"]
    if config["sgld_pixel_clamp"]:
        assert 0 < diagnostics["clamped_pixels"] < 1, diagnostics
    if recipe == "dat":
        assert diagnostics["projected"] > 0 and diagnostics["attack_clamped"] > 0, diagnostics
    if recipe == "igebm":
        assert 0 < diagnostics["capped"] < len(family.igebm_blocks(config)), diagnostics

    params, running, arrays = make_inputs(config, SEED)
    trainer = trainer_of(recipe, depth=depth, pos=sizes["n_pos"], neg=sizes["n_neg"], lab=sizes["n_lab"], image_size=sizes["image_size"])
    trainer.net.double()
    state = {name: torch.tensor(value) for name, value in {**params, **running}.items()}
    missing, unexpected = trainer.net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    batch = {name: torch.tensor(value) for name, value in arrays.items()}
    average = {name: torch.tensor(value) for name, value in params.items()}
    trainer.make_data()
    if trainer.buffer is not None:
        trainer.buffer = trainer.buffer.double()
    trainer.index = torch.arange(SIZES["n_neg"])

    def draw():
        trainer.x_pos, trainer.x_neg_start, trainer.x_lab = (batch[name].clone() for name in ("x_pos", "x_neg_start", "x_lab"))
        trainer.y_pos, trainer.y = batch["y_neg"], batch["y"]  # dat's chains climb y_pos here, labels of their own there

    trainer.draw = draw
    noise = itertools.cycle(batch["noise"]) if "noise" in batch else iter([])
    named = dict(trainer.net.named_parameters())
    if "optimizer_step" in config:
        for name, p in named.items():
            trainer.optimizer.state[p] = {"step": torch.tensor(float(config["optimizer_step"])), "exp_avg": torch.zeros_like(p),
                                          "exp_avg_sq": batch["adam_v." + name].clone()}
    accumulate, found = trainer.accumulate, {}

    def accumulate_and_keep(x_neg):
        result = accumulate(x_neg)
        found.update((name, p.grad.clone()) for name, p in named.items())  # the optimizer may clamp them
        return result

    trainer.accumulate = accumulate_and_keep
    clamped = []
    for number, want in enumerate(history):
        what = f"{recipe}-{depth}, iteration {1 + number}: "
        if config["buffer_order"] == "fifo":
            trainer.index = torch.arange(sizes["n_neg"]) + number * sizes["n_neg"]  # where the oldest images are
        with mock.patch.object(torch, "randn_like", lambda x: next(noise)):
            loss = trainer.iterate()
        total = float(want["loss_gen"] + want.get("loss_clf", 0))
        near(loss, total, max(1, abs(total)), what + "the loss")
        if trainer.buffer is not None:
            near(trainer.buffer[trainer.index], want["x_neg"], 1, what + "x-")
        grads = want["grad1" if config["sam"] == "none" else "grad2"]
        assert sorted(grads) == sorted(named), what + "gradients are of other tensors"
        largest = max(float(g.abs().max()) for g in grads.values())
        for name, g in grads.items():
            near(found[name], g, largest, f"{what}the gradient of {name}")
            clamped.append((named[name].grad != found[name]).double().mean())
        average = {name: a + (1 - config["ema"]) * (named[name].detach() - a) for name, a in average.items()}
    assert any(0 < share < 1 for share in clamped) == (config["adam_clamp"] > 0), clamped
    for name, p in net.params.items():
        near(named[name], p, p.detach().abs().max(), f"{recipe}: {name}")
    buffers = dict(trainer.net.named_buffers())
    for name, r in net.running.items():
        near(buffers[name], r, r.abs().max(), f"{recipe}: {name}")
    if config["ema"] > 0:
        for (name, want), got in zip(average.items(), trainer.average):
            near(got, want, want.abs().max(), f"{recipe}: the average of {name}")
    # Chains are not slowed down by gradients that nobody wants.
    with trainer.weights_at_rest():
        assert not trainer.logits(batch["x_pos"]).requires_grad, f"{recipe}: weights want gradients in a chain"
    assert trainer.logits(batch["x_pos"]).requires_grad, f"{recipe}: weights want no gradients after a chain"


def check_first_clamp():
    """There is no moment yet."""
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClampedAdam([p], RECIPES["igebm"].settings.adam_clamp, betas=(0.0, 0.999))
    p.grad = torch.tensor([-5.0, 0.05, 5.0])
    optimizer.step()
    assert torch.equal(optimizer.state[p]["exp_avg"], torch.tensor([-0.1, 0.05, 0.1])), optimizer.state[p]


def check_draws(recipe, engine):
    count, grey = 384, 100
    trainer = trainer_of(recipe, pos=count, neg=count, lab=count, image_size=32)
    trainer.make_data()
    if trainer.buffer is not None:
        trainer.buffer.fill_(5.0)
    trainer.pixels.fill_(grey)
    trainer.draw()
    both, labelled = engine["input_noise_on"] == "both", engine["p_y_given_x_weight"] > 0
    assert hasattr(trainer, "x_lab") == labelled, f"{recipe}: labelled images are drawn in vain, or missing"

    def batches(of_real, of_labelled):
        return [("x+", trainer.x_pos, of_real)] + ([("x_lab", trainer.x_lab, of_labelled)] if labelled else [])

    for name, x, noise in batches(engine["input_noise"], engine["input_noise"] if both else 0):
        off = float((x - (grey / 127.5 - 1)).square().mean().sqrt())
        assert abs(off - noise) < 1e-6 + 0.02 * noise, f"{recipe}: noise of {name} is {off}, not {noise}"
    fresh = float((trainer.x_neg_start != 5).flatten(1).any(dim=1).double().mean())
    assert abs(fresh - engine["reinit_freq"]) <= 0.04, f"{recipe}: {fresh} of the chains start afresh"
    if engine["init"] == "uniform":
        starts = trainer.x_neg_start[(trainer.x_neg_start != 5).flatten(1).any(dim=1)]
        assert starts.abs().max() <= 1 and abs(float(starts.std()) - 3**-0.5) < 0.01, f"{recipe}: starts are not uniform"
    first = trainer.x_neg_start
    trainer.pixels.copy_((25 * trainer.labels)[:, None, None, None])
    trainer.draw()
    for name, x, y in batches(trainer.y_pos, trainer.y if labelled else None):
        assert torch.equal(x.mean(dim=(1, 2, 3)).add(1).mul(127.5 / 25).round().long(), y), f"{recipe}: {name} has labels of other images"
    trainer.pixels.copy_(torch.randint(256, trainer.image, dtype=torch.uint8))
    trainer.draw()
    assert not torch.equal(first, trainer.x_neg_start), f"{recipe}: two iterations start alike"
    for name, x, augmented in batches(engine["gen_augment"] == "on", engine["augment"]):
        different = (x - x[0]).abs().flatten(1).amax(dim=1) > 0.5  # beyond any noise
        assert bool(different.any()) == augmented, f"{recipe}: {name} is augmented otherwise than the engine's"
    assert len({engine["gen_augment"], "on", "off"}) == 2, "a form of augmentation that the peer does not know"


def check_oldest_make_place(recipe):
    """A little more than the buffer holds: the first of it are gone."""
    count = 384
    trainer = trainer_of(recipe, pos=count, neg=count, lab=count, image_size=8)
    trainer.make_data()
    stores = kBufferSize // count + 1
    for number in range(stores):
        trainer.store(torch.full((count, *trainer.image), float(number)))
    places = torch.arange(kBufferSize)
    number = torch.where(places < stores * count - kBufferSize, stores - 1, places // count)
    assert torch.equal(trainer.buffer, number[:, None, None, None].expand_as(trainer.buffer).float()), f"{recipe}: not the oldest made place"


def check(recipe):
    engine = settings_of_engine(recipe)
    for field in dataclasses.fields(Settings):
        ours = getattr(RECIPES[recipe].settings, field.name)
        assert ours == engine[field.name], f"{recipe}: {field.name} is {ours}, the engine's {engine[field.name]}"
    for depth in depths_of(recipe):
        check_iterations(recipe, engine, depth)
    if engine["adam_clamp"] > 0:
        check_first_clamp()
    check_draws(recipe, engine)
    if engine["buffer_order"] == "fifo":
        check_oldest_make_place(recipe)
    print(f"{recipe}: settings, draws, losses, gradients and what they make of the weights")


torch.set_num_threads(1)
torch.manual_seed(0)
os.mkdir("data")
make_files("data", 20, 1000)
for each in RECIPES:
    check(each)
