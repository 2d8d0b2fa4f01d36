# Everything runs in .venv, made by `make setup` from constraints.txt. Needs python3 >= 3.10, make, a C++ compiler.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
SET_UP := $(VENV)/.set-up
# 1: a kernel library that does not compile stops the setup; 0: set up without it (pure Python).
NATIVE ?= 1
# One process a core; the tests of a file stay together, for they share what they compile.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=loadfile
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h')
# Where the processor has AVX-512, the rows with bars for AVX2 are measured once more with AVX2 forced, on both sides.
AVX2 := MASKED_SWIN_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
AVX2_ROWS := training_step and not compiled or rate or window_attention
FORMATTED = $(CXX_FILES) $(shell find tests benchmarks -name "*.cpp")

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test test-gpu check test-slow packaging sanitize lint format wheel bench bench-gpu performance clean distclean

help:
	@echo "make demo       train two small networks, denoise held-out images, write demo/report.html"
	@echo "make test       the tests (minutes)"
	@echo "make check      before a release, after make test: lint, slow tests, wheel and installation proofs (long)"
	@echo "make lint       ruff and clang-format, read-only;  make format: let them rewrite"
	@echo "make packaging  the wheel and installation proofs alone (tests/checks/)"
	@echo "make wheel      dist/: the wheel, on x86-64 Linux a manylinux_2_28 one, and its proof"
	@echo "make sanitize   the kernels under sanitizers alone"
	@echo "make bench      the benchmarks (long); some of them: make bench ROWS='block and 180'"
	@echo "make performance  figures and table of docs/performance.md, after make bench"
	@echo "make test-gpu, bench-gpu   the tests and benchmarks that need an NVIDIA or AMD device"
	@echo "make setup      .venv with pinned versions and the compiled kernels; the others call it when needed"
	@echo "make clean      remove what was built;  make distclean: .venv too"

setup: $(SET_UP)

$(SET_UP): pyproject.toml constraints.txt setup.py $(CXX_FILES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: needs Python 3.10 or newer, but '$(PYTHON)' is '$$($(PYTHON) --version 2>&1)';" \
	       "name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	$(RUN) pip install -c constraints.txt setuptools torch numpy
	MASKED_SWIN_NATIVE=$(NATIVE) $(RUN) pip install --no-build-isolation -c constraints.txt -e '.[dev]' || { \
	  echo "make: installation failed; where it is for want of a C++ compiler: make setup NATIVE=0" >&2; exit 1; }
	@touch $@

demo: setup
	$(VENV)/bin/masked-swin demo --output demo

test: setup
	$(RUN) pytest -m "not slow and not gpu" --verbosity=0 $(PARALLEL)

test-gpu: setup
	$(RUN) pytest -m gpu --verbosity=0

check: lint test-slow packaging

test-slow: setup
	$(RUN) pytest -m "slow and not gpu" --verbosity=0 --durations=10 $(PARALLEL)

packaging: setup
	tests/checks/run

wheel: setup
	DIST="$(CURDIR)/dist" tests/checks/run wheel

sanitize: setup
	tests/checks/run sanitizers threads

lint: setup
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)

format: setup
	$(RUN) ruff check --fix
	$(RUN) ruff format
	$(VENV)/bin/clang-format -i $(FORMATTED)

bench: setup
	$(if $(ROWS),,rm -f benchmarks/results/cpu.json)
	$(RUN) pytest benchmarks/cpu --verbosity=0 $(if $(ROWS),-k "$(ROWS)")
	! grep -qw avx512f /proc/cpuinfo || $(AVX2) $(RUN) pytest benchmarks/cpu --verbosity=0 -k "$(or $(ROWS),$(AVX2_ROWS))"

performance: setup
	$(RUN) benchmarks.tools.plot_cost
	$(RUN) benchmarks.tools.performance_table

bench-gpu: setup
	$(RUN) benchmarks.gpu.run $(if $(ROWS),"$(ROWS)")

clean:
	rm -rf build dist *.egg-info kernels/cpu/*.so $(SET_UP)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find kernels masked_swin train tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
