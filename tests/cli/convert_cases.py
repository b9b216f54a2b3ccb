"""What tests/cli/test_convert.sh runs: tools/convert on checkpoints of networks built here as the official codes build theirs.

    python3 convert_cases.py PROGRAM      in an empty folder
"""
import copy
import importlib.machinery
import importlib.util
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = sys.argv[1]
IMAGES = 24
NLL_TOLERANCE = 1e-5  # f32 of two programs

loader = importlib.machinery.SourceFileLoader("convert", os.path.join(ROOT, "tools", "convert"))
convert = importlib.util.module_from_spec(importlib.util.spec_from_loader("convert", loader))
loader.exec_module(convert)


def run(*words):
    """(exit code, what it said)"""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = convert.main(list(words))
    assert bool(err.getvalue()) == (code != 0), (words, err.getvalue())
    return code, out.getvalue() + err.getvalue()


def converted(*words):
    code, said = run(*words)
    assert code == 0, said
    return said


def refused(*words, saying):
    before = sorted(os.listdir("."))
    code, said = run(*words)
    assert code == 2 and said.startswith("convert: "), (words, code, said)
    for text in [saying] if isinstance(saying, str) else saying:
        assert text in said, f"{words}: no \"{text}\" in: {said}"
    assert sorted(os.listdir(".")) == before, f"{words} left something behind"


# ---- the official networks ----


class Block(nn.Module):
    def __init__(self, width_in, width_out, stride, norm):
        super().__init__()
        self.bn1 = norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.bn2 = norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride=stride))

    def forward(self, x):
        y = self.conv1(F.leaky_relu(self.bn1(x), 0.2))
        return self.conv2(F.leaky_relu(self.bn2(y), 0.2)) + self.shortcut(x)


class Features(nn.Module):
    def __init__(self, code, depth, width, norm, classes, channels, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        if code == "jempp":
            self.layer_one, self.other_layers = self.conv1, nn.ModuleList()
        width_in = 16
        for group in range(groups):
            width_out, blocks = 16 * 2**group * width, []
            for block in range((depth - 4) // 6):
                blocks.append(Block(width_in, width_out, 2 if group > 0 and block == 0 else 1, norm))
                width_in = width_out
            setattr(self, f"layer{group + 1}", nn.Sequential(*blocks))
            if code == "jempp":
                self.other_layers.append(getattr(self, f"layer{group + 1}"))
        self.bn1 = norm(width_in)
        if code == "jempp":
            self.other_layers.append(self.bn1)
        if code == "jem":
            self.linear = nn.Linear(width_in, classes)
        self.last, self.groups = width_in, groups

    def forward(self, x):
        x = self.conv1(x)
        for group in range(self.groups):
            x = getattr(self, f"layer{group + 1}")(x)
        return F.leaky_relu(self.bn1(x), 0.2).mean(dim=(2, 3))


class ActNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(1, channels, 1, 1)), nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))

    def forward(self, x):
        return self.scale * (x + self.loc)


class Ccf(nn.Module):
    def __init__(self, code, depth=10, width=2, norm="batch", classes=10, channels=3, groups=3):
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "none": lambda _: nn.Identity(), "instance": lambda n: nn.InstanceNorm2d(n, affine=True),
                 "layer": lambda n: nn.GroupNorm(1, n), "act": ActNorm}
        self.f = Features(code, depth, width, norms[norm], classes, channels, groups)
        self.energy_output = nn.Linear(self.f.last, 1)
        self.class_output = nn.Linear(self.f.last, classes)

    def forward(self, x):
        return self.class_output(self.f(x))


def made(code, seed=1, **shape):
    """A network in evaluation mode whose every number is its own."""
    torch.manual_seed(seed)
    network = Ccf(code, **shape).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") or ".bn" in name and name.endswith((".weight", ".scale")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(78)
            elif ".bn" in name and not name.endswith("initialized"):
                tensor.uniform_(-0.2, 0.2)
    return network


def made_buffer(count=30, channels=3, size=32):
    return torch.rand(count, channels, size, size) * 2 - 1


def saved(path, state, buffer=None, **others):
    torch.save({"model_state_dict": state, "replay_buffer": buffer, **others}, path)


MARKS = ("num_batches_tracked", ".initialized")


def own_names(state):
    """What of the official tensors the engine has, counters aside."""
    return {name: tensor for name, tensor in state.items()
            if not name.startswith(("f.linear.", "f.layer_one.", "f.other_layers.")) and not name.endswith(MARKS)}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).flatten() if tensor.dim() else tensor.reshape(1).view(torch.uint8)


def check_same(got, want):
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape and torch.equal(bits(got[name]), bits(tensor)), name


NETWORKS = {
    "jem": dict(code="jem", norm="none"),
    "jem_batch": dict(code="jem", depth=16, width=1, classes=100),
    "jempp": dict(code="jempp"),
    "jempp_none": dict(code="jempp", norm="none", classes=7),
    "jem_instance": dict(code="jem", norm="instance"),
    "jempp_layer": dict(code="jempp", norm="layer"),
    "jem_act": dict(code="jem", norm="act", width=1),
    "sadajem": dict(code="sadajem", width=3),
    "sadajem_64": dict(code="sadajem", width=1, groups=4, classes=200),
}


# ---- the cases ----


def there_and_back():
    for name, shape in NETWORKS.items():
        network = made(**shape)
        state, buffer = network.state_dict(), made_buffer(size=64 if shape.get("groups") == 4 else 32)
        saved(f"{name}.pt", state, buffer)
        said = converted(f"{name}.pt", f"{name}.safetensors")
        norm = shape.get("norm", "batch")
        told = "instance or layer" if norm in ("instance", "layer") else norm
        assert f"WRN-{shape.get('depth', 10)}-{shape.get('width', 2)}, norm {told}, 3 input channels, " \
               f"{shape.get('classes', 10)} classes" in said, said
        assert ("f.linear.weight" in said) == (shape["code"] == "jem"), said
        assert ("all equal to their originals" in said) == (shape["code"] == "jempp"), said
        own = safetensors.torch.load_file(f"{name}.safetensors")
        counters = {n: t for n, t in own.items() if n.endswith(MARKS)}
        kind = (1, torch.uint8) if norm == "act" else (0, torch.int64)
        assert all((int(t), t.dtype) == kind and t.shape == () for t in counters.values())
        assert counters.keys() == {n for n in Ccf(**{**shape, "code": "sadajem"}).state_dict() if n.endswith(MARKS)}
        assert ("--norm instance or --norm layer" in said) == (norm in ("instance", "layer")), said
        check_same({n: t for n, t in own.items() if n not in counters}, {**own_names(state), "replay_buffer": buffer})
        # back, into a network that knows nothing of this one
        for code in ("jem", "jempp", "sadajem") if shape.get("groups", 3) == 3 else ("sadajem",):
            said = converted(f"{name}.safetensors", "back.pt", "--to", code)
            assert ("added as zeros" in said) == (code == "jem"), said
            read = torch.load("back.pt", weights_only=True)
            other = Ccf(**{**shape, "code": code})
            other.load_state_dict(read["model_state_dict"], strict=True)
            check_same(own_names(other.state_dict()), own_names(state))
            check_same({"b": read["replay_buffer"]}, {"b": buffer})
            converted("back.pt", "again.safetensors")
            with open("again.safetensors", "rb") as a, open(f"{name}.safetensors", "rb") as b:
                assert a.read() == b.read(), f"{name} by way of {code} is another file"
        x = made_buffer(2, size=64 if shape.get("groups") == 4 else 32)
        with torch.no_grad():
            assert torch.equal(other.eval()(x), network(x)), name


def wrapped_shared_and_strided():
    network = made("jempp", seed=2)
    buffer = made_buffer(4)
    saved("plain.pt", network.state_dict(), buffer)
    converted("plain.pt", "plain.safetensors")
    with open("plain.safetensors", "rb") as file:
        want = file.read()

    def check(state, what, says):
        saved("wrapped.pt", state, buffer)
        assert says in converted("wrapped.pt", "wrapped.safetensors"), what
        with open("wrapped.safetensors", "rb") as file:
            assert file.read() == want, what

    check(nn.DataParallel(network).state_dict(), "DataParallel", "prefixes removed: module.")
    check(torch.compile(network).state_dict(), "compile", "prefixes removed: _orig_mod.")
    check(torch.compile(nn.DataParallel(torch.compile(network))).state_dict(), "both, nested", "prefixes removed: _orig_mod., module.")
    inner = copy.deepcopy(network)
    inner.f = torch.compile(inner.f)
    check(inner.state_dict(), "compiled within", "prefixes removed: _orig_mod.")
    state = network.state_dict()
    state["f.conv1.weight"] = state["f.conv1.weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    state["f.layer_one.weight"] = state["f.conv1.weight"]
    flat = torch.cat([state["class_output.weight"].flatten(), torch.zeros(5), state["class_output.bias"]])
    state["class_output.weight"], state["class_output.bias"] = flat[:1280].view(10, 128), flat[-10:]
    assert not state["f.conv1.weight"].is_contiguous()
    check(state, "views and other strides", "")
    torch.save(network.state_dict(), "bare.pt")
    assert "no replay buffer" in converted("bare.pt", "bare.safetensors")
    assert "replay_buffer" not in safetensors.torch.load_file("bare.safetensors")
    assert "an empty one is written" in converted("bare.safetensors", "back.pt", "--to", "jempp")
    assert torch.load("back.pt", weights_only=True)["replay_buffer"].shape == (0, 3, 32, 32)
    # a double that went its own way
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["f.other_layers.2.0.conv2.weight"] += 1
    check(state, "unequal doubles", "not equal to their originals: f.other_layers.2.0.conv2.weight (taken: f.layer3.0.conv2.weight)")
    saved("more.pt", network.state_dict(), buffer, epoch=3)
    assert "not taken over: epoch" in converted("more.pt", "more.safetensors")
    saved("half.pt", {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()})
    assert "read as torch.float16" in converted("half.pt", "half.safetensors")


def engines_own():
    """Files as the engine writes them: without the energy head, with averages, and the buffer in the state beside."""
    state = made("sadajem", seed=3).state_dict()
    weights = {name: tensor.clone() for name, tensor in state.items() if not name.startswith("energy_output.")}
    average = {f"ema.{name}": tensor * 2 for name, tensor in weights.items() if "running" not in name and "num_batches" not in name}
    os.makedirs("run")
    safetensors.torch.save_file({**weights, **average}, "run/last.safetensors")
    buffer = made_buffer(6)
    safetensors.torch.save_file({**weights, "replay_buffer": buffer, "velocity.f.conv1.bias": torch.zeros(16)}, "run/last.state.safetensors")
    for source in ("run/last.safetensors", "run/last.state.safetensors"):
        said = converted(source, "own.pt", "--to", "sadajem")
        assert "added as zeros, since the engine's file has none: energy_output.weight, energy_output.bias" in said, said
        read = torch.load("own.pt", weights_only=True)
        Ccf("sadajem").load_state_dict(read["model_state_dict"], strict=True)
        check_same(own_names({**read["model_state_dict"]}), own_names({**weights, **{f"energy_output.{n}": torch.zeros(s) for n, s in
                                                                       (("weight", (1, 128)), ("bias", (1,)))}}))
        check_same({"b": read["replay_buffer"]}, {"b": buffer})
    converted("run/last.safetensors", "average.pt", "--to", "jem", "--weights", "ema")
    read = torch.load("average.pt", weights_only=True)["model_state_dict"]
    Ccf("jem").load_state_dict(read, strict=True)
    for name, tensor in own_names(weights).items():
        assert torch.equal(read[name], tensor if "running" in name else tensor * 2), name
    refused("run/last.state.safetensors", "no.pt", "--to", "jem", "--weights", "ema", saying="holds no ema.*")
    refused("run/last.safetensors", "run/last.state.safetensors", "--to", "jem", saying="both read and written")


def wrong_files():
    state = made("sadajem", seed=4).state_dict()
    wrong = {name: tensor for name, tensor in state.items() if name != "f.layer2.0.bn2.running_var"}
    wrong["f.layer3.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    wrong["f.layer3.0.attention.weight"] = torch.zeros(2)
    wrong["class_output.bias"] = torch.zeros(10, dtype=torch.int64)
    saved("wrong.pt", wrong)
    refused("wrong.pt", "no.safetensors", saying=[
        "missing: f.layer2.0.bn2.running_var [64]", "shape of f.layer3.0.conv1.weight: [128,64,1,1] in the file, [128,64,3,3] expected",
        "superfluous: f.layer3.0.attention.weight [2]", "type of class_output.bias: torch.int64"])
    saved("unset.pt", {name: torch.zeros_like(tensor) if name.endswith("initialized") else tensor
                       for name, tensor in made("jem", norm="act").state_dict().items()})
    refused("unset.pt", "no.safetensors", saying="act norms that no batch has set yet")
    saved("half_act.pt", {name: tensor for name, tensor in made("jem", norm="act").state_dict().items() if name != "f.bn1.scale"})
    refused("half_act.pt", "no.safetensors", saying="missing: f.bn1.scale [1,128,1,1]")
    saved("grey.pt", made("sadajem", channels=2).state_dict())
    refused("grey.pt", "no.safetensors", saying="input channels: 2")
    saved("half_head.pt", {name: tensor for name, tensor in state.items() if name != "energy_output.bias"})
    refused("half_head.pt", "no.safetensors", saying="missing: energy_output.bias [1]")
    for what, buffer in (("size", made_buffer(2, size=64)), ("channels", made_buffer(2, channels=1)), ("flat", torch.zeros(2, 3072)),
                         ("whole", torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), ("list", [1])):
        saved("buffer.pt", state, buffer)
        refused("buffer.pt", "no.safetensors", saying="The replay buffer of buffer.pt is")
    saved("other.pt", nn.Linear(3, 4).state_dict())
    refused("other.pt", "no.safetensors", saying="its first names: weight, bias")
    torch.save([1, 2], "list.pt")
    refused("list.pt", "no.safetensors", saying="holds no state_dict")
    torch.save({"model_state_dict": 3}, "number.pt")
    refused("number.pt", "no.safetensors", saying="holds no state_dict")
    saved("twice.pt", {**state, **{f"module.{name}": tensor for name, tensor in state.items()}})
    refused("twice.pt", "no.safetensors", saying="twice (under two prefixes)")
    torch.save({"model_state_dict": state, "run": Runs()}, "code.pt")
    refused("code.pt", "no.safetensors", saying="cannot be read as tensors alone")
    torch.save({"model_state_dict": state, "run": Runs()}, "code.pt", _use_new_zipfile_serialization=False)
    refused("code.pt", "no.safetensors", saying="cannot be read as tensors alone")
    with open("code.pt", "wb") as file:
        pickle.dump(Runs(), file, protocol=2)
    refused("code.pt", "no.safetensors", saying="cannot be read as tensors alone")
    assert not os.path.exists("ran"), "the file's code was run"
    with open("sadajem.pt", "rb") as file:
        whole = file.read()
    for name, content in (("cut.pt", whole[:len(whole) // 2]), ("empty.pt", b""), ("text.pt", b"this is no checkpoint\n" * 20)):
        with open(name, "wb") as file:
            file.write(content)
        refused(name, "no.safetensors", saying=f"{name} cannot be read as tensors alone")
    with open("sadajem.safetensors", "rb") as file:
        whole = file.read()
    with open("cut.safetensors", "wb") as file:
        file.write(whole[:-9])
    refused("cut.safetensors", "no.pt", "--to", "jem", saying="cannot be read as safetensors")
    refused("nowhere.pt", "no.safetensors", saying="Cannot read nowhere.pt")
    refused(".", "no.safetensors", saying="Cannot read .")
    refused("sadajem.pt", "sadajem.pt", saying="both read and written")
    os.link("sadajem.pt", "hard.pt")
    refused("sadajem.pt", "hard.pt", saying="both read and written")
    refused("sadajem.pt", "nofolder/no.safetensors", saying="there is no folder")
    refused("sadajem.pt", "run", saying="no regular file")
    refused("sadajem.pt", "/dev/null", saying="no regular file")
    refused("sadajem.safetensors", "no.pt", saying="--to jem, jempp or sadajem")
    refused("sadajem.pt", "no.pt", "--to", "jem", saying="is no safetensors file")
    refused("sadajem.pt", "no.safetensors", "--weights", "ema", saying="without --to")
    refused("sadajem_64.safetensors", "no.pt", "--to", "jem", saying="Use --to sadajem")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))  # as on a full disk
    refused("sadajem.pt", "no.safetensors", saying="Cannot write no.safetensors")
    refused("sadajem.safetensors", "no.pt", "--to", "jem", saying="Cannot write no.pt")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if os.geteuid() != 0:
        os.makedirs("locked", mode=0o555)
        refused("sadajem.pt", "locked/no.safetensors", saying="Cannot write locked/no.safetensors")
    # what is there already stays what it is where the conversion fails, and a link's target is what is written
    with open("keep.safetensors", "w", encoding="utf-8") as file:
        file.write("precious")
    refused("wrong.pt", "keep.safetensors", saying="missing")
    with open("keep.safetensors", encoding="utf-8") as file:
        assert file.read() == "precious"
    os.symlink("keep.safetensors", "link.safetensors")
    converted("sadajem.pt", "link.safetensors")
    assert os.path.islink("link.safetensors") and os.path.getsize("keep.safetensors") > 1000


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def inception():
    """The names and shapes that pytorch-fid's own module has, of tests/golden/inception_convolutions.txt."""
    torch.manual_seed(5)
    state = {"fc.weight": torch.rand(1008, 2048), "fc.bias": torch.rand(1008)}
    with open(os.path.join(ROOT, "tests", "golden", "inception_convolutions.txt"), encoding="utf-8") as file:
        for line in file:
            name, *shape = line.split()
            shape = [int(n) for n in shape]
            state[f"{name}.conv.weight"] = torch.rand(shape)
            for what in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.bn.{what}"] = torch.rand(shape[0])
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, "fid.pth")
    assert "FID's Inception-v3: 472 tensors" in converted("fid.pth", "fid.safetensors")
    check_same(safetensors.torch.load_file("fid.safetensors"), own_names(state))
    state["Mixed_7c.branch_pool.conv.weight"] = torch.zeros(192, 2048, 3, 3)
    state["fc.weight"] = torch.zeros(1000, 2048)  # torchvision's, of other weights
    del state["Mixed_6b.branch1x1.bn.bias"]
    state["AuxLogits.fc.bias"] = torch.zeros(1000)
    torch.save(state, "fid.pth")
    refused("fid.pth", "no.safetensors", saying=[
        "shape of Mixed_7c.branch_pool.conv.weight: [192,2048,3,3] in the file, [192,2048,1,1] expected", "missing: Mixed_6b.branch1x1.bn.bias",
        "superfluous: AuxLogits.fc.bias", "shape of fc.weight: [1000,2048] in the file"])
    refused("fid.safetensors", "no.pt", "--to", "jem", saying="holds no checkpoint of a Wide-ResNet")


def engine(*words):
    done = subprocess.run([PROGRAM, *words, "--device", "cpu", "--threads", "1", "--quiet", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr[:400])
    return json.loads(done.stdout.strip().split("\n")[-1]), done.stderr


def read_by_the_engine():
    """No flag tells the shapes, but which of two norms it is; what it says of the converted network is what PyTorch says of the original."""
    def which(name):
        norm = NETWORKS[name].get("norm", "batch")
        return ("--norm", norm) if norm in ("instance", "layer") else ()

    torch.manual_seed(6)
    os.makedirs("data")
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(IMAGES) % 10
    records = b"".join(struct.pack("B", int(label)) + bytes(image.flatten().tolist()) for label, image in zip(labels, pixels))
    for name in [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]:
        with open(f"data/{name}", "wb") as file:
            file.write(records)
    x = pixels.double() / 255 * 2 - 1
    for name in ("jem", "jempp", "sadajem", "jem_instance", "jempp_layer", "jem_act"):
        network = made(**NETWORKS[name]).double()
        with torch.no_grad():
            logits = network(x)
        got, said = engine("evaluate", "--checkpoint", f"{name}.safetensors", "--data", "cifar10", "--data-dir", "data", *which(name))
        assert not said, said
        nll = float(F.cross_entropy(logits, labels))
        assert abs(got["nll"] - nll) < NLL_TOLERANCE * max(1, nll), (name, got["nll"], nll)
        assert got["accuracy"] == float((logits.argmax(1) == labels).double().mean()), name
    training = ("--recipe", "sada-jem", "--data", "cifar10", "--data-dir", "data", "--depth", "10", "--width", "3", "--buffer-size", "30",
                "--batch-size", "8", "--gen-batch-size", "4", "--iterations", "0", "--ema", "0")
    engine("train", *training, "--start-from", "sadajem.safetensors", "--out", "trained")
    begun, given = (safetensors.torch.load_file(path) for path in ("trained/checkpoints/last.state.safetensors", "sadajem.safetensors"))
    assert all(torch.equal(begun[name], tensor) for name, tensor in given.items() if not name.startswith("energy_output."))
    for name in NETWORKS:
        got, said = engine("sample", "--from", "buffer", "--checkpoint", f"{name}.safetensors", "--count", "5", "--raw", f"{name}.raw.safetensors", *which(name))
        assert not said and got["images"] == 5, (name, said)
        raw = safetensors.torch.load_file(f"{name}.raw.safetensors")
        network = made(**NETWORKS[name])
        with torch.no_grad():
            want = network(raw["images"])
        assert torch.allclose(raw["logits"].float(), want, rtol=1e-4, atol=1e-5), name
        buffer = safetensors.torch.load_file(f"{name}.safetensors")["replay_buffer"]
        assert all(any(torch.equal(image, kept) for kept in buffer) for image in raw["images"]), name


for case in (there_and_back, wrapped_shared_and_strided, engines_own, wrong_files, inception, read_by_the_engine):
    case()
    print("passed:", case.__name__)
