"""Hooks that end a run at a non-finite loss, and hooks that do not."""

import math
import sys

import torch
from mmengine.hooks import Hook


def is_bad(value):
    return not torch.isfinite(value).all()


def check(value):
    if math.isnan(value.detach()):
        raise ValueError('it is NaN')


class Asserts(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        assert torch.isfinite(outputs['loss']), 'it is not finite'


class AsksAFunction(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        for value in outputs.values():
            if is_bad(value):
                raise SystemExit(1)


class CallsAFunction(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if self.every_n_train_iters(runner, 1):
            check(outputs['loss'])


class CallsAMethod(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if not self.is_fine(outputs):
            self.stop()

    def is_fine(self, values):
        for value in values.values():
            if is_bad(value):
                return False
        return 'loss' in values

    def stop(self):
        raise RuntimeError('stopped')


class Inherits(CallsAMethod):
    def is_fine(self, values):
        return bool(torch.isfinite(sum(values.values())))


class Counts(Hook):
    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        loss = outputs['loss']
        if loss != loss:
            self.count += 1
        else:
            self.count = 0
        if self.count >= 1:
            runner.train_loop.stop_training = True


class ReturnsEarly(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if torch.isfinite(outputs['loss']):
            return
        raise RuntimeError('stopped')


class AsksTheTensor(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if outputs['loss'].isnan().sum().item() > 0:
            sys.exit(1)


class DoesMore(Asserts):
    def before_train(self, runner):
        runner.message_hub.update_info('before', True)


class Warns(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if torch.isnan(outputs['loss']):
            runner.logger.warning('it is NaN')


class LooksAtWeights(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        for param in runner.model.parameters():
            assert torch.isfinite(param).all()


class LooksAtTheBatch(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch):
        assert torch.isfinite(data_batch['inputs'][0]).all() or True


class LooksAtValidation(Hook):
    def after_val_epoch(self, runner, metrics):
        assert not math.isnan(metrics['loss'])


class WantsALoss(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if 'loss' not in outputs:
            raise KeyError('loss')


STOPPING = (
    Asserts,
    AsksAFunction,
    CallsAFunction,
    CallsAMethod,
    Inherits,
    Counts,
    ReturnsEarly,
    AsksTheTensor,
    DoesMore,
)
HARMLESS = (
    Warns,
    LooksAtWeights,
    LooksAtTheBatch,
    LooksAtValidation,
    WantsALoss,
)
