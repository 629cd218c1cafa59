"""A scan names the bad tensors of a checkpoint."""

import copy
import json
import math

import pytest
import torch
from odd_tensors import KINDS, UNSAVABLE
from torch import nn
from torch.optim import SGD, AdamW

from mmnanguard.numerics.checkpoints.scan import (
    CheckpointScan,
    classify_masks,
    join_ranks,
    scan_checkpoint,
)

NAN, INF = math.nan, math.inf


class Net(nn.Module):
    def __init__(self, inner=4):
        super().__init__()
        self.register_buffer('mask', torch.tensor([[0, -INF], [0, 0]]))
        self.conv = nn.Conv2d(3, inner, 3, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.head = nn.Linear(inner, 2)

    def forward(self, inputs):
        return self.head(self.norm(self.conv(inputs)).mean((2, 3)))


def train(model, optimizer, params=None):
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def checkpoint_of(model, optimizer, **others):
    return copy.deepcopy(
        dict(
            state_dict=model.state_dict(),
            optimizer=optimizer.state_dict(),
            **others,
        )
    )


@pytest.fixture
def checkpoint():
    model = Net()
    optimizer = AdamW(model.parameters())
    train(model, optimizer)
    return checkpoint_of(model, optimizer)


def findings_of(scan):
    return [(bad.part, bad.name, bad.kind) for bad in scan.findings]


def test_a_clean_checkpoint(checkpoint):
    before = copy.deepcopy(checkpoint)
    scan = scan_checkpoint(checkpoint)
    assert scan.findings == ()
    assert [mask.name for mask, _ in scan.masks] == ['mask']
    assert ('weight', 'norm.running_var') in scan.keys
    torch.testing.assert_close(checkpoint, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('name', 'values', 'kind', 'count', 'low', 'high'),
    [
        ('head.bias', [NAN, 2], 'nan', 1, 2, 2),
        ('head.bias', [NAN, INF], 'nan', 2, None, None),
        ('head.bias', [-INF, 0.5], 'inf', 1, 0.5, 0.5),
        ('head.bias', [-1.5e18, 0.5], 'absurd', 1, -1.5e18, 0.5),
        ('head.bias', [INF, 1e30], 'inf', 1, 1e30, 1e30),
        ('norm.running_var', [INF] * 4, 'inf', 4, None, None),
        ('norm.running_mean', [INF, 0, 0, 0], 'inf', 1, 0, 0),
    ],
)
def test_a_bad_weight(checkpoint, name, values, kind, count, low, high):
    checkpoint['state_dict'][name] = torch.tensor(values)
    (bad,) = scan_checkpoint(checkpoint).findings
    assert (bad.part, bad.name, bad.kind) == ('weight', name, kind)
    assert (bad.count, bad.numel) == (count, len(values))
    assert bad.dtype == 'float32'
    assert bad.min == (low and pytest.approx(low))
    assert bad.max == (high and pytest.approx(high))


@pytest.mark.parametrize(
    'dtype', ['float16', 'bfloat16', 'float64', 'complex64', 'float8_e5m2']
)
def test_each_dtype(checkpoint, dtype):
    if not hasattr(torch, dtype):
        pytest.skip('this PyTorch does not know it')
    values = torch.tensor([1.5, NAN]).to(getattr(torch, dtype))
    checkpoint['state_dict']['extra'] = values
    (bad,) = scan_checkpoint(checkpoint).findings
    assert (bad.name, bad.kind, bad.dtype) == ('extra', 'nan', dtype)


@pytest.mark.parametrize(
    'values',
    [
        torch.tensor(3),
        torch.empty(0),
        torch.tensor([True]),
        torch.tensor([1e18, -1e18], dtype=torch.float64),
        None,
        'text',
    ],
)
def test_what_cannot_be_bad(checkpoint, values):
    checkpoint['state_dict']['extra'] = values
    assert scan_checkpoint(checkpoint).findings == ()


@pytest.mark.parametrize(('limit', 'is_bad'), [(9.0, True), (10.0, False)])
def test_the_limit_is_inclusive_and_squared_for_moments(
    checkpoint, limit, is_bad
):
    checkpoint['state_dict']['extra'] = torch.tensor([-10.0])
    checkpoint['optimizer']['state'][0]['exp_avg_sq'][0] = 100
    names = [bad.name for bad in scan_checkpoint(checkpoint, limit).findings]
    assert names == ['extra', 'conv.weight exp_avg_sq'] * is_bad


def test_the_limit_of_float64_is_no_overflow(checkpoint):
    largest = torch.finfo(torch.float64).max
    checkpoint['state_dict']['extra'] = torch.tensor(
        [largest, largest], dtype=torch.float64
    )
    assert not scan_checkpoint(checkpoint, largest).findings
    checkpoint['state_dict']['conv.weight'][0] = INF
    assert scan_checkpoint(checkpoint, INF).findings


def test_names_of_moments(checkpoint):
    names = ['conv.weight', 'norm.weight', 'norm.bias', 'head.weight']
    names.append('head.bias')
    for state in checkpoint['optimizer']['state'].values():
        state['exp_avg'].flatten()[0] = NAN
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', f'{name} exp_avg', 'nan') for name in names
    ]


def make_groups(model, kind):
    params = dict(model.named_parameters())
    if kind == 'a group each':
        return [dict(params=[param]) for param in params.values()]
    if kind == 'no head':
        return [p for n, p in params.items() if 'head' not in n]
    if kind == 'decay':
        return [
            dict(params=[p for p in params.values() if p.dim() > 1]),
            dict(params=[p for p in params.values() if p.dim() == 1]),
        ]
    return list(params.values())[::-1]


@pytest.mark.parametrize(
    ('kind', 'index', 'name'),
    [
        ('a group each', 3, 'head.weight'),
        ('no head', 0, 'conv.weight'),
        # Groups in no order that a checkpoint tells of.
        ('decay', 1, 'state 1'),
        ('reversed', 0, 'state 0'),
    ],
)
def test_names_of_groups(kind, index, name):
    model = Net()
    optimizer = SGD(make_groups(model, kind), lr=0.1, momentum=0.9)
    train(model, optimizer)
    checkpoint = checkpoint_of(model, optimizer)
    checkpoint['optimizer']['state'][index]['momentum_buffer'].fill_(INF)
    expected = [('optimizer', f'{name} momentum_buffer', 'inf')]
    assert findings_of(scan_checkpoint(checkpoint)) == expected


def test_no_name_where_two_fit():
    """A frozen layer like another layer leaves no trace in the optimizer."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = checkpoint_of(model, optimizer)
    checkpoint['optimizer']['state'][0]['momentum_buffer'].fill_(NAN)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'state 0 momentum_buffer', 'nan')
    ]


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = checkpoint_of(model, optimizer)
    # Weights 0 (and 1), biases 0 and 1, weight 2.
    checkpoint['optimizer']['state'][3]['momentum_buffer'].fill_(NAN)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', '2.weight momentum_buffer', 'nan')
    ]


def two_layers(make_groups):
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(2)))
    optimizer = SGD(make_groups(model), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = checkpoint_of(model, optimizer)
    index = max(checkpoint['optimizer']['state'])
    checkpoint['optimizer']['state'][index]['momentum_buffer'].fill_(NAN)
    ((_, name, _),) = findings_of(scan_checkpoint(checkpoint))
    return name


def test_a_shared_parameter_has_one_name():
    def share(model):
        model[1].weight = model[0].weight
        return model.parameters()

    assert two_layers(share) == '0.weight momentum_buffer'


def test_a_frozen_parameter_takes_its_place():
    def freeze(model):
        model[0].weight.requires_grad_(False)
        return model.parameters()

    assert two_layers(freeze) == '1.weight momentum_buffer'


def test_groups_of_several_give_no_names():
    """The parameters may be in any order, even where the shapes fit."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [dict(params=model[i].parameters()) for i in (1, 0)]
    optimizer = SGD(groups, lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = checkpoint_of(model, optimizer)
    checkpoint['optimizer']['state'][0]['momentum_buffer'].fill_(NAN)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'state 0 momentum_buffer', 'nan')
    ]


def test_names_that_are_saved(checkpoint):
    optimizer = checkpoint['optimizer']
    optimizer['param_groups'][0]['param_names'] = list('abcde')
    optimizer['state'][2]['exp_avg'].fill_(NAN)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'c exp_avg', 'nan')
    ]
    optimizer['state'] = {'x.weight': dict(exp_avg=torch.tensor([INF]))}
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'x.weight exp_avg', 'inf')
    ]


def test_optimizers_by_name():
    nets = nn.ModuleDict(dict(generator=Net(), critic=Net(5)))
    optimizers = {name: AdamW(net.parameters()) for name, net in nets.items()}
    for name, net in nets.items():
        train(net, optimizers[name])
    states = {
        name: optimizer.state_dict() for name, optimizer in optimizers.items()
    }
    states['critic']['state'][0]['exp_avg'].fill_(NAN)
    states['other'] = states['generator']
    states['other']['state'][4]['exp_avg'].fill_(NAN)
    states['generator']['loss_scaler'] = dict(scale=0.0)
    checkpoint = dict(state_dict=nets.state_dict(), optimizer=states)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'generator: generator.head.bias exp_avg', 'nan'),
        ('optimizer', 'critic: critic.conv.weight exp_avg', 'nan'),
        # No submodule has that name.
        ('optimizer', 'other: state 4 exp_avg', 'nan'),
        ('scale', 'generator: loss_scaler.scale', 'absurd'),
        ('scale', 'other: loss_scaler.scale', 'absurd'),
    ]


def test_values_that_are_no_tensors(checkpoint):
    optimizer = checkpoint['optimizer']
    optimizer['state'][0]['inner'] = [dict(d=NAN), 1.0]
    optimizer['param_groups'][0]['lr'] = INF
    optimizer['param_groups'][0]['max_norm'] = INF  # means no limit
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'group 0 lr', 'inf'),
        ('optimizer', 'conv.weight inner.0.d', 'nan'),
    ]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', sorted(set(KINDS) - set(UNSAVABLE)))
def test_states_of_all_kinds(checkpoint, kind):
    state = checkpoint['optimizer']['state'][0]
    state.update(odd=KINDS[kind](), deep=[KINDS[kind]()])
    assert findings_of(scan_checkpoint(checkpoint)) == []


def test_an_optimizer_of_another_format(checkpoint):
    checkpoint['optimizer'] = dict(base=dict(parts=[torch.tensor([NAN])]))
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('optimizer', 'base: parts.0', 'nan')
    ]
    checkpoint['optimizer'] = None
    assert findings_of(scan_checkpoint(checkpoint)) == []


@pytest.mark.parametrize(
    ('scale', 'kind'),
    [
        (NAN, 'nan'),
        (INF, 'inf'),
        (0.0, 'absurd'),
        (-1.0, 'absurd'),
        (1e-39, 'absurd'),
        (torch.tensor(0.0), 'absurd'),
        (1.2e-38, None),
        (65536.0, None),
    ],
)
def test_loss_scale(checkpoint, scale, kind):
    checkpoint['optimizer']['loss_scaler'] = dict(scale=scale)
    expected = [('scale', 'loss_scaler.scale', kind)] if kind else []
    assert findings_of(scan_checkpoint(checkpoint)) == expected


def test_loss_scale_that_a_strategy_left_out(checkpoint):
    checkpoint['optimizer']['loss_scaler'] = {}  # a disabled one's
    guards = dict(default=dict(loss_scaler=dict(scale=0.0)))
    checkpoint['nanguard'] = dict(guards=guards)
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('scale', 'default: loss_scaler.scale', 'absurd')
    ]


def test_averages_lie_where_the_weights_are_expected(checkpoint):
    """MMEngine's EMAHook swaps averages and weights when it saves."""
    weights = checkpoint['state_dict']
    average = {f'module.{k}': v.clone() for k, v in weights.items()}
    checkpoint['ema_state_dict'] = dict(steps=torch.tensor(1), **average)
    weights['head.weight'][0] = NAN
    checkpoint['ema_state_dict']['module.head.bias'][0] = INF
    scan = scan_checkpoint(checkpoint)
    assert findings_of(scan) == [
        ('weight', 'head.bias', 'inf'),
        ('ema', 'head.weight', 'nan'),
    ]
    assert [(m.part, m.name) for m, _ in scan.masks] == [
        ('weight', 'mask'),
        ('ema', 'mask'),
    ]


@pytest.mark.parametrize(
    ('values', 'is_mask'),
    [
        ([0, -INF, 0], True),
        ([0, 1, -100, INF], True),
        ([0.5, -INF, 0.5], True),
        ([0.5, 0.25, -INF], False),
        ([-INF, -INF], False),
        ([0, -INF, NAN], False),
        ([3e30, -INF], False),
        ([3e10, 5e10, -INF], False),
        ([0, 1e30], False),
    ],
)
def test_what_looks_like_a_mask(checkpoint, values, is_mask):
    checkpoint['state_dict']['extra'] = torch.tensor(values)
    scan = scan_checkpoint(checkpoint)
    assert ('extra' in [mask.name for mask, _ in scan.masks]) == is_mask
    assert [bad.name for bad in scan.findings] == ['extra'] * (not is_mask)


def test_a_trained_parameter_is_no_mask(checkpoint):
    checkpoint['state_dict']['norm.weight'] = torch.tensor([1, 1, 1, INF])
    assert findings_of(scan_checkpoint(checkpoint)) == [
        ('weight', 'norm.weight', 'inf')
    ]


def scan_of(mask):
    weights = {} if mask is None else dict(mask=torch.tensor(mask))
    return scan_checkpoint(dict(state_dict=weights))


@pytest.mark.parametrize(
    ('masks', 'are_bad'),
    [
        ([[0, -INF]], [False]),
        ([[0, -INF]] * 3, [False] * 3),
        ([[0, -INF], [0, -INF], [-INF, 0]], [True] * 3),
        ([[0.0, 1.0], [0, -INF]], [False, True]),
        ([[0.0, -INF], [-0.0, -INF]], [True, True]),
        ([[0, -INF], None], [False, False]),
    ],
    ids=['alone', 'same', 'moves', 'was finite', 'a bit', 'another model'],
)
def test_masks_are_compared(masks, are_bad):
    scans = classify_masks([scan_of(mask) for mask in masks])
    assert [bool(scan.findings) for scan in scans] == are_bad
    for scan, mask in zip(scans, masks):
        has_inf = mask is not None and -INF in mask
        assert len(scan.findings) + len(scan.masks) == has_inf


def test_ranks_are_joined():
    parts = [scan_of([0, -INF]), scan_of([0.5, NAN]), CheckpointScan()]
    scan = join_ranks(parts)
    assert findings_of(scan) == [('weight', 'rank 1: mask', 'nan')]
    assert [mask.name for mask, _ in scan.masks] == ['rank 0: mask']
    assert findings_of(classify_masks([scan, scan])[0]) == findings_of(scan)
    moved = join_ranks([scan_of([-INF, 0]), CheckpointScan()])
    assert findings_of(classify_masks([scan, moved])[1]) == [
        ('weight', 'rank 0: mask', 'inf')
    ]


def test_findings_are_json(checkpoint):
    checkpoint['state_dict']['head.bias'].fill_(NAN)
    scan = scan_checkpoint(checkpoint)
    json.dumps([vars(bad) for bad in scan.findings], allow_nan=False)
