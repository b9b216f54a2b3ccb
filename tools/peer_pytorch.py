"""Times SADA-JEM training iterations in PyTorch: the peer of the engine's benches.

One iteration is what `step` does with batch norm, SAM and SGD (batches of 64, 64 and 128 images unless told otherwise), on synthetic
data, in f32 on the CPU (--device cuda: on a GPU, --precision f32, tf32 or bf16), written as a competent user of PyTorch would:
channels_last, no parameter gradients while sampling, backward right after each forward so that one batch's activations are alive at a
time, foreach optimizer. Prints one JSON line.

    python3 tools/peer_pytorch.py --depth 10 --width 2 --threads 2 --iterations 3 --warmup 1
"""

import argparse
import contextlib
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

kSgldStepSize = 1.0
kSgldGradClamp = 1.0
kRho = 0.2
kSamEps = 1e-12
kBatchNormMomentum = 0.9


class Block(nn.Module):
    def __init__(self, width_in, width_out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in, momentum=kBatchNormMomentum)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width_out, momentum=kBatchNormMomentum)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride=stride, padding=1)
        self.shortcut = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 1, stride=stride)

    def forward(self, x):
        y = self.conv1(F.leaky_relu(self.bn1(x), 0.2, inplace=True))
        y = self.conv2(F.leaky_relu(self.bn2(y), 0.2, inplace=True))
        return y + self.shortcut(x)


class WideResNet(nn.Module):
    def __init__(self, args):
        super().__init__()
        widths = [16 * args.width * 2**group for group in range(4 if args.image_size >= 64 else 3)]
        layers = [nn.Conv2d(args.in_channels, 16, 3, padding=1)]
        width_in = 16
        for group, width in enumerate(widths):
            for block in range((args.depth - 4) // 6):
                layers.append(Block(width_in, width, 2 if group > 0 and block == 0 else 1))
                width_in = width
        self.body = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width_in, momentum=kBatchNormMomentum)
        self.head = nn.Linear(width_in, args.num_classes)

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.body(x)), 0.2, inplace=True)
        return self.head(x.mean(dim=(2, 3)))


class Trainer:
    def __init__(self, args):
        self.args = args
        self.net = WideResNet(args).to(args.device, memory_format=torch.channels_last).train()
        # Three batch sizes and two states of requires_grad: each gets its own compiled graph.
        self.forward = torch.compile(self.net, dynamic=False) if args.compile else self.net
        self.params = list(self.net.parameters())
        self.norms = [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.optimizer = torch.optim.SGD(self.params, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
        image = (args.in_channels, args.image_size, args.image_size)

        def images(count):
            return torch.empty(count, *image, device=args.device).uniform_(-1, 1).contiguous(memory_format=torch.channels_last)

        self.x_pos, self.x_neg_start, self.x_lab = images(args.pos), images(args.neg), images(args.lab)
        self.y = torch.randint(args.num_classes, (args.lab,), device=args.device)

    def logits(self, x):
        bf16 = self.args.precision == "bf16"
        autocast = torch.autocast(self.args.device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        with autocast:
            logits = self.forward(x)
        return logits.float()

    def mean_lse(self, x):
        return torch.logsumexp(self.logits(x), dim=1).mean()

    def sample(self):
        """SGLD. Parameters want no gradient meanwhile: less is saved, and a compiled backward computes d x alone."""
        for p in self.params:
            p.requires_grad_(False)
        x = self.x_neg_start
        for _ in range(self.args.steps):
            x = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(torch.logsumexp(self.logits(x), dim=1).sum(), x)
            x = x.detach().add_(g.clamp_(-kSgldGradClamp, kSgldGradClamp), alpha=kSgldStepSize).clamp_(-1, 1)
        for p in self.params:
            p.requires_grad_(True)
        return x.detach()

    def accumulate(self, x_neg):
        """Gradients of L_gen + L_clf into .grad, one batch after the other; samples after x+ where x_neg is None."""
        f_pos = self.mean_lse(self.x_pos)
        (-f_pos).backward()
        if x_neg is None:
            x_neg = self.sample()
        f_neg = self.mean_lse(x_neg)
        f_neg.backward()
        loss_clf = F.cross_entropy(self.logits(self.x_lab), self.y)
        loss_clf.backward()
        return x_neg, float(f_neg.detach() - f_pos.detach() + loss_clf.detach())

    def set_running_momentum(self, momentum):
        for norm in self.norms:
            norm.momentum = momentum

    def iterate(self):
        self.optimizer.zero_grad(set_to_none=True)
        x_neg, loss = self.accumulate(None)
        with torch.no_grad():
            grads = [p.grad for p in self.params]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            kept = [p.clone() for p in self.params]
            torch._foreach_add_(self.params, torch._foreach_mul(grads, kRho / (norm + kSamEps)))
            torch._foreach_zero_(grads)
        self.set_running_momentum(0.0)  # running statistics stay as they are
        self.accumulate(x_neg)
        self.set_running_momentum(kBatchNormMomentum)
        with torch.no_grad():
            torch._foreach_copy_(self.params, kept)
        self.optimizer.step()
        return loss


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag, value, what in (("--depth", 28, "6n + 4"), ("--width", 10, "widening factor"), ("--steps", 5, "SGLD steps"),
                              ("--pos", 64, "images of x+"), ("--neg", 64, "images of x-"), ("--lab", 128, "labelled images"),
                              ("--image-size", 32, ""), ("--in-channels", 3, ""), ("--num-classes", 10, ""),
                              ("--threads", 0, "0: PyTorch's choice"), ("--iterations", 3, "timed ones"), ("--warmup", 1, "untimed ones")):
        parser.add_argument(flag, type=int, default=value, help=f"{what} ({value})".strip())
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32", help="bf16: autocast; tf32: on a GPU only")
    args = parser.parse_args()
    if args.depth < 10 or (args.depth - 4) % 6:
        parser.error(f"--depth {args.depth} is no Wide-ResNet (6n + 4 is needed). Use 10, 16, 22, 28, ...")
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision != "f32"
        torch.backends.cudnn.benchmark = True

    trainer = Trainer(args)
    seconds = []
    for iteration in range(args.warmup + args.iterations):
        start = time.perf_counter()
        trainer.iterate()
        if on_gpu:
            torch.cuda.synchronize()
        if iteration >= args.warmup:
            seconds.append(time.perf_counter() - start)
    result = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if on_gpu:
        result["gpu"] = torch.cuda.get_device_name()
        result["gpu_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
