# `make train` and `make test` do everything on a fresh machine that has
# Python 3.11: the environment in .venv, pinned requirements, the work itself.
PYTHON ?= python3.11
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.PHONY: train test cases lint docs linkcheck benchmark clean

# Operations as small as those of the digits and the tests wait for one another
# with more threads.
train test cases: export OMP_NUM_THREADS = 1

train: .venv/train.done
	.venv/bin/python tools/fire_drill.py configs/digits/drill_fp16.py \
		--work-dir work_dirs/digits

cases: .venv/train.done
	.venv/bin/python tools/cases.py

test: .venv/test.done
	.venv/bin/python -m pytest

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/codespell
	.venv/bin/mypy mmnanguard

docs: .venv/docs.done
	for language in en zh_cn; do .venv/bin/sphinx-build --fail-on-warning \
		--keep-going --quiet docs/$$language build/docs/$$language || exit 1; \
		done

# Needs a network; what cannot be reached is told, and is no error.
linkcheck: .venv/docs.done
	-.venv/bin/sphinx-build --builder linkcheck docs/en build/linkcheck

benchmark: .venv/benchmark.done
	.venv/bin/python tools/benchmark.py --threads 1

.venv/train.done: requirements/train.txt pyproject.toml setup.cfg
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) --requirement requirements/train.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/docs.done: .venv/train.done requirements/docs.txt
	$(PIP) --requirement requirements/docs.txt
	touch $@

.venv/benchmark.done: .venv/train.done requirements/benchmark.txt
	$(PIP) --requirement requirements/benchmark.txt
	touch $@

.venv/test.done: .venv/train.done requirements/tests.txt \
		requirements/mmpretrain.txt
	$(PIP) --requirement requirements/tests.txt
	$(PIP) --no-deps --upgrade --target .venv/mmpretrain \
		--requirement requirements/mmpretrain.txt
	touch $@

clean:
	rm -rf .venv work_dirs build *.egg-info
