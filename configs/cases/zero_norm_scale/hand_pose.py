"""A hand from an image: its pose, its size, and where it is.

Translations are learnt in units of the hand, as with ``norm_by_hand`` in the
report: divided by the length of its middle finger. All lengths are in mm.
"""

from typing import Dict, Optional

import torch
from mmengine.registry import DATASETS, MODELS
from torch import Generator, Tensor, nn

from configs.cases.shared import MadeUpDataset, MeasuredNet
from mmnanguard import watch
from mmnanguard.numerics.safe_ops import safe_divide, safe_norm

REST = torch.tensor([60.0, 35.0, 22.0, 18.0])  # a finger's bones
MIDDLE = 2  # the finger; its joints are 9 to 12, 0 is the wrist
LOW, HIGH = 9, 13


def bend(bones: Tensor, theta: Tensor) -> Tensor:
    """Joints (N, 21, 3) of bones (N, 5, 4) and of how far fingers are bent,
    in radians, (N, 5).
    """
    angles = theta[..., None] * torch.arange(4.0)
    spread = (torch.arange(5.0) - MIDDLE)[:, None].expand_as(angles) * 0.15
    direction = torch.stack(
        (spread.sin(), spread.cos() * angles.cos(), angles.sin()), dim=-1
    )
    joints = (bones[..., None] * direction).cumsum(dim=-2).flatten(1, 2)
    return torch.cat((torch.zeros_like(joints[:, :1]), joints), dim=1)


def robust_l1(difference: Tensor) -> Tensor:
    return (difference.square() + 1e-4).sqrt().mean()


def project(joints: Tensor) -> Tensor:
    return 500 * joints[..., :2] / joints[..., 2:].clamp(min=100)


@DATASETS.register_module()
class HandDataset(MadeUpDataset):
    """Hands 400 to 1000 mm away. Of a spoilt one, joints 9 to 12 coincide."""

    NAME = 'hand'

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        theta = torch.rand(size, 5, generator=generator)
        shape = 0.8 + 0.4 * torch.rand(size, 1, generator=generator)
        bones = shape[..., None] * REST.expand(size, 5, 4)
        bones[self.spoilt, MIDDLE, 1:] = 0
        place = torch.rand(size, 3, generator=generator)
        trans = place * torch.tensor([200, 200, 600]) + torch.tensor(
            [-100, -100, 400]
        )
        joints = bend(bones, theta)
        fingers = joints[:, LOW + 1 : HIGH] - joints[:, LOW : HIGH - 1]
        mixing = torch.randn(9, 32, generator=Generator().manual_seed(0))
        seen = torch.cat((theta, shape, place), dim=1) @ mixing
        return dict(
            image=seen.tanh(),
            theta=theta,
            shape=shape,
            bones=bones,
            trans=trans,
            norm_scale=fingers.norm(dim=-1).sum(dim=-1),
        )


@MODELS.register_module()
class HandNet(MeasuredNet):
    """Two layers that predict pose, size and place.

    Args:
        epsilon: Added to the length that is divided by.
        min_scale: That length is not less.
        scale_of: Whose length turns the place back into mm: that of the
            'predicted' hand, or of the 'labelled' one.
        is_safe: Use mmnanguard's operations.
    """

    def __init__(
        self,
        epsilon: float = 0.0,
        min_scale: Optional[float] = None,
        scale_of: str = 'predicted',
        is_safe: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.min_scale = epsilon, min_scale
        self.scale_of, self.is_safe = scale_of, is_safe
        self.backbone = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(64, 9)

    def predict(self, image: Tensor):
        outputs = self.head(self.backbone(image)).float()
        theta, shape, place = outputs.split((5, 1, 3), dim=1)
        # Around the middle of what is possible.
        return theta, shape + 1, 5 * place + torch.tensor([0.0, 0.0, 9.0])

    def norm_scale(self, joints: Tensor) -> Tensor:
        """Length of the middle finger, (N, 1)."""
        bones = joints[:, LOW + 1 : HIGH] - joints[:, LOW : HIGH - 1]
        if self.is_safe:
            return safe_norm(bones).sum(dim=-1, keepdim=True)
        scale = bones.square().sum(dim=-1).sqrt().sum(dim=-1, keepdim=True)
        return scale if self.min_scale is None else scale.clamp(self.min_scale)

    def losses(self, image, theta, shape, bones, trans) -> Dict[str, Tensor]:
        pose, size, place = self.predict(image)
        labelled, predicted = bend(bones, theta), bend(bones, pose)
        scale_gt = watch('norm_scale_gt', self.norm_scale(labelled))
        scale = scale_gt
        if self.scale_of == 'predicted':
            scale = self.norm_scale(predicted)
        if self.is_safe:
            place_gt = safe_divide(trans, scale_gt)
        else:
            place_gt = trans / (scale_gt + self.epsilon)
        place_mm = place * (scale + self.epsilon)
        seen = project(predicted + place_mm[:, None])
        seen_gt = project(labelled + trans[:, None])
        return dict(
            loss_theta=robust_l1(pose - theta),
            loss_shape=robust_l1(size - shape),
            loss_trans=robust_l1(place - place_gt),
            loss_joint_rel=0.01 * robust_l1(predicted - labelled),
            loss_joint_img=0.01 * robust_l1(seen - seen_gt),
        )

    def errors(self, image, theta, shape, bones, trans) -> Tensor:
        """Of the place, in mm."""
        *_, place = self.predict(image)
        scale = self.norm_scale(bend(bones, theta))
        return (place * scale - trans).norm(dim=-1)
