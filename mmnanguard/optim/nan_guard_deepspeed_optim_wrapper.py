"""The guarded form of MMEngine's ``DeepSpeedOptimWrapper``."""

import logging
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional

import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard._console import say
from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.registry import OPTIM_WRAPPERS

from .deepspeed.engine_places import find_places
from .deepspeed.params import DeepSpeedParams
from .deepspeed.places import Places
from .deepspeed.refusals import check_engine
from .guard import Guard
from .guarded_step import guarded_step

__all__ = ['NanGuardDeepSpeedOptimWrapper']

MISSING = object()
KEYS = ('optimizer', 'clip_grad', 'guard')


@OPTIM_WRAPPERS.register_module()
class NanGuardDeepSpeedOptimWrapper(DeepSpeedOptimWrapper):
    """MMEngine's ``DeepSpeedOptimWrapper``, guarded.

    It guards ZeRO 0 to 3 in float32, float16 and bfloat16, with gradient
    accumulation, DeepSpeed's own clipping and offload of the optimizer to the
    CPU. An update commits or leaves no trace on all ranks: master weights,
    moments, half-precision weights, buffers and loss scale are as before. The
    engine counts a rejected update in ``skipped_steps``, and its own
    scheduler waits.

    The verdict is made inside ``engine.step()``, in the place of the
    optimizer's step, so that the engine's counters and boundaries stay its
    own. The guard moves the loss scale, with the settings of DeepSpeed's
    config.

    Args:
        optimizer: The optimizer, as in MMEngine.
        clip_grad: A clip by the norm of all gradients, see
            docs/en/clipping.md. It comes before DeepSpeed's
            ``gradient_clipping``, if that is set as well.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.
            ``accumulation='microbatch'`` is not possible.

    Raises:
        GuardConfigError: If an argument cannot work, for any other key, and
            once the strategy sets ``model``, for an engine that cannot be
            guarded: pipeline parallelism, experts, offload to NVMe, an
            unknown class of optimizer, and a few rarer ones.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        clip_grad: Optional[Dict[str, Any]] = None,
        guard: Optional[Dict[str, Any]] = None,
        **others: Any,
    ) -> None:
        if 'accumulative_counts' in others:
            raise GuardConfigError(
                'optim_wrapper.accumulative_counts has no effect with '
                "DeepSpeed: set gradient_accumulation_steps in the strategy's "
                'config.'
            )
        check_keys(others, KEYS, 'optim_wrapper')
        self.guard = Guard(
            optimizer, guard, clip_grad, params_type=DeepSpeedParams
        )
        if self.guard.policy.accumulation == 'microbatch':
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation='microbatch' is not "
                'possible with DeepSpeed, which adds micro-batches up in its '
                "own buffers. Take 'window', the default."
            )
        if self.guard.grad_rule is not None:
            raise GuardConfigError(
                f'optim_wrapper.clip_grad is {self.guard.grad_rule}, and '
                'DeepSpeed cuts gradients into flat parts. Take a clip by the '
                'norm of all gradients: max_norm, AutoClip, ZClip or '
                "TieredClip, or the strategy's gradient_clipping."
            )
        super().__init__(optimizer)  # type: ignore[no-untyped-call]
        self._places: Optional[Places] = None
        self._scale_is_unproven = False

    # MMEngine's strategy sets it once DeepSpeed has wrapped model and
    # optimizer.
    @property
    def model(self) -> Any:
        """MMEngine's wrapper of the engine."""
        return super().model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model
        # Not isinstance: a project's strategy may have a wrapper of its own.
        engine = model
        if hasattr(type(model), 'train_step'):
            engine = model.model
        self._bind(engine)

    def _bind(self, engine: Any) -> None:
        """Guard the updates of an engine."""
        check_engine(engine)
        self._engine = engine
        self._places = find_places(engine.optimizer, engine.module)
        params = self.guard.params
        assert isinstance(params, DeepSpeedParams)
        params.bind(self._places)
        params.engine_clip = float(engine.gradient_clipping())
        self.optimizer = engine.optimizer
        loss_scale = self._places.scale_config()
        if loss_scale is not None:
            device = next(iter(params)).device.type
            self.guard.scaler = GuardedGradScaler.from_config(
                loss_scale, device
            )
            # The limits of the guard end a run, and they tell why.
            self._places.scaler.raise_error_at_min_scale = False
            self._scale_is_unproven = True
        self.guard.coverage_warnings.set_length(self._accumulative_counts)
        engine.register_forward_pre_hook(self._before_forward)

    @property
    def _accumulative_counts(self) -> int:
        """The number of micro-batches of a window, under MMEngine's name."""
        if self._places is None:
            return 1
        return int(self._engine.gradient_accumulation_steps())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that the model computes with."""
        return next(iter(self.guard.params)).dtype

    def _before_forward(self, engine: Any, inputs: Any) -> None:
        module: nn.Module = engine.module
        if module.training:
            self.guard.open(module)

    def optim_context(self, model: nn.Module) -> None:
        """Refuse a run without an engine: an engine enters no context."""
        raise GuardConfigError(
            'optim_wrapper.type is NanGuardDeepSpeedOptimWrapper, and no '
            'engine of DeepSpeed trains: add strategy=dict('
            "type='DeepSpeedStrategy', ...) and runner_type='FlexibleRunner', "
            'or take NanGuardOptimWrapper.'
        )

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Run backward as MMEngine does, and note the loss.

        The first one syncs the device.
        """
        if self._scale_is_unproven and loss.requires_grad:
            self._scale_is_unproven = False
            loss.register_hook(self._look_at_scale)
        super().backward(loss, **kwargs)
        # Not before: if backward fails, the loss is in no gradient.
        self.guard.add_loss(loss.detach() / self._accumulative_counts)

    def _look_at_scale(self, grad: Tensor) -> None:
        """Look whether DeepSpeed has scaled the loss.

        With ZeRO 0, version 0.19 does not, but divides gradients by the
        scale: https://github.com/deepspeedai/DeepSpeed/pull/8393
        """
        scale = self.guard.scaler.get_scale()
        factor = float(grad) * self._accumulative_counts
        # A third is rounded.
        if scale == 1.0 or abs(factor - 1.0) > 0.01:
            return
        say(
            'DeepSpeed does not scale the loss, but it divides the gradients '
            f'by a loss scale of {scale:g}: steps are too small by that '
            'factor (https://github.com/deepspeedai/DeepSpeed/pull/8393). '
            'Take zero_optimization.stage=1, or bf16. The guard leaves this '
            'scale alone.',
            logging.WARNING,
        )
        self.guard.scaler = GuardedGradScaler(enabled=False)

    def step(self, **kwargs: Any) -> None:
        """End a micro-batch, and commit or reject the window it ends."""
        engine, params = self._engine, self.guard.params
        assert isinstance(params, DeepSpeedParams)
        params.step = partial(self._own_step, engine.optimizer.step)
        with ExitStack() as stack:
            for owner, name, value in (
                (engine.optimizer, 'step', self._guarded_step),
                (engine.optimizer, 'overflow', False),
                # In float32, an engine clips before it steps.
                (engine, 'clip_fp32_gradients', do_nothing),
            ):
                stack.enter_context(replaced(owner, name, value))
            super().step(**kwargs)  # type: ignore[no-untyped-call]

    def _own_step(self, step: Callable[[], object]) -> bool:
        """Make DeepSpeed's own step; return whether it was made."""
        engine = self._engine
        is_plain = isinstance(engine.optimizer, Optimizer)
        if is_plain and engine.gradient_clipping() > 0:
            type(engine).clip_fp32_gradients(engine)
        step()
        return not engine.optimizer.overflow

    def _guarded_step(self, closure: Any = None, **_: Any) -> None:
        """Judge the update in the place of DeepSpeed's own step."""
        guard, places = self.guard, self._places
        assert places is not None
        num_steps, counters = guard.state.num_steps, places.count()
        if guard.scaler.is_enabled():
            guard.scaler.growth_is_due = places.is_growth_due()
        try:
            guarded_step(guard, places.inner)
        finally:
            if guard.state.num_steps == num_steps:
                places.discard()
                places.set_counters(counters)
                scaler = guard.scaler
                is_dynamic = scaler.is_enabled() and scaler.home is None
                if is_dynamic and scaler.get_scale() < counters['cur_scale']:
                    # The next growth is counted from here.
                    places.update_scale(True)
                # The engine counts a skip, and its scheduler waits.
                self._engine.optimizer.overflow = True
            self._set_scale()

    def _set_scale(self) -> None:
        """Let DeepSpeed scale losses by the guard's scale."""
        if self.guard.scaler.is_enabled() and self._places is not None:
            scale = self.guard.scaler.get_scale()
            self._places.set_counters({'cur_scale': scale})

    def state_dict(self) -> Dict[str, Any]:
        """Return MMEngine's state and the guard's."""
        state: Dict[str, Any] = super().state_dict()
        state['guard'] = self.guard.state_dict()
        if self.guard.scaler.is_enabled():
            state['loss_scaler'] = self.guard.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the state of a guarded or plain wrapper.

        ``state_dict`` is not changed. A checkpoint of DeepSpeed alone sets
        the loss scale.
        """
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        saved = state_dict.pop('loss_scaler', {})
        if not saved and self._places is not None:
            saved = {'scale': self._places.count().get('cur_scale', 1.0)}
        self.guard.scaler.load_state_dict(saved)
        self._set_scale()
        super().load_state_dict(state_dict)


def do_nothing() -> None:
    """Do nothing."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an object for a while."""
    before = vars(owner).get(name, MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
