"""Hooks that end a run are recognized by what they do."""

from pathlib import Path

import pytest
import stopping

from mmnanguard.core.hook_source import HookSource, ends_run

STEPS = """
class Loss(OptimizerHook):
    def after_train_iter(self, runner):
        loss = runner.outputs['loss']
        if not torch.isfinite(loss):
            return
        loss.backward()
        runner.optimizer.step()

class Norm(OptimizerHook):
    def after_train_iter(self, runner):
        runner.outputs['loss'].backward()
        grad_norm = self.clip_grads(runner.model.parameters())
        if torch.isfinite(grad_norm):
            runner.optimizer.step()

class Slow(OptimizerHook):
    def after_train_iter(self, runner):
        runner.outputs['loss'].backward()
        if self.every_n_iters(runner, 2):
            runner.optimizer.step()
"""


@pytest.mark.parametrize('kind', stopping.STOPPING + stopping.HARMLESS)
def test_a_class_and_its_text_are_judged_alike(kind):
    text = Path(stopping.__file__).read_text()
    source = HookSource.of_text(text, kind.__name__)
    assert source.ends_run() == ends_run(kind) == (kind in stopping.STOPPING)


def test_a_hook_that_does_more():
    assert HookSource.of_class(stopping.DoesMore).does_more()
    assert not HookSource.of_class(stopping.Counts).does_more()


def test_a_class_without_a_source_is_judged_by_its_name():
    assert ends_run(type('CheckInvalidLossHook', (), {}))
    assert not ends_run(type('CheckValidLossHook', (), {}))
    child = type('Mine', (type('CheckInvalidLossHook', (), {}),), {})
    assert ends_run(child)


@pytest.mark.parametrize(
    ('kind', 'expected'), [('Loss', True), ('Norm', True), ('Slow', False)]
)
def test_a_hook_that_leaves_out_steps(kind, expected):
    assert HookSource.of_text(STEPS, kind).leaves_out_steps() == expected


def test_a_class_that_is_not_there():
    assert not HookSource.of_text(STEPS, 'Other').ends_run()


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('has_nan', True),
        ('np.isinf', True),
        ('is_non_finite', True),
        ('check_infinite', True),
        ('has_info', False),
        ('is_sampled', False),
    ],
)
def test_a_function_of_another_module_is_known_by_its_name(name, expected):
    text = (
        'class Mine(Hook):\n'
        '    def after_train_iter(self, runner, *args, outputs=None):\n'
        f"        if {name}(outputs['loss']):\n"
        '            breakpoint()\n'
    )
    assert HookSource.of_text(text, 'Mine').ends_run() == expected
