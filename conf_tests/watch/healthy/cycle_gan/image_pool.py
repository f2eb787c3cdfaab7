import random

import torch


class ImagePool:
    """A store of earlier fakes: half of the time one of them is given in place of a new one, which is stored."""

    def __init__(self, size):
        self.size, self.store = size, []

    def swap(self, fakes):
        given = []
        for fake in fakes.detach():
            if len(self.store) < self.size:
                self.store.append(fake)
            elif random.random() < 0.5:
                place = random.randrange(self.size)
                fake, self.store[place] = self.store[place], fake
            given.append(fake)
        return torch.stack(given)
