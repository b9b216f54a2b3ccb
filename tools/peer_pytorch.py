"""The family's recipes in PyTorch: the peer of the engine's benches.

--mode iteration   what `bench` and `train` do in one, by --recipe (peer_recipes.py; sada-jem: batch norm, SAM and SGD): draw batches and
                   chains (as many images as the recipe has) from a resident data set of CIFAR-10's size and from the replay buffer, train,
                   store the chains
       train       the same, then a checkpoint of weights, optimizer and buffer is written to --out
       sampling    K SGLD steps of a batch, with the batch's statistics
       evaluation  accuracy on --images bytes images in batches of 100, with the running statistics
       scores      of as many images log p(x) and the largest p(y|x), likewise
       pxgrad      the length of the gradient of log p(x) by each image, likewise
       pgd         50 steps of an attack within --eps (in 1/255, L-inf, step 2, a random start) on as many images, broken or not after each;
                   no batch of 64 ends early
       inception   features and class probabilities of as many images by Inception-v3, torchvision's (FID's, made of the same convolutions,
                   pools by other means), from 32 pixels resized to 299, in batches of 32; --out: its weights are written there
       first-image the program `jem_engine sample --from prior`: reads a checkpoint and CIFAR-10, draws and samples --neg images, writes a
                   PNG. Its caller times it.

On synthetic data, in f32 or bf16 (autocast) on the CPU (--device cuda: on a GPU, also tf32), eager or by torch.compile, written as a
competent user of PyTorch would: channels_last, no parameter gradients while sampling, backward right after each forward so that one
batch's activations are alive at a time, foreach optimizer. Under autocast weights are cast in each call, as everywhere. What compiling
takes falls into the untimed iterations. Prints one JSON line.

    python3 tools/peer_pytorch.py --depth 10 --width 2 --threads 2 --iterations 3 --warmup 1
"""

import argparse
import json
import os
import struct
import time
import zlib

import torch
import torch.nn.functional as F
from torch import nn

from peer_recipes import RECIPES, gaussian_starts

kEvaluationBatch = 100
kAttackBatch = 64
kAttackSteps = 50
kAttackStep = 2  # in 1/255 of the pixel range
kInceptionBatch = 32
kInceptionSize = 299
kInceptionClasses = 1008


def sampling(trainer):
    """Between calls nothing about the parameters changes, so that K steps are all that is timed."""
    trainer.want_weight_gradients(False)
    trainer.x_neg_start = trainer.images(trainer.args.neg)
    return lambda: trainer.chain(trainer.x_neg_start)


def pixels_of(batch, args):
    return batch.to(args.device, torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def freeze(args):
    """Nothing trains the weights any more: they may be folded with batch norm and laid out once."""
    if args.compile:
        from torch._inductor import config  # here alone: it takes 150 MB
        config.freezing = True


def evaluated(trainer):
    """Images as bytes, and labels; the network is as it is evaluated."""
    args = trainer.args
    trainer.net.eval()
    trainer.want_weight_gradients(False)
    return (torch.randint(256, (args.images, *trainer.image), dtype=torch.uint8),
            torch.randint(args.num_classes, (args.images,), dtype=torch.uint8))


def evaluation(trainer):
    args = trainer.args
    images, labels = evaluated(trainer)
    freeze(args)

    @torch.inference_mode()
    def accuracy():
        hits = 0
        for batch, y in zip(images.split(kEvaluationBatch), labels.split(kEvaluationBatch)):
            hits += int((trainer.logits(pixels_of(batch, args)).argmax(dim=1).cpu() == y).sum())
        return hits / args.images

    return accuracy


def scores(trainer):
    args = trainer.args
    images, _ = evaluated(trainer)
    freeze(args)

    @torch.inference_mode()
    def both(count):
        px, py = [], []
        for batch in images[:count].split(kEvaluationBatch):
            logits = trainer.logits(pixels_of(batch, args))
            px.append(torch.logsumexp(logits, dim=1).cpu())
            py.append(logits.softmax(dim=1).amax(dim=1).cpu())
        return torch.cat(px), torch.cat(py)

    return both


def pxgrad(trainer):
    args = trainer.args
    images, _ = evaluated(trainer)

    def lengths(count):
        found = []
        for batch in images[:count].split(kEvaluationBatch):
            x = pixels_of(batch, args).requires_grad_(True)
            (g,) = torch.autograd.grad(torch.logsumexp(trainer.logits(x), dim=1).sum(), x)
            found.append(torch.linalg.vector_norm(g, dim=(1, 2, 3)).cpu())
        return torch.cat(found)

    return lengths


def pgd(trainer):
    """Logits of a step's forward pass tell what the step before has broken."""
    args = trainer.args
    images, _ = evaluated(trainer)
    radius, step = 2 * args.eps / 255, 2 * kAttackStep / 255
    with torch.no_grad():
        labels = torch.cat([trainer.net(pixels_of(batch, args)).argmax(dim=1) for batch in images.split(kEvaluationBatch)])

    def attack(count):
        broken = 0
        for batch, y in zip(images[:count].split(kAttackBatch), labels[:count].split(kAttackBatch)):
            x = pixels_of(batch, args)
            low, high = (x - radius).clamp_(min=-1), (x + radius).clamp_(max=1)
            x = torch.empty_like(x).uniform_(-radius, radius).add_(x).clamp_(-1, 1)
            wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for _ in range(kAttackSteps):
                x.requires_grad_(True)
                logits = trainer.logits(x)
                (g,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
                wrong |= logits.detach().argmax(dim=1) != y
                x = torch.clamp(x.detach().add_(g.sign_(), alpha=step), low, high)
            with torch.no_grad():
                wrong |= trainer.logits(x).argmax(dim=1) != y
            broken += int(wrong.sum())
        return broken

    return attack


def inception(args):
    from torchvision.models import inception_v3
    net = inception_v3(weights=None, num_classes=kInceptionClasses, aux_logits=False, transform_input=False, init_weights=False).eval()
    net.requires_grad_(False)
    if args.out:
        torch.save(net.state_dict(), args.out)
    classes, net.fc = net.fc, nn.Identity()
    net = net.to(args.device, memory_format=torch.channels_last)
    freeze(args)
    forward = torch.compile(net, dynamic=False) if args.compile else net
    images = torch.randint(256, (args.images, args.in_channels, args.image_size, args.image_size), dtype=torch.uint8)

    @torch.inference_mode()
    def features(count):
        found, probabilities = [], []
        for batch in images[:count].split(kInceptionBatch):
            x = F.interpolate(pixels_of(batch, args), size=(kInceptionSize, kInceptionSize), mode="bilinear", align_corners=False)
            found.append(forward(x))
            probabilities.append(F.linear(found[-1], classes.weight).softmax(dim=1))
        return torch.cat(found), torch.cat(probabilities)

    return features


# Modes that work on a number of images, of which an untimed call takes one batch.
MEASUREMENTS = {"scores": (scores, kEvaluationBatch), "pxgrad": (pxgrad, kEvaluationBatch), "pgd": (pgd, kAttackBatch),
                "inception": (lambda trainer: inception(trainer.args), kInceptionBatch)}


def write_png(path, image):
    """image: u8 [H, W, 3]"""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in image)
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def first_image(trainer):
    """A chain starts from the Gaussian of its class's images; one row of images, by predicted class."""
    from safetensors.torch import load_file
    args = trainer.args
    trainer.net.load_state_dict(load_file(args.checkpoint))
    records = torch.cat([torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8).view(-1, 3073)
                         for path in (os.path.join(args.data_dir, f"data_batch_{1 + i}.bin") for i in range(5))])
    starts = torch.empty(args.neg, *trainer.image)
    for label in range(min(args.num_classes, args.neg)):
        pixels = records[records[:, 0] == label, 1:].float().div_(127.5).sub_(1)
        chains = starts[label::args.num_classes]
        chains.copy_(gaussian_starts(pixels, len(chains)).view_as(chains))
    trainer.want_weight_gradients(False)
    x = trainer.chain(starts.contiguous(memory_format=torch.channels_last))
    trainer.net.eval()
    with torch.inference_mode():
        order = trainer.logits(x).argmax(dim=1).argsort()
    row = torch.cat(list(x[order].add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)), dim=1)
    write_png(args.sheet, row.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1))


def resident_bytes(field):
    with open("/proc/self/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, help="6n + 4 (28; of igebm 14 or 20, 14)")
    parser.add_argument("--width", type=int, help="widening factor (10; of igebm 8)")
    for flag, value, what in (("--steps", 5, "SGLD steps"), ("--image-size", 32, ""), ("--in-channels", 3, ""), ("--num-classes", 10, ""),
                              ("--threads", 0, "0: PyTorch's choice"), ("--iterations", 3, "timed ones"), ("--warmup", 1, "untimed ones")):
        parser.add_argument(flag, type=int, default=value, help=f"{what} ({value})".strip())
    parser.add_argument("--recipe", choices=list(RECIPES), default="sada-jem", help="of --mode iteration and train (sada-jem)")
    for flag, what in (("--pos", "images of x+"), ("--neg", "images of x-"), ("--lab", "labelled images")):
        parser.add_argument(flag, type=int, help=f"{what} (the recipe's)")
    parser.add_argument("--mode", choices=["iteration", "train", "sampling", "evaluation", "first-image", *MEASUREMENTS], default="iteration")
    parser.add_argument("--images", type=int, default=1000, help="of --mode evaluation and of measurements (1000)")
    parser.add_argument("--eps", type=float, default=8, help="of --mode pgd, in 1/255 of the pixel range (8)")
    parser.add_argument("--out", help="file of --mode train's checkpoint, or of --mode inception's weights")
    for flag in ("--checkpoint", "--data-dir", "--sheet"):
        parser.add_argument(flag, help="of --mode first-image")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32", help="bf16: autocast; tf32: on a GPU only")
    args = parser.parse_args()
    if args.mode == "train" and not args.out:
        parser.error("--mode train writes a checkpoint (--out is missing). Give --out FILE.")
    if args.recipe != "sada-jem" and args.mode not in ("iteration", "train"):
        parser.error(f"--mode {args.mode} is sada-jem's alone. Leave --recipe {args.recipe} out.")
    recipe = RECIPES[args.recipe]
    for flag, value in (("depth", recipe.depth), ("width", recipe.width), ("pos", recipe.settings.gen_batch_size),
                        ("neg", recipe.settings.gen_batch_size), ("lab", recipe.settings.batch_size)):
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    if wrong := recipe.wrong_depth(args.depth):
        parser.error(f"--depth {args.depth} {wrong}")
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision != "f32"
        torch.backends.cudnn.benchmark = True

    imported_bytes = resident_bytes("VmRSS")
    trainer = recipe(args)
    if args.mode == "first-image":
        first_image(trainer)
        print(json.dumps({"peak_rss_bytes": resident_bytes("VmHWM")}))
        return
    if args.mode in ("iteration", "train"):
        trainer.make_data()
        work = trainer.iterate
    elif args.mode in MEASUREMENTS:
        make, batch = MEASUREMENTS[args.mode]
        measure = make(trainer)
        warmups = iter([batch] * args.warmup)

        def work():
            measure(next(warmups, args.images))
    else:
        work = {"sampling": sampling, "evaluation": evaluation}[args.mode](trainer)
    seconds = []
    for _ in range(args.warmup + args.iterations):
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if args.mode == "train":
        trainer.save(args.out)
    result = {"seconds": seconds[args.warmup:], "warmup_seconds": seconds[:args.warmup], "peak_rss_bytes": resident_bytes("VmHWM"),
              "imported_rss_bytes": imported_bytes, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if on_gpu:
        result["gpu"] = torch.cuda.get_device_name()
        result["gpu_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
