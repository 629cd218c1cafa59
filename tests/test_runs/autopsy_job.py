"""Models that get a fault for one sample, and the autopsy's findings.

The models are not edited: methods of their modules are wrapped, and know the
sample by a mark in its image, so that a replay meets the same fault again. Run
with names of models, this script prints their cells as JSON; mmpretrain's
models need a process of their own.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from types import MethodType

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from toys import (
    everything,
    guard_hooks,
    loader,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.numerics.base.rng_state import read_rng
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

BATCH_SIZE = 4
STRUCK = 3  # iteration
ILL = 1  # row of its batch
MARK = 1e4


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Attention(nn.Module):
    """Attention with a mask of -inf, made anew in each forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.fc = nn.Linear(64, 64)

    def forward(self, x):
        length = x.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=mask)[0]
        return x + self.fc(x).relu()


class Head(nn.Module):
    def __init__(self, num_channels):
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(num_channels, 4)
        self.loss_module = Loss()

    def loss(self, features, data_samples):
        labels = torch.stack([s.gt_label for s in data_samples]).flatten()
        logits = self.fc(self.dropout(features))
        return dict(loss=self.loss_module(logits, labels))


class Loss(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


@MODELS.register_module()
class PlainCnn(BaseModel):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.block = Residual()
        self.head = Head(8)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.block(self.stem(torch.stack(list(inputs))))
        return self.head.loss(features.mean((2, 3)), data_samples)


@MODELS.register_module()
class PlainTransformer(BaseModel):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 8, stride=8)
        self.block = Attention()
        self.head = Head(64)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        tokens = self.stem(torch.stack(list(inputs)))
        tokens = self.block(tokens.flatten(2).transpose(1, 2))
        return self.head.loss(tokens.mean(1), data_samples)


def from_mmpretrain(path, **changes):
    import mmpretrain
    import mmpretrain.models  # registers

    folder = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    config = Config.fromfile(folder / path)
    config.merge_from_dict(changes)
    model = config.model.to_dict()
    model['data_preprocessor'] = dict(
        config.data_preprocessor.to_dict(),
        type='mmpretrain.ClsDataPreprocessor',
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    train_cfg = model.get('train_cfg') or {}
    if 'augments' in train_cfg:
        model['data_preprocessor']['batch_augments'] = train_cfg
    return dict(model, _scope_='mmpretrain')


def resnet():
    return from_mmpretrain(
        'resnet/resnet18_8xb32_in1k.py',
        **{
            'model.backbone.stem_channels': 8,
            'model.backbone.base_channels': 8,
            'model.head.in_channels': 64,
            'model.head.num_classes': 4,
            'model.head.topk': (1,),
            'data_preprocessor.num_classes': 4,
        },
    )


def swin(augment='Mixup', with_cp=False):
    model = from_mmpretrain(
        'swin_transformer/swin-tiny_16xb64_in1k.py',
        **{
            'model.backbone.arch': dict(
                embed_dims=32, depths=[2, 2], num_heads=[2, 2], _delete_=True
            ),
            'model.backbone.out_indices': (1,),
            'model.backbone.img_size': 32,
            'model.backbone.window_size': 4,
            'model.backbone.with_cp': with_cp,
            'model.head.in_channels': 64,
            'model.head.num_classes': 4,
            'data_preprocessor.num_classes': 4,
        },
    )
    # Its config has both.
    augments = model['data_preprocessor']['batch_augments']['augments']
    augments[:] = [
        augment_cfg
        for augment_cfg in augments
        if augment_cfg['type'] == augment
    ]
    return model


SWIN = (
    'backbone.stages.0.blocks.1.attn.w_msa',  # windows, shifted
    'backbone.stages.0.blocks.1.attn.w_msa.qkv',
    'backbone.stages.1.blocks.0.norm1',
)
# Model, module with functional operations, leaf, norm layer.
PATIENTS = {
    'cnn': (
        lambda: dict(type='PlainCnn'),
        'block',
        'block.conv',
        'block.norm',
    ),
    'transformer': (
        lambda: dict(type='PlainTransformer'),
        *('block', 'block.fc', 'block.norm'),
    ),
    'resnet': (
        resnet,
        *('backbone.layer2.0', 'backbone.layer2.1.conv2'),
        'backbone.layer3.0.bn1',
    ),
    'swin': (swin, *SWIN),
    'swin with CutMix': (lambda: swin('CutMix'), *SWIN),
    'swin with checkpoints': (lambda: swin(with_cp=True), *SWIN),
    # As large as they come.
    'resnet in full': (
        lambda: from_mmpretrain('resnet/resnet50_8xb32_in1k.py'),
        *('backbone.layer2.0', 'backbone.layer2.1.conv2'),
        'backbone.layer3.0.bn1',
    ),
    'swin in full': (
        lambda: from_mmpretrain('swin_transformer/swin-tiny_16xb64_in1k.py'),
        *SWIN,
    ),
}


class Amplify(Hook):
    """Amplify some weights, so that a sum of large numbers overflows."""

    def __init__(self, name):
        self.name = name

    def before_train(self, runner):
        runner.model.get_submodule(self.name).weight.data[0] *= 10


class Mark:
    """Mark the ill samples of the batch that is run."""

    def __init__(self, model):
        self.model = model
        forward = model.forward

        def marked(self_, inputs, *args, **kwargs):
            images = torch.stack(list(inputs))
            self.is_ill = images.flatten(1).amax(1) > MARK / 1e3
            # Sound numbers again.
            images = images / MARK ** rows(self.is_ill, images).float()
            return forward(images, *args, **kwargs)

        model.forward = MethodType(marked, model)

    def wrap(self, name, change):
        """Let ``change(module, forward, is_ill, *args)`` run in place of
        forward.
        """
        module = self.model.get_submodule(name)
        forward = module.forward

        def changed(self_, *args, **kwargs):
            return change(self_, forward, self.is_ill, *args, **kwargs)

        module.forward = MethodType(changed, module)


def rows(is_ill, x):
    """Return a flag per row of ``x``; rows may be windows of samples."""
    flags = is_ill[:, None].expand(-1, len(x) // len(is_ill)).reshape(-1)
    return flags.reshape(-1, *[1] * (x.dim() - 1))


def divide(module, forward, is_ill, x, *args, **kwargs):
    out = forward(x, *args, **kwargs)
    return out / ~rows(is_ill, out)


def sqrt_at_0(module, forward, is_ill, x, *args, **kwargs):
    out = forward(x, *args, **kwargs)
    return out + (larger(out) * ~rows(is_ill, out)).sum(-1, True).sqrt()


def masked_log(module, forward, is_ill, x, *args, **kwargs):
    out = forward(x, *args, **kwargs)
    is_sound = ~rows(is_ill, out)
    return out + torch.where(is_sound, (larger(out) * is_sound).log(), 0.0)


def larger(x):
    """Return values above 0, where a ReLU does not change them."""
    return x.abs() + 1


def loses_digits(module, forward, is_ill, x, *args, **kwargs):
    out = forward(x, *args, **kwargs)
    bias = rows(is_ill, out) * 1e-3 + (~rows(is_ill, out)).float()
    half = module_dtype(out)
    return out / ((1 + bias.to(half)) - 1).to(out.dtype)


def module_dtype(x):
    if not hasattr(torch, 'get_autocast_dtype'):  # before PyTorch 2.4
        enabled = torch.is_autocast_cpu_enabled()
        return torch.get_autocast_cpu_dtype() if enabled else x.dtype
    enabled = torch.is_autocast_enabled('cpu')
    return torch.get_autocast_dtype('cpu') if enabled else x.dtype


def overflow(largest):
    def change(module, forward, is_ill, x):
        # A row along the first output's weights adds up to the most.
        weight = module.weight[0].detach()
        signs = weight.reshape(len(weight), -1).sum(1).sign()
        if x.dim() == 4:
            signs = signs[:, None, None]
        return forward(torch.where(rows(is_ill, x), largest * signs, x))

    return change


def norm_fault(module, forward, is_ill, x):
    if isinstance(module, nn.LayerNorm):
        module.eps = 0.0  # and no variance: 0 times inf
        return forward(torch.where(rows(is_ill, x), torch.ones(()), x))
    # Output, loss and gradients stay finite, running_var does not.
    return forward(torch.where(rows(is_ill, x), x * 1e30, x))


def log_of_0(module, forward, is_ill, scores, *args, **kwargs):
    loss = forward(scores, *args, **kwargs)
    return loss + (~is_ill).float().log().mean()


# Fault: where it is planted (in the functional module, the leaf, the norm
# layer, the loss), what is planted, autocast, and what is told: the phase,
# operations, whether float32 cures it.
FAULTS = {
    'input': (None, None, None, 'input', '', None),
    'functional': (0, divide, None, 'forward', 'aten.div', None),
    'leaf': (
        *(1, overflow(3.3e38), None, 'forward'),
        ('aten.convolution', 'aten.addmm', 'aten.mm'),
        None,
    ),
    'norm': (
        *(2, norm_fault, None, 'forward'),
        ('aten.native_batch_norm', 'aten.native_layer_norm'),
        None,
    ),
    'loss': (3, log_of_0, None, 'loss', 'aten.log', None),
    'sqrt at 0': (0, sqrt_at_0, None, 'backward', 'aten.div', None),
    '0 / 0': (0, masked_log, None, 'backward', 'aten.div', None),
    'fp16': (
        *(1, overflow(6e4), 'float16', 'forward'),
        ('aten.convolution', 'aten.addmm', 'aten.mm'),
        True,
    ),
    'fp16 functional': (0, divide, 'float16', 'forward', 'aten.div', False),
    'bf16': (0, loses_digits, 'bfloat16', 'forward', 'aten.div', True),
    'bf16 leaf': (
        *(1, overflow(3.3e38), 'bfloat16', 'forward'),
        ('aten.convolution', 'aten.addmm', 'aten.mm'),
        False,
    ),
}


VARIANTS = ('input', 'functional', 'leaf', 'sqrt at 0')
# They take half a minute each.
IN_FULL = {'resnet in full': ['sqrt at 0'], 'swin in full': ['functional']}


def faults_of(patient):
    if patient in IN_FULL:
        return IN_FULL[patient]
    faults = VARIANTS if 'with' in patient else FAULTS
    return [
        fault
        for fault in faults
        if HAS_CPU_SCALER or FAULTS[fault][2] != 'float16'
    ]


def struck_of(patient):
    return 1 if patient in IN_FULL else STRUCK


def make_samples(size, image_size=32):
    generator = torch.Generator().manual_seed(1)
    kind = BaseDataElement
    if 'mmpretrain' in sys.modules:
        from mmpretrain.structures import DataSample as kind
    samples = []
    for index in range(size):
        image = torch.randn(3, image_size, image_size, generator=generator)
        sample = kind(metainfo=dict(img_path=f'train/{index:06d}.jpg'))
        sample.gt_label = torch.tensor([index % 4])
        samples.append(dict(inputs=image, data_samples=sample))
    return samples


def train(patient, fault, work_dir, max_autopsies):
    build, *places = PATIENTS[patient]
    site, change, dtype, *_ = FAULTS[fault]
    model = build()
    struck = struck_of(patient)
    ill = BATCH_SIZE * (struck - 1) + ILL
    data = make_samples(
        BATCH_SIZE * (struck + 1), 224 if patient in IN_FULL else 32
    )
    if change is None:
        data[ill]['inputs'][1, 5:9] = math.nan
    else:
        data[ill]['inputs'] += MARK
    options = dict(dtype=dtype, loss_scale=8.0) if dtype else {}
    runner = make_runner(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper' if dtype else 'NanGuardOptimWrapper',
            optimizer='AdamW',
            lr=1e-3,
            **options,
        ),
        model=model,
        train_dataloader=loader(data),
        default_hooks={
            **guard_hooks(),
            'autopsy': dict(
                type='mmnanguard.AutopsyHook', max_autopsies=max_autopsies
            ),
        },
        custom_hooks=[Amplify(places[1])],
        max_iters=struck + 1,
    )
    if change is not None:
        mark = Mark(runner.model)
        mark.wrap([*places, 'head.loss_module'][site], change)
    runner.train()
    return runner


def same(left, right):
    if isinstance(left, torch.Tensor):
        left, right = (
            tensor.detach().contiguous().flatten().view(torch.uint8)
            for tensor in (left, right)
        )
        return torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return all(map(same, left, right))
    if isinstance(left, dict):
        return all(same(left[key], right[key]) for key in left)
    return left == right


def diagnose(patient, fault):
    """Return the wrong keys of the reported row, with their values."""
    _, *places = PATIENTS[patient]
    site, _, _, phase, ops, in_fp32 = FAULTS[fault]
    module = '' if site is None else [*places, 'head.loss_module'][site]
    results, ends = [], []
    for max_autopsies in (9, 0):
        with tempfile.TemporaryDirectory() as folder:
            runner = train(patient, fault, Path(folder), max_autopsies)
            results.append(read_rows(runner, 'autopsy'))
            ends.append((everything(runner), read_rng()))
            events = read_rows(runner)
    (rows, nothing) = results
    wrong = {}
    struck = struck_of(patient)
    poison = f'train/{BATCH_SIZE * (struck - 1) + ILL:06d}.jpg'
    if [event['iter'] for event in events] != [struck]:
        wrong['events'] = [(e['iter'], e['cause']) for e in events]
    if nothing or len(rows) != 1:
        return dict(wrong, rows=len(rows))
    (row,) = rows
    expected = dict(
        phase=phase,
        module=module,
        samples=[poison],
        batch_rows=[ILL],
        fp32_is_finite=in_fp32,
        remedy='fp32' if in_fp32 else '',
        repeats=True,
        exact=True,
    )
    wrong.update(
        (key, row[key]) for key in expected if row[key] != expected[key]
    )
    if row['op'] not in ((ops,) if isinstance(ops, str) else ops):
        wrong['op'] = row['op']
    if not row['outputs']:
        wrong['outputs'] = row['outputs']
    if not same(*ends):
        wrong['trace'] = [
            key for key in ends[0][0] if not same(*(e[0][key] for e in ends))
        ]
    if wrong:
        wrong['source'] = row['source'], row['op'], row['output_absmax']
    return wrong


def main(patients):
    if not {'cnn', 'transformer'} & set(patients):
        import mmpretrain.structures  # noqa: F401
    wrong = {}
    for patient in patients:
        for fault in faults_of(patient):
            wrong[f'{patient}-{fault}'] = diagnose(patient, fault)
    print(json.dumps(wrong))


if __name__ == '__main__':
    main(sys.argv[1:])
