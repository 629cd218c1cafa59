"""How Sphinx builds the pages of this folder: as those of docs/en."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'en'))
from conf import *  # noqa: F403

language = 'zh_CN'
