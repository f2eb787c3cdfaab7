"""A text of numbers, in columns."""

import torch


def corpus(length, vocabulary):
    """A walk in which each word leads to one of two."""
    words = [0]
    for coin in torch.randint(0, 2, (length - 1,)).tolist():
        words.append((2 * words[-1] + coin) % vocabulary)
    return torch.tensor(words)


def batchify(data, columns):
    rows = data.size(0) // columns
    return data[: rows * columns].view(columns, -1).t().contiguous()


def get_batch(source, i, bptt):
    length = min(bptt, len(source) - 1 - i)
    return source[i : i + length], source[i + 1 : i + 1 + length].view(-1)
