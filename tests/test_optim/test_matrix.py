"""Each cell of the matrix has its expected verdict and leaves no trace."""

import matrix
import pytest


@pytest.mark.parametrize(
    'kind', matrix.KINDS, ids=lambda kind: '-'.join(map(str, kind))
)
@pytest.mark.parametrize('fault', matrix.FAULTS, ids='-'.join)
def test_leaves_no_trace(kind, fault):
    model, wrapper, events = matrix.run(kind, fault)
    causes = [event.cause.value for event in events]
    cause = fault.expected_cause(kind.precision)
    if cause is None:
        assert causes == []
        expected = matrix.unfaulted(kind)
    else:
        assert causes == [cause] * len(matrix.STRUCK)
        expected = matrix.oracle(kind)
    left = matrix.everything(model, wrapper)
    assert matrix.differing(left, expected) == []
    assert wrapper.guard.state.num_updates == matrix.NUM_WINDOWS
    assert wrapper.guard.state.total_skips == len(causes)


def test_the_matrix_is_whole():
    assert len(matrix.KINDS) * len(matrix.FAULTS) == 1008
