"""The updates that a benchmark compares: guarded, MMEngine's, and others."""

import copy
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch.nn.utils import clip_grad_norm_

from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper


class Side:
    """An update that can be repeated from the same gradients.

    Args:
        setting: Model, gradients, a function that builds the optimizer, the
            norm to clip to or None, and whether the loss is scaled.
    """

    def __init__(self, setting):
        model, self.grads, build_optimizer, self.clip, self.is_fp16 = setting
        self.model = copy.deepcopy(model)
        self.params = list(self.model.parameters())
        self.device = self.params[0].device.type
        self.loss = torch.zeros((), device=self.device)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.is_fp16)
        self.optimizer = build_optimizer(self.params)
        self.set_up()
        # The first loss creates the scale.
        self.scaler.scale(self.loss)

    def set_up(self):
        """Build what all updates share."""

    def prepare(self):
        """Set gradients as backward does.

        They are also held here, so that freeing them is not timed.
        """
        scale = self.scaler.get_scale()
        self.scaled = [grad * scale for grad in self.grads]
        for param, grad in zip(self.params, self.scaled):
            param.grad = grad


class BareStep(Side):
    """An update without scale, clip and guard: the least possible."""

    def prepare(self):
        """Set gradients that are not scaled."""
        self.scaler = torch.amp.GradScaler(self.device, enabled=False)
        super().prepare()

    def run(self):
        """Run the update."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's wrapper for half precision, without its refusal of a CPU."""

    def __init__(self, optimizer, clip_grad):
        OptimWrapper.__init__(self, optimizer, clip_grad=clip_grad)
        self.device = optimizer.param_groups[0]['params'][0].device.type
        self.loss_scaler = torch.amp.GradScaler(self.device)
        self._scale_update_param = None

    @contextmanager
    def optim_context(self, model):
        """Enter autocast, which MMEngine's own function refuses here."""
        with OptimWrapper.optim_context(self, model), torch.autocast(
            self.device
        ):
            yield


class MMEngine(Side):
    """The update of MMEngine's own wrappers."""

    def wrapper_types(self):
        """Return the wrappers for float32 and for float16."""
        is_cuda = self.device == 'cuda'
        return OptimWrapper, AmpOptimWrapper if is_cuda else CpuAmpOptimWrapper

    def set_up(self):
        """Build the wrapper."""
        clip_grad = self.clip and dict(max_norm=self.clip)
        build = self.wrapper_types()[self.is_fp16]
        self.wrapper = build(optimizer=self.optimizer, clip_grad=clip_grad)
        self.scaler = getattr(self.wrapper, 'loss_scaler', self.scaler)

    def run(self):
        """Run the update."""
        with self.wrapper.optim_context(self.model):
            pass
        self.wrapper.step()
        self.wrapper.zero_grad()


class Guarded(MMEngine):
    """The update of the guarded wrappers."""

    def wrapper_types(self):
        """Return the wrappers for float32 and for float16."""
        amp = partial(NanGuardAmpOptimWrapper, dtype='float16')
        return NanGuardOptimWrapper, amp

    def run(self):
        """Run the update."""
        # ``backward`` would do this, which is not timed.
        self.wrapper.guard.add_loss(self.loss)
        super().run()


class IsnanLoop(Side):
    """The check for NaN that people write into their training loop."""

    def run(self):
        """Run the update."""
        self.scaler.unscale_(self.optimizer)
        is_bad = False
        for param in self.params:
            if param.grad is not None and param.grad.isnan().any():
                is_bad = True
        if is_bad:
            self.optimizer.zero_grad()
            self.scaler.update()
            return
        if self.clip:
            clip_grad_norm_(self.params, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Accelerate(Side):
    """The update of Hugging Face's accelerate."""

    def set_up(self):
        """Build the library's objects."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        is_cpu = self.device == 'cpu'
        self.accelerator = Accelerator(
            cpu=is_cpu,
            mixed_precision='fp16' if self.is_fp16 and not is_cpu else 'no',
        )
        if self.is_fp16:
            if is_cpu:
                # It refuses float16 on a CPU, so that is set afterwards.
                self.accelerator.native_amp = True
                self.accelerator.state._mixed_precision = 'fp16'
                self.accelerator.scaler = self.scaler
            self.scaler = self.accelerator.scaler
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)

    def run(self):
        """Run the update."""
        if self.clip:
            self.accelerator.clip_grad_norm_(self.params, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Lightning(Side):
    """The update of Lightning Fabric: the Trainer's without callbacks."""

    def set_up(self):
        """Build the library's objects."""
        from lightning.fabric import Fabric
        from lightning.fabric.plugins import MixedPrecision

        plugins = []
        if self.is_fp16:
            half = MixedPrecision('16-mixed', self.device, self.scaler)
            plugins = [half]
        accelerator = 'cpu' if self.device == 'cpu' else 'gpu'
        self.fabric = Fabric(
            accelerator=accelerator, devices=1, plugins=plugins
        )
        self.fabric_model, self.optimizer = self.fabric.setup(
            self.model, self.optimizer
        )

    def run(self):
        """Run the update."""
        if self.clip:
            self.fabric.clip_gradients(
                self.fabric_model, self.optimizer, max_norm=self.clip
            )
        self.optimizer.step()
        self.optimizer.zero_grad()


GUARDED = 'mmnanguard'
SIDES = {
    GUARDED: Guarded,
    'MMEngine': MMEngine,
    'bare step': BareStep,
    'isnan loop': IsnanLoop,
    'accelerate': Accelerate,
    'Lightning': Lightning,
}
