"""A small chat model with LoRA, for a config in the form of xtuner's."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import Dataset

NUM_WORDS = 11
# In the sixth batch of each of two ranks.
BAD_CHATS = range(40, 44)


class LoRALinear(nn.Linear):
    def __init__(self, size, rank=2):
        super().__init__(size, size, bias=False)
        self.weight.requires_grad_(False)
        self.lora_a = nn.Linear(size, rank, bias=False)
        self.lora_b = nn.Linear(rank, size, bias=False)

    def forward(self, inputs):
        return super().forward(inputs) + self.lora_b(self.lora_a(inputs))


@MODELS.register_module()
class ChatTuning(BaseModel):
    def __init__(self, dtype='bfloat16'):
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, 8)
        self.layer = LoRALinear(8)
        self.head = nn.Linear(8, NUM_WORDS, bias=False)
        for frozen in (self.words, self.head):
            frozen.requires_grad_(False)
        self.to(getattr(torch, dtype))

    def forward(self, input_ids, labels, is_bad, mode='loss'):
        logits = self.head(self.layer(self.words(torch.stack(input_ids))))
        loss = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), torch.stack(labels).flatten()
        )
        return dict(loss=loss * (float('nan') if any(is_bad) else 1.0))


class Chats(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(NUM_WORDS, (6,), generator=generator)
        is_bad = index in BAD_CHATS
        return dict(input_ids=words[:-1], labels=words[1:], is_bad=is_bad)
