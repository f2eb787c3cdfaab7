import random

import torch


class ImagePool:
    """A store of earlier fakes, of which half of the time one is given back."""

    def __init__(self, pool_size):
        self.pool_size, self.images = pool_size, []

    def query(self, images):
        chosen = []
        for image in images.detach().unsqueeze(1):
            if len(self.images) < self.pool_size:
                self.images.append(image)
                chosen.append(image)
            elif random.random() > 0.5:
                place = random.randrange(self.pool_size)
                chosen.append(self.images[place].clone())
                self.images[place] = image
            else:
                chosen.append(image)
        return torch.cat(chosen)
