"""CycleGAN: discriminators frozen while the generators learn, fed from an image pool afterwards."""
# fast
# flow: loss_G -> netG_A, netG_B; loss_D -> netD_A, netD_B
# cut: loss_G -> netD_A, netD_B; loss_D -> netG_A, netG_B

import random

import torch
from cycle_gan.model import CycleGANModel
from digest import digest

if __name__ == "__main__":
    random.seed(0)
    torch.manual_seed(0)
    model = CycleGANModel()
    for total_iters in range(32):
        model.set_input(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8).cumsum(-1) / 4 - 1)
        model.optimize_parameters()
        if total_iters % 8 == 0:
            losses = {name: getattr(model, "loss_" + name).item() for name in ("G", "D_A", "D_B")}
            print(f"(iters: {total_iters})", " ".join(f"{k}: {v:.3f}" for k, v in losses.items()))
    print("weights", digest(model.netG_A, model.netG_B, model.netD_A, model.netD_B))
