"""Frozen parts of a model whose parameters forward changes."""

from typing import Iterable, Iterator, Sequence, Set, Tuple

from torch import nn

from .tensor_backup import TensorBackup

__all__ = ['note_averages', 'note_changing']


def note_averages(
    backups: Iterable[TensorBackup], modules: Iterable[nn.Module]
) -> None:
    """Note that forward changes the parameters of averaged models.

    These are the modules with a method ``update_parameters``, as PyTorch's
    ``AveragedModel`` and MMEngine's ``BaseAveragedModel`` have it.
    """
    averages: Set[nn.Module] = set()
    for module in modules:
        if callable(getattr(module, 'update_parameters', None)):
            averages.update(module.modules())
    for backup in backups:
        if backup.is_of(averages):
            backup.set_changing()


def note_changing(
    changed: Sequence[TensorBackup],
    models: Iterable[Tuple[nn.Module, Sequence[TensorBackup]]],
) -> None:
    """Note that forward changes some tensors and their frozen neighbours.

    A momentum encoder moves by less than the last bit of some parameters
    while the learning rate is warmed up. These parameters may change later,
    so all of the frozen part is noted.

    Args:
        changed: The backups of tensors that were seen to change.
        models: The models that may hold them, each with all its backups.
    """
    owners = set()
    for backup in changed:
        owners.add(backup.owner)
        backup.set_changing()
    for model, backups in models:
        for part in frozen_parts(model):
            if owners.isdisjoint(part):
                continue
            # One moving parameter shows that the part is an encoder.
            for backup in backups:
                if backup.is_of(part):
                    backup.set_changing()


def frozen_parts(model: nn.Module) -> Iterator[Set[nn.Module]]:
    """Yield the modules of each largest part without a trained parameter."""
    if not any(param.requires_grad for param in model.parameters()):
        # Its children are frozen, too, and part of it.
        yield set(model.modules())
        return
    for child in model.children():
        yield from frozen_parts(child)
