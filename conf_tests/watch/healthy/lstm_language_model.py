"""A word model with an LSTM whose hidden state is carried on and cut between batches; the weights are tied."""
# fast
# flow: loss -> encoder, rnn, decoder

import argparse
import math

import torch
from digest import digest
from torch import nn
from word_language_model.data import batchify, corpus, get_batch
from word_language_model.model import RNNModel

parser = argparse.ArgumentParser(description="language model")
parser.add_argument("--nhid", type=int, default=12)
parser.add_argument("--nlayers", type=int, default=2)
parser.add_argument("--lr", type=float, default=1.0)
parser.add_argument("--clip", type=float, default=0.25)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--bptt", type=int, default=6)
parser.add_argument("--seed", type=int, default=1111)
args = parser.parse_args()

torch.manual_seed(args.seed)
ntokens = 11
train_data = batchify(corpus(1000, ntokens), 10)
val_data = batchify(corpus(200, ntokens), 10)
model = RNNModel(ntokens, args.nhid, args.nlayers)
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)


def repackage_hidden(h):
    """Cut hidden states from their history."""
    if isinstance(h, torch.Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


def evaluate(source):
    model.eval()
    total = 0.0
    hidden = model.init_hidden(10)
    with torch.no_grad():
        for i in range(0, source.size(0) - 1, args.bptt):
            data, targets = get_batch(source, i, args.bptt)
            output, hidden = model(data, hidden)
            total += len(data) * criterion(output, targets).item()
    return total / (len(source) - 1)


def train():
    model.train()
    total = 0.0
    hidden = model.init_hidden(10)
    for batch, i in enumerate(range(0, train_data.size(0) - 1, args.bptt)):
        data, targets = get_batch(train_data, i, args.bptt)
        model.zero_grad()
        hidden = repackage_hidden(hidden)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        total += loss.item()
        if batch % 8 == 7:
            print(f"| epoch {epoch} | batch {batch} | loss {total / 8:5.2f} | ppl {math.exp(total / 8):8.2f}")
            total = 0.0


for epoch in range(1, args.epochs + 1):
    train()
    print(f"| end of epoch {epoch} | valid loss {evaluate(val_data):5.2f}")
print("weights", digest(model))
