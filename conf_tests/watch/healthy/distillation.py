"""Knowledge distillation: a teacher trained first, then in eval and under no_grad."""
# fast
# flow: loss -> teacher; total_loss -> student
# cut: total_loss -> teacher

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest


def build(width):
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 4))


def train_teacher(teacher, batches):
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(teacher(inputs), labels)
        loss.backward()
        optimizer.step()
    print(f"teacher loss {loss.item():.4f}")


def distil(teacher, student, batches, T=2.0, weight=0.25):
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    teacher.eval()
    student.train()
    for step, (inputs, labels) in enumerate(batches):
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        student_logits = student(inputs)
        wanted, given = ((logits / T).log_softmax(-1) for logits in (teacher_logits, student_logits))
        soft_loss = T * T * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        hard_loss = F.cross_entropy(student_logits, labels)
        total_loss = torch.lerp(hard_loss, soft_loss, weight)
        total_loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} soft {soft_loss.item():.4f} hard {hard_loss.item():.4f}")


if __name__ == "__main__":
    torch.manual_seed(2)
    labels = torch.randint(0, 4, (34 * 16,))
    inputs = torch.randn(4, 10)[labels] + torch.randn(len(labels), 10)
    batches = list(zip(inputs.split(16), labels.split(16), strict=True))
    teacher, student = build(32), build(6)
    train_teacher(teacher, batches)
    distil(teacher, student, batches)
    print("weights", digest(teacher, student))
