import itertools

import torch

from cycle_gan.image_pool import ImagePool
from cycle_gan.networks import define_D, define_G, set_requires_grad


class CycleGANModel:
    """Two generators in one optimiser, two discriminators in another."""

    def __init__(self, lambda_A=10.0, lambda_B=10.0, lambda_idt=0.5, lr=2e-3):
        self.lambda_A, self.lambda_B, self.lambda_idt = lambda_A, lambda_B, lambda_idt
        self.netG_A, self.netG_B = define_G(), define_G()
        self.netD_A, self.netD_B = define_D(), define_D()
        self.fake_A_pool, self.fake_B_pool = ImagePool(8), ImagePool(8)
        self.criterionGAN = torch.nn.MSELoss()
        self.criterionCycle = self.criterionIdt = torch.nn.L1Loss()
        self.optimizer_G = torch.optim.Adam(
            itertools.chain(self.netG_A.parameters(), self.netG_B.parameters()), lr=lr, betas=(0.5, 0.999)
        )
        self.optimizer_D = torch.optim.Adam(
            itertools.chain(self.netD_A.parameters(), self.netD_B.parameters()), lr=lr, betas=(0.5, 0.999)
        )

    def set_input(self, real_A, real_B):
        self.real_A, self.real_B = real_A, real_B

    def forward(self):
        self.fake_B = self.netG_A(self.real_A)
        self.rec_A = self.netG_B(self.fake_B)
        self.fake_A = self.netG_B(self.real_B)
        self.rec_B = self.netG_A(self.fake_A)

    def gan(self, prediction, real):
        return self.criterionGAN(prediction, torch.full_like(prediction, float(real)))

    def backward_D_basic(self, netD, real, fake):
        loss_D = (self.gan(netD(real), True) + self.gan(netD(fake.detach()), False)) * 0.5
        loss_D.backward()
        return loss_D

    def backward_D_A(self):
        self.loss_D_A = self.backward_D_basic(self.netD_A, self.real_B, self.fake_B_pool.query(self.fake_B))

    def backward_D_B(self):
        self.loss_D_B = self.backward_D_basic(self.netD_B, self.real_A, self.fake_A_pool.query(self.fake_A))

    def backward_G(self):
        loss_idt_A = self.criterionIdt(self.netG_A(self.real_B), self.real_B) * self.lambda_B * self.lambda_idt
        loss_idt_B = self.criterionIdt(self.netG_B(self.real_A), self.real_A) * self.lambda_A * self.lambda_idt
        loss_G_A = self.gan(self.netD_A(self.fake_B), True)
        loss_G_B = self.gan(self.netD_B(self.fake_A), True)
        loss_cycle_A = self.criterionCycle(self.rec_A, self.real_A) * self.lambda_A
        loss_cycle_B = self.criterionCycle(self.rec_B, self.real_B) * self.lambda_B
        self.loss_G = loss_G_A + loss_G_B + loss_cycle_A + loss_cycle_B + loss_idt_A + loss_idt_B
        self.loss_G.backward()

    def optimize_parameters(self):
        self.forward()
        set_requires_grad([self.netD_A, self.netD_B], False)
        self.optimizer_G.zero_grad()
        self.backward_G()
        self.optimizer_G.step()
        set_requires_grad([self.netD_A, self.netD_B], True)
        self.optimizer_D.zero_grad()
        self.backward_D_A()
        self.backward_D_B()
        self.optimizer_D.step()
