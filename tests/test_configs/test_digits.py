"""The runs on real digits: the data, the configs, and that they learn."""

import importlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
WRAPPERS = {
    'plain_fp32': 'OptimWrapper',
    'guarded_fp32': 'NanGuardOptimWrapper',
    'guarded_fp16': 'NanGuardAmpOptimWrapper',
    'drill_fp16': 'NanGuardAmpOptimWrapper',
}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def load(name, work_dir):
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{name}.py')
    cfg.work_dir = str(work_dir)
    return cfg


def make_dataset(split):
    digits = importlib.import_module('configs.digits.digits')
    return digits.DigitsDataset(split, pipeline=[digits.PackDigits()])


def test_the_two_splits_hold_each_digit_of_scikit_learn_once():
    samples = [*make_dataset('train'), *make_dataset('val')]
    images = [sample['inputs'].flatten().tolist() for sample in samples]
    assert sorted(images) == sorted(load_digits().data.tolist())


def test_the_split_is_stratified_and_never_moves():
    labels = {}
    for split in ('train', 'val'):
        data = make_dataset(split)
        labels[split] = [int(item['data_samples'].gt_label) for item in data]
    assert {key: len(value) for key, value in labels.items()} == {
        'train': 1437,
        'val': 360,
    }
    assert set(Counter(labels['val']).values()) <= {35, 36, 37}
    assert labels['train'][:10] == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8]
    assert labels['val'][:10] == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


def test_a_sample_says_who_it_is():
    dataset = make_dataset('train')
    sample = dataset[123]['data_samples']
    assert sample.metainfo == dict(
        sample_idx=123, img_path='digits/train/000123'
    )
    inputs = dataset[123]['inputs']
    assert (inputs.shape, inputs.dtype) == ((1, 8, 8), torch.float32)
    assert inputs.max() > 1  # pixels: the preprocessor scales them


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'test', expected 'train' or 'val'"):
        make_dataset('test')


@pytest.mark.parametrize('name', WRAPPERS)
def test_config_builds_a_runner(name, tmp_path):
    runner = Runner.from_cfg(load(name, tmp_path))
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert type(wrapper).__name__ == WRAPPERS[name]
    hooks = {type(hook).__name__ for hook in runner.hooks}
    assert ('NanGuardHook' in hooks) == name.startswith(('guarded', 'drill'))
    assert ('FaultInjectionHook' in hooks) == name.startswith('drill')


def test_mmengine_refuses_plain_fp16_without_a_gpu(tmp_path, monkeypatch):
    amp = importlib.import_module(
        'mmengine.optim.optimizer.amp_optimizer_wrapper'
    )
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: False)
    runner = Runner.from_cfg(load('plain_fp16', tmp_path))
    with pytest.raises(AssertionError, match='only available training on gpu'):
        runner.build_optim_wrapper(runner.optim_wrapper)


def test_guarded_configs_differ_from_plain_ones_by_the_guard_alone(tmp_path):
    for precision in ('fp32', 'fp16'):
        plain = load(f'plain_{precision}', tmp_path)
        guarded = load(f'guarded_{precision}', tmp_path)
        guarded.optim_wrapper.type = plain.optim_wrapper.type
        for key in ('nan_guard', 'event_log'):
            del guarded.default_hooks[key]
        assert guarded.to_dict() == plain.to_dict()


def test_two_epochs_learn_most_of_it(tmp_path):
    cfg = load('plain_fp32', tmp_path)
    cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    accuracy = runner.message_hub.get_scalar('val/accuracy').current()
    assert accuracy > 85  # 10 is chance; 8 epochs give 99
