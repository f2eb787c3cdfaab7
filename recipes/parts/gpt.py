"""A small transformer that writes completions."""

from __future__ import annotations

import math

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    """Causal self-attention and a perceptron, each behind a LayerNorm: (N, T, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width))
        return x + self.perceptron(self.between(x))


class GPT(nn.Module):
    """A language model over completions of a fixed length, in the form that recipes/parts/enumerable.py has too.

    Args:
        vocabulary: V symbols; one more stands between prompt and completion.
        prompt, length: tokens of a prompt, and T of a completion.
        width, depth, heads: of the transformer.
    """

    def __init__(
        self,
        vocabulary: PositiveInt = 10,
        prompt: PositiveInt = 4,
        length: PositiveInt = 4,
        width: PositiveInt = 64,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
    ) -> None:
        super().__init__()
        self.between, self.length = vocabulary, length
        self.symbols = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Parameter(torch.randn(prompt + length, width) / math.sqrt(width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.symbols.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.head.weight)  # all symbols are equally likely at the start
        nn.init.zeros_(self.head.bias)

    def following(self, text: Tensor) -> Tensor:
        """(N, S, V) log-probabilities of what comes behind each symbol of a text (N, S)."""
        return self.head(self.blocks(self.symbols(text) + self.places[: text.shape[1]])).log_softmax(-1)

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """log pi(token) (P, G, T) of completions (P, G, T) of prompts (P, L)."""
        p, g, t = tokens.shape
        text = torch.cat([self.opened(prompts, g), tokens.reshape(p * g, t)[:, :-1]], 1)
        logs = self.following(text)[:, -t:]
        return logs.gather(-1, tokens.reshape(p * g, t, 1)).view(p, g, t)

    def opened(self, prompts: Tensor, n: int) -> Tensor:
        """Each prompt (P, L) n times, and the symbol behind it: (P n, L + 1)."""
        text = prompts.repeat_interleave(n, 0)
        return torch.cat([text, torch.full_like(text[:, :1], self.between)], 1)

    @torch.no_grad()
    def generate(self, prompts: Tensor, n: int, greedily: bool = False) -> tuple[Tensor, Tensor]:
        """n completions for each prompt (P, L), sampled or the likeliest symbols: tokens and mask (P, n, T)."""
        text = self.opened(prompts, n)
        for _ in range(self.length):
            logs = self.following(text)[:, -1]
            noise = 0 if greedily else -(-torch.rand_like(logs).log()).log()  # Gumbel's: a sample
            text = torch.cat([text, (logs + noise).argmax(-1, keepdim=True)], 1)
        tokens = text[:, -self.length :].view(len(prompts), n, -1)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
