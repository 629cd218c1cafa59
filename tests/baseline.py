"""MMEngine's own AMP wrapper on a CPU, to compare with.

It refuses to be built there and its scaler would disable itself; step and
backward, inherited, are MMEngine's own code.
"""

from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from mmnanguard.numerics.update.grad_scaler import GradScaler


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    def __init__(self, loss_scale='dynamic', dtype='float16', **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        keys = {}
        if isinstance(loss_scale, float):
            self._scale_update_param = loss_scale
            keys = dict(init_scale=loss_scale)
        elif isinstance(loss_scale, dict):
            keys = loss_scale
        self.cast_dtype = getattr(torch, dtype)
        # The tests may run on an accelerator.
        param = self.optimizer.param_groups[0]['params'][0]
        self.device = param.device.type
        self.loss_scaler = GradScaler(
            self.device, enabled=dtype == 'float16', **keys
        )

    @contextmanager
    def optim_context(self, model):
        with OptimWrapper.optim_context(self, model), torch.autocast(
            self.device, dtype=self.cast_dtype
        ):
            yield
