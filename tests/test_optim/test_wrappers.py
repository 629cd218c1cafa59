"""The wrappers keep their promises without any hook."""

import copy
import logging
import math

import pytest
import torch
from baseline import CpuAmpOptimWrapper
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from odd_tensors import Opaque, values
from torch import nn
from torch.optim import SGD, AdamW

from mmnanguard._support.console_line import wrap
from mmnanguard.core import Cause, GuardConfigError, TrainingHalted
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

FP16 = dict(dtype='float16')


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.fixture
def messages():
    """Return the messages of the log, with their levels."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append((record.levelname, record.getMessage()))

    logger = MMLogger.get_instance('mmengine')
    logger.addHandler(Keep())
    return records


def fp32(model, **keys):
    return NanGuardOptimWrapper(SGD(model.parameters(), lr=0.1), **keys)


def amp(model, **keys):
    return NanGuardAmpOptimWrapper(SGD(model.parameters(), lr=0.1), **keys)


def train(wrapper, model, batch=None, spoil=None):
    """Run one iteration by MMEngine's protocol; ``spoil`` changes the loss."""
    batch = torch.ones(8, 3).cumsum(0) / 10 if batch is None else batch
    with wrapper.optim_context(model):
        loss = model(batch).square().mean()
    wrapper.update_params(spoil(loss) if spoil else loss)


def weights(model):
    return copy.deepcopy(model.state_dict())


def assert_equal(left, right):
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def add_nan(loss):
    """Make the loss non-finite and keep its gradients finite."""
    return loss + math.nan


def multiply_nan(loss):
    """Make the loss and its gradients non-finite."""
    return loss * math.nan


def nan_grads(loss):
    """Make the gradients non-finite and keep the loss finite."""
    return loss + (loss * 0).sqrt()


# Three ways to be bad


def test_nan_loss_with_finite_gradients(model, messages):
    wrapper = fp32(model)
    before = weights(model)
    train(wrapper, model, spoil=add_nan)
    assert_equal(before, weights(model))
    assert 'loss is NaN while its gradients are finite' in messages[-1][1]


def test_finite_loss_with_one_bad_gradient_element(model, messages):
    wrapper = fp32(model)
    before = weights(model)
    model[2].weight.register_hook(
        lambda grad: grad.index_fill(1, torch.tensor([1]), math.inf)
    )
    train(wrapper, model)
    assert_equal(before, weights(model))
    assert "gradient of '2.weight' is Inf (1 of 6 tensors)" in messages[-1][1]


def test_finite_loss_and_gradients_with_an_infinite_running_variance(messages):
    """An activation of 3e38 is finite; its variance is not."""
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2))
    wrapper = fp32(model)
    train(wrapper, model, batch=torch.randn(4, 1, 5))
    before = weights(model)
    batch = torch.randn(4, 1, 5)
    batch[0, 0, 0] = 1e38
    with wrapper.optim_context(model):
        loss = model(batch).square().mean() * 1e-30
    assert torch.isfinite(loss)
    wrapper.backward(loss)
    grads = [param.grad for param in model.parameters()]
    assert all(torch.isfinite(grad).all() for grad in grads)
    wrapper.step()
    assert_equal(before, weights(model))
    assert "forward made buffer '1.running_var' Inf" in messages[-1][1]


@pytest.mark.parametrize('bad', [0, 1, 2])
def test_the_loss_of_every_micro_batch_counts(model, bad):
    wrapper = fp32(model, accumulative_counts=3)
    before = weights(model)
    for micro_batch in range(3):
        spoil = add_nan if micro_batch == bad else None
        train(wrapper, model, spoil=spoil)
    assert wrapper.guard.state.total_skips == 1
    assert_equal(before, weights(model))
    for _ in range(3):
        train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1


def test_a_raised_input_flag_rejects(model, messages):
    wrapper = fp32(model)
    before = weights(model)
    wrapper.add_fact('input', torch.tensor(False))
    wrapper.add_fact('input', torch.tensor(True))
    train(wrapper, model)
    assert_equal(before, weights(model))
    assert 'the input is not finite' in messages[-1][1]
    train(wrapper, model)  # the flag is gone with its window
    assert wrapper.guard.state.num_steps == 1


def test_gradients_too_large_for_a_second_moment():
    """Gradients of 1e30 are finite, but float32 cannot hold their squares."""
    model = nn.Linear(1, 1, bias=False)
    wrapper = NanGuardOptimWrapper(AdamW(model.parameters()))
    train(wrapper, model, torch.ones(1, 1))
    before = weights(model)
    train(wrapper, model, torch.ones(1, 1), spoil=lambda loss: loss * 1e30)
    assert_equal(before, weights(model))
    assert wrapper.guard.state.total_skips == 1


def test_blame_runs_before_clip(model, messages):
    """A norm clip turns one NaN gradient into NaN in every gradient."""
    wrapper = fp32(model, clip_grad=dict(max_norm=1.0))
    model[0].bias.register_hook(lambda grad: grad * math.nan)
    train(wrapper, model)
    assert "gradient of '0.bias' is NaN (1 of 6 tensors)" in messages[-1][1]


def test_sparse_gradients(messages):
    """Equal indices form one gradient, of which each half may be finite."""
    model = nn.EmbeddingBag(4, 2, mode='sum', sparse=True)
    wrapper = fp32(model)
    bags = torch.tensor([[1, 1]])
    train(wrapper, model, bags)
    before = weights(model)
    # 2 * 3e38 is beyond float32.
    train(wrapper, model, bags, lambda loss: loss / loss.detach() * 2e38)
    assert_equal(before, weights(model))
    train(wrapper, model, bags)
    state = wrapper.guard.state
    assert (state.num_steps, state.total_skips) == (2, 1)


def test_sparse_gradients_are_unscaled():
    results = []
    for type_ in (NanGuardAmpOptimWrapper, CpuAmpOptimWrapper):
        torch.manual_seed(0)
        model = nn.EmbeddingBag(4, 2, mode='sum', sparse=True)
        wrapper = type_(
            optimizer=SGD(model.parameters(), lr=0.1), loss_scale=8.0, **FP16
        )
        train(wrapper, model, torch.tensor([[1, 1, 2]]))
        results.append(model.weight.detach())
    # Equal up to the order in which duplicates are summed.
    torch.testing.assert_close(*results)


def test_an_update_without_any_gradient(model):
    """PyTorch's scaler raises 'No inf checks were recorded' here."""
    wrapper = amp(model, **FP16)
    before = weights(model[0])
    loss = torch.zeros((), requires_grad=True)
    wrapper.update_params(loss * 1)
    assert_equal(before, weights(model[0]))
    assert wrapper.guard.state.num_steps == 1


# One host read


@pytest.mark.parametrize('make', [fp32, amp])
@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0, norm_type=1)])
def test_one_host_read_per_update(model, monkeypatch, make, clip):
    wrapper = make(model, clip_grad=clip)
    reads = []
    for name in ('item', 'tolist', '__bool__', '__float__', '__int__'):
        original = getattr(torch.Tensor, name)

        def counted(tensor, name=name, original=original):
            reads.append(name)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for update in range(6):
        del reads[:]
        train(wrapper, model)
        # The result of the first three steps is read as well.
        num_reads = 2 if update < 3 else 1
        assert reads == ['tolist'] * num_reads
    assert wrapper.guard.state.num_steps == 6


# The loss scale


@pytest.mark.parametrize(
    ('loss_scale', 'starts', 'floor', 'ceiling'),
    [
        (512, 512.0, 1.0, 512.0),
        (512.0, 512.0, 1.0, 512.0),
        ('dynamic', 65536.0, 2.0**-16, 2.0**126),
        (dict(init_scale=8, min_scale=4, max_scale=16), 8.0, 4.0, 16.0),
    ],
)
def test_forms_of_loss_scale(model, loss_scale, starts, floor, ceiling):
    scaler = amp(model, loss_scale=loss_scale, **FP16).loss_scaler
    assert isinstance(scaler, torch.amp.GradScaler)
    assert scaler.get_scale() == starts
    assert (scaler.min_scale, scaler.max_scale) == (floor, ceiling)


def test_300_overflows_then_a_clean_batch(model):
    """PyTorch's own scaler ends at 0 here, and the clean batch at NaN."""
    wrapper = amp(model, guard=dict(max_consecutive_skips=None), **FP16)
    for _ in range(300):
        train(wrapper, model, spoil=nan_grads)
    # Only a loss that is a large sum would need it below 1.
    assert wrapper.loss_scaler.get_scale() == 2.0**-16
    assert wrapper.guard.state.routine_overflows == 16
    before = weights(model)
    train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert not torch.equal(before['0.weight'], model.state_dict()['0.weight'])


def test_mmengines_own_wrapper_dies_of_them(model):
    wrapper = CpuAmpOptimWrapper(optimizer=SGD(model.parameters(), lr=0.1))
    for _ in range(200):
        train(wrapper, model, spoil=nan_grads)
    train(wrapper, model)
    assert not torch.isfinite(model.state_dict()['0.weight']).all()


def test_a_number_comes_down_and_grows_back_to_itself(model):
    wrapper = amp(model, loss_scale=512, **FP16)
    wrapper.loss_scaler.set_growth_interval(2)
    scales = []
    for is_bad in (1, 1, 0, 0, 0, 0, 0, 0):
        train(wrapper, model, spoil=nan_grads if is_bad else None)
        scales.append(wrapper.loss_scaler.get_scale())
    assert scales == [256, 128, 128, 256, 256, 512, 512, 512]


def test_a_skip_for_another_reason_does_not_grow_the_scale(model):
    """PyTorch's update() counts such an iteration as a healthy one."""
    scale = dict(init_scale=8, growth_interval=3)
    wrapper = amp(model, loss_scale=scale, **FP16)
    scales = []
    for is_bad in (0, 0, 1, 1, 0, 0):
        train(wrapper, model, spoil=add_nan if is_bad else None)
        scales.append(wrapper.loss_scaler.get_scale())
    assert scales == [8, 8, 8, 8, 16, 16]


def test_routine_becomes_anomaly_once_the_scale_is_proven(model, messages):
    # A static scale would come back after three clean commits.
    scale = dict(init_scale=1024)
    wrapper = amp(model, guard=dict(proven_after=3), loss_scale=scale, **FP16)
    train(wrapper, model, spoil=nan_grads)
    assert messages[-1][0] == 'INFO'
    assert 'routine' in messages[-1][1]
    assert '1024 -> 512' in messages[-1][1]
    for _ in range(3):
        train(wrapper, model)
    train(wrapper, model, spoil=nan_grads)
    assert messages[-1][0] == 'WARNING'
    assert 'is NaN' in messages[-1][1]
    assert '512 -> 256' in messages[-1][1]
    state = wrapper.guard.state
    assert (state.routine_overflows, state.total_skips) == (1, 1)


def test_error_if_nonfinite_does_not_abort_a_routine_overflow(model):
    clip = dict(max_norm=1.0, error_if_nonfinite=True)
    wrapper = amp(model, clip_grad=clip, **FP16)
    train(wrapper, model, spoil=nan_grads)
    train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1


def test_value_clip_does_not_launder_inf(model):
    """MMEngine's value clip turns Inf into the clip value, and steps."""
    wrapper = fp32(model, clip_grad=dict(type='value', clip_value=0.5))
    before = weights(model)
    model[0].weight.register_hook(lambda grad: grad * math.inf)
    train(wrapper, model)
    assert_equal(before, weights(model))


# Precision


@pytest.mark.parametrize(
    ('dtype', 'expected', 'is_scaled'),
    [
        (None, torch.bfloat16, False),
        ('bfloat16', torch.bfloat16, False),
        (torch.bfloat16, torch.bfloat16, False),
        ('float16', torch.float16, True),
    ],
)
def test_dtype_on_a_cpu(model, dtype, expected, is_scaled):
    wrapper = amp(model, dtype=dtype)
    assert isinstance(wrapper, AmpOptimWrapper)
    with wrapper.optim_context(model):
        assert model[0](torch.ones(2, 3)).dtype is expected
    assert wrapper.loss_scaler.is_enabled() is is_scaled
    for _ in range(9):  # float16 begins with a few overflows
        train(wrapper, model)
    assert wrapper.guard.state.num_steps > 0


@pytest.mark.parametrize(
    ('has_bf16', 'loss_scale', 'dtype', 'scale'),
    [
        (True, 'dynamic', torch.bfloat16, 1.0),
        (False, 'dynamic', torch.float16, 1024.0),
        (False, 64, torch.float16, 64.0),
    ],
)
def test_auto(
    model, messages, monkeypatch, has_bf16, loss_scale, dtype, scale
):
    if dtype is torch.float16 and not HAS_CPU_SCALER:
        pytest.skip('float16 on a CPU needs torch>=2.3')
    monkeypatch.setattr(
        'mmnanguard.optim.autocast_dtype.has_native_bf16',
        lambda device: has_bf16,
    )
    wrapper = amp(model, dtype='auto', loss_scale=loss_scale)
    assert wrapper.cast_dtype is dtype
    assert wrapper.loss_scaler.get_scale() == scale
    assert str(dtype) in messages[-1][1]


def test_a_scale_without_float16_is_said_to_have_no_effect(model, messages):
    amp(model, dtype='bfloat16', loss_scale=512)
    assert messages[-1][0] == 'WARNING'
    assert 'loss_scale=512 has no effect' in messages[-1][1]


# Errors before training


@pytest.mark.parametrize(
    ('make', 'keys', 'words'),
    [
        (fp32, dict(guard=dict(max_skip=1)), ["'max_skip'", 'max_skip_rate']),
        (amp, dict(loss_scale='static'), ["'static'", "'dynamic'"]),
        (amp, dict(loss_scale=dict(init=1)), ["'init'", 'init_scale']),
        (amp, dict(loss_scale=-1), ['-1', 'above 0']),
        (amp, dict(loss_scale=True), ['True']),
        (amp, dict(dtype='fp16'), ["'fp16'", 'float16']),
        (fp32, dict(clip_grad=dict(clip_value=1.0)), ["type='value'"]),
        (fp32, dict(clip_grad=dict(max_nrm=1.0)), ["'max_norm'"]),
    ],
)
def test_bad_config(model, make, keys, words):
    with pytest.raises(GuardConfigError) as caught:
        make(model, **keys)
    for word in words:
        assert word in str(caught.value)


def test_the_callers_dicts_stay_as_they_are(model):
    clip = dict(type='norm', max_norm=1.0)
    guard = dict(max_skip_rate=0.1)
    scale = dict(init_scale=8)
    for _ in range(2):  # MMEngine's first call pops 'type'
        fp32(model, clip_grad=clip, guard=guard)
        amp(model, clip_grad=clip, guard=guard, loss_scale=scale, **FP16)
    assert clip == dict(type='norm', max_norm=1.0)
    assert guard == dict(max_skip_rate=0.1)
    assert scale == dict(init_scale=8)


# Telling and halting without a hook


def test_one_line_per_rejected_update_and_the_story_at_the_end(
    model, messages
):
    wrapper = fp32(model, guard=dict(max_consecutive_skips=3))
    before = weights(model)
    for _ in range(2):
        train(wrapper, model, spoil=multiply_nan)
    with pytest.raises(TrainingHalted) as caught:
        train(wrapper, model, spoil=multiply_nan)
    *lines, story = [text for _, text in messages]
    assert len(lines) == 3
    assert lines[0].startswith('Iter 1: loss is NaN')
    assert lines[1].endswith('2 skips in a row')
    assert story == wrap(str(caught.value))
    for word in (
        'halted at iteration 3',
        '3 in a row since iteration 1',
        'loss_nonfinite x3',
        'What to try',
        'max_consecutive_skips',
    ):
        assert word in story
    assert caught.value.event.cause is Cause.LOSS_NONFINITE
    assert_equal(before, weights(model))


@pytest.mark.parametrize('is_scaled', [False, True])
def test_no_other_precision_is_advised_to_float32(model, is_scaled):
    guard = dict(max_consecutive_skips=1)
    wrapper = fp32(model, guard=guard)
    if is_scaled:  # at its floor, where no overflow is routine
        wrapper = amp(model, dtype='float16', loss_scale=1, guard=guard)
    with pytest.raises(TrainingHalted) as caught:
        train(wrapper, model, spoil=nan_grads)
    assert ('bfloat16' in str(caught.value)) == is_scaled
    assert 'is not known. mmnanguard.AutopsyHook' in str(caught.value)


def test_bad_weights_are_named_and_halt_at_once(model):
    wrapper = fp32(model)
    train(wrapper, model)
    with torch.no_grad():
        model[2].bias.fill_(math.inf)
    with pytest.raises(TrainingHalted, match=r"weight '2.bias' is Inf"):
        train(wrapper, model)


def test_bad_weights_that_no_optimizer_owns(model):
    frozen = model[2].requires_grad_(False)
    wrapper = NanGuardOptimWrapper(SGD(model[:2].parameters(), lr=0.1))
    train(wrapper, model)
    with torch.no_grad():
        frozen.weight[0, 1] = math.nan
    with pytest.raises(TrainingHalted, match=r"weight '2.weight' is NaN"):
        train(wrapper, model)


# Checkpoints


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_states_load_into_mmengines_wrappers_and_back(model, dtype):
    guarded = amp(model, dtype=dtype, loss_scale='dynamic')
    train(guarded, model)
    if dtype == 'float16':
        train(guarded, model, spoil=nan_grads)
    state = guarded.state_dict()
    # MMEngine refuses to load a disabled scaler's empty state.
    assert ('loss_scaler' in state) is (dtype == 'float16')

    plain_amp = CpuAmpOptimWrapper(
        optimizer=SGD(model.parameters(), lr=0.1), dtype=dtype
    )
    plain_amp.load_state_dict(copy.deepcopy(state))
    scale = guarded.loss_scaler.get_scale()
    assert plain_amp.loss_scaler.get_scale() == scale
    OptimWrapper(SGD(model.parameters(), lr=0.1)).load_state_dict(
        copy.deepcopy(state)
    )
    # A disabled scaler of MMEngine's saves an empty state.
    back = amp(model, dtype=dtype)
    back.load_state_dict(plain_amp.state_dict())
    assert back.loss_scaler.get_scale() == scale
    fp32(model).load_state_dict(plain_amp.state_dict())


@pytest.mark.parametrize('make', [fp32, amp])
def test_state_survives_and_the_caller_keeps_his_dict(model, make):
    wrapper = make(model)
    train(wrapper, model)
    train(wrapper, model, spoil=add_nan)
    saved = wrapper.state_dict()
    kept = copy.deepcopy(saved)
    again = make(model)
    again.load_state_dict(saved)
    assert saved == kept
    assert again.guard.state == wrapper.guard.state
    assert again.guard.attempt == 2


@pytest.mark.parametrize('scale', [0.0, math.inf, math.nan])
def test_a_dead_scale_in_a_checkpoint_is_repaired(model, scale):
    wrapper = amp(model, loss_scale=1024, **FP16)
    state = wrapper.state_dict()
    state['loss_scaler']['scale'] = scale
    with pytest.warns(RuntimeWarning, match='going on with 1024'):
        wrapper.load_state_dict(state)
    train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'auto', None])
def test_an_accelerator(model, dtype, device):
    model = model.to(device)
    # From the default scale, the first update would overflow.
    wrapper = amp(model, dtype=dtype, loss_scale=dict(init_scale=1024))
    batch = torch.randn(8, 3).to(device)
    train(wrapper, model, batch)
    before = weights(model)
    train(wrapper, model, batch, spoil=add_nan)
    assert_equal(before, weights(model))
    state = wrapper.guard.state
    assert (state.num_steps, state.total_skips) == (1, 1)


# The record of recent commits


def test_commits_are_recorded_and_survive_a_checkpoint(model):
    wrapper = amp(model, clip_grad=dict(max_norm=1e-3), dtype='bfloat16')
    wrapper.optimizer.param_groups[0]['lr'] = torch.tensor(0.25)
    for spoil in (None, add_nan, None):
        train(wrapper, model, spoil=spoil)
    first, last = wrapper.guard.state.recent_commits
    assert (first.update, last.update) == (1, 3)
    assert (last.lr, last.loss_scale) == (0.25, 1.0)
    assert 0 < last.loss < math.inf
    assert last.clip_coef * last.grad_norm == pytest.approx(1e-3)
    saved = copy.deepcopy(wrapper.state_dict())
    resumed = amp(model, dtype='bfloat16')
    resumed.load_state_dict(saved)
    assert resumed.guard.state.recent_commits == (first, last)


@pytest.mark.parametrize('accumulation', ['window', 'microbatch'])
def test_a_tensor_that_is_left_alone_is_named_once(messages, accumulation):
    """Micro-batches look at the model anew."""
    model = nn.Linear(3, 2)
    model.register_buffer('odd', Opaque(values()))
    wrapper = fp32(model, guard=dict(accumulation=accumulation))
    for _ in range(3):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 3)).sum()
        wrapper.update_params(loss)
    named = [text for _, text in messages if 'odd (Opaque)' in text]
    assert len(named) == 1
