"""One thread a process: small networks gain nothing from more, and workers share the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start

import torch  # noqa: E402

torch.set_num_threads(1)
