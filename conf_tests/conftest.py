"""One thread a process: small networks gain nothing from more, and workers share the cores."""

import torch

torch.set_num_threads(1)
