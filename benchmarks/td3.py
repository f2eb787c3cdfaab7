"""The TD3 recipe against stable-baselines3's TD3, on Pendulum-v1, one thread each.

    python benchmarks/td3.py                      # updates a second: same networks, batch and warm-up on both sides
    python benchmarks/td3.py --until -200         # seconds until 10 episodes return that much, each with its settings

Updates: both act in 10 environments, 10 transitions and then 10 updates a step, networks of two layers of 256, batches
of 256; the clock starts after the warm-up of 1,000 random transitions. `recipe` runs as train.py runs it, with its
callbacks, bar and TensorBoard logger. `products` are the matrix products of an update and nothing else, in place of the
updates: no program that computes them on this machine can be faster. In turn, in one process, so many repeats; CPU
time, as others may share the machine. After some 700 updates Adam's averages of dead units become denormal numbers,
which a CPU computes slowly: train.py flushes them to 0 (`callbacks.denormals`), stable-baselines3 does not.

Until: `recipe` with the settings of configs/recipe/td3.yaml; `zoo`, stable-baselines3 with rl-zoo's for Pendulum-v1
(networks of 400 and 300, 10,000 random transitions, one environment, updates after each episode, gamma .98, learning
rate .001, noise .1; batch 256, its default); `peer`, stable-baselines3 with the recipe's settings. So zoo / recipe is
zoo / peer, which is settings, times peer / recipe, which is not. An evaluation every 500 transitions, the same 10
episodes for all, with the clock stopped. The clock runs from the first transition.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from timing import ROOT, prepare, spread
from torch import Tensor

from recipes.parts.environments import EVALUATION_SEED, VectorEnvironment, play
from recipes.parts.replay import unscaled
from stopgrad.runner.build import build

SAME = ["recipe.width=256", "data.batch_size=256", "data.warmup=1000"]
EVERY = 500  # transitions from one evaluation to the next
MOST = 20_000  # transitions, after which a run has failed


class Clock:
    """Seconds, less what is spent while it is stopped."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, time.process_time()

    def stop(self) -> None:
        self.seconds += time.process_time() - self.started

    def go_on(self) -> None:
        self.started = time.process_time()


class Until:
    """Asked after every step, with the transitions so far and the policy: is it over?

    Args:
        bar: what 10 evaluation episodes must return in the mean.
        environments: to evaluate in.
    """

    def __init__(self, bar: float, environments: VectorEnvironment) -> None:
        self.bar, self.environments, self.clock, self.evaluations, self.reached = bar, environments, Clock(), 0, False

    def __call__(self, transitions: int, policy: Callable[[Tensor], Tensor]) -> bool:
        if transitions < (self.evaluations + 1) * EVERY:
            return False
        self.clock.stop()
        self.evaluations = transitions // EVERY
        self.transitions = transitions
        self.reached = play(self.environments, policy).mean().item() > self.bar
        self.clock.go_on()
        return self.reached or transitions >= MOST


class Ticks(L.Callback):
    """Ends a fit when ``over(transitions, policy)`` says so."""

    def __init__(self, over: Callable[[int, Callable[[Tensor], Tensor]], bool]) -> None:
        self.over = over

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        experience: Any = trainer.train_dataloader
        environments = experience.environments

        def policy(seen: Tensor) -> Tensor:
            with torch.no_grad():
                return unscaled(environments, pl_module.actor(seen))

        trainer.should_stop = self.over(experience.replay.count, policy)


def run_recipe(seed: int, overrides: list[str], over: Callable[[int, Callable[[Tensor], Tensor]], bool]) -> None:
    """Train the recipe as train.py does, with all its callbacks and TensorBoard, until it is over."""
    longest = ["trainer.max_steps=100000", "trainer.val_check_interval=100000", "+trainer.limit_val_batches=0"]
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config: Any = compose("train", ["recipe=td3", f"seed={seed}", *longest, *overrides])
        config = OmegaConf.create(OmegaConf.to_yaml(config).replace("${hydra:runtime.output_dir}", folder))
        L.seed_everything(seed, workers=True, verbose=False)
        run = build(config)
        run.trainer.callbacks.append(Ticks(over))  # pyright: ignore[reportAttributeAccessIssue]
        run.trainer.fit(run.recipe, run.data)


def run_peer(
    seed: int,
    over: Callable[[int, Callable[[Tensor], Tensor]], bool],
    *,
    net_arch: list[int],
    num_envs: int = 10,
    train_freq: Any = 1,
    **settings: Any,
) -> None:
    """Train stable-baselines3's TD3, until it is over: as many updates as transitions, as the recipe does."""
    from stable_baselines3 import TD3  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.noise import NormalActionNoise  # pyright: ignore[reportMissingImports]

    class Asks(BaseCallback):
        def _on_step(self) -> bool:
            return not over(
                self.num_timesteps,
                lambda seen: torch.from_numpy(self.model.predict(seen.numpy(), deterministic=True)[0]),
            )

    TD3(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=num_envs, seed=seed),
        policy_kwargs={"net_arch": net_arch},
        gradient_steps=-1,
        train_freq=train_freq,
        action_noise=NormalActionNoise(np.zeros(1), np.full(1, 0.1)),
        learning_rate=1e-3,
        gamma=0.98,
        seed=seed,
        device="cpu",
        **settings,
    ).learn(10**6, callback=Asks())


def updates_a_second(program: Callable[..., None], seed: int, updates: int, *arguments: Any, **settings: Any) -> float:
    """From the end of the step after the warm-up to the end of the last."""
    times: dict[int, float] = {}

    def over(transitions: int, policy: object) -> bool:
        times[transitions] = time.process_time()
        return transitions >= 1100 + updates

    program(seed, *arguments, over=over, **settings)
    first = min(count for count in times if count >= 1100)
    last = max(times)
    return (last - first) / (times[last] - times[first])


def products_a_second(updates: int) -> float:
    """The matrix products of one TD3 update (delay 2) with two layers of 256 and batches of 256, as many times."""
    batch, width = 256, 256
    x, w = torch.randn(2, batch, width), torch.randn(2, width, width)
    inputs, outputs = (torch.randn(2, batch, k) for k in (4, 1))
    w_in, w_out = torch.randn(2, 4, width), torch.randn(2, width, 1)
    slope = torch.randn(2, batch, width)

    def forward(n: int) -> None:
        torch.bmm(inputs[:n], w_in[:n])
        torch.bmm(x[:n], w[:n])
        torch.bmm(x[:n], w_out[:n])

    def backward_inputs(n: int, first: bool) -> None:
        torch.bmm(outputs[:n], w_out[:n].mT)
        torch.bmm(slope[:n], w[:n].mT)
        if first:
            torch.bmm(slope[:n], w_in[:n].mT)

    def backward_weights(n: int) -> None:
        torch.bmm(x[:n].mT, outputs[:n])
        torch.bmm(x[:n].mT, slope[:n])
        torch.bmm(inputs[:n].mT, slope[:n])

    started = time.process_time()
    for k in range(updates):
        forward(1)  # the copy of the actor
        forward(2)  # the copies of the critics
        forward(2)  # the critics
        backward_inputs(2, first=False)
        backward_weights(2)
        if k % 2:
            forward(1)  # the actor
            forward(1)  # the first critic, and back down to its input
            backward_inputs(1, first=True)
            backward_inputs(1, first=False)  # the actor
            backward_weights(1)
    return updates / (time.process_time() - started)


def measure_updates(repeats: int, updates: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"recipe": [], "stable-baselines3": [], "products": []}
    for seed in range(repeats):
        found["recipe"].append(updates_a_second(run_recipe, seed, updates, SAME))
        settings = {"net_arch": [256, 256], "batch_size": 256, "learning_starts": 1000}
        found["stable-baselines3"].append(updates_a_second(run_peer, seed, updates, **settings))
        found["products"].append(products_a_second(updates))
    ratio = {
        name: spread([a / b for a, b in zip(found["recipe"], found[name], strict=True)], 3)
        for name in ("stable-baselines3", "products")
    }
    return {
        "updates_a_second": {name: spread(values) for name, values in found.items()},
        "over_sb3": ratio["stable-baselines3"],
        "over_products": ratio["products"],
        "repeats": repeats,
    }


def measure_until(bar: float, seeds: list[int], programs: list[str]) -> dict[str, Any]:
    environments = VectorEnvironment("Pendulum-v1", 10, seed=EVALUATION_SEED)
    zoo = {"net_arch": [400, 300], "num_envs": 1, "train_freq": (1, "episode"), "learning_starts": 10_000}
    peer = {"net_arch": [64, 64], "learning_starts": 1000, "batch_size": 128, "tau": 0.01}
    run: dict[str, Callable[[int, Until], None]] = {
        "recipe": lambda seed, until: run_recipe(seed, [], until),
        "peer": lambda seed, until: run_peer(seed, until, **peer),
        "zoo": lambda seed, until: run_peer(seed, until, buffer_size=200_000, **zoo),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    transitions: dict[str, list[int]] = {name: [] for name in programs}
    for seed in seeds:
        for name in programs:
            until = Until(bar, environments)
            run[name](seed, until)
            until.clock.stop()
            seconds[name].append(round(until.clock.seconds, 1) if until.reached else float("inf"))
            transitions[name].append(until.transitions)
    found = {"until": bar, "seeds": seeds, "repeats": len(seeds), "seconds": seconds, "transitions": transitions}
    found["seconds_spread"] = {name: spread(values, 3) for name, values in seconds.items()}
    for name in programs[1:]:  # seed by seed
        ratios = [a / b for a, b in zip(seconds[name], seconds["recipe"], strict=True)]
        found[f"{name}_over_recipe"] = spread(ratios, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=float, help="a return, such as -200")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of --until")
    parser.add_argument("--programs", nargs="+", default=["recipe", "peer", "zoo"], help="of --until; recipe is first")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2000, help="that are timed in a repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object")
    arguments = parser.parse_args()
    prepare(arguments.threads)
    with redirect_stdout(io.StringIO()):  # the progress bar's
        if arguments.until is None:
            found = measure_updates(arguments.repeats, arguments.updates)
        else:
            found = measure_until(arguments.until, arguments.seeds, arguments.programs)
    found["threads"] = arguments.threads
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<32} {value}")


if __name__ == "__main__":
    main()
