# `make demo` and `make test` do all set-up: they need Python 3.11 or later, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-quick lint release-check docs bench bench-gpu llama-cpp faults fuzz fuzz-coverage soak reliability format setup clean

demo: $(READY)  ## fine-tune the real small model on the text-to-SQL task, show before and after
	$(BIN)/luthier demo

test: lint  ## lint, then every test, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

# Files that should take little time (see CONTRIBUTING.md); the rest is `make test`.
QUICK := $(addprefix tests/,advise data demo/test_task.py evaluate/test_gate.py evaluate/test_sql.py \
	evaluate/test_statistics.py kernels/test_head.py models objectives retrieve/test_passages.py \
	serve/test_parts.py test_files.py test_imports.py test_recipe.py test_run.py test_stream.py)

test-quick: lint  ## lint, and the tests that are quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m 'not real' $(QUICK) \
		--ignore tests/data/check/test_fuzz.py --ignore tests/data/test_borders.py

release-check: $(READY)  ## may this checkout be released? versions agree, packages build, install and run
	$(BIN)/python tools/release_check.py

lint: $(READY)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(READY)  ## the site of the documentation, in build/site: open index.html, no server is needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: $(READY)  ## measure on this machine; benchmarks/RESULTS.md keeps what was found
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	for script in $(filter-out benchmarks/bench_export.py,$(wildcard benchmarks/bench_*.py)); do $(BIN)/python $$script || exit 1; done

bench-gpu: $(READY)  ## on a machine with a GPU: gradients, stalls, speed and memory, against peers; build/gpu keeps it
	$(BIN)/python benchmarks/bench_gpu.py

llama-cpp:  ## a real llama.cpp in an environment of its own; the tests of GGUF files then use it
	$(PYTHON) -m venv .venv-llama-cpp
	.venv-llama-cpp/bin/python -m pip install --quiet --only-binary :all: xllamacpp==2026.10.11549

faults: $(READY)  ## plant faults in the real trainer, print (fault, tries, survived, lost steps); half an hour
	mkdir -p build/reliability
	PYTHONPATH=tests $(BIN)/python tests/faults/run_faults.py --record build/reliability/faults.jsonl

fuzz: $(READY)  ## 100,000 inputs for all that reads what strangers wrote; some minutes
	mkdir -p build/reliability
	PYTHONPATH=tests $(BIN)/python tests/fuzz/run_fuzz.py --record build/reliability/fuzz.jsonl

fuzz-coverage: $(READY)  ## the readers of bytes again, by inputs that reach new code (atheris)
	mkdir -p build/reliability
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	PYTHONPATH=tests $(BIN)/python tests/fuzz/run_atheris.py --record build/reliability/fuzz.jsonl

soak: $(READY)  ## 2,000 steps: memory flat, no file left open, no line of metrics missing
	mkdir -p build/reliability
	PYTHONPATH=tests $(BIN)/python tests/faults/soak.py --record build/reliability/soak.jsonl

reliability: faults fuzz fuzz-coverage soak  ## all of them, and docs/reliability.md from what they found
	PYTHONPATH=tests $(BIN)/python tests/faults/report.py build/reliability

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "luthier needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-llama-cpp build dist src/*.egg-info
