"""Skip-gram with negative samples: sparse embeddings and SparseAdam, made anew for each pass."""
# flow: loss -> centre, context

import torch
import torch.nn as nn
from digest import digest
from torch.nn.functional import logsigmoid


class SkipGram(nn.Module):
    def __init__(self, words, size):
        super().__init__()
        self.centre = nn.Embedding(words, size, sparse=True)
        self.context = nn.Embedding(words, size, sparse=True)
        for table in (self.centre, self.context):
            nn.init.uniform_(table.weight, -0.1, 0.1)

    def forward(self, word, near, far):
        v = self.centre(word)
        hit = (v * self.context(near)).sum(-1)
        miss = (v[:, None] * self.context(far)).sum(-1)
        return -(logsigmoid(hit) + logsigmoid(-miss).sum(1)).mean()


class Training:
    def __init__(self, words=40, size=6):
        self.words = words
        self.model = SkipGram(words, size)

    def examples(self, count):
        for _ in range(count):
            word = torch.randint(self.words, (16,))
            yield word, (word + torch.randint(1, 3, (16,))) % self.words, torch.randint(self.words, (16, 5))

    def run(self, passes):
        for number in range(passes):
            optimizer = torch.optim.SparseAdam(list(self.model.parameters()), lr=0.01)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
            average = None
            for example in self.examples(20):
                optimizer.zero_grad()
                loss = self.model(*example)
                loss.backward()
                optimizer.step()
                scheduler.step()
                average = loss.item() if average is None else 0.9 * average + 0.1 * loss.item()
            print(f"pass {number}: {average:.5f}")


if __name__ == "__main__":
    torch.manual_seed(3)
    training = Training()
    training.run(2)
    print("weights", digest(training.model))
