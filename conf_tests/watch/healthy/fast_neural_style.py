"""A transformer network trained on losses over frozen features."""
# flow: total_loss -> transformer
# cut: total_loss -> vgg

import argparse

import torch
from digest import digest
from fast_style.transformer_net import TransformerNet
from fast_style.vgg import Features
from torch.optim import Adam
from torch.utils.data import DataLoader


def gram_matrix(y):
    (b, ch, h, w) = y.size()
    features = y.view(b, ch, w * h)
    return features.bmm(features.transpose(1, 2)) / (ch * h * w)


def train(args):
    torch.manual_seed(args.seed)
    train_loader = DataLoader(torch.rand(4 * 34, 3, 12, 12), batch_size=4, shuffle=True)
    transformer = TransformerNet()
    optimizer = Adam(transformer.parameters(), args.lr)
    mse_loss = torch.nn.MSELoss()
    vgg = Features(requires_grad=False)
    vgg.eval()
    style = torch.rand(1, 3, 12, 12).repeat(4, 1, 1, 1)
    gram_style = [gram_matrix(y) for y in vgg(style)]

    transformer.train()
    agg_content_loss = agg_style_loss = 0.0
    for batch_id, x in enumerate(train_loader):
        n_batch = len(x)
        optimizer.zero_grad()
        y = transformer(x)
        features_y = vgg(y)
        features_x = vgg(x)
        content_loss = args.content_weight * mse_loss(features_y.relu2, features_x.relu2)
        style_loss = 0.0
        for ft_y, gm_s in zip(features_y, gram_style, strict=True):
            style_loss += mse_loss(gram_matrix(ft_y), gm_s[:n_batch, :, :])
        style_loss *= args.style_weight
        total_loss = content_loss + style_loss
        total_loss.backward()
        optimizer.step()
        agg_content_loss += content_loss.item()
        agg_style_loss += style_loss.item()
        if (batch_id + 1) % args.log_interval == 0:
            print(f"[{batch_id + 1}] content: {agg_content_loss:.6f} style: {agg_style_loss:.6f}")
    transformer.eval()
    return transformer


def main():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="subcommand")
    train_parser = subparsers.add_parser("train")
    for p in (parser, train_parser):
        p.add_argument("--seed", type=int, default=42)
        p.add_argument("--content-weight", type=float, default=1.0)
        p.add_argument("--style-weight", type=float, default=1e3)
        p.add_argument("--lr", type=float, default=1e-3)
        p.add_argument("--log-interval", type=int, default=10)
    print("weights", digest(train(parser.parse_args())))


if __name__ == "__main__":
    main()
