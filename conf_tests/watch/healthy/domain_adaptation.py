"""Adversarial domain adaptation with a gradient reversal layer whose strength grows."""
# flow: err -> feature, label_head, domain_head

import math

import torch
from digest import digest
from domain.model import DANN
from torch.nn.functional import cross_entropy

PATTERNS = torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def digits(count, shift):
    label = torch.randint(0, 10, (count,))
    return PATTERNS[label] + shift + 0.3 * torch.randn(count, 1, 6, 6), label


torch.manual_seed(15)
net = DANN()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
source_domain, target_domain = torch.zeros(16, dtype=torch.long), torch.ones(16, dtype=torch.long)
total = 36
for step in range(total):
    strength = math.tanh(5 * step / total)
    net.zero_grad()
    pictures, labels = digits(16, 0.0)
    scores, domain = net(pictures, strength)
    err_label, err_source = cross_entropy(scores, labels), cross_entropy(domain, source_domain)
    pictures, _ = digits(16, 1.0)
    err_target = cross_entropy(net(pictures, strength)[1], target_domain)
    err = err_label + err_source + err_target
    err.backward()
    optimizer.step()
    if step % 9 == 0:
        print(f"{step}: label {err_label.item():.5f}, domains {(err_source + err_target).item():.5f}")
print("weights", digest(net))
