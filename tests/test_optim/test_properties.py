"""Properties that hold for any sequence of updates and faults."""

import itertools
import json
import math
from dataclasses import fields, replace

import matrix
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard.core import (
    Action,
    AutoClip,
    Cause,
    GuardPolicy,
    GuardState,
    NoClip,
    NormClip,
    Observation,
    ScaleMove,
    ScaleReading,
    Shard,
    TieredClip,
    TrainingHalted,
    Verdict,
    ZClip,
    decide,
)
from mmnanguard.core.rules.decide import MOST_HARMLESS
from mmnanguard.numerics.update.agree import merge
from mmnanguard.optim import NanGuardAmpOptimWrapper

# The same examples each time, and no database beside the tests.
often = settings(
    derandomize=True, database=None, deadline=None, max_examples=150
)
seldom = settings(often, max_examples=80)

POLICIES = st.builds(
    GuardPolicy,
    max_consecutive_skips=st.sampled_from([None, 5, 4, 3, 2, 1]),
    # With a loss scale, the default of 0.5 is about explosions only.
    max_skip_rate=st.sampled_from([None, 0.6, 0.4, 0.0]),
    skip_rate_window=st.integers(1, 6),
    proven_after=st.sampled_from([100, 3, 1, 0]),
)


# The rules that each verdict and each state obey


def check_verdict(verdict, seen, state, policy):
    is_step = verdict.action is Action.STEP
    is_harmless_commit = is_step and not verdict.counts
    assert is_step == (seen.is_clean or is_harmless_commit)
    assert (verdict.cause is Cause.NONE) == seen.is_clean
    if is_step:  # no second moment can overflow
        assert seen.grad_norm**2 <= torch.finfo(torch.float32).max
    if verdict.scale_move is ScaleMove.GROW:
        assert is_step
        assert seen.scale.growth_is_due
    if verdict.scale_move is ScaleMove.LOWER:
        # Gradients may overflow beside a bad loss.
        assert seen.forward_is_clean or not seen.loss_is_finite
        assert seen.input_is_finite
        assert seen.scale.lower_is_due
    assert 0 < verdict.clip_coef <= 1
    if not verdict.counts:  # MMEngine would have trained on
        assert verdict.action is Action.SKIP or is_harmless_commit
        assert seen.grad_is_finite
        assert seen.buffers_are_finite
        assert seen.step_is_finite
        assert not (seen.loss_is_finite and seen.input_is_finite)
    if is_harmless_commit:  # the run would starve otherwise
        assert state.harmless_skips >= MOST_HARMLESS
        assert replace(seen, loss_is_finite=True).is_clean
    if verdict.cause is Cause.SCALE_OVERFLOW:
        assert verdict.action is Action.SKIP
        assert seen.scale.value > seen.scale.floor
        assert state.commits_since_growth < policy.proven_after


def is_exhausted(state, policy):
    """Whether the state after an update is one at which GuardPolicy halts."""
    streak, most = state.consecutive_skips, policy.max_consecutive_skips
    if most is not None and streak >= most:
        return True
    recent, rate = state.recent_skips, policy.max_skip_rate
    is_full = len(recent) == policy.skip_rate_window
    return (
        rate is not None
        and is_full
        and not all(recent)
        and sum(recent) / len(recent) > rate
    )


def check_state(state, verdicts, policy):
    """Check the state after these verdicts against the verdicts alone."""
    routine = [v for v in verdicts if v.cause is Cause.SCALE_OVERFLOW]
    harmless = [
        v for v in verdicts if not v.counts and v.action is Action.SKIP
    ]
    skips = [
        verdict.action is not Action.STEP
        for verdict in verdicts
        if verdict.cause is not Cause.SCALE_OVERFLOW
        and verdict not in harmless
    ]
    assert state.num_updates == len(verdicts)
    assert state.routine_overflows == len(routine)
    num_rejected = sum(skips) + len(harmless)
    assert state.total_skips == num_rejected
    assert state.num_steps == len(verdicts) - len(routine) - num_rejected
    streak = itertools.takewhile(bool, reversed(skips))
    assert state.consecutive_skips == len(list(streak))
    recent = skips[-policy.skip_rate_window :]
    assert state.recent_skips == tuple(recent)
    since_growth = itertools.takewhile(
        lambda verdict: verdict.scale_move is not ScaleMove.GROW,
        reversed(verdicts),
    )
    steps = [v for v in since_growth if v.action is Action.STEP]
    assert state.commits_since_growth == len(steps)
    last = verdicts[-1]
    if last.action is Action.HALT:
        is_lost = last.cause in (Cause.WEIGHT_NONFINITE, Cause.STEP_SPOILED)
        assert is_lost or is_exhausted(state, policy)
    elif last.action is Action.SKIP and last.counts and last not in routine:
        assert not is_exhausted(state, policy)


# On records alone

NORMS = st.floats(0, 3e38) | st.sampled_from([0.0, math.nan, math.inf])


@st.composite
def scale_readings(draw):
    floor = draw(st.sampled_from([0.5, 1.0, 64.0]))
    value = floor * draw(st.sampled_from([1.0, 2.0, 1024.0]))
    return ScaleReading(
        value=value,
        floor=floor,
        lower_is_due=value > floor and draw(st.booleans()),
        growth_is_due=draw(st.booleans()),
    )


SCALES = scale_readings()
CLIP_NORMS = st.none() | NORMS
FLAGS = [f.name for f in fields(Observation) if f.name.endswith('_finite')]
FLAGS += 3 * ['grad_is_finite']  # what the scale moves for


@st.composite
def observations(draw, scales=SCALES, clip_norms=CLIP_NORMS):
    """Draw observations, half of them clean except for a clip norm."""
    seen = Observation(
        loss=draw(st.floats()),
        grad_norm=1.0,
        clip_norm=draw(clip_norms),
        num_params=draw(st.integers(0, 9)),
        scale=draw(scales),
    )
    if draw(st.booleans()):
        return seen
    bad = draw(st.sets(st.sampled_from(FLAGS), max_size=2))
    return replace(seen, grad_norm=draw(NORMS), **dict.fromkeys(bad, False))


LIMITS = st.floats(1e-6, 1e6)
CLIPS = (
    st.just(NoClip())
    | st.builds(NormClip, LIMITS)
    | st.builds(TieredClip, st.just([(1e9, 1.0)]))
    | st.builds(AutoClip, st.floats(0, 99), st.integers(2, 5))
    | st.builds(
        ZClip,
        st.floats(0.01, 0.99),
        LIMITS,
        st.integers(2, 4),
        st.none() | LIMITS,
    )
)


@often
@given(st.lists(observations(), min_size=8, max_size=20), POLICIES, CLIPS)
def test_any_sequence_of_observations(sequence, policy, clip):
    state = GuardState(skip_rate_window=policy.skip_rate_window)
    verdicts = []
    for seen in sequence:
        verdict = decide(seen, state, policy, clip)
        check_verdict(verdict, seen, state, policy)
        state = state.after(seen, verdict)
        verdicts.append(verdict)
        check_state(state, verdicts, policy)
        saved = json.loads(json.dumps(state.to_dict(), allow_nan=False))
        assert GuardState.from_dict(saved, policy.skip_rate_window) == state
        if verdict.action is Action.STEP:
            norm = seen.grad_norm if seen.clip_norm is None else seen.clip_norm
            clip = clip.after(norm)
            saved = json.loads(json.dumps(clip.to_dict(), allow_nan=False))
            assert clip.with_state(saved) == clip


# On several ranks


@st.composite
def ranks(draw):
    """Draw the observations of all ranks; common fields are drawn once."""
    number = draw(st.integers(1, 4))
    clip_norms = draw(st.sampled_from([st.none(), NORMS]))
    parts = []
    for _ in range(draw(st.integers(0, 2))):
        shared = draw(
            st.lists(st.integers(0, 2), min_size=number, max_size=number)
        )
        parts.append([shared.index(key) for key in shared])
    common = observations(st.just(draw(SCALES)), clip_norms)
    return [
        replace(
            draw(common),
            shards=tuple(
                Shard(groups[rank], draw(NORMS), draw(clip_norms))
                for groups in parts
            ),
        )
        for rank in range(number)
    ]


@often
@given(ranks(), st.sampled_from([1.0, 2.0, 2.5, math.inf]), POLICIES)
def test_any_observations_of_several_ranks(ranks, norm_type, policy):
    merged = [merge(ranks, local, norm_type) for local in ranks]
    # By repr, because NaN is not equal to itself.
    assert len(set(map(repr, merged))) == 1
    verdicts = {decide(seen, GuardState(), policy) for seen in merged}
    assert len(verdicts) == 1
    seen = merged[0]
    bad = {rank for rank, local in enumerate(ranks) if not local.is_clean}
    assert not (bad and seen.is_clean)
    assert set(seen.bad_ranks) <= bad
    assert bool(seen.bad_ranks) == bool(bad)
    if not bad and not ranks[0].shards:
        assert seen.is_clean


# On tensors


@st.composite
def scale_configs(draw):
    low, start, high = sorted(
        draw(st.lists(st.integers(-3, 20), min_size=3, max_size=3))
    )
    return dict(
        min_scale=2.0**low,
        init_scale=2.0**start,
        max_scale=2.0**high,
        growth_factor=draw(st.sampled_from([1.5, 2.0, 8.0])),
        backoff_factor=draw(st.sampled_from([0.5, 0.7, 0.125])),
        growth_interval=draw(st.integers(1, 3)),
        hysteresis=draw(st.integers(1, 3)),
    )


FAULTS = st.tuples(
    st.sampled_from(['grad', 'grad', *matrix.SITES]),
    st.sampled_from(['nan', 'inf', '-inf', '1e38', '-3e38', '65504']),
    st.integers(0, 2),
)


class Scale:
    """The loss scale, written from the docs of GuardedGradScaler alone."""

    def __init__(self, config):
        self.config = config
        self.value = config['init_scale']
        self.num_clean = self.num_overflows = 0

    def move(self, verdict):
        """Move the scale and return the kind of move."""
        config, before = self.config, self.value
        if verdict.action is Action.STEP:
            self.num_overflows = 0
            self.num_clean += 1
            if self.num_clean == config['growth_interval']:
                self.num_clean = 0
                grown = self.value * config['growth_factor']
                self.value = min(grown, config['max_scale'])
        # Below 1, more evidence of an overflow is needed.
        elif verdict.cause.is_scaled and verdict.blames_scale:
            self.num_clean = 0
            self.num_overflows += 1
            is_due = self.num_overflows >= config['hysteresis']
            if is_due and self.value > config['min_scale']:
                self.num_overflows = 0
                lowered = self.value * config['backoff_factor']
                # To catch up after bad losses that have spared the scale.
                lowered = verdict.scale_to or lowered
                self.value = max(lowered, config['min_scale'])
        if self.value == before:
            return ScaleMove.KEEP
        return ScaleMove.GROW if self.value > before else ScaleMove.LOWER


def build(optimizer, scale, policy, accumulation, clip):
    torch.manual_seed(0)
    model = matrix.Net()
    return model, NanGuardAmpOptimWrapper(
        matrix.OPTIMIZERS[optimizer](model.parameters()),
        dtype='float16',
        loss_scale=scale,
        accumulative_counts=accumulation,
        clip_grad={**matrix.CLIPS, **matrix.ADAPTIVE}[clip],
        guard=policy.to_dict(),
    )


def train_window(model, wrapper, accumulation, generator, fault):
    """Train one window and return the verdict on its update."""
    is_halted, verdicts, report = False, [], wrapper.guard.report

    def noted(seen, verdict, *rest):
        verdicts.append(verdict)
        report(seen, verdict, *rest)

    wrapper.guard.report = noted
    try:
        for number in range(accumulation):
            is_struck = fault is not None and number == fault[2] % accumulation
            images = torch.randn(4, 1, 5, 5, generator=generator)
            matrix.train_step(
                model, wrapper, images, fault[:2] if is_struck else None
            )
    except TrainingHalted:
        is_halted = True
    finally:
        del wrapper.guard.report
    verdict = verdicts[-1] if verdicts else Verdict(Action.STEP)
    assert is_halted == (verdict.action is Action.HALT)
    return verdict


@seldom
@given(
    st.lists(st.none() | FAULTS, min_size=6, max_size=9),
    scale_configs(),
    POLICIES,
    st.integers(1, 3),
    st.sampled_from(list(matrix.OPTIMIZERS)),
    st.sampled_from([*matrix.CLIPS, *matrix.ADAPTIVE]),
)
def test_any_sequence_of_faults(
    faults, scale, policy, accumulation, optimizer, clip
):
    parts = (optimizer, scale, policy, accumulation, clip)
    model, wrapper = build(*parts)
    guard, expected = wrapper.guard, Scale(scale)
    generator = torch.Generator().manual_seed(1)
    verdicts = []
    for fault in faults:
        before = matrix.everything(model, wrapper)
        rule = guard.clip_rule
        verdict = train_window(model, wrapper, accumulation, generator, fault)
        after = matrix.everything(model, wrapper)

        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        if verdict.action is Action.STEP:
            assert fault is None or math.isfinite(float(fault[1]))
            weights = dict(model.named_parameters())
            changed = set(matrix.differing(before, after))
            assert changed & set(weights)
        else:
            assert before.keys() == after.keys()
            assert matrix.differing(before, after) == []
            assert guard.clip_rule is rule
        move = expected.move(verdict)
        assert wrapper.loss_scaler.get_scale() == expected.value
        assert scale['min_scale'] <= expected.value <= scale['max_scale']
        verdicts.append(replace(verdict, scale_move=move))
        check_state(guard.state, verdicts, policy)

        saved = json.loads(json.dumps(guard.state_dict()))
        assert saved == guard.state_dict()
        _, resumed = build(*parts)
        resumed.load_state_dict(wrapper.state_dict())
        assert resumed.guard.state == guard.state
        assert resumed.guard.clip_rule == guard.clip_rule
        assert resumed.loss_scaler.get_scale() == expected.value
        if verdict.action is Action.HALT:
            return
