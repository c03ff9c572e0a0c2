# demo, test and check each set up .venv from requirements.lock first. Needed: Python 3.11+ (on Debian with python3-venv, which
# root gets installed).
PYTHON ?= python3
STORE ?= runs/demo
VENV := .venv
UV = $(shell command -v uv || echo $(VENV)/bin/uv)

.PHONY: demo test test-gpu check lock clean

demo: $(VENV)/ready
	@$(VENV)/bin/physion run --preset tiny --store $(STORE)

test: $(VENV)/ready
	$(VENV)/bin/pytest

test-gpu: $(VENV)/ready
	$(VENV)/bin/pytest -m gpu

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# uv installs in seconds what takes pip minutes; it is fetched with pip where it is not there. Versions and hashes are the lock's,
# and the package itself is built by the locked hatchling, so nothing that is not locked is downloaded but uv.
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "physion needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || if test "$$(id -u)" = 0; then apt-get update -qq && apt-get install -y -qq python3-venv > /dev/null; \
		else echo "Python's venv module is missing: sudo apt-get install python3-venv, then make again"; exit 1; fi
	@echo "setting up $(VENV) (once; downloads about 3 GB)"
	@$(PYTHON) -m venv --clear $(VENV)
	@test -x "$(UV)" || $(VENV)/bin/pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# Versions and hashes of everything, for every platform; names no registry.
lock:
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --upgrade --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
