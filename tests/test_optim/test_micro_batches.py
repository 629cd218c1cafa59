"""A bad micro-batch is left out of its window; the others make the update."""

import functools
import itertools
import math

import matrix
import pytest
import torch
from torch import nn

from mmnanguard.core import GuardConfigError
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

KINDS = [
    matrix.Kind(*parts)
    for parts in itertools.product(
        ('fp32', 'bf16', 'fp16'), matrix.OPTIMIZERS, matrix.CLIPS, (2,)
    )
]


def train(kind, fault, struck=(0,)):
    """Train with the micro-batches ``struck`` bad in windows 2 and 5.

    Without a fault this is the oracle: the struck micro-batches are left out,
    and the losses of the remaining ones are divided by their number.
    """
    policy = dict(accumulation='microbatch' if fault else 'window')
    # Norm clips of MMEngine's own are the same to 1e-6 only.
    is_guarded = bool(fault) or kind.clip == 'norm'
    model, wrapper = matrix.build(kind, is_guarded, **policy)
    if fault:
        wrapper.guard.attach(object())
    generator = torch.Generator().manual_seed(1)
    for window in range(1, matrix.NUM_WINDOWS + 1):
        batches = [
            torch.randn(4, 1, 5, 5, generator=generator)
            for _ in range(kind.accumulation)
        ]
        hit = struck if window in matrix.STRUCK else ()
        if not fault:
            wrapper._accumulative_counts = kind.accumulation - len(hit)
            wrapper._inner_count = 0
        for number, images in enumerate(batches):
            if number not in hit:
                matrix.train_step(model, wrapper, images, None)
            elif fault:
                matrix.train_step(model, wrapper, images, fault)
    events = wrapper.guard.take_events() if fault else []
    return model, wrapper, events


@functools.lru_cache(maxsize=None)
def oracle(kind, struck):
    return matrix.everything(*train(kind, None, struck)[:2])


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: '-'.join(map(str, k)))
def test_the_others_make_the_update(kind):
    for fault, struck in itertools.product(matrix.FAULTS, [(0,), (1,)]):
        cause = fault.expected_cause(kind.precision)
        model, wrapper, events = train(kind, fault, struck)
        if cause is None:
            assert not events
            continue
        state = matrix.everything(model, wrapper)
        assert matrix.differing(state, oracle(kind, struck)) == []
        assert [event.cause.value for event in events] == [cause] * 2


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: '-'.join(map(str, k)))
@pytest.mark.parametrize('length', [1, 3])
def test_without_faults_nothing_changes(kind, length):
    kind = kind._replace(accumulation=length)
    struck = matrix.Fault('input', '0'), (length,)  # one that never comes
    left = matrix.everything(*train(kind, *struck)[:2])
    assert matrix.differing(left, matrix.unfaulted(kind)) == []


@pytest.mark.parametrize('struck', [(0,), (3,), (1, 2), (0, 2, 3)], ids=str)
@pytest.mark.parametrize('clip', ['no clip', 'norm'])
def test_of_four(struck, clip):
    """The results are equal up to a rounding, as a third is no exact float."""
    kind = matrix.Kind('fp32', 'sgd', clip, 4)
    fault = matrix.Fault('input', 'nan')
    model, wrapper, events = train(kind, fault, struck)
    left, right = matrix.everything(model, wrapper), oracle(kind, struck)
    assert max((left[k] - right[k]).abs().max() for k in left) < 1e-6
    numbers = [place + 1 for place in struck]
    for event in events:
        places = event.micro_batches['left_out']
        assert [place['number'] for place in places] == numbers
    assert wrapper.guard.state.num_left_out == 2 * len(struck)


def test_all_of_them_bad():
    kind = matrix.Kind('fp16', 'fused', 'norm', 2)
    fault = matrix.Fault('grad', 'nan')
    model, wrapper, events = train(kind, fault, (0, 1))
    left = matrix.everything(model, wrapper)
    assert matrix.differing(left, matrix.oracle(kind)) == []
    for event in events:
        assert event.action.value == 'skip'
        assert event.num_bad_params == 1
        assert event.params[0].name == 'head.weight'
    assert wrapper.guard.state.total_skips == 2
    assert wrapper.guard.state.num_left_out == 0


def build(
    type_=NanGuardOptimWrapper, model=None, length=2, policy=None, **keys
):
    torch.manual_seed(0)
    model = model or matrix.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = dict(accumulation='microbatch', **(policy or {}))
    keys = dict(keys, accumulative_counts=length, guard=guard)
    wrapper = type_(optimizer, **keys)
    wrapper.guard.attach(object())
    return model, wrapper


def test_what_is_wrong_with_the_sum_rejects_the_window():
    spike = dict(window=4, warmup=2, threshold=3, action='skip')
    model, wrapper = build(policy=dict(spike=spike))
    generator = torch.Generator().manual_seed(1)
    for number in range(8):
        images = torch.randn(4, 1, 5, 5, generator=generator)
        is_struck = number == 6
        fault = matrix.Fault('grad', 'nan') if is_struck else None
        if number == 7:
            with wrapper.optim_context(model):
                loss = model(images).square().sum() * 1e6
            before = matrix.everything(model, wrapper)
            wrapper.update_params(loss)
        else:
            matrix.train_step(model, wrapper, images, fault)
        if number == 5:
            clean = matrix.everything(model, wrapper)
    (event,) = wrapper.guard.take_events()
    assert (event.action.value, event.cause.value) == ('skip', 'spike')
    # ParsedRow of what rejected it: the spike, and its largest gradient.
    assert event.micro_batches is None
    assert event.params[0].kind == 'huge'
    after = matrix.everything(model, wrapper)
    assert matrix.differing(after, clean) == []
    assert matrix.differing(before, clean) != []  # forward had moved buffers


def test_two_backward_passes_are_one_micro_batch():
    """A micro-batch lasts until the next context or the step."""
    model, wrapper = build()
    images = torch.randn(4, 1, 5, 5)
    for value in (float('nan'), 1.0):
        with wrapper.optim_context(model):
            first, second = model(images).square().mean(0)
        wrapper.backward(wrapper.scale_loss(first), retain_graph=True)
        wrapper._inner_count -= 1
        wrapper.update_params(second * value)
    (event,) = wrapper.guard.take_events()
    assert event.micro_batches == dict(
        total=2, left_out=[dict(rank=0, number=1, iter=0)]
    )


def test_sparse_gradients_add_up():
    losses = {}
    for policy in ('window', 'microbatch'):
        model, wrapper = build(model=nn.Embedding(5, 2, sparse=True), length=3)
        if policy == 'window':
            wrapper = NanGuardOptimWrapper(
                wrapper.optimizer, accumulative_counts=3
            )
        for row in (1, 1, 4):
            with wrapper.optim_context(model):
                loss = model(torch.tensor([row, 1])).square().sum()
            wrapper.update_params(loss)
        losses[policy] = model.weight.detach()
    assert torch.equal(losses['window'], losses['microbatch'])


def test_unscale_by_hand_is_refused():
    model, wrapper = build(NanGuardAmpOptimWrapper, dtype='float16')
    images = torch.randn(4, 1, 5, 5)
    with wrapper.optim_context(model):
        loss = model(images).square().mean()
    wrapper.backward(wrapper.scale_loss(loss))
    wrapper.loss_scaler.unscale_(wrapper.optimizer)
    with pytest.raises(GuardConfigError, match='unscale_'):
        wrapper.guard.open(model)


class Pair(nn.Module):
    """A generator and the discriminator through which it is trained."""

    def __init__(self):
        super().__init__()
        self.first, self.second = matrix.Net(), matrix.Net()


def test_two_optimizers_keep_apart():
    """Commits of one optimizer survive a rejection by the other."""
    torch.manual_seed(0)
    pair = Pair()
    wrappers = []
    for part in (pair.first, pair.second):
        optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
        wrapper = NanGuardOptimWrapper(
            optimizer,
            accumulative_counts=2,
            guard=dict(accumulation='microbatch'),
        )
        wrapper.guard.attach(object())
        wrappers.append(wrapper)

    def count():
        return sum(wrapper.guard.state.num_steps for wrapper in wrappers)

    for wrapper, part in zip(wrappers, (pair.first, pair.second)):
        wrapper.guard.bind([part], pair, count)
    images = torch.randn(4, 1, 5, 5)
    for number in range(4):
        for wrapper, part in zip(wrappers, (pair.first, pair.second)):
            is_struck = number == 2 and part is pair.first
            inputs = images * math.nan if is_struck else images
            with wrapper.optim_context(part):
                loss = part(inputs).sum()
                if part is pair.first:
                    with torch.no_grad():
                        pair.second(inputs)
            wrapper.update_params(loss)
    assert [w.guard.state.num_steps for w in wrappers] == [2, 2]
    assert [w.guard.state.num_left_out for w in wrappers] == [1, 0]
    for tensor in pair.state_dict().values():
        assert torch.isfinite(tensor).all()
    assert int(pair.first.bn.num_batches_tracked) == 3
    assert int(pair.second.bn.num_batches_tracked) == 4 + 3


def by_hand(policy, step):
    """Return the parameters after two windows of a user's own loop."""
    torch.manual_seed(0)
    model = matrix.Net()
    wrapper = NanGuardOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        accumulative_counts=4,
        guard=dict(accumulation=policy),
    )
    generator = torch.Generator().manual_seed(1)
    for number in range(8):
        images = torch.randn(4, 1, 5, 5, generator=generator)
        with wrapper.optim_context(model):
            loss = model(images).square().mean()
        step(wrapper, model, loss, number)
    return matrix.everything(model, wrapper)


def past_the_wrapper(wrapper, model, loss, number):
    (loss / 4).backward()
    if number % 4 == 3:
        wrapper.step()
        wrapper.zero_grad()


def at_times_past_the_wrapper(wrapper, model, loss, number):
    if number % 2 == 0:
        wrapper.backward(loss / 4)
    else:
        past_the_wrapper(wrapper, model, loss, number)


def clip(wrapper, model, loss, number):
    wrapper.backward(wrapper.scale_loss(loss))
    if wrapper.should_update():
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        wrapper.step()
        wrapper.zero_grad()


def set_to_zero(wrapper, model, loss, number):
    wrapper.update_params(loss)
    if number % 4 == 1:
        wrapper.zero_grad()


@pytest.mark.parametrize('step', [past_the_wrapper, clip, set_to_zero])
def test_a_loop_by_hand_is_as_with_windows(step):
    left, right = by_hand('microbatch', step), by_hand('window', step)
    assert matrix.differing(left, right) == []
    untrained = by_hand('window', lambda *_: None)
    assert 'head.weight' in matrix.differing(left, untrained)


def test_a_loop_that_goes_past_the_wrapper_at_times():
    """The results differ by a rounding, as the order of the sum differs."""
    left, right = (
        by_hand(policy, at_times_past_the_wrapper)
        for policy in ('microbatch', 'window')
    )
    assert max((left[k] - right[k]).abs().max() for k in left) < 1e-6


def test_what_is_left_out_all_the_time_halts():
    policy = dict(skip_rate_window=6, max_skip_rate=0.5)
    model, wrapper = build(policy=policy)
    fault = matrix.Fault('grad', 'nan')
    for number in range(12):
        is_struck = number in (2, 4, 6, 9)  # four windows of six
        images = torch.randn(4, 1, 5, 5)
        matrix.train_step(model, wrapper, images, fault if is_struck else None)
    events = wrapper.guard.take_events()
    assert [event.action.value for event in events] == ['step'] * 4
    matrix.train_step(model, wrapper, images, fault)
    before = model.head.weight.clone()
    matrix.train_step(model, wrapper, images, None)
    (event,) = wrapper.guard.take_events()
    assert event.action.value == 'halt'
    assert torch.equal(model.head.weight, before)


def test_the_loss_is_the_mean_of_the_others():
    model, wrapper = build(policy=dict(spike=dict(window=9)))
    generator = torch.Generator().manual_seed(1)
    for value in (1.0, float('nan')):
        images = torch.randn(4, 1, 5, 5, generator=generator)
        with wrapper.optim_context(model):
            loss = model(images).square().mean() * value
        wrapper.update_params(loss)
        if value == 1.0:
            expected = loss.item()
    assert wrapper.guard.state.recent_losses == (pytest.approx(expected),)
