"""Reversing words with an encoder and a decoder, an optimiser each, one loss, and teacher forcing half of the time."""
# fast
# flow: loss -> encoder, decoder

import random

import torch
import torch.nn as nn
from digest import digest
from torch.nn.functional import cross_entropy

START, END, WORDS = 0, 1, 10


class Encoder(nn.Module):
    def __init__(self, words, size):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.gru = nn.GRU(size, size)

    def forward(self, sentence):
        return self.gru(self.embedding(sentence))[1]


class Decoder(nn.Module):
    def __init__(self, words, size):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.cell = nn.GRUCell(size, size)
        self.out = nn.Linear(size, words)

    def forward(self, word, state):
        state = self.cell(self.embedding(word).relu(), state)
        return self.out(state), state


def train(source, target, encoder, decoder, optimizers, forced):
    for optimizer in optimizers:
        optimizer.zero_grad()
    state = encoder(source)[0]
    loss, word = 0, torch.tensor(START)
    for following in target:
        scores, state = decoder(word, state)
        loss += cross_entropy(scores, following)
        word = following if forced else scores.argmax().detach()
        if word.item() == END:
            break
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item() / len(target)


def train_all(encoder, decoder, count, every=12, lr=0.05):
    optimizers = [torch.optim.SGD(encoder.parameters(), lr), torch.optim.SGD(decoder.parameters(), lr)]
    recent = []
    for number in range(1, count + 1):
        source = torch.randint(2, WORDS, (4,))
        target = torch.cat([source.flip(0), torch.tensor([END])])
        recent.append(train(source, target, encoder, decoder, optimizers, random.random() < 0.5))
        if number % every == 0:
            print(f"{number}: {sum(recent) / len(recent):.4f}")
            recent.clear()


if __name__ == "__main__":
    random.seed(9)
    torch.manual_seed(9)
    encoder, decoder = Encoder(WORDS, 12), Decoder(WORDS, 12)
    train_all(encoder, decoder, 36)
    print("weights", digest(encoder, decoder))
