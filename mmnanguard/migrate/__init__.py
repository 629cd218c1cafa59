"""Migration of configs of mmcv 1.x, and of hand-written guards; needs libcst.

It is an extra of this distribution (``pip install "mmnanguard[migrate]"``)
and no distribution of its own: its table of guarded types has to agree with
the wrappers of the same version, it uses the same reader of configs as the
launcher, costs nothing unless it is imported, and a single install serves
users.

Reading order: ``migrate`` (the steps in their order), ``migration`` (what the
steps share, and which key goes where; ``notes``, ``config_value``),
``source``, ``dict_source`` and ``render`` (the file as a syntax tree),
``bases`` (what it inherits), then the steps: ``wrapper``,
``optimizer_config``, ``guarded_types``, ``nan_hooks``;
``schedules``, ``policy``, ``policies``; ``loops``; ``hooks``;
``environment``. ``place`` and ``comments`` put the result back into the file.
"""

from .migrate import Migrated, migrate

__all__ = ['Migrated', 'migrate']
