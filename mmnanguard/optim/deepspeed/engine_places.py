"""The places of each class of optimizer that DeepSpeed has.

DeepSpeed wraps the user's optimizer in a class of its own, by the ZeRO stage
and the precision. Each class is known here by its attributes, so that
DeepSpeed itself is not imported. Versions 0.16 to 0.19 were read.
"""

from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.base.shards import Placement
from mmnanguard.numerics.update.blame import Slice

from .places import Places, cut_out, join, lay_out, take_slices

__all__ = ['find_places']


class HalfPlaces(Places):
    """ZeRO 0 in half precision: each rank has float32 copies of all weights.

    The copies are flat in ``FP16_Optimizer``.
    """

    has_masters = True

    def params(self) -> List[Tensor]:
        """Return the trained parameters of the model."""
        return join(self.optimizer.fp16_groups)

    def masters(self) -> List[Tensor]:
        """Return the float32 copies of the weights."""
        if hasattr(self.optimizer, 'fp32_groups_flat'):
            return list(self.optimizer.fp32_groups_flat)
        return join(self.optimizer.fp32_groups)

    def copies(self) -> List[Tensor]:
        """Return the weights in half precision."""
        return self.params()

    def _cut(self) -> List[Tuple[Tensor, List[Slice]]]:
        pairs: List[Tuple[Tensor, List[Slice]]] = []
        if not hasattr(self.optimizer, 'fp32_groups_flat'):
            for master, param in zip(self.masters(), self.params()):
                pairs.append((master, [Slice(param, 0, param.numel())]))
            return pairs
        for master, group in zip(self.masters(), self.optimizer.fp16_groups):
            sizes = [param.numel() for param in group]
            pairs.append((master, lay_out(group, sizes)))
        return pairs

    def discard(self) -> None:
        """Drop the gradients, and what forward did to trained weights."""
        self.optimizer.zero_grad(set_to_none=True)
        for master, slices in zip(self.masters(), self._slices.values()):
            for param, start, size in slices:
                part = master.detach().view(-1).narrow(0, start, size)
                param.data.copy_(part.view_as(param))

    @property
    def scaler(self) -> Any:
        """The object with the loss scale."""
        # Up to 0.18, the optimizer itself.
        return getattr(self.optimizer, 'loss_scale_config', self.optimizer)

    def update_scale(self, has_overflown: bool) -> None:
        """Let DeepSpeed count an update, and move the scale by its rules."""
        self.optimizer._update_scale(has_overflown)


class ShardedPlaces(Places):
    """Masters of which each rank has a part."""

    has_masters = True
    # The optimizer's flag for an offload to the CPU, if it can have one.
    offload_flag = ''

    @property
    def is_offloaded(self) -> bool:
        """Whether masters and their gradients are on the CPU."""
        if not self.offload_flag:
            return False
        return bool(getattr(self.optimizer, self.offload_flag))

    def clip(self, grads: Sequence[Tensor], factor: float) -> None:
        """Multiply the gradients by a factor, in place."""
        super().clip(grads, factor)
        if self.is_offloaded:
            # DeepSpeed has taken these norms on the host already.
            norms = self.optimizer.norm_for_param_grads
            for key in norms:
                norms[key] = norms[key] * factor

    @property
    def scaler(self) -> Any:
        """The object with the loss scale."""
        return self.optimizer.loss_scaler

    def placement(self, num_gradients: int) -> Placement:
        """Return the sharding of the gradients."""
        ranks = dist.get_process_group_ranks(self.group)
        # A group of a single rank holds all of each gradient.
        if len(ranks) < 2:
            return Placement()
        return Placement((0,) * num_gradients, (min(ranks),))

    @property
    def group(self) -> Any:
        """The ranks that share the masters."""
        group = self.optimizer.dp_process_group
        return dist.group.WORLD if group is None else group


class Bf16Places(ShardedPlaces):
    """``BF16_Optimizer``: whole gradients in float32, and parts of masters."""

    def params(self) -> List[Tensor]:
        """Return the trained parameters of the model."""
        return join(self.optimizer.bf16_groups)

    def gradients(self) -> List[Tuple[Tensor, Tensor]]:
        """Return the parameters with a gradient, and the gradients."""
        optimizer, pairs = self.optimizer, []
        for group, grads, are_there in zip(
            optimizer.bf16_groups,
            optimizer.fp32_groups_gradients,
            optimizer.fp32_groups_has_gradients,
        ):
            for param, grad, is_there in zip(group, grads, are_there):
                if is_there:
                    pairs.append((param, grad))
        return pairs

    def placement(self, num_gradients: int) -> Placement:
        """Return the sharding of the gradients, which are whole."""
        return Placement()

    def masters(self) -> List[Tensor]:
        """Return this rank's parts of the weights in float32."""
        return list(self.optimizer.fp32_groups_flat_partition)

    def copies(self) -> List[Tensor]:
        """Return the weights in bfloat16."""
        return self.params()

    def _cut(self) -> List[Tuple[Tensor, List[Slice]]]:
        rank = dist.get_rank(self.group)
        pairs = []
        for master, group in zip(self.masters(), self.optimizer.bf16_groups):
            first = rank * master.numel()
            whole = lay_out(group, [param.numel() for param in group])
            pairs.append((master, cut_out(whole, first, master.numel())))
        return pairs

    def discard(self) -> None:
        """Drop the gradients, and what forward did to trained weights."""
        self.optimizer.clear_hp_grads()
        self.optimizer.clear_lp_grads()
        self.optimizer.update_lp_params()

    @property
    def scaler(self) -> Any:
        """The object with the loss scale, which there is none."""
        return None


class Zero12Places(ShardedPlaces):
    """ZeRO 1 and 2: parts of gradients and masters."""

    offload_flag = 'cpu_offload'

    def params(self) -> List[Tensor]:
        """Return the trained parameters of the model."""
        return join(self.optimizer.bit16_groups)

    def gradients(self) -> List[Tuple[Tensor, Tensor]]:
        """Return the parameters with a part here, and their gradients."""
        optimizer, pairs = self.optimizer, []
        for index, master in enumerate(self.masters()):
            if self.is_offloaded:
                pairs += take_slices(master.grad, self._slices[id(master)])
                continue
            # Alignment between parameters is in a list of its own entries.
            parts = []
            for part in optimizer.averaged_gradients.get(index) or ():
                if not getattr(part, '_zero_padding', False):
                    parts.append(part)
            pairs += list(zip(optimizer.params_in_partition[index], parts))
        return pairs

    def masters(self) -> List[Tensor]:
        """Return this rank's parts of the weights in float32."""
        return list(self.optimizer.single_partition_of_fp32_groups)

    def copies(self) -> List[Tensor]:
        """Return the weights that the model computes with."""
        return self.params()

    def _cut(self) -> List[Tuple[Tensor, List[Slice]]]:
        optimizer, pairs = self.optimizer, []
        rank = dist.get_rank(self.group)
        for index, master in enumerate(self.masters()):
            first = optimizer.grad_start_offset[index][rank]
            place = optimizer.grad_partition_insertion_offset[index][rank]
            slices = []
            for param in optimizer.params_in_partition[index]:
                key = optimizer.get_param_id(param)
                start = int(place[key])
                size = param.numel() - int(first[key])
                size = min(size, master.numel() - start)
                slices.append(Slice(param, start, size))
            pairs.append((master, slices))
        return pairs

    def discard(self) -> None:
        """Drop the gradients, and what forward did to trained weights."""
        optimizer = self.optimizer
        optimizer.micro_step_id = -1
        optimizer.zero_grad(set_to_none=True)
        # These are of newer versions.
        if hasattr(optimizer, '_release_preflattened_grad_buffers'):
            optimizer._release_preflattened_grad_buffers()
        if hasattr(optimizer, '_offload_accumulated_param_ids'):
            optimizer._offload_accumulated_param_ids = set()
        if self.is_offloaded:
            optimizer.reset_cpu_buffers()
            forget_gradients(self.masters())
        for key in optimizer.averaged_gradients:
            optimizer.averaged_gradients[key] = None
        for key in getattr(optimizer, 'all_grad_tensors', ()):
            optimizer.all_grad_tensors[key] = None
        optimizer.update_lp_params()


class Zero3Places(ShardedPlaces):
    """ZeRO 3: parts of gradients, masters and weights."""

    is_gathered = True
    offload_flag = 'offload_optimizer'

    def __init__(self, optimizer: Any, module: nn.Module) -> None:
        super().__init__(optimizer, module)
        # Padding is memory that nobody has written to: it may be NaN.
        parts: List[Tuple[Tensor, Tensor]] = []
        for master in self.masters():
            parts += take_slices(master.detach(), self._slices[id(master)])
        frozen: Any
        for frozen in module.parameters():
            if not frozen.requires_grad:
                size = self._size_here(frozen)
                part = frozen.ds_tensor.detach().view(-1).narrow(0, 0, size)
                parts.append((frozen, part))
        self._parts: List[Tensor] = []
        for param, part in parts:
            self._parts.append(part)
            self._slices[id(part)] = [Slice(param, 0, part.numel())]

    def _size_here(self, param: Any) -> int:
        """Return the number of elements of a parameter on this rank."""
        size: int = param.partition_numel()
        left: int = param.ds_numel - dist.get_rank(self.group) * size
        return max(0, min(size, left))

    def params(self) -> List[Tensor]:
        """Return the trained parameters, which are empty between passes."""
        return join(self.optimizer.fp16_groups)

    def gradients(self) -> List[Tuple[Tensor, Tensor]]:
        """Return the trained parameters, and the parts of gradients."""
        optimizer, pairs = self.optimizer, []
        for index, master in enumerate(self.masters()):
            if self.is_offloaded:
                pairs += take_slices(master.grad, self._slices[id(master)])
                continue
            parts = optimizer.averaged_gradients.get(index) or ()
            for param, part in zip(optimizer.fp16_groups[index], parts):
                # Padding may be anything in older versions.
                size = self._size_here(param)
                pairs.append((param, part.view(-1).narrow(0, 0, size)))
        return pairs

    def masters(self) -> List[Tensor]:
        """Return this rank's parts of the weights in float32."""
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def copies(self) -> List[Tensor]:
        """Return this rank's parts of the weights in half precision."""
        copies = []
        flats = self.optimizer.fp16_partitioned_groups_flat
        # In float32 both may be one tensor.
        for master, copy in zip(self.masters(), flats):
            if copy is not master:
                copies.append(copy)
        return copies

    def weights(self) -> List[Tensor]:
        """Return this rank's parts of all weights, without padding."""
        return self._parts

    def _cut(self) -> List[Tuple[Tensor, List[Slice]]]:
        pairs = []
        for flat, group in (
            *zip(self.masters(), self.optimizer.fp16_groups),
            *zip(self.copies(), self.optimizer.fp16_groups),
        ):
            slices, start = [], 0
            for param in group:
                slices.append(Slice(param, start, self._size_here(param)))
                start += param.partition_numel()
            pairs.append((flat, slices))
        return pairs

    def discard(self) -> None:
        """Drop the gradients, and the weights that forward has gathered."""
        optimizer = self.optimizer
        optimizer._pre_step()
        optimizer._partition_all_parameters()
        optimizer._overflow_clean_up(optimizer.loss_scale)
        optimizer.inf_or_nan_tracker.zero_()
        optimizer.grad_partitions_flat_buffer.zero_()
        forget_gradients(self.masters())


CLASSES = {
    'FP16_Optimizer': HalfPlaces,
    'FP16_UnfusedOptimizer': HalfPlaces,
    'BF16_Optimizer': Bf16Places,
    'DeepSpeedZeroOptimizer': Zero12Places,
    'DeepSpeedZeroOptimizer_Stage3': Zero3Places,
}


def find_places(optimizer: Any, module: nn.Module) -> Places:
    """Return the places of an engine's optimizer.

    Raises:
        GuardConfigError: If the class of the optimizer is not known.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return Places(optimizer, module)
    name = type(optimizer).__name__
    if name not in CLASSES:
        raise GuardConfigError(
            f"DeepSpeed's engine has the optimizer {name}, and it is not "
            'known where that keeps gradients and weights. Known are: '
            f'{", ".join(CLASSES)}, and those of PyTorch.'
        )
    return CLASSES[name](optimizer, module)


def forget_gradients(masters: Sequence[Tensor]) -> None:
    """Set the gradients that masters keep between windows to 0.

    A parameter that the next window does not use would step by what is there.
    """
    for master in masters:
        if master.grad is not None:
            master.grad.zero_()
