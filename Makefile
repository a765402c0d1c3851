# `make upscale` and `make test` work on a fresh machine with Python 3.11 or later.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= upscaled
# A photograph in the public domain (CC0) that comes with scikit-image.
PHOTO ?= $$($(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data/chelsea.png')")

.PHONY: install upscale test slow lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .[test]
	touch $@

upscale: install
	$(BIN)/hvae-sr upscale "$(PHOTO)" -o $(OUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process for each core, one thread in each: small networks gain little from threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# What `test` leaves out because it takes longer.
slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
