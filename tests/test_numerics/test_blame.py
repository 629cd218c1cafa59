"""Blame names the right tensors, in order, with the right facts."""

import math

import pytest
import torch
from torch import nn

from mmnanguard.core import BadTensor, Cause, ScaleReading
from mmnanguard.numerics.snapshot.snapshot import Changes, Snapshot
from mmnanguard.numerics.update.blame import TensorNames, blame
from mmnanguard.numerics.update.observe import Reading, observe

INF, NAN = math.inf, math.nan


class Wrap(nn.Module):
    """A wrapper that renames parameters as DDP does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Compiled(nn.Module):
    """A wrapper that renames parameters as torch.compile does."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def blame_grads(grads, cause=Cause.GRAD_NONFINITE, scale=1.0):
    """Return the blame for these gradients; parameters are called 0, 1, ..."""
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    _, reading = observe(grads, [], {}, Snapshot(), ScaleReading(scale))
    names = TensorNames([nn.ParameterList(params)], [])
    return blame(cause, params, grads, params, reading, scale, names)


def kinds(bad):
    return [(item.name, item.kind) for item in bad]


# Names


@pytest.mark.parametrize(
    'wrap',
    [
        lambda model: model,
        Wrap,
        Compiled,
        lambda model: Compiled(Wrap(model)),
        lambda model: Wrap(Compiled(model)),
        lambda model: nn.Sequential(Wrap(model[0]), Compiled(model[1])),
    ],
)
def test_wrapper_prefixes_are_stripped(wrap):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = TensorNames([wrap(model)], [])
    assert names.of_param(model[0].weight) == '0.weight'
    assert names.of_param(model[1].bias) == '1.bias'
    assert names.of_buffer(model[1], 'running_var') == '1.running_var'


@pytest.mark.parametrize('name', ['submodule', 'my_module', 'x_orig_mod'])
def test_names_that_merely_end_like_a_prefix_are_whole(name):
    model = nn.Module()
    model.add_module(name, nn.BatchNorm1d(2))
    child = getattr(model, name)
    names = TensorNames([Wrap(model)], [])
    assert names.of_param(child.weight) == f'{name}.weight'
    assert names.of_buffer(child, 'running_var') == f'{name}.running_var'


def test_a_buffer_of_the_model_itself():
    model = nn.BatchNorm1d(2)
    for outer in (model, Wrap(model)):
        names = TensorNames([outer], [])
        assert names.of_buffer(model, 'running_var') == 'running_var'


def test_a_shared_parameter_lists_all_its_names():
    model = nn.ModuleDict(
        dict(embed=nn.Linear(2, 2, bias=False), head=nn.Linear(2, 2))
    )
    model['head'].weight = model['embed'].weight
    names = TensorNames([model, Wrap(model)], [])
    shared = model['embed'].weight
    assert names.of_param(shared) == 'embed.weight = head.weight'
    assert names.of_param(model['head'].bias) == 'head.bias'


def test_the_first_model_names_a_buffer():
    inner = nn.BatchNorm1d(2)
    first, second = nn.ModuleDict(dict(a=inner)), nn.ModuleDict(dict(b=inner))
    names = TensorNames([first, second], [])
    assert names.of_buffer(inner, 'running_mean') == 'a.running_mean'
    assert names.of_param(inner.weight) == 'a.weight = b.weight'


def test_a_parameter_that_no_model_is_known_to_have():
    known, unknown = nn.Linear(3, 2), nn.Parameter(torch.zeros(2, 3))
    other = nn.Parameter(torch.zeros(()))
    groups = [
        dict(params=[known.weight, unknown]),
        dict(params=[known.bias, other]),
    ]
    names = TensorNames([known], groups)
    assert names.of_param(known.weight) == 'weight'
    assert names.of_param(unknown) == 'group 0, tensor 1, shape (2, 3)'
    assert names.of_param(other) == 'group 1, tensor 1, shape ()'


def test_a_buffer_of_an_unknown_module():
    names = TensorNames([], [])
    owner = nn.BatchNorm1d(2)
    assert names.of_buffer(owner, 'running_mean') == 'running_mean'


# Gradients


def test_statistics_are_unscaled_and_finite():
    grad = torch.tensor([[-8.0, NAN, 4.0], [INF, 0.0, -INF]])
    assert blame_grads([grad], scale=4.0) == (
        BadTensor('0', 'gradient', 'nan', 3, 6, -2.0, 1.0, 'float32'),
    )


@pytest.mark.parametrize(
    ('grad', 'kind', 'count'),
    [
        ([1.0, NAN], 'nan', 1),
        ([NAN, INF], 'nan', 2),
        ([1.0, INF, -INF], 'inf', 2),
        ([3e38, 3e38], 'huge', 0),
    ],
)
def test_kinds(grad, kind, count):
    (bad,) = blame_grads([torch.tensor(grad)])
    assert (bad.kind, bad.count, bad.numel) == (kind, count, len(grad))


def test_without_a_finite_element_there_is_no_range():
    (bad,) = blame_grads([torch.full((2,), INF)])
    assert math.isnan(bad.min)
    assert math.isnan(bad.max)


@pytest.mark.parametrize(
    ('dtype', 'name'),
    [(torch.float16, 'float16'), (torch.bfloat16, 'bfloat16')],
)
def test_half_precision_statistics(dtype, name):
    grad = torch.tensor([1024.0, NAN, -1.0]).to(dtype)
    (bad,) = blame_grads([grad], scale=2.0**30)
    assert (bad.min, bad.max) == (-(2.0**-30), 2.0**-20)
    assert bad.dtype == name


def test_nearest_to_the_loss_first_and_healthy_ones_left_out():
    grads = [torch.tensor([value]) for value in (NAN, 1.0, INF, 2.0, NAN, 3.0)]
    assert kinds(blame_grads(grads)) == [
        ('4', 'nan'),
        ('2', 'inf'),
        ('0', 'nan'),
    ]


def test_at_most_five():
    bad = blame_grads([torch.tensor([NAN])] * 9)
    assert [item.name for item in bad] == ['8', '7', '6', '5', '4']


@pytest.mark.parametrize(
    ('cause', 'expected'),
    [
        (Cause.LOSS_NONFINITE, [('0', 'nan')]),
        (Cause.INPUT_NONFINITE, [('0', 'nan')]),
        (Cause.SCALE_OVERFLOW, [('0', 'nan')]),
    ],
)
def test_other_causes_name_gradients_too(cause, expected):
    grads = [torch.tensor([NAN]), torch.tensor([1.0])]
    assert kinds(blame_grads(grads, cause)) == expected
    assert blame_grads(grads[1:], cause) == ()
    assert blame_grads([], cause) == ()


def test_a_norm_overflow_names_the_largest():
    """The largest is named although no single norm is inf."""
    grads = [torch.tensor([value]) for value in (1.5e19, 1.7e19, 1.6e19)]
    bad = blame_grads(grads, Cause.NORM_OVERFLOW)
    assert kinds(bad) == [('1', 'huge')]
    assert bad[0].max == pytest.approx(1.7e19)


def test_a_norm_overflow_names_the_infinite_norms():
    grads = [torch.full((2,), value) for value in (3e38, 1.0, 3e38)]
    bad = blame_grads(grads, Cause.NORM_OVERFLOW)
    assert kinds(bad) == [('2', 'huge'), ('0', 'huge')]


# Weights and buffers


def test_weights_are_named_and_not_unscaled():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, NAN], [-2.0, 3.0]]))
    bad = blame(
        Cause.WEIGHT_NONFINITE,
        [model.bias],
        [torch.tensor([NAN, NAN])],
        [model.bias, model.weight],
        Reading([NAN]),
        8.0,
        TensorNames([model], []),
    )
    assert bad == (
        BadTensor('weight', 'weight', 'nan', 1, 4, -2.0, 3.0, 'float32'),
    )


def test_buffers_are_named_and_not_unscaled():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_var[0] = INF
    bad = blame(
        Cause.BUFFER_NONFINITE,
        list(model.parameters()),
        [torch.tensor([NAN])] * 2,
        list(model.parameters()),
        Reading([NAN, NAN], Changes(bad=[(model[0], 'running_var')])),
        8.0,
        TensorNames([model], []),
    )
    assert bad == (
        BadTensor('0.running_var', 'buffer', 'inf', 1, 2, 1.0, 1.0, 'float32'),
    )


def test_at_most_five_weights_and_buffers():
    weights = [nn.Parameter(torch.tensor([NAN])) for _ in range(7)]
    model = nn.ParameterList(weights)
    names = TensorNames([model], [])
    norms = [nn.BatchNorm1d(1) for _ in range(7)]
    reading = Reading(
        [], Changes(bad=[(norm, 'running_var') for norm in norms])
    )
    for cause in (Cause.WEIGHT_NONFINITE, Cause.BUFFER_NONFINITE):
        bad = blame(cause, [], [], weights, reading, 1.0, names)
        assert len(bad) == 5
        assert bad[0].name in ('0', 'running_var')
