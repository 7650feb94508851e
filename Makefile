# Everything lives in .venv; chat, check and test set it up by themselves.

# The first Python that is new enough; else python3, which then says so.
PYTHON ?= $(firstword $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done; echo python3))
BIN := .venv/bin
CLIENTS := .venv-clients
CHAIN := .venv-chain
WHEELS := $${XDG_CACHE_HOME:-$$HOME/.cache}/p2pinfer/wheels

# Not expanded: make would read a question's $ and $(...) as its own.
export P2PINFER_PROMPT := $(value PROMPT)
unexport PROMPT

# Kept for later setups, until another kind of GPU, or none, is named.
# Not from the environment, where the name may mean something else.
export P2PINFER_SETUP_GPU := $(if $(filter command,$(origin GPU)),$(GPU))

# Test files that run at once; each may start several processes of its own.
WORKERS ?= 2

FRAMES ?= 1000000
SEED ?= 1
ROWS ?= 10000
FUZZ = --frames $(FRAMES) --seed $(SEED) $(TARGET:%=--target %) $(CASE:%=--case %)

.PHONY: help setup ready chat check test test-fast test-long interop clients chain agents fuzz honest clean

help:
	@echo 'make setup              install everything into .venv (the first time: about 5 minutes)'
	@echo 'make setup GPU=cuda     the same, for a GPU: cuda, metal, rocm or vulkan (docs/gpu.md)'
	@echo 'make chat               start a local swarm of real peers and chat with it'
	@echo 'make chat PROMPT="..."  answer once and exit'
	@echo 'make check              formatting, lint, types, import directions'
	@echo 'make test               check, then every test but the long ones'
	@echo 'make test-fast          the tests without processes: under two minutes'
	@echo 'make test-long          measurements that take minutes each'
	@echo 'make interop            install js-libp2p, which some tests talk to (needs Node)'
	@echo 'make clients            the same: litellm, LangChain, llm and LlamaIndex (600 MB)'
	@echo 'make agents             install four command-line agents for tests (1.3 GB, needs Node)'
	@echo 'make fuzz               a million hostile inputs (FRAMES=, SEED=, TARGET=, CASE=)'
	@echo 'make honest             ten thousand opened rows of honest layers (ROWS=, THREADED=1): no alarm'
	@echo 'make clean              remove .venv and caches'

setup: ready
	@echo 'Ready. Type:  make chat'

ready:
	@$(PYTHON) -m p2pinfer._setup

chat: ready
	@if [ -n "$$P2PINFER_PROMPT" ]; then $(BIN)/p2pinfer demo -- "$$P2PINFER_PROMPT"; \
	else $(BIN)/p2pinfer demo; fi

check: ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: check
	$(BIN)/pytest -m 'not long' -n $(WORKERS) --dist loadfile --durations=20

test-fast: ready
	$(BIN)/pytest -m 'not slow and not long' -n $(WORKERS) --dist loadfile -q

test-long: ready
	$(BIN)/pytest -m long

interop:
	cd tests/interop/js && npm ci --ignore-scripts --no-audit --no-fund

# Not npm ci, which refuses a lock file that leaves out what a registry lacks for other systems.
agents:
	cd tests/interop/agents && npm install --no-save --ignore-scripts --no-audit --no-fund

# Beside the packages of .venv, which our chat model for LangChain needs: those of clients come first.
clients: ready
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet -r tests/interop/clients.txt
	$(CLIENTS)/bin/pip install --quiet --no-deps -e . # its plugin for llm, which needs nothing else
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> $$($(CLIENTS)/bin/python -c "import site; print(site.getsitepackages()[0])")/beside.pth
	touch $(CLIENTS)/whole

# Beside the packages of .venv: those of the EVM need an older one among them.
chain: ready
	$(PYTHON) -m venv $(CHAIN)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> $$($(CHAIN)/bin/python -c "import site; print(site.getsitepackages()[0])")/beside.pth
	$(CHAIN)/bin/python -m pip install --quiet --upgrade pip
	$(CHAIN)/bin/python -m pip install --quiet --group settle
	! command -v npm >/dev/null || (cd tests/interop/anvil && npm install --no-save --ignore-scripts --no-audit --no-fund)
	touch $(CHAIN)/whole

fuzz: ready
	$(BIN)/python -m tests.fuzz $(FUZZ)

honest: ready
	$(BIN)/python -m tests.honest --rows $(ROWS) $(if $(THREADED),--threaded)

clean:
	rm -rf .venv $(CLIENTS) $(CHAIN) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "The compiled llama.cpp is kept for the next setup. To remove it too:  rm -r $(WHEELS)"
