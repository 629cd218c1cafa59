from typing import Iterable, Iterator, List, Mapping, Set

from torch import nn

from .tensor_backup import TensorBackup

__all__ = ['note_averages', 'note_changing']


def note_averages(
    slots: Iterable[TensorBackup], modules: Iterable[nn.Module]
) -> None:
    """Parameters of what has ``update_parameters`` change in forward: of
    PyTorch's ``AveragedModel`` and MMEngine's ``BaseAveragedModel``.
    """
    averages = {
        part
        for module in modules
        if callable(getattr(module, 'update_parameters', None))
        for part in module.modules()
    }
    for slot in slots:
        if slot.owner in averages:
            slot.set_changing()


def note_changing(
    found: Iterable[TensorBackup],
    slots: Mapping[nn.Module, List[TensorBackup]],
) -> bool:
    """Forward changed these, and so it may what belongs to the same frozen
    part: while the learning rate is warmed up, a momentum encoder moves by
    less than the last bit of some of its parameters.

    Args:
        found: Those that were seen to change.
        slots: All, by model.

    Returns:
        Whether that was news.
    """
    new = [slot for slot in found if not slot.is_changing]
    owners = {slot.owner for slot in new}
    for slot in new:
        slot.set_changing()
    for model in slots if owners else ():
        for part in frozen_parts(model):
            if not owners.isdisjoint(part):
                for slot in slots[model]:
                    if slot.owner in part:
                        slot.set_changing()
    return bool(new)


def frozen_parts(model: nn.Module) -> Iterator[Set[nn.Module]]:
    """The modules of each largest part without a trained parameter."""
    if not any(param.requires_grad for param in model.parameters()):
        yield set(model.modules())
        return
    for child in model.children():
        yield from frozen_parts(child)
