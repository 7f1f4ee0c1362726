# Everything that is done to this project, by hand or by CI, is a target here. Nothing is presumed but Python >= 3.11
# and cargo. What depends on files is a stamp, so a second call repeats nothing that did not change.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# ---- knobs (make NAME=value ...) ----
TORCH ?=#              another torch than the locked one, in an environment of its own: make test TORCH=2.10
PEERS ?=#              1: an environment of its own with requirements/peers.in, zoo.in: make bench PEERS=1, make test PEERS=1
ENGINES ?=#            1: an environment of its own with requirements/engines.in: make test-python ENGINES=1 TESTS=tests/engines
VENV ?= .venv$(if $(TORCH),-torch$(TORCH))$(if $(PEERS),-peers)$(if $(ENGINES),-engines)
TESTS ?= tests#        make test-python TESTS=tests/test_adam.py
PYTEST_ARGS ?=#        make test-python PYTEST_ARGS='-x -k adam'
BENCH_ARGS ?=#         make bench BENCH_ARGS=--markdown
LOCK_ARGS ?=#          make lock LOCK_ARGS=--upgrade
RESULTS ?= target/bench/bench.json#  what make readme-table reads
TAG ?=#                make release-check TAG=v0.1.0
SOAK_ARGS ?=#          make soak SOAK_ARGS='--scale 0.1'
# The first Python that is new enough; `python3` may be an old one that the system needs.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.1{5,4,3,2,1}; do $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

UV_VERSION := 0.13.8
BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
# Where programs run that must see the installed wheel and not the sources.
OUTSIDE := target/outside

# rustup's default place, for a shell that has not read ~/.cargo/env yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
# pyo3's build script asks this interpreter, not whichever comes first in PATH.
export PYO3_PYTHON := $(PY)
# Without Python's caches every `import torch` costs many seconds, and the tests start many programs.
unexport PYTHONDONTWRITEBYTECODE

NEED_CARGO := command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
NEED_PYTHON := [ -n "$(PYTHON)" ] && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	{ echo "Python >= 3.11 is missing: install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }

.PHONY: help
help: ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:[^#]*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "Variables:"
	@awk -F ' [?]=[^#]*# *' '/^[A-Z_]+ [?]=[^#]*# / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- environment ----
UV := $(VENV)/.uv-$(UV_VERSION)
ENV := $(VENV)/.stamp

.PHONY: env
env: $(ENV) ## make the environment (.venv) with the locked versions

$(UV):
	@$(NEED_PYTHON)
	@$(NEED_CARGO)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PY) -c '$(NEW_ENOUGH)' || { echo "$(VENV) holds a Python older than 3.11: remove it" >&2; exit 1; }
	$(PY) -m pip install --quiet uv==$(UV_VERSION)
	@touch $@

# With another torch its own dependencies, which it pins exactly, are left to it. The lock is used as constraints, so
# that UV_TORCH_BACKEND=cpu can drop the CUDA packages it names.
$(ENV): requirements/dev.in requirements/dev.txt $(if $(PEERS),requirements/peers.in requirements/zoo.in) \
		$(if $(ENGINES),requirements/engines.in) | $(UV)
	$(if $(TORCH),grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==',cat) requirements/dev.txt > $(VENV)/.constraints.txt
	$(BIN)/uv pip install --python $(PY) --compile-bytecode -r requirements/dev.in -c $(VENV)/.constraints.txt $(if $(TORCH),'torch==$(TORCH).*')
	$(if $(PEERS),$(BIN)/uv pip install --python $(PY) -r requirements/peers.in -c $(VENV)/.constraints.txt)
	$(if $(PEERS),$(BIN)/uv pip install --python $(PY) --no-deps -r requirements/zoo.in)
	$(if $(ENGINES),$(BIN)/uv pip install --python $(PY) -r requirements/engines.in -c $(VENV)/.constraints.txt)
	@touch $@

.PHONY: lock
lock: $(UV) ## write requirements/dev.txt anew from dev.in (LOCK_ARGS=--upgrade for newer versions)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock' $(LOCK_ARGS) \
		requirements/dev.in --output-file requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock' $(LOCK_ARGS) \
		--generate-hashes requirements/audit.in --output-file requirements/audit.txt

# ---- wheel ----
# Folders are listed too: their time changes when a file goes away.
SOURCES := pyproject.toml README.md Cargo.toml Cargo.lock $(wildcard LICENSE-*) \
	$(shell find rust python -name __pycache__ -prune -o \
		\( -type d -o -name '*.rs' -o -name '*.toml' -o -name '*.py' -o -name '*.pyi' -o -name '*.jinja' -o -name py.typed \) -print 2>/dev/null)
WHEEL := target/wheels/.stamp
INSTALLED := $(VENV)/.wheel-stamp

.PHONY: wheel
wheel: $(INSTALLED) ## build the release wheel and install it into the environment

$(WHEEL): $(SOURCES) | $(ENV)
	@$(NEED_CARGO)
	@rm -f target/wheels/oxistep-*.whl
	RUSTFLAGS="$${RUSTFLAGS:-} $(REMAP)" $(BIN)/maturin build --release --locked --interpreter $(PY) --out target/wheels
	@touch $@

$(INSTALLED): $(WHEEL) | $(ENV)
	$(BIN)/uv pip install --python $(PY) --force-reinstall --no-deps target/wheels/oxistep-*.whl
	@touch $@

# ---- use ----
.PHONY: demo
demo: $(INSTALLED) ## train the example cases with oxistep beside torch.optim: tables, a figure, a short benchmark
	@mkdir -p target/demo
	cd target/demo && $(PY) $(CURDIR)/examples/demo.py --output .

# Outside the sources, with what the environment holds (compilers of peers) found first.
BENCH = mkdir -p target/bench && cd target/bench && PATH="$(BIN):$$PATH" $(PY) -m oxistep bench $(1)

.PHONY: bench
bench: $(INSTALLED) ## the whole benchmark (about 30 minutes): target/bench/bench.json and bench.html
	$(call BENCH,run --output bench.json $(BENCH_ARGS))
	-$(call BENCH,memory --into bench.json)
	-$(call BENCH,threads --into bench.json)
	-$(call BENCH,end-to-end --into bench.json)
	-$(call BENCH,rules --into bench.json)
	-$(call BENCH,compact --only speed --seconds 3 --into bench.json)
	$(call BENCH,page bench.json bench.html)

.PHONY: bench-peers
bench-peers: ## the whole benchmark with DeepSpeed beside torch, in an environment of its own
	$(MAKE) bench PEERS=1

.PHONY: bench-offload bench-offload-here
bench-offload: ## a step inside DeepSpeed beside DeepSpeedCPUAdam, in the environment of `make test-engines`
	$(MAKE) bench-offload-here ENGINES=1

bench-offload-here: $(INSTALLED)
	$(call BENCH,offload $(BENCH_ARGS))

.PHONY: bench-quick
bench-quick: $(INSTALLED) ## the benchmark in under two minutes
	$(call BENCH,run --quick --output quick.json --html quick.html $(BENCH_ARGS))

.PHONY: bench-compare
bench-compare: $(INSTALLED) ## has anything become slower? make bench-compare OLD=before.json NEW=after.json
	$(PY) -m oxistep bench compare $(OLD) $(NEW)

.PHONY: bench-wheels
bench-wheels: $(INSTALLED) ## two wheels in turn, cell by cell: make bench-wheels OLD=before.whl NEW=after.whl
	$(PY) -m oxistep bench wheels $(OLD) $(NEW) $(BENCH_ARGS)

# ---- documentation ----
.PHONY: docs
docs: $(INSTALLED) ## the documentation as a site, warnings as errors: target/docs/index.html
	@mkdir -p $(OUTSIDE)
	cd $(OUTSIDE) && $(PY) -m sphinx --quiet --fail-on-warning --keep-going -d ../docs-cache $(CURDIR)/docs ../docs

.PHONY: worked-example
worked-example: $(ENV) ## build and test the optimizer of docs/new-optimizer.md, in a copy of the tree
	$(PY) docs/worked_example.py

.PHONY: readme-table
readme-table: ## the table of README.md from a file of results: make readme-table RESULTS=target/bench/bench.json
	$(PY) docs/readme_table.py $(RESULTS) README.md

.PHONY: notices
notices: ## write LICENSE-THIRD-PARTY anew, after a change to Cargo.lock
	$(PYTHON) .ci/notices.py

.PHONY: release-check
release-check: $(INSTALLED) ## is everything ready for a tag? make release-check TAG=v0.1.0 (docs/maintaining.md)
	$(PY) .ci/release.py check $(TAG) --wheels target/wheels

.PHONY: soak
soak: $(INSTALLED) ## a long run, some ten minutes: does memory stay where it is? SOAK_ARGS='--scale 0.1' is a tenth
	@mkdir -p $(OUTSIDE)
	cd $(OUTSIDE) && $(PY) $(CURDIR)/benches/soak.py $(SOAK_ARGS)

# ---- checks ----
.PHONY: check
check: lint types stub docs test-whole test-fallback test-faults ## everything CI runs

# The Rust tests run beside the Python tests, which leave a core idle now and then; what they say comes last.
RUST_LOG := target/test-rust.log

.PHONY: test
test: export OXISTEP_TESTS_BRIEFLY := 1
test: $(INSTALLED) ## Rust tests, Python tests against the installed wheel: every class, path and promise (four to six minutes)
	@mkdir -p target
	@$(MAKE) --no-print-directory test-rust >$(RUST_LOG) 2>&1 & rust=$$!; \
	$(MAKE) --no-print-directory test-brief; python=$$?; \
	wait $$rust; rust=$$?; \
	if [ $$rust -ne 0 ]; then cat $(RUST_LOG); else \
		echo "Rust tests: $$(grep -c '^test .* ok$$' $(RUST_LOG)) passed ($(RUST_LOG))"; fi; \
	exit $$((rust || python))

.PHONY: test-whole
test-whole: test-rust test-python ## the same with every combination of class, dtype, layout, ...

# The bindings have no Rust tests: a test program would have to link libpython, and they are tested from Python.
# A folder of their own, because other RUSTFLAGS than the wheel's would rebuild everything each time.
.PHONY: test-rust
test-rust: ## the Rust tests, warnings as errors (OXISTEP_TESTS_BRIEFLY=1: as briefly as in `make test`)
	@$(NEED_CARGO)
	RUSTFLAGS="$${RUSTFLAGS:-} -D warnings" cargo test --workspace --exclude oxistep --locked --target-dir target/rust-tests

# Threads that spin while they wait take others' time: on a busy machine the tests took several times as long.
# Two threads are enough to disturb each other, on a machine of any size.
PYTEST = (cd $(OUTSIDE) && OMP_WAIT_POLICY=$${OMP_WAIT_POLICY-passive} OMP_NUM_THREADS=$${OMP_NUM_THREADS-2} $(PY) -m pytest \
	-c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(patsubst tests%,$(CURDIR)/tests%,$(1)) $(PYTEST_ARGS))
# All files: two processes share them, then come those that want to be alone. A selection: one process, in its order.
# (The second run is given the files that have such tests: to import all others takes seconds.)
ALONE = $(shell grep -lE 'mark\.alone\b' tests/test_*.py)
PYTESTS = $(if $(filter tests,$(TESTS)),\
	$(call PYTEST,tests $(1) -m 'not alone' -n 2 --dist loadfile) && $(call PYTEST,$(ALONE) $(1) -m alone),\
	$(call PYTEST,$(TESTS) $(1)))

.PHONY: test-python
test-python: $(INSTALLED) ## all Python tests, against the installed wheel; some of them: TESTS=, PYTEST_ARGS=
	@mkdir -p $(OUTSIDE)
	$(call PYTESTS)

# tests/brief.py says what is taken.
.PHONY: test-brief
test-brief: $(INSTALLED) ## the Python tests of `make test`: each value of each parameter, not each combination
	@mkdir -p $(OUTSIDE)
	$(call PYTESTS,--brief)

# The files that judge results, and not which path led to them.
FALLBACK := $(patsubst %,tests/test_%.py,autograd checkpoints clients cuda every_class grad_scaler groups hooks optim_db schedules \
	rules_optimizer rules_errors rules_random)

.PHONY: test-fallback
test-fallback: ## Python tests of behaviour once more, with everything left to torch (OXISTEP_BACKEND=torch)
	OXISTEP_BACKEND=torch $(MAKE) test-python TESTS="$(FALLBACK)" PYTEST_ARGS="-n 2 --dist loadfile $(PYTEST_ARGS)"

# Elsewhere they are left out, for want of what they test.
ENGINE_TESTS := tests/engines tests/test_registries.py tests/test_integrations.py

.PHONY: test-engines
test-engines: ## trainers and engines themselves (Hugging Face, Lightning, DeepSpeed, ...), in an environment of its own
	$(MAKE) test-python ENGINES=1 TESTS="$(ENGINE_TESTS)"

PEER_TESTS := tests/test_benchmark_compact.py \
	$(patsubst %,tests/test_zoo_%.py,norms peers prodigy schedulefree wrappers)

.PHONY: test-peers
test-peers: ## the zoo and 8-bit states beside the packages of others (timm, schedulefree, bitsandbytes, ...), in an environment of its own
	$(MAKE) test-python PEERS=1 TESTS="$(PEER_TESTS)" PYTEST_ARGS="-n 2 $(PYTEST_ARGS)"

# A wheel that fails on demand, in a folder of its own. It is never installed into the environment.
FAULTS := target/faults
FAULTS_WHEEL := $(FAULTS)/.stamp
FAULT_TESTS := tests/test_faults.py tests/test_kernel_panics.py

$(FAULTS_WHEEL): $(SOURCES) | $(ENV)
	@$(NEED_CARGO)
	@rm -rf $(FAULTS) && mkdir -p $(FAULTS)
	RUSTFLAGS="$${RUSTFLAGS:-} $(REMAP)" $(BIN)/maturin build --release --locked --features faults --interpreter $(PY) --out $(FAULTS)/wheels
	$(BIN)/uv pip install --quiet --python $(PY) --no-deps --target $(FAULTS)/site $(FAULTS)/wheels/oxistep-*.whl
	@touch $@

.PHONY: test-faults
test-faults: $(FAULTS_WHEEL) ## what failures leave behind: a fault at every point of a step, panics in running kernels
	@mkdir -p $(OUTSIDE)
	@# with a wheel that cannot fail these tests would be skipped
	cd $(OUTSIDE) && PYTHONPATH=$(CURDIR)/$(FAULTS)/site $(PY) -c 'from oxistep import _core; _core.fault_arm(0)'
	export PYTHONPATH=$(CURDIR)/$(FAULTS)/site && $(call PYTEST,$(FAULT_TESTS))

.PHONY: lint
lint: $(ENV) ## formatting, clippy, ruff, and who imports whom, without changing anything
	@$(NEED_CARGO)
	cargo fmt --all --check
	@# rustfmt leaves comments and strings as wide as they are
	! LC_ALL=C grep -rnE --include='*.rs' '^.{121,}$$' rust
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# who imports whom
	$(PY) .ci/house.py
	@# the licences of what is linked
	$(PY) .ci/notices.py --check

# What pages and examples may do that --strict forbids: functions without annotations (torch has them, too: `backward`), and
# a name for one thing after another.
AS_USERS := --config-file= --strict --warn-unreachable --cache-dir ../mypy-cache-of-users \
	--allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --allow-redefinition

.PHONY: types
types: $(INSTALLED) ## type-check the sources; then pages, docstrings and examples as users would, against the wheel
	$(PY) -m mypy
	$(PY) docs/typed_snippets.py target/typed
	cd target/typed && $(PY) -m mypy $(AS_USERS) .
	cd target/typed && $(BIN)/basedpyright --pythonpath $(PY) --project .

.PHONY: stub
stub: $(INSTALLED) ## does _core.pyi say what the built module holds?
	@mkdir -p $(OUTSIDE)
	cd $(OUTSIDE) && $(PY) -m mypy.stubtest --concise --allowlist $(CURDIR)/tests/typed/stubtest.txt oxistep

# Sanitizers, fuzzing, origins: what CI runs of these and what takes longer.
include audit.mk

# ---- housekeeping ----
.PHONY: format
format: $(ENV) ## format Rust and Python, with the safe fixes of ruff
	cargo fmt --all
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## remove what was built; the environments stay
	rm -rf target

.PHONY: distclean
distclean: clean ## remove the environments too
	rm -rf .venv .venv-torch* .venv-peers .venv-engines
