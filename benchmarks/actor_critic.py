"""PPO on CartPole-v1 against stable-baselines3's, in one run: time until it is learnt, and steps a second.

    python benchmarks/actor_critic.py            # needs pip install 'stopgrad[benchmarks]'

Learnt: the mean return of the last 20 training episodes is 475 or more, looked at after every iteration. `recipe` is
`python train.py recipe=actor_critic` with all its callbacks, logger and evaluations; `sb3` has the settings of
rl-baselines3-zoo for CartPole (8 environments, 32 steps, 20 epochs of one minibatch of 256, gamma .98, lambda .8, a
learning rate of .001 and a clip of .2 that fall linearly over 100,000 steps). Then both with those same settings, for
the same number of environment steps. One thread each, in turn, a process for all; seconds are of the CPU, as others may
share the machine. Imports and the reading of the config are not counted, the construction of everything is.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
from timing import ROOT, prepare, spread

from stopgrad.runner.build import build

LEARNT, EPISODES = 475.0, 20
ZOO_STEPS = 100_000  # over which the zoo's schedules fall
ZOO = ["data.num_envs=8", "recipe.rollout=32", "recipe.minibatch=256", "recipe.epochs=20", "recipe.gamma=0.98"]
ZOO += ["recipe.gae_lambda=0.8", "recipe.clip=0.2", "recipe.anneal=true", "recipe.max_grad_norm=0.5"]
ZOO += [
    "recipe.value_weight=0.5",
    "recipe.optimizer.lr=0.001",
    f"trainer.max_steps={ZOO_STEPS // 256}",
    "trainer.val_check_interval=1000",
]


class Watch(L.Callback):
    """Stops a recipe's run when it has learnt, or after ``steps`` transitions."""

    def __init__(self, steps: float) -> None:
        self.steps, self.taken, self.learnt = steps, 0, False

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = list(batch.episodes)[-EPISODES:]
        self.taken = batch.count
        self.learnt = len(last) == EPISODES and statistics.mean(last) >= LEARNT
        trainer.should_stop = self.taken >= self.steps or (self.learnt and self.steps == math.inf)


def recipe(seed: int, steps: float, *overrides: str) -> tuple[float, int, bool]:
    """CPU seconds, transitions, and whether it has learnt; until then, or for ``steps`` transitions."""
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config: Any = compose("train", ["recipe=actor_critic", f"seed={seed}", *overrides])
        config = OmegaConf.create(OmegaConf.to_yaml(config).replace("${hydra:runtime.output_dir}", folder))
        watch = Watch(steps)
        started = time.process_time()
        L.seed_everything(seed, workers=True, verbose=False)
        run = build(config)
        run.trainer.callbacks.append(watch)  # pyright: ignore[reportAttributeAccessIssue]
        run.trainer.fit(run.recipe, run.data)
        return time.process_time() - started, watch.taken, watch.learnt


class Stop(BaseCallback):
    """The same for stable-baselines3."""

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.steps, self.learnt, self.stop = steps, False, False

    def _on_rollout_start(self) -> None:  # after the update
        last = [episode["r"] for episode in list(self.model.ep_info_buffer or [])[-EPISODES:]]
        self.learnt = len(last) == EPISODES and statistics.mean(last) >= LEARNT
        self.stop = self.num_timesteps >= self.steps or (self.learnt and self.steps == math.inf)

    def _on_step(self) -> bool:
        return not self.stop


def sb3(seed: int, steps: float) -> tuple[float, int, bool]:
    stop = Stop(steps)
    started = time.process_time()
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda remaining: remaining * 0.001,
        clip_range=lambda remaining: remaining * 0.2,
        device="cpu",
        seed=seed,
    )
    model.learn(ZOO_STEPS, callback=stop)
    return time.process_time() - started, model.num_timesteps, stop.learnt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25_600, help="of the second comparison")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    prepare()
    with redirect_stdout(io.StringIO()):
        recipe(0, 4096)  # once, not counted: what is imported late is imported
        sb3(0, 512)
        learnt = [(recipe(seed, math.inf), sb3(seed, math.inf)) for seed in range(arguments.seeds)]
        speed = [(recipe(s, arguments.steps, *ZOO), sb3(s, arguments.steps)) for s in range(arguments.seeds)]
    found = summary(learnt, speed)
    if arguments.json:
        print(json.dumps(found))
    else:
        report(found)


def summary(learnt: list[Any], speed: list[Any]) -> dict[str, Any]:
    """Of pairs (recipe, stable-baselines3), one for each seed."""
    sides = ("recipe", "sb3")
    sooner = [theirs[0] / ours[0] for ours, theirs in learnt]
    rates = [[side[1] / side[0] for side in pair] for pair in speed]
    return {
        "repeats": len(learnt),
        "threads": torch.get_num_threads(),
        "learnt": all(ours[2] and theirs[2] for ours, theirs in learnt),
        "seconds": {name: [round(pair[k][0], 2) for pair in learnt] for k, name in enumerate(sides)},
        "transitions": {name: [pair[k][1] for pair in learnt] for k, name in enumerate(sides)},
        "seconds_spread": {name: spread([pair[k][0] for pair in learnt]) for k, name in enumerate(sides)},
        "times_sooner": spread(sooner, 3),
        "least_sooner": spread([min(sooner)], 3),
        "steps_a_second": {name: spread([rate[k] for rate in rates]) for k, name in enumerate(sides)},
        "same_settings": spread([ours / theirs for ours, theirs in rates], 3),
    }


def report(found: dict[str, Any]) -> None:
    print(f"CartPole-v1, {found['repeats']} seeds, {found['threads']} thread; all learnt: {found['learnt']}")
    for name, seconds in found["seconds"].items():
        print(f"  {name:<7} seconds to {LEARNT:.0f}: {seconds}  transitions: {found['transitions'][name]}")
    sooner, faster = found["times_sooner"], found["same_settings"]
    print(f"recipe has learnt it {sooner['median']} times sooner, {sooner['min']} to {sooner['max']} (bars: 6 and 4)")
    ours, theirs = (side["median"] for side in found["steps_a_second"].values())
    print(
        f"with the same settings: {ours:.0f} steps a second against {theirs:.0f}, "
        f"{faster['median']} times as many, {faster['min']} to {faster['max']} (bar: 1.5)"
    )


if __name__ == "__main__":
    main()
