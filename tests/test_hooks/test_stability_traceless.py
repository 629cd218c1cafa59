"""A sample neither ends a run nor changes a bit of it, whatever the model."""

import copy
import io
import threading

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import LOOPS, MODELS
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.func import functional_call, grad, jacfwd, vmap
from torch.nn import functional as F
from torch.nn.modules import module as registry
from torch.overrides import _get_current_function_mode_stack as modes
from torch.utils._device import DeviceContext
from torch.utils.flop_counter import FlopCounterMode
from toys import assert_same, guard_hooks, make_runner, wrapper

from mmnanguard.hooks.stability.records import Records
from mmnanguard.numerics.stability import output_probe
from mmnanguard.numerics.stability.attention import some_logits

TOKENS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


@MODELS.register_module()
class OddNet(BaseModel):
    """A net with a part that uses PyTorch in an odd way.

    The part is a function of the net and its features, of shape (N, 8).
    """

    def __init__(self, part, frozen=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.frozen = frozen
        self.part, self.num_passes, self.kept = part, 0, []

    def train(self, mode=True):
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval().requires_grad_(False)
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.num_passes += 1
        x = torch.stack(list(inputs)).mean((2, 3))
        return dict(loss=self.head(self.part(self, x)).square().mean())


def fused_kernel(net, x):
    """PyTorch looks for modes and hooks before it takes the kernel."""
    scale = x.mean() / 100
    return net.net(x) + net.frozen(TOKENS.to(x.device) + scale).mean((0, 1))


def ensemble(net, x):
    params = dict(net.net.named_parameters())
    stacked = {key: torch.stack([p, p * 0.9]) for key, p in params.items()}

    def run(member):
        out = functional_call(net.net, member, (x,))
        return torch.softmax(out, -1) / out.square().sum()

    return vmap(run)(stacked).mean(0)


def gradients_of_samples(net, x):
    def energy(row):
        return torch.sqrt(net.net(row).square().sum())

    return net.net(x) + vmap(grad(energy))(x).mean()


def forward_derivative(net, x):
    return (
        net.net(x) + jacfwd(lambda row: net.net(row).softmax(-1))(x[0]).mean()
    )


def few_dimensions(net, x):
    query = net.net(x).view(-1, 2, 2, 2)
    key = query.mean(0)
    return F.scaled_dot_product_attention(query, key, key).flatten(1)


def copies(net, x):
    """A copy has no hook that would stay on it."""
    file = io.BytesIO()
    torch.save(net.net, file)
    average = copy.deepcopy(net.net)
    whole = copy.deepcopy(net)
    for module in (*average.modules(), *whole.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    return net.net(x) + average(x).detach()


def trace(net, x):
    traced = torch.jit.trace(net.net, x)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    return traced(x) * len(kinds)


def script(net, x):
    return torch.jit.script(net.net)(x)


def flop_count(net, x):
    with FlopCounterMode(display=False) as counter:
        out = net.net(x).softmax(-1)
    return out * (1 + counter.get_total_flops())


def default_device(net, x):
    """Each second pass takes the default device away again."""
    torch.set_default_device([None, 'cpu'][net.num_passes % 2])
    return net.net(x).softmax(-1)


def open_mode(net, x):
    """The mode stays from one pass to the next."""
    if net.kept:
        net.kept.pop().__exit__(None, None, None)
    else:
        net.kept.append(torch.device('cpu'))
        net.kept[0].__enter__()
    num_left = sum(isinstance(mode, DeviceContext) for mode in modes())
    return net.net(x).softmax(-1) * (1 + num_left)


def threads(net, x):
    outs = []

    def run():
        with torch.enable_grad():
            outs.append(net.net(x).softmax(-1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outs[0]


def interrupted_part(net, x):
    class Interrupted(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    try:
        Interrupted().eval()(x)
    except KeyboardInterrupt:
        return net.net(x).softmax(-1)


class Trap:
    """An object that refuses to be looked at."""

    def __init__(self, tensor):
        object.__setattr__(self, 'tensor', tensor)

    def __getattribute__(self, name):
        if name == 'tensor':
            return object.__getattribute__(self, name)
        raise RuntimeError(name)


class Returns(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(x)


def within_itself(x):
    values = [x]
    values.append(values)
    return values


def odd_outputs(net, x):
    out = net.net(x)
    for pack in (Trap, iter, within_itself, Tensor7, torch.neg):
        Returns(pack)(out)
    return out


class Tensor7(torch.Tensor):
    """A subclass that counts the functions that it sees."""

    num_calls = 0

    @staticmethod
    def __new__(cls, tensor):
        return tensor.as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.num_calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def subclass(net, x):
    Tensor7.num_calls = 0
    out = (net.net(Tensor7(x)).softmax(-1) / 2).as_subclass(torch.Tensor)
    return out * (1 + Tensor7.num_calls / 100)


LAYER = dict(d_model=8, nhead=2, dim_feedforward=16, batch_first=True)
FROZEN = {
    'layer': lambda: nn.TransformerEncoderLayer(**LAYER),
    'encoder': lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**LAYER), 2
    ),
}
PARTS = [
    *(ensemble, gradients_of_samples, forward_derivative, few_dimensions),
    *(copies, trace, script, flop_count, default_device, open_mode),
    *(threads, interrupted_part, odd_outputs, subclass),
]


def train(work_dir, part, monitor, frozen=None, **changes):
    """Train an odd net for 6 iterations, sampled each if ``monitor``."""
    torch.manual_seed(0)
    frozen = FROZEN[frozen]() if frozen else None
    hooks = guard_hooks()
    if monitor:
        hooks['stability'] = dict(
            type='mmnanguard.StabilityMonitorHook', interval=1
        )
    runner = make_runner(
        work_dir,
        wrapper(lr=0.01),
        model=OddNet(part, frozen),
        default_hooks=hooks,
        max_iters=6,
        **changes,
    )
    runner.train()
    return runner


def assert_traceless(tmp_path, part, frozen=None):
    plain = train(tmp_path / 'plain', part, False, frozen)
    num_modes = len(modes())
    monitored = train(tmp_path / 'monitored', part, True, frozen)
    assert len(modes()) == num_modes
    assert not registry._global_forward_hooks
    assert '__call__' not in vars(OddNet)
    assert_same(plain, monitored)
    log = log_of(tmp_path / 'monitored')
    assert 'left out a sample' not in log
    (path,) = (tmp_path / 'monitored').glob('*/nanguard/stability.jsonl')
    assert path.read_text().count('"iter"') == 6


def log_of(work_dir):
    (path,) = work_dir.glob('*/*.log')
    return path.read_text()


@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.__name__)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_an_odd_model_is_not_changed(tmp_path, part):
    assert_traceless(tmp_path, part)


@pytest.mark.parametrize('frozen', FROZEN)
def test_a_fused_kernel_is_kept(tmp_path, frozen):
    assert_traceless(tmp_path, fused_kernel, frozen)


def test_a_measurement_that_fails_is_left_out_and_said_once(
    tmp_path, monkeypatch
):
    num_tries = []

    def broken(outputs, known):
        num_tries.append(1)
        raise RecursionError('too deep\nand more')

    monkeypatch.setattr(output_probe, 'tensors_in', broken)
    monitored = train(tmp_path / 'monitored', fused_kernel, True, 'layer')
    # Once in each sample.
    assert len(num_tries) == 6
    log = log_of(tmp_path / 'monitored')
    assert log.count('left out a sample') == 1
    assert "RecursionError in 'data_preprocessor': too deep;" in log
    assert not list((tmp_path / 'monitored').glob('*/nanguard/stab*'))
    plain = train(tmp_path / 'plain', fused_kernel, False, 'layer')
    assert_same(plain, monitored)


def test_a_record_that_fails_is_said_once(tmp_path, monkeypatch):
    def broken(self, sample):
        raise ValueError('no backend')

    monkeypatch.setattr(Records, '_add_scalars', broken)
    train(tmp_path, lambda net, x: net.net(x), True)
    assert log_of(tmp_path).count('ValueError: no backend') == 1


@LOOPS.register_module()
class PatientLoop(IterBasedTrainLoop):
    """A loop that goes on after an error or an interrupt."""

    def run_iter(self, data_batch):
        try:
            super().run_iter(data_batch)
        except (ValueError, KeyboardInterrupt):
            assert not modes()
            self._iter += 1


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_pass_that_is_cut_off_leaves_no_mode(tmp_path, error):
    def part(net, x):
        if net.num_passes == 2:
            raise error
        return net.net(x).softmax(-1)

    train(
        tmp_path, part, True, train_cfg=dict(type='PatientLoop', max_iters=6)
    )
    (path,) = tmp_path.glob('*/nanguard/stability.jsonl')
    # The window of an iteration without an end has no sample.
    assert path.read_text().count('"iter"') == 5


SHAPES = {
    'keys of one sample': ((3, 2, 5, 4), (2, 6, 4), False),
    'queries of one sample': ((2, 5, 4), (3, 2, 6, 4), False),
    'one head of keys': ((3, 2, 5, 4), (3, 1, 6, 4), False),
    'one head of queries': ((3, 1, 5, 4), (3, 2, 6, 4), False),
    'groups of heads': ((3, 4, 5, 4), (3, 2, 6, 4), True),
    'no heads': ((5, 4), (6, 4), False),
}


@pytest.mark.parametrize('case', SHAPES)
def test_logits_of_all_shapes_of_attention(case):
    query_shape, key_shape, has_groups = SHAPES[case]
    query, key = torch.randn(query_shape), torch.randn(key_shape)
    shared = key
    if has_groups:
        shared = key.repeat_interleave(2, -3)
    logits = query @ shared.transpose(-2, -1) / 2
    if logits.dim() > 2:
        logits = logits[:2]
    assert torch.allclose(some_logits(query, key, None, has_groups), logits)
