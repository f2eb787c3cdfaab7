"""CycleGAN: discriminators frozen while the generators learn, fed from an image pool afterwards."""
# fast
# flow: loss_G -> netG_A, netG_B; loss_D -> netD_A, netD_B
# cut: loss_G -> netD_A, netD_B; loss_D -> netG_A, netG_B

import random

import torch
from cycle_gan.model import CycleGAN
from digest import digest

if __name__ == "__main__":
    random.seed(0)
    torch.manual_seed(0)
    model = CycleGAN()
    for iteration in range(32):
        told = model.train_on(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8).cumsum(-1) / 4 - 1)
        if iteration % 8 == 0:
            print(iteration, *(f"{value:.3f}" for value in told))
    print("weights", digest(model.netG_A, model.netG_B, model.netD_A, model.netD_B))
