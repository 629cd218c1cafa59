import copy
import math

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from test_wrappers import messages as messages  # a fixture

from mmnanguard.core import (
    AutoClip,
    GuardConfigError,
    NoClip,
    NormClip,
    TieredClip,
    ZClip,
)
from mmnanguard.core.clipping.moments import NormMoments
from mmnanguard.numerics import AdaptiveGradClip
from mmnanguard.numerics.update.grad_rules import ValueClip
from mmnanguard.optim.clip_grad import build_clip, load_clip, mmengines_clip


@pytest.mark.parametrize(
    ('config', 'number_rule', 'tensor_rule'),
    [
        (None, NoClip(), None),
        (dict(max_norm=35), NormClip(35.0, 2.0), None),
        (dict(max_norm=0.1, norm_type=1), NormClip(0.1, 1.0), None),
        (dict(max_norm=1, norm_type='inf'), NormClip(1.0, math.inf), None),
        (dict(type='norm', max_norm=2.0), NormClip(2.0, 2.0), None),
        (dict(max_norm=math.inf), NormClip(math.inf, 2.0), None),
        # Accepted, and without effect.
        (
            dict(max_norm=1.0, error_if_nonfinite=True, foreach=False),
            NormClip(1.0, 2.0),
            None,
        ),
        (dict(type='value', clip_value=1), NoClip(), ValueClip(1.0)),
        (
            dict(type='value', clip_value=0.5, foreach=True),
            NoClip(),
            ValueClip(0.5),
        ),
        (
            dict(type='TieredClip', tiers=[[10, 1], [0, 5]], norm_type='inf'),
            TieredClip(((10, 1), (0, 5)), math.inf),
            None,
        ),
        (dict(type='AutoClip'), AutoClip(), None),
        (
            dict(type='mmnanguard.AutoClip', percentile=5, warmup=9),
            AutoClip(percentile=5, warmup=9),
            None,
        ),
        (
            dict(type=ZClip, alpha=0.9, max_norm=None),
            ZClip(alpha=0.9, max_norm=None),
            None,
        ),
        (
            dict(type='AdaptiveGradClip', clip_factor=0.1, exclude=['head']),
            NoClip(),
            AdaptiveGradClip(0.1, exclude=('head',)),
        ),
    ],
)
def test_forms(config, number_rule, tensor_rule):
    assert build_clip(config) == (number_rule, tensor_rule)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ({}, ['{}', 'None', 'max_norm=35']),
        (35, ['35', 'dict(max_norm=35, norm_type=2)']),
        (dict(type='agc'), ['type', "'agc'", "'norm'", "'value'", "'ZClip'"]),
        (dict(type='mmcv.ZClip'), ["'mmcv.ZClip'", "'AdaptiveGradClip'"]),
        (dict(type='AutoClip', percent=1), ["'percent'", "'percentile'"]),
        (dict(type='AutoClip', past=1), ["'past'", 'AutoClip', 'window']),
        (dict(type='AutoClip', norm_type=0), ['norm_type', '0']),
        (dict(type='ZClip', max_norm=0), ['max_norm', '0', 'None']),
        (dict(type='TieredClip'), ['tiers', 'above 10 clip to 1']),
        (
            dict(type='AdaptiveGradClip', norm_type=2),
            ["'norm_type'", 'AdaptiveGradClip', 'exclude'],
        ),
        (dict(type='AdaptiveGradClip', known=1), ["'known'"]),
        (dict(clip_value=1.0), ['clip_value', "type='value'"]),
        (dict(max_nrom=1), ["'max_nrom'", "'max_norm'"]),
        (dict(type='value', max_norm=1), ["'max_norm'", 'clip_value']),
        (
            dict(type='value', clip_value=1, error_if_nonfinite=True),
            ["'error_if_nonfinite'"],
        ),
        (dict(norm_type=2), ['max_norm', 'None', 'above 0']),
        (dict(max_norm=0), ['max_norm', '0', 'above 0']),
        (dict(max_norm=-1.0), ['max_norm', '-1.0', 'above 0']),
        (dict(max_norm=math.nan), ['max_norm', 'nan', 'above 0']),
        (dict(max_norm='1'), ['max_norm', "'1'", 'a number']),
        (dict(type='value'), ['clip_value', 'None', 'above 0']),
        (dict(type='value', clip_value=0.0), ['clip_value', '0.0']),
        (dict(max_norm=1, norm_type=0), ['norm_type', '0', 'above 0', 'inf']),
        (dict(max_norm=1, norm_type=-2), ['norm_type', '-2', 'above 0']),
        (dict(max_norm=1, norm_type=math.nan), ['norm_type', 'nan']),
        (dict(max_norm=1, norm_type='two'), ['norm_type', 'two', 'above 0']),
        (dict(max_norm=1, norm_type=None), ['norm_type', 'None', 'above 0']),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(config, words):
    with pytest.raises(GuardConfigError) as caught:
        build_clip(config)
    for word in ['optim_wrapper.clip_grad', *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'config',
    [
        dict(type='norm', max_norm=1),
        dict(type='value', clip_value=1),
        dict(type='TieredClip', tiers=[(0, 5), (10, 1)], norm_type='inf'),
        dict(type='AdaptiveGradClip', exclude=['head']),
    ],
)
@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_the_config_stays_as_it_was(config, kind):
    given = kind(config)
    before = copy.deepcopy(given)
    build_clip(given)
    assert given == before


@pytest.mark.parametrize(
    'config',
    [
        dict(max_norm=0.5),
        dict(max_norm=0.5, norm_type=1),
        dict(max_norm=0.5, norm_type='inf'),
        dict(max_norm=1e6),
        dict(type='value', clip_value=0.5),
    ],
)
def test_the_meaning_is_mmengines(config):
    param = torch.nn.Parameter(torch.zeros(4))
    grad = torch.tensor([3.0, -0.2, 0.0, 0.4])
    param.grad = grad.clone()
    optimizer = torch.optim.SGD([param], lr=1.0)
    # A copy: MMEngine takes the type out of it.
    OptimWrapper(optimizer, clip_grad=dict(config))._clip_grad()

    number_rule, tensor_rule = build_clip(config)
    norm = torch.linalg.vector_norm(grad, number_rule.norm_type).item()
    grad *= number_rule(norm)
    if tensor_rule is not None:
        tensor_rule([param], [grad])
    torch.testing.assert_close(grad, param.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ('config', 'seen'),
    [
        (None, None),
        (dict(max_norm=1), dict(max_norm=1)),
        (dict(type='value', clip_value=1), dict(type='value', clip_value=1)),
        (dict(type='AutoClip'), None),
        (dict(type='mmnanguard.ZClip', alpha=0.5), None),
        (dict(type=AdaptiveGradClip), None),
    ],
)
def test_what_mmengine_sees_of_it(config, seen):
    got = mmengines_clip(config)
    assert got == seen
    assert got is None or got is not config


def test_tiers_that_make_a_larger_norm_keep_more_are_warned_of(messages):
    build_clip(dict(type='TieredClip', tiers=[(10, 5), (5, 2), (0, 1)]))
    # MMEngine reports look-ups in a registry with level DEBUG.
    first, second = [text for level, text in messages if level == 'WARNING']
    assert 'just above 10 to 5, but one of 10 to 2' in first
    assert 'just above 5 to 2, but one of 5 to 1' in second
    messages.clear()
    build_clip(dict(type='TieredClip', tiers=[(10, 1), (5, 2), (0, 5)]))
    assert {level for level, _ in messages} <= {'DEBUG'}


@pytest.mark.parametrize(
    ('saved', 'words'),
    [
        ({}, 'no statistics of AutoClip (its clip_grad: not saved)'),
        (ZClip().after(2.0).to_dict(), '(its clip_grad: ZClip)'),
        (NormClip(1.0).to_dict(), '(its clip_grad: NormClip)'),
    ],
)
def test_a_checkpoint_without_its_statistics(messages, saved, words):
    rule = AutoClip(percentile=7).after(3.0)
    assert load_clip(rule, saved) == AutoClip(percentile=7)
    ((level, text),) = messages
    assert level == 'INFO'
    assert words in text


@pytest.mark.parametrize('rule', [NoClip(), NormClip(1.0)])
@pytest.mark.parametrize('saved', [{}, AutoClip().after(1.0).to_dict()])
def test_rules_that_remember_nothing_say_nothing(messages, rule, saved):
    assert load_clip(rule, saved) == rule
    assert messages == []


@pytest.mark.parametrize(
    ('rule', 'saved', 'resumed'),
    [
        (
            AutoClip(window=3),
            dict(type='AutoClip', norms=[3.0, 1.0, 2.0]),
            AutoClip(window=3).after(1.0).after(2.0),
        ),
        (
            ZClip(warmup=2),
            dict(type='ZClip', first=[3.0], mean=None, var=0.0),
            ZClip(warmup=2).after(3.0),
        ),
        (
            ZClip(),
            dict(type='ZClip', first=[], mean=2.0, var=0.5),
            ZClip(past=NormMoments((), 2.0, 0.5)),
        ),
    ],
)
def test_the_format_of_checkpoints_of_0_1(rule, saved, resumed):
    assert load_clip(rule, saved) == resumed
    assert set(resumed.to_dict()) == set(saved)
