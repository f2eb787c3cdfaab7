"""`explain` finds the exhibit from messages as people meet them, and says "not known" to the rest."""

# ruff: noqa: E501  (messages are kept as torch prints them)

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch

from stopgrad.__main__ import main
from stopgrad.museum import exhibits
from stopgrad.museum.explain import answer, find, squeezed

INPLACE = "RuntimeError: one of the variables needed for gradient computation has been modified by an inplace operation"
ANOMALY = "Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
TWICE = "RuntimeError: Trying to backward through the graph a second time"
FINISHED = "Expected to have finished reduction in the prior iteration before starting a new one."

LIGHTNING = """\
Traceback (most recent call last):
  File "train.py", line 54, in <module>
    trainer.fit(model, loader)
  File "/site-packages/lightning/pytorch/trainer/trainer.py", line 560, in fit
    call._call_and_handle_interrupt(
  File "/site-packages/lightning/pytorch/trainer/call.py", line 49, in _call_and_handle_interrupt
    return trainer_fn(*args, **kwargs)
  File "/site-packages/torch/autograd/graph.py", line 829, in _engine_run_backward
    return Variable._execution_engine.run_backward(
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
"""
RICH = """\
╭──────────────────── Traceback (most recent call last) ─────────────────────╮
│ /admin/peft/model/trainer.py:480 in <module>                               │
│ ❱ 480     loss.backward()                                                   │
│ RuntimeError: element 0 of tensors does not require                        │
│ grad and does not have a grad_fn                                           │
╰────────────────────────────────────────────────────────────────────────────╯
"""
CHAINED = """\
/site-packages/torch/_tensor.py:1083: UserWarning: The .grad attribute of a Tensor that is not a leaf Tensor is being accessed.
Epoch 0: 100%|████| 10/10
Traceback (most recent call last):
  File "a.py", line 3, in <module>
ValueError: can't optimize a non-leaf Tensor

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 5, in <module>
    loss.backward()
RuntimeError: Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed).
"""

KNOWN = [
    # the loss has no graph: versions from 0.1 to today, other indices, wrapped by Lightning, rich, C++ and other trainers
    ("no_graph", "element 0 of tensors does not require grad and does not have a grad_fn"),
    ("no_graph", "RuntimeError: element 1 of tensors does not require grad and does not have a grad_fn"),
    ("no_graph", "RuntimeError: element 0 of variables does not require grad and does not have a grad_fn"),
    (
        "no_graph",
        "RuntimeError: element 0 of variables tuple is volatile; element 0 of variables tuple does not require grad",
    ),
    ("no_graph", "RuntimeError: there are no graph nodes that require computing gradients"),
    ("no_graph", LIGHTNING),
    ("no_graph", RICH),
    (
        "no_graph",
        "\x1b[31mRuntimeError\x1b[0m: element 0 of \x1b[1mtensors\x1b[0m does not\n  require grad and does not have a grad_fn",
    ),
    (
        "no_graph",
        "terminate called after throwing c10::Error\n what(): element 0 of tensors does not require grad and does not have a grad_fn\nException raised from run_backward at autograd.cpp:105",
    ),
    # written in place: with and without details, CPU and CUDA, half precision, node names of old and new versions
    ("inplace_activation", INPLACE),
    (
        "inplace_activation",
        f"{INPLACE}: [torch.FloatTensor [3]], which is output 0 of Sigmoid, is at version 1; expected version 0 instead. {ANOMALY}",
    ),
    (
        "inplace_activation",
        f"{INPLACE}: [torch.cuda.FloatTensor [4, 128, 64, 64]], which is output 0 of ReluBackward0, is at version 1; expected version 0 instead. Hint: the backtrace further above shows the operation",
    ),
    (
        "inplace_activation",
        f"{INPLACE}: [torch.cuda.HalfTensor [10, 49]], which is output 0 of SubBackward0, is at version 1; expected version 0 instead.",
    ),
    (
        "inplace_activation",
        f"[rank1]: {INPLACE}: [torch.cuda.FloatTensor [80, 1]], which is output 0 of UnsqueezeBackward0, is at version 1, not expected version 0.",
    ),
    (
        "step_before_backward",
        f"{INPLACE}: [torch.FloatTensor [128, 1]], which is output 0 of TBackward, is at version 2; expected version 1 instead.",
    ),
    (
        "step_before_backward",
        f"{INPLACE}: [torch.FloatTensor [8, 1]], which is output 0 of AsStridedBackward0, is at version 2; expected version 1 instead.",
    ),
    (
        "step_before_backward",
        f"{INPLACE}: [torch.FloatTensor [8, 1]], which is output 0 of AsStrided, is at version 2; expected version 1 instead.",
    ),
    (
        "step_before_backward",
        f"{INPLACE}: [torch.cuda.FloatTensor [1, 512, 4, 4]] is at version 2; expected version 1 instead.",
    ),
    (
        "step_before_backward",
        f"{INPLACE}: [torch.cuda.BFloat16Tensor [64]] is at version 3; expected version 2 instead.",
    ),
    # the graph is gone
    (
        "backward_twice",
        f"{TWICE}, but the buffers have already been freed. Specify retain_graph=True when calling backward the first time.",
    ),
    ("backward_twice", f"{TWICE}, but the saved intermediate results have already been freed."),
    ("backward_twice", f"{TWICE} (or directly access saved variables after they have already been freed)."),
    ("backward_twice", f"{TWICE} (or directly access saved tensors after they have already been freed)."),
    ("backward_twice", CHAINED),
    # inference mode
    (
        "inference_saved",
        "RuntimeError: Inference tensors cannot be saved for backward. To work around you can make a clone to get a normal tensor and use it in autograd.",
    ),
    (
        "inference_saved",
        "RuntimeError: Inference tensors cannot be saved for backward. Please do not use Tensors created in inference mode in computation tracked by autograd.",
    ),
    (
        "inference_inplace",
        "Skipping...\nInplace update to inference tensor outside InferenceMode is not allowed.You can make a clone to get a normal tensor",
    ),
    (
        "inference_inplace",
        "RuntimeError: Setting requires_grad=True on inference tensor outside InferenceMode is not allowed.",
    ),
    # views
    ("detach_view", "RuntimeError: Can't detach views in-place. Use detach() instead"),
    (
        "detach_view",
        "RuntimeError: Can't detach views in-place. Use detach() instead. If you are using DistributedDataParallel (DDP) for training, and gradient_as_bucket_view is set as True",
    ),
    (
        "unbind_inplace",
        "RuntimeError: Output 0 of UnbindBackward is a view and is being modified inplace. This view is the output of a function that returns multiple views.",
    ),
    ("unbind_inplace", "RuntimeError: Output 2 of SplitBackward0 is a view and is being modified inplace."),
    (
        "unbind_inplace",
        "RuntimeError: Output 0 of ViewBackward0 is a view and its base or another view of its base has been modified inplace. This view is the output of a function that returns multiple views. Such functions do not allow the output views to be modified inplace.",
    ),
    ("unbind_inplace", "RuntimeError: Output 1 of ChunkBackward is a view and is being modified inplace."),
    (
        "view_no_grad",
        "RuntimeError: A view was created in no_grad mode and is being modified inplace with grad mode enabled.",
    ),
    (
        "view_no_grad",
        "RuntimeError: A view was created in no_grad mode and its base or another view of its base has been modified inplace with grad mode enabled. This view was created",
    ),
    (
        "view_no_grad",
        "RuntimeError: A view was created in inference mode and is being modified inplace in normal mode.",
    ),
    (
        "hook_inplace",
        "RuntimeError: Output 0 of BackwardHookFunctionBackward is a view and is being modified inplace. This view was created inside a custom Function (or because an input was returned as-is) and the autograd logic to handle view+inplace would override the custom backward",
    ),
    ("hook_inplace", "RuntimeError: Output 0 of BackwardHookFunction is a view and is being modified inplace."),
    (
        "hook_inplace",
        "RuntimeError: Output 0 of MyFunctionBackward is a view and is being modified inplace. This view was created inside a custom Function (or because an input was returned as-is)",
    ),
    # numbers, arrays, copies, other processes
    (
        "numpy_grad",
        "RuntimeError: Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.",
    ),
    (
        "numpy_grad",
        "RuntimeError: Can't call numpy() on Variable that requires grad. Use var.detach().numpy() instead.",
    ),
    (
        "scalar_warning",
        "train.py:8: UserWarning: Converting a tensor with requires_grad=True to a scalar may lead to unexpected behavior.\nConsider using tensor.detach() first.",
    ),
    (
        "deepcopy_graph",
        "RuntimeError: Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the moment",
    ),
    (
        "deepcopy_graph",
        "Only Variables created explicitly by the user (graph leaves) support the deepcopy protocol at the moment",
    ),
    (
        "queue_graph",
        "RuntimeError: Cowardly refusing to serialize non-leaf tensor which requires_grad, since autograd does not support crossing process boundaries.",
    ),
    # leaves
    ("leaf_inplace", "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation."),
    ("leaf_inplace", "RuntimeError: a leaf Variable that requires grad has been used in an in-place operation."),
    (
        "leaf_inplace",
        "RuntimeError: a view of a leaf Variable that requires grad is being used in an in-place operation.",
    ),
    (
        "leaf_flag",
        "RuntimeError: you can only change requires_grad flags of leaf variables. If you want to use a computed variable",
    ),
    (
        "non_leaf_grad",
        "[W TensorBody.h:491] Warning: The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. (function grad)",
    ),
    ("non_leaf_optimizer", "ValueError: can't optimize a non-leaf Tensor"),
    (
        "unused_in_grad",
        "RuntimeError: One of the differentiated Tensors appears to not have been used in the graph. Set allow_unused=True",
    ),
    (
        "unused_in_grad",
        "RuntimeError: The differentiated Tensor at index 0 appears to not have been used in the graph. Set allow_unused=True",
    ),
    ("non_scalar", "RuntimeError: grad can be implicitly created only for scalar outputs"),
    ("non_scalar", "RuntimeError: grad can be implicitly created only for real scalar outputs but got torch.complex64"),
    ("frozen_in_grad", "RuntimeError: One of the differentiated Tensors does not require grad"),
    ("frozen_in_grad", "RuntimeError: element 2 of the input tensors does not require grad"),
    # an optimiser with nothing, a scaler with nothing
    ("empty_optimizer", "ValueError: optimizer got an empty parameter list"),
    ("empty_optimizer", "trainable params: 0 || all params: 6,738,415,616 || trainable%: 0.0000"),
    ("empty_optimizer", "INFO:finetune:trainable parameters: 0\nINFO:finetune:step 1"),
    ("scaler_no_gradient", "AssertionError: No inf checks were recorded for this optimizer."),
    # torch.func
    (
        "func_backward",
        "RuntimeError: backward() called inside a functorch transform. This is not supported, please use functorch.grad or functorch.vjp instead",
    ),
    (
        "func_backward",
        "RuntimeError: You are attempting to call Tensor.requires_grad_() (or perhaps using torch.autograd.functional.* APIs) inside of a function being transformed by a functorch transform.",
    ),
    (
        "vmap_item",
        "RuntimeError: vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over calling .item() on a Tensor",
    ),
    (
        "vmap_item",
        "RuntimeError: vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. We don't support that yet",
    ),
    (
        "vmap_escaped",
        "RuntimeError: Either your tensor may have escaped from inside a function being vmapped and this is a user error",
    ),
    ("vmap_escaped", "RuntimeError: your tensor may have escaped from vmap. This could also be an internal error"),
    # compile
    (
        "compile_freeze",
        "torch._dynamo.exc.Unsupported: Unsupported Tensor.requires_grad_() call\n  Explanation: Dynamo",
    ),
    ("compile_freeze", "[__graph_breaks] Graph Break Reason: Unsupported Tensor.requires_grad_() call"),
    # checkpointing, FSDP and DDP
    (
        "checkpoint_thawed",
        "torch.utils.checkpoint.CheckpointError: torch.utils.checkpoint: Recomputed values for the following tensors have different metadata than during the forward pass.\ntensor at position 5:\nsaved metadata: {'shape': torch.Size([3])}",
    ),
    (
        "checkpoint_thawed",
        "CheckpointError: torch.utils.checkpoint: A different number of tensors was saved during the original forward and recomputation.\nNumber of tensors saved during forward: 12",
    ),
    (
        "checkpoint_thawed",
        "CheckpointError: torch.utils.checkpoint: trying to save more tensors during recomputation than during the original forward pass.",
    ),
    ("fsdp_mixed", "ValueError: Must flatten tensors with uniform `requires_grad` when `use_orig_params=False`"),
    ("fsdp_mixed", "ValueError: Must flatten tensors with uniform requires_grad"),
    (
        "ddp_frozen",
        "AssertionError: DistributedDataParallel is not needed when a module doesn't have any parameter that requires a gradient.",
    ),
    (
        "checkpoint_frozen",
        "/torch/utils/checkpoint.py:87: UserWarning: None of the inputs have requires_grad=True. Gradients will be None\n  warnings.warn(",
    ),
    (
        "ddp_marked_twice",
        "[rank3]: RuntimeError: Expected to mark a variable ready only once. This error is caused by one of the following reasons: 1) Use of a module parameter outside the `forward` function.",
    ),
    ("ddp_marked_twice", "Parameter at index 328 with name img_backbone.fc.bias has been marked as ready twice."),
    (
        "ddp_unused",
        f"RuntimeError: {FINISHED} This error indicates that your module has parameters that were not used in producing loss.",
    ),
    (
        "ddp_unused",
        "RuntimeError: It looks like your LightningModule has parameters that were not used in producing the loss returned by training_step.",
    ),
]

WRAPPED = {
    "a frame in a frame": "│ │ RuntimeError: element 0 of tensors does  │ │\n│ │ not require grad and does not have a      │ │\n│ │ grad_fn                                   │ │",
    "in the middle of a word": "RuntimeError: element 0 of tensors does not requ\nire grad and does not have a grad\n_fn",
    "every line with its rank": "[rank1]: RuntimeError: element 0 of tensors does\n[rank1]: not require grad and does not\n[rank1]: have a grad_fn",
    "every line with time and level": "2026-01-01 10:00:00,123 - ERROR - element 0 of tensors does\n2026-01-01 10:00:00,124 - ERROR - not require grad and does not have a grad_fn",
    "every line with its container": "trainer_1  | RuntimeError: element 0 of tensors does not\ntrainer_1  | require grad and does not have a grad_fn",
    "every line with its worker": "(RayTrainWorker pid=71, ip=10.0.0.1) element 0 of tensors does not\n(RayTrainWorker pid=71, ip=10.0.0.1) require grad and does not have a grad_fn",
    "torchrun's error file": '{"message": {"message": "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn", "extraInfo": {"py_callstack": "Traceback (most recent call last):\\n  File \\"train.py\\", line 8\\nRuntimeError: element 0 of tensors\\ndoes not require grad"}}}',
    "colours inside": "\x1b[1m\x1b[31mRuntimeError\x1b[0m: element 0 of \x1b[33mtensors\x1b[0m does not re\x1b[0mquire grad and does not have a grad_fn",
    "colours as JSON writes them": '{"log": "\\u001b[31mRuntimeError\\u001b[0m: element 0 of tensors does not\\n require grad and does not have a grad_fn"}',
    "in a log of 20,000 lines": "step\n" * 10_000
    + "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn\n"
    + "bye\n" * 10_000,
}

UNKNOWN = [
    "RuntimeError: Output 0 of SomeFunction is a view and is being modified inplace.",  # by which of three causes?
    "trainable params: 0.5M || all params: 12M",
    "trainable params: 04 || all params: 12",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (16x8 and 4x2)",
    "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "RuntimeError: expected scalar type Float but found Double",
    "TypeError: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.",
    "RuntimeError: a Tensor with 2 elements cannot be converted to Scalar",
    "RuntimeError: Boolean value of Tensor with more than one value is ambiguous",
    "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed.",
    'RuntimeError: Error(s) in loading state_dict for Net: Missing key(s) in state_dict: "fc.weight".',
    "_pickle.UnpicklingError: Weights only load failed.",
    "RuntimeError: Function 'MulBackward0' returned nan values in its 0th output.",
    "RuntimeError: only Tensors of floating point dtype can require gradients",
    "RuntimeError: The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0",
    "IndexError: Target 10 is out of bounds.",
    "KeyError: 'optimizer_states'",
    "ModuleNotFoundError: No module named 'lightning'",
    "lightning.fabric.utilities.exceptions.MisconfigurationException: No `train_dataloader()` method defined.",
    "[rank0]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)",
    "AttributeError: 'NoneType' object has no attribute 'backward'",
    "RuntimeError: Given groups=1, weight of size [8, 3, 3, 3], expected input[1, 1, 28, 28] to have 3 channels",
    "UserWarning: Detected call of `lr_scheduler.step()` before `optimizer.step()`.",
    "my loss does not require grad, and I detached views from the wall",
    "",
]


def test_there_are_enough():
    assert len(KNOWN) + len(WRAPPED) >= 80
    assert len(UNKNOWN) >= 20


@pytest.mark.parametrize(("name", "text"), KNOWN, ids=range(len(KNOWN)))
def test_known(name, text):
    assert find(text)[0].name == name


@pytest.mark.parametrize("text", WRAPPED.values(), ids=list(WRAPPED))
def test_known_however_it_is_wrapped(text):
    assert [e.name for e in find(text)] == ["no_graph"]


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown(text):
    assert find(text) == []
    assert answer(text) is None


def messages(folder: Path) -> Iterator[str]:
    """What the sources below ``folder`` raise, warn of or log; X where a value goes."""
    for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if isinstance(node, ast.Raise) or name in ("warn", "warning", "warn_once", "error", "rank_zero_warn"):
                yield from (text for argument in call.args[:2] if len(text := said(argument)) > 20)


def said(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(said(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    return "X"


def test_of_all_that_torch_and_lightning_say_it_claims_only_what_it_knows():
    """A claim on another message is wrong, or an exhibit's that is to be named here."""
    parts = "autograd nn optim utils _functorch amp func _tensor.py distributed/fsdp distributed/_composable"
    roots = [Path(torch.__file__).parent / part for part in parts.split()] + [Path(lightning.__file__).parent]
    texts = {text for root in roots for text in messages(root)}
    assert len(texts) > 2000
    claimed = {e.name for text in texts for e in find(text)}
    assert claimed == {
        *("func_backward", "non_scalar", "empty_optimizer", "non_leaf_optimizer", "checkpoint_frozen"),
        *("checkpoint_thawed", "scaler_no_gradient", "fsdp_mixed", "deepcopy_graph"),
    }
    assert sum(bool(find(text)) for text in texts) <= 20


BROKEN = {e.name: e.run(fixed=False) for e in exhibits().values() if not e.silent and not e.needs}


@pytest.mark.parametrize("name", BROKEN)
def test_a_message_is_claimed_first_by_an_exhibit_whose_script_raises_it(name):
    error = BROKEN[name]
    first = find(f"{type(error).__name__}: {error}")[0]
    assert first.name == name or first.met_by(error)


@pytest.mark.parametrize("name", BROKEN)
def test_each_pattern_is_of_the_script_s_message_or_says_who_else_writes_it(name):
    """One pattern at least must be what this torch says; a remark tells whose wording another one is."""
    raised = squeezed(f"{type(BROKEN[name]).__name__}: {BROKEN[name]}")
    live = [pattern for pattern, _ in exhibits()[name].matches if re.search(pattern.replace(" ", ""), raised)]
    assert live
    other = [pattern for pattern, remark in exhibits()[name].matches if pattern not in live and not remark]
    assert other == []


def test_others_with_the_message_are_named():
    assert "rnn_state" in answer(f"{TWICE}.").splitlines()[-1]
    assert [e.name for e in find(CHAINED)] == ["backward_twice", "rnn_state", "non_leaf_optimizer", "non_leaf_grad"]


def test_answer_has_cause_fix_and_line():
    text = answer("can't optimize a non-leaf Tensor")
    for part in ("Why\n", "Fix\n", "from stopgrad import audit", "python -m stopgrad museum non_leaf_optimizer"):
        assert part in text


def test_command(capsys):
    assert main(["explain", "element", "0 of tensors does not require grad and does not have a grad_fn"]) == 0
    assert capsys.readouterr().out.startswith("The loss has no graph\n")


def test_command_says_not_known(capsys):
    assert main(["explain", "KeyError: 'x'"]) == 1
    assert capsys.readouterr().out.startswith("not known: ")


def test_pipe_passes_the_output_through(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("step 1\n" + LIGHTNING))
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 1\n" + LIGHTNING)
    assert "--- stopgrad explain ---\nThe loss has no graph\n" in out


def test_pipe_from_a_real_program():
    script = "import torch; torch.ones(2).sum().backward()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        told = subprocess.run(
            [sys.executable, "-m", "stopgrad", "explain"],
            stdin=program.stdout,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert program.returncode == 1
    assert told.returncode == 0
    assert "The loss has no graph" in told.stdout


def test_it_answers_without_torch():
    code = "import sys; from stopgrad.__main__ import main; main(['explain', 'x']); main(['museum']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
