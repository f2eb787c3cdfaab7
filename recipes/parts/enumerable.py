"""A language model whose every completion can be listed, so that expectations are sums and need no samples."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn


def completions(vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """Every completion (N, T) int64 of up to T tokens, the last symbol ending it; and (N, T) which tokens are there.

    With 3 symbols and 4 tokens there are 31, with 1 token as many as symbols. Behind the end stand more ends.
    """
    end, found, unfinished = vocabulary - 1, [], [()]
    for _ in range(length):
        found += [(*prefix, end) for prefix in unfinished]
        unfinished = [(*prefix, token) for prefix in unfinished for token in range(end)]
    rows = [(*row, *[end] * (length - len(row))) for row in found + unfinished]
    tokens = torch.tensor(rows)
    ended = (tokens == end).cumsum(1) - (tokens == end).long()  # ends before this token
    return tokens, ended == 0


class Tree(nn.Module):
    """A policy with logits of its own for each prefix: any distribution over completions, in float64.

    Args:
        vocabulary: V symbols, the last of which ends a completion.
        length: T, the most tokens of a completion.
        spread: standard deviation of the logits at the start.
        tied: one distribution of the next symbol, whatever the prefix.
        dropout: of logits, in training mode.
    """

    def __init__(
        self,
        vocabulary: PositiveInt = 3,
        length: PositiveInt = 4,
        spread: PositiveFloat = 1.0,
        tied: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.symbols = vocabulary - 1  # that go on: children of a prefix
        self.tied, self.dropout = tied, nn.Dropout(dropout)
        prefixes = 1 if tied else sum(self.symbols**depth for depth in range(length))
        self.logits = nn.Parameter(spread * torch.randn(prefixes, vocabulary, dtype=torch.float64))
        self.tokens: Tensor
        self.mask: Tensor
        tokens, mask = completions(vocabulary, length)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def prefixes(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The prefix before each token, by number: (P, G, T) of completions (P, G, T); 0 where no token is."""
        if self.tied:
            return torch.zeros_like(tokens)
        at, found = torch.zeros_like(tokens[..., 0]), []
        for token in tokens.unbind(-1):  # the children of prefix n are n (V - 1) + 1 and on
            found.append(at)
            at = at * self.symbols + 1 + token
        return torch.stack(found, -1).where(mask, 0)

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """log pi(token) (P, G, T) of completions (P, G, T), whatever the prompts; 0 where no token is."""
        return self.dropout(self.logits).log_softmax(-1)[self.prefixes(tokens, mask), tokens].where(mask, 0)

    def everything(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """All completions, for each prompt: tokens and mask (P, N, T)."""
        return self.tokens.expand(len(prompts), -1, -1), self.mask.expand(len(prompts), -1, -1)

    @torch.no_grad()
    def generate(self, prompts: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """n sampled completions for each prompt: tokens and mask (P, n, T)."""
        tokens, mask = self.everything(prompts)
        probs = self(prompts[:1], tokens[:1], mask[:1]).sum(-1).exp()[0]
        drawn = torch.multinomial(probs, len(prompts) * n, replacement=True).view(len(prompts), n)
        return self.tokens[drawn], self.mask[drawn]


class Earnings(nn.Module):
    """What each completion of a tree earns, drawn evenly from [0, highest] once.

    Args:
        vocabulary, length: of the tree.
        highest: reward.
    """

    def __init__(self, vocabulary: PositiveInt = 3, length: PositiveInt = 4, highest: float = 1.5) -> None:
        super().__init__()
        tokens, _ = completions(vocabulary, length)
        self.tokens: Tensor
        self.rewards: Tensor
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("rewards", highest * torch.rand(len(tokens), dtype=torch.float64))

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(P, G) of completions (P, G, T)."""
        same = (tokens[..., None, :] == self.tokens).all(-1)  # (P, G, N)
        return same.to(self.rewards) @ self.rewards


def boltzmann(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """(N,) ref exp(R / beta) / Z: the highest E[R] - beta KL(pi, ref)."""
    return (reference.log() + rewards / beta).softmax(0)


def rational(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """(N,) beta ref / (c - R): the highest E[R] - beta KL(ref, pi); c, above all R, makes it sum to one."""
    low, high = rewards.max(), rewards.max() + beta
    for _ in range(100):
        c = (low + high) / 2
        above = (beta * reference / (c - rewards)).sum() > 1
        low, high = torch.where(above, c, low), torch.where(above, high, c)
    return beta * reference / (high - rewards)
