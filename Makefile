# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCHMARKS := ablation augmentation cam_localization d2l_recipe decoding deployment detection detection_baseline ensemble export_parity \
	fid fid_values finetune fuzz_server gpu hostile_server init_without_norm load models multi_scale overheads own_images plan_rules ray_predict rcnn \
	serving step_profile throughput

.PHONY: help setup demo test test-slow test-release test-cpus test-margins test-random lint bench race docs docs-results notebooks dist clean

help:
	@echo "make demo   set up, train GoogLeNet on Fashion-MNIST, classify sample images (about 3 minutes on 2 cores)"
	@echo "make test   set up, lint and run the fast tests (3 minutes of set-up, then 6 minutes on 2 cores)"
	@echo "make test-slow     the tests that take too long for every change (about 10 minutes)"
	@echo "make test-cpus     the tests whose numbers depend on the processor, as on each kind of x86-64 CPU"
	@echo "make test-margins  the tests that hold a training to an accuracy, with five seeds on each kind of CPU"
	@echo "make test-random   the fast tests in random order; SEED=N repeats one"
	@echo "make setup  install the package into $(VENV) (a few minutes; 6 GB where pip takes PyTorch's CUDA build)"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make race   time to accuracy of two recipes with five seeds, compared with plain PyTorch (about 10 minutes on 2 cores)"
	@echo "make bench  training throughput and the race"
	@echo "make bench-NAME  one of $(BENCHMARKS); writes the result into docs/"
	@echo "make docs   the documentation site, in build/site; broken links are errors"
	@echo "make notebooks  execute the notebooks of notebooks/sources and write them in English and Chinese"
	@echo "make dist   the wheel for Linux on x86-64, with its CPU kernels, and the sdist, in dist/"
	@echo "make docs-results  write all results of benchmarks into docs/"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
# It requires another build of OpenCV, which would overwrite the one with the modules that selective search needs.
	$(BIN)/python -m pip install --quiet --no-deps openvino-model-api
	@touch $@

# A browser for the tests that look at pages, and a C compiler for the native step: the system's, or Debian's where we
# may install them. Without them the tests that need them are skipped, and say so.
.PHONY: tools
tools:
	@missing=; \
	{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || missing="chromium"; \
	{ command -v cc || command -v gcc || command -v clang; } >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -z "$$missing" ] \
		|| { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
			&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $$missing >/dev/null; } \
		|| echo "not here, and no way to install: $$missing; the tests that need them are skipped" >&2

demo: setup
	rm -rf runs/demo
	$(BIN)/googlenet demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_lines.py

# Otherwise every process compiles again, and pytest rewrites the same assertions in each worker.
unexport PYTHONDONTWRITEBYTECODE

# Two workers of one thread each. The durations of all tests go to a file when this runs in CI.
THREADS ?= 1
PYTEST = OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest --numprocesses 2 --dist worksteal $(if $(CI),--junitxml=durations-$@.xml)

test: lint tools
	$(BIN)/googlenet download fashion-mnist
	$(PYTEST) --cov --cov-report=

test-slow: lint tools
	$(BIN)/googlenet download fashion-mnist
	$(PYTEST) -m 'slow and not release'

# The wheel in a new environment, the site in a browser, all notebooks, and tests of the largest networks.
test-release: lint tools
	$(BIN)/googlenet download fashion-mnist
	$(PYTEST) -m release

ifndef SEED
SEED := $(shell date +%s)
endif
test-random: lint tools
	@echo "SEED=$(SEED)"
	PYTHONHASHSEED=$$(( $(SEED) % 4294967295 )) $(PYTEST) -p randomly -p 'no:cacheprovider' --randomly-seed $(SEED)

test-cpus: lint tools
	$(BIN)/googlenet download fashion-mnist
	$(BIN)/python tests/cpus.py -m "cpu and not slow and not release"

test-margins: lint tools
	$(BIN)/googlenet download fashion-mnist
	$(BIN)/python tests/cpus.py --seeds 5 -m "accuracy and not slow and not release"

bench: bench-throughput race

# Time to accuracy on this kind of processor: docs/race.md.
race: $(VENV)/.installed-dev
	$(BIN)/googlenet download fashion-mnist
	$(BIN)/python benchmarks/race.py --out benchmarks/results/race
	$(MAKE) docs-results

# The result replaces the old one only if the benchmark finishes.
bench-%: benchmarks/%.py $(VENV)/.installed-dev
	mkdir -p benchmarks/results
	$(BIN)/python $< --json > benchmarks/results/$*.partial
	mv benchmarks/results/$*.partial benchmarks/results/$*.json
	$(MAKE) docs-results

docs-results: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/update_docs.py

# The documentation site, in build/site. Broken links are errors.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Execute the notebooks and write them in both languages.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python tools/notebooks.py

# The wheel contains the CPU kernels of every prebuilt level (hatch_build.py).
dist: $(VENV)/.installed-dev
	rm -rf dist
	GOOGLENET_PREBUILT=1 $(BIN)/python -m hatchling build -d dist

clean:
	rm -rf $(VENV) runs
