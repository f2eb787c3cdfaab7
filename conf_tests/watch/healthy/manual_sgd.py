"""A network of plain tensors, updated by hand under no_grad."""
# fast
# flow: loss -> w1, b1, w2, b2

import torch
from digest import digest

torch.manual_seed(0)
w1 = (0.5 * torch.randn(2, 16)).requires_grad_()
b1 = torch.zeros(16, requires_grad=True)
w2 = (0.25 * torch.randn(16, 1)).requires_grad_()
b2 = torch.zeros(1, requires_grad=True)
learning_rate = 0.05

for t in range(50):
    x = torch.rand(32, 2) * 2 - 1
    y = (x[:, :1] * x[:, 1:]).sign()
    y_pred = (x @ w1 + b1).tanh() @ w2 + b2
    loss = (y_pred - y).pow(2).mean()
    if t % 10 == 9:
        print(t, loss.item())
    loss.backward()
    with torch.no_grad():
        for w in (w1, b1, w2, b2):
            w -= learning_rate * w.grad
            w.grad.zero_()

print("weights", digest(w1, b1, w2, b2))
