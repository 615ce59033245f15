# Everything a newcomer needs: each target sets up what it uses, with only Python >= 3.11 and make to begin with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# More than the cores: many tests wait for a server more than they compute. A process gets a class or, of functions, a module at a time.
TEST_PROCESSES ?= 6
PARALLEL := -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

.PHONY: setup run test coverage soak lint bench clean

setup: $(STAMP)

$(STAMP): requirements.txt setup.cfg setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (set PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)
	@if [ -z "$$SDG_WEBUI_URLS" ] && ! grep -qis '^ *\(sdg_\)\{0,1\}webui_urls' "$${SDG_INSTANCE:-instance}/settings.toml"; then \
		echo "SDG_WEBUI_URLS is not set: the pictures come from a built-in simulator, not from Stable Diffusion."; \
		echo "To use a real WebUI: SDG_WEBUI_URLS=http://127.0.0.1:7860 make run"; \
		export SDG_WEBUI_URLS=simulator; \
	fi; \
	exec $(BIN)/gunicorn wsgi:app

# Each process of the tests reads what pytest makes of a module from a file, also where the environment has no interpreter write one.
test coverage soak: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)
	$(BIN)/pytest $(PARALLEL)

# What runs in other processes is not measured, so those tests are left out; tracing costs as much time again.
coverage: $(STAMP)
	$(BIN)/pytest $(PARALLEL) --cov -m "not soak and not system" --ignore tests/crash

# Here every program starts from nothing (tests/system/launcher.py).
soak: $(STAMP)
	TESTS_START_COLD=1 $(BIN)/pytest -m soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage *.egg-info
