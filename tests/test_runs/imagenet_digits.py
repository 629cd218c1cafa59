"""Real images in ImageNet's layout: scikit-learn's handwritten digits."""

from pathlib import Path

import cv2
from sklearn.datasets import load_digits


def make_imagenet_digits(root, num_train, num_val, image_size=32):
    """Write PNG files with the annotation files that mmpretrain reads.

    There are annotation files instead of a folder per class, because
    mmpretrain insists on all 1000 folders. The layout is
    ``{train,val}/000012.png`` beside ``meta/{train,val}.txt``, one line
    ``000012.png 2`` per image.

    Args:
        root (str or Path): The folder to be given as ``data_root``.
        num_train (int): Number of training images.
        num_val (int): Number of validation images, none of them in training.
        image_size (int): Edge length of the square images in pixels.

    Returns:
        Path: ``root``.
    """
    root = Path(root)
    digits = load_digits()
    start = 0
    for split, count in (('train', num_train), ('val', num_val)):
        stop = start + count
        if stop > len(digits.target):
            raise ValueError(
                f'{stop} images wanted, but scikit-learn has '
                f'{len(digits.target)} digits'
            )
        lines = []
        for idx in range(start, stop):
            name = f'{idx:06d}.png'
            # The pixels are counts of 0 to 16.
            image = cv2.resize(
                (digits.images[idx] * 255 / 16).astype('uint8'),
                (image_size, image_size),
            )
            (root / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / name), image)
            lines.append(f'{name} {digits.target[idx]}\n')
        (root / 'meta').mkdir(parents=True, exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
        start = stop
    return root
