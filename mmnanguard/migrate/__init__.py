"""From 1.x, or from guards written by hand; needs libcst."""

from .migrate import Migrated, migrate

__all__ = ['Migrated', 'migrate']
