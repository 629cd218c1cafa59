"""What configs and readers depend on: changing it means changing this."""

import dataclasses
import subprocess
import sys

import pytest
from mmengine.registry import (
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

import mmnanguard
from mmnanguard import core, hooks
from mmnanguard.core import GuardEvent, GuardPolicy
from mmnanguard.hooks import GuardListener
from mmnanguard.registry import CHECKS, CLIPS, FAULTS

WRAPPERS = ['NanGuardOptimWrapper', 'NanGuardAmpOptimWrapper']
HOOK_NAMES = [
    'AutopsyHook',
    'BadSamplesHook',
    'BatchDumpHook',
    'EventLogHook',
    'EventTextHook',
    'FaultInjectionHook',
    'Fp32ModulesHook',
    'InputGuardHook',
    'NanGuardHook',
    'RollbackHook',
    'StateAuditHook',
]
LAYERS = ['SafeAdaLNZero', 'SafeAttention', 'SafeRMSNorm']


@pytest.mark.parametrize('scope', ['', 'mmnanguard.'])
def test_registered_types(scope):
    for registry, names in (
        (DATASETS, ['ExcludeSamples']),
        (HOOKS, HOOK_NAMES),
        (OPTIM_WRAPPERS, WRAPPERS),
        (TRANSFORMS, ['ValidateSample']),
        (MODELS, LAYERS),
    ):
        for name in names:
            assert registry.get(scope + name).__name__ == name


def test_a_scoped_type_needs_no_import():
    """In a fresh process: the config imports nothing of mmnanguard."""
    code = (
        'from mmengine.registry import *\n'
        "print(type(HOOKS.build(dict(type='mmnanguard.NanGuardHook'))),\n"
        "      OPTIM_WRAPPERS.get('mmnanguard.NanGuardOptimWrapper'),\n"
        "      TRANSFORMS.get('mmnanguard.ValidateSample'),\n"
        "      DATASETS.get('mmnanguard.ExcludeSamples'))\n"
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'NanGuardHook' in done.stdout
    assert 'NanGuardOptimWrapper' in done.stdout
    assert 'ValidateSample' in done.stdout
    assert 'ExcludeSamples' in done.stdout


def test_bare_names_resolve_with_custom_imports():
    code = (
        'from mmengine.config import Config\n'
        'from mmengine.registry import HOOKS, init_default_scope\n'
        'Config.fromstring(\'custom_imports=dict(imports=["mmnanguard"])\',\n'
        "                  '.py')\n"
        "init_default_scope('mmengine')\n"
        "print(HOOKS.build(dict(type='NanGuardHook')))\n"
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
    )
    assert 'NanGuardHook' in done.stdout, done.stderr


def test_core_needs_neither_torch_nor_mmengine():
    """A report runs where nothing is installed."""
    code = (
        'import sys\n'
        'class Refuse:\n'
        '    def find_spec(self, name, *args):\n'
        "        if name.split('.')[0] in ('torch', 'mmengine'):\n"
        '            raise ModuleNotFoundError(name)\n'
        'sys.meta_path.insert(0, Refuse())\n'
        'import importlib.util\n'
        'find = importlib.util.find_spec\n'
        'importlib.util.find_spec = lambda name, *args: (\n'
        "    None if name in ('torch', 'mmengine') else find(name, *args))\n"
        'import mmnanguard.core as core\n'
        'from mmnanguard.report import read_events\n'
        "print(core.GuardPolicy(), read_events('nowhere'))\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert 'GuardPolicy' in done.stdout, done.stderr


def test_checks():
    CHECKS.import_from_location()
    names = {'Finite', 'NotDegenerate', 'NotEmpty', 'Range'}
    assert names <= set(CHECKS.module_dict)


def test_clip_rules():
    CLIPS.import_from_location()
    names = {'AdaptiveGradClip', 'AutoClip', 'TieredClip', 'ZClip'}
    assert names <= set(CLIPS.module_dict)
    assert FAULTS.name == 'fault'  # the faults are all users' own


def test_what_extensions_inherit_from():
    members = {'__call__', 'after', 'to_dict', 'with_state', 'coefficient'}
    assert members <= set(dir(core.ClipRule))
    assert core.ClipRule.norm_type == 2.0
    assert core.ClipRule.STATE
    listener = ['after_guard_event', 'after_guard_row', 'after_audit']
    own = [name for name in vars(GuardListener) if name[0] != '_']
    assert own == listener
    assert {'Audit', 'GuardListener', *HOOK_NAMES} == set(hooks.__all__)


def test_policy_keys():
    assert [field.name for field in dataclasses.fields(GuardPolicy)] == [
        'max_consecutive_skips',
        'max_skip_rate',
        'skip_rate_window',
        'proven_after',
        'when_exhausted',
        'accumulation',
        'spike',
        'lr_backoff',
        'divergence',
    ]


def test_event_keys():
    row = GuardEvent(core.Action.SKIP, core.Cause.LOSS_NONFINITE, 1).to_row()
    assert list(row) == [
        'schema',
        'kind',
        'id',
        'run',
        'attempt',
        'time',
        'iter',
        'epoch',
        'batch_idx',
        'optimizer',
        'action',
        'cause',
        'ranks',
        'loss',
        'losses',
        'grad_norm',
        'lr',
        'loss_scale',
        'num_bad_params',
        'num_params',
        'params',
        'samples',
        'inputs',
        'watched',
        'consecutive_skips',
        'total_skips',
        'routine_overflows',
        'since',
        'spike',
        'clip_coef',
        'lr_factor',
        'micro_batches',
    ]


def test_exported_names():
    assert mmnanguard.__all__ == ['__version__', 'apply_guard', 'watch']
    for name in core.__all__:
        assert hasattr(core, name)
