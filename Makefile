# Everything by one command each, the same by hand and in CI. Nothing but python3 (3.11 or newer) is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The peers of the benchmarks live apart: what adaptd needs stays what its own lock says.
PEERS := .venv-peers
# Options of the benchmark suite, for example BENCH="compare --data ~/streams".
BENCH ?= compare --quick

.PHONY: run test check format bench docs lock clean install uninstall

run: $(READY)  ## set everything up and play two streams: a real one, and a generated one with drift
	@sh deploy/demo.sh $(BIN)/adaptd

test: $(READY)  ## set everything up and run all tests
	$(BIN)/python -m adaptd.kernels.warm
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) $(PEERS)/.ready  ## adaptd beside its peers: a few minutes; BENCH="..." for more (docs/benchmarks.md)
	$(BIN)/python -m benchmarks.suite $(BENCH)

docs: $(READY)  ## make the pages that are made from the code
	$(BIN)/python -m adaptd.reference
	$(BIN)/python deploy/grafana/generate.py

lock:  ## resolve the dependencies anew; needs uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links --group dev pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links -c requirements.lock pyproject.toml -o deploy/requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links --group peers -o benchmarks/requirements.lock

install:  ## put the service on this machine, for systemd; as root. PREFIX, PYTHON, DESTDIR
	@PYTHON=$(PYTHON) sh deploy/systemd/install.sh install

uninstall:  ## take it off again; what is left (state, changed configuration) is named
	@sh deploy/systemd/install.sh uninstall

clean:
	rm -rf $(VENV) $(PEERS) run build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

# What cannot be installed is named by the suite and left out.
$(PEERS)/.ready: benchmarks/requirements.lock
	-$(PYTHON) -m venv $(PEERS) && \
	  $(PEERS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock && \
	  touch $(PEERS)/.ready
