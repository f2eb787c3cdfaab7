"""The questions of docs/which.md and the ways to cut, in English and Chinese; docs/generate.py makes the page's parts of it.

A leaf names boundaries as ``RECIPE.BOUNDARY``, switches alike, and ways as keys of ``WAYS``. What a boundary does by default, and
what happens otherwise, is not written here: it comes from the recipe. Every boundary stands under some leaf.
"""

# ruff: noqa: E501  (a sentence is a line)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Text = tuple[str, str]


@dataclass(frozen=True)
class Way:
    """What is wanted, what to use for it, and what not; each in English and Chinese."""

    want: Text
    use: Text
    unlike: Text = ("", "")


@dataclass(frozen=True)
class Leaf:
    """Where a path ends: a way to cut, or none, and the boundaries that are so in recipes."""

    ways: list[str] = field(default_factory=list)
    boundaries: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    ask: Text
    answers: list[tuple[Text, Question | Leaf]]

    def leaves(self) -> Iterator[Leaf]:
        for _, then in self.answers:
            yield from then.leaves() if isinstance(then, Question) else [then]


WAYS = {
    "constant": Way(
        (
            "a value in a loss as a constant (a target, an advantage, a weight, a label)",
            "让损失里的某个值成为常数（目标、优势、权重、标签）",
        ),
        ("`value.detach()` where it enters the loss", "在它进入损失的地方写 `value.detach()`"),
        (
            "cutting it where it is computed: it may be needed live elsewhere",
            "在它被算出的地方切断：别处可能还需要它的梯度",
        ),
    ),
    "run": Way(
        (
            "to run a network whose gradient nobody needs (a teacher, a target network, evaluation that feeds a loss)",
            "运行一个无人需要其梯度的网络（教师、目标网络、结果要进入损失的评估）",
        ),
        ("`with torch.no_grad():` around the call", "用 `with torch.no_grad():` 包住这次调用"),
        (
            "`detach()` on its output: the graph is built first (see the costs)",
            "对输出用 `detach()`：计算图（graph）已经先建好了（见下面的开销）",
        ),
    ),
    "serve": Way(
        (
            "to run a network and only read or store the results (serving, metrics)",
            "运行一个网络，结果只读取或保存（部署、指标）",
        ),
        ("`with torch.inference_mode():`", "`with torch.inference_mode():`"),
        ("when the results enter a later loss: it raises", "结果之后还要进入损失时：会报错"),
    ),
    "through": Way(
        (
            "gradient to pass *through* a network to its input, but not into its parameters (the critic in an actor's loss)",
            "梯度要*穿过*一个网络到达它的输入，但不进入它的参数（演员损失里的评论家）",
        ),
        (
            "`critic.requires_grad_(False)` for the call, then `True` again",
            "调用前 `critic.requires_grad_(False)`，调用后恢复为 `True`",
        ),
        (
            "`no_grad` or `detach`: both stop the way to the input too",
            "`no_grad` 或 `detach`：两者连通往输入的路也一起切断",
        ),
    ),
    "freeze": Way(
        ("to freeze a network for good", "永久冻结一个网络"),
        (
            "`model.requires_grad_(False)`, `model.eval()` for BatchNorm, and leave it out of the optimiser",
            "`model.requires_grad_(False)`，为了 BatchNorm 再加 `model.eval()`，并且不把它交给优化器",
        ),
        ("any one of the three alone", "三者只做其一"),
    ),
    "history": Way(
        (
            "to cut a long history between chunks (RNN state, a running buffer)",
            "在片段之间切断很长的历史（RNN 的状态、滚动的缓冲区）",
        ),
        ("`state = state.detach()` at the border", "在片段边界写 `state = state.detach()`"),
        ("`retain_graph=True`", "`retain_graph=True`"),
    ),
    "log": Way(
        ("a number to log", "记录一个数"),
        (
            "`loss.item()`; `loss.detach()` if it is to stay on the device",
            "`loss.item()`；要留在设备上则用 `loss.detach()`",
        ),
        ("keeping `loss`", "保留 `loss` 本身"),
    ),
    "array": Way(
        ("an array", "得到一个数组"),
        (
            "`t.detach().numpy()`, with `.copy()` if either side is written later",
            "`t.detach().numpy()`；之后任何一方会被写入时再加 `.copy()`",
        ),
        ("`.data.numpy()`", "`.data.numpy()`"),
    ),
    "copy": Way(("a copy that gradients still reach", "得到一个梯度仍能到达的副本"), ("`t.clone()`", "`t.clone()`")),
    "independent": Way(
        ("an independent copy", "得到一个独立的副本"),
        ("`t.detach().clone()`", "`t.detach().clone()`"),
        ("`copy.deepcopy` of a tensor with a graph: it raises", "对带计算图的张量用 `copy.deepcopy`：会报错"),
    ),
    "leaf": Way(
        (
            "a new leaf to optimise, from a computed value",
            "从一个算出的值得到新的、可以优化的叶子张量（leaf）",
        ),
        ("`t.detach().clone().requires_grad_()`", "`t.detach().clone().requires_grad_()`"),
        (
            "`requires_grad_()` on the computed tensor: it changes nothing",
            "对算出的张量用 `requires_grad_()`：什么也不会改变",
        ),
    ),
    "write": Way(
        ("to write to a parameter by hand", "手动写一个参数"),
        ("`with torch.no_grad(): p.add_(...)`", "`with torch.no_grad(): p.add_(...)`"),
        (
            "`p.data.add_(...)`: torch's check for overwritten values does not see it",
            "`p.data.add_(...)`：torch 对被覆盖的值的检查看不到它",
        ),
    ),
    "in_place": Way(
        ("to save an allocation and cut in place", "省一次内存分配，原地切断"),
        (
            "`t.detach_()`, if `t` is no view and is not used live any more",
            "`t.detach_()`，前提是 `t` 不是视图（view），且之后不再需要它的梯度",
        ),
        ("anywhere else", "其他任何地方"),
    ),
    "scaled": Way(
        ("part of a gradient, or its opposite", "只要梯度的一部分，或它的相反数"),
        ("a boundary with `scale:0.1` or `reverse:1`", "用 `scale:0.1` 或 `reverse:1` 的边界（boundary）"),
        (
            "`a * t + (1 - a) * t.detach()`: the value is rounded",
            "`a * t + (1 - a) * t.detach()`：值会被舍入",
        ),
    ),
}


TARGETS = Question(
    ("Who makes the target?", "目标由谁给出？"),
    [
        (
            (
                "the same network, one step later, or an averaged copy of it (bootstrapping)",
                "同一个网络在下一步的输出，或它的平均副本（自举，bootstrapping）",
            ),
            Leaf(
                ["constant", "run"],
                ["td.target", "dqn.target", "actor_critic.target", "sac_pendulum.target", "td3.target"],
            ),
        ),
        (
            ("the same network, at another input or by its own derivative", "同一个网络，换了输入，或由它自己的导数"),
            Leaf(["constant"], ["simsiam.target", "consistency.target", "meanflow.target"]),
        ),
        (
            ("another network: a teacher, a reference", "另一个网络：教师、参考模型"),
            Leaf(["run"], ["distill.teacher", "dpo.reference", "dpo.base", "dpo.kl"]),
        ),
        (
            ("a gradient that I know already, written as a loss", "一个已知的梯度，被写成损失"),
            Leaf(["constant"], ["dmd.target"]),
        ),
    ],
)

WEIGHTS = Question(
    ("What does it weigh?", "它给什么加权？"),
    [
        (
            ("a policy's samples: an advantage, an importance weight", "策略的样本：优势（advantage）、重要性权重"),
            Leaf(
                ["constant"],
                [
                    "actor_critic.advantage",
                    "distill.advantage",
                    "policy_weights.weights",
                    "grpo.is_weight",
                    "grpo.old_logp",
                    "grpo.seq_ratio",
                    "grpo.baseline",
                ],
            ),
        ),
        (
            ("a divergence: the KL that keeps a policy near another", "散度：让策略不离开另一个策略的 KL"),
            Leaf(["constant"], ["grpo.kl_weight", "grpo.kl_reward"]),
        ),
        (
            ("a loss, by a function of that loss", "损失本身，用这个损失的函数"),
            Leaf(["constant"], ["weighting.weight"]),
        ),
        (
            ("a term, by a number that another loss learns", "某一项，用另一个损失学到的数"),
            Leaf(
                ["constant"], ["sac.alpha", "sac.log_prob", "sac_pendulum.alpha", "sac_pendulum.log_prob", "moe.load"]
            ),
        ),
    ],
)

NETWORKS = Question(
    (
        "Must gradient pass through the network, to what goes in?",
        "梯度需要穿过这个网络、到达它的输入吗？",
    ),
    [
        (
            (
                "yes: its verdict teaches whoever made the input",
                "需要：它的评价要教会产生输入的那一方",
            ),
            Leaf(
                ["through"],
                [
                    "gan.discriminator",
                    "dirac_gan.discriminator",
                    "branch.classifier",
                    "td3.critic",
                    "td3.action",
                    "sac.action",
                    "sac_pendulum.critic",
                    "sac_pendulum.action",
                ],
            ),
        ),
        (
            (
                "no: what it makes is judged, or read by a probe or a new head",
                "不需要：它的输出被判别，或被探针、新的头读取",
            ),
            Leaf(
                ["run", "freeze"],
                [
                    "gan.fakes",
                    "dirac_gan.fakes",
                    "branch.features",
                    "finetune.features",
                    "finetune_linear.features",
                    "latent.latent",
                    "actor_critic.trunk",
                ],
            ),
        ),
        (
            ("a term has two sides, and each has its own weight", "一项有两侧，每一侧各有权重"),
            Leaf(
                ["constant"],
                ["vqvae.codebook", "vqvae.commitment", "dreamer_kl.dyn_posterior", "dreamer_kl.rep_prior"],
            ),
        ),
    ],
)

LONG = Question(
    ("What makes it long?", "它长在哪里？"),
    [
        (
            ("a state goes from chunk to chunk, or a model is unrolled", "状态在片段之间传递，或模型被展开多步"),
            Leaf(["history", "scaled"], ["tbptt.hidden", "muzero.state", "pushforward.rollout"]),
        ),
        (
            (
                "an estimate is improved step by step, to a fixed point or an optimum",
                "估计被逐步改进，直到不动点或最优解",
            ),
            Leaf(["history", "run"], ["refine.estimate", "deq.iterates", "deq.solution", "sinkhorn.plan"]),
        ),
        (
            ("an inner training step, and an outer loss that judges it", "内层的一步训练，由外层的损失来评价"),
            Leaf([], ["maml.inner", "maml.theta", "darts.inner", "darts.weights", "darts.alpha"]),
        ),
        (
            ("many blocks, each with a loss of its own", "许多模块，每个有自己的损失"),
            Leaf(["constant"], ["local.blocks"]),
        ),
        (
            ("a batch that is too large: chunks, or shards on other ranks", "批次太大：分块，或分到其他进程（rank）"),
            Leaf([], ["contrastive.gathered", "contrastive.chunks"]),
        ),
    ],
)

HARD = Question(
    ("What is in the way?", "是什么挡住了？"),
    [
        (
            ("a rounding, a code, a choice (straight-through)", "舍入、编码、选择（直通，straight-through）"),
            Leaf(
                [],
                [
                    "straight_through.residual",
                    "straight_through.inner",
                    "vqvae.quantised",
                    "quantise.residual",
                    "quantise.codes",
                    "quantise.scale",
                ],
            ),
        ),
        (
            ("a sample, whose probability depends on what is learnt", "一个样本，它的概率取决于正在学的东西"),
            Leaf([], ["variational.score", "variational.sample", "grpo.inner"]),
        ),
        (
            ("a router that chooses experts", "选择专家的路由器"),
            Leaf([], ["moe.gate", "moe.denominator", "moe.probability"]),
        ),
        (
            ("nothing: I explain a network, and want its parts to add up", "没有：我在解释一个网络，要各部分加得起来"),
            Leaf(["constant"], ["attribution.attention", "attribution.norm", "attribution.gate"]),
        ),
    ],
)

VALUES = Question(
    ("What for?", "用来做什么？"),
    [
        (("to log it", "记录下来"), Leaf(["log"], ["loss_logging.history"])),
        (("to read or store results", "读取或保存结果"), Leaf(["serve", "array"])),
        (("to have a copy", "得到一个副本"), Leaf(["copy", "independent"])),
        (("to optimise it, or write to it", "优化它，或写入它"), Leaf(["leaf", "write"])),
        (("to cut it, and save memory", "切断它，并省内存"), Leaf(["in_place"])),
    ],
)

START = Question(
    ("What do you have in front of you?", "你面前的是什么？"),
    [
        (("a target: what a prediction should come to", "目标（target）：预测应当靠近的值"), TARGETS),
        (
            ("the prediction beside such a target", "这样一个目标旁边的预测"),
            Leaf(
                [],
                [
                    "td.prediction",
                    "consistency.prediction",
                    "meanflow.prediction",
                    "dmd.prediction",
                    "simsiam.prediction",
                ],
            ),
        ),
        (("a weight: how much a sample or a term counts", "权重：一个样本或一项占多大分量"), WEIGHTS),
        (("a network that this loss must not change", "一个不应被这个损失改变的网络"), NETWORKS),
        (("a long computation", "一段很长的计算"), LONG),
        (("a step without a useful derivative", "没有可用导数的一步"), HARD),
        (("only part of a gradient, or its opposite", "只要梯度的一部分，或相反的梯度"), Leaf(["scaled"])),
        (("no loss at all: I need the value", "与损失无关：我只要这个值"), VALUES),
    ],
)
