"""Direct preference optimisation against a frozen reference; pairs are run in one concatenated batch."""
# flow: loss -> policy
# cut: loss -> reference

import copy

import torch
import torch.nn.functional as F
from digest import digest
from tiny_lm.model import TinyLM, batch_logps


class DPOTrainer:
    def __init__(self, policy, reference, beta=0.1, lr=5e-3):
        self.policy, self.reference, self.beta = policy, reference, beta
        self.reference.eval()
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.RMSprop(self.policy.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 5))

    def concatenated_forward(self, model, batch):
        ids = torch.cat([batch["chosen"], batch["rejected"]])
        mask = torch.cat([batch["mask"], batch["mask"]])
        return batch_logps(model(ids), ids, mask).chunk(2)

    def get_batch_metrics(self, batch):
        policy_chosen, policy_rejected = self.concatenated_forward(self.policy, batch)
        with torch.no_grad():
            reference_chosen, reference_rejected = self.concatenated_forward(self.reference, batch)
        logits = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
        losses = -F.logsigmoid(self.beta * logits)
        chosen_rewards = self.beta * (policy_chosen - reference_chosen).detach()
        rejected_rewards = self.beta * (policy_rejected - reference_rejected).detach()
        accuracy = (chosen_rewards > rejected_rewards).float().mean().item()
        return losses.mean(), {"rewards/accuracies": accuracy, "logps/chosen": policy_chosen.detach().mean().item()}

    def train(self, batches):
        self.policy.train()
        for i, batch in enumerate(batches):
            loss, metrics = self.get_batch_metrics(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if i % 10 == 0:
                print(i, {"loss": round(loss.item(), 4)} | {k: round(v, 4) for k, v in metrics.items()})


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
