import torch.nn as nn


class WordLSTM(nn.Module):
    """An embedding, an LSTM and a decoder that shares the embedding's weight."""

    def __init__(self, vocabulary, size, layers, dropout=0.2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.lstm = nn.LSTM(size, size, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(size, vocabulary)
        self.decoder.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words, state=None):
        h, state = self.lstm(self.dropout(self.embedding(words)), state)
        return self.decoder(self.dropout(h)), state
