"""An autopsy names the condition that an operation has not met."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmnanguard.core.operation_advice import advise_on
from mmnanguard.hooks.replay.window_replay import describe
from mmnanguard.numerics.probe.replay import run_pass

# The third of four samples is the bad one.
MASK = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]) > 0
REFLECTION = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))


class Scale(nn.Module):
    """Multiplies each sample by 1."""

    def __init__(self, loss):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.loss = loss

    def forward(self, batch):
        return self.loss(batch * self.factor)


def autopsy(loss, batch):
    """Return the autopsy of a loss, and the advice on it."""
    model = Scale(loss)

    def run():
        value = model(batch)
        value.backward()
        return {'default': [value.detach()]}

    result = run_pass(model, run, [(batch, (0, 1, 2, 3))], True)
    assert not result.is_finite
    row = describe('1', result, None)
    # Autocast changes nothing about a loss that casts by itself.
    row = row.replace(batch_rows=result.origin.samples, tried={'fp32': False})
    return row, advise_on(row)


def matrices(bad):
    batch = torch.eye(3).repeat(4, 1, 1) + torch.arange(9.0).view(3, 3) / 20
    batch[2] = bad
    return batch


@pytest.mark.parametrize(
    ('loss', 'bad', 'finding', 'cure'),
    [
        (
            lambda m: torch.logdet(m).sum(),
            REFLECTION,
            'aten.logdet, test_operation',
            'slogdet(matrix)[1]',
        ),
        (
            lambda m: torch.linalg.slogdet(m)[1].sum(),
            torch.zeros(3, 3),
            'whose determinant is 0',
            'to the diagonal',
        ),
        (
            lambda m: torch.linalg.inv_ex(m)[0].sum(),
            torch.zeros(3, 3),
            'got a singular matrix',
            'pinv',
        ),
        (
            lambda m: torch.linalg.solve_triangular(
                m.tril(), torch.ones(4, 3, 1), upper=False
            ).sum(),
            torch.zeros(3, 3),
            'got a singular matrix',
            'to the diagonal',
        ),
        (
            lambda m: torch.linalg.svd(m)[0].abs().sum(),
            torch.zeros(3, 3),
            'derivative of linalg_svd',
            'singular values and their differences, of which one is 0',
        ),
        (
            lambda m: torch.linalg.eigh(m @ m.mT)[1].abs().sum(),
            torch.eye(3),
            'derivative of linalg_eigh',
            'eigvalsh',
        ),
        (
            lambda m: torch.linalg.qr(m)[0].sum(),
            torch.zeros(3, 3),
            'derivative of linalg_qr',
            'full rank',
        ),
        (
            lambda m: torch.matrix_exp(m).sum(),
            torch.full((3, 3), 500.0),
            'its input was up to 500',
            'beyond the 3.4e+38',
        ),
    ],
)
def test_a_matrix(loss, bad, finding, cure):
    row, advice = autopsy(loss, matrices(bad))
    assert finding in row.finding()
    assert cure in advice.long
    assert 'mask' not in row.finding() + advice.long
    assert 'epsilon' not in advice.long


def test_a_determinant_that_is_0_is_not_called_negative():
    row, _ = autopsy(lambda m: torch.logdet(m).sum(), matrices(0.0))
    assert 'whose determinant is 0' in row.finding()


@pytest.mark.parametrize(
    ('loss', 'finding', 'cure'),
    [
        (
            lambda x: x.masked_fill(MASK, -math.inf).logsumexp(1).sum(),
            'aten.logsumexp, test_',
            'Keep an element of each row',
        ),
        (
            lambda x: (
                x.masked_fill(MASK, -math.inf)
                .unbind(1)[0]
                .logaddexp(x.masked_fill(MASK, -math.inf)[:, 2])
                .sum()
            ),
            'aten.logaddexp, test_',
            'Keep an element of each row',
        ),
        (
            lambda x: x.masked_fill(MASK, -math.inf).softmax(1).sum(),
            'masked as a whole',
            'masked_softmax',
        ),
        # The log of a mask of 0 and 1 is a mask of -inf.
        (
            lambda x: (x + (~MASK).float().log()).log_softmax(1)[:, 0].sum(),
            'masked as a whole',
            'masked_softmax',
        ),
    ],
)
def test_a_row_that_is_masked_as_a_whole(loss, finding, cure):
    row, advice = autopsy(loss, torch.ones(4, 3))
    assert finding in row.finding()
    assert 'nothing but -inf' in row.finding()
    assert row.batch_rows == (2,)
    assert cure in advice.long
    assert 'epsilon' not in advice.long


@pytest.mark.parametrize(
    ('number', 'dtype'), [(-math.inf, torch.float32), (-1e6, torch.float16)]
)
def test_a_number_that_the_model_writes_is_a_mask(number, dtype):
    def loss(x):
        scores = (x * 1).to(dtype)
        scores[2, 0] = number
        return (scores * (1 - MASK.to(dtype))).sum()

    row, advice = autopsy(loss, torch.ones(4, 3))
    assert 'meets a mask of Inf' in row.finding()
    assert 'Leave masked elements out' in advice.long


def test_the_log_of_0_is_no_mask_where_it_is_positive():
    row, _ = autopsy(
        lambda x: (-(x * ~MASK).log()).log_softmax(1)[:, 0].sum(),
        torch.ones(4, 3),
    )
    assert 'aten.log, test_' in row.finding()


def test_a_mask_that_only_the_derivative_meets():
    row, advice = autopsy(
        lambda x: F.cross_entropy(
            x.masked_fill(MASK[:1], -math.inf) / x.mean(),
            torch.tensor([0, 2, 0, 2]),
        ),
        torch.ones(4, 3),
    )
    assert row.is_left_out
    assert 'derivative of div' in row.finding()
    assert 'Mask after that line' in advice.long


def test_a_ctc_loss_of_a_short_input():
    labels, lengths = torch.ones(4, 3).long(), torch.full((4,), 3)
    _, advice = autopsy(
        lambda x: F.ctc_loss(
            x.expand(3, 4, 3).log_softmax(2), labels, lengths, lengths
        ),
        torch.ones(4, 3),
    )
    assert 'zero_infinity=True' in advice.long


@pytest.mark.parametrize(
    ('loss', 'words'),
    [
        (lambda x: x.atanh().sum(), 'Clamp its input to [-1 + 1e-6'),
        (lambda x: (x - 1 - 1e-6).sqrt().sum(), 'may be rounding'),
        (lambda x: (x - 1).log().sum(), 'log_softmax'),
        (lambda x: (x - 1).lgamma().sum(), 'Keep its input away'),
        (lambda x: torch.xlogy(x - 1, x - 1).sum(), 'safe_log'),
        (lambda x: x.acosh().sum(), '1 + 1e-6 or more'),
        (lambda x: torch._weight_norm(x - 1, x[:, :1]).sum(), 'direction'),
        (lambda x: (x.half() - 1).log().sum(), 'compute this line in float32'),
        (lambda x: (x.half() * 300).square().sum(), '.float()'),
        (
            lambda x: ((x / 0).nan_to_num() * 2).sum(),
            'what nan_to_num makes of Inf',
        ),
    ],
)
def test_words_on_an_operation(loss, words):
    _, advice = autopsy(loss, torch.ones(4, 3))
    assert words in advice.long
    assert not ('no dtype' in advice.long and 'float32' in advice.long)
