"""GRPO from scratch, as a loop in plain PyTorch: Shao et al. 2024, arXiv:2402.03300.

    python benchmarks/plain/grpo.py        # 300 steps: a transformer learns to sort four digits from a score

For each of 16 prompts it writes 16 answers; each counts by how many digits stand right, beyond the other answers.
"""

import argparse
import time

import torch
from torch import nn

DIGITS, LENGTH, PROMPTS, ANSWERS, WIDTH, DEPTH, CLIP = 10, 4, 16, 16, 64, 2, 0.2


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(DIGITS + 1, WIDTH)  # one more stands between prompt and answer
        self.places = nn.Parameter(torch.randn(2 * LENGTH, WIDTH) / WIDTH**0.5)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, DIGITS)
        nn.init.zeros_(self.head.weight)  # all digits are equally likely at first
        nn.init.zeros_(self.head.bias)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the symbol behind each: (N, S) to (N, S, DIGITS)."""
        causal = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        x = self.layers(self.symbols(text) + self.places[: text.shape[1]], causal, is_causal=True)
        return self.head(x).log_softmax(-1)

    @torch.no_grad()
    def write(self, prompts: torch.Tensor, greedily: bool = False) -> torch.Tensor:
        """Prompts (N, LENGTH) with the symbol between and an answer behind them."""
        text = torch.cat([prompts, torch.full_like(prompts[:, :1], DIGITS)], 1)
        for _ in range(LENGTH):
            logs = self(text)[:, -1]
            chosen = logs.argmax(-1, keepdim=True) if greedily else torch.multinomial(logs.exp(), 1)
            text = torch.cat([text, chosen], 1)
        return text


def score(text: torch.Tensor) -> torch.Tensor:
    return (text[:, -LENGTH:] == text[:, :LENGTH].sort(1).values).float().mean(1)


def train(steps: int = 300, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    policy = GPT()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.001, fused=True)
    started = time.perf_counter()

    for _ in range(steps):
        prompts = torch.randint(DIGITS, (PROMPTS, LENGTH))
        text = policy.write(prompts.repeat_interleave(ANSWERS, 0))
        rewards = score(text).view(PROMPTS, ANSWERS)
        apart = rewards - rewards.mean(1, keepdim=True)
        advantages = (apart / (rewards.std(1, keepdim=True, correction=0) + 1e-4)).view(-1, 1)
        log_probs = policy(text[:, :-1])[:, -LENGTH:].gather(-1, text[:, -LENGTH:, None]).squeeze(-1)
        ratio = (log_probs - log_probs.detach()).exp()  # the cut: it is 1, and has the gradient of log pi
        losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        loss = losses.mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    scores = score(policy.write(torch.randint(DIGITS, (500, LENGTH)), greedily=True))
    found = {"reward": scores.mean().item(), "solved": (scores == 1).float().mean().item()}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
