"""A transformer network trained on losses over frozen features; a command with sub-commands."""
# flow: total_loss -> transformer
# cut: total_loss -> vgg

import argparse

import torch
from digest import digest
from fast_style.networks import Features, Transformer
from torch.nn.functional import mse_loss
from torch.optim import Adam
from torch.utils.data import DataLoader


def gram(features):
    return torch.einsum("bchw,bdhw->bcd", features, features) / features[0].numel()


def train(args):
    torch.manual_seed(args.seed)
    pictures = DataLoader(torch.rand(4 * 34, 3, 12, 12), batch_size=4, shuffle=True)
    transformer = Transformer()
    optimizer = Adam(transformer.parameters(), args.lr)
    vgg = Features().eval()
    style_targets = [gram(layer) for layer in vgg(torch.rand(1, 3, 12, 12))]

    transformer.train()
    for number, picture in enumerate(pictures, start=1):
        optimizer.zero_grad()
        styled = transformer(picture)
        now, before = vgg(styled), vgg(picture)
        content_loss = mse_loss(now[-1], before[-1])
        style_loss = sum(mse_loss(gram(a), b.expand(len(a), -1, -1)) for a, b in zip(now, style_targets, strict=True))
        total_loss = args.content * content_loss + args.style * style_loss
        total_loss.backward()
        optimizer.step()
        if number % args.every == 0:
            print(f"{number}: content {content_loss.item():.6f}, style {style_loss.item():.6f}")
    return transformer.eval()


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    for command in (parser, commands.add_parser("train")):
        command.add_argument("--seed", type=int, default=42)
        command.add_argument("--content", type=float, default=1.0)
        command.add_argument("--style", type=float, default=1e3)
        command.add_argument("--lr", type=float, default=1e-3)
        command.add_argument("--every", type=int, default=10)
    print("weights", digest(train(parser.parse_args())))


if __name__ == "__main__":
    main()
