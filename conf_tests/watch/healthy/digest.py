"""One line that tells whether two trainings ended alike."""

import hashlib

import torch
from torch import Tensor, nn


def digest(*modules: nn.Module | Tensor) -> str:
    """Of all parameters and buffers, to the last bit."""
    sha = hashlib.sha256()
    for module in modules:
        tensors = [module] if isinstance(module, Tensor) else [*module.parameters(), *module.buffers()]
        for tensor in tensors:
            sha.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]
