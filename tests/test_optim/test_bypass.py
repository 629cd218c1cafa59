"""Updates past the guard, and updates without gradients, are reported."""

import contextlib
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from test_user_code import need_step_hooks
from toys import ToyNet, guard_hooks, make_runner

from mmnanguard.core import TrainingHalted
from mmnanguard.optim import NanGuardOptimWrapper

BYPASS = 'THESE UPDATES ARE NOT GUARDED'
IDLE = 'NO PARAMETER HAS A GRADIENT'


@OPTIMIZERS.register_module()
class WithBase(torch.optim.Optimizer):
    """An optimizer that lets a base optimizer step, as SAM does."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
        self.base = torch.optim.SGD(self.param_groups, lr=lr)

    def second_step(self):
        self.base.step()

    def step(self, closure=None):
        self.base.step()


@OPTIMIZERS.register_module()
class ByHand(torch.optim.Optimizer):
    """An optimizer that is called under another name, without any hook."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def apply(self):
        for group in self.param_groups:
            for param in group['params']:
                param.data.sub_(group['lr'] * param.grad)

    def step(self, closure=None):
        self.apply()


@OPTIM_WRAPPERS.register_module()
class OtherDoor(NanGuardOptimWrapper):
    door = 'second_step'

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.backward(self.scale_loss(loss))
        if self.should_update():
            getattr(self.optimizer, self.door)()
            self.zero_grad()


@OPTIM_WRAPPERS.register_module()
class HandDoor(OtherDoor):
    door = 'apply'


@OPTIM_WRAPPERS.register_module()
class OverriddenStep(NanGuardOptimWrapper):
    def step(self, **kwargs):
        self.optimizer.step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class NeverSteps(NanGuardOptimWrapper):
    def should_update(self):
        return False


@OPTIM_WRAPPERS.register_module()
class ForwardOnly(NanGuardOptimWrapper):
    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        pass


@OPTIM_WRAPPERS.register_module()
class EveryThird(NanGuardOptimWrapper):
    """Leaves out two of three iterations."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.calls = getattr(self, 'calls', 0) + 1
        if self.calls % 3 == 0:
            super().update_params(loss, step_kwargs, zero_kwargs)


@MODELS.register_module()
class FaultyLoss(ToyNet):
    """A model with a fault in how it computes or applies its loss."""

    def __init__(self, kind='', data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.kind = kind
        self.iteration = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        total = sum(losses.values())
        if self.kind == 'rebuilt':
            return dict(loss=torch.tensor(total.item(), requires_grad=True))
        if self.kind == 'converged':
            return dict(loss=total * 0)
        if self.kind == 'zeros':
            return dict(loss=total * 0 + 1)
        return losses

    def train_step(self, data, optim_wrapper):
        if self.kind == 'frozen_backbone':
            self.backbone.requires_grad_(False)
        self.iteration += 1
        changed = []
        # A part of the model that it changes itself.
        if self.kind == 'own_weight':
            changed = [self.head.weight]
        # A rollback, or a checkpoint that is loaded.
        if self.kind == 'restored' and self.iteration == 8:
            changed = self.parameters()
        for param in changed:
            param.data.add_(0.01)
        if self.kind not in ('own_step', 'own_optimizer', 'no_context'):
            return super().train_step(data, optim_wrapper)
        data = self.data_preprocessor(data, True)
        context = optim_wrapper.optim_context(self)
        if self.kind == 'no_context':
            context = contextlib.nullcontext()
        with context:
            loss = self.parse_losses(self(**data, mode='loss'))[0]
        optimizer = optim_wrapper.optimizer
        if self.kind == 'own_optimizer':
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        loss.backward()
        if self.kind == 'no_context':
            optim_wrapper.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
        return dict(loss=loss)


def log_of(tmp_path, optim_wrapper, kind='', has_hook=True, **changes):
    runner = make_runner(
        tmp_path,
        optim_wrapper,
        model=changes.pop('model', dict(type='FaultyLoss', kind=kind)),
        default_hooks=guard_hooks() if has_hook else {},
        **changes,
    )
    runner.train()
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


def guarded(type_='mmnanguard.NanGuardOptimWrapper', optimizer='SGD', **keys):
    return dict(type=type_, optimizer=dict(type=optimizer, lr=0.1), **keys)


@pytest.mark.parametrize('has_hook', [True, False])
@pytest.mark.parametrize(
    ('optim_wrapper', 'kind', 'words'),
    [
        (guarded('OtherDoor', 'WithBase'), '', 'SGD.step() changes'),
        (guarded('HandDoor', 'ByHand'), '', 'no step() of its wrapper'),
        (guarded(), 'own_optimizer', 'SGD.step() changes'),
    ],
    ids=['base optimizer', 'by hand', 'own optimizer'],
)
def test_a_step_by_another_door(
    tmp_path, optim_wrapper, kind, words, has_hook
):
    if 'changes' in words:
        need_step_hooks()
    log = log_of(tmp_path, optim_wrapper, kind, has_hook, max_iters=15)
    assert log.count(BYPASS) == 1
    assert words in log


@pytest.mark.parametrize(
    ('type_', 'kind'), [('OverriddenStep', ''), (None, 'own_step')]
)
def test_a_step_of_the_own_optimizer_past_the_guard(tmp_path, type_, kind):
    need_step_hooks()
    log = log_of(tmp_path, guarded(*filter(None, [type_])), kind)
    assert log.count('THIS UPDATE WAS NOT GUARDED') == 1
    assert BYPASS not in log


@pytest.mark.parametrize(
    ('type_', 'kind'),
    [
        ('NeverSteps', ''),
        ('ForwardOnly', ''),
        ('NeverSteps', 'own_weight'),
        ('NeverSteps', 'restored'),
    ],
)
def test_a_window_that_never_ends(tmp_path, type_, kind):
    log = log_of(tmp_path, guarded(type_), kind, max_iters=40)
    assert log.count('NO UPDATE FOR 16 ITERATIONS') == 1
    assert BYPASS not in log


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [('rebuilt', 'torch.tensor()'), ('foreign', 'no parameters of the model')],
)
def test_no_gradient_at_all(tmp_path, kind, reason):
    optim_wrapper = guarded()
    if kind == 'foreign':
        other = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        optim_wrapper = NanGuardOptimWrapper(optimizer)
    log = log_of(tmp_path, optim_wrapper, kind)
    assert log.count(IDLE) == 1
    assert reason in log


def test_frozen_on_purpose_is_said_once(tmp_path):
    """A generator and a frozen part that has an optimizer of its own."""
    log = log_of(
        tmp_path,
        dict(
            head=guarded(), backbone=guarded(), constructor='PartsConstructor'
        ),
        model=dict(type='TwoParts'),
    )
    assert log.count(IDLE) == 1
    assert "of optimizer 'backbone' have trained nothing" in log
    assert 'requires_grad=False' in log


def test_zeros_only(tmp_path):
    log = log_of(tmp_path, guarded(), 'zeros', max_iters=25)
    assert log.count('THE GRADIENT NORM IS 0: in 20 updates') == 1


def test_a_loss_of_0_from_the_start(tmp_path):
    """A Cox loss of a batch of one is 0, and so are its gradients."""
    log = log_of(tmp_path, guarded(), 'converged', max_iters=210)
    assert log.count('THE GRADIENT NORM IS 0: in 200 updates') == 1


@pytest.mark.parametrize(
    ('optim_wrapper', 'kind'),
    [
        (guarded(), ''),
        (guarded(optimizer='WithBase'), ''),
        (guarded(accumulative_counts=12), ''),
        (
            guarded(
                accumulative_counts=12, guard=dict(accumulation='microbatch')
            ),
            '',
        ),
        (guarded('EveryThird'), ''),
        (guarded(), 'frozen_backbone'),
        (guarded(), 'no_context'),
        (guarded(), 'converged'),
    ],
    ids=[
        'plain',
        'nested',
        'accumulation',
        'microbatch',
        'skips',
        'frozen',
        'no context',
        'converged',
    ],
)
def test_no_false_alarm(tmp_path, optim_wrapper, kind):
    log = log_of(tmp_path, optim_wrapper, kind, max_iters=60)
    assert 'mmnanguard: THESE' not in log
    assert 'THIS UPDATE' not in log
    assert 'NO UPDATE' not in log
    assert IDLE not in log
    assert 'EVERY GRADIENT' not in log


@MODELS.register_module()
class TwoParts(ToyNet):
    """A head and a backbone, each with its optimizer, in alternation.

    Args:
        every: The backbone is trained once in so many iterations; 0 means
            that it is frozen.
    """

    def __init__(self, every=0, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.every = every
        self.backbone.requires_grad_(every > 0)
        self.iteration = 0

    def train_step(self, data, optim_wrapper):
        self.iteration += 1
        data = self.data_preprocessor(data, True)
        names = ['head', 'backbone']
        if self.every:
            names = ['head']
            if self.iteration % self.every == 0:
                names = ['backbone']
        for name in names:
            part = optim_wrapper[name]
            with part.optim_context(self):
                loss = self.parse_losses(self(**data, mode='loss'))[0]
            part.update_params(loss)
        return dict(loss=loss)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartsConstructor:
    """Builds an optimizer for each part of a model."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.config = optim_wrapper_cfg

    def __call__(self, model):
        wrappers = {}
        for name, config in self.config.items():
            part = getattr(model, name)
            wrappers[name] = build_optim_wrapper(part, dict(config))
        return OptimWrapperDict(**wrappers)


def test_an_alternation_is_no_bypass(tmp_path):
    log = log_of(
        tmp_path,
        dict(
            head=guarded(), backbone=guarded(), constructor='PartsConstructor'
        ),
        model=dict(type='TwoParts', every=25),
        max_iters=60,
    )
    assert BYPASS not in log
    assert 'NO UPDATE' not in log
    assert IDLE not in log


@OPTIM_WRAPPERS.register_module()
class StepsAgain(NanGuardOptimWrapper):
    """A loop with a second step, of gradients that nothing has checked."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        super().update_params(loss, step_kwargs, zero_kwargs)
        for param in self.guard.params:
            param.grad = torch.full_like(param, float('inf'))
        self.optimizer.step()


def test_the_story_of_a_halt_names_a_step_past_the_guard(tmp_path):
    need_step_hooks()
    with pytest.raises(TrainingHalted) as halted:
        log_of(tmp_path, guarded('StepsAgain'))
    story = str(halted.value)
    assert 'after SGD.step() was called past the guard' in story
    assert 'optim_wrapper.update_params(loss)' in story
    assert 'outside any guarded update' not in story


@OPTIM_WRAPPERS.register_module()
class StepsAgainOnce(NanGuardOptimWrapper):
    """Steps past the guard once; weights are spoiled long after that."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        super().update_params(loss, step_kwargs, zero_kwargs)
        self.calls = getattr(self, 'calls', 0) + 1
        if self.calls == 1:
            self.optimizer.step()
        if self.calls == 3:
            next(iter(self.guard.params)).data.fill_(float('nan'))


def test_an_earlier_step_past_the_guard_is_not_blamed(tmp_path):
    need_step_hooks()
    with pytest.raises(TrainingHalted) as halted:
        log_of(tmp_path, guarded('StepsAgainOnce'))
    assert 'outside any guarded update' in str(halted.value)
