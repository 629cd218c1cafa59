"""Migrations of config texts, for tests."""

from mmengine.config import Config

from mmnanguard.migrate import migrate, migrate_tree
from mmnanguard.optim.apply_guard import load_overlay

FP32 = 'mmnanguard.NanGuardOptimWrapper'
FP16 = 'mmnanguard.NanGuardAmpOptimWrapper'


class Migration:
    """The migration of one file in a folder, perhaps with bases beside it."""

    def __init__(self, folder, text, guard=None, **bases):
        for name, base in bases.items():
            (folder / f'{name}.py').write_text(base)
        self.path = folder / 'config.py'
        self.path.write_text(text)
        migration = migrate(self.path, load_overlay, guard)
        assert self.path.read_text() == text
        self.new, self.notes = migration.new, migration.notes
        self.path.write_text(self.new)
        again = migrate(self.path, load_overlay, guard)
        assert again.new == self.new  # a second time does nothing
        self.cfg = Config.fromfile(
            str(self.path), import_custom_modules=False
        ).to_dict()

    def notes_of(self, kind):
        return '\n'.join(self.notes.sections()[kind])

    @property
    def left(self):
        return self.notes_of('cannot do, left to you')

    @property
    def changed(self):
        return self.notes_of('changed in meaning')


def migrate_in_place(folder, leaf, **bases):
    """Migrate a leaf with its bases; return its new value and the notes."""
    for name, text in dict(bases, leaf=leaf).items():
        (folder / f'{name}.py').write_text(text)
    path = folder / 'leaf.py'
    notes = ''
    for file, migrated in migrate_tree([path], load_overlay).files.items():
        file.write_text(migrated.new)
        for lines in migrated.notes.sections().values():
            notes += '\n'.join(lines)
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    return cfg.to_dict(), notes
