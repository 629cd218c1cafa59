import importlib
import re
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def test_each_stage_is_timed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    tool = importlib.import_module('profile_update')

    status = tool.main(['--params', 'tiny', '--repeat', '2'])

    assert status == 0
    rows = re.findall(r'\| -* ?(.*?) +\| +([\d.]+)', capsys.readouterr().out)
    names, times = zip(*((name, float(ms)) for name, ms in rows))
    assert names[0] == 'the whole update'
    assert len(names) == 12
    assert min(times) >= 0 < times[names.index('optimizer.step')]
