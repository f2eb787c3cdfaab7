"""What hooks and modes stand in PyTorch, so that tests can tell that an audit leaves none. PyTorch keeps it private."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.overrides import _get_current_function_mode_stack


def modes() -> int:
    """Modes that see every operation of this thread."""
    return len(_get_current_function_mode_stack())


def global_hooks() -> int:
    """Forward hooks on all modules there are."""
    return len(modules._global_forward_hooks) + len(modules._global_forward_pre_hooks)


def step_hooks() -> int:
    """Hooks on the steps of all optimisers there are."""
    return len(optimizers._global_optimizer_pre_hooks) + len(optimizers._global_optimizer_post_hooks)


def packs_saved_tensors() -> bool:
    """Whether hooks see what is saved for backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def hooks_on(*objects: nn.Module | Tensor | Optimizer) -> int:
    """Hooks on the forward of modules and of those inside, on the gradients of their parameters, on steps."""
    count = 0
    for each in objects:
        if isinstance(each, Tensor):
            count += len(each._backward_hooks or ())
        elif isinstance(each, Optimizer):
            count += len(each._optimizer_step_pre_hooks) + len(each._optimizer_step_post_hooks)
        else:
            count += sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in each.modules())
            count += hooks_on(*each.parameters())
    return count
