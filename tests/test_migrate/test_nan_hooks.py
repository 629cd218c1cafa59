"""Guards that people wrote by hand are replaced in a migration."""

import pytest
from migrating import FP16, FP32, Migration
from mmengine.registry import HOOKS as REGISTRY

from mmnanguard.core import GuardPolicy
from mmnanguard.migrate.nan_hooks import HOOKS, WRAPPERS, looks_alike

SGD = "optimizer=dict(type='SGD', lr=0.1)"
NO_LIMIT = dict(max_consecutive_skips=None, max_skip_rate=None)
DEEPSPEED = 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
FIRST = dict(max_consecutive_skips=1)

# options of a hand-written wrapper, and the guard's wrapper
WRAPPER_CASES = [
    ("type='NaNSafeOptimWrapper'", dict(type=FP32)),
    (
        "type='NaNSafeOptimWrapper', max_skips=200",
        dict(type=FP32, guard=dict(max_consecutive_skips=200)),
    ),
    (
        "type='my.project.NaNSafeOptimWrapper', max_skips=-1",
        dict(type=FP32, guard=NO_LIMIT),
    ),
    (
        "type='DeepRoofSafeAmpOptimWrapper', skip_nonfinite_grad=True, "
        "max_nonfinite_warnings=20, loss_scale='dynamic'",
        dict(type=FP16, dtype='float16', loss_scale='dynamic'),
    ),
    (
        "type='SafeAmpOptimWrapper', loss_scale=256.0, sanitize_nan_value=0.,"
        ' sanitize_nonfinite_grads=True, clip_grad=dict(max_norm=35)',
        dict(
            type=FP16,
            dtype='float16',
            loss_scale=256.0,
            clip_grad=dict(max_norm=35),
        ),
    ),
    (
        "type='FiniteOptimWrapper', accumulative_counts=2",
        dict(type=FP32, guard=FIRST, accumulative_counts=2),
    ),
    (
        "type='FailFastAmpOptimWrapper', dtype='bfloat16'",
        dict(type=FP16, dtype='bfloat16', guard=FIRST),
    ),
    ("type='OptimWrapper'", dict(type=FP32)),
    ('accumulative_counts=2', dict(type=FP32, accumulative_counts=2)),
]


@pytest.mark.parametrize(('options', 'expected'), WRAPPER_CASES)
def test_a_wrapper(options, expected, tmp_path):
    migration = Migration(
        tmp_path, f'model = dict()\noptim_wrapper = dict({options}, {SGD})\n'
    )
    expected = dict(expected, optimizer=dict(type='SGD', lr=0.1))
    assert migration.cfg['optim_wrapper'] == expected
    assert {*migration.cfg['default_hooks']} == {
        'nan_guard',
        'event_log',
        'event_text',
    }
    assert not migration.left
    GuardPolicy.from_config(expected.get('guard'))


def test_wrappers_of_several_optimizers(tmp_path):
    part = f"dict(type='NaNSafeOptimWrapper', {SGD})"
    other = f"dict(modules='.*lora', {SGD})"
    migration = Migration(
        tmp_path,
        "model = dict()\noptim_wrapper = dict(constructor='Mine', "
        f'generator={part},\n    discriminator={other})\n',
    )
    built = dict(type=FP32, optimizer=dict(type='SGD', lr=0.1))
    assert migration.cfg['optim_wrapper'] == dict(
        constructor='Mine',
        generator=built,
        discriminator=dict(built, modules='.*lora'),
    )


@pytest.mark.parametrize(
    ('options', 'guard'),
    [
        ("type='SkipNanOptimizerHook', max_skips=20, log_interval=1", 20),
        ("type='NanDetectionHook', max_nan_count=10", 10),
    ],
)
def test_an_optimizer_hook_of_1x(options, guard, tmp_path):
    migration = Migration(
        tmp_path,
        "model = dict(type='M')\noptimizer = dict(type='SGD', lr=0.1)\n"
        f'optimizer_config = dict({options}, grad_clip=dict(max_norm=35))\n',
    )
    assert migration.cfg['optim_wrapper'] == dict(
        type=FP32,
        guard=dict(max_consecutive_skips=guard),
        clip_grad=dict(max_norm=35),
        optimizer=dict(type='SGD', lr=0.1),
    )


STEPPING = """
class Odd(OptimizerHook):
    def after_train_iter(self, runner):
        runner.outputs['loss'].backward()
        if torch.isfinite(self.clip_grads(runner.model.parameters())):
            runner.optimizer.step()


class Strict(OptimizerHook):
    def after_train_iter(self, runner):
        loss = runner.outputs['loss']
        if math.isnan(loss):
            raise ValueError('NaN')
        super().after_train_iter(runner)


class Slow(OptimizerHook):
    def after_train_iter(self, runner):
        if self.every_n_iters(runner, 2):
            runner.optimizer.step()
"""


@pytest.mark.parametrize(
    ('kind', 'guard'), [('Odd', {}), ('Strict', FIRST), ('Slow', None)]
)
def test_an_optimizer_hook_whose_source_is_found(kind, guard, tmp_path):
    migration = Migration(
        tmp_path,
        "model = dict(type='M')\noptimizer = dict(type='SGD', lr=0.1)\n"
        f"optimizer_config = dict(type='{kind}')\n"
        "custom_imports = dict(imports=['odd_hooks'])\n",
        odd_hooks=STEPPING,
    )
    assert f'{kind}' in migration.left
    if guard is None:
        assert 'optim_wrapper' not in migration.cfg
    else:
        assert migration.cfg['optim_wrapper'].get('guard', {}) == guard
        assert f'{kind} -> the guard' in migration.notes_of('done')


@pytest.mark.parametrize(
    ('limits', 'guard'),
    [
        ((50, 10), dict(max_consecutive_skips=10)),
        ((10, 50), dict(max_consecutive_skips=10)),
        ((-1, 10), dict(max_consecutive_skips=10)),
        ((-1, -1), NO_LIMIT),
    ],
)
def test_the_strictest_of_several_counts(limits, guard, tmp_path):
    migration = Migration(
        tmp_path,
        "model = dict(type='M')\noptimizer = dict(type='SGD', lr=0.1)\n"
        "optimizer_config = dict(type='SkipNanOptimizerHook', "
        f'max_skips={limits[0]})\n'
        "custom_hooks = [dict(type='NaNDetectionHook', "
        f'max_nan_count={limits[1]})]\n',
    )
    assert migration.cfg['optim_wrapper']['guard'] == guard
    assert f'line 3: max_skips={limits[0]} -> ' in migration.changed


@pytest.mark.parametrize('kind', HOOKS)
@pytest.mark.parametrize('is_in_list', [True, False])
def test_a_hook_goes(kind, is_in_list, tmp_path):
    hand = HOOKS[kind]
    limit = f', {hand.limit}=7' if hand.limit else ''
    hook = f"dict(type='{kind}'{limit}, priority='VERY_LOW')"
    keep = "dict(type='IterTimerHook')"
    hooks = (
        f'custom_hooks = [{hook}, {keep}]'
        if is_in_list
        else f'default_hooks = dict(mine={hook}, timer={keep})'
    )
    migration = Migration(
        tmp_path, f'model = dict()\noptim_wrapper = dict({SGD})\n{hooks}\n'
    )
    assert kind not in migration.new
    assert 'IterTimerHook' in migration.new
    assert f'{kind} -> the guard' in migration.notes_of('done')
    guard = migration.cfg['optim_wrapper'].get('guard')
    assert guard == (dict(max_consecutive_skips=7) if hand.limit else None)
    for name in hand.hooks:
        REGISTRY.build(migration.cfg['default_hooks'][name])
    assert not migration.left


def test_keys_of_a_constructor_stay(tmp_path):
    migration = Migration(
        tmp_path,
        "model = dict()\noptim_wrapper = dict(constructor='Mine', "
        f"part='.*lora', loss_scale=2.0, {SGD})\n",
    )
    wrapper = migration.cfg['optim_wrapper']
    assert wrapper['part'] == '.*lora'
    # A key of a wrapper, which that of float32 would refuse.
    assert 'loss_scale' not in wrapper
    default = "constructor='DefaultOptimWrapperConstructor'"
    migration = Migration(
        tmp_path,
        f'model = dict()\noptim_wrapper = dict({default}, part=1, {SGD})\n',
    )
    assert 'does without part' in migration.changed


def test_a_list_of_hooks(tmp_path):
    text = """\
model = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
custom_hooks = [
    dict(type='CheckNanHook'),
    # averages
    dict(type='EMAHook', momentum=0.0002),  # slow
    dict(type='DetectAnomalyHook'),
    # buffers
    dict(type='SyncBuffersHook'),
    dict(type='NanCheckHook')
]
"""
    new = Migration(tmp_path, text).new
    assert new.endswith(
        """\
custom_hooks = [
    # averages
    dict(type='EMAHook', momentum=0.0002),  # slow
    # buffers
    dict(type='SyncBuffersHook')
]
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    event_text=dict(type='mmnanguard.EventTextHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
)
"""
    )


def test_an_empty_list_stays_where_it_replaces_one(tmp_path):
    text = "custom_hooks = [dict(type='CheckNanHook')]\n"
    alone = Migration(tmp_path, text)
    assert alone.new.strip() == ''
    base = "custom_hooks = [dict(type='SyncBuffersHook')]\n"
    child = Migration(tmp_path, f"_base_ = 'base.py'\n{text}", base=base)
    assert child.cfg['custom_hooks'] == []


def test_an_inherited_hook_is_told(tmp_path):
    base = "custom_hooks = [dict(type='CheckNanHook')]\n"
    child = Migration(tmp_path, "_base_ = 'base.py'\nseed = 1\n", base=base)
    assert 'CheckNanHook is inherited' in child.left


def test_what_is_added_to_the_hooks_of_a_base(tmp_path):
    text = """\
_base_ = 'base.py'
custom_hooks = _base_.custom_hooks + [dict(type='CheckNanHook'), {}]
"""
    base = "custom_hooks = [dict(type='SyncBuffersHook')]\n"
    child = Migration(tmp_path, text, base=base)
    assert 'custom_hooks = _base_.custom_hooks + [{}]' in child.new


@pytest.mark.parametrize(
    ('name', 'is_alike'),
    [
        ('MyNaNHook', True),
        ('LossNanHook', True),
        ('NonFiniteGradHook', True),
        ('CheckInvalidLossV2Hook', True),
        ('NanGuardHook', False),
        ('FinanceHook', False),
        ('EMAHook', False),
    ],
)
def test_what_sounds_like_one(name, is_alike, tmp_path):
    assert looks_alike(name) == is_alike
    migration = Migration(
        tmp_path,
        f'model = dict()\noptim_wrapper = dict({SGD})\n'
        f"custom_hooks = [dict(type='{name}')]\n",
    )
    assert ('looks like a guard of your own' in migration.left) == is_alike
    assert name in migration.new


@pytest.mark.parametrize(
    ('kind', 'base'),
    [
        ('MyNaNOptimWrapper', FP32),
        ('MyAmpOptimWrapper', FP16),
        ('MyDeepSpeedOptimWrapper', DEEPSPEED),
        ('ApexOptimWrapper', FP16),
    ],
)
def test_a_wrapper_that_is_not_known_stays(kind, base, tmp_path):
    text = f"model = dict()\noptim_wrapper = dict(type='{kind}', {SGD})\n"
    migration = Migration(tmp_path, text)
    assert migration.new == text
    assert f'line 2: {kind}' in migration.left
    assert base in migration.left


@pytest.mark.parametrize('is_inherited', [True, False])
def test_the_wrapper_of_deepspeed(is_inherited, tmp_path):
    text = f"optim_wrapper = dict(type='DeepSpeedOptimWrapper', {SGD})\n"
    child = "_base_ = 'base.py'\nmodel = dict()\n"
    if is_inherited:
        migration = Migration(tmp_path, child, base=text)
    else:
        migration = Migration(tmp_path, f'model = dict()\n{text}')
    assert migration.cfg['optim_wrapper']['type'] == DEEPSPEED
    assert not migration.left
    named = Migration(tmp_path, f'model = dict()\n{text}', 'full')
    assert '--guard to tools/train.py' in named.left


def test_classes_of_a_new_style_config(tmp_path):
    text = """\
from torch.optim import SGD

optim_wrapper = dict(
    type=NaNSafeOptimWrapper, max_skips=9, optimizer=dict(type=SGD, lr=0.1))
model = dict()
"""
    text = f'from mmnanguard.not_there import NaNSafeOptimWrapper\n{text}'
    migration = Migration(tmp_path, text)
    wrapper = migration.cfg['optim_wrapper']
    assert wrapper['type'] == FP32
    assert wrapper['guard'] == dict(max_consecutive_skips=9)


@pytest.mark.parametrize(
    ('guard', 'half', 'expected'),
    [
        ('fp32', True, dict(type=FP32)),
        ('fp16', False, dict(type=FP16, dtype='float16')),
        ('bf16', True, dict(type=FP16, dtype='bfloat16')),
        ('full', True, dict(type=FP16, dtype='float16', loss_scale=64.0)),
        ('full', False, dict(type=FP32)),
    ],
)
@pytest.mark.parametrize('is_1x', [True, False])
def test_the_guard_that_was_asked_for(guard, half, expected, is_1x, tmp_path):
    if is_1x:
        text = f'optimizer = {SGD.partition("=")[2]}\n'
        text += 'fp16 = dict(loss_scale=64.)\n' * half
    else:
        amp = "type='AmpOptimWrapper', loss_scale=64.0, " * half
        text = f'optim_wrapper = dict({amp}{SGD})\n'
    migration = Migration(tmp_path, f'model = dict()\n{text}', guard)
    wrapper = migration.cfg['optim_wrapper']
    policy = wrapper.pop('guard', {})
    assert ('when_exhausted' in policy) == (guard == 'full')
    assert ('rollback' in migration.cfg['default_hooks']) == (guard == 'full')
    assert wrapper == dict(expected, optimizer=dict(type='SGD', lr=0.1))


def test_each_reason_is_one_line():
    for hand in (*WRAPPERS.values(), *HOOKS.values()):
        assert hand.why
        assert '\n' not in hand.why
        assert len(hand.why) < 130
