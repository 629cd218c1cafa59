"""Frozen parts of a model whose parameters forward changes."""

from typing import TYPE_CHECKING, Iterable, Iterator, Sequence, Set

from torch import nn

from .tensor_backup import TensorBackup

if TYPE_CHECKING:
    from .change_tracker import TrackedModel

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
        if backup.owner in averages:
            backup.set_changing()


def note_changing(
    changed: Sequence[TensorBackup], models: Iterable['TrackedModel']
) -> None:
    """Note that forward changes some tensors and their frozen neighbours.

    A momentum encoder moves by less than the last bit of some parameters
    while the learning rate is warmed up. These parameters may change later,
    so all of the frozen part is noted.

    Args:
        changed: The backups of tensors that were seen to change.
        models: The models that may hold them.
    """
    owners = set()
    for backup in changed:
        owners.add(backup.owner)
        backup.set_changing()
    for tracked in models:
        for part in frozen_parts(tracked.model):
            if owners.isdisjoint(part):
                continue
            # One moving parameter shows that the part is an encoder.
            for backup in tracked.backups:
                if backup.owner in part:
                    backup.set_changing()


def frozen_parts(model: nn.Module) -> Iterator[Set[nn.Module]]:
    """Yield the modules of each largest part without a trained parameter."""
    if not any(param.requires_grad for param in model.parameters()):
        # Its children are frozen, too, and part of it.
        yield set(model.modules())
        return
    for child in model.children():
        yield from frozen_parts(child)
