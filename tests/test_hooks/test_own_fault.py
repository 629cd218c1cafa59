"""Faults of a drill that a user's project registers."""

import pytest
import torch
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.hooks import FaultInjectionHook
from mmnanguard.registry import FAULTS


@pytest.fixture(autouse=True)
def registered():
    """Register a few faults for one test."""
    before = dict(FAULTS.module_dict)

    @FAULTS.register_module()
    def enlarge(tensor, factor=10.0):
        return tensor * factor

    @FAULTS.register_module()
    def needy(tensor, factor):
        return tensor * factor

    @FAULTS.register_module()
    def spoil_all(tensor):
        return torch.full_like(tensor, torch.nan)

    @FAULTS.register_module()
    def forgetful(tensor):
        tensor.mul_(2)

    @FAULTS.register_module()
    def flat(tensor):
        return tensor.new_zeros(3, 7)

    yield
    FAULTS.module_dict.clear()
    FAULTS.module_dict.update(before)


def train(tmp_path, *faults, max_iters=3):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(*faults),
        max_iters=max_iters,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('site', 'where'),
    [
        ('input', None),
        ('activation', r'backbone\.2'),
        ('loss', None),
        ('grad', r'backbone\.0'),
        ('buffer', 'running_var'),
    ],
)
def test_it_strikes_at_each_site(tmp_path, site, where):
    fault = dict(iter=2, site=site, type='spoil_all', where=where)
    runner = train(tmp_path, fault)
    (row,) = read_rows(runner)
    assert row['iter'] == 2
    assert row['action'] == 'skip'
    if site in ('grad', 'buffer'):
        (param,) = row['params']
        assert param['count'] == param['numel'] > 1  # every element
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'is changed by spoil_all' in log


@pytest.mark.parametrize(
    ('keys', 'factor'), [({}, 10), (dict(factor=0.5), 0.5)]
)
def test_it_is_given_its_arguments(keys, factor):
    fault = dict(iter=3, site='weight', type='enlarge', **keys)
    (fault,) = FaultInjectionHook([fault]).faults
    tensor = torch.arange(6.0).reshape(2, 3)
    fault.strike(tensor)
    assert torch.equal(tensor, torch.arange(6.0).reshape(2, 3) * factor)


def test_a_change_that_is_finite_is_committed(tmp_path):
    fault = dict(iter=2, site='grad', type='enlarge', factor=2.0)
    assert read_rows(train(tmp_path, fault)) == []


@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        (dict(type='enlrage'), ["'enlrage'", "did you mean 'enlarge'"]),
        (dict(type='x'), ["'x'", "'enlarge'", 'custom_imports']),
        (dict(type='enlarge', fctor=2), ["'fctor'", "'factor'"]),
        (dict(type='enlarge', value=2), ["'value'", 'factor']),
        (dict(type='needy'), ['needy', "'factor'"]),
        (dict(type='enlarge', site='gard'), ["'gard'", 'site must be one']),
        (dict(type='enlarge', iter=0), ['count from 1']),
        (dict(type='enlarge', site='loss', where='x'), ['no `where`']),
    ],
)
def test_a_bad_spec_is_an_error_at_construction(fault, words):
    fault = {**dict(iter=3, site='grad'), **fault}
    with pytest.raises(GuardConfigError) as caught:
        FaultInjectionHook([fault])
    for word in ['FaultInjectionHook', *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'words'),
    [('forgetful', ['returns None']), ('flat', ['a Tensor of shape (3, 7)'])],
)
def test_a_function_that_returns_no_fit_tensor_is_named(tmp_path, name, words):
    with pytest.raises(NanGuardError) as caught:
        train(tmp_path, dict(iter=2, site='grad', type=name))
    for word in [name, 'must return a tensor of shape', *words]:
        assert word in str(caught.value)


def test_faults_are_keys_of_one_mapping():
    specs = [
        dict(iter=2, site='grad', type='enlarge', factor=factor)
        for factor in (2.0, 3.0)
    ]
    assert len(set(FaultInjectionHook(specs).faults)) == 2
