"""A text of numbers, in columns that are read side by side."""

import torch


def walk(length, vocabulary):
    """A walk in which each word leads to one of two."""
    words = [0]
    for coin in torch.randint(0, 2, (length - 1,)).tolist():
        words.append((2 * words[-1] + coin) % vocabulary)
    return torch.tensor(words)


class Columns:
    """Pieces of ``length`` words of every column, each with the words that follow."""

    def __init__(self, text, columns, length):
        rows = len(text) // columns
        self.grid = text[: rows * columns].reshape(columns, rows).T
        self.length = length

    def __len__(self):
        return (len(self.grid) - 1) // self.length

    def __iter__(self):
        for k in range(len(self)):
            piece = self.grid[k * self.length : (k + 1) * self.length + 1]
            yield piece[:-1], piece[1:]
