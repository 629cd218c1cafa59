"""The digits with 20 bad samples among them, and what can befall a loader."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import get_worker_info

from configs.digits.digits import DigitsDataset

NAN, INF = float('nan'), float('inf')
# 20 indices, each with the value of one of its pixels, or its label.
PIXELS = {17: NAN, 101: NAN, 250: NAN, 603: NAN, 1436: NAN}
PIXELS.update({0: INF, 333: -INF, 700: INF, 701: INF, 1200: -INF})
PIXELS.update({45: 99.0, 46: 1e30, 512: 16.5, 1024: 17.0})
PIXELS.update({64: -1.0, 777: -1e-3, 1399: -99.0})
LABELS = {8: -100, 900: 10, 1111: 255}
PLANTED = sorted([*PIXELS, *LABELS])
NAMES = [f'digits/train/{index:06d}' for index in PLANTED]
CHECKS = [
    'Finite',
    dict(type='Range', key='inputs', min=0, max=16),
    dict(type='Range', key='data_samples.gt_label', min=0, max=9),
]

VALIDATE = dict(
    type='mmnanguard.ValidateSample',
    checks=[
        dict(type='Range', key='img', min=0, max=16),
        dict(type='Range', key='gt_label', min=0, max=9),
    ],
)


@DATASETS.register_module()
class PlantedDigits(DigitsDataset):
    def load_data_list(self):
        rows = super().load_data_list()
        for index, value in PIXELS.items():
            rows[index]['img'] = rows[index]['img'].copy()
            rows[index]['img'][3, 4] = value
        for index, label in LABELS.items():
            rows[index]['gt_label'] = label
        return rows


@TRANSFORMS.register_module()
class RollDigits:
    """A random augmentation that draws from each of the three sources."""

    def __call__(self, results):
        shift = [
            random.randrange(3),
            np.random.randint(3) + int(torch.randint(3, ())),
        ]
        results['img'] = np.roll(results['img'], shift, axis=(0, 1))
        return results


@TRANSFORMS.register_module()
class KillLoader:
    """Kill the process that walks the dataset, once, at a certain sample."""

    def __call__(self, results):
        flag = os.environ.get('KILL_FLAG')
        if flag and results['sample_idx'] == 800 and not Path(flag).exists():
            Path(flag).touch()
            pid = os.getppid() if get_worker_info() else os.getpid()
            os.kill(pid, signal.SIGKILL)
        return results


@TRANSFORMS.register_module()
class Mishap:
    """Raise at some samples, return None at others."""

    def __init__(self, raises=(), drops=()):
        self.raises = raises
        self.drops = drops

    def __call__(self, results):
        if results['sample_idx'] in self.raises:
            raise OSError('truncated file')
        return None if results['sample_idx'] in self.drops else results
