"""An encoder whose pooler is there for tasks that want it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Output:
    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


class Embeddings(nn.Module):
    def __init__(self, vocab, hidden, positions):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.LayerNorm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids):
        positions = torch.arange(input_ids.size(1))
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings(positions)))


class BertModel(nn.Module):
    def __init__(self, vocab=30, hidden=16, layers=2, positions=12):
        super().__init__()
        self.embeddings = Embeddings(vocab, hidden, positions)
        layer = nn.TransformerEncoderLayer(hidden, 2, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())

    def forward(self, input_ids, attention_mask=None):
        mask = None if attention_mask is None else attention_mask == 0
        hidden = self.encoder(self.embeddings(input_ids), src_key_padding_mask=mask)
        return Output(hidden, self.pooler(hidden[:, 0]))


class BertForTokenClassification(nn.Module):
    def __init__(self, labels=3):
        super().__init__()
        self.bert = BertModel()
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(16, labels)

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.bert(input_ids, attention_mask)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-100)
        return {"loss": loss, "logits": logits}
