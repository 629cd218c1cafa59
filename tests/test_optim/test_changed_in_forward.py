"""State that forward changed, or that is non-finite by design, ends no run."""

import math

import pytest
import torch
from matrix import differing, everything
from torch import nn

from mmnanguard.core import Cause, TrainingHalted
from mmnanguard.numerics.checkpoints.scan import scan_checkpoint
from mmnanguard.numerics.checkpoints.state_audit import KeptTensor, StateAudit
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

NUM_WINDOWS = 7
STRUCK = (1, 6)  # while tensors are probed, and later
NAN, INF = math.nan, math.inf


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.build()

    def build(self):
        """Add the parts of a subclass."""

    def features(self, inputs):
        return self.body(inputs)

    def forward(self, inputs):
        return self.head(self.features(inputs)).square().mean()


class Codebook(Net):
    """A codebook that follows the features, in a frozen embedding."""

    def build(self):
        self.codes = nn.Embedding(5, 4).requires_grad_(False)

    def features(self, inputs):
        features = self.body(inputs)
        with torch.no_grad():
            codes = self.codes.weight
            nearest = torch.cdist(features.float(), codes).argmin(1)
            mean = features.float().mean(0)
            codes[nearest] = codes[nearest].lerp(mean, 0.1)
        return features + self.codes(nearest)


class Mask(Net):
    """Frozen parameters that hold -inf by design."""

    def build(self):
        mask = torch.full((4, 4), -INF).triu(1)
        self.mask = nn.Parameter(mask, requires_grad=False)

    def features(self, inputs):
        return self.body(inputs) @ self.mask.softmax(-1)


class MaskBesideCodes(Codebook):
    """A mask in the frozen part that forward changes."""

    def build(self):
        super().build()
        self.codes.mask = nn.Parameter(
            torch.tensor([0.0, 1.0, 2.0, -INF]), requires_grad=False
        )

    def features(self, inputs):
        return super().features(inputs) + self.codes.mask.softmax(-1)


class Padding(Net):
    """A trained embedding with rows that no sample uses."""

    value = -INF

    def build(self):
        self.rows = nn.Embedding(3, 4)
        with torch.no_grad():
            self.rows.weight[2] = self.value

    def features(self, inputs):
        index = (inputs.sum(1) > 0).long()
        return self.body(inputs) + self.rows(index)


class NanPadding(Padding):
    value = NAN


class Ascent(Net):
    """A model that perturbs its weights between two backward passes."""


MODELS = [Codebook, Mask, MaskBesideCodes, Padding, NanPadding, Ascent]


def build(model_type, **keys):
    torch.manual_seed(0)
    model = model_type()
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = NanGuardOptimWrapper(
        torch.optim.AdamW(trained, lr=0.1, weight_decay=0.0), **keys
    )
    wrapper.guard.attach(object())
    return model, wrapper


def ascend(model, factor):
    with torch.no_grad():
        for param in model.parameters():
            if param.grad is not None:
                param.add_(param.grad, alpha=factor)


def train(model, wrapper, struck=(), leave_out=(), accumulation=1):
    generator = torch.Generator().manual_seed(1)
    for window in range(1, NUM_WINDOWS + 1):
        for micro_batch in range(accumulation):
            inputs = torch.randn(4, 3, generator=generator)
            if window in leave_out:
                continue
            if window in struck and micro_batch == 0:
                inputs[1, 2] = NAN
            with wrapper.optim_context(model):
                if isinstance(model, Ascent):
                    model(inputs).backward()
                    ascend(model, 0.1)
                loss = model(inputs)
            wrapper.update_params(loss)
    return wrapper.guard.take_events()


@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('model_type', MODELS)
def test_one_bad_batch_is_one_skip(model_type, accumulation):
    model, wrapper = build(model_type, accumulative_counts=accumulation)
    first, second = train(model, wrapper, STRUCK, (), accumulation)
    assert first.cause is second.cause is Cause.LOSS_NONFINITE

    expected = build(model_type, accumulative_counts=accumulation)
    assert not train(*expected, (), STRUCK, accumulation)
    assert differing(everything(model, wrapper), everything(*expected)) == []


@pytest.mark.parametrize('model_type', MODELS[:-1])
def test_one_bad_micro_batch_is_left_out(model_type):
    model, wrapper = build(
        model_type,
        accumulative_counts=2,
        guard=dict(accumulation='microbatch'),
    )
    first, second = train(model, wrapper, STRUCK, (), 2)
    assert first.cause is second.cause is Cause.LOSS_NONFINITE
    assert wrapper.guard.state.num_steps == NUM_WINDOWS


@pytest.mark.parametrize('model_type', MODELS[:-1])
@pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)
def test_an_overflow_of_the_first_update_is_routine(model_type):
    torch.manual_seed(0)
    model = model_type()
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = NanGuardAmpOptimWrapper(
        torch.optim.SGD(trained, lr=0.1),
        dtype='float16',
        loss_scale=dict(init_scale=2.0**30),
    )
    with wrapper.optim_context(model):
        loss = model(torch.ones(2, 3))
    wrapper.update_params(loss)
    assert wrapper.guard.state.routine_overflows == 1


def test_two_optimizers():
    """The other optimizer's model is trained through this one's."""
    torch.manual_seed(0)
    codes, other = Codebook(), Net()
    wrappers = []
    for model in (codes, other):
        trained = [p for p in model.parameters() if p.requires_grad]
        wrappers.append(NanGuardOptimWrapper(torch.optim.SGD(trained, lr=0.1)))
    for window in range(6):
        for wrapper in wrappers:
            inputs = torch.randn(4, 3)
            if window == 4:
                inputs[0] = NAN
            with wrapper.optim_context(nn.ModuleList([codes, other])):
                loss = codes(inputs) + other(inputs)
            wrapper.update_params(loss)
            for param in [*codes.parameters(), *other.parameters()]:
                param.grad = None
    assert [w.guard.state.total_skips for w in wrappers] == [1, 1]


def halted_by(model, wrapper):
    """Return the event that ends the run."""
    wrapper.guard.detach()
    with pytest.raises(TrainingHalted) as caught:
        train(model, wrapper)
    return caught.value.event


def test_a_mask_that_becomes_nan_is_found():
    model, wrapper = build(Mask)
    train(model, wrapper)
    model.mask.data[0, 0] = NAN
    event = halted_by(model, wrapper)
    assert event.cause is Cause.WEIGHT_NONFINITE
    assert event.params[0].name == 'mask'


def test_weights_that_were_nan_before_the_first_update_are_found():
    """A bad checkpoint was loaded: no commit has shown NaN to be harmless."""
    model, wrapper = build(Net)
    model.body.weight.data[0] = NAN
    event = halted_by(model, wrapper)
    assert event.cause is Cause.WEIGHT_NONFINITE
    assert event.params[0].name == 'body.weight'


def test_a_changing_parameter_that_went_bad_outside_is_found():
    model, wrapper = build(Codebook)
    train(model, wrapper)
    model.codes.weight.data[:] = INF
    event = halted_by(model, wrapper)
    assert event.cause is Cause.WEIGHT_NONFINITE
    assert event.params[0].name == 'codes.weight'


class Constants(Net):
    def build(self):
        self.register_buffer('scale', torch.ones(3))
        self.register_buffer('log', torch.tensor(0.0))

    def features(self, inputs):
        return self.body(inputs * self.scale)


def write_through_data(model):
    model.scale.data[1] = NAN


def write(model):
    model.scale[1] = INF


def replace(model):
    model.scale = torch.full((3,), NAN)


@pytest.mark.parametrize('change', [write, write_through_data, replace])
def test_a_constant_buffer_that_went_bad_outside_is_found(change):
    model, wrapper = build(Constants)
    train(model, wrapper)
    change(model)
    event = halted_by(model, wrapper)
    assert event.cause is Cause.WEIGHT_NONFINITE
    assert event.params[0].name == 'scale'
    assert event.params[0].tensor == 'buffer'
    assert event.total_skips <= 2


class Scratch(Constants):
    """A model that fills a buffer with the same numbers, past autograd."""

    def features(self, inputs):
        self.scale.data[:] = 1 + 0 * inputs.mean(0)
        return super().features(inputs)


def test_a_buffer_that_the_next_forward_fills_is_not_lost():
    model, wrapper = build(Scratch)
    (event,) = train(model, wrapper, struck=(6,))
    assert event.cause is Cause.LOSS_NONFINITE


def test_a_constant_buffer_that_nothing_depends_on_is_left_alone():
    model, wrapper = build(Constants)
    train(model, wrapper)
    model.log.fill_(NAN)
    handle = model.head.weight.register_hook(lambda grad: grad * NAN)
    train(model, wrapper)
    handle.remove()
    assert not train(model, wrapper)


@pytest.mark.parametrize('model_type', [Mask, Padding, NanPadding])
def test_neither_scans_nor_audits_report_a_design(model_type):
    model, wrapper = build(model_type)

    def audit(is_fresh):
        kept = []
        for name, param in model.named_parameters():
            is_frozen = not param.requires_grad
            kept.append(KeptTensor('weights', name, param, is_frozen))
        return StateAudit(kept, is_fresh), kept

    state_audit, kept = audit(is_fresh=True)
    train(model, wrapper)
    assert state_audit.check(kept).names == ()

    checkpoint = dict(
        state_dict=model.state_dict(), optimizer=wrapper.state_dict()
    )
    assert scan_checkpoint(checkpoint).findings == ()
    # A weight that went bad since then is reported.
    model.head.weight.data[0, 0] = INF
    assert [f.name for f in scan_checkpoint(checkpoint).findings] == [
        'head.weight'
    ]
    assert state_audit.check(kept).names == (('weights', 'head.weight'),)


def test_an_audit_of_a_loaded_state_respects_unused_rows():
    rows = torch.tensor([[0.5, 0.1], [-INF, -INF]])
    kept = [KeptTensor('weights', 'rows', rows)]
    audit = StateAudit(kept)
    assert audit.check(kept).names == ()
    rows[0] = INF
    assert StateAudit(kept).check(kept).names == (('weights', 'rows'),)
