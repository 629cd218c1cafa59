"""Optimizers of DeepSpeed, with stand-ins for the kernels that it compiles.

A compiler needs minutes, and the kernels of Lion and LAMB are for a GPU only.
With ``KERNELS=compiled`` in the environment those of a CPU are compiled.
"""

import os
import sys
from types import SimpleNamespace

IS_COMPILED = os.environ.get('KERNELS') == 'compiled'
NAMES = ['FusedAdam', 'DeepSpeedCPUAdam']
if not IS_COMPILED:
    NAMES += ['FusedLion', 'FusedLamb']


def adam(params, grads, exp_avgs, exp_avg_sqs, lr, betas, eps, step):
    for param, grad, exp_avg, exp_avg_sq in zip(
        params, grads, exp_avgs, exp_avg_sqs
    ):
        exp_avg.lerp_(grad, 1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        mean = exp_avg / (1 - betas[0] ** step)
        root = (exp_avg_sq / (1 - betas[1] ** step)).sqrt()
        param.sub_(lr * mean / (root + eps))


class FusedAdam:
    @staticmethod
    def multi_tensor_adam(_, flag, tensors, lr, beta1, beta2, eps, step, *__):
        grads, params, *moments = tensors
        adam(params, grads, *moments, lr, (beta1, beta2), eps, step)


class FusedLion:
    @staticmethod
    def multi_tensor_lion(_, flag, tensors, lr, beta1, beta2, *__):
        for grad, param, exp_avg in zip(*tensors):
            param.sub_(lr * exp_avg.lerp(grad, 1 - beta1).sign())
            exp_avg.lerp_(grad, 1 - beta2)


class FusedLamb:
    @staticmethod
    def lamb(
        param, copy, exp_avg, exp_avg_sq, grad, lr, beta1, beta2, *settings
    ):
        largest, least, eps, scale, step, *_ = settings
        before, norm = param.clone(), param.norm()
        adam(
            *([param], [grad / scale], [exp_avg], [exp_avg_sq]),
            *(lr, (beta1, beta2), eps, step),
        )
        change = param - before
        ratio = (norm * lr / change.norm()).nan_to_num(1.0)
        ratio = ratio.clamp(least, largest)
        param.copy_(before + ratio * change)
        return ratio


class CPUAdam:
    @staticmethod
    def create_adam(*_):
        pass

    destroy_adam = create_adam

    @staticmethod
    def adam_update(_, step, lr, beta1, beta2, eps, *settings):
        *_, param, grad, exp_avg, exp_avg_sq = settings
        adam(
            *([param], [grad], [exp_avg], [exp_avg_sq]),
            *(lr, (beta1, beta2), eps, step),
        )


def find(name):
    """Return an optimizer of DeepSpeed by its name, which can step here."""
    from deepspeed.ops import adam, lamb, lion

    rooms = dict(FusedLion=lion, FusedLamb=lamb)
    optimizer = getattr(rooms.get(name, adam), name)
    if not IS_COMPILED:
        kernel = name.replace('DeepSpeed', '')
        builder = SimpleNamespace(load=lambda: globals()[kernel])
        module = sys.modules[optimizer.__module__]
        setattr(module, f'{kernel}Builder', lambda: builder)
    return optimizer
