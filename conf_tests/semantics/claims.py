"""What tutorials say about stopping gradients: one table, which the tests run and both pages are made from.

The code of a row is a doctest: what it prints on the page is what torch printed. The verdict is not written here: it
follows from ``holds``, the claim as expressions that are evaluated after the code (``errors`` lists what it raised).
All hold: true. None holds: false. Some hold: half true.
"""

# ruff: noqa: E501  (a sentence is a line)

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One sentence as people read it.

    Attributes:
        number: the row's number, an anchor of the page.
        says: the claim, in English and in Chinese.
        code: at most about ten lines of doctest.
        holds: the claim's parts as expressions over the code's names.
        truth: what is so instead, or what else to know; in English and in Chinese.
        origin: where the belief comes from; in English and in Chinese. Empty where the claim is true.
    """

    number: int
    says: tuple[str, str]
    code: str
    holds: tuple[str, ...]
    truth: tuple[str, str]
    origin: tuple[str, str] = ("", "")


CLAIMS = [
    Claim(
        1,
        ("`y = x.detach()` shares its storage with `x`.", "`y = x.detach()` 与 `x` 共享内存。"),
        """
>>> x = torch.tensor([1.0, 2.0], requires_grad=True)
>>> y = x.detach()
>>> y.data_ptr() == x.data_ptr()
True
>>> y[0] = 5.0
>>> x
tensor([5., 2.], requires_grad=True)
""",
        ("y.data_ptr() == x.data_ptr()", "x[0] == 5"),
        ("No copy is made. For a copy: `x.detach().clone()`.", "没有复制。需要副本时用 `x.detach().clone()`。"),
    ),
    Claim(
        2,
        (
            "`y = x.detach()` has `requires_grad` False and no `grad_fn`; `x` stays as it was.",
            "`y = x.detach()` 的 `requires_grad` 为 False，没有 `grad_fn`；`x` 保持不变。",
        ),
        """
>>> x = torch.tensor([1.0], requires_grad=True) * 2
>>> y = x.detach()
>>> y.requires_grad, y.grad_fn
(False, None)
>>> x.requires_grad, x.grad_fn is not None
(True, True)
""",
        ("not y.requires_grad", "y.grad_fn is None", "x.requires_grad", "x.grad_fn is not None"),
        ("It is a new tensor object on the same storage.", "它是同一块内存上的一个新张量对象。"),
    ),
    Claim(
        3,
        ("`detach_()` works in place and returns None.", "`detach_()` 原地操作，返回 None。"),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y = x * 2
>>> result = y.detach_()
>>> result is y
True
>>> y.requires_grad
False
""",
        ("not y.requires_grad", "result is None"),
        ("It works in place and returns the tensor itself.", "它原地操作，返回的是张量自身。"),
        (
            "By analogy with Python's `list.sort()`; in torch every method that ends in `_` returns its tensor.",
            "类比 Python 的 `list.sort()`；但 torch 中所有以 `_` 结尾的方法都返回张量本身。",
        ),
    ),
    Claim(
        4,
        ("After `x = x.detach_()`, `x` is None.", "`x = x.detach_()` 之后 `x` 变成 None。"),
        """
>>> leaf = torch.ones(2, requires_grad=True)
>>> x = leaf * 2
>>> x = x.detach_()
>>> x
tensor([2., 2.])
""",
        ("x is None",),
        ("`x` is the tensor, detached.", "`x` 仍是那个张量，只是已被分离。"),
        ("It follows from the claim of row 3.", "由第 3 条推出。"),
    ),
    Claim(
        5,
        (
            "`for p in model.parameters(): p.detach_()` freezes the parameters.",
            "`for p in model.parameters(): p.detach_()` 可以冻结参数。",
        ),
        """
>>> model = nn.Linear(2, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> for p in model.parameters():
...     _ = p.detach_()
>>> [p.requires_grad for p in model.parameters()]
[False, False]
>>> len(optimizer.param_groups[0]["params"])
2
""",
        ("not any(p.requires_grad for p in model.parameters())",),
        (
            "So it does; `model.requires_grad_(False)` says it in words. The optimiser still holds them, and momentum or weight decay moves them if a gradient of zeros is left (museum: `frozen_momentum`). BatchNorm's statistics are not parameters (row 32).",
            "确实如此；`model.requires_grad_(False)` 更直白。优化器仍持有这些参数：如果留下全零梯度，动量和权重衰减仍会移动它们（展品 `frozen_momentum`）。BatchNorm 的统计量不是参数（见第 32 条）。",
        ),
    ),
    Claim(
        6,
        (
            "After `y.detach_()`, `y.sum().backward()` runs and leaves `x.grad` None.",
            "`y.detach_()` 之后，`y.sum().backward()` 可以运行，`x.grad` 为 None。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y = x * 2
>>> _ = y.detach_()
>>> y.sum().backward()
Traceback (most recent call last):
    ...
RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
""",
        ("not errors",),
        ("It raises: nothing in the loss requires grad.", "会报错：损失中没有任何需要梯度的部分。"),
        (
            "An example printed without being run: the None was read off the idea, not off the screen.",
            "示例没有实际运行：None 是想出来的，而不是打印出来的。",
        ),
    ),
    Claim(
        7,
        (
            "`z = y.detach() * 3; z.backward()` runs normally and `x.grad` is 4.",
            "`z = y.detach() * 3; z.backward()` 正常运行，`x.grad` 等于 4。",
        ),
        """
>>> x = torch.tensor(2.0, requires_grad=True)
>>> y = x**2
>>> z = y.detach() * 3
>>> z.backward()
Traceback (most recent call last):
    ...
RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
>>> y.backward()
>>> x.grad
tensor(4.)
""",
        ("not errors",),
        (
            "It raises. The 4 is the gradient of `y`, which still has its graph.",
            "会报错。4 是 `y` 的梯度：`y` 的计算图还在。",
        ),
        ("Two experiments of one page mixed into one.", "把同一页上的两个实验混成了一个。"),
    ),
    Claim(
        8,
        (
            "A detached tensor never gets a gradient, not even after `requires_grad_(True)`.",
            "分离后的张量永远得不到梯度，即使再设 `requires_grad_(True)`。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y = x.detach().requires_grad_(True)
>>> (y * 3).sum().backward()
>>> y.grad
tensor([3., 3.])
>>> x.grad is None
True
""",
        ("x.grad is None", "y.grad is None"),
        (
            "It becomes a new leaf with a `.grad` of its own. Nothing flows back to `x`.",
            "它成为一个新的叶子，有自己的 `.grad`；但没有任何梯度流回 `x`。",
        ),
        (
            'An old sentence of torch\'s documentation, "the result will never require gradient", which is true only until you ask for it.',
            "来自 torch 文档的旧句“结果永远不需要梯度”；只有在你不主动要求时才成立。",
        ),
    ),
    Claim(
        9,
        ("Calling `y.detach()` cuts `y` off.", "调用 `y.detach()` 就把 `y` 从图中分离了。"),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y = x * 2
>>> _ = y.detach()
>>> y.sum().backward()
>>> x.grad
tensor([2., 2.])
""",
        ("x.grad is None",),
        (
            "Nothing happened to `y`: the cut tensor is the one returned. Write `y = y.detach()`.",
            "`y` 没有任何变化：被切断的是返回值。应写 `y = y.detach()`。",
        ),
        ("Confused with `detach_()`, one character away.", "与只差一个字符的 `detach_()` 混淆。"),
    ),
    Claim(
        10,
        (
            "After `c = out.detach()`, `out.sum().backward()` still works.",
            "`c = out.detach()` 之后，`out.sum().backward()` 仍然可以运行。",
        ),
        """
>>> a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> out = a.sigmoid()
>>> c = out.detach()
>>> out.sum().backward()
>>> a.grad
tensor([0.1966, 0.1050, 0.0452])
""",
        ("torch.allclose(a.grad, out * (1 - out))",),
        ("Detaching makes a second tensor and leaves the first alone.", "分离产生第二个张量，不影响第一个。"),
    ),
    Claim(
        11,
        ("`c.sum().backward()` on the detached `c` raises.", "对分离得到的 `c` 调用 `c.sum().backward()` 会报错。"),
        """
>>> a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> c = a.sigmoid().detach()
>>> c.sum().backward()
Traceback (most recent call last):
    ...
RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn
""",
        ("errors",),
        ("`c` has no history.", "`c` 没有历史。"),
    ),
    Claim(
        12,
        (
            "An in-place change of `c = out.detach()` is seen by `out`, and `out`'s backward raises.",
            "原地修改 `c = out.detach()`，`out` 也会变，并且 `out` 的反向传播报错。",
        ),
        """
>>> a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> out = a.sigmoid()
>>> _ = out.detach().zero_()
>>> out
tensor([0., 0., 0.], grad_fn=<SigmoidBackward0>)
>>> out._version
1
>>> out.sum().backward()
Traceback (most recent call last):
    ...
RuntimeError: one of the variables needed for gradient computation has been modified by an inplace operation: ...
""",
        ("out.eq(0).all()", "errors"),
        (
            "`detach` shares the version counter, so torch notices. It raises only because `sigmoid` saved its output (row 14).",
            "`detach` 共享版本计数器，所以 torch 能发现。之所以报错，是因为 `sigmoid` 保存了它的输出（见第 14 条）。",
        ),
    ),
    Claim(
        13,
        (
            "The same through `c = out.data` is silent and gives a wrong gradient.",
            "换成 `c = out.data` 则没有任何提示，并得到错误的梯度。",
        ),
        """
>>> a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> out = a.sigmoid()
>>> _ = out.data.zero_()
>>> out._version
0
>>> out.sum().backward()
>>> a.grad  # should be 0.1966, 0.1050, 0.0452
tensor([0., 0., 0.])
""",
        ("not errors", "a.grad.eq(0).all()"),
        (
            "`.data` has a version counter of its own, and torch cannot know. Use `detach()`.",
            "`.data` 有自己的版本计数器，torch 无从得知。请用 `detach()`。",
        ),
    ),
    Claim(
        14,
        (
            "If `sum()` comes before the in-place change, backward is right, with `detach` and with `.data`.",
            "只要 `sum()` 在原地修改之前，反向传播就是对的，用 `detach` 或 `.data` 都一样。",
        ),
        """
>>> a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> s = a.sigmoid().sum()
>>> _ = s.detach().zero_()  # the sum itself: backward does not need it
>>> s.backward()
>>> a.grad
tensor([0.1966, 0.1050, 0.0452])
>>> out = a.sigmoid()
>>> s = out.sum()
>>> _ = out.detach().zero_()  # the sigmoid's output: backward needs it
>>> s.backward()
Traceback (most recent call last):
    ...
RuntimeError: one of the variables needed for gradient computation has been modified by an inplace operation: ...
""",
        ("torch.allclose(a.grad, a.sigmoid() * (1 - a.sigmoid()))", "not errors"),
        (
            "The order does not matter. What matters is whether the changed tensor was saved for backward: the sum was not, the sigmoid's output was.",
            "与先后顺序无关。关键在于被修改的张量是否为反向传播而保存：和没有被保存，sigmoid 的输出被保存了。",
        ),
        (
            "The experiment changed the sum, and the order was taken for the cause.",
            "实验改的是和，却把先后顺序当成了原因。",
        ),
    ),
    Claim(
        15,
        (
            "`clone()` copies and stays in the graph; `detach().clone()` is an independent copy.",
            "`clone()` 复制但仍在计算图中；`detach().clone()` 是独立的副本。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y, z = x.clone(), x.detach().clone()
>>> y.data_ptr() == x.data_ptr(), z.data_ptr() == x.data_ptr()
(False, False)
>>> (y * 3).sum().backward()
>>> x.grad
tensor([3., 3.])
>>> z.requires_grad
False
""",
        ("y.data_ptr() != x.data_ptr()", "x.grad.eq(3).all()", "z.data_ptr() != x.data_ptr()", "not z.requires_grad"),
        (
            "`clone().detach()` gives the same values; `detach().clone()` does not record the clone first.",
            "`clone().detach()` 的值相同；`detach().clone()` 不会先记录一次 clone。",
        ),
    ),
    Claim(
        16,
        (
            "`.numpy()` on a tensor that requires grad raises; `.detach().numpy()` works.",
            "对需要梯度的张量调用 `.numpy()` 会报错；`.detach().numpy()` 可以。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> x.numpy()
Traceback (most recent call last):
    ...
RuntimeError: Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.
>>> array = x.detach().numpy()
>>> array[0] = 7
>>> x
tensor([7., 1.], requires_grad=True)
""",
        ("errors", "array[1] == 1"),
        (
            "And the array shares memory with the tensor: writing one changes the other, without a version counter to notice it (museum: `numpy_alias`).",
            "而且数组与张量共享内存：改一个，另一个也变，且没有版本计数器能发现（展品 `numpy_alias`）。",
        ),
    ),
    Claim(
        17,
        (
            "`.item()` works on a tensor with a graph and returns a Python number.",
            "`.item()` 可用于带计算图的张量，返回 Python 数。",
        ),
        """
>>> x = torch.tensor(2.0, requires_grad=True)
>>> (x * 3).item()
6.0
>>> (torch.ones(2) * x).item()
Traceback (most recent call last):
    ...
RuntimeError: a Tensor with 2 elements cannot be converted to Scalar
""",
        ("isinstance((x * 3).item(), float)",),
        (
            "The number keeps nothing alive. One element only; `.tolist()` for more. On an accelerator it waits for the device.",
            "这个数不会让任何东西继续占用内存。只限一个元素；多个元素用 `.tolist()`。在加速卡上它会等待设备同步。",
        ),
    ),
    Claim(
        18,
        (
            "Keeping `loss` in a list keeps its graph alive; `loss.detach()` does not.",
            "把 `loss` 放进列表会让计算图一直存活；`loss.detach()` 不会。",
        ),
        """
>>> import weakref
>>> def loss_and_activation():
...     hidden = torch.ones(3, requires_grad=True).exp()
...     return hidden.sum(), weakref.ref(hidden)
>>> loss, activation = loss_and_activation()
>>> kept = [loss.detach()]
>>> kept[0].grad_fn is None
True
>>> type(loss.grad_fn.next_functions[0][0]._saved_result).__name__  # held by the loss
'Tensor'
>>> loss.backward()
>>> loss.grad_fn.next_functions[0][0]._saved_result  # the node stays, the activation is freed
Traceback (most recent call last):
    ...
RuntimeError: Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). ...
""",
        ("kept[0].grad_fn is None", "loss.grad_fn is not None"),
        (
            "Before backward the loss holds every activation; after it, the nodes only. `total += loss` chains all graphs into one.",
            "反向传播之前，损失持有全部激活值；之后只剩节点。`total += loss` 会把所有计算图串成一张。",
        ),
    ),
    Claim(
        19,
        (
            "`no_grad` is for a block of code, `detach` for one tensor; otherwise they do the same.",
            "`no_grad` 作用于一段代码，`detach` 作用于一个张量；除此之外两者相同。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> with torch.no_grad():
...     y = x * 2
...     w = torch.ones(2, requires_grad=True)
>>> z = (x * 2).detach()
>>> y.requires_grad, z.requires_grad
(False, False)
>>> w.requires_grad  # a tensor that is made with the flag keeps it
True
""",
        ("not y.requires_grad and not z.requires_grad", "not w.requires_grad"),
        (
            "Under `no_grad` the graph is never built; `detach` cuts one that was built and paid for. What is made inside with `requires_grad=True` (parameters of a new module) keeps the flag.",
            "在 `no_grad` 下计算图根本不会建立；`detach` 是切断一张已经建立、已经付出代价的图。块内用 `requires_grad=True` 创建的张量（新模块的参数）保留该标志。",
        ),
        (
            "Both end in a tensor without graph, which is all that an example shows.",
            "两者的结果都是没有图的张量，示例也只展示到这里。",
        ),
    ),
    Claim(
        20,
        ("`detach_()` works on any tensor, slices and chunks too.", "`detach_()` 可用于任何张量，包括切片和 chunk。"),
        """
>>> x = torch.ones(4, requires_grad=True) * 2
>>> x[:2].detach_()
Traceback (most recent call last):
    ...
RuntimeError: Can't detach views in-place. Use detach() instead. ...
>>> flat = torch.ones(2, 3).mul(2).flatten(1)  # flatten(1) of a 2-D tensor is the tensor, not a view
>>> flat.detach_().shape
torch.Size([2, 3])
""",
        ("flat.shape == (2, 3)", "not errors"),
        (
            "On a view it raises; use `detach()`.",
            "对视图会报错；请用 `detach()`。",
        ),
        ("Examples use a fresh tensor.", "示例中用的都是新建的张量。"),
    ),
    Claim(
        21,
        (
            "`y.detach_()` also stops what was computed from `y` before.",
            "`y.detach_()` 也会切断之前由 `y` 算出的结果。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y = x * 2
>>> s = y.sum()
>>> _ = y.detach_()
>>> s.backward()
>>> x.grad
tensor([2., 2.])
""",
        ("x.grad is None",),
        (
            "What was recorded before still flows: the consumer holds the node, not the tensor.",
            "之前记录的路径仍然有梯度：下游持有的是节点，而不是张量。",
        ),
        ('Read into the words "in place".', "由“原地”二字想当然。"),
    ),
    Claim(
        22,
        (
            "A detached branch and a live one are not in one graph and cannot be added.",
            "分离的分支与未分离的分支不在同一张图里，不能相加。",
        ),
        """
>>> x = torch.tensor(2.0, requires_grad=True)
>>> d = (x**3).detach()
>>> e = x**2 * 2
>>> (d + e).backward()
>>> x.grad
tensor(8.)
""",
        ("errors",),
        (
            "Adding is legal; the detached part is a constant. The gradient, 8, is that of `e` alone.",
            "可以相加；分离的部分是常数。梯度 8 只来自 `e`。",
        ),
        ("A picture of the graph with two separate drawings.", "计算图的示意图把两者画成了两张图。"),
    ),
    Claim(
        23,
        ("`inference_mode` is a faster `no_grad`.", "`inference_mode` 就是更快的 `no_grad`。"),
        """
>>> w = torch.ones(2, requires_grad=True)
>>> with torch.inference_mode():
...     t = torch.ones(2) * 2
>>> (w + t).sum().backward()  # an addition need not save t
>>> (w * t).sum()
Traceback (most recent call last):
    ...
RuntimeError: Inference tensors cannot be saved for backward. ...
>>> (w * t.clone()).sum().requires_grad
True
""",
        ("not t.requires_grad", "not errors"),
        (
            "Only for inference. What is made inside cannot be saved for a backward later: a linear layer, a convolution, a product or `mse_loss` raise. `.clone()` outside makes a normal tensor.",
            "只适用于推理。块内产生的张量之后不能为反向传播保存：线性层、卷积、乘法、`mse_loss` 都会报错。在块外 `.clone()` 可得到普通张量。",
        ),
        ("The documentation's first sentence, without its condition.", "只引用了文档的第一句，没有引用它的条件。"),
    ),
    Claim(
        24,
        (
            "With `target = r + critic(s2, action.detach())` and `loss = mse(critic(s, action), target)`, only the critic is updated.",
            "用 `target = r + critic(s2, action.detach())` 和 `loss = mse(critic(s, action), target)`，只有 critic 被更新。",
        ),
        """
>>> actor, critic = nn.Linear(3, 1), nn.Linear(4, 1)
>>> s, s2 = torch.ones(2, 3), torch.zeros(2, 3)
>>> action = actor(s)
>>> target = 1 + critic(torch.cat([s2, action.detach()], 1))
>>> loss = (critic(torch.cat([s, action], 1)) - target).square().mean()
>>> target.requires_grad  # only the action was cut: the critic is live in its own target
True
>>> loss.backward()
>>> actor.weight.grad is None
False
>>> (-critic(torch.cat([s, action], 1)).mean()).backward()
Traceback (most recent call last):
    ...
RuntimeError: Trying to backward through the graph a second time ...
""",
        ("critic.weight.grad is not None", "actor.weight.grad is None", "not target.requires_grad"),
        (
            "The loss reaches the actor through the live action, the target is live in the critic, and the actor's own backward then raises. Cut the action in the critic's loss, and the whole target: `target = (r + critic(s2, a2)).detach()`.",
            "损失通过未切断的 action 到达 actor；target 在 critic 中也是活的；随后 actor 自己的反向传播会报错。应在 critic 的损失中切断 action，并切断整个 target：`target = (r + critic(s2, a2)).detach()`。",
        ),
        ("A sketch that was never run for two steps.", "只是示意代码，从未真正运行过两步。"),
    ),
    Claim(
        25,
        ("`detach` saves memory.", "`detach` 节省内存。"),
        """
>>> x = torch.ones(1000, requires_grad=True)
>>> def saved_bytes(run):
...     sizes = []
...     def pack(t): sizes.append(t.nbytes); return t
...     with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
...         run()
...     return sum(sizes)
>>> saved_bytes(lambda: x.exp().detach())  # the producer's graph is built, then dropped
4000
>>> saved_bytes(lambda: torch.no_grad()(lambda: x.exp())())  # never built
0
""",
        ("saved_bytes(lambda: x.exp().detach()) < saved_bytes(lambda: x.exp())", "x.exp().detach().grad_fn is None"),
        (
            "It depends. The producer's graph was built and paid for by then; it is freed only when nothing else holds it. `no_grad` never builds it.",
            "看情况。此时上游的图已经建立并付出了代价；只有没有别的引用时才会释放。`no_grad` 根本不建立。",
        ),
        (
            "True of what comes after the cut, and taken for what comes before.",
            "对切断之后的部分成立，却被当作对之前的部分也成立。",
        ),
    ),
    Claim(
        26,
        (
            "With `B = A.detach()`, changing `B` leaves `A`'s gradient computation alone.",
            "`B = A.detach()` 后，修改 `B` 不影响 `A` 的梯度计算。",
        ),
        """
>>> A = torch.tensor(1.0, requires_grad=True)
>>> B = A.detach()
>>> _ = B.fill_(5.0)
>>> A
tensor(5., requires_grad=True)
>>> (A**2).backward()
>>> A.grad  # at A = 1 it would have been 2
tensor(10.)
""",
        ("A == 1", "A.grad == 2"),
        (
            "The storage is shared: `A` changes, and with it every later gradient. Where the old value was saved, backward raises (row 12). For a copy: `A.detach().clone()`.",
            "内存是共享的：`A` 会变，之后的所有梯度也随之改变。若旧值已被保存，反向传播会报错（第 12 条）。需要副本时用 `A.detach().clone()`。",
        ),
        ('"Detached" read as "copied".', "把“分离”理解成了“复制”。"),
    ),
    Claim(
        27,
        ("`x = 1, y = 1; y = x * y` prints `tensor([2.])`.", "`x = 1, y = 1; y = x * y` 打印 `tensor([2.])`。"),
        """
>>> x = torch.tensor([1.0], requires_grad=True)
>>> y = torch.tensor([1.0], requires_grad=True)
>>> y = x * y
>>> y
tensor([1.], grad_fn=<MulBackward0>)
>>> torch.autograd.grad((y**2).sum(), y)
(tensor([2.]),)
""",
        ("y.item() == 2",),
        (
            "1 times 1 is 1. The 2 is the gradient of `y ** 2` at `y = 1`.",
            "1 乘 1 等于 1。2 是 `y ** 2` 在 `y = 1` 处的梯度。",
        ),
        ("A value and a gradient confused in an example.", "示例中混淆了值与梯度。"),
    ),
    Claim(
        28,
        ("Printing a loss keeps its graph alive.", "打印 loss 会让计算图一直存活。"),
        """
>>> import weakref
>>> loss = torch.ones(2, requires_grad=True).exp().sum()
>>> held = loss.grad_fn.metadata["held"] = nn.Module()  # lives as long as the graph
>>> graph = weakref.ref(held)
>>> del held
>>> text = f"{loss}"
>>> graph() is None
False
>>> del loss
>>> graph() is None
True
""",
        ("graph() is not None",),
        (
            "Only a reference to the tensor keeps it alive. Text is text.",
            "只有对张量的引用才会让图存活。文本只是文本。",
        ),
        (
            "Notebooks: there the last value of a cell is kept (`_`, `Out`), and that is a reference.",
            "来自 notebook：单元格最后一个值会被保留（`_`、`Out`），那才是引用。",
        ),
    ),
    Claim(
        29,
        (
            "Under `no_grad`, tensors have `requires_grad=False` temporarily.",
            "在 `no_grad` 下，张量的 `requires_grad` 暂时变为 False。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> with torch.no_grad():
...     inside = x.requires_grad
...     y = x * 2
>>> inside
True
>>> y.requires_grad  # after the block
False
""",
        ("not inside", "y.requires_grad"),
        (
            "The inputs keep their flag inside. The results have no graph, and not for a time: for good.",
            "输入在块内保留标志。结果没有计算图，而且不是暂时的，是永久的。",
        ),
        ("The name of the context manager, and that it ends.", "由上下文管理器的名字和“会退出”联想而来。"),
    ),
    Claim(
        30,
        ("`tensor.data` is the old form of `detach()`.", "`tensor.data` 是 `detach()` 的旧写法。"),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> x.data.data_ptr() == x.detach().data_ptr() == x.data_ptr()
True
>>> _ = x.data.add_(1)
>>> x._version
0
>>> _ = x.detach().add_(1)
>>> x._version
1
""",
        ("x.data.data_ptr() == x.detach().data_ptr()", "x.data._version == x.detach()._version"),
        (
            "The same storage, but no shared version counter: writes through `.data` are invisible to torch's check (rows 12 and 13).",
            "内存相同，但不共享版本计数器：通过 `.data` 的写入 torch 检查不到（见第 12、13 条）。",
        ),
        (
            "It was, before PyTorch 0.4; since then the two differ.",
            "在 PyTorch 0.4 之前确实如此；此后两者不同。",
        ),
    ),
    Claim(
        31,
        ("`model.eval()` turns gradients off.", "`model.eval()` 会关闭梯度。"),
        """
>>> model = nn.Linear(2, 1).eval()
>>> model(torch.ones(1, 2)).sum().backward()
>>> model.weight.grad
tensor([[1., 1.]])
""",
        ("model.weight.grad is None",),
        (
            "`eval()` changes what dropout and BatchNorm do. Gradients are stopped by `no_grad`, `detach` or `requires_grad_(False)`.",
            "`eval()` 改变的是 dropout 和 BatchNorm 的行为。停止梯度要用 `no_grad`、`detach` 或 `requires_grad_(False)`。",
        ),
        (
            "`model.eval()` and `no_grad()` usually stand in two lines, one above the other.",
            "`model.eval()` 和 `no_grad()` 通常写在相邻的两行。",
        ),
    ),
    Claim(
        32,
        (
            "After `backbone.requires_grad_(False)` nothing in the backbone changes any more.",
            "`backbone.requires_grad_(False)` 之后，主干网络中的一切都不再变化。",
        ),
        """
>>> backbone = nn.BatchNorm1d(1)
>>> _ = backbone.requires_grad_(False)
>>> _ = backbone(torch.tensor([[0.0], [2.0]]))
>>> backbone.weight, backbone.running_mean
(Parameter containing:
tensor([1.]), tensor([0.1000]))
""",
        ("backbone.weight == 1", "backbone.running_mean == 0"),
        (
            "Parameters stand still, buffers do not: BatchNorm's running statistics move with every forward pass in train mode. Call `backbone.eval()` too (museum: `frozen_batchnorm`).",
            "参数不动，缓冲区会动：训练模式下每次前向传播都会更新 BatchNorm 的统计量。还需调用 `backbone.eval()`（展品 `frozen_batchnorm`）。",
        ),
        (
            '"Frozen" has no meaning in torch: there are flags, modes and what the optimiser holds.',
            "torch 中没有“冻结”这个概念，只有标志、模式和优化器持有的参数。",
        ),
    ),
    Claim(
        33,
        (
            "`features.requires_grad = False` stops the gradient at an intermediate tensor.",
            "`features.requires_grad = False` 可以在中间张量处停止梯度。",
        ),
        """
>>> features = torch.ones(2, requires_grad=True) * 2
>>> features.requires_grad = False
Traceback (most recent call last):
    ...
RuntimeError: you can only change requires_grad flags of leaf variables. ...
""",
        ("not features.requires_grad",),
        (
            "It raises: the flag belongs to leaves. Use `features = features.detach()`.",
            "会报错：该标志只属于叶子张量。请用 `features = features.detach()`。",
        ),
        ("What works for parameters, tried on activations.", "把对参数有效的做法用在了激活值上。"),
    ),
    Claim(
        34,
        (
            '`loss.requires_grad = True` repairs "element 0 of tensors does not require grad".',
            "`loss.requires_grad = True` 可以修复 “element 0 of tensors does not require grad”。",
        ),
        """
>>> w = torch.ones(2, requires_grad=True)
>>> loss = (w * 3).detach().sum()
>>> loss.requires_grad = True
>>> loss.backward()
>>> w.grad is None, loss.grad
(True, tensor(1.))
""",
        ("not errors", "w.grad is not None"),
        (
            "The error goes and the training with it: the loss is now a leaf of its own, and no parameter gets a gradient (museum: `rebuilt_loss`).",
            "错误消失了，训练也没了：损失成了自己的叶子，没有任何参数得到梯度（展品 `rebuilt_loss`）。",
        ),
        ("An answer that makes the message go away.", "一种只让报错消失的“解决办法”。"),
    ),
    Claim(
        35,
        (
            '`retain_graph=True` is the fix for "Trying to backward through the graph a second time".',
            "`retain_graph=True` 是解决 “Trying to backward through the graph a second time” 的办法。",
        ),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> hidden = x.exp()
>>> hidden.sum().backward(retain_graph=True)
>>> first = x.grad.clone()
>>> hidden.sum().backward()
>>> x.grad / first  # the second loss reached x as well
tensor([2., 2.])
""",
        ("not errors", "torch.equal(x.grad, first)"),
        (
            "It runs, and the second loss reaches everything that the first one did. If the two should not share the graph, the fix is a cut; if they should, add them and run backward once.",
            "能运行，但第二个损失会到达第一个损失到达的一切。如果不该共享计算图，正确做法是切断；如果该共享，应相加后只做一次反向传播。",
        ),
        ("The message itself suggests it.", "报错信息本身就这么建议。"),
    ),
    Claim(
        36,
        ("`.grad` is filled for every tensor that requires grad.", "所有需要梯度的张量都会得到 `.grad`。"),
        """
>>> x = torch.ones(2, requires_grad=True)
>>> y, z = x * 2, x * 3
>>> z.retain_grad()
>>> (y + z).sum().backward()
>>> x.grad, z.grad
(tensor([5., 5.]), tensor([1., 1.]))
>>> y.retains_grad  # y.grad stays None, and reading it warns
False
""",
        ("x.grad is not None", "y.retains_grad"),
        ("Leaves only, and what `retain_grad()` was called on.", "只有叶子张量，以及调用过 `retain_grad()` 的张量。"),
        ("Examples look at `x`, which is a leaf.", "示例看的都是叶子 `x`。"),
    ),
    Claim(
        37,
        (
            "Changing a NumPy array leaves the tensor that was made of it with `from_numpy` alone.",
            "修改 NumPy 数组不会影响用 `from_numpy` 由它创建的张量。",
        ),
        """
>>> array = torch.ones(2).numpy().copy()
>>> t = torch.from_numpy(array)
>>> other = array + 1  # a new array
>>> t
tensor([1., 1.])
>>> array += 1  # the same array
>>> t
tensor([2., 2.])
>>> t._version
0
""",
        ("t.eq(1).all()",),
        (
            "They share memory, both ways, and no version counter tells. `array = array + 1` only gives the name to a new array. For a copy: `torch.tensor(array)`.",
            "两者双向共享内存，且没有版本计数器能发现。`array = array + 1` 只是让名字指向一个新数组。需要副本时用 `torch.tensor(array)`。",
        ),
        (
            "A course's example rebinds the name instead of changing the array.",
            "某课程的示例只是重新绑定了名字，而没有修改数组。",
        ),
    ),
]


@dataclass(frozen=True)
class Difference:
    """Behaviour that differs between supported versions of torch: the part of its error that tells, by version."""

    what: tuple[str, str]
    code: str
    says: dict[str, str]


DIFFERENCES = [
    Difference(
        ("the operation that an in-place error names", "原地修改报错中的算子名"),
        "x = torch.ones(2, requires_grad=True); y = x.sigmoid(); y.detach().zero_(); y.sum().backward()",
        {"2.8": "output 0 of SigmoidBackward0", "2.13": "output 0 of Sigmoid,"},
    ),
    Difference(
        ("its hint", "其提示"),
        "x = torch.ones(2, requires_grad=True); y = x.sigmoid(); y.detach().zero_(); y.sum().backward()",
        {"2.8": "set_detect_anomaly(True).", "2.13": "set_detect_anomaly(True, check_nan=False)."},
    ),
    Difference(
        ("an in-place edit of one of several views", "原地修改多视图函数的输出"),
        "torch.ones(2, requires_grad=True).mul(1).unbind()[0].mul_(2)",
        {"2.8": "Output 0 of UnbindBackward0 is a view", "2.13": "Output 0 of Unbind is a view"},
    ),
    Difference(
        ("`autograd.grad` of an unused tensor", "对未使用的张量调用 `autograd.grad`"),
        "torch.autograd.grad(torch.ones((), requires_grad=True) * 1, torch.ones((), requires_grad=True))",
        {"2.8": "One of the differentiated Tensors appears", "2.13": "The differentiated Tensor at index 0 appears"},
    ),
    Difference(
        ("an inference tensor saved for backward", "推理张量被保存用于反向传播"),
        "torch.ones(2, requires_grad=True) * torch.inference_mode()(lambda: torch.ones(2) * 1)()",
        {"2.8": "To work around you can make a clone", "2.13": "or use `torch.no_grad()` instead"},
    ),
    Difference(
        (
            "a layer called under `autocast`, first in a `no_grad` block and then outside it: backward",
            "在 `autocast` 中先于 `no_grad` 块内、再于块外调用同一层：反向传播",
        ),
        """
with torch.autocast("cpu", dtype=torch.bfloat16):
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer(torch.ones(1, 2))  # caches the cast weight, without a graph
    out = layer(torch.ones(1, 2))
out.sum().backward()
""",
        {"2.8": "element 0 of tensors does not require grad", "2.13": "no error"},
    ),
]
