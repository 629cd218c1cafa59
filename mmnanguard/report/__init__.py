"""Ring 3, after the run: read the rows of runs and assess them.

Only the standard library is needed, except for the page, which needs plotly,
and for text in the terminal, which needs rich.

Reading order: ``run_report`` (the report of a run, from its files),
``run_files``, ``read_events``, ``read_scalars`` and ``read_samples`` (files,
rows and curves; ``parse_row`` removes what is odd), ``summarize``,
``summary``, ``loss_rise`` (counts and rankings), ``alerts`` (what came of
them), ``assessment`` (healthy or sick), with ``badge``, ``findings``,
``recovery``, ``collect_evidence``, ``culprit_clause``, ``recommendations`` and
``steps_for_end``; ``validation`` (metrics, best checkpoints); then the output:
``page`` with ``figure``, ``panels``, ``traces``, ``event_traces`` and
``downsample``, for several runs ``comparison_figure``, and of the samples
``stability_figure``, ``heatmap`` and ``margins_line``; ``terminal``;
``row_text`` (sentences, and commands to paste).
"""

from .assessment import Assessment
from .page import write_page
from .read_events import read_events
from .run_report import RunReport, load_run
from .terminal import print_reports

Verdict = Assessment  # the name of the class in version 0.1

__all__ = [
    'Assessment',
    'RunReport',
    'load_run',
    'print_reports',
    'read_events',
    'write_page',
]
