"""A GAN in a Lightning module with manual optimisation; the other network is frozen by toggle_optimizer."""
# needs: lightning
# flow: g_loss -> generator; d_loss -> discriminator
# cut: g_loss -> discriminator; d_loss -> generator

import logging
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from digest import digest
from torch import nn
from torch.utils.data import DataLoader


class Generator(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(latent_dim, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, z):
        return self.model(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, x):
        return self.model(x)


class GAN(L.LightningModule):
    def __init__(self, latent_dim=4):
        super().__init__()
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self.generator = Generator(latent_dim)
        self.discriminator = Discriminator()

    def adversarial_loss(self, y_hat, real):
        return F.binary_cross_entropy_with_logits(y_hat, torch.full_like(y_hat, float(real)))

    def training_step(self, batch, batch_idx):
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(batch.shape[0], self.latent_dim)

        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self.discriminator(self.generator(z)), True)
        optimizer_g.zero_grad()
        self.manual_backward(g_loss)
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(batch), True)
        fake_loss = self.adversarial_loss(self.discriminator(self.generator(z).detach()), False)
        d_loss = (real_loss + fake_loss) / 2
        optimizer_d.zero_grad()
        self.manual_backward(d_loss)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)
        if batch_idx % 10 == 0:
            print(f"{batch_idx}: g_loss {g_loss.item():.4f} d_loss {d_loss.item():.4f}")

    def configure_optimizers(self):
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
        return [opt_g, opt_d], []


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    L.seed_everything(1, verbose=False)
    model = GAN()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(3 + torch.randn(34 * 16, 2), batch_size=16))
    print("weights", digest(model))
