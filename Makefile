# `make train` and `make test` do everything on a fresh machine that has
# Python 3.11: the environment in .venv, pinned requirements, the work itself.
PYTHON ?= python3.11
# Files of tests that run at a time.
WORKERS ?= 2
# The Python of the machine with a GPU, and its version.
GPU_PYTHON ?= python3
GPU_VERSION ?= 3.12
DEVICE_TESTS ?= tests/test_device tests/test_hooks \
	tests/test_runs/test_leaves_no_trace.py tests/test_runs/test_stories.py \
	tests/test_runs/test_resume.py tests/test_runs/test_models.py
PIP_INSTALL = pip install --quiet --disable-pip-version-check
PIP = .venv/bin/$(PIP_INSTALL)
PYTEST = -m pytest --numprocesses $(WORKERS) --dist loadfile \
	--no-loadscope-reorder
# Tests that depend on the versions of MMEngine and PyTorch.
STACK_TESTS = $(filter-out tests/test_docs tests/test_migrate \
	tests/test_readme.py tests/test_report, $(wildcard tests/test_*))

DEEPSPEED_TESTS = $(wildcard tests/*/test_deepspeed_*.py)

.PHONY: train test test-onedl test-floor test-device test-deepspeed cases lint \
	docs linkcheck benchmark gpu gpu-wheels clean

# Operations as small as those of the digits and the tests wait for one another
# with more threads.
train cases test test-onedl test-floor test-deepspeed: export OMP_NUM_THREADS = 1

train: .venv/train.done
	.venv/bin/python tools/fire_drill.py configs/digits/drill_fp16.py \
		--work-dir work_dirs/digits

cases: .venv/train.done
	.venv/bin/python tools/cases.py

test: .venv/test.done
	.venv/bin/python $(PYTEST)

# On the maintained fork of MMEngine, which is the same package, hence apart:
# without what knows no MMEngine, and the longest stories.
test-onedl: .venv-onedl/test.done
	.venv-onedl/bin/python $(PYTEST) \
		$(filter-out tests/test_core tests/test_numerics, $(STACK_TESTS)) \
		--ignore-glob '*campaign.py' --ignore-glob '*/test_benchmark*.py' \
		--ignore tests/test_runs/test_cases.py \
		--ignore tests/test_runs/test_diverging.py

# On the oldest PyTorch: a download of gigabytes.
test-floor: .venv-floor/test.done
	.venv-floor/bin/python $(PYTEST) $(STACK_TESTS)

# DeepSpeed has no wheel; its operations are compiled when they are used.
test-deepspeed: export DS_BUILD_OPS = 0
test-deepspeed: .venv-deepspeed/test.done
	PATH="$(CURDIR)/.venv-deepspeed/bin:$$PATH" \
		.venv-deepspeed/bin/python $(PYTEST) $(DEEPSPEED_TESTS)

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/codespell
	.venv/bin/mypy mmnanguard
	.venv/bin/python tests/language.py
	.venv/bin/vermin --quiet --violations --eval-annotations --target=3.8- \
		mmnanguard tools benchmarks configs

# With a fresh environment: a page that is not read again warns of nothing.
docs: .venv/docs.done
	for language in en zh_cn; do .venv/bin/sphinx-build --fail-on-warning \
		--fresh-env --keep-going --quiet docs/$$language build/docs/$$language || exit 1; \
		done

# Needs a network; what cannot be reached is reported, and is no error.
linkcheck: .venv/docs.done
	-.venv/bin/sphinx-build --builder linkcheck docs/en build/linkcheck

benchmark: .venv/benchmark.done
	.venv/bin/python benchmarks/benchmark.py --threads 1

# Of a folder, by a file of requirements.
define environment
test -d $(1) || $(PYTHON) -m venv $(1)
$(1)/bin/$(PIP_INSTALL) --requirement $(2)
$(1)/bin/$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
touch $@
endef

.venv/train.done: requirements/train.txt requirements/common.txt \
		pyproject.toml setup.cfg
	$(call environment,.venv,$<)

.venv-onedl/test.done: requirements/onedl.txt requirements/common.txt \
		requirements/tests.txt
	$(call environment,.venv-onedl,$<)

# Beside what .venv has, so that nothing is installed twice.
.venv-deepspeed/test.done: requirements/deepspeed.txt .venv/test.done
	test -d .venv-deepspeed || $(PYTHON) -m venv .venv-deepspeed
	cd .venv-deepspeed/lib/python*/site-packages && \
		echo $(CURDIR)/.venv/lib/python*/site-packages > venv.pth
	# Python 3.11 brings one that needs the package wheel to build wheels.
	.venv-deepspeed/bin/$(PIP_INSTALL) \
		$$(grep ^setuptools== requirements/common.txt)
	.venv-deepspeed/bin/$(PIP_INSTALL) --no-build-isolation -r $<
	touch $@

.venv-floor/test.done: requirements/floor.txt
	$(call environment,.venv-floor,$<)

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

# On a machine with a GPU, whatever its torch is: tests, updates and whole
# iterations in at most 8 minutes. GPU_OPTIONS='--simulated-device --quick'
# tries the command on a CPU.
gpu:
	test ! -d wheels || $(GPU_PYTHON) -m pip install --quiet --no-index \
		--no-deps --upgrade --target .gpu-packages wheels/*.whl
	PYTHONPATH=.gpu-packages $(GPU_PYTHON) -W ignore \
		benchmarks/gpu.py $(GPU_OPTIONS)

# With a network: what that machine lacks beside torch, to carry along.
gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary :all: \
		--python-version $(GPU_VERSION) --dest wheels \
		--requirement requirements/gpu.txt

# Whole files of tests, most of which know no device, on the simulated one.
test-device: .venv/test.done
	OMP_NUM_THREADS=1 .venv/bin/python $(PYTEST) --simulated-device \
		$(DEVICE_TESTS)

clean:
	rm -rf .venv .venv-* .gpu-packages wheels work_dirs build *.egg-info
