"""Golden files of FID's Inception-v3: what pytorch-fid's own module makes of two images, layer by layer, in f64 with weights by a formula.

The files in tests/golden/inception were made by

    python3 tests/golden/make_inception.py --out tests/golden/inception

(needs torch, torchvision, pytorch-fid, numpy and safetensors; half a minute). Nothing is downloaded: weights, running statistics and images
come from the formula of make_golden.py, rounded to f32, by the tensors' names (`state`), and the C++ test repeats it. `299` sees
images as pytorch-fid does, resized to 299 pixels; `75` the same images at 75, the smallest size, for slow builds and the plain loops.
Stored are probes of make_golden.py (norm, a dot product, 48 samples) of every layer's output in the order [N, C, H, W].
`logits` are with the last layer's bias, `logits_without_bias` as the Inception Score takes them.
"""

import argparse
import os

import numpy as np
import pytorch_fid.inception as fid
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from make_golden import probe, signed, uniforms

kSeed = 1
kImages = (2, 3, 32, 40)
kSizes = (299, 75)


def rounded(values, shape):
    return torch.from_numpy(values.astype(np.float32).astype(np.float64).reshape(tuple(shape)))


def state(module):
    """The state dict of a module by the formula: activations keep their magnitude from layer to layer."""
    found = {}
    for name, old in module.state_dict().items():
        n = old.numel()
        if name.endswith("num_batches_tracked"):
            found[name] = old
        elif name.endswith(".conv.weight"):
            found[name] = rounded(signed(kSeed, name, n) * np.sqrt(6.0 / old[0].numel()), old.shape)
        elif name.startswith("fc."):
            found[name] = rounded(signed(kSeed, name, n) / np.sqrt(module.fc.in_features), old.shape)
        elif name.endswith(("bn.weight", "running_var")):
            found[name] = rounded(0.5 + uniforms(kSeed, name, n), old.shape)
        elif name.endswith("bn.bias"):
            found[name] = rounded(0.3 * signed(kSeed, name, n), old.shape)
        elif name.endswith("running_mean"):
            found[name] = rounded(0.2 * signed(kSeed, name, n), old.shape)
        else:
            raise SystemExit(f"No formula for {name}.")
    return found


def network():
    """pytorch-fid's FID Inception with those weights, and its wrapper around it."""
    download, load = fid.load_state_dict_from_url, torch.nn.Module.load_state_dict
    # Its constructor downloads weights and loads them: in their place, those that the module has already.
    fid.load_state_dict_from_url = lambda *_, **__: {}
    torch.nn.Module.load_state_dict = lambda *_, **__: None
    try:
        inception = fid.fid_inception_v3()
    finally:
        fid.load_state_dict_from_url, torch.nn.Module.load_state_dict = download, load
    inception.double().load_state_dict(state(inception))
    original, fid.fid_inception_v3 = fid.fid_inception_v3, lambda: inception
    try:
        return inception, fid.InceptionV3(output_blocks=[3]).double().eval()
    finally:
        fid.fid_inception_v3 = original


def named_layers(inception, wrapper):
    layers = {name: module for name, module in inception.named_children() if name.startswith(("Conv2d", "Mixed"))}
    layers["maxpool1"], layers["maxpool2"] = wrapper.blocks[0][-1], wrapper.blocks[1][-1]
    return layers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    os.makedirs(out, exist_ok=True)
    inception, wrapper = network()
    images = rounded(signed(kSeed, "images", int(np.prod(kImages))), kImages)
    for size in kSizes:
        tensors = {}

        def keep(name):
            def hook(_, __, output):
                tensors[name] = probe(output)

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in named_layers(inception, wrapper).items()]
        with torch.no_grad():
            seen = (images + 1) / 2
            wrapper.resize_input = size == 299
            if not wrapper.resize_input:
                seen = F.interpolate(seen, size=(size, size), mode="bilinear", align_corners=False)
            features = wrapper(seen)[0].flatten(1)
            tensors["features"] = probe(features)
            tensors["logits"] = probe(inception.fc(features))
            tensors["logits_without_bias"] = probe(F.linear(features, inception.fc.weight))
        for hook in hooks:
            hook.remove()
        assert len(tensors) == 21
        save_file(tensors, os.path.join(out, f"{size}.safetensors"))
        print(size, {name: float(t[0]) for name, t in tensors.items()})


if __name__ == "__main__":
    main()
