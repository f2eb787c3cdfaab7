import torch.nn as nn


class TinyLM(nn.Module):
    def __init__(self, vocab=20, hidden=16):
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, input_ids):
        return self.head(self.rnn(self.embed(input_ids))[0])


def log_probs(scores, words, mask):
    """Log-probability of each sequence, of the tokens where the mask is set."""
    each = scores[:, :-1].log_softmax(-1).gather(-1, words[:, 1:, None])[..., 0]
    return (each * mask[:, 1:]).sum(1)
