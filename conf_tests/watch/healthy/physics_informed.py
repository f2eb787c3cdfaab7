"""A physics-informed network for u'' = -u: derivatives by autograd.grad with create_graph, Adam and then LBFGS."""
# fast
# flow: loss -> linear1, linear2, linear3

import torch
from digest import digest
from torch import nn


class DNN(nn.Module):
    def __init__(self, width=10):
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.linear3 = nn.Linear(width, 1)

    def forward(self, t):
        return self.linear3(torch.tanh(self.linear2(torch.tanh(self.linear1(t)))))


class PhysicsInformedNN:
    def __init__(self):
        self.t_u = torch.tensor([[0.0]])
        self.t_f = torch.linspace(0, 3, 24).unsqueeze(1).requires_grad_()
        self.dnn = DNN()
        self.optimizer = torch.optim.LBFGS(
            self.dnn.parameters(), lr=1.0, max_iter=30, history_size=20, line_search_fn="strong_wolfe"
        )
        self.optimizer_Adam = torch.optim.Adam(self.dnn.parameters(), lr=1e-2)
        self.iter = 0

    def derivative(self, u, t):
        return torch.autograd.grad(u, t, grad_outputs=torch.ones_like(u), retain_graph=True, create_graph=True)[0]

    def compute_loss(self):
        u = self.dnn(self.t_f)
        u_t = self.derivative(u, self.t_f)
        residual = self.derivative(u_t, self.t_f) + u
        start = self.dnn(self.t_u)
        return (start - 1).pow(2).mean() + u_t[0].pow(2).mean() + residual.pow(2).mean()

    def loss_func(self):
        self.optimizer.zero_grad()
        loss = self.compute_loss()
        loss.backward()
        self.iter += 1
        if self.iter % 10 == 0:
            print(f"Iter {self.iter}, Loss: {loss.item():.5e}")
        return loss

    def train(self, nIter):
        self.dnn.train()
        for epoch in range(nIter):
            loss = self.compute_loss()
            self.optimizer_Adam.zero_grad()
            loss.backward()
            self.optimizer_Adam.step()
            if epoch % 10 == 0:
                print(f"It: {epoch}, Loss: {loss.item():.3e}")
        self.optimizer.step(self.loss_func)

    def predict(self, t):
        self.dnn.eval()
        return self.dnn(t).detach().cpu().numpy()


if __name__ == "__main__":
    torch.manual_seed(1234)
    model = PhysicsInformedNN()
    model.train(30)
    print("u(1) =", float(model.predict(torch.ones(1, 1))[0, 0]))
    print("weights", digest(model.dnn))
