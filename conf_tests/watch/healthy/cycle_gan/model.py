from itertools import chain

import torch
from torch.nn.functional import l1_loss, mse_loss

from cycle_gan.image_pool import ImagePool
from cycle_gan.networks import freeze, judge, translator


def gan_loss(verdict, real):
    return mse_loss(verdict, torch.full_like(verdict, float(real)))


class CycleGAN:
    """Two generators in one optimiser, two discriminators in another."""

    def __init__(self, cycle=10.0, identity=5.0, lr=2e-3):
        self.cycle, self.identity = cycle, identity
        self.netG_A, self.netG_B = translator(), translator()
        self.netD_A, self.netD_B = judge(), judge()
        self.pool_A, self.pool_B = ImagePool(8), ImagePool(8)
        generators = chain(self.netG_A.parameters(), self.netG_B.parameters())
        discriminators = chain(self.netD_A.parameters(), self.netD_B.parameters())
        self.optimizer_G = torch.optim.Adam(generators, lr=lr, betas=(0.5, 0.999))
        self.optimizer_D = torch.optim.Adam(discriminators, lr=lr, betas=(0.5, 0.999))

    def backward_G(self, a, b, fake_a, fake_b):
        adversarial = gan_loss(self.netD_A(fake_b), True) + gan_loss(self.netD_B(fake_a), True)
        cycles = l1_loss(self.netG_B(fake_b), a) + l1_loss(self.netG_A(fake_a), b)
        same = l1_loss(self.netG_A(b), b) + l1_loss(self.netG_B(a), a)
        self.loss_G = adversarial + self.cycle * cycles + self.identity * same
        self.loss_G.backward()

    def backward_D(self, net, real, fake):
        loss_D = (gan_loss(net(real), True) + gan_loss(net(fake.detach()), False)) / 2
        loss_D.backward()
        return loss_D.item()

    def train_on(self, a, b):
        fake_b, fake_a = self.netG_A(a), self.netG_B(b)
        freeze(self.netD_A, self.netD_B)
        self.optimizer_G.zero_grad()
        self.backward_G(a, b, fake_a, fake_b)
        self.optimizer_G.step()
        freeze(self.netD_A, self.netD_B, frozen=False)
        self.optimizer_D.zero_grad()
        told = [
            self.backward_D(self.netD_A, b, self.pool_B.swap(fake_b)),
            self.backward_D(self.netD_B, a, self.pool_A.swap(fake_a)),
        ]
        self.optimizer_D.step()
        return [self.loss_G.item(), *told]
