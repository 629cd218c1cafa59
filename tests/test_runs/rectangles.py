"""Made-up pictures in the layouts of COCO and ADE20K."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = 64
CATEGORIES = ('person', 'car')  # as mmdet knows them


def make_rectangles(root, count):
    """Write pictures with a rectangle of each class.

    The layout is ``images/000012.jpg``, ``masks/000012.png`` and one
    ``annotations.json``.

    Args:
        root (str or Path): The folder to be given as ``data_root``.
        count (int): Number of pictures.

    Returns:
        Path: ``root``.
    """
    root = Path(root)
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(count):
        image = rng.integers(0, 60, (SIZE, SIZE, 3), dtype='uint8')
        mask = np.ones((SIZE, SIZE), 'uint8')  # 0 is ignored
        for kind in range(len(CATEGORIES)):
            x, y = rng.integers(0, 30, 2).tolist()
            width, height = rng.integers(16, 32, 2).tolist()
            place = np.s_[y : y + height, x : x + width]
            image[place] = (200, 100, 50 + 150 * kind)
            mask[place] = 2 + kind
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=kind + 1,
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                )
            )
        name = f'{index:06d}'
        cv2.imwrite(str(root / 'images' / f'{name}.jpg'), image)
        cv2.imwrite(str(root / 'masks' / f'{name}.png'), mask)
        images.append(
            dict(id=index, file_name=f'{name}.jpg', height=SIZE, width=SIZE)
        )
    categories = [
        dict(id=number, name=name) for number, name in enumerate(CATEGORIES, 1)
    ]
    content = dict(
        images=images, annotations=annotations, categories=categories
    )
    (root / 'annotations.json').write_text(json.dumps(content))
    return root
