import pytest

from mmnanguard.core import GuardConfigError, GuardPolicy, NanGuardError


def test_defaults_and_none():
    assert GuardPolicy.from_config(None) == GuardPolicy()
    policy = GuardPolicy.from_config(
        dict(max_consecutive_skips=None, max_skip_rate=None)
    )
    assert policy.max_consecutive_skips is None


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(max_skips=3), ["'max_skips'", "'max_skip_rate'"]),
        (dict(max_consecutive_skip=3), ["'max_consecutive_skips'"]),
        (dict(max_consecutive_skips=0), ['max_consecutive_skips', '0', '1']),
        (dict(max_consecutive_skips=2.5), ['2.5', 'integer']),
        (dict(max_consecutive_skips=True), ['True', 'integer']),
        (dict(max_skip_rate=1.0), ['max_skip_rate', '1.0', '[0, 1)']),
        (dict(max_skip_rate=-0.1), ['-0.1']),
        (dict(max_skip_rate=float('nan')), ['nan']),
        (dict(skip_rate_window=None), ['max_skip_rate=None']),
        (dict(proven_after=-1), ['proven_after', '-1']),
        (dict(when_exhausted='stop'), ["'stop'", "'halt'"]),
        (dict(accumulation='batch'), ["'window'"]),
        ('strict', ["'strict'", 'dict']),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(config, words):
    with pytest.raises(GuardConfigError) as caught:
        GuardPolicy.from_config(config)
    for word in ['optim_wrapper.guard', *words]:
        assert word in str(caught.value)


def test_error_families():
    assert issubclass(GuardConfigError, (ValueError))
    assert issubclass(GuardConfigError, NanGuardError)
    # call_hook swallows the traceback of a TypeError.
    assert not issubclass(NanGuardError, TypeError)
