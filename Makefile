# make bench    ResNet-50 against torchvision: speed and parity, on the GPU if torch sees one, else on the CPU
# make test     the tests; ARGS= goes to pytest
# make test-sanitized  the tests of the emulated kernels under ASan and UBSan; ARGS=--first-cases takes one case a test
# make test-oldest   the same on the oldest torch and triton that are supported; its .venv-oldest may take 5 GB
# make gpu      everything a GPU is wanted for, in nine minutes: tests, micro-tests, measurements; one JSON
# make lint     ruff and clang-format, nothing changed;  make format  the same, changed in place
# make info     versions, devices, backends
#
# Each sets up what it needs first: see .ci/environment.  PYTHON= names the Python to start from.

.PHONY: help bench test test-oldest test-sanitized gpu lint format info clean
.DEFAULT_GOAL := help

export PYTHON
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

CXX_SOURCES = $(shell git ls-files --cached --others --exclude-standard -- '*.cpp' '*.cu' '*.cuh' '*.h' 2>/dev/null)
# One worker a core, at most eight, for the tests are single-threaded; on a GPU they share it, each in its own context.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n < 8 ? n : 8)))

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

bench:
	@python=$$(.ci/environment bench) && $$python -m benchmarks.inference $(ARGS)

test test-oldest:
	@python=$$(.ci/environment $(@:test-%=%)) && \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $$python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-sanitized:
	@python=$$(.ci/environment test) && \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $$python -m tests.support.sanitized -n $(WORKERS) --dist worksteal $(ARGS)

# .ci/environment goes on where the extension does not compile; that and the compiler's words are in the JSON.
gpu:
	@python=$$(.ci/environment test) && $$python -m benchmarks.gpu $(ARGS)

lint:
	@python=$$(.ci/environment lint) && $$python -m ruff check . && $$python -m ruff format --check . \
	$(if $(CXX_SOURCES),&& $$(dirname $$python)/clang-format --dry-run -Werror $(CXX_SOURCES))

format:
	@python=$$(.ci/environment lint) && $$python -m ruff check --fix . && $$python -m ruff format . \
	$(if $(CXX_SOURCES),&& $$(dirname $$python)/clang-format -i $(CXX_SOURCES))

info:
	@python=$$(.ci/environment bench) && $$python -m fused_resnet.info $(ARGS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
