"""MoCo: a momentum encoder for the keys, which fill a queue kept as a buffer."""
# flow: loss -> encoder_q
# cut: loss -> encoder_k

import torch
import torch.nn as nn
from digest import digest


class MoCo(nn.Module):
    def __init__(self, base_encoder, dim=8, K=64, m=0.99, T=0.2):
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.encoder_q = base_encoder(dim)
        self.encoder_k = base_encoder(dim)
        for param_q, param_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            param_k.data.copy_(param_q.data)
            param_k.requires_grad = False
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update_key_encoder(self):
        for param_q, param_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            param_k.data = param_k.data * self.m + param_q.data * (1.0 - self.m)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys):
        ptr = int(self.queue_ptr)
        self.queue[:, ptr : ptr + len(keys)] = keys.T
        self.queue_ptr[0] = (ptr + len(keys)) % self.K

    def forward(self, im_q, im_k):
        q = nn.functional.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            k = nn.functional.normalize(self.encoder_k(im_k), dim=1)
        l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([l_pos, l_neg], dim=1) / self.T
        labels = torch.zeros(logits.shape[0], dtype=torch.long)
        self._dequeue_and_enqueue(k)
        return logits, labels


class Encoder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.body = nn.Linear(12, 24)
        self.fc = nn.Linear(24, dim)

    def forward(self, x):
        return self.fc(torch.relu(self.body(x)))


def main():
    torch.manual_seed(10)
    model = MoCo(Encoder)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), 0.03, momentum=0.9)
    for i in range(40):
        images = torch.randn(16, 12).cumsum(1)
        views = [images + 0.2 * torch.randn_like(images) for _ in range(2)]
        output, target = model(im_q=views[0], im_k=views[1])
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 10 == 0:
            print(f"[{i}] Loss {loss.item():.4e} Acc@1 {(output.argmax(1) == target).float().mean().item():.2f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
