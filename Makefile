# Everything runs from a virtual environment in .venv, which the targets make and keep up to date themselves.
PYTHON ?= python3.11
JOBS ?= 2
PRESET ?= atari_r2ac_cpu

BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
TRAIN_OPTIONS = $(if $(GAME),--game "$(GAME)") $(if $(FRAMES),--frames "$(FRAMES)") $(if $(SEED),--seed "$(SEED)") \
	$(if $(OUT),--out "$(OUT)")

.DEFAULT_GOAL := help
.PHONY: help setup train test test-keras3 test-tf-keras test-slow lint bazel clean

help:  ## show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS=@ read -r target text; do printf '%-22s%s\n' "$$target" "$$text"; done
	@echo "Training: make train GAME=Pong FRAMES=2000000; also PRESET=, SEED=, OUT=, RESUME=run folder."
	@echo "Ctrl-C ends a training run after a checkpoint."

setup: $(STAMP)  ## make .venv and install the package with everything it needs

$(STAMP): setup.cfg pyproject.toml
	@test -x $(BIN)/python || { \
		command -v "$(PYTHON)" >/dev/null || { \
			echo "error: $(PYTHON) not found. Install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
			echo "error: $(PYTHON) is not a working Python 3.11, which TF-Agents needs" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
			echo "error: $(PYTHON) cannot make virtual environments. Install Debian's package python3.11-venv" >&2; exit 1; }; \
		"$(PYTHON)" -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[atari,dev]'
	@touch $@

# exec: Ctrl-C reaches the trainer alone, and make waits for its last checkpoint. pdeathsig: killing make ends it too.
train: $(STAMP)  ## train (an agent on Atari Breakout by default) and leave a run folder
	@exec setpriv --pdeathsig TERM $(BIN)/keras-rtrl train $(if $(RESUME),--resume "$(RESUME)",$(PRESET)) $(TRAIN_OPTIONS)

test: test-keras3 test-tf-keras  ## run all fast tests, under Keras 3 and under tf-keras

test-keras3: $(STAMP)
	@echo "== Keras 3: all but the TF-Agents side"
	@TF_USE_LEGACY_KERAS=0 $(PYTEST)

test-tf-keras: $(STAMP)
	@echo "== tf-keras: everything"
	@TF_USE_LEGACY_KERAS=1 $(PYTEST)

test-slow: $(STAMP)  ## run the learning tests (minutes)
	TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## check the style with ruff
	$(BIN)/ruff check .

bazel: $(STAMP)  ## build and test with Bazel, offline
	@command -v bazel >/dev/null && test -d /usr/share/bazel/platforms \
		-a -d /usr/share/bazel/rules/java -a -d /usr/share/bazel/rules/proto || { \
		echo "error: needs Debian's packages: apt install bazel-bootstrap bazel-platforms" \
			"bazel-rules-java bazel-rules-proto" >&2; exit 1; }
	bazel build //...
	bazel test --test_env=KERAS_RTRL_PYTHON="$(CURDIR)/$(BIN)/python" //...

clean:  ## remove the virtual environment and all caches; run folders stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
