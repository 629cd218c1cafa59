import copy
import logging

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS
from stopping import STOPPING, Asserts, DoesMore, Warns
from torch import nn
from toys import make_runner

from mmnanguard import apply_guard
from mmnanguard.core import GuardConfigError

SGD = dict(type='SGD', lr=0.1)
AMP = dict(
    type='AmpOptimWrapper',
    loss_scale=512.0,
    dtype='bfloat16',
    clip_grad=dict(max_norm=35),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    optimizer=SGD,
)


@pytest.fixture
def messages():
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    MMLogger.get_instance('mmengine').addHandler(Keep())
    return records


def guarded(optim_wrapper, guard, **keys):
    cfg = Config(dict(optim_wrapper=optim_wrapper, **keys))
    before = copy.deepcopy(cfg)
    result = apply_guard(cfg, guard)
    assert cfg.to_dict() == before.to_dict()
    return result


@pytest.mark.parametrize(
    ('guard', 'type_', 'dtype'),
    [
        ('fp32', 'NanGuardOptimWrapper', None),
        ('fp16', 'NanGuardAmpOptimWrapper', 'float16'),
        ('bf16', 'NanGuardAmpOptimWrapper', 'bfloat16'),
        ('full', 'NanGuardOptimWrapper', None),
    ],
)
def test_each_guard_over_a_plain_config(guard, type_, dtype):
    cfg = guarded(dict(type='OptimWrapper', optimizer=SGD), guard)
    assert cfg.optim_wrapper.type == f'mmnanguard.{type_}'
    assert cfg.optim_wrapper.get('dtype') == dtype
    assert cfg.optim_wrapper.optimizer == SGD
    assert cfg.default_hooks.nan_guard.type == 'mmnanguard.NanGuardHook'
    assert cfg.default_hooks.event_log.type == 'mmnanguard.EventLogHook'


def test_what_the_new_type_takes_stays():
    cfg = guarded(AMP, 'full')
    assert cfg.optim_wrapper == {
        **AMP,
        'type': 'mmnanguard.NanGuardAmpOptimWrapper',
        'guard': dict(when_exhausted='rollback', divergence=dict()),
    }


def test_what_it_does_not_take_is_dropped_and_listed(messages):
    cfg = guarded(AMP, 'fp32')
    kept = {k: v for k, v in AMP.items() if k not in ('loss_scale', 'dtype')}
    assert cfg.optim_wrapper == {
        **kept,
        'type': 'mmnanguard.NanGuardOptimWrapper',
    }
    assert 'dropped' in messages[-1]
    assert "dtype='bfloat16', loss_scale=512.0" in messages[-1]


def test_the_scope_of_another_projects_config_stays(messages):
    cfg = guarded(dict(AMP, _scope_='mmpretrain'), 'bf16')
    assert cfg.optim_wrapper._scope_ == 'mmpretrain'
    assert messages == []


def test_a_gan_config_gets_no_stray_type():
    gan = dict(
        constructor='GanConstructor',
        generator=dict(type='OptimWrapper', optimizer=SGD),
        discriminator=dict(optimizer=SGD),
    )
    cfg = guarded(gan, 'fp32')
    assert cfg.optim_wrapper == dict(
        constructor='GanConstructor',
        generator=dict(type='mmnanguard.NanGuardOptimWrapper', optimizer=SGD),
        discriminator=dict(
            type='mmnanguard.NanGuardOptimWrapper', optimizer=SGD
        ),
    )


@pytest.mark.parametrize('type_', [OptimWrapper, AmpOptimWrapper])
def test_a_type_that_is_a_class(type_):
    cfg = guarded(dict(type=type_, optimizer=SGD), 'full')
    name = type_.__name__.replace('Optim', 'Optim')
    assert cfg.optim_wrapper.type == f'mmnanguard.NanGuard{name}'


def test_the_users_hooks_stay():
    hooks = dict(logger=dict(type='LoggerHook', interval=7))
    cfg = guarded(
        dict(optimizer=SGD),
        'full',
        default_hooks=hooks,
        custom_hooks=[dict(type='EMAHook')],
    )
    assert cfg.default_hooks.logger.interval == 7
    assert cfg.custom_hooks == [dict(type='EMAHook')]
    assert 'nan_guard' in cfg.default_hooks


def test_twice_is_once():
    cfg = guarded(AMP, 'full')
    assert apply_guard(cfg, 'full').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'type_',
    [
        'ColossalAIOptimWrapper',
        'ApexOptimWrapper',
        'mmproject.TheirOwnWrapper',
        nn.Module,
    ],
)
def test_wrappers_that_cannot_be_guarded_are_refused(type_):
    with pytest.raises(GuardConfigError, match='no guarded form'):
        guarded(dict(type=type_, optimizer=SGD), 'full')


def test_an_overlay_of_the_users_own(tmp_path):
    path = tmp_path / 'strict.py'
    path.write_text('optim_wrapper = dict(guard=dict(max_skip_rate=0.1))')
    cfg = guarded(AMP, str(path))
    assert cfg.optim_wrapper.guard == dict(max_skip_rate=0.1)
    assert cfg.optim_wrapper.type == 'mmnanguard.NanGuardAmpOptimWrapper'
    path.write_text('train_cfg = dict(max_epochs=1)')
    with pytest.raises(GuardConfigError, match='sets train_cfg'):
        guarded(AMP, str(path))


def test_an_overlay_merges_by_key(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'optim_wrapper = dict(clip_grad=dict(norm_type=1), '
        'optimizer=dict(lr=0.5))'
    )
    cfg = guarded(AMP, str(path))
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=35, norm_type=1)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.5)


def test_a_typo_in_an_overlay_is_an_error(tmp_path):
    path = tmp_path / 'typo.py'
    path.write_text('optim_wrapper = dict(guards=dict(max_skip_rate=0.1))')
    with pytest.raises(GuardConfigError, match=r"'guards'.*'guard'"):
        guarded(AMP, str(path))


def test_a_wrapper_without_optimizer():
    with pytest.raises(GuardConfigError, match='nothing to guard'):
        guarded(dict(type='OptimWrapper'), 'full')


def test_an_unknown_guard_lists_the_known_ones():
    with pytest.raises(GuardConfigError, match='bf16, fp16, fp32, full'):
        guarded(AMP, 'fp8')


@pytest.mark.parametrize(
    ('keys', 'hint'),
    [
        (dict(test_cfg=dict()), 'does not train'),
        (dict(train_cfg=dict(max_epochs=1)), 'Add optim_wrapper='),
        (dict(optimizer=SGD, runner=dict(max_epochs=1)), 'as in 1.x'),
    ],
)
def test_a_config_without_wrapper(keys, hint):
    with pytest.raises(GuardConfigError, match=f'no optim_wrapper.*{hint}'):
        apply_guard(Config(dict(model=dict(), **keys)), 'full')


def test_a_hook_that_is_there_by_another_name_is_not_doubled():
    """The dump of a guarded config may be guarded again."""
    hooks = dict(EventLogHook=dict(type='mmnanguard.EventLogHook'))
    audits = [dict(type='mmnanguard.StateAuditHook', interval=7)]
    cfg = Config(
        dict(
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=hooks,
            custom_hooks=audits,
        )
    )
    guarded = apply_guard(cfg)
    types = [hook['type'] for hook in guarded.default_hooks.values()]
    types += [hook['type'] for hook in guarded.custom_hooks]
    assert len(types) == len(set(types))
    assert guarded.custom_hooks == audits
    assert apply_guard(guarded).to_dict() == guarded.to_dict()


def test_keys_of_a_constructor_stay(messages):
    wrapper = dict(constructor='Mine', part='.*lora', optimizer=SGD)
    cfg = guarded(dict(wrapper, loss_scale=2.0), 'fp32')
    assert cfg.optim_wrapper.part == '.*lora'
    assert 'loss_scale' not in cfg.optim_wrapper
    assert 'does not take loss_scale=2.0; dropped' in messages[-1]
    several = dict(constructor='Mine', a=dict(part=1, optimizer=SGD))
    assert guarded(several, 'fp32').optim_wrapper.a.part == 1
    default = dict(wrapper, constructor='DefaultOptimWrapperConstructor')
    assert 'part' not in guarded(default, 'fp32').optim_wrapper


@pytest.mark.parametrize(
    'hook',
    [
        dict(type=Asserts),
        dict(type='stopping.Asserts', priority='LOW'),
        dict(type='CheckInvalidLossHook', interval=50),
        dict(type='mmdet.CheckInvalidLossHook'),
        Asserts(),
    ],
)
def test_a_hook_that_ends_the_run_is_left_out(hook, messages):
    wrapper = dict(type='OptimWrapper', optimizer=SGD)
    cfg = apply_guard(
        Config(
            dict(
                optim_wrapper=wrapper,
                custom_hooks=[dict(type=Warns), hook],
                default_hooks=dict(mine=hook, logger=dict(type='LoggerHook')),
            )
        ),
        'fp32',
    )
    assert cfg.custom_hooks == [dict(type=Warns)]
    assert 'mine' not in cfg.default_hooks
    assert 'logger' in cfg.default_hooks
    first, second = messages[-2:]
    assert first.startswith('custom_hooks[1]: ')
    assert second.startswith('default_hooks.mine: ')
    assert 'it is left out' in first


def test_a_hook_that_does_more_stays_and_is_named(messages):
    wrapper = dict(type='OptimWrapper', optimizer=SGD)
    hooks = [dict(type=DoesMore)]
    cfg = guarded(wrapper, 'fp32', custom_hooks=hooks)
    assert cfg.custom_hooks == hooks
    assert 'it does more, so it stays' in ' '.join(messages[-1].split())


@pytest.mark.parametrize('kind', STOPPING[:-1])
def test_a_guarded_run_goes_on_past_a_skip(kind, tmp_path):
    HOOKS.register_module(module=kind, force=True)
    cfg = guarded(
        dict(type='OptimWrapper', optimizer=SGD),
        'fp32',
        custom_hooks=[dict(type=kind.__name__)],
    )
    drill = dict(
        type='mmnanguard.FaultInjectionHook',
        faults=[dict(iter=2, site='activation', value='nan', where='head')],
    )
    runner = make_runner(
        tmp_path,
        cfg.optim_wrapper,
        custom_hooks=cfg.custom_hooks,
        default_hooks=dict(cfg.default_hooks, drill=drill),
    )
    runner.train()
    assert runner.message_hub.get_scalar('train/guard/skipped').current() == 1
    assert runner.iter == runner.max_iters


class MyWrapper(AmpOptimWrapper):
    pass


@pytest.mark.parametrize(
    ('type_', 'advice'),
    [
        (MyWrapper, 'subclass of mmnanguard.NanGuardAmpOptimWrapper'),
        (
            'MyAmpOptimWrapper',
            'subclass of mmnanguard.NanGuardAmpOptimWrapper',
        ),
        ('MyOptimWrapper', 'subclass of mmnanguard.NanGuardOptimWrapper'),
        ('ApexOptimWrapper', 'type to mmnanguard.NanGuardAmpOptimWrapper'),
        ('ColossalAIOptimWrapper', 'cannot be guarded'),
    ],
)
def test_the_advice_for_a_class_names_its_base(type_, advice):
    cfg = Config(dict(optim_wrapper=dict(type=type_, optimizer=SGD)))
    with pytest.raises(GuardConfigError, match=advice):
        apply_guard(cfg, 'fp32')
