from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import GuardConfigError


def build(*faults):
    return HOOKS.build(
        dict(type='mmnanguard.FaultInjectionHook', faults=list(faults))
    )


@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        (dict(iter=3, site='grads'), ["'grads'", 'site must be one of']),
        (dict(iter=0, site='grad'), ['0', 'count from 1']),
        (dict(iter=2.0, site='grad'), ['2.0', 'integer']),
        (dict(site='grad'), ["lacks 'iter'"]),
        (dict(iter=3), ["lacks 'site'"]),
        (dict(iter=3, site='grad', val=1), ["'val'", "'value'"]),
        (dict(iter=3, site='grad', value='nane'), ["'nane'", "'-inf'"]),
        (dict(iter=3, site='grad', where='('), ['no regex']),
        (dict(iter=3, site='loss', where='x'), ['loss takes no `where`']),
        ('iter=3', ["'iter=3'", 'dict(iter=30']),
    ],
)
def test_a_bad_spec_is_an_error_at_construction(fault, words):
    with pytest.raises(GuardConfigError) as caught:
        build(fault)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('site', ['grad', 'activation', 'buffer', 'weight'])
def test_a_regex_without_match_is_an_error_before_the_first_iteration(
    tmp_path, site
):
    fault = dict(iter=3, site=site, where='nowhere')
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(fault),
    )
    with pytest.raises(GuardConfigError, match=r'matches nothing.*backbone'):
        runner.train()
    assert runner.iter == 0


def test_faults_that_are_no_list():
    with pytest.raises(GuardConfigError, match=r'faults is 3.*a list'):
        HOOKS.build(dict(type='mmnanguard.FaultInjectionHook', faults=3))


@pytest.mark.parametrize('ends_at', [0, 2.0, True])
def test_an_end_that_is_no_iteration(ends_at):
    with pytest.raises(GuardConfigError, match='ends_at is'):
        HOOKS.build(
            dict(type='FaultInjectionHook', faults=[], ends_at=ends_at)
        )


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_run_ends_after_its_last_iteration(tmp_path, by_epoch):
    hooks = guard_hooks(dict(iter=1, site='loss'))
    hooks['fire_drill']['ends_at'] = 2
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=5)
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=hooks,
        train_cfg=dict(by_epoch=by_epoch, **length),
    )
    runner.train()
    # A loop by epochs ends with its epoch.
    assert runner.iter == (10 if by_epoch else 2)


def test_a_gradient_is_struck_although_the_first_parameter_has_none(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(dict(iter=2, site='grad')),
    )
    backbone = runner.model.backbone
    backbone[0].weight.register_post_accumulate_grad_hook(
        lambda param: setattr(param, 'grad', None)
    )
    runner.train()
    (row,) = read_rows(runner)
    assert row['params'][0]['name'] == 'backbone.1.weight'


def test_faults_by_number_as_the_command_line_makes_them():
    hook = HOOKS.build(
        dict(
            type='mmnanguard.FaultInjectionHook',
            faults={
                '0': dict(iter=3, site='grad'),
                '1': dict(iter=5, site='loss', value='-inf'),
            },
        )
    )
    assert [(fault.iter, fault.site) for fault in hook.faults] == [
        (3, 'grad'),
        (5, 'loss'),
    ]


@pytest.mark.parametrize(
    ('site', 'where', 'struck'),
    [
        ('input', None, 'loss'),
        ('loss', None, 'loss'),
        ('activation', r'backbone\.2', 'loss'),
        ('activation', None, 'loss'),
        ('grad', r'backbone\.0', 'backbone.0.weight'),
        ('grad', 'bias', 'backbone.1.bias'),
        ('buffer', 'running_var', 'backbone.1.running_var'),
    ],
)
@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_each_site_strikes(tmp_path, site, where, struck, value):
    fault = dict(iter=2, site=site, value=value)
    if where:
        fault['where'] = where
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(fault),
        max_iters=3,
    )
    runner.train()
    (row,) = read_rows(runner)
    assert row['iter'] == 2
    if struck == 'loss':
        assert row['cause'] == 'loss_nonfinite'
        # The loss alone is struck: its gradient stays as it is.
        assert (row['num_bad_params'] == 0) is (site == 'loss')
    else:
        assert row['params'][0]['name'] == struck
        assert row['params'][0]['kind'] == value.strip('-')
        assert row['params'][0]['count'] == 1
    # Nothing stays behind: no hooks, no changed methods.
    assert 'backward' not in vars(runner.optim_wrapper)
    for module in runner.model.modules():
        assert not module._forward_hooks


def test_the_plain_wrapper_is_ruined_by_it(tmp_path):
    """The fault ruins an unguarded run, so a drill means something."""
    fault = dict(iter=2, site='activation')
    runner = make_runner(
        tmp_path,
        wrapper('OptimWrapper'),
        default_hooks=dict(fire_drill=guard_hooks(fault)['fire_drill']),
        max_iters=3,
    )
    runner.train()
    assert not torch.isfinite(runner.model.head.weight).any()


def test_a_fault_that_does_not_strike_is_told(tmp_path):
    """Heads of mm models run `loss`, not `forward`."""
    fault = dict(iter=2, site='activation', where='unused')
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(fault, dict(iter=99, site='grad')),
        max_iters=3,
    )
    runner.model.unused = torch.nn.Linear(1, 1)
    runner.train()
    (log,) = Path(runner.log_dir).glob('*.log')
    assert "did not strike: 'unused' was not used" in log.read_text()
    assert 'lies behind the last iteration, 3' in log.read_text()


def test_the_data_set_keeps_its_images(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(dict(iter=2, site='input')),
        max_iters=3,
    )
    runner.train()
    for sample in runner.train_dataloader.dataset:
        assert torch.isfinite(sample['inputs']).all()
