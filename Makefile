# make demo    train on Python's own standard library and look at neighbours (first run: installs)
# make test    the tests
# make lint    ruff, ruff format --check, mypy --strict
# make bench   speed of training against gensim and fastText, of layers and search against torch, of starting up,
#              each after a check that the answers are right
# make fuzz    every reader of vectors on damaged files, 120 s each (FUZZ_SECONDS=10 make fuzz)
# make clean   remove what the others made, .venv included
#
# Each creates .venv and installs firth with the versions of constraints.txt where that is not done yet.
# PYTHON=python3.12 make test    another interpreter (3.11 or newer)

PYTHON ?= python3
VENV   := .venv
RIVALS := build/rivals
FUZZ_SECONDS ?= 120
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test lint bench fuzz clean

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed-dev $(RIVALS)/.installed
	$(VENV)/bin/python bench/speed.py --rival-python "$${FIRTH_RIVALS:-$(RIVALS)/bin/python}"
	$(VENV)/bin/python bench/layer.py
	$(VENV)/bin/python bench/search.py
	$(VENV)/bin/python bench/startup.py --rival-python "$${FIRTH_RIVALS:-$(RIVALS)/bin/python}"

fuzz: $(VENV)/.installed
	@$(PIP) -e '.[fuzz]'
	$(VENV)/bin/python fuzz/run.py --seconds $(FUZZ_SECONDS)

# The stamps are touched last, so that an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'firth needs Python 3.11 or newer: PYTHON=/path/to/python make' >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing firth into $(VENV)'
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'installing the development tools into $(VENV)'
	@$(PIP) -e '.[dev]'
	@touch $@

$(RIVALS)/.installed: bench/rivals/requirements.txt
	@test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	@echo 'installing gensim and fastText into $(RIVALS)'
	@$(RIVALS)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests examples bench -name __pycache__ -prune -exec rm -rf {} +
