"""Safe operations are finite on all finite inputs, and equal the plain
operation wherever that works.

The oracle is the plain operation in float64, where no square of a float32
number over- or underflows.
"""

import itertools
import math
import os
import shutil

import pytest
import torch
from accelerator import count_waits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics import (
    masked_mean,
    masked_softmax,
    safe_divide,
    safe_log,
    safe_norm,
    safe_sqrt,
)

# The same examples each time, and no database beside the tests.
often = settings(
    derandomize=True, database=None, deadline=None, max_examples=100
)
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32, torch.float64]
INF, NAN = math.inf, math.nan
STEEPEST = 2.0**64


def largest(dtype):
    return torch.finfo(dtype).max


def denormal(dtype):
    """Return the smallest number above 0."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def special(dtype):
    info = torch.finfo(dtype)
    sizes = [0.0, denormal(dtype), info.smallest_normal, 1e-4, info.eps]
    sizes += [0.1, 1.0, 3.0, info.max**0.5, info.max / 2, info.max]
    return [sign * size for size, sign in itertools.product(sizes, (1, -1))]


@st.composite
def tensors(draw, dtype, shape):
    size = math.prod(shape)
    numbers = st.sampled_from(special(dtype)) | st.floats(-4, 4)
    values = draw(st.lists(numbers, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).to(dtype).view(shape)


@st.composite
def masks(draw, shape):
    """Draw no mask, or one that keeps all or some elements."""
    size = math.prod(shape)
    some = st.lists(st.booleans(), min_size=size, max_size=size)
    values = draw(st.just([False] * size) | st.just([True] * size) | some)
    return torch.tensor(values, dtype=torch.bool).view(shape)


@st.composite
def arguments(draw, dtypes=DTYPES):
    """Draw two tensors, of which the second may broadcast, and a mask."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    other_shape = draw(st.sampled_from([shape, (*shape[:-1], 1), shape[-1:]]))
    x = draw(tensors(dtype, shape))
    other = draw(tensors(dtype, other_shape))
    return x, other, draw(masks(draw(st.sampled_from([shape, shape[-1:]]))))


# Of (x, other, mask), where `other` is what softmax and mean do not need.
SAFE = {
    'divide': lambda x, other, mask: safe_divide(x, other),
    'sqrt': lambda x, other, mask: safe_sqrt(x),
    'log': lambda x, other, mask: safe_log(x),
    'norm': lambda x, other, mask: safe_norm(x),
    'mean': lambda x, other, mask: masked_mean(x, mask, -1),
    'softmax': lambda x, other, mask: masked_softmax(x, mask),
    'uniform': lambda x, other, mask: masked_softmax(x, mask, empty='uniform'),
}


def grad_or_zeros(tensor):
    return 0 * tensor if tensor.grad is None else tensor.grad


def run(function, x, other, mask, upstream=1.0):
    """Return the result and the gradients; 0 for unused arguments."""
    x = x.detach().clone().requires_grad_()
    other = other.detach().clone().requires_grad_()
    result = function(x, other, mask)
    result.backward(torch.full_like(result, upstream))
    return result.detach(), grad_or_zeros(x), grad_or_zeros(other)


@pytest.mark.parametrize('name', SAFE)
@often
@given(given=arguments(), upstream=st.sampled_from([1.0, -3.0, 6e4]))
def test_finite_forward_and_backward(name, given, upstream):
    results = run(SAFE[name], *given, upstream)

    for result in results:
        assert result.dtype == given[0].dtype
        assert result.isfinite().all()


# Elsewhere they are the plain operation


def assert_near(got, want, where, scale=0.0):
    """Compare to the dtype's precision; ``scale`` is the summands' size."""
    eps = torch.finfo(got.dtype).eps
    limit = 4 * eps * want.abs() + 2 * denormal(got.dtype)
    limit = limit + 8 * torch.finfo(torch.float32).eps * scale
    near = (got.double() - want).abs() <= limit
    assert (near | ~where).all(), (got, want)


PLAIN = {
    'divide': lambda x, other, mask: x / other,
    'sqrt': lambda x, other, mask: x.sqrt(),
    'log': lambda x, other, mask: x.log(),
    'norm': lambda x, other, mask: x.square().sum(-1).sqrt(),
}
# Of values that a float64 has and the dtype does not.
ELSEWHERE = arguments([*HALVES, torch.float32])


def fits(tensor, dtype, least=0.0):
    size = tensor.abs()
    return tensor.isfinite() & (size <= largest(dtype)) & (size >= least)


@pytest.mark.parametrize('name', PLAIN)
@often
@given(given=ELSEWHERE)
def test_equal_to_the_plain_operation(name, given):
    x, other, mask = given
    got = SAFE[name](x, other, mask)
    want = PLAIN[name](x.double(), other.double(), mask)
    where = fits(want, x.dtype)
    if name == 'log':
        where &= x.double() > 1 / STEEPEST

    assert_near(got, want, where)


@pytest.mark.parametrize('name', PLAIN)
@often
@given(given=ELSEWHERE)
def test_gradients_are_those_of_the_plain_operation(name, given):
    x, other, mask = given
    if name == 'divide':  # without the sums of broadcasting
        x, other = torch.broadcast_tensors(x, other)
    want, *plain_grads = run(PLAIN[name], x.double(), other.double(), mask)
    _, *grads = run(SAFE[name], x, other, mask)
    in_range = fits(want, x.dtype)
    if name == 'norm':
        in_range = in_range.unsqueeze(-1) & (x.double().norm() > 0)
    for got, wanted in zip(grads, plain_grads):
        where = in_range & fits(wanted, x.dtype)
        where &= wanted.abs() < STEEPEST / 2
        assert_near(got, wanted, where)


@often
@given(given=ELSEWHERE)
def test_mean_of_what_is_kept(given):
    x, _, mask = given
    got, grad, _ = run(SAFE['mean'], x, x, mask)
    mask = mask.expand(x.shape)
    kept = torch.where(mask, x.double(), 0.0)
    count = mask.sum(-1, keepdim=True)
    share = (mask / count.clamp(min=1)).double()

    everywhere = torch.tensor(True)
    size = (kept.abs() * share).sum(-1)
    assert_near(got, (kept * share).sum(-1), everywhere, size)
    assert_near(grad, share, everywhere)


@often
@given(given=ELSEWHERE)
def test_softmax_of_what_is_kept(given):
    """Softmax equals exponentials divided by their sum."""
    x, _, mask = given
    probs, mask = masked_softmax(x, mask), mask.expand(x.shape)
    scores = torch.where(mask, x.double(), -INF)
    top = scores.amax(-1, keepdim=True).clamp(min=-1e300)
    parts = (scores - top).exp()
    want = parts / parts.sum(-1, keepdim=True).clamp(min=1e-300)

    assert (probs[~mask] == 0).all()
    # A score has a rounding error of its own, of which exp makes a factor.
    near = torch.isclose(
        probs.double(), want, rtol=1e-4, atol=4 * torch.finfo(x.dtype).eps
    )
    assert near.all()
    uniform = masked_softmax(x, mask, empty='uniform')
    is_empty = ~mask.any(-1)
    assert torch.equal(uniform[~is_empty], probs[~is_empty])
    assert (uniform[is_empty] == torch.tensor(1 / x.size(-1)).to(x)).all()


@often
@given(
    given=arguments(), hidden=st.sampled_from([NAN, INF, -INF]), data=st.data()
)
@pytest.mark.parametrize('name', ['mean', 'softmax', 'uniform'])
def test_what_is_masked_leaks_nowhere(name, given, hidden, data):
    x, _, mask = given
    mask = mask.expand(x.shape)
    poisoned = x.masked_fill(~mask, hidden)
    upstream = data.draw(st.sampled_from([1.0, -2.0]))

    clean, clean_grad, _ = run(SAFE[name], x, x, mask, upstream)
    result, grad, _ = run(SAFE[name], poisoned, x, mask, upstream)

    assert torch.equal(result, clean)
    assert torch.equal(grad, clean_grad)
    assert (grad[~mask] == 0).all()


def test_a_nan_from_above_does_not_pass_a_masked_place():
    """Attention's product with a NaN value gives such a gradient."""
    scores = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False] * 3])
    upstream = torch.where(mask, 1.0, NAN)

    masked_softmax(scores, mask).backward(upstream)

    assert scores.grad.isfinite().all()


# At the bad places


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('zero', [0.0, -0.0])
@pytest.mark.parametrize('top', [0.0, 3.0, -3.0, 'max'])
def test_division_by_zero_is_filled(dtype, zero, top):
    top = largest(dtype) if top == 'max' else top
    x = torch.tensor([top], dtype=dtype)
    args = x, torch.tensor([zero], dtype=dtype), None

    assert [t.item() for t in run(SAFE['divide'], *args)] == [0, 0, 0]
    filled = safe_divide(*args[:2], fill=-1.5)
    assert filled.item() == -1.5


def test_eps_of_a_division_is_inclusive_and_of_the_denominator():
    scale = torch.tensor([[1e-3], [1.1e-3], [-1e-3], [-70.0]])
    translation = torch.tensor([[100.0, 200.0, 800.0]]).expand(4, 3)

    got = safe_divide(translation, scale, eps=1e-3)

    assert (got[[0, 2]] == 0).all()
    assert torch.equal(got[[1, 3]], (translation / scale)[[1, 3]])
    # Of float16's own 1e-8 nothing would be left.
    half = torch.tensor([denormal(torch.float16), 0.0], dtype=torch.float16)
    ones = torch.ones_like(half)
    assert (safe_divide(ones, half, eps=1e-8) == ones * 0).tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_quotient_is_limited(dtype):
    top = largest(dtype)
    args = torch.tensor([top, -top], dtype=dtype), torch.tensor(0.5).to(dtype)

    quotient, *grads = run(SAFE['divide'], *args, None)

    assert quotient.tolist() == [top, -top]
    assert all((grad == 0).all() for grad in grads)


def test_a_steep_derivative_is_left_out_and_the_other_stays():
    unit, small = torch.tensor([1.0]), torch.tensor([1e-15])

    quotient, by_top, by_bottom = run(SAFE['divide'], unit, small, None)

    assert quotient == by_top == 1 / small
    assert by_bottom == 0  # 1e30
    args = torch.tensor([1e-25]), torch.tensor([1e-22]), None
    assert run(SAFE['divide'], *args)[1] == 0  # 1e22
    assert math.isclose(safe_divide(*args[:2]).item(), 1e-3, rel_tol=1e-6)


def test_float16_limits_a_gradient_instead():
    args = torch.ones(1).half(), torch.tensor([3e-3]).half(), None

    quotient, _, by_bottom = run(SAFE['divide'], *args)

    assert torch.equal(quotient, args[0] / args[1])
    assert by_bottom == -largest(torch.float16)  # -111,000


def test_a_number_may_be_divided():
    depth = torch.tensor([0.0, 4.0], dtype=torch.float16)

    inverse = safe_divide(1, depth)

    assert inverse.tolist() == [0, 0.25]
    assert inverse.dtype == torch.float16
    assert safe_divide(1e5, 100 * depth).tolist() == [0, 250]  # > 65,504


@pytest.mark.parametrize('shapes', [((2,), (2,)), ((), (2,)), ((2,), ())])
@pytest.mark.parametrize('other', DTYPES)
@pytest.mark.parametrize('dtype', [*DTYPES, torch.int64])
def test_dtypes_are_promoted_as_in_pytorch(dtype, other, shapes):
    x, y = torch.ones(shapes[0], dtype=dtype), torch.ones(shapes[1]).to(other)

    assert safe_divide(x, y).dtype == (x / y).dtype


def test_finite_between_float32_and_float64():
    x = torch.tensor([3e38, 1.0])
    y = torch.tensor([1e-300, 1e-100], dtype=torch.float64)

    for pair in ((x, y), (1 / y, 1 / x)):
        quotient, *grads = run(SAFE['divide'], *pair, None)
        assert quotient.dtype == torch.float64
        assert all(t.isfinite().all() for t in (quotient, *grads))


@pytest.mark.parametrize('dtype', DTYPES)
def test_roots_and_logarithms_of_nothing(dtype):
    x = torch.tensor([0.0, -0.0, -1.0, -largest(dtype)], dtype=dtype)
    floor = 2.0**-512 if dtype == torch.float64 else 2.0**-64

    root, grad, _ = run(SAFE['sqrt'], x, x, None)
    assert (root == 0).all()
    assert (grad == 0).all()
    log, grad, _ = run(SAFE['log'], x, x, None)
    wanted = torch.tensor(math.log(floor), dtype=dtype)
    assert torch.allclose(log, wanted, rtol=torch.finfo(dtype).eps)
    assert (grad == 0).all()


def test_eps_of_a_logarithm():
    x = torch.tensor([1e-7, 1e-6, 2e-6])

    log, grad, _ = run(lambda x, *_: safe_log(x, eps=1e-6), x, x, None)

    assert torch.equal(log, x.clamp(min=1e-6).log())
    assert torch.equal(grad, torch.tensor([0, 0, 1 / 2e-6]))


@pytest.mark.parametrize('dtype', DTYPES)
def test_norm_at_the_extremes(dtype):
    top, small = largest(dtype), denormal(dtype)
    rows = [[0, 0], [3 * small, 4 * small], [top / 2, 0], [top, top]]
    x = torch.tensor(rows, dtype=dtype)

    norm, grad, _ = run(SAFE['norm'], x, x, None)

    assert norm.tolist() == [0, 5 * small, top / 2, top]
    expected = [[0, 0], [0.6, 0.8], [1, 0], [0, 0]]
    assert torch.allclose(grad, torch.tensor(expected).to(dtype))


def test_a_small_norm_among_ordinary_ones_is_scaled_by_itself():
    x = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30]])

    assert torch.allclose(safe_norm(x), torch.tensor([5.0, 5e-30, 5e30]))


@pytest.mark.parametrize('keepdim', [True, False])
@pytest.mark.parametrize('dim', [0, -1, (0, 2)])
@pytest.mark.parametrize('shape', [(2, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_dimensions_are_those_of_the_plain_operations(shape, dim, keepdim):
    x = torch.randn(shape)
    keys = dict(dim=dim, keepdim=keepdim)

    norm = safe_norm(x, **keys)
    assert torch.allclose(norm, torch.linalg.vector_norm(x, **keys))
    mean = masked_mean(x, torch.tensor(True), **keys)
    assert torch.allclose(mean, x.mean(**keys).nan_to_num())


def test_all_of_a_tensor_is_averaged_by_default():
    x = torch.tensor([[1.0, 2.0], [4.0, NAN]])
    mask = torch.tensor([[True, False], [True, False]])

    assert masked_mean(x, mask) == 2.5
    assert masked_mean(x, mask, keepdim=True).shape == (1, 1)
    assert masked_mean(x, ~mask & (x == x), 0).tolist() == [0, 2]


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_mean_of_the_largest_numbers(dtype):
    x = torch.full((3,), largest(dtype), dtype=dtype)
    assert torch.isclose(masked_mean(x, x > 0), x[0])


# What was bad before stays visible


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('bad', [NAN, INF, -INF])
def test_what_is_not_finite_is_as_in_the_plain_operation(dtype, bad):
    x = torch.tensor([bad, 1.0], dtype=dtype)
    mask = torch.tensor(True)
    pairs = [
        (safe_divide(x, torch.full_like(x, 2)), x / 2),
        (
            safe_divide(x, torch.ones_like(x) * 0),
            torch.stack([x[0], 0 * x[1]]),
        ),
        (safe_divide(torch.ones_like(x), x), 1 / x),
        (safe_sqrt(x), x.sqrt()),
        (safe_log(x), x.log()),
        (safe_norm(x), x.norm()),
        (masked_mean(x, mask), x.mean()),
        (masked_softmax(x, mask), x.softmax(-1)),
    ]
    for got, want in pairs:
        assert torch.equal(got.nan_to_num(7, 8, 9), want.nan_to_num(7, 8, 9))


@pytest.mark.parametrize('name', SAFE)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('bad', [NAN, INF])
def test_a_bad_gradient_from_above_stays_bad(name, dtype, bad):
    x = torch.tensor([2.0, 3.0], dtype=dtype)

    _, grad, _ = run(SAFE[name], x, x, torch.tensor(True), upstream=bad)

    assert not grad.isfinite().any()


@pytest.mark.parametrize('bad', [NAN, INF])
@pytest.mark.parametrize('name', SAFE)
def test_a_bad_gradient_from_above_ends_where_the_gradient_is_0(name, bad):
    nothing = torch.zeros(2), torch.zeros(2), torch.tensor(False)
    results = [run(SAFE[name], *nothing, upstream=bad)]
    if name == 'divide':  # at its limit
        args = torch.full((2,), 3e38), torch.tensor(0.1), None
        results.append(run(SAFE[name], *args, upstream=bad))

    for _, *grads in results:
        assert all((grad == 0).all() for grad in grads)


# The naive ways do fail at these places


ZEROS = torch.zeros(1, 3)
NONE = torch.zeros(1, 3, dtype=torch.bool)
BIG = torch.full((1, 3), 300.0, dtype=torch.float16)  # square: 90,000
HUGE = torch.full((1, 3), 1e30)
TINY = torch.full((1, 3), 1e-40)
NAIVE = {
    'divide': (lambda x, o, m: x / o, 'divide', ZEROS),
    'divide, where': (
        lambda x, o, m: torch.where(o == 0, 0.0, x / o),
        'divide',
        ZEROS,
    ),
    'divide, eps of float32': (
        lambda x, o, m: x / (o + 1e-8),
        'divide',
        ZEROS.half(),
    ),
    'divide, near zero': (lambda x, o, m: x / o, 'divide', TINY),
    'sqrt': (lambda x, o, m: x.sqrt(), 'sqrt', ZEROS),
    'sqrt, clamped after': (
        lambda x, o, m: x.sqrt().clamp(min=1e-6),
        'sqrt',
        ZEROS,
    ),
    'sqrt, where': (
        lambda x, o, m: torch.where(x > 0, x.sqrt(), 0.0),
        'sqrt',
        ZEROS,
    ),
    'log': (lambda x, o, m: x.log(), 'log', ZEROS),
    'log, where': (
        lambda x, o, m: torch.where(x > 0, x.log(), 0.0),
        'log',
        ZEROS,
    ),
    'log, eps of float32': (
        lambda x, o, m: (x + 1e-8).log(),
        'log',
        ZEROS.half(),
    ),
    'norm': (PLAIN['norm'], 'norm', ZEROS),
    'norm, clamped after': (
        lambda x, o, m: x.square().sum(-1).sqrt().clamp(min=1e-6),
        'norm',
        ZEROS,
    ),
    'norm, float16': (PLAIN['norm'], 'norm', BIG),
    'norm, linalg': (lambda x, o, m: torch.linalg.norm(x), 'norm', HUGE),
    'mean': (lambda x, o, m: x[m].mean(), 'mean', ZEROS),
    'mean, by hand': (
        lambda x, o, m: (x * m).sum(-1) / m.sum(-1),
        'mean',
        ZEROS,
    ),
    'mean, float16': (
        lambda x, o, m: (x * ~m).sum(-1) / (~m).sum(-1),
        'mean',
        BIG * 200,
    ),
    'softmax': (
        lambda x, o, m: x.masked_fill(~m, -INF).softmax(-1),
        'softmax',
        ZEROS,
    ),
    'softmax, patched after': (
        lambda x, o, m: (x - torch.where(m, 0, INF)).softmax(-1).nan_to_num(),
        'softmax',
        ZEROS,
    ),
}


@pytest.mark.parametrize('name', NAIVE)
def test_the_naive_operation_fails_there(name):
    naive, safe, x = NAIVE[name]

    def is_finite(function):
        results = run(function, x, x, NONE)
        return all(result.isfinite().all() for result in results)

    assert not is_finite(naive)
    assert is_finite(SAFE[safe])


def test_a_large_negative_number_is_no_mask():
    """A large negative number fails: padding outweighs the kept score."""
    scores = torch.tensor([-2e4, 0.0])
    mask = torch.tensor([True, False])

    naive = scores.masked_fill(~mask, -1e4).softmax(-1)

    assert naive.tolist() == [0, 1]
    assert masked_softmax(scores, mask).tolist() == [1, 0]


# Autograd, compilers, autocast


ROWS = torch.tensor([[0.5, -2.0, 3.0], [1e-9, 1.0, 2.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
SMOOTH = {
    **SAFE,
    'sqrt': lambda x, other, mask: safe_sqrt(x.exp()),
    'log': lambda x, other, mask: safe_log(x.exp()),
    'scaled norm': lambda x, other, mask: safe_norm(1e-300 * x) * 1e300,
    'large norm': lambda x, other, mask: safe_norm(1e300 * x) * 1e-300,
    'norm of zeros': lambda x, other, mask: safe_norm(0 * x, (0, 1)),
}


@pytest.mark.parametrize('name', SMOOTH)
def test_gradcheck_once_and_twice(name):
    x = ROWS.double().requires_grad_()
    other = (ROWS.flip(0) + 7).double().requires_grad_()

    def function(x, other):
        return SMOOTH[name](x, other, MASK)

    assert gradcheck(function, (x, other))
    if 'large' not in name:  # see the docstring of safe_norm
        assert gradgradcheck(function, (x, other))


# Dynamo itself instantiates what must not be.
@pytest.mark.filterwarnings('ignore:.*should not be instantiated')
@pytest.mark.parametrize('name', SAFE)
def test_compiles_as_one_graph(name):
    """AOTAutograd traces forward and backward and needs no C++ compiler."""
    torch._dynamo.reset()
    compiled = torch.compile(SAFE[name], fullgraph=True, backend='aot_eager')
    values = torch.tensor([*special(torch.float32), 2.0, -0.5])
    args = values.view(8, 3), values.flip(0).view(8, 3), values.view(8, 3) > 0

    for got, want in zip(run(compiled, *args), run(SAFE[name], *args)):
        assert torch.equal(got, want)
    torch._dynamo.reset()


@pytest.mark.filterwarnings('ignore:.*should not be instantiated')
def test_compiled_float16_is_what_it_is_in_eager_mode():
    """All operations share a test, as the first compilation takes longest."""
    # Without vector instructions, its code for float16 does not compile.
    has_vectors = torch.backends.cpu.get_cpu_capability() != 'DEFAULT'
    # Its code takes the processor's own ones, and crashes beside others.
    is_own = 'ATEN_CPU_CAPABILITY' not in os.environ
    has_compiler = shutil.which('g++') and has_vectors and is_own
    backend = 'inductor' if has_compiler else 'aot_eager'
    values = torch.tensor([*special(torch.float16), 2.0, -0.5]).half()
    x = values.view(8, 3).repeat(len(SAFE), 1, 1)

    def every(x, other, mask):
        rows = zip(SAFE.values(), x, other)
        return torch.cat([f(a, b, mask).flatten() for f, a, b in rows])

    torch._dynamo.reset()
    compiled = torch.compile(every, fullgraph=True, backend=backend)
    args = x, x.flip(1), x[0] > 0
    for got, want in zip(run(compiled, *args), run(every, *args)):
        assert torch.allclose(got, want, rtol=1e-2, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('name', SAFE)
def test_autocast_changes_nothing(name, dtype):
    args = ROWS.to(dtype), ROWS.flip(0).to(dtype), MASK
    with torch.autocast('cpu', dtype=dtype):
        inside = SAFE[name](*args)
    outside = SAFE[name](*args)

    assert inside.dtype == dtype
    assert torch.equal(inside, outside)
    precise = SAFE[name](args[0].float(), args[1].float(), MASK)
    assert torch.equal(outside, precise.to(dtype))


def test_vmap_and_meta_tensors():
    x = torch.randn(3, 4).half()
    assert torch.equal(torch.vmap(safe_norm)(x), safe_norm(x))
    for name, function in SAFE.items():
        meta = torch.empty(2, 3, device='meta')  # any host read would fail
        mask = torch.empty(2, 3, device='meta', dtype=torch.bool)
        assert function(meta, meta, mask).is_meta, name


# Mistakes


@pytest.mark.parametrize('mask', [MASK.float(), MASK.int()])
@pytest.mark.parametrize('function', [masked_mean, masked_softmax])
def test_a_mask_of_numbers_is_refused(function, mask):
    with pytest.raises(GuardConfigError, match=r'mask\.bool\(\)'):
        function(ROWS, mask)


@pytest.mark.parametrize(
    ('call', 'word'),
    [
        (lambda: safe_divide(ROWS, ROWS, eps=-1.0), 'eps of safe_divide'),
        (lambda: safe_divide(ROWS, ROWS, eps=NAN), 'eps of safe_divide'),
        (lambda: safe_log(ROWS, eps=0.0), 'at least 1.2e-38'),
        (lambda: safe_log(ROWS, eps=1e-40), 'at least 1.2e-38'),
        (lambda: masked_softmax(ROWS, MASK, empty='nan'), "'uniform'"),
    ],
)
def test_mistakes_are_told(call, word):
    with pytest.raises(GuardConfigError, match=word):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', SAFE)
def test_a_gpu_gives_the_same(name, dtype, device):
    values = torch.tensor([*special(dtype), 2.0, -0.5], dtype=dtype)
    args = values.view(8, 3), values.flip(0).view(8, 3), values.view(8, 3) > 0

    wanted = run(SAFE[name], *args)
    on_device = run(SAFE[name], *(tensor.to(device) for tensor in args))
    for got, want in zip(on_device, wanted):
        assert got.isfinite().all()
        assert torch.allclose(got.cpu(), want, rtol=8 * torch.finfo(dtype).eps)


@pytest.mark.gpu
def test_no_sync_on_a_gpu(device):
    first = ROWS.to(device).requires_grad_()
    args = first, ROWS.to(device), MASK.to(device)
    with count_waits() as waits:
        for function in SAFE.values():
            function(*args).sum().backward()
    assert waits.count == 0
