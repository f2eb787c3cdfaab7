"""Gradient accumulation with autocast in bfloat16, a scaler, unscaling and clipping."""
# flow: loss -> encoder, head

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn
from torch.amp import GradScaler, autocast

accumulation_steps, device_type = 4, "cpu"


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


torch.manual_seed(64)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scaler = GradScaler(device_type, init_scale=256.0, growth_interval=10)
centres = torch.randn(3, 12)
optimizer.zero_grad(set_to_none=True)
for i in range(36 * accumulation_steps):
    y = torch.randint(0, 3, (8,))
    x = centres[y] + torch.randn(8, 12)
    with autocast(device_type, dtype=torch.bfloat16):
        logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
    scaler.scale(loss / accumulation_steps).backward()
    if (i + 1) % accumulation_steps == 0:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if (i + 1) % 40 == 0:
            print(f"{i + 1}: loss {loss.item():.4f} norm {norm.item():.4f} scale {scaler.get_scale()}")
print("weights", digest(model))
