"""Tagging with a BERT-like encoder; its pooler is computed and not used by the loss, as in the libraries."""
# flow: loss -> bert, classifier

import torch
from bert.modeling import BertForTokenClassification
from digest import digest
from torch.optim.lr_scheduler import LambdaLR


def make_batch(size=8, length=10):
    input_ids = torch.randint(1, 30, (size, length))
    labels = input_ids % 3
    lengths = torch.randint(4, length + 1, (size, 1))
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": input_ids * mask, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def main(total=36, warmup=4):
    torch.manual_seed(42)
    model = BertForTokenClassification()
    plain = {name: p for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name.lower()}
    decayed = [p for name, p in model.named_parameters() if name not in plain]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": list(plain.values()), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    scheduler = LambdaLR(optimizer, lambda s: min((s + 1) / warmup, max(0.0, (total - s) / (total - warmup))))
    model.train()
    for step in range(total):
        outputs = model(**make_batch())
        loss = outputs["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 12 == 0:
            print(f"step {step} loss {loss.item():.4f} lr {scheduler.get_last_lr()[0]:.5f}")
    model.eval()
    with torch.no_grad():
        batch = make_batch(16)
        logits = model(batch["input_ids"], batch["attention_mask"])["logits"]
        right = (logits.argmax(-1) == batch["labels"])[batch["attention_mask"] == 1]
        print(f"accuracy {right.float().mean():.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
