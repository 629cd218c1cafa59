"""MMEngine's ``compile`` key: the model is compiled, the guard is not."""

import math
from collections import Counter

import pytest
import torch
from baseline import CpuAmpOptimWrapper
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch._dynamo import config, is_compiling, register_backend, reset
from torch._dynamo.backends.registry import lookup_backend
from toys import (
    BATCH_SIZE,
    assert_same,
    guard_hooks,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import Guard

# Dynamo looks at the `.grad` of everything.
pytestmark = pytest.mark.filterwarnings('ignore:The .grad attribute of a')

CPU_AMP = CpuAmpOptimWrapper.__name__
NUM_ITERS = 8
FP16 = dict(dtype='float16', loss_scale=dict(init_scale=64.0))
BF16 = dict(dtype='bfloat16')
GRAPHS = []


@register_backend
def keep_graphs(graph_module, inputs):
    GRAPHS.append(graph_module.graph)
    return lookup_backend('aot_eager')(graph_module, inputs)


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    reset()
    GRAPHS.clear()
    yield
    reset()


@MODELS.register_module()
class TensorNet(BaseModel):
    """A model that takes only tensors: Dynamo makes constants of paths."""

    def __init__(self, inner=None):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)
        self.inner = inner

    def init_weights(self):
        super().init_weights()  # which does not know compiled modules
        if self.inner is not None:
            self.backbone = torch.compile(self.backbone, backend=self.inner)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs).mean((2, 3)))
        return dict(
            loss_cls=nn.functional.cross_entropy(logits, labels),
            loss_size=logits.square().mean(),
        )


@MODELS.register_module()
class ByHandNet(TensorNet):
    """A model that calls the wrapper's methods from compiled code."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**data, mode='loss')
        is_bad = torch.isnan(data['inputs']).any()
        optim_wrapper.add_fact('input', is_bad)
        optim_wrapper.backward(losses['loss_cls'])
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return losses


def make_batches(bad):
    """Return batches of tensors; the inputs of some iterations are bad."""
    items = []
    for index, item in enumerate(make_data(NUM_ITERS * BATCH_SIZE)):
        image = item['inputs'].clone()
        if index // BATCH_SIZE + 1 in bad:
            image[0, 0, 0] = math.nan
        items.append(dict(inputs=image, labels=index % 2))
    return items


def run(
    work_dir,
    type_='NanGuardOptimWrapper',
    backend='keep_graphs',
    faults=(),
    bad_inputs=(),
    leave_out=(),
    inner=None,
    model='TensorNet',
    **keys,
):
    reset()  # what one run compiled is not this one's
    is_guarded = type_.startswith('NanGuard')
    runner = make_runner(
        work_dir,
        wrapper(type_, **keys),
        model=dict(type=model, inner=inner),
        cfg=dict(compile=dict(backend=backend) if backend else False),
        max_iters=NUM_ITERS,
        leave_out=leave_out,
        train_dataloader=dict(
            dataset=make_batches(bad_inputs),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=BATCH_SIZE,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        default_hooks=guard_hooks(*faults) if is_guarded else {},
    )
    runner.train()
    return runner


FAULTS = [
    dict(iter=3, site='loss', value='nan'),
    dict(iter=4, site='grad', value='inf'),
    dict(iter=6, site='grad', value=1e38),
    dict(iter=7, site='buffer', value='nan'),
]
CAUSES = {
    2: 'loss_nonfinite',
    3: 'loss_nonfinite',
    4: 'grad_nonfinite',
    6: 'norm_overflow',
    7: 'buffer_nonfinite',
}


@pytest.mark.skipif(
    not HAS_CPU_SCALER,
    reason='Dynamo of PyTorch 2.1 fails in SGD.step, which a plain run traces',
)
@pytest.mark.parametrize(
    ('type_', 'plain', 'keys'),
    [
        ('NanGuardOptimWrapper', 'OptimWrapper', {}),
        ('NanGuardOptimWrapper', 'OptimWrapper', {'accumulative_counts': 3}),
        ('NanGuardAmpOptimWrapper', CPU_AMP, FP16),
    ],
    ids=['fp32', 'accumulation', 'fp16'],
)
def test_equals_plain_and_compiled(tmp_path, type_, plain, keys):
    """The results and the compiled graphs are equal.

    All of the model is compiled, forward with its losses in one piece, and
    nothing of the guard.
    """
    expected = run(tmp_path / 'plain', plain, **keys)
    whole = next(ops for ops in map(operations, GRAPHS) if 'conv2d' in ops)
    GRAPHS.clear()
    guarded = run(tmp_path / 'guarded', type_, **keys)
    assert_same(guarded, expected)
    assert sum(map(operations, GRAPHS), Counter()) == whole
    forward = next(ops for ops in map(operations, GRAPHS) if 'conv2d' in ops)
    assert {'batch_norm', 'linear', 'cross_entropy'} <= set(forward)


def operations(graph):
    """Count the operations of a graph."""
    return Counter(
        getattr(node.target, '__name__', node.target)
        for node in graph.nodes
        if node.op.startswith('call')
        # Dynamo enters autocast in the graph, or finds it entered.
        and 'autocast' not in str(node.target)
    )


@pytest.mark.parametrize(
    ('type_', 'keys'),
    [
        ('NanGuardOptimWrapper', {}),
        ('NanGuardAmpOptimWrapper', BF16),
        (
            'NanGuardAmpOptimWrapper',
            # The scale may not move: gradients round otherwise at another.
            dict(
                dtype='float16', loss_scale=dict(init_scale=64, min_scale=64)
            ),
        ),
    ],
    ids=['fp32', 'bf16', 'fp16'],
)
def test_equals_the_run_without_those_iterations(tmp_path, type_, keys):
    keys = dict(keys, optimizer='AdamW', lr=0.01)
    faulty = run(
        tmp_path / 'faulty', type_, faults=FAULTS, bad_inputs=[2], **keys
    )
    oracle = run(tmp_path / 'oracle', type_, leave_out=list(CAUSES), **keys)
    assert_same(faulty, oracle)
    rows = read_rows(faulty)
    assert {row['iter']: row['cause'] for row in rows} == CAUSES
    assert rows[2]['params'][0]['name'] == 'backbone.0.weight'


@pytest.mark.parametrize('keys', [{}, FP16], ids=['fp32', 'fp16'])
@pytest.mark.parametrize(
    ('model', 'accumulation', 'num_steps', 'cause'),
    [
        ('TensorNet', 1, 6, 'loss_nonfinite'),
        ('TensorNet', 3, 1, 'loss_nonfinite'),
        ('ByHandNet', 1, 6, 'input_nonfinite'),
    ],
)
def test_nothing_is_compiled_twice(
    tmp_path, keys, model, accumulation, num_steps, cause
):
    """Nothing causes a recompilation: no update's numbers, no rejection,
    nothing that the snapshot learns over its first windows.
    """
    type_ = 'NanGuardAmpOptimWrapper' if keys else 'NanGuardOptimWrapper'
    with config.patch(error_on_recompile=True):
        runner = run(
            tmp_path,
            type_,
            model=model,
            bad_inputs=[2, 8],
            accumulative_counts=accumulation,
            clip_grad=dict(max_norm=1.0),
            **keys,
        )
    assert runner.optim_wrapper.guard.state.num_steps == num_steps
    assert [row['cause'] for row in read_rows(runner)] == [cause, cause]


@pytest.mark.parametrize('keys', [{}, FP16], ids=['fp32', 'fp16'])
@pytest.mark.parametrize('model', ['TensorNet', 'ByHandNet'])
def test_no_method_of_the_guard_is_traced(tmp_path, monkeypatch, model, keys):
    calls = set()
    for name in ('open', 'add_loss', 'add_fact', 'collect', 'close'):
        method = getattr(Guard, name)

        def noted(self, *args, _name=name, _method=method, **kwargs):
            calls.add((_name, is_compiling()))
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(Guard, name, noted)
    type_ = 'NanGuardAmpOptimWrapper' if keys else 'NanGuardOptimWrapper'
    run(tmp_path, type_, model=model, **keys)
    names = {'open', 'add_loss', 'collect', 'close'}
    if model == 'ByHandNet':
        names.add('add_fact')
    assert calls == {(name, False) for name in names}


def test_a_compiled_module_inside_of_a_model_that_is_not(tmp_path):
    """The module's names carry `_orig_mod.`; the reported names do not."""
    keys = dict(backend=None, inner='aot_eager')
    fault = dict(site='grad', value='nan', where=r'backbone\._orig_mod\.0')
    faulty = run(
        tmp_path / 'faulty',
        faults=[dict(fault, iter=3)],
        bad_inputs=[5],
        **keys,
    )
    oracle = run(tmp_path / 'oracle', leave_out=[3, 5], **keys)
    assert_same(faulty, oracle)
    assert [
        [param['name'] for param in row['params']] for row in read_rows(faulty)
    ] == [
        ['backbone.0.weight'],
        # Nearest to the loss first.
        [
            'head.bias',
            'head.weight',
            'backbone.1.bias',
            'backbone.1.weight',
            'backbone.0.weight',
        ],
    ]


@pytest.mark.parametrize('site', ['input', 'grad', 'buffer'])
def test_a_fire_drill(tmp_path, site):
    """All sites but activations are struck.

    PyTorch calls no hook of a compiled module that was added later, and the
    drill reports that it did not strike.
    """
    runner = run(tmp_path, faults=[dict(iter=3, site=site)])
    assert [row['iter'] for row in read_rows(runner)] == [3]
