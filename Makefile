# Everything a newcomer needs: each target sets up what it uses, with only Python >= 3.11 and make to begin with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
OLDEST := .venv-oldest
# More than the cores: many tests wait for a server more than they compute. A process gets a class or, of functions, a module at a time.
TEST_PROCESSES ?= 6
# What runs in the process of the tests.
IN_PROCESS := not soak and not system and not wheel and not fuzz
PARALLEL := -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

.PHONY: help setup run test fuzz coverage soak test-wheel test-oldest lint bench wheel clean

# The first target, so that it is what make alone does. A target's line is what follows its ##.
help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the versions of requirements.txt; every target below does it by itself

$(STAMP): requirements.txt setup.cfg setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (set PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP) ## serve http://127.0.0.1:8000, with simulated pictures unless SDG_WEBUI_URLS names a WebUI
	@if [ -z "$$SDG_WEBUI_URLS" ] && ! grep -qis '^ *\(sdg_\)\{0,1\}webui_urls' "$${SDG_INSTANCE:-instance}/settings.toml"; then \
		echo "SDG_WEBUI_URLS is not set: the pictures come from a built-in simulator, not from Stable Diffusion."; \
		echo "To use a real WebUI: SDG_WEBUI_URLS=http://127.0.0.1:7860 make run"; \
		export SDG_WEBUI_URLS=simulator; \
	fi; \
	exec $(BIN)/gunicorn wsgi:app

# Each process of the tests reads what pytest makes of a module from a file, also where the environment has no interpreter write one.
test fuzz coverage soak test-oldest: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP) ## the tests, in several processes; the network is off except loopback
	$(BIN)/pytest $(PARALLEL)

fuzz: $(STAMP) ## thousands of requests that schemathesis makes of /openapi.json
	$(BIN)/pytest -m fuzz tests/fuzz

# What runs in other processes is not measured, so those tests are left out; tracing costs as much time again.
coverage: $(STAMP) ## how much of app/ the tests within one process reach; fails under 90 %
	$(BIN)/pytest $(PARALLEL) --cov -m "$(IN_PROCESS)" --ignore tests/crash

# Here every program starts from nothing (tests/system/launcher.py).
soak: $(STAMP) ## the tests that take minutes: kill -9, a crash at every failpoint, broken machines
	TESTS_START_COLD=1 $(BIN)/pytest -m soak

# Both need PyPI, and minutes.
test-wheel: $(STAMP) ## build the wheel, install it in an empty environment, and use it there
	$(BIN)/pytest -m wheel tests/wheel

test-oldest: $(STAMP) ## the tests within one process, with the oldest versions that setup.cfg allows
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(BIN)/python .ci/oldest.py > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -r $(OLDEST)/requirements.txt $$(grep ^setuptools= requirements.txt)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(OLDEST)/bin/pytest $(PARALLEL) -m "$(IN_PROCESS)" --ignore tests/crash

# What an earlier build left would end up in the wheel too.
wheel: $(STAMP) ## build dist/sd_gateway-*.whl
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --use-pep517 --no-build-isolation --wheel-dir dist .
	rm -rf build sd_gateway.egg-info

lint: $(STAMP) ## ruff and mypy (strict on app/)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## the measured figures of docs/performance.md
	$(BIN)/python -m benchmarks

clean: ## remove what the other targets made, but not instance/
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .mypy_cache .ruff_cache .coverage *.egg-info
