"""Translation with an encoder and a decoder, an optimiser each, one loss, and teacher forcing half of the time."""
# fast
# flow: loss -> encoder, decoder

import random

import torch
import torch.nn as nn
import torch.nn.functional as F
from digest import digest
from torch import optim

SOS_token, EOS_token = 0, 1
teacher_forcing_ratio, words, hidden_size = 0.5, 10, 12


class EncoderRNN(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.embedding = nn.Embedding(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size)

    def forward(self, input, hidden):
        return self.gru(self.embedding(input).view(1, 1, -1), hidden)


class DecoderRNN(nn.Module):
    def __init__(self, hidden_size, output_size):
        super().__init__()
        self.embedding = nn.Embedding(output_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, output_size)

    def forward(self, input, hidden):
        output = F.relu(self.embedding(input).view(1, 1, -1))
        output, hidden = self.gru(output, hidden)
        return F.log_softmax(self.out(output[0]), dim=1), hidden


def train(input_tensor, target_tensor, encoder, decoder, encoder_optimizer, decoder_optimizer, criterion):
    encoder_hidden = torch.zeros(1, 1, hidden_size)
    encoder_optimizer.zero_grad()
    decoder_optimizer.zero_grad()
    loss = 0
    for word in input_tensor:
        _, encoder_hidden = encoder(word, encoder_hidden)
    decoder_input, decoder_hidden = torch.tensor([[SOS_token]]), encoder_hidden
    forced = random.random() < teacher_forcing_ratio
    for word in target_tensor:
        decoder_output, decoder_hidden = decoder(decoder_input, decoder_hidden)
        loss += criterion(decoder_output, word.view(1))
        if forced:
            decoder_input = word
        else:
            decoder_input = decoder_output.topk(1)[1].squeeze().detach()
            if decoder_input.item() == EOS_token:
                break
    loss.backward()
    encoder_optimizer.step()
    decoder_optimizer.step()
    return loss.item() / len(target_tensor)


def trainIters(encoder, decoder, n_iters, print_every=12, learning_rate=0.05):
    print_loss_total = 0
    encoder_optimizer = optim.SGD(encoder.parameters(), lr=learning_rate)
    decoder_optimizer = optim.SGD(decoder.parameters(), lr=learning_rate)
    criterion = nn.NLLLoss()
    for iter in range(1, n_iters + 1):
        source = torch.randint(2, words, (4,))
        target = torch.cat([source.flip(0), torch.tensor([EOS_token])])
        print_loss_total += train(source, target, encoder, decoder, encoder_optimizer, decoder_optimizer, criterion)
        if iter % print_every == 0:
            print(f"({iter} {iter / n_iters:.0%}) {print_loss_total / print_every:.4f}")
            print_loss_total = 0


if __name__ == "__main__":
    random.seed(9)
    torch.manual_seed(9)
    encoder = EncoderRNN(words, hidden_size)
    decoder = DecoderRNN(hidden_size, words)
    trainIters(encoder, decoder, 36)
    print("weights", digest(encoder, decoder))
