"""Migrations of config texts, for tests."""

from mmengine.config import Config

from mmnanguard.migrate import migrate
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
