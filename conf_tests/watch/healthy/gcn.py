"""A graph network on one graph: a few nodes train it, others stop it early."""
# flow: loss_train -> conv1, conv2

import argparse

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn


class GraphConvolution(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inside, outside)))
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, nodes, graph):
        return torch.sparse.mm(graph, nodes @ self.weight) + self.bias


class GCN(nn.Module):
    def __init__(self, features, hidden, classes, dropout):
        super().__init__()
        self.conv1 = GraphConvolution(features, hidden)
        self.conv2 = GraphConvolution(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes, graph):
        return self.conv2(self.dropout(self.conv1(nodes, graph).relu()), graph)


def random_graph(count=60, classes=3):
    """Nodes of three kinds; those of one kind are linked more often."""
    kind = torch.arange(count) % classes
    chance = torch.where(kind[:, None] == kind, 0.3, 0.02)
    links = (torch.rand(count, count) < chance).float()
    links = ((links + links.T) > 0).float().fill_diagonal_(1)
    scale = links.sum(1).rsqrt()
    return torch.randn(count, 12), (scale[:, None] * links * scale).to_sparse(), kind


if __name__ == "__main__":
    args = argparse.Namespace(lr=0.02, weight_decay=5e-4, hidden=8, dropout=0.5, epochs=45, patience=20)
    torch.manual_seed(42)
    nodes, graph, kind = random_graph()
    train, valid, test = torch.arange(60).split(20)
    model = GCN(12, args.hidden, 3, args.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    best, waited = float("inf"), 0
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        loss_train = F.cross_entropy(model(nodes, graph)[train], kind[train])
        loss_train.backward()
        optimizer.step()

        model.eval()
        with torch.no_grad():
            scores = model(nodes, graph)
        loss_valid = F.cross_entropy(scores[valid], kind[valid]).item()
        if epoch % 10 == 0:
            print(f"{epoch:3d} train {loss_train.item():.4f} valid {loss_valid:.4f}")
        waited = 0 if loss_valid < best else waited + 1
        best = min(best, loss_valid)
        if waited == args.patience:
            break
    print(f"accuracy {(scores[test].argmax(1) == kind[test]).float().mean().item():.3f}")
    print("weights", digest(model))
