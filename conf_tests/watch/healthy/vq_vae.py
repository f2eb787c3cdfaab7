"""VQ-VAE: straight-through estimator, codebook and commitment terms."""
# flow: loss -> encoder, vq, decoder

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest


class VectorQuantizer(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, commitment_cost):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.embedding.weight.data.uniform_(-1 / num_embeddings, 1 / num_embeddings)
        self.commitment_cost = commitment_cost

    def forward(self, inputs):
        flat_input = inputs.reshape(-1, inputs.size(-1))
        distances = torch.cdist(flat_input, self.embedding.weight)
        encodings = F.one_hot(distances.argmin(1), self.embedding.num_embeddings).float()
        quantized = (encodings @ self.embedding.weight).view(inputs.shape)
        e_latent_loss = F.mse_loss(quantized.detach(), inputs)
        q_latent_loss = F.mse_loss(quantized, inputs.detach())
        loss = q_latent_loss + self.commitment_cost * e_latent_loss
        quantized = inputs + (quantized - inputs).detach()
        avg_probs = encodings.mean(0)
        return loss, quantized, torch.exp(-torch.sum(avg_probs * torch.log(avg_probs + 1e-10)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 8))
        self.vq = VectorQuantizer(16, 4, 0.25)
        self.decoder = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, x):
        loss, quantized, perplexity = self.vq(self.encoder(x).view(-1, 2, 4))
        return loss, self.decoder(quantized.flatten(1)), perplexity


torch.manual_seed(12)
model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, amsgrad=False)
model.train()
train_res_recon_error = []
for i in range(40):
    data = torch.randn(32, 10).cumsum(1)
    data_variance = data.var()
    optimizer.zero_grad()
    vq_loss, data_recon, perplexity = model(data)
    recon_error = F.mse_loss(data_recon, data) / data_variance
    loss = recon_error + vq_loss
    loss.backward()
    optimizer.step()
    train_res_recon_error.append(recon_error.item())
    if (i + 1) % 10 == 0:
        print(f"{i + 1} iterations, recon_error: {sum(train_res_recon_error[-10:]) / 10:.3f}, {perplexity.item():.3f}")
print("weights", digest(model))
