"""An accelerator that exists in Python only, registered with PyTorch.

Memory of the device is host memory which only this module knows how to reach.
An operation runs on the CPU on that memory, by one fallback. What makes it an
accelerator is kept:

- Tensors of the device and of the host do not mix, except where CUDA lets
  them (a 0-dim tensor in an elementwise operation, an index).
- The host waits for the device in each transfer that blocks, in ``item`` and
  in operations whose shape depends on values. All are counted, by name.
- A non-blocking copy to the host is delivered late: at the next time that
  the host waits. Until then the host reads NaN or -1.
- A non-blocking copy from pinned host memory raises an error if the host
  changes the memory before the next time that it waits.

Needs torch 2.9 or later. A process cannot take the device back.
"""

import contextlib
import functools
from collections import Counter
from types import ModuleType

import torch
from simulated_autocast import register_autocast
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = 'sim'
DEVICE = torch.device('privateuseone', 0)
aten = torch.ops.aten

# Operations for which CUDA waits: their shape or answer is on the device.
WAITING = {
    '_local_scalar_dense',
    '_unique',
    '_unique2',
    'bincount',
    'equal',
    'is_nonzero',
    'masked_select',
    'nonzero',
    'repeat_interleave',
    'unique_consecutive',
    'unique_dim',
}
# CUDA takes an index from the host, after a copy.
TAKES_HOST_INDEX = {'index', 'index_put', 'index_put_', '_index_put_impl_'}
PINNING = ('empty', 'empty_like', 'empty_strided', 'ones', 'zeros')
waits = Counter()  # how often the host has waited, by the reason
_generator = [torch.Generator().get_state()]  # of the device's numbers
_late = []  # (memory of the host, its values), in the order of the stream
_read = []  # (pinned memory of the host, its values when it was passed)


# Memory


def device_storage(host_storage):
    """Return memory of the device that lies in a storage of the host."""
    make = torch._C._construct_storage_from_data_pointer
    storage = make(host_storage.data_ptr(), DEVICE, host_storage.nbytes())
    # Attributes of a storage live as long as the memory does.
    storage.host_storage = host_storage
    return storage


def set_(tensor, storage, offset=0, size=None, stride=()):
    """Bind a tensor to memory of the device; an operation of ATen."""
    meta = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
    bind = aten.set_.source_Storage_storage_offset
    bind.redispatch(meta, tensor, storage, 0, [0], [1])
    if size is None:
        size = [storage.nbytes() // tensor.itemsize]
    if len(stride) != len(size):
        stride = torch.empty(size, device='meta').stride()
    return tensor.as_strided_(size, stride, offset)


def to_device(host):
    """Return a tensor of the device that lies in memory of a host tensor."""
    tensor = torch._C._acc.create_empty_tensor([0], host.dtype)
    storage = device_storage(host.untyped_storage())
    place = host.storage_offset(), host.shape, host.stride()
    return set_(tensor, storage, *place)


def to_host(tensor):
    """Return a host tensor in the memory of a tensor of the device."""
    host = torch.empty(0, dtype=tensor.dtype)
    storage = getattr(tensor.untyped_storage(), 'host_storage', None)
    if storage is None:  # made by PyTorch, and empty
        return host.reshape(tensor.shape)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return host.set_(storage, *place)


def is_on_device(value):
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def memory_of(tensor):
    return tensor.untyped_storage().data_ptr()


# The stream


def synchronize(*_):
    """Deliver everything that is late."""
    while _late:
        host, values = _late.pop(0)
        host.copy_(values)
    while _read:
        host, values = _read.pop(0)
        if not torch.equal(host.nan_to_num(), values.nan_to_num()):
            raise RuntimeError(
                'The host changed pinned memory before a non-blocking copy '
                'had read it.'
            )


def wait(reason):
    """Count that the host waits for the device."""
    waits[reason] += 1
    synchronize()


def deliver(storage):
    """Deliver what a later operation of the stream reads or overwrites."""
    if any(memory_of(host) == storage for host, _ in _late):
        synchronize()


def copy_from(source, target, non_blocking=False):
    """Copy between devices; an operation of ATen."""
    if is_on_device(source) and is_on_device(target):
        to_host(target).copy_(to_host(source))
    elif is_on_device(source):
        values = to_host(source).to(target.dtype, copy=True)
        values = values.expand(target.shape)
        if non_blocking:
            # Not even written yet: what the host would read is of no use.
            is_number = target.is_floating_point() or target.is_complex()
            target.fill_(float('nan') if is_number else -1)
            _late.append((target.detach(), values))
        else:
            wait('copy to the host')
            target.copy_(values)
    else:
        deliver(memory_of(source))
        to_host(target).copy_(source)
        if not non_blocking:
            wait('copy to the device')
        elif is_pinned(source):
            _read.append((source.detach(), source.detach().clone()))
    return target


# Operations


def fallback(op, *args, **kwargs):
    """Run an operation on the CPU, on the memory of its arguments."""
    name = op.__name__.split('.')[0]
    if name in WAITING:
        wait(name)
    flat, spec = pytree.tree_flatten((args, kwargs))
    check_devices(op, name, flat)
    on_host = {}
    for place, value in enumerate(flat):
        if is_on_device(value):
            flat[place] = to_host(value)
            on_host[id(flat[place])] = value
        elif isinstance(value, torch.device):
            flat[place] = torch.device('cpu')
    host_args, host_kwargs = pytree.tree_unflatten(flat, spec)
    if torch.Tag.nondeterministic_seeded in op.tags:
        with own_generator():
            answer = op(*host_args, **host_kwargs)
    else:
        answer = op(*host_args, **host_kwargs)
    bases = {memory_of(h): on_host[id(h)] for h in flat if id(h) in on_host}

    def bring_back(value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in on_host:
            base = bases.get(memory_of(value))
            if base is None or not value.numel():
                return to_device(value)
            place = value.shape, value.stride(), value.storage_offset()
            return aten.alias.default(base).as_strided_(*place)
        tensor = on_host[id(value)]
        if tensor.shape != value.shape:  # an ``out`` that was resized
            rebind(tensor, value)
        return tensor

    return pytree.tree_map(bring_back, answer)


@contextlib.contextmanager
def own_generator():
    """Draw random numbers from the device's generator, not the host's."""
    before = torch.get_rng_state()
    torch.set_rng_state(_generator[0])
    try:
        yield
    finally:
        _generator[0] = torch.get_rng_state()
        torch.set_rng_state(before)


def rebind(tensor, host):
    """Move a tensor of the device to the memory of a host tensor."""
    storage = device_storage(host.untyped_storage())
    place = host.storage_offset(), host.shape, host.stride()
    set_(tensor, storage, *place)


def check_devices(op, name, values):
    """Refuse tensors of the host beside tensors of the device."""
    for value in values:
        if not isinstance(value, torch.Tensor) or is_on_device(value):
            continue
        if name in TAKES_HOST_INDEX:
            wait('index from the host')
        elif value.dim() or torch.Tag.pointwise not in op.tags:
            raise RuntimeError(
                f'{op}: expected all tensors on one device, found {NAME} and '
                f'a tensor of shape {list(value.shape)} on {value.device}'
            )


def convolution(*args):
    return fallback(aten.convolution.default, *args)


def convolution_backward(grad, inputs, weight, *args):
    *places, output_mask = args
    # The bias matters for its gradient only, which has this shape.
    bias = [weight.shape[1 if places[3] else 0]]
    return fallback(
        aten.convolution_backward.default,
        grad,
        inputs,
        weight,
        bias,
        *places,
        output_mask,
    )


def make_empty(size, *, dtype=None, memory_format=None, **_):
    memory_format = memory_format or torch.contiguous_format
    return to_device(
        torch.empty(size, dtype=dtype, memory_format=memory_format)
    )


def make_strided(size, stride, *, dtype=None, **_):
    return to_device(torch.empty_strided(size, stride, dtype=dtype))


def read_scalar(tensor):
    wait('item')
    return to_host(tensor).item()


def resize_(tensor, size, memory_format=None):
    host = to_host(tensor)
    rebind(tensor, host.clone().resize_(size))
    return tensor


# Pinned memory


def is_pinned(tensor):
    return getattr(tensor.untyped_storage(), 'is_simulated_pin', False)


def pinning(make):
    """Return a function that marks what it makes as pinned if it is to be."""

    @functools.wraps(make)
    def run(*args, pin_memory=False, **kwargs):
        tensor = make(*args, **kwargs)
        if pin_memory:
            tensor.untyped_storage().is_simulated_pin = True
        return tensor

    return run


# Registration


class Module(ModuleType):
    """The contents of ``torch.sim``."""

    def __init__(self):
        super().__init__(f'torch.{NAME}')
        self.synchronize = synchronize

    def is_available(self):
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self):
        return False

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        _generator[0] = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device=NAME):
        return _generator[0]

    def set_rng_state(self, state, device=NAME):
        if state.device.type != 'cpu':
            raise TypeError('RNG state must be a torch.ByteTensor')
        _generator[0] = state.clone()

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16, torch.float32]


def register():
    """Make ``torch.device('sim')`` known to this process, once.

    Returns:
        What must be kept for as long as the device is used.
    """
    backend_registration._setup_privateuseone_for_python_backend(
        NAME, backend_module=Module()
    )
    library = torch.library.Library('aten', 'IMPL')
    others = torch.library.Library('_', 'IMPL')
    others.fallback(fallback, 'PrivateUse1')
    others.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    for name, kernel in {
        '_copy_from': copy_from,
        '_copy_from_and_resize': copy_from,
        '_local_scalar_dense': read_scalar,
        'convolution_overrideable': convolution,
        'convolution_backward_overrideable': convolution_backward,
        'empty.memory_format': make_empty,
        'empty_strided': make_strided,
        'resize_': resize_,
        'set_.source_Storage': set_,
        'set_.source_Storage_storage_offset': set_,
    }.items():
        library.impl(name, kernel, 'PrivateUse1')
    register_autocast(library, NAME)
    keep_storages()
    for name in PINNING:
        setattr(torch, name, pinning(getattr(torch, name)))
    return library, others


def keep_storages():
    """Let storages be copied to the device, which has no allocator."""
    clone, to = torch.UntypedStorage.clone, torch.UntypedStorage.to

    def clone_any(storage):
        if storage.device.type != NAME:
            return clone(storage)
        return device_storage(storage.host_storage.clone())

    def to_any(storage, *, device, non_blocking=False):
        if torch.device(device).type != NAME:
            return to(storage, device=device, non_blocking=non_blocking)
        return device_storage(storage.clone())

    torch.UntypedStorage.clone = clone_any
    torch.UntypedStorage.to = to_any
