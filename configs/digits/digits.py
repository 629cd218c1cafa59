"""Handwritten digits: a dataset, a network and a metric, small and real.

The data are the 1,797 digits of 8 x 8 pixels that scikit-learn ships, so the
configs beside this file train on real data with neither download nor GPU.
Run them from the root of the repository, which the import below needs::

    custom_imports = dict(
        imports=['configs.digits.digits'], allow_failed_imports=False)
"""

from typing import ClassVar, Dict, List, Optional, Sequence, Union

import torch
from mmcv.cnn import ConvModule
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """The digits of one split: 1,437 to train on, 360 to validate with.

    The split is stratified by class and the same for every seed. A sample's
    ``img_path`` ends in its index within the split: there is no such file,
    but 'digits/train/000123' is ``dataset[123]``.

    Args:
        split: 'train' or 'val'.
        **kwargs: To :class:`mmengine.dataset.BaseDataset`.
    """

    METAINFO: ClassVar[dict] = dict(classes=tuple('0123456789'))

    def __init__(self, split: str, **kwargs) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f"split is {split!r}, expected 'train' or 'val'")
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        digits = load_digits()
        images = digits.images.astype('float32')[..., None]
        split = train_test_split(
            images,
            digits.target,
            test_size=360,
            stratify=digits.target,
            random_state=0,
        )
        is_val = self.split == 'val'
        return [
            dict(
                img=img,
                img_path=f'digits/{self.split}/{idx:06d}',
                gt_label=int(label),
            )
            for idx, (img, label) in enumerate(zip(*split[is_val::2]))
        ]


@TRANSFORMS.register_module()
class PackDigits:
    """Ends a pipeline: packs an image of shape (H, W, 1) and its metadata."""

    def __call__(self, results: dict) -> dict:
        sample = BaseDataElement(
            metainfo={key: results[key] for key in ('sample_idx', 'img_path')},
            gt_label=torch.tensor(results['gt_label']),
        )
        inputs = torch.from_numpy(results['img']).permute(2, 0, 1)
        return dict(inputs=inputs.contiguous(), data_samples=sample)


class Depthwise(nn.Module):
    """A depthwise convolution with large weights, then a norm in float32.

    With a gain of 1e5, sums of weights times ordinary numbers overflow
    float16, while the weights and the numbers do not.
    """

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, 3, groups=channels, bias=False
        )
        with torch.no_grad():
            self.conv.weight *= gain
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features).float()).relu()


@MODELS.register_module()
class DigitsNet(BaseModel):
    """Blocks of convolution, norm and ReLU, then a linear head.

    The convolutions are not padded, for speed: in float16 on a CPU, the
    backward pass of a padded convolution is several times slower.

    Args:
        channels: Output channels of each block.
        norm_cfg: Norm layer of each block.
        depthwise_gain: The gain of a :class:`Depthwise` after the first
            block; 0 means that there is none.
        **kwargs: To :class:`mmengine.model.BaseModel`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 16),
        norm_cfg: Optional[dict] = None,
        depthwise_gain: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        widths = (1, *channels)
        self.backbone = nn.Sequential(
            *(
                ConvModule(before, after, kernel_size=3, norm_cfg=norm_cfg)
                for before, after in zip(widths, channels)
            )
        )
        if depthwise_gain:
            self.backbone.insert(1, Depthwise(channels[0], depthwise_gain))
        self.head = nn.Linear(widths[-1], 10)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[List[BaseDataElement]] = None,
        mode: str = 'tensor',
    ) -> Union[Tensor, Dict[str, Tensor], List[BaseDataElement]]:
        scores = self.head(self.backbone(inputs).mean(dim=(2, 3)))
        if mode == 'tensor':
            return scores
        if mode == 'loss':
            labels = torch.stack([item.gt_label for item in data_samples])
            return dict(loss=F.cross_entropy(scores, labels))
        for sample, label in zip(data_samples, scores.argmax(dim=1)):
            sample.pred_label = label
        return data_samples


@METRICS.register_module()
class DigitsAccuracy(BaseMetric):
    """Share of right labels in percent, under the key 'accuracy'."""

    default_prefix = ''  # empty, not None: MMEngine warns of a missing one

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        self.results += [
            bool(item['pred_label'] == item['gt_label'])
            for item in data_samples
        ]

    def compute_metrics(self, results: List[bool]) -> Dict[str, float]:
        return dict(accuracy=100.0 * sum(results) / len(results))
