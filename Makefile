# Everything a person needs: `make run` and `make test`. Each sets itself up first; nothing else is to be installed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled once, and not once a process, whatever the environment says about bytecode. It stays beside the sources, where
# pip has put that of what it installed.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q

SCRIPT := webapi/script
# A folder in memory for temporary files, where there is one with 2 GB to spare.
IN_MEMORY = $(shell test -w /dev/shm && test $$(df -Pk /dev/shm | awk 'END {print $$4}') -gt 2000000 && echo TMPDIR=/dev/shm)

.PHONY: setup run test checks script script-test unit scenarios faults browser bench soak lint format lock debian clean

# Made, but by a Python that is gone or another one since: then it is made anew.
$(shell $(BIN)/python -c "import click" 2>/dev/null || rm -f $(VENV)/.ready)

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/dev.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	touch $@

run: setup
	$(BIN)/python -m relay demo

# Debian packages that the scenarios need: installed, or unpacked into build/, when we are root on Debian, else named by the
# tests that miss them.
debian:
	@bash tests/debian.sh

test: setup debian checks unit scenarios faults browser

# At once: each of them is one process for most of its time.
checks: setup
	$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) lint script-test

# The website script, webapi/script/mailtrack.js, from its TypeScript. The built file is committed: nobody needs Node.js
# to run the daemon.
script: $(SCRIPT)/node_modules/.ready
	cd $(SCRIPT) && npm run --silent build

$(SCRIPT)/node_modules/.ready: $(SCRIPT)/package-lock.json
	cd $(SCRIPT) && npm ci --silent
	touch $@

script-test:
	@if node -e 'process.exit(+(parseInt(process.versions.node) < 20))' && npm --version >/dev/null; then \
	  $(MAKE) --no-print-directory $(SCRIPT)/node_modules/.ready && \
	  cd $(SCRIPT) && npm run --silent typecheck && npm test --silent && npm run --silent build -- node_modules/.built.js; \
	else \
	  echo "NOT TESTED: types, units and build of the website script, React and Vue: they need Node.js 20 or newer, and npm"; \
	fi

# Units say nothing about power cuts: with their thousands of databases in memory the disk's syncs cost them no time.
# Three processes for two cores: a quarter of their time tests wait for clocks. The browser's do not.
unit: setup
	$(IN_MEMORY) $(PYTEST) -n 3 --dist worksteal tests --ignore=tests/scenarios --ignore=tests/faults --ignore=tests/browser

scenarios: setup
	$(PYTEST) -n 3 --dist loadfile tests/scenarios

faults: setup
	$(PYTEST) -n 3 --dist loadfile tests/faults

browser: setup
	$(PYTEST) -n 2 --dist loadfile tests/browser

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side with Postfix, in one run; needs a C compiler, Postfix and root.
bench: setup debian
	$(BIN)/python -m benchmarks

# The full counts: 120 kills and 10 stops at any moment, 110 kills at exact points, 3,000 kills and errors at the daemon's
# calls and 800 at those of its processes, 50 kills among posts, 20 power cuts each of ext4 and XFS, 1,000 real messages,
# 1,000,000 fuzzed inputs, 200 right and 200 wrong requests to each operation of the API, every hostile text in every field
# of the forms, every part of every real message, every kind of report, and the database of places as npm has it today;
# some hours.
soak: setup debian
	RELAY_SOAK=1 $(PYTEST) -s tests/faults tests/scenarios tests/test_fuzz.py tests/test_intake.py tests/test_geoip.py \
	  tests/test_openapi.py tests/test_ui_hooks.py tests/test_ui_sites.py tests/test_ui_message.py tests/test_files.py \
	  tests/test_store_reports.py

lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" pyproject.toml --group dev -c requirements/run.txt -o requirements/dev.txt

clean:
	rm -rf $(VENV) $(SCRIPT)/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find relay webapi tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
