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


def train_knowledge_distillation(teacher, student, batches, T=2.0, soft_target_loss_weight=0.25):
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    teacher.eval()
    student.train()
    for step, (inputs, labels) in enumerate(batches):
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        student_logits = student(inputs)
        soft_targets = F.softmax(teacher_logits / T, dim=-1)
        soft_prob = F.log_softmax(student_logits / T, dim=-1)
        soft_targets_loss = torch.sum(soft_targets * (soft_targets.log() - soft_prob)) / soft_prob.size(0) * T**2
        label_loss = F.cross_entropy(student_logits, labels)
        total_loss = soft_target_loss_weight * soft_targets_loss + (1 - soft_target_loss_weight) * label_loss
        total_loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} soft {soft_targets_loss.item():.4f} hard {label_loss.item():.4f}")


if __name__ == "__main__":
    torch.manual_seed(2)
    labels = torch.randint(0, 4, (34 * 16,))
    inputs = torch.randn(4, 10)[labels] + torch.randn(len(labels), 10)
    batches = list(zip(inputs.split(16), labels.split(16), strict=True))
    teacher, student = build(32), build(6)
    train_teacher(teacher, batches)
    train_knowledge_distillation(teacher, student, batches)
    print("weights", digest(teacher, student))
