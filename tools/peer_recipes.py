"""A training iteration in PyTorch, as tools/peer_pytorch.py times it: the network, the data and the replay buffer."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

kSgldStepSize = 1.0
kSgldGradClamp = 1.0
kRho = 0.2
kSamEps = 1e-12
kBatchNormMomentum = 0.9
kTrainingImages = 50000  # CIFAR-10's
kBufferSize = 10000
kReinitFreq = 0.05
kCropPadding = 4  # reflected


class Block(nn.Module):
    def __init__(self, width_in, width_out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in, momentum=kBatchNormMomentum)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width_out, momentum=kBatchNormMomentum)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut.append(nn.Conv2d(width_in, width_out, 1, stride=stride))

    def forward(self, x):
        y = self.conv1(F.leaky_relu(self.bn1(x), 0.2, inplace=True))
        y = self.conv2(F.leaky_relu(self.bn2(y), 0.2, inplace=True))
        return y + self.shortcut(x)


class Features(nn.Module):
    def __init__(self, args):
        super().__init__()
        widths = [16 * args.width * 2**group for group in range(4 if args.image_size >= 64 else 3)]
        self.conv1 = nn.Conv2d(args.in_channels, 16, 3, padding=1)
        self.groups = [f"layer{1 + group}" for group in range(len(widths))]
        width_in = 16
        for group, width in enumerate(widths):
            blocks = []
            for block in range((args.depth - 4) // 6):
                blocks.append(Block(width_in, width, 2 if group > 0 and block == 0 else 1))
                width_in = width
            self.add_module(self.groups[group], nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(width_in, momentum=kBatchNormMomentum)

    def forward(self, x):
        x = self.conv1(x)
        for group in self.groups:
            x = getattr(self, group)(x)
        return F.leaky_relu(self.bn1(x), 0.2, inplace=True).mean(dim=(2, 3))


class WideResNet(nn.Module):
    """Its tensors carry the names of the public JEM checkpoints, and so of the engine's."""

    def __init__(self, args):
        super().__init__()
        self.f = Features(args)
        self.class_output = nn.Linear(self.f.bn1.num_features, args.num_classes)

    def forward(self, x):
        return self.class_output(self.f(x))


class Order:
    """Numbers of images, a permutation an epoch; what is left of the last one is dropped."""

    def __init__(self, batch):
        self.batch, self.at, self.order = batch, kTrainingImages, None

    def next(self):
        if self.at + self.batch > kTrainingImages:
            self.order, self.at = torch.randperm(kTrainingImages), 0
        self.at += self.batch
        return self.order[self.at - self.batch:self.at]


def crop_and_flip(x):
    """x: f32 [N, C, H, W]; each image by an offset and a side of its own, channels_last."""
    n, size = len(x), x.shape[2]
    padded = F.pad(x, (kCropPadding,) * 4, mode="reflect")
    at = torch.arange(size, device=x.device)
    rows, columns = (torch.randint(2 * kCropPadding + 1, (n, 1)).to(x.device) for _ in range(2))
    rows = rows + at
    columns = columns + torch.where(torch.rand(n, 1).to(x.device) < 0.5, at, at.flip(0))
    images = torch.arange(n, device=x.device)
    return padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def gaussian_starts(pixels, count):
    """pixels: f32 [N, P], which it changes. From the Gaussian of these images, drawn without a covariance matrix: [count, P]"""
    mean = pixels.mean(dim=0)
    weights = torch.randn(count, len(pixels), device=pixels.device).div_(len(pixels) ** 0.5)
    return torch.addmm(mean, weights, pixels.sub_(mean)).clamp_(-1, 1)


class Trainer:
    def __init__(self, args):
        self.args = args
        self.net = WideResNet(args).to(args.device, memory_format=torch.channels_last).train()
        # Batch sizes, states of requires_grad, and momenta of batch norm: each gets its own compiled graph.
        self.forward = torch.compile(self.net, dynamic=False) if args.compile else self.net
        self.params = list(self.net.parameters())
        self.norms = [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.image = (args.in_channels, args.image_size, args.image_size)

    def images(self, count):
        x = torch.empty(count, *self.image, device=self.args.device).uniform_(-1, 1)
        return x.contiguous(memory_format=torch.channels_last)

    def make_data(self):
        """The set as bytes and the buffer in f32, as the authors' code holds them; not its ten covariance matrices (377 MB)."""
        args = self.args
        self.optimizer = torch.optim.SGD(self.params, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
        self.pixels = torch.randint(256, (kTrainingImages, *self.image), dtype=torch.uint8, device=args.device)
        self.labels = torch.arange(kTrainingImages, device=args.device) % args.num_classes
        self.members = [(self.labels == label).nonzero().flatten() for label in range(args.num_classes)]
        self.buffer = torch.empty(kBufferSize, *self.image, device=args.device).uniform_(-1, 1)
        self.generative, self.labelled = Order(args.pos), Order(args.lab)

    def take(self, numbers):
        x = self.pixels[numbers].to(torch.float32).div_(127.5).sub_(1)
        return x.contiguous(memory_format=torch.channels_last)

    def draw(self):
        args = self.args
        numbers = self.labelled.next().to(args.device)
        self.x_lab, self.y = crop_and_flip(self.take(numbers)), self.labels[numbers]
        self.x_pos = self.take(self.generative.next().to(args.device))
        self.index = torch.randint(kBufferSize, (args.neg,)).to(args.device)
        chains = self.buffer[self.index]
        for chain in (torch.rand(args.neg) < kReinitFreq).nonzero().flatten().tolist():
            members = self.members[torch.randint(args.num_classes, ()).item()]
            chains[chain] = gaussian_starts(self.take(members).flatten(1), 1).view(self.image)
        self.x_neg_start = chains.contiguous(memory_format=torch.channels_last)

    def logits(self, x):
        bf16 = self.args.precision == "bf16"
        autocast = torch.autocast(self.args.device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        with autocast:
            logits = self.forward(x)
        return logits.float()

    def mean_lse(self, x):
        return torch.logsumexp(self.logits(x), dim=1).mean()

    def sgld(self, x):
        for _ in range(self.args.steps):
            x = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(torch.logsumexp(self.logits(x), dim=1).sum(), x)
            x = x.detach().add_(g.clamp_(-kSgldGradClamp, kSgldGradClamp), alpha=kSgldStepSize).clamp_(-1, 1)
        return x.detach()

    def want_weight_gradients(self, wanted):
        for p in self.params:
            p.requires_grad_(wanted)

    def sample(self):
        """Parameters want no gradient meanwhile: less is saved, and a compiled backward computes d x alone."""
        self.want_weight_gradients(False)
        x = self.sgld(self.x_neg_start)
        self.want_weight_gradients(True)
        return x

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
        self.draw()
        self.optimizer.zero_grad(set_to_none=True)
        x_neg, loss = self.accumulate(None)
        self.buffer[self.index] = x_neg
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

    def save(self, path):
        torch.save({"model_state_dict": self.net.state_dict(), "optimizer_state_dict": self.optimizer.state_dict(),
                    "replay_buffer": self.buffer}, path)
