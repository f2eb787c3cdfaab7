"""Direct preference optimisation against a frozen reference; pairs are run in one concatenated batch."""
# flow: loss -> policy
# cut: loss -> reference

import copy

import torch
import torch.nn.functional as F
from digest import digest
from tiny_lm.model import TinyLM, log_probs


class DPOTrainer:
    def __init__(self, policy, reference, beta=0.1, lr=5e-3):
        self.policy, self.reference, self.beta = policy, reference, beta
        self.reference.eval()
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.RMSprop(self.policy.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 5))

    def both(self, model, batch):
        """Log-probabilities of the chosen and of the rejected answers, by one forward."""
        ids = torch.cat([batch["chosen"], batch["rejected"]])
        return log_probs(model(ids), ids, batch["mask"].repeat(2, 1)).chunk(2)

    def loss_of(self, batch):
        with torch.no_grad():
            known = self.both(self.reference, batch)
        rewards = [self.beta * (now - before) for now, before in zip(self.both(self.policy, batch), known, strict=True)]
        margin = rewards[0] - rewards[1]
        told = {"right": (margin.detach() > 0).float().mean().item(), "margin": margin.detach().mean().item()}
        return F.softplus(-margin).mean(), told

    def train(self, batches):
        self.policy.train()
        for i, batch in enumerate(batches):
            loss, told = self.loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if i % 10 == 0:
                print(i, {"loss": round(loss.item(), 4)} | {k: round(v, 4) for k, v in told.items()})


def preferences(count, size=8, length=9):
    for _ in range(count):
        prompt = torch.randint(0, 20, (size, 3))
        chosen = torch.cat([prompt, torch.randint(0, 10, (size, length - 3))], 1)
        rejected = torch.cat([prompt, torch.randint(10, 20, (size, length - 3))], 1)
        mask = torch.ones(size, length)
        mask[:, :3] = 0
        yield {"chosen": chosen, "rejected": rejected, "mask": mask}


if __name__ == "__main__":
    torch.manual_seed(6)
    policy = TinyLM()
    reference = copy.deepcopy(policy)
    trainer = DPOTrainer(policy, reference)
    trainer.train(preferences(34))
    print("weights", digest(policy, reference))
