"""The oracle: a guarded run with faults equals, bit for bit, the run with
those iterations left out.
"""

import pytest
from toys import (
    assert_finite,
    assert_same,
    guard_hooks,
    make_runner,
    read_rows,
    wrapper,
)

FP32 = dict(type_='NanGuardOptimWrapper')
BF16 = dict(type_='NanGuardAmpOptimWrapper', dtype='bfloat16')
# The scale may not move here: float16 gradients at another scale round
# otherwise.
FP16 = dict(
    type_='NanGuardAmpOptimWrapper',
    dtype='float16',
    loss_scale=dict(init_scale=1024, min_scale=1024),
)
PRECISIONS = [
    pytest.param(FP32, id='fp32'),
    pytest.param(BF16, id='bf16'),
    pytest.param(FP16, id='fp16'),
]


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize(
    ('site', 'value', 'cause'),
    [
        ('input', 'nan', 'loss_nonfinite'),
        ('activation', 'inf', 'loss_nonfinite'),
        ('loss', 'nan', 'loss_nonfinite'),
        ('loss', '-inf', 'loss_nonfinite'),
        ('grad', 'nan', 'grad_nonfinite'),
        ('grad', '-inf', 'grad_nonfinite'),
        ('grad', 1e38, 'norm_overflow'),
        ('buffer', 'inf', 'buffer_nonfinite'),
    ],
)
def test_equals_the_run_without_those_iterations(
    tmp_path, precision, site, value, cause
):
    faults = [dict(iter=n, site=site, value=value) for n in (1, 4, 5)]
    optim = wrapper(optimizer='AdamW', lr=0.01, **precision)
    faulty = make_runner(
        tmp_path / 'faulty', optim, default_hooks=guard_hooks(*faults)
    )
    faulty.train()
    oracle = make_runner(tmp_path / 'oracle', optim, leave_out=(1, 4, 5))
    oracle.train()

    assert_same(faulty, oracle)
    assert_finite(faulty)
    rows = read_rows(faulty)
    assert [row['iter'] for row in rows] == [1, 4, 5]
    assert {row['cause'] for row in rows} == {cause}
    assert {row['action'] for row in rows} == {'skip'}
