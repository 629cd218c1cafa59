import pytest
import torch

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import autocast_dtype
from mmnanguard.optim.autocast_dtype import choose_dtype, has_native_bf16

F16, BF16, F32, F64 = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


@pytest.mark.parametrize(
    ('dtype', 'device', 'native', 'expected'),
    [
        ('auto', 'cuda', True, BF16),
        ('auto', 'cuda', False, F16),
        ('auto', 'cpu', True, BF16),
        # Before PyTorch 2.3, a CPU has no float16 in autocast.
        ('auto', 'cpu', False, F16 if HAS_CPU_SCALER else BF16),
        # What MMEngine takes, whatever the hardware has.
        (None, 'cpu', False, BF16),
        (None, 'cuda', True, F16),
        ('float16', 'cuda', True, F16),
        ('float16', 'cpu', True, F16),
        ('bfloat16', 'cuda', False, BF16),
        ('float32', 'cuda', True, F32),
        ('float64', 'cpu', True, F64),
        (F16, 'cuda', True, F16),
        (BF16, 'cpu', False, BF16),
        (F32, 'cpu', True, F32),
        (F64, 'cuda', True, F64),
    ],
)
def test_choice(dtype, device, native, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(
        autocast_dtype,
        'has_native_bf16',
        lambda device: asked.append(device) or native,
    )
    assert choose_dtype(dtype, device) is expected
    assert asked == ([device] if dtype == 'auto' else [])


@pytest.mark.parametrize(
    ('dtype', 'word'),
    [
        ('fp16', "'fp16'"),
        ('half', "'half'"),
        ('Auto', "'Auto'"),
        ('', "''"),
        (torch.int8, 'int8'),
        (16, '16'),
        (True, 'True'),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(dtype, word):
    with pytest.raises(GuardConfigError) as caught:
        choose_dtype(dtype, 'cpu')
    for part in ('optim_wrapper.dtype', word, "'auto'", 'None', 'bfloat16'):
        assert part in str(caught.value)


@pytest.mark.parametrize('native', [True, False])
def test_emulation_does_not_count_on_cuda(native, monkeypatch):
    def is_bf16_supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', is_bf16_supported)
    assert has_native_bf16('cuda') is native


@pytest.mark.parametrize(
    ('avx512', 'amx', 'expected'),
    [
        (False, False, False),
        (True, False, True),
        (False, True, True),
        (None, None, False),  # an older PyTorch cannot be asked
        (None, True, True),
    ],
)
def test_a_cpu_is_asked_for_either_instruction_set(
    avx512, amx, expected, monkeypatch
):
    probes = dict(_is_avx512_bf16_supported=avx512, _is_amx_tile_supported=amx)
    for name, answer in probes.items():
        if answer is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(
                torch.cpu, name, lambda answer=answer: answer, raising=False
            )
    assert has_native_bf16('cpu') is expected


def test_other_devices_are_not_known_to_have_it():
    assert has_native_bf16('xpu') is False
