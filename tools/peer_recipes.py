"""Training iterations in PyTorch, as tools/peer_pytorch.py times them: the network, the data, the replay buffer, and a class a recipe.

A recipe's numbers stand by the engine's names in its settings, and tests/cli/test_peer.sh holds them to the engine's own, the iteration to
tests/golden. Another recipe is another class in RECIPES; one with another network overrides make_net, depth, width and wrong_depth.
"""

import contextlib
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

kSamEps = 1e-12
kUnitEps = 1e-10  # of g / (|g| + eps)
kBatchNormMomentum = 0.9
kAdamBeta2 = 0.999
kClampFloor = 0.1  # of Adam's clamp
kUnitVectorEps = 1e-12  # of a / (|a| + eps) in the spectral norm
kCapEps = 1e-6  # of s = sigma + eps
kTrainingImages = 50000  # CIFAR-10's
kBufferSize = 10000
kCropPadding = 4  # reflected
kPixelRange = 2 / 255  # what attacks are measured in


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are SADA-JEM's."""
    norm: str = "batch"
    batch_size: int = 128  # x_lab
    gen_batch_size: int = 64  # x+ and x-
    gen_augment: str = "off"  # of x+; x_lab always is
    input_noise: float = 0.0
    input_noise_on: str = "generative"
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    adam_beta1: float = 0.9
    adam_clamp: float = 0.0
    weight_decay: float = 5e-4
    ema: float = 0.0
    p_y_given_x_weight: float = 1.0
    energy_l2: float = 0.0
    sgld_step_size: float = 1.0
    sgld_noise: float = 0.0
    sgld_noise_first: bool = False
    sgld_grad_clamp: float = 1.0
    sgld_pixel_clamp: bool = True
    inner_steps: int = 0
    inner_step_size: float = 0.2
    reinit_freq: float = 0.05
    init: str = "informative"
    buffer_order: str = "in-place"
    sam: str = "sam"
    rho: float = 0.2
    attack_eps: float = 8.0
    attack_steps: int = 10
    attack_step_size: float = 2.0


def norm_of(kind, channels):
    return nn.BatchNorm2d(channels, momentum=kBatchNormMomentum) if kind == "batch" else nn.Identity()


class Block(nn.Module):
    def __init__(self, norm, width_in, width_out, stride):
        super().__init__()
        self.bn1 = norm_of(norm, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.bn2 = norm_of(norm, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut.append(nn.Conv2d(width_in, width_out, 1, stride=stride))
        self.x_is_normed = norm != "none"  # else the shortcut still needs what would be activated in place

    def forward(self, x):
        y = self.conv1(F.leaky_relu(self.bn1(x), 0.2, inplace=self.x_is_normed))
        y = self.conv2(F.leaky_relu(self.bn2(y), 0.2, inplace=True))
        return y + self.shortcut(x)


class Features(nn.Module):
    def __init__(self, args, norm):
        super().__init__()
        widths = [16 * args.width * 2**group for group in range(4 if args.image_size >= 64 else 3)]
        self.conv1 = nn.Conv2d(args.in_channels, 16, 3, padding=1)
        self.groups = [f"layer{1 + group}" for group in range(len(widths))]
        width_in = 16
        for group, width in enumerate(widths):
            blocks = []
            for block in range((args.depth - 4) // 6):
                blocks.append(Block(norm, width_in, width, 2 if group > 0 and block == 0 else 1))
                width_in = width
            self.add_module(self.groups[group], nn.Sequential(*blocks))
        self.bn1 = norm_of(norm, width_in)
        self.num_features = width_in

    def after_stem(self, x):
        """From the first convolution's output."""
        for group in self.groups:
            x = getattr(self, group)(x)
        return F.leaky_relu(self.bn1(x), 0.2, inplace=True).mean(dim=(2, 3))

    def forward(self, x):
        return self.after_stem(self.conv1(x))


class WideResNet(nn.Module):
    """Its tensors carry the names of the public JEM checkpoints, and so of the engine's."""

    def __init__(self, args, norm):
        super().__init__()
        self.f = Features(args, norm)
        self.class_output = nn.Linear(self.f.num_features, args.num_classes)

    def after_stem(self, x):
        return self.class_output(self.f.after_stem(x))

    def forward(self, x):
        return self.class_output(self.f(x))


def unit_vector(a):
    return a / (torch.linalg.vector_norm(a) + kUnitVectorEps)


class SpectralConv(nn.Module):
    """3x3, by its weights over an estimate of their largest singular value, made once an iteration; capped: only where that is above 1."""

    def __init__(self, width_in, width_out, capped=False):
        super().__init__()
        # Where the second convolution of a block is next to nothing, the block is its shortcut.
        self.weight = nn.Parameter(torch.empty(width_out, width_in, 3, 3).normal_(std=1e-10 if capped else 1))
        self.register_buffer("weight_u", torch.ones(width_out))
        self.capped = capped
        self.normalised = None  # a leaf: passes leave their gradients there, which go through the estimate once

    def normalise(self):
        """One step of power iteration, whose vectors are constants of the gradient. Returns what .normalised is, with the way back to .weight."""
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # as the weights lie in memory
        v = unit_vector(matrix.detach().T @ self.weight_u)
        product = matrix @ v
        self.weight_u.copy_(unit_vector(product.detach()))
        sigma = self.weight_u @ product
        normalised = self.weight / ((sigma + kCapEps).clamp(min=1) if self.capped else sigma)
        self.normalised = normalised.detach().requires_grad_(True)
        return normalised

    def forward(self, x):
        return F.conv2d(x, self.normalised, padding=1)


def by_channel(values, x):
    """In the type of x, which autocast would widen else."""
    return values.to(x.dtype)[:, None, None]


class IgebmBlock(nn.Module):
    def __init__(self, width_in, width_out, halves):
        super().__init__()
        self.shift1 = nn.Parameter(torch.zeros(width_in))
        self.conv1 = SpectralConv(width_in, width_out)
        self.shift2 = nn.Parameter(torch.zeros(width_out))
        self.conv2 = SpectralConv(width_out, width_out, capped=True)
        self.gain = nn.Parameter(torch.ones(width_out))
        self.shortcut = SpectralConv(width_in, width_out) if width_in != width_out else nn.Identity()
        self.halves = halves

    def forward(self, x):
        y = F.leaky_relu(self.conv1(x + by_channel(self.shift1, x)), 0.2, inplace=True)
        y = self.conv2(y + by_channel(self.shift2, y))
        y = torch.addcmul(self.shortcut(x), y, by_channel(self.gain, y))
        return F.leaky_relu(F.avg_pool2d(y, 2) if self.halves else y, 0.2, inplace=True)


class IgebmFeatures(nn.Module):
    def __init__(self, args):
        super().__init__()
        blocks_a_part = (args.depth - 2) // 6
        factors = (1, 2, 2) if blocks_a_part == 2 else (1, 2, 4)
        widths = [16 * args.width * factor for factor in factors for _ in range(blocks_a_part)]
        self.conv1 = SpectralConv(args.in_channels, widths[0])
        self.blocks = [f"block{i}" for i in range(len(widths))]
        for i, width in enumerate(widths):
            self.add_module(self.blocks[i], IgebmBlock(widths[max(i - 1, 0)], width, halves=i % blocks_a_part == 0))
        self.num_features = widths[-1]

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2, inplace=True)
        for block in self.blocks:
            x = getattr(self, block)(x)
        return F.relu(x).sum(dim=(2, 3))


class IgebmNet(nn.Module):
    """IGEBM's residual network, of depth 14 or 20, without dropout. Its tensors carry the engine's names."""

    def __init__(self, args):
        super().__init__()
        self.f = IgebmFeatures(args)
        self.class_output = nn.Linear(self.f.num_features, args.num_classes)
        self.convs = [module for module in self.modules() if isinstance(module, SpectralConv)]

    def forward(self, x):
        return self.class_output(self.f(x))


class ClampedAdam(torch.optim.Adam):
    """Each value of the gradient is clamped by the second moment as it was before the step, as IGEBM's custom_adam.py does."""

    def __init__(self, params, clamp, **settings):
        super().__init__(params, **settings)
        self.clamp = clamp

    @torch.no_grad()
    def clamp_gradients(self):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        states = [self.state[p] for group in self.param_groups for p in group["params"]]
        if not states[0]:  # there is no moment yet
            torch._foreach_clamp_min_(grads, -kClampFloor)
            torch._foreach_clamp_max_(grads, kClampFloor)
            return
        limits = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
        torch._foreach_mul_(limits, self.clamp / (1 - kAdamBeta2 ** float(states[0]["step"])) ** 0.5)
        torch._foreach_add_(limits, kClampFloor)
        torch._foreach_clamp_max_(grads, limits)
        torch._foreach_clamp_min_(grads, torch._foreach_neg(limits))

    def step(self):
        self.clamp_gradients()
        super().step()


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


def lse(logits):
    return torch.logsumexp(logits, dim=1)


def class_logit(logits, y):
    return logits.gather(1, y[:, None]).squeeze(1)


def lengths_of(x):
    """Of each image, [N, 1, 1, 1]."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


class SadaJem:
    settings = Settings()
    depth, width = 28, 10  # unless told otherwise
    nesterov = False

    def __init__(self, args):
        self.args = args
        self.net = self.make_net().to(args.device, memory_format=torch.channels_last).train()
        # Batch sizes, states of requires_grad, and momenta of batch norm: each gets its own compiled graph.
        self.forward = self.compiled(self.net)
        self.params = list(self.net.parameters())
        self.norms = [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.image = (args.in_channels, args.image_size, args.image_size)

    @staticmethod
    def wrong_depth(depth):
        """What is wrong with it, or None."""
        return "is no Wide-ResNet (6n + 4 is needed). Use 10, 16, 22, 28, ..." if depth < 10 or (depth - 4) % 6 else None

    def make_net(self):
        return WideResNet(self.args, self.settings.norm)

    def compiled(self, function):
        return torch.compile(function, dynamic=False) if self.args.compile else function

    def images(self, count):
        x = torch.empty(count, *self.image, device=self.args.device).uniform_(-1, 1)
        return x.contiguous(memory_format=torch.channels_last)

    def make_optimizer(self):
        s = self.settings
        if s.optimizer == "sgd":
            return torch.optim.SGD(self.params, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay, nesterov=self.nesterov, foreach=True)
        of_adam = {"lr": s.lr, "betas": (s.adam_beta1, kAdamBeta2), "weight_decay": s.weight_decay, "foreach": True}
        return ClampedAdam(self.params, s.adam_clamp, **of_adam) if s.adam_clamp > 0 else torch.optim.Adam(self.params, **of_adam)

    def make_data(self):
        """The set as bytes and the buffer in f32, as the authors' code holds them; not its ten covariance matrices (377 MB). Where all chains
        start afresh there is no buffer."""
        args, s = self.args, self.settings
        self.optimizer = self.make_optimizer()
        self.average = [p.detach().clone() for p in self.params] if s.ema > 0 else None
        self.pixels = torch.randint(256, (kTrainingImages, *self.image), dtype=torch.uint8, device=args.device)
        self.labels = torch.arange(kTrainingImages, device=args.device) % args.num_classes
        self.members = [(self.labels == label).nonzero().flatten() for label in range(args.num_classes)]
        self.buffer = None
        if s.reinit_freq < 1:
            self.buffer = torch.empty(kBufferSize, *self.image, device=args.device).uniform_(-1, 1)
            self.places = torch.arange(args.neg, device=args.device)  # of the oldest images
        self.generative, self.labelled = Order(args.pos), Order(args.lab)

    def take(self, numbers):
        x = self.pixels[numbers].to(torch.float32).div_(127.5).sub_(1)
        return x.contiguous(memory_format=torch.channels_last)

    def real(self, numbers, augmented, noise):
        x = self.take(numbers)
        if augmented:
            x = crop_and_flip(x)
        return x.add_(torch.randn_like(x), alpha=noise) if noise > 0 else x

    def draw(self):
        args, s = self.args, self.settings
        if s.p_y_given_x_weight > 0:
            numbers = self.labelled.next().to(args.device)
            self.x_lab = self.real(numbers, True, s.input_noise if s.input_noise_on == "both" else 0)
            self.y = self.labels[numbers]
        numbers = self.generative.next().to(args.device)
        self.x_pos, self.y_pos = self.real(numbers, s.gen_augment == "on", s.input_noise), self.labels[numbers]
        self.x_neg_start = self.starts()

    def starts(self):
        args, s = self.args, self.settings
        if self.buffer is None:
            return self.images(args.neg)
        self.index = torch.randint(kBufferSize, (args.neg,)).to(args.device)
        chains = self.buffer[self.index]
        fresh = (torch.rand(args.neg) < s.reinit_freq).nonzero().flatten()
        if s.init == "uniform":
            chains[fresh.to(args.device)] = self.images(len(fresh))
        else:
            for chain in fresh.tolist():
                members = self.members[torch.randint(args.num_classes, ()).item()]
                chains[chain] = gaussian_starts(self.take(members).flatten(1), 1).view(self.image)
        return chains.contiguous(memory_format=torch.channels_last)

    def store(self, x_neg):
        if self.settings.buffer_order == "fifo":
            self.buffer[self.places] = x_neg
            self.places.add_(len(x_neg)).remainder_(kBufferSize)
        else:
            self.buffer[self.index] = x_neg

    def arithmetic(self):
        bf16 = self.args.precision == "bf16"
        return torch.autocast(self.args.device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()

    def logits(self, x):
        return self.logits_by(self.forward, x)

    def logits_by(self, forward, x):
        with self.arithmetic():
            logits = forward(x)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def want_weight_gradients(self, wanted):
        for p in self.params:
            p.requires_grad_(wanted)

    @contextlib.contextmanager
    def weights_at_rest(self):
        """Parameters want no gradient meanwhile: less is saved, and a compiled backward computes d x alone."""
        self.want_weight_gradients(False)
        yield
        self.want_weight_gradients(True)

    def climb(self, x, steps, value, move):
        """value: logits -> of each image what its steps climb. move: changes x, by the gradient there."""
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(value(self.logits(x)).sum(), x)
            x = move(x.detach(), g)
        return x

    def sgld_step(self, x, g):
        s = self.settings
        if s.sgld_grad_clamp > 0:
            g.clamp_(-s.sgld_grad_clamp, s.sgld_grad_clamp)
        x.add_(g, alpha=s.sgld_step_size)
        if s.sgld_noise > 0 and not s.sgld_noise_first:
            x.add_(torch.randn_like(x), alpha=s.sgld_noise)
        return x.clamp_(-1, 1) if s.sgld_pixel_clamp else x

    def chain(self, x):
        """What it starts from is lost."""
        return self.climb(x, self.args.steps, lse, self.sgld_step)

    def sample(self):
        with self.weights_at_rest():
            return self.chain(self.x_neg_start)

    def accumulate(self, x_neg):
        """Gradients of L_gen + L_clf into .grad, one batch after the other; samples after x+ where x_neg is None. x-, and the loss."""
        f_pos = lse(self.logits(self.x_pos)).mean()
        (-f_pos).backward()
        if x_neg is None:
            x_neg = self.sample()
        f_neg = lse(self.logits(x_neg)).mean()
        f_neg.backward()
        loss_clf = F.cross_entropy(self.logits(self.x_lab), self.y)
        loss_clf.backward()
        return x_neg, float(f_neg.detach() - f_pos.detach() + loss_clf.detach())

    def set_running_momentum(self, momentum):
        for norm in self.norms:
            norm.momentum = momentum

    def sharpen(self, x_neg):
        """SAM: gradients at the perturbed weights in place of those that are there."""
        with torch.no_grad():
            grads = [p.grad for p in self.params]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            kept = [p.clone() for p in self.params]
            torch._foreach_add_(self.params, torch._foreach_mul(grads, self.settings.rho / (norm + kSamEps)))
            torch._foreach_zero_(grads)
        self.set_running_momentum(0.0)  # running statistics stay as they are
        self.accumulate(x_neg)
        self.set_running_momentum(kBatchNormMomentum)
        with torch.no_grad():
            torch._foreach_copy_(self.params, kept)

    def iterate(self):
        s = self.settings
        self.draw()
        self.optimizer.zero_grad(set_to_none=True)
        x_neg, loss = self.accumulate(None)
        if self.buffer is not None:
            self.store(x_neg)
        if s.sam == "sam":
            self.sharpen(x_neg)
        self.optimizer.step()
        if s.ema > 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1 - s.ema)
        return loss

    def save(self, path):
        weights = self.net.state_dict()
        kept = {"model_state_dict": weights, "optimizer_state_dict": self.optimizer.state_dict(), "replay_buffer": self.buffer,
                "average": self.average}
        torch.save({name: value for name, value in kept.items() if value is not None}, path)


class Jem(SadaJem):
    settings = Settings(norm="none", batch_size=64, gen_augment="on", input_noise=0.03, input_noise_on="both", optimizer="adam", lr=1e-4,
                        weight_decay=0.0, sgld_noise=0.01, sgld_grad_clamp=0.0, sgld_pixel_clamp=False, init="uniform", sam="none")

    def accumulate(self, x_neg):
        return super().accumulate(self.sample() if x_neg is None else x_neg)  # the chain comes before x+


class JemPlusPlus(SadaJem):
    """Inner steps are taken one by one as the authors' program takes them, though the first convolution is linear. It also takes the gradient
    by x in each pass, which is not used: not here."""
    settings = Settings(batch_size=64, gen_augment="on", input_noise=0.03, input_noise_on="both", weight_decay=4e-4, inner_steps=5, sam="none")

    def __init__(self, args):
        super().__init__(args)
        self.after_stem = self.compiled(self.net.after_stem)

    def stem(self, x):
        with self.arithmetic():
            return self.net.f.conv1(x)

    def chain(self, x):
        s = self.settings
        for _ in range(self.args.steps):
            with torch.no_grad():
                stem = self.stem(x)
            stem.requires_grad_(True)
            (p,) = torch.autograd.grad(lse(self.logits_by(self.after_stem, stem)).sum(), stem)
            for _ in range(s.inner_steps):
                x = x.detach().requires_grad_(True)
                (g,) = torch.autograd.grad((self.stem(x) * p).sum(), x)
                x = x.detach().add_(g.clamp_(-s.sgld_grad_clamp, s.sgld_grad_clamp), alpha=s.inner_step_size).clamp_(-1, 1)
        return x


class Dat(SadaJem):
    """The second stage. Its chains climb the logits of the classes of x+."""
    settings = Settings(gen_batch_size=128, gen_augment="on", lr=0.001, ema=0.999, sgld_step_size=0.2, sgld_grad_clamp=0.0, reinit_freq=1.0,
                        init="uniform", sam="none", attack_eps=127.5, attack_step_size=25.5)
    nesterov = True

    def __init__(self, args):
        super().__init__(args)
        self.net.eval()  # running statistics everywhere, for good

    def unit_step(self, x, g, length):
        return x.addcdiv_(g, lengths_of(g).add_(kUnitEps), value=length)

    def chain(self, x):
        return self.climb(x, self.args.steps, lambda logits: class_logit(logits, self.y_pos),
                          lambda x, g: self.unit_step(x, g, self.settings.sgld_step_size).clamp_(-1, 1))

    def attack(self):
        s, centre = self.settings, self.x_lab
        radius = s.attack_eps * kPixelRange

        def move(x, g):
            way = self.unit_step(x, g, s.attack_step_size * kPixelRange).sub_(centre)
            return way.mul_(radius / lengths_of(way).clamp_(min=radius)).add_(centre).clamp_(-1, 1)

        with self.weights_at_rest():
            return self.climb(centre.clone(), s.attack_steps, lambda logits: F.cross_entropy(logits, self.y, reduction="none"), move)

    def accumulate(self, x_neg):
        count = self.args.pos + self.args.neg
        loss_pos = F.softplus(-lse(self.logits(self.x_pos))).sum() / count
        loss_pos.backward()
        x_neg = self.sample()
        loss_neg = F.softplus(lse(self.logits(x_neg))).sum() / count
        loss_neg.backward()
        loss_clf = F.cross_entropy(self.logits(self.attack()), self.y)
        loss_clf.backward()
        return x_neg, float(loss_pos.detach() + loss_neg.detach() + loss_clf.detach())


class Igebm(SadaJem):
    """The energy of an image and a class alone. Its chains climb the logits of the classes of x+."""
    settings = Settings(norm="none", gen_batch_size=128, optimizer="adam", lr=3e-4, adam_beta1=0.0, adam_clamp=3.0, weight_decay=0.0,
                        p_y_given_x_weight=0.0, energy_l2=1.0, sgld_step_size=40.0, sgld_noise=0.01, sgld_noise_first=True,
                        sgld_grad_clamp=0.005, init="uniform", buffer_order="fifo", sam="none")
    depth, width = 14, 8

    @staticmethod
    def wrong_depth(depth):
        return None if depth in (14, 20) else "is no network of IGEBM's (it has 14 or 20). Use one of them."

    def make_net(self):
        return IgebmNet(self.args)

    def want_weight_gradients(self, wanted):
        """Of what the passes see: normalised weights in place of weights."""
        for values in self.seen:
            values.requires_grad_(wanted)

    def of_class(self, logits):
        return class_logit(logits, self.y_pos)

    def chain(self, x):
        for _ in range(self.args.steps):
            x = self.climb(x.add_(torch.randn_like(x), alpha=self.settings.sgld_noise), 1, self.of_class, self.sgld_step)
        return x

    def accumulate(self, x_neg):
        s, convs = self.settings, self.net.convs
        normalised = [conv.normalise() for conv in convs]
        leaves = [conv.normalised for conv in convs]
        self.seen = leaves + [p for p in self.params if p.dim() != 4]
        f_pos = self.of_class(self.logits(self.x_pos))
        loss_pos = s.energy_l2 * f_pos.square().mean() - f_pos.mean()
        loss_pos.backward()
        x_neg = self.sample()
        f_neg = self.of_class(self.logits(x_neg))
        loss_neg = s.energy_l2 * f_neg.square().mean() + f_neg.mean()
        loss_neg.backward()
        torch.autograd.backward(normalised, [leaf.grad for leaf in leaves])
        return x_neg, float(loss_pos.detach() + loss_neg.detach())


RECIPES = {"sada-jem": SadaJem, "jem": Jem, "jem++": JemPlusPlus, "dat": Dat, "igebm": Igebm}
