"""Migration of configs of mmcv 1.x, and of hand-written guards; needs libcst.

This package is an extra (``pip install "mmnanguard[migrate]"``) and no
distribution of its own, because its table of guarded types has to agree with
the wrappers of the same version, and because it shares the reader of configs
with the launcher. It costs nothing unless it is imported.

Reading order: ``migrate`` (the steps in their order), ``migration`` (what the
steps share, and which key goes where; ``notes``, ``config_value``),
``source``, ``dict_source`` and ``render`` (the file as a syntax tree),
``bases`` (what it inherits), then the steps: ``wrapper``,
``optimizer_config``, ``guarded_types``, ``nan_hooks``;
``schedules``, ``policy``, ``policies``; ``loops``; ``hooks``;
``environment``. ``place`` and ``comments`` put the result back into the file.
"""

from .migrate import Migrated, Migrations, flatten, migrate, migrate_tree

__all__ = ['Migrated', 'Migrations', 'flatten', 'migrate', 'migrate_tree']
