"""Lists the convolutions of pytorch-fid's own Inception module, name and shape: tests/golden/inception_convolutions.txt was made by

    python3 tests/golden/make_inception_convolutions.py >tests/golden/inception_convolutions.txt

(torch, torchvision, pytorch-fid). The weights are not downloaded.
"""
from unittest import mock

import torch
from pytorch_fid import inception

with mock.patch.object(inception, "load_state_dict_from_url", return_value={}), mock.patch.object(torch.nn.Module, "load_state_dict"):
    module = inception.fid_inception_v3()
for name, tensor in module.state_dict().items():
    if name.endswith(".conv.weight"):
        print(name.removesuffix(".conv.weight"), *tensor.shape)
