# `make upscale` and `make test` work on a fresh machine with Python 3.11 or later.
# Not taken from the environment, where OUT and VENV may name what others keep: `make OUT=...` sets them.
VENV = .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT = upscaled
# A photograph in the public domain (CC0) that comes with scikit-image.
PHOTO ?= $$($(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data/chelsea.png')")

.PHONY: install upscale test slow test-all lint docs dist-check test-lowest clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .[test]
	touch $@

upscale: install
	$(BIN)/hvae-sr upscale "$(PHOTO)" -o "$(OUT)"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process for each core, one thread in each: small networks gain little from threads. A test that hangs is ended.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile \
	-o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
test: lint
	$(PYTEST)

# What `test` leaves out because it takes longer.
slow: install
	$(PYTEST) -m slow

# Both at once: nothing is imported and collected twice.
test-all: lint
	$(PYTEST) -m ""

# The documentation site, into site/: every link and every name of the API must be found.
docs: $(VENV)-docs/.installed
	$(VENV)-docs/bin/python -m mkdocs build --strict --quiet

$(VENV)-docs/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install -q --upgrade pip
	$(VENV)-docs/bin/python -m pip install -q --group docs
	touch $@

# What would be uploaded to a package index, into dist/, and tried in an environment of its own.
dist-check:
	$(PYTHON) benchmarks/dist_check.py

# The lowest versions of the dependencies, some gigabytes, and the tests that tell most about them.
LOWEST_TESTS ?= tests/test_loading.py tests/test_pipeline.py tests/test_images.py tests/test_images_cases.py \
	tests/test_images_photo.py tests/test_images_writing.py tests/test_datasets.py tests/test_demo.py \
	tests/training/test_training.py
test-lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install -q --upgrade pip
	$(VENV)-lowest/bin/python -m pip install -q --only-binary :all: -c constraints-lowest.txt -e .[data,train,demo] \
		pytest pytest-xdist
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n auto --dist loadfile $(LOWEST_TESTS)

clean:
	rm -rf "$(VENV)" "$(VENV)-docs" "$(VENV)-lowest" upscaled build dist site *.egg-info
