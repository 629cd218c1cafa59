"""The public surface equals the table in public_surface.py, additions
included: whoever changes it on purpose changes the table.
"""

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import mmengine.registry
import public_surface as expected
import pytest
from mmengine.registry import Registry
from mmengine.runner import Runner
from written_by_0_1.make import config, train

import mmnanguard
from mmnanguard import core, registry
from mmnanguard.__main__ import TOOLS
from mmnanguard.core import GuardEvent
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.core.rows.end_row import EndRow
from mmnanguard.numerics.checkpoints.load_plain import load_plain
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.safe_load import allow_mmengine_checkpoints

ROOT = Path(__file__).parents[1]
MMENGINE_FILES = [
    '<time>.py',
    '<time>/<time>.log',
    '<time>/vis_data/<time>.json',
    '<time>/vis_data/config.py',
    '<time>/vis_data/scalars.json',
    'iter_12.pth',
    'iter_24.pth',
    'last_checkpoint',
]
MMENGINE_KEYS = ['meta', 'state_dict', 'message_hub', 'optimizer']
MODEL_SCALARS = ['loss', 'loss_cls', 'loss_size', 'lr', 'time', 'data_time']


def assert_listed(names, table_entry):
    """Compare with an entry of the table, whose names are sorted."""
    assert sorted(names) == table_entry.split()


def our_registries():
    registries = {}
    for name, value in vars(registry).items():
        if isinstance(value, Registry) and value.scope == 'mmnanguard':
            value.import_from_location()
            registries[name] = value
    return registries


# Names in the code


def test_exported_names():
    modules = ['mmnanguard']
    for module in pkgutil.iter_modules(mmnanguard.__path__):
        if not module.name.startswith('_'):
            modules.append(module.name)
    assert sorted(modules) == sorted(expected.EXPORTED)
    for name in modules:
        path = name if name == 'mmnanguard' else f'mmnanguard.{name}'
        module = importlib.import_module(path)
        exported = getattr(module, '__all__', [])
        assert_listed(exported, expected.EXPORTED[name])
        for exported_name in exported:
            assert hasattr(module, exported_name)


def test_registered_names():
    registries = our_registries()
    assert registries.keys() == expected.REGISTERED.keys()
    for name, our_registry in registries.items():
        our_names = []
        for type_name, cls in our_registry.module_dict.items():
            # Other tests register types of their own in this process.
            if cls.__module__.startswith('mmnanguard.'):
                our_names.append(type_name)
        assert_listed(our_names, expected.REGISTERED[name])


@pytest.mark.parametrize('scope', ['', 'mmnanguard.'])
def test_names_resolve_in_the_registries_of_mmengine(scope):
    for registry_name, names in expected.REGISTERED.items():
        root = getattr(mmengine.registry, registry_name, None)
        for name in names.split():
            if root is not None:
                assert root.get(scope + name).__name__ == name


def test_policy_keys():
    for name, keys in expected.POLICY_KEYS.items():
        fields = dataclasses.fields(getattr(core, name))
        assert [field.name for field in fields] == keys.split()


def test_tools_and_guards():
    assert_listed(TOOLS, expected.TOOLS)
    overlays = (ROOT / 'configs' / 'guards').glob('*.py')
    assert_listed([path.stem for path in overlays], expected.GUARDS)


def test_fields_of_an_event():
    row = GuardEvent(core.Action.SKIP, core.Cause.LOSS_NONFINITE, 1).to_row()
    assert list(row) == expected.ROW_FIELDS['update'].split()


# Names in what a run writes


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Train with all hooks, rows of all kinds and the switches for scalars."""
    if not HAS_CPU_SCALER:
        pytest.skip('float16 on a CPU needs torch>=2.3')
    cfg = config(tmp_path_factory.mktemp('surface'), 'surface')
    cfg.optim_wrapper.guard.accumulation = 'microbatch'
    cfg.optim_wrapper.guard.lr_backoff = dict(above=0.1)
    cfg.default_hooks.bad_samples = dict(
        type='mmnanguard.BadSamplesHook', interval=1
    )
    return train(Runner.from_cfg(cfg))


def test_row_fields(run):
    text = Path(run.log_dir, 'nanguard/events.jsonl').read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    kinds = {row['kind'] for row in rows}
    # The run is halted, and then there is no other end.
    assert kinds == expected.ROW_FIELDS.keys() - {'bypass', 'end'}
    for record in BypassRow(), EndRow():
        names = expected.ROW_FIELDS[record.KIND].split()
        assert list(record.to_row()) == names
    for row in rows:
        assert list(row) == expected.ROW_FIELDS[row['kind']].split()


def test_scalars(run):
    scalars = set(run.message_hub.log_scalars)
    scalars -= {f'train/{name}' for name in MODEL_SCALARS}
    assert_listed(scalars, expected.SCALARS)


def test_files(run):
    work_dir = Path(run.work_dir)
    files = set()
    for path in work_dir.rglob('*'):
        if path.is_file():
            name = path.relative_to(work_dir).as_posix()
            files.add(name.replace(run.timestamp, '<time>'))
    assert_listed(files - set(MMENGINE_FILES), expected.FILES)


def test_keys_of_files(run):
    allow_mmengine_checkpoints()
    checkpoint = load_plain(Path(run.work_dir, 'iter_24.pth'))
    ours = set(checkpoint) - set(MMENGINE_KEYS)
    assert_listed(ours, expected.CHECKPOINT_KEYS)
    assert_listed(checkpoint['optimizer'], expected.OPTIMIZER_KEYS)
    (path,) = Path(run.log_dir).glob('nanguard/dumps/*.pt')
    assert_listed(load_plain(path), expected.DUMP_KEYS)


# Imports


def test_a_scoped_type_needs_no_import():
    """A config imports nothing of mmnanguard, even in a fresh process."""
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
