"""The project of docs/en/extending.md, made from its blocks and trained."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from docs_shell import ROOT, blocks

PAGE = ROOT / 'docs' / 'en' / 'extending.md'
FILE = re.compile(r'# (my_project/\w+\.py)\n')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with the project and a config of all config blocks."""
    folder = tmp_path_factory.mktemp('extending')
    (folder / 'my_project').mkdir()
    (folder / 'my_project' / '__init__.py').touch()
    base = str(ROOT / 'configs' / 'digits' / 'guarded_fp16.py')
    config = [f'_base_ = [{base!r}]']
    for block in blocks(PAGE):
        if block.language != 'python':
            continue
        file = FILE.match(block.text)
        if file:
            (folder / file[1]).write_text(block.text)
        else:
            config.append(block.text)
    # The page says so: imports of the parent are repeated, another kind of
    # clip_grad is deleted.
    config.append("custom_imports['imports'] += ['configs.digits.digits']")
    config.append("optim_wrapper['clip_grad']['_delete_'] = True")
    (folder / 'own.py').write_text('\n'.join(config))
    return folder


def run(folder, *command):
    """Run Python where it finds the project; return what it prints."""
    paths = [str(folder), str(ROOT)]
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *command],
        cwd=str(folder),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_project_trains(folder):
    log = run(
        folder,
        str(ROOT / 'tools' / 'train.py'),
        'own.py',
        '--work-dir=work',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        'default_hooks.autopsy.type=mmnanguard.AutopsyHook',
        'optim_wrapper.clip_grad.factor=0.5',
    )
    # The line may go on in the next one.
    assert 'MeanClip factor=0.5 momentum=0.9' in ' '.join(log.split())
    assert 'is changed by enlarge' in log
    assert re.search(r'autopsy of \w+-30 is written', log)

    (path,) = (folder / 'work').glob('*/nanguard/events.jsonl')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    updates = [row for row in rows if row['kind'] == 'update']
    skipped = {row['iter']: row for row in updates}
    causes = [skipped[number]['cause'] for number in (30, 60)]
    assert causes == ['loss_nonfinite', 'norm_overflow']
    assert skipped[60]['params'][0]['name'] == 'head.weight'

    lines = (folder / 'work' / 'skipped_samples.txt').read_text().splitlines()
    assert lines[0].startswith('30 loss_nonfinite ')
    assert [line.split(' ', 2)[2] for line in lines if line[:3] == '30 '] == (
        skipped[30]['samples']
    )

    saved = torch.load(
        folder / 'work' / 'epoch_2.pth', map_location='cpu', weights_only=False
    )
    clip = saved['optimizer']['guard']['clip']
    assert clip['type'] == 'MeanClip'
    assert clip['mean'] > 0
    (path,) = (folder / 'work').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    coefs = [row.get('guard/clip_coef', 1.0) for row in rows]
    assert min(coefs) < 1


def test_the_check_finds_what_it_looks_for(folder):
    code = (
        'from mmengine.config import Config\n'
        'from mmengine.registry import TRANSFORMS\n'
        "cfg = Config.fromfile('own.py')\n"
        'validate = TRANSFORMS.build(cfg.validate)\n'
        'for num_boxes in (100, 101):\n'
        '    print(validate(dict(gt_bboxes=[[0] * 4] * num_boxes)) is None)\n'
    )
    answers = re.findall('^(True|False)$', run(folder, '-c', code), re.M)
    assert answers == ['False', 'True']
