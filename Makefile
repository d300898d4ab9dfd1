# Everything runs from a virtual environment in .venv; the targets make it and keep it up to date. With another Python beside
# it: make test VENV=.venv/3.11 PYTHON=python3.11
VENV ?= .venv
# The newest that runs, of those on the PATH and pyenv's.
FOUND := $(foreach v,3.13 3.12 3.11,python$(v) $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/$(v).*/bin/python))
PYTHON ?= $(shell for p in $(FOUND); do $$p -c '' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2
PRESET ?= atari_r2ac_quick

EXTRAS := atari,envpool,minigrid,mujoco,popgym,ray,vizdoom,dev
# Their metadata asks for old versions of others: TF-Agents' of many, and gym3, which procgen2 needs, of the glfw that EnvPool needs.
OLD := tf-agents==0.19.0 gym==0.26.2 "procgen2==0.10.7; python_version < '3.12'" "gym3==0.3.3; python_version < '3.12'"
OLDEST := "numpy<2" "gymnasium<1.4"

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
TOOLS := $(patsubst %,.venv/%/.installed,bench docs mutation tox)
NATIVE := keras_rtrl/_native/libkeras_rtrl.so
NATIVE_SOURCES := $(shell find custom_ops -name test -prune -o -type f -print)
# The GPUs of this machine, or three architectures if it has none: all would take longer than the rest of the build. Wheels get all.
GPUS = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | awk '/^[0-9]+$$/ && $$1 >= 75' | sort -u)
ARCHITECTURES ?= $(if $(GPUS),$(subst $() ,;,$(addsuffix -real,$(GPUS))),80-real;90-real;120)
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --durations=20 --durations-min=5 $(if $(IMPLEMENTATION),--implementation $(IMPLEMENTATION)) \
	$(if $(FULL),--full) $(TESTS)
SPREAD := tests/agents/test_replicas.py tests/distributed tests/train/test_strategy.py tests/train/test_sweep.py
TRAIN_OPTIONS = $(if $(GAME),--game "$(GAME)") $(if $(FRAMES),--frames "$(FRAMES)") $(if $(SEED),--seed "$(SEED)") \
	$(if $(OUT),--out "$(OUT)")

.DEFAULT_GOAL := help
.PHONY: help setup oldest constraints train bench docs dist test test-all test-pythons test-keras3 test-tf-keras test-spread test-plain test-slow test-kernels test-kernels-plain \
	test-kernels-sanitized mutants cuda lint bazel clean

help:  ## show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS=@ read -r target text; do printf '%-22s%s\n' "$$target" "$$text"; done
	@echo "Training: make train GAME=Pong FRAMES=2000000; also PRESET=, SEED=, OUT=, RESUME=run folder. In a minute: QUICK=1"
	@echo "Ctrl-C ends a training run after a checkpoint."
	@echo "Some tests: make test TESTS=tests/layers. With the native op switched off for every layer: make test IMPLEMENTATION=tf."

setup: $(STAMP) $(NATIVE)  ## make .venv with the newest Python that is there, and install the package with everything it needs

$(STAMP): setup.cfg pyproject.toml constraints/3.11.txt constraints/3.12.txt constraints/3.13.txt
	@test -x $(BIN)/python || { \
		command -v "$(PYTHON)" >/dev/null || { \
			echo "error: found no Python 3.11, 3.12 or 3.13. Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
			echo "error: $(PYTHON) is not a working Python 3.11, 3.12 or 3.13" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
			echo "error: $(PYTHON) cannot make virtual environments. Install Debian's package python3-venv" >&2; exit 1; }; \
		"$(PYTHON)" -m venv $(VENV); }
	$(INSTALL) --constraint constraints/$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt --editable '.[$(EXTRAS)]'
	@echo "note: installing TF-Agents (and ProcGen on Python 3.11) without the old versions that their metadata asks for"
	$(INSTALL) --no-deps $(OLD)
	@touch $@

oldest:
	@for p in $(FOUND); do $$p -c '' 2>/dev/null && oldest=$$p; done; echo $$oldest

# The versions that `make setup` installs. After this: make setup test, with each of these Pythons.
constraints:  ## renew constraints/: the newest versions for each Python that is there (the oldest gets the oldest numpy and gymnasium)
	@for p in $(FOUND); do \
		v=$$($$p -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) && test ! -e build/constraints/$$v || continue; \
		$$p -m venv build/constraints/$$v && \
		build/constraints/$$v/bin/python -m pip install --quiet --disable-pip-version-check '.[$(EXTRAS)]' $$(test $$v != 3.11 || echo $(OLDEST)) && \
		build/constraints/$$v/bin/python -m pip freeze --exclude keras_rtrl >constraints/$$v.txt || exit 1; \
	done
	@rm -rf build/constraints

# Without CMake and a compiler nothing is built: layers then run on plain TensorFlow.
$(NATIVE): $(STAMP) $(NATIVE_SOURCES)
	@if command -v cmake >/dev/null && command -v $${CXX:-c++} >/dev/null; then \
		cmake -S custom_ops -B build/native -D KERAS_RTRL_PYTHON="$(CURDIR)/$(BIN)/python" \
			-D KERAS_RTRL_CUDA_ARCHITECTURES="$(ARCHITECTURES)" >/dev/null && \
		cmake --build build/native --target op --parallel $(JOBS) && \
		cmake --install build/native --prefix $(@D) --strip >/dev/null && touch $@; \
	else \
		echo "note: no native op without CMake and a C++ compiler; layers will run on plain TensorFlow"; \
	fi

# exec: Ctrl-C reaches the trainer alone, and make waits for its last checkpoint. pdeathsig: killing make ends it too.
train: $(STAMP) $(NATIVE)  ## train (an agent on Atari's KungFuMaster by default) and leave a run folder
	@exec setpriv --pdeathsig TERM $(BIN)/keras-rtrl train $(if $(RESUME),--resume "$(RESUME)",$(if $(QUICK),--quick,$(PRESET))) $(TRAIN_OPTIONS)

bench: $(STAMP) $(NATIVE) .venv/bench/.installed  ## time the layers, and those of keras, torch and JAX; keep the machine quiet
	@$(BIN)/python -m benchmarks.speed $(if $(SHAPE),--shape "$(SHAPE)") $(if $(OUT),--out "$(OUT)")

# Separate from .venv, which they would make larger. setup.cfg says what to install.
$(TOOLS): .venv/%/.installed: $(STAMP)
	$(BIN)/python -m venv .venv/$*
	$(BIN)/python -c 'import importlib.metadata as m; print(*(line.split(";")[0] for line in m.requires("keras_rtrl") \
		if "extra == \"$*\"" in line), sep="\n")' >.venv/$*/requirements.txt
	.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/$*/requirements.txt
	@touch $@

test: test-keras3 test-tf-keras $(if $(TESTS),,test-spread)  ## run all fast tests, under Keras 3 and under tf-keras

test-keras3: $(STAMP) $(NATIVE)
	@echo "== Keras 3: layers, and all that uses no Keras"
	@TF_USE_LEGACY_KERAS=0 $(PYTEST)

test-tf-keras: $(STAMP) $(NATIVE)
	@echo "== tf-keras: layers, and the TF-Agents side"
	@TF_USE_LEGACY_KERAS=1 $(PYTEST) $(if $(TESTS),,$(addprefix --ignore=,$(SPREAD)))

# Their fixtures are expensive, so all tests of a file run in one process.
test-spread: $(STAMP) $(NATIVE)
	@echo "== tf-keras: several devices, processes, actors"
	@TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --durations=20 --durations-min=5 $(if $(FULL),--full) $(SPREAD)

# Only where the op and its twin differ: under XLA the twin runs anyway, and tests/conformance/layers alternates by itself.
test-plain: IMPLEMENTATION = tf
test-plain: TESTS = tests/cells tests/conformance/test_proofs.py tests/engine tests/layers -k 'not xla'
test-plain: $(STAMP) $(NATIVE)
	@echo "== Keras 3: cells, engine and layers, native op off"
	@TF_USE_LEGACY_KERAS=0 $(PYTEST)

test-all:  ## the same with --full: every case of every test
	@$(MAKE) --no-print-directory test FULL=1

test-slow: $(STAMP) $(NATIVE)  ## run the learning tests, and what repeats fast tests many times (minutes)
	TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest -m slow
	TF_USE_LEGACY_KERAS=0 $(BIN)/python -m pytest -m slow tests/docs tests/examples

test-kernels: test-kernels-plain test-kernels-sanitized  ## run the kernels' C++ test, then again with ASan and UBSan

test-kernels-plain: $(NATIVE)
	cmake --build build/native --target kernels_test --parallel $(JOBS)
	ctest --test-dir build/native --output-on-failure

test-kernels-sanitized:
	cmake -S custom_ops -B build/sanitized -D KERAS_RTRL_CUDA=OFF -D KERAS_RTRL_SANITIZE=ON
	cmake --build build/sanitized --parallel $(JOBS)
	ctest --test-dir build/sanitized --output-on-failure

mutants: $(STAMP) $(NATIVE) .venv/mutation/.installed  ## put small faults into the package; a test must find each (an hour)
	TF_USE_LEGACY_KERAS=0 $(BIN)/python tests/mutation/run.py $(MUTANTS)
	TF_USE_LEGACY_KERAS=1 $(BIN)/python tests/mutation/run.py $(MUTANTS)

cuda:  ## compile the CUDA kernels for every architecture
	cmake -S custom_ops -B build/cuda -D KERAS_RTRL_CUDA=ON
	cmake --build build/cuda --target cuda_kernels --parallel $(JOBS)

# Finds pyenv's Pythons as well as those on the PATH.
test-pythons: .venv/tox/.installed  ## test what the sdist installs: layers on Python 3.10 to 3.13, agents on 3.11 to 3.13 (PYTHONS=3.12,agents-3.12: some)
	TOX_DISCOVER="$(shell ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[0-3].*/bin/python 2>/dev/null | paste -sd,)" \
		.venv/tox/bin/tox run $(if $(PYTHONS),-e $(PYTHONS))

dist: .venv/tox/.installed  ## build the sdist, and from it the wheel, without the native op, in isolation
	.venv/tox/bin/python -m build

docs: .venv/docs/.installed  ## build the site of docs/ in build/docs
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet --strict
	@! grep -l '<blockquote>' build/docs/api/*.html || { echo "error: code that is rendered as quotations" >&2; exit 1; }

lint: $(STAMP)  ## check the style with ruff, and the order of imports with import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports

bazel: $(STAMP)  ## build and test with Bazel, offline
	@command -v bazel >/dev/null && test -d /usr/share/bazel/platforms \
		-a -d /usr/share/bazel/rules/java -a -d /usr/share/bazel/rules/proto || { \
		echo "error: needs Debian's packages: apt install bazel-bootstrap bazel-platforms" \
			"bazel-rules-java bazel-rules-proto" >&2; exit 1; }
	bazel build //...
	bazel test --keep_going --test_env=KERAS_RTRL_PYTHON="$(CURDIR)/$(BIN)/python" //...

clean:  ## remove the virtual environment and all caches; run folders stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist keras_rtrl/_native ./*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
