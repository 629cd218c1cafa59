"""mmpretrain's own launcher starts its own config, guarded by options alone.

Nothing of mmpretrain is changed or imported here: each test is one process,
started the way a user would start it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from imagenet_digits import make_imagenet_digits

from mmnanguard.safe_load import allow_mmengine_checkpoints

# Where `make test` puts mmpretrain and torchvision, apart from the rest.
PACKAGES = Path(sys.prefix) / 'mmpretrain'
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(),
    reason=f'needs requirements/mmpretrain.txt in {PACKAGES}',
)
MIM = PACKAGES / 'mmpretrain' / '.mim'
CONFIG = 'resnet/resnet18_8xb32_in1k.py'
BATCH_SIZE = 8
NUM_ITERS = 8

# What makes an ImageNet config fit for eight iterations on a CPU. The net is
# thin because convolutions in float16 take seconds there at full width.
SMALL = (
    'model.backbone.stem_channels=8',
    'model.backbone.base_channels=8',
    'model.head.in_channels=64',
    'train_dataloader.dataset.pipeline.1.scale=32',
    'val_dataloader.dataset.pipeline.1.scale=36',
    'val_dataloader.dataset.pipeline.2.crop_size=32',
    *(
        f'{split}_dataloader.{option}'
        for split in ('train', 'val')
        for option in (
            f'batch_size={BATCH_SIZE}',
            'num_workers=0',
            'persistent_workers=False',
        )
    ),
    'train_cfg.max_epochs=1',
    'optim_wrapper.optimizer.lr=0.01',
    'randomness.seed=0',
)

# A command line has no list of dicts; numbered keys stand for one. The value
# is left to its default: as an option, nan would become a float that the
# dumped config cannot be read back with.
HOOKS = (
    'default_hooks.nan_guard.type=mmnanguard.NanGuardHook',
    'default_hooks.event_log.type=mmnanguard.EventLogHook',
    'default_hooks.fire_drill.type=mmnanguard.FaultInjectionHook',
    'default_hooks.fire_drill.faults.0.iter=3',
    'default_hooks.fire_drill.faults.0.site=grad',
    'default_hooks.fire_drill.faults.1.iter=5',
    'default_hooks.fire_drill.faults.1.site=input',
)


@pytest.fixture
def data_root(tmp_path):
    return make_imagenet_digits(
        tmp_path / 'data', num_train=BATCH_SIZE * NUM_ITERS, num_val=16
    )


def run(*command):
    path = (TESTS / 'mmpretrain_env', PACKAGES, TESTS.parent)
    # One thread: tiny operations wait for one another on a busy machine.
    env = {
        'PYTHONPATH': os.pathsep.join(map(str, path)),
        'OMP_NUM_THREADS': '1',
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tempfile.gettempdir(),
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def train(launch, data_root, work_dir, options):
    run(
        *launch,
        *('--work-dir', work_dir, '--cfg-options'),
        *SMALL,
        f'train_dataloader.dataset.data_root={data_root}',
        f'val_dataloader.dataset.data_root={data_root}',
        *options,
    )


def read_rows(work_dir, kind='update'):
    (file,) = work_dir.glob('*/nanguard/events.jsonl')
    # Bare NaN and Infinity are not JSON: the callback is called for them.
    rows = [
        json.loads(line, parse_constant=pytest.fail)
        for line in file.read_text().splitlines()
    ]
    return [row for row in rows if row['kind'] == kind]


@pytest.mark.parametrize(
    ('wrapper', 'first_cause', 'scales'),
    [
        pytest.param(
            ('type=mmnanguard.NanGuardOptimWrapper',),
            'grad_nonfinite',
            None,
            id='fp32',
        ),
        # 512 arrives as an int. It is not proven after two updates, so the NaN
        # is taken for the overflow that it looks like.
        pytest.param(
            (
                'type=mmnanguard.NanGuardAmpOptimWrapper',
                'dtype=float16',
                'loss_scale=512',
            ),
            'scale_overflow',
            [(512.0, 256.0), (256.0, 256.0)],
            id='fp16',
        ),
    ],
)
def test_faults_are_skipped_and_told(
    data_root, tmp_path, wrapper, first_cause, scales
):
    work_dir = tmp_path / 'work_dir'
    train(
        [MIM / 'tools' / 'train.py', MIM / 'configs' / CONFIG],
        data_root,
        work_dir,
        [f'optim_wrapper.{option}' for option in wrapper] + [*HOOKS],
    )

    allow_mmengine_checkpoints()
    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=True)
    weights = checkpoint['state_dict']
    assert checkpoint['meta']['iter'] == NUM_ITERS
    assert [
        name for name, tensor in weights.items() if not tensor.isfinite().all()
    ] == []

    updates = read_rows(work_dir)
    assert [(row['iter'], row['action'], row['cause']) for row in updates] == [
        (3, 'skip', first_cause),
        (5, 'skip', 'loss_nonfinite'),
    ]

    images = {str(path) for path in (data_root / 'train').iterdir()}
    samples = [set(row['samples']) for row in updates]
    assert [len(batch & images) for batch in samples] == [BATCH_SIZE] * 2
    assert samples[0].isdisjoint(samples[1])

    grad_fault = updates[0]
    assert grad_fault['params'][0]['name'] in weights
    assert grad_fault['params'][0]['kind'] == 'nan'
    if scales:
        assert [
            (row['loss_scale']['before'], row['loss_scale']['after'])
            for row in updates
        ] == scales


def test_all_hooks_and_a_replay_in_another_process(data_root, tmp_path):
    """The dump alone leads to the loss of training, bit for bit."""
    work_dir = tmp_path / 'work_dir'
    tool = TESTS.parent / 'tools' / 'train.py'
    launch = [tool, f'mmpretrain::{CONFIG}', '--guard', 'full']
    options = [*HOOKS[2:], 'default_hooks.dump.save_weights=True']
    train(launch, data_root, work_dir, options)
    assert [row['iter'] for row in read_rows(work_dir)] == [3, 5]

    (path,) = work_dir.glob('*/nanguard/dumps/iter_3_rank0.pt')
    run(TESTS.parent / 'tools' / 'replay.py', path, '--device', 'cpu')
    row = json.loads(path.with_suffix('.json').read_text())
    live = read_rows(work_dir, 'autopsy')[0]
    assert {key: row[key] for key in live} == live
    assert row['exact']
    assert not row['repeats']
    assert row['outputs']['backbone']['is_finite']
