"""From a config to a run and what it leaves: Hydra and Lightning, for the recipes of any project."""
