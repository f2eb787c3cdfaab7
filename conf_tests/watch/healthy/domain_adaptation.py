"""Adversarial domain adaptation with a gradient reversal layer."""
# flow: err -> feature, class_classifier, domain_classifier

import math

import torch
from digest import digest
from domain.model import CNNModel
from torch import nn, optim


def digits(size, shift):
    label = torch.randint(0, 10, (size,))
    patterns = torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return patterns[label] + shift + 0.3 * torch.randn(size, 1, 6, 6), label


torch.manual_seed(15)
my_net = CNNModel()
optimizer = optim.Adam(my_net.parameters(), lr=1e-3)
loss_class, loss_domain = nn.NLLLoss(), nn.NLLLoss()
n_epoch, len_dataloader = 2, 18
for epoch in range(n_epoch):
    for i in range(len_dataloader):
        p = float(i + epoch * len_dataloader) / n_epoch / len_dataloader
        alpha = 2.0 / (1.0 + math.exp(-10 * p)) - 1
        s_img, s_label = digits(16, 0.0)
        my_net.zero_grad()
        class_output, domain_output = my_net(input_data=s_img, alpha=alpha)
        err_s_label = loss_class(class_output, s_label)
        err_s_domain = loss_domain(domain_output, torch.zeros(16).long())
        t_img, _ = digits(16, 1.0)
        _, domain_output = my_net(input_data=t_img, alpha=alpha)
        err_t_domain = loss_domain(domain_output, torch.ones(16).long())
        err = err_t_domain + err_s_domain + err_s_label
        err.backward()
        optimizer.step()
        if i % 9 == 0:
            print(f"epoch: {epoch}, [{i}] label: {err_s_label.item():f}, domain: {err_t_domain.item():f}")
print("weights", digest(my_net))
