"""Train or evaluate a recipe, or a sweep with -m: python train.py --help. The code is stopgrad/runner/train.py."""

from pathlib import Path

from stopgrad.runner.train import train

if __name__ == "__main__":
    train(Path(__file__).parent)
