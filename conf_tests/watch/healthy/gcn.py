"""A graph network on one graph; the mask takes the training nodes, early stopping by the validation ones."""
# flow: loss_train -> gc1, gc2

import argparse

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn
from torch.nn.parameter import Parameter


class GraphConv(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = Parameter(torch.empty(in_features, out_features))
        self.bias = Parameter(torch.zeros(out_features))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x, adj):
        return torch.sparse.mm(adj, x @ self.weight) + self.bias


class GCN(nn.Module):
    def __init__(self, nfeat, nhid, nclass, dropout):
        super().__init__()
        self.gc1 = GraphConv(nfeat, nhid)
        self.gc2 = GraphConv(nhid, nclass)
        self.dropout = dropout

    def forward(self, x, adj):
        x = F.dropout(F.relu(self.gc1(x, adj)), self.dropout, training=self.training)
        return F.log_softmax(self.gc2(x, adj), dim=1)


def load_graph(nodes=60, classes=3):
    labels = torch.arange(nodes) % classes
    same = labels[:, None] == labels[None, :]
    edges = torch.rand(nodes, nodes) < torch.where(same, 0.3, 0.02)
    edges = (edges | edges.t()).float() + torch.eye(nodes)
    degree = edges.sum(1).rsqrt()
    adj = (degree[:, None] * edges * degree[None, :]).to_sparse()
    return torch.randn(nodes, 12), adj, labels


def accuracy(output, labels):
    return (output.argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    args = argparse.Namespace(lr=0.02, weight_decay=5e-4, hidden=8, dropout=0.5, epochs=45, patience=20)
    torch.manual_seed(42)
    features, adj, labels = load_graph()
    idx_train, idx_val, idx_test = range(20), range(20, 40), range(40, 60)
    model = GCN(features.size(1), args.hidden, 3, args.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    best, bad = float("inf"), 0
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        output = model(features, adj)
        loss_train = F.nll_loss(output[idx_train], labels[idx_train])
        loss_train.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            output = model(features, adj)
            loss_val = F.nll_loss(output[idx_val], labels[idx_val]).item()
        if epoch % 10 == 0:
            print(f"Epoch {epoch:04d} loss_train: {loss_train.item():.4f} loss_val: {loss_val:.4f}")
        best, bad = (loss_val, 0) if loss_val < best else (best, bad + 1)
        if bad >= args.patience:
            break
    print(f"accuracy {accuracy(output[idx_test], labels[idx_test]):.3f}")
    print("weights", digest(model))
