"""A word model with an LSTM whose state is carried on and cut between pieces; the weights are tied."""
# fast
# flow: loss -> embedding, lstm, decoder

import argparse
import math

import torch
from digest import digest
from torch import nn
from word_model.lstm import WordLSTM
from word_model.text import Columns, walk

parser = argparse.ArgumentParser(description="language model")
parser.add_argument("--size", type=int, default=12)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--lr", type=float, default=2.0)
parser.add_argument("--clip", type=float, default=0.25)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--seed", type=int, default=1111)
args = parser.parse_args()

torch.manual_seed(args.seed)
VOCABULARY = 11
train_text, valid_text = (Columns(walk(n, VOCABULARY), 10, 6) for n in (1000, 200))
model = WordLSTM(VOCABULARY, args.size, args.layers)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)


def cut(state):
    """The same state, without where it came from."""
    return None if state is None else tuple(part.detach() for part in state)


def perplexity(text):
    model.eval()
    losses, state = [], None
    with torch.no_grad():
        for words, following in text:
            scores, state = model(words, state)
            losses.append(criterion(scores.flatten(0, 1), following.flatten()).item())
    return math.exp(sum(losses) / len(losses))


def train(epoch):
    model.train()
    state = None
    for number, (words, following) in enumerate(train_text):
        model.zero_grad()
        scores, state = model(words, cut(state))
        loss = criterion(scores.flatten(0, 1), following.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        if number % 8 == 7:
            print(f"epoch {epoch}, piece {number}: {loss.item():.3f}")


for epoch in range(args.epochs):
    train(epoch)
    print(f"epoch {epoch}: perplexity {perplexity(valid_text):.3f}")
print("weights", digest(model))
