"""The proof: which loss reaches which part of a model, and the line that stopped it."""
