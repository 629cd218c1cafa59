from concurrent.futures import ThreadPoolExecutor

from mmnanguard.datasets.audit_report import audit_report, write_report


def test_ranks_that_end_together(tmp_path):
    """All ranks see all rows, so each of them writes the report."""
    problem = dict(check='Finite', text='img[0] is nan' * 1000)
    row = dict(index=0, name='a', problems=[problem] * 20)
    report = audit_report({0: row}, [], {})
    write_report(report, tmp_path)
    right = (tmp_path / 'report.json').read_bytes()

    def write(rank):
        for _ in range(50):
            write_report(report, tmp_path)
            assert (tmp_path / 'report.json').read_bytes() == right

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(4)))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {'report.json', 'bad_samples.txt'}
