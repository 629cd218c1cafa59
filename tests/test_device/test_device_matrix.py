"""The oracle on a device: cells of the matrix, bit for bit."""

import matrix
import pytest

pytestmark = pytest.mark.gpu
# Each fault, and each kind of update but for some combinations.
CELLS = list(zip(matrix.KINDS[::5], matrix.FAULTS * 2))


@pytest.fixture(autouse=True)
def train_on_the_device(device, monkeypatch):
    caches = matrix.run_without, matrix.oracle, matrix.unfaulted
    monkeypatch.setattr(matrix, 'DEVICE', device)
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.mark.parametrize(('kind', 'fault'), CELLS)
def test_leaves_no_trace(kind, fault):
    model, wrapper, events = matrix.run(kind, fault)
    cause = fault.expected_cause(kind.precision)
    causes = [event.cause.value for event in events]
    assert causes == ([cause] * len(matrix.STRUCK) if cause else [])
    expected = matrix.oracle(kind) if cause else matrix.unfaulted(kind)
    left = matrix.everything(model, wrapper)
    assert matrix.differing(left, expected) == []
