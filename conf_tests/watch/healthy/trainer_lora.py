"""LoRA on a tiny GPT-2 by the Trainer of transformers."""
# needs: transformers, peft, accelerate
# flow: loss -> lora (trained)
# cut: loss -> base (frozen)

import tempfile

import torch
from digest import digest
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments


class Walks(Dataset):
    def __init__(self, count, length=12, vocabulary=20):
        steps = torch.randint(0, 3, (count, length))
        self.ids = steps.cumsum(1) % vocabulary

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def main():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(GPT2LMHeadModel(config), lora)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=34,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            logging_steps=10,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=args, train_dataset=Walks(128))
        trainer.remove_callback(PrinterCallback)  # it prints seconds
        result = trainer.train()
    for row in trainer.state.log_history:
        if "loss" in row:
            print(row["step"], f"{row['loss']:.4f}")
    print(f"training loss {result.training_loss:.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
