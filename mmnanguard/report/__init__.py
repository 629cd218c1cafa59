"""Reads what runs told and says how they are. The standard library only; the
page needs plotly, text in the terminal rich.
"""

from .page import write_page
from .read_events import read_events
from .run_report import RunReport, load_run
from .terminal import print_reports
from .verdict import Verdict

__all__ = [
    'RunReport',
    'Verdict',
    'load_run',
    'print_reports',
    'read_events',
    'write_page',
]
