"""Migration of configs of mmcv 1.x, and of hand-written guards; needs libcst.

This package is an extra (``pip install "mmnanguard[migrate]"``) and no
distribution of its own, because its table of guarded types has to agree with
the wrappers of the same version, and because it shares the reader of configs
with the launcher. It costs nothing unless it is imported.

Reading order: ``migrate`` (what users call), ``run`` (the files of a tree,
each after its bases), ``tree`` and ``bases`` (the files), ``rewrite`` (the
steps for one file), ``completion`` and ``differences`` (what the new file
still lacks). ``migration`` holds what the steps share, and which key goes
where (``notes``, ``config_value``); ``source``, ``dict_source`` and
``render`` are the file as a syntax tree. The steps: ``wrapper``,
``optimizer_config``, ``guarded_types``, ``nan_hooks``, ``project_source``;
``schedules``, ``policy``, ``policies``, ``old_schedules``; ``loops``;
``hooks``, ``custom_hooks``, ``hook_guards``; ``environment``;
``model_config`` (``model_keys``). ``place`` and ``comments`` put the result
back into the file.
"""

from .migrate import Migrated, Migrations, flatten, migrate, migrate_tree

__all__ = ['Migrated', 'Migrations', 'flatten', 'migrate', 'migrate_tree']
