# Everything a user or a newcomer calls. `make setup` is what the others call first.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
BENCH_VENV := .venv-bench
STAMP := $(VENV)/.installed
LOG ?=
QUICK := tests/unit tests/laws tests/golden

.PHONY: setup demo test check chaos bench lock clean

setup: $(STAMP)

# uv where it is installed (seconds), pip otherwise (a minute or two); both install exactly requirements.lock.
$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard topics/native/*.c topics/native/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sluiceway needs Python 3.11 or later; set PYTHON=python3.x"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
	  echo "setup: uv"; uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install -q -p $(VENV) --require-hashes -r requirements.lock && uv pip install -q -p $(VENV) --no-deps -e .; \
	else \
	  echo "setup: pip (the first time takes a minute or two)"; $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock && \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $(STAMP)

demo: setup
	@$(BIN)/sluiceway demo $(if $(LOG),--log "$(LOG)")

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The quick tests one a core; those with a stack want the machine for themselves.
test: check
ifeq ($(PYTEST_ARGS),)
	$(BIN)/pytest -n logical --maxprocesses 4 $(QUICK)
	$(BIN)/pytest -m "not long" $(addprefix --ignore=,$(QUICK))
else
	$(BIN)/pytest -m "not long" $(PYTEST_ARGS)
endif

chaos: setup
	$(BIN)/pytest tests/integration -m long $(PYTEST_ARGS)
	$(BIN)/pytest tests/chaos -m "long or not long" -o faulthandler_timeout=1800 $(PYTEST_ARGS)

bench: setup $(BENCH_VENV)/.installed
	$(BIN)/sluiceway bench traffic $(BENCH_ARGS)
	$(BIN)/sluiceway bench latency
	$(BIN)/sluiceway bench latency --rate 100
	$(BIN)/sluiceway bench audio
	$(BIN)/sluiceway bench ai
	$(BIN)/sluiceway bench files

# The systems measured beside this one have dependencies of their own. Without them the bench runs and says what it skips.
$(BENCH_VENV)/.installed: tests/bench/requirements.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(BENCH_VENV) && uv pip install -q -p $(BENCH_VENV) -r $<; \
	else \
	  $(PYTHON) -m venv $(BENCH_VENV) && $(BENCH_VENV)/bin/pip install -q --disable-pip-version-check -r $<; \
	fi && touch $@ || echo "bench: the packages in $< cannot be installed; systems that need them WILL BE SKIPPED"

lock:
	uv pip compile -q --python-version 3.11 --universal pyproject.toml --extra local --extra dev -o requirements.lock --generate-hashes --no-annotate --no-header --no-emit-index-url

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
