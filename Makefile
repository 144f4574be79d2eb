# `make demo` and `make test` set up all they need: a virtual environment in .venv, with the versions of constraints.txt.
# `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
PROTO_BIN := $(PROTO_VENV)/bin
BUF := @bufbuild/buf@1.75.0

.DEFAULT_GOAL := help
.PHONY: help demo test check faults proto bench buf clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV): PyTorch is large, this takes some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(PROTO_VENV)/.installed: proto/tools.txt
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_BIN)/python -m pip install --quiet --disable-pip-version-check --requirement proto/tools.txt
	@touch $@

demo: $(VENV)/.installed ## a real training job, tuned and collapsed from outside while it runs
	$(BIN)/python examples/demo.py

test: check ## the checks, then every test but the long fault runs
	$(BIN)/python -m pytest -m 'not slow' --durations=10

check: $(VENV)/.installed $(PROTO_VENV)/.installed ## ruff, strict types, the design's arrows, freshness of the generated code, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" proto/generate.sh --check
	PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" benchmarks/etcd/generate.sh --check
	@$(MAKE) --no-print-directory buf

buf: ## buf lint, where npm is at hand
	@if command -v npx >/dev/null 2>&1 && npx --yes $(BUF) --version >/dev/null 2>&1; then \
		cd proto && npx --yes $(BUF) lint && echo "buf lint: clean"; \
	else \
		echo "LEFT OUT: buf lint (npm is not at hand, or can't install $(BUF))"; \
	fi

faults: $(VENV)/.installed ## the long fault runs: kills, cuts, corruption
	$(BIN)/python -m pytest -m slow --timeout 3600

proto: $(PROTO_VENV)/.installed ## regenerate sdk/livetune/v1 from proto/, and the benchmarks' part of etcd's contract
	PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" proto/generate.sh
	PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" benchmarks/etcd/generate.sh

bench: $(VENV)/.installed ## the benchmarks; writes benchmarks/results and the tables in benchmarks/README.md (DATA=folder of CIFAR-10)
	$(BIN)/python benchmarks/set_to_visible.py
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/step_under_faults.py
	$(BIN)/python benchmarks/change_cost.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/durable_set.py
	$(BIN)/python benchmarks/fan_out.py
	$(BIN)/python benchmarks/start_up.py

clean: ## remove what make made
	rm -rf $(VENV) $(PROTO_VENV) .cache .hypothesis demo-out benchmarks/.venv-*
