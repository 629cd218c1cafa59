"""Clip rules that a user's project registers."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Tuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from test_wrappers import add_nan, fp32, nan_grads, train
from test_wrappers import messages as messages  # a fixture
from test_wrappers import model as model  # a fixture

from mmnanguard.core import AutoClip, ClipRule, GuardConfigError, NanGuardError
from mmnanguard.optim.clip_grad import build_clip, load_clip, mmengines_clip
from mmnanguard.registry import CLIPS


@dataclass(frozen=True)
class MeanClip(ClipRule):
    """Clip to a multiple of the mean of the last norms."""

    factor: float = 1.0
    norm_type: float = 2.0
    norms: Tuple[float, ...] = field(default=(), metadata=ClipRule.STATE)

    def __call__(self, norm):
        if not self.norms:
            return 1.0
        limit = self.factor * sum(self.norms) / len(self.norms)
        return 1.0 if norm <= limit else limit / norm

    def after(self, norm):
        return replace(self, norms=(*self.norms, norm)[-3:])


@pytest.fixture(autouse=True)
def registered():
    """Register MeanClip for one test."""
    CLIPS.import_from_location()
    before = dict(CLIPS.module_dict)
    CLIPS.register_module(module=MeanClip)
    yield
    CLIPS.module_dict.clear()
    CLIPS.module_dict.update(before)


@pytest.mark.parametrize(
    'kind',
    ['MeanClip', 'mmnanguard.MeanClip', f'{__name__}.MeanClip', MeanClip],
)
def test_its_type_is_a_name_a_path_or_a_class(kind):
    config = dict(type=kind, factor=2, norm_type='inf')
    assert build_clip(config) == (MeanClip(2, math.inf), None)
    assert mmengines_clip(config) is None


def test_a_path_needs_no_registration():
    del CLIPS.module_dict['MeanClip']
    rule, _ = build_clip(dict(type=f'{__name__}.MeanClip'))
    assert rule == MeanClip()


def test_a_child_registry_has_its_own_scope():
    child = Registry('clip', parent=CLIPS, scope='my_project')
    child.register_module(module=MeanClip, name='Mean')
    assert build_clip(dict(type='my_project.Mean'))[0] == MeanClip()
    del CLIPS.children['my_project']


def test_a_module_of_custom_imports_registers_it(tmp_path, monkeypatch):
    (tmp_path / 'other_project_clips.py').write_text(
        'from dataclasses import dataclass\n'
        'from mmnanguard.core import ClipRule\n'
        'from mmnanguard.registry import CLIPS\n'
        '@CLIPS.register_module()\n'
        '@dataclass(frozen=True)\n'
        'class HalfClip(ClipRule):\n'
        '    def __call__(self, norm):\n'
        '        return 0.5\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = Config.fromstring(
        "custom_imports = dict(imports=['other_project_clips'])\n"
        "clip_grad = dict(type='HalfClip')\n",
        '.py',
    )
    rule, _ = build_clip(cfg.clip_grad)
    assert rule.coefficient(3.0) == 0.5
    assert rule.norm_type == 2.0
    assert str(rule) == 'clip_grad HalfClip'


def test_what_the_console_shows():
    assert str(MeanClip().after(1.0)) == (
        'clip_grad MeanClip factor=1.0 norm_type=2.0'
    )


def test_only_committed_norms_are_remembered_saved_and_resumed(
    model, tmp_path
):
    """A rejected update or a restart leaves no trace in the rule."""
    config = dict(type='MeanClip', factor=0.1)
    wrapper = fp32(model, clip_grad=config)
    norms = []
    for spoil in (None, nan_grads, None, add_nan, None, None):
        before = wrapper.guard.state.num_steps
        train(wrapper, model, spoil=spoil)
        if wrapper.guard.state.num_steps > before:
            scalar = wrapper.message_hub.get_scalar('train/grad_norm')
            norms.append(scalar.current())
    rule = wrapper.guard.clip_rule
    assert len(norms) == 4
    assert rule == MeanClip(0.1, norms=tuple(norms[-3:]))
    assert wrapper.guard.last_clip_coef < 1

    torch.save(wrapper.state_dict(), tmp_path / 'checkpoint.pth')
    saved = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    resumed = fp32(
        copy.deepcopy(model), clip_grad=dict(type='MeanClip', factor=0.25)
    )
    resumed.load_state_dict(saved)
    # The state is the checkpoint's, the config's keys are the config's.
    assert resumed.guard.clip_rule == replace(rule, factor=0.25)


@pytest.mark.parametrize(
    ('saved', 'words'),
    [
        ({}, 'no statistics of MeanClip (its clip_grad: not saved)'),
        (AutoClip().after(2.0).to_dict(), '(its clip_grad: AutoClip)'),
    ],
)
def test_a_checkpoint_of_another_rule_is_said(messages, saved, words):
    assert load_clip(MeanClip().after(1.0), saved) == MeanClip()
    assert words in messages[-1][1]


def test_a_checkpoint_of_an_older_version_of_the_rule():
    saved = dict(type='MeanClip', forgotten=1)
    assert load_clip(MeanClip().after(1.0), saved) == MeanClip()


def variant(name, base=ClipRule, is_frozen=True, **members):
    """Make a rule's class with some members of its own."""
    cls = type(name, (base,), members)
    return dataclass(frozen=True)(cls) if is_frozen else cls


def give(value):
    """Make a method that returns a value."""
    return lambda self, *args: value


def remember(value):
    """Make a method ``after`` that remembers a value."""
    return lambda self, norm: replace(self, norms=value)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(type='MeanClp'), ["'MeanClp'", "did you mean 'MeanClip'"]),
        (dict(type='meanclip'), ["'norm'", "'ZClip'", "'MeanClip'"]),
        (dict(type='no.such.Clip'), ["'no.such.Clip'", 'custom_imports']),
        (dict(type='json'), ["'json'", 'custom_imports']),
        (dict(type=3), ['3', "'MeanClip'"]),
        (dict(type='math.sqrt'), ['math.sqrt', 'no class', 'ClipRule']),
        (dict(type=dict), ['dict', 'inherit', 'mmnanguard.core.ClipRule']),
        (dict(type='MeanClip', fctor=2), ["'fctor'", "'factor'"]),
        (dict(type='MeanClip', max_norm=2), ["'max_norm'", '_delete_=True']),
        (dict(type='MeanClip', norms=(1.0,)), ["'norms'", 'factor']),
        (dict(type='MeanClip', norm_type=-1), ['norm_type', '-1']),
        (
            dict(type=variant('Loose', is_frozen=False)),
            ['Loose', 'frozen', '@dataclass(frozen=True)'],
        ),
        (
            dict(type=variant('NoneAfter', MeanClip, after=give(None))),
            ['NoneAfter.after', 'None', 'replace(self'],
        ),
        (
            dict(type=variant('Array', MeanClip, after=remember(np.ones(2)))),
            ['Array', "'norms'", 'ndarray', 'float(...)'],
        ),
        (
            dict(
                type=variant(
                    'Scalar', MeanClip, after=remember((np.float64(1),))
                )
            ),
            ['Scalar', "'norms'", 'float64'],
        ),
        (
            dict(type=variant('Lossy', MeanClip, with_state=lambda s, _: s)),
            ['Lossy.with_state', 'restore'],
        ),
        (
            dict(type=variant('Nameless', MeanClip, to_dict=give({}))),
            ['Nameless.to_dict', "'type'", "'Nameless'"],
        ),
        (
            dict(type=variant('Zeroth', norm_type=0.0)),
            ['Zeroth.norm_type', '0.0', 'above 0'],
        ),
    ],
    ids=lambda value: str(value.get('type')) if 'type' in value else '',
)
def test_errors_teach(config, words):
    with pytest.raises(GuardConfigError) as caught:
        build_clip(config)
    for word in ['optim_wrapper.clip_grad', *words]:
        assert word in str(caught.value)


def test_a_key_without_default_is_named():
    @dataclass(frozen=True)
    class Needy(ClipRule):
        limit: float

    with pytest.raises(GuardConfigError, match=r"Needy.*'limit'"):
        build_clip(dict(type=Needy))


@pytest.mark.parametrize(
    'coef', [0.0, -0.5, 1.5, math.nan, math.inf, None, True, torch.ones(())]
)
def test_a_coefficient_that_is_not_allowed_is_refused_when_it_is_built(coef):
    rule = variant('Wild', __call__=give(coef))
    with pytest.raises(NanGuardError) as caught:
        build_clip(dict(type=rule))
    for word in ('Wild', repr(coef), 'norm of 1', 'above 0 and at most 1'):
        assert word in str(caught.value)


def test_a_coefficient_that_goes_bad_later_is_refused_before_the_step(model):
    def call(self, norm):
        return math.nan if self.norms else 1.0

    rule = variant('Later', MeanClip, __call__=call)
    with pytest.raises(NanGuardError, match='Later returns nan'):
        build_clip(dict(type=rule))

    rule = variant(
        'Latest', __call__=lambda self, norm: 1.0 if norm == 1 else -1.0
    )
    wrapper = fp32(model, clip_grad=dict(type=rule))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NanGuardError, match=r'Latest returns -1\.0.*norm of'):
        train(wrapper, model)
    params = dict(model.named_parameters())
    assert all(torch.equal(params[key], before[key]) for key in params)


def test_a_rule_cannot_replace_the_check_of_its_coefficient():
    @dataclass(frozen=True)
    class UncheckedClip(ClipRule):
        def coefficient(self, norm):
            return math.nan

    with pytest.raises(GuardConfigError, match='Write `__call__'):
        build_clip(dict(type=UncheckedClip))
