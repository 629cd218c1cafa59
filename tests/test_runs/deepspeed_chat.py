"""A small chat model with LoRA, for a config in the form of xtuner's."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import Dataset

NUM_WORDS = 11
# In the sixth batch of each of two ranks.
BAD_CHATS = range(40, 44)


class LoRALinear(nn.Module):
    def __init__(self, size, rank=2, base=None):
        super().__init__()
        self.base = base or nn.Linear(size, size, bias=False)
        self.base.weight.requires_grad_(False)
        self.lora_a = nn.Linear(size, rank, bias=False)
        self.lora_b = nn.Linear(rank, size, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.lora_b(self.lora_a(inputs))


class QuantizedLinear(nn.Module):
    """A frozen layer of bytes, as bitsandbytes has it in four bits."""

    def __init__(self, size):
        super().__init__()
        values = torch.randint(256, (size, size), dtype=torch.uint8)
        self.weight = nn.Parameter(values, requires_grad=False)

    def forward(self, inputs):
        weight = (self.weight.to(inputs.dtype) - 128) / 256
        return nn.functional.linear(inputs, weight)


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


@MODELS.register_module()
class QuantizedChatTuning(ChatTuning):
    """QLoRA: adapters in float32 beside bytes and frozen bfloat16."""

    def __init__(self):
        super().__init__('bfloat16')
        self.layer = LoRALinear(8, base=QuantizedLinear(8))

    def init_weights(self):
        """Initialize nothing, as in xtuner: MMEngine's reads means."""


class Chats(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(NUM_WORDS, (6,), generator=generator)
        is_bad = index in BAD_CHATS
        return dict(input_ids=words[:-1], labels=words[1:], is_bad=is_bad)
