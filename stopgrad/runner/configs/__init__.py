"""Configs that every project shares, on Hydra's search path: pkg://stopgrad.runner.configs."""
