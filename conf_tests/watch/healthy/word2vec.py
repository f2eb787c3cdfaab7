"""Skip-gram with negative samples: sparse embeddings and SparseAdam."""
# flow: loss -> u_embeddings, v_embeddings

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest


class SkipGramModel(nn.Module):
    def __init__(self, emb_size, emb_dimension):
        super().__init__()
        self.u_embeddings = nn.Embedding(emb_size, emb_dimension, sparse=True)
        self.v_embeddings = nn.Embedding(emb_size, emb_dimension, sparse=True)
        nn.init.uniform_(self.u_embeddings.weight, -0.1, 0.1)
        nn.init.uniform_(self.v_embeddings.weight, -0.1, 0.1)

    def forward(self, pos_u, pos_v, neg_v):
        emb_u = self.u_embeddings(pos_u)
        score = F.logsigmoid(torch.sum(emb_u * self.v_embeddings(pos_v), dim=1))
        neg_score = torch.bmm(self.v_embeddings(neg_v), emb_u.unsqueeze(2)).squeeze()
        return torch.mean(-score - torch.sum(F.logsigmoid(-neg_score), dim=1))


class Word2VecTrainer:
    def __init__(self, vocabulary=40, dimension=6):
        self.vocabulary = vocabulary
        self.skip_gram_model = SkipGramModel(vocabulary, dimension)

    def batches(self, count):
        for _ in range(count):
            pos_u = torch.randint(self.vocabulary, (16,))
            pos_v = (pos_u + torch.randint(1, 3, (16,))) % self.vocabulary
            yield pos_u, pos_v, torch.randint(self.vocabulary, (16, 5))

    def train(self):
        for iteration in range(2):
            print(f"Iteration: {iteration + 1}")
            optimizer = torch.optim.SparseAdam(list(self.skip_gram_model.parameters()), lr=0.01)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
            running_loss = 0.0
            for i, (pos_u, pos_v, neg_v) in enumerate(self.batches(20)):
                optimizer.zero_grad()
                loss = self.skip_gram_model.forward(pos_u, pos_v, neg_v)
                loss.backward()
                optimizer.step()
                scheduler.step()
                running_loss = running_loss * 0.9 + loss.item() * 0.1
                if i > 0 and i % 9 == 0:
                    print(" Loss: " + str(running_loss))


if __name__ == "__main__":
    torch.manual_seed(3)
    w2v = Word2VecTrainer()
    w2v.train()
    print("weights", digest(w2v.skip_gram_model))
