PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stealing balances the processes to the last test, and breaks few files apart, whose fixtures are then made twice.
TEST := python -m pytest -m 'not slow' -n auto --dist worksteal

.PHONY: test typecheck test-slow test-lowest test-newest demo clean clean-runs

# Installed again whenever the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing the dependencies into $(VENV): a minute, or several on a slow line"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The next two use new environments, with the torch of the extra `dev`.
.venv-lowest/.installed: pyproject.toml scripts/lowest_versions.py
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/pip install --quiet packaging
	.venv-lowest/bin/python scripts/lowest_versions.py pyproject.toml > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/lowest.txt --editable '.[dev]'
	touch $@

test: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/$(TEST)

# Half a minute at first, then seconds: results are cached in .mypy_cache.
typecheck: $(VENV)/.installed
	$(BIN)/python -m mypy

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The lowest version of each dependency that pyproject.toml allows.
test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/$(TEST)

# The versions that pip resolves today without constraints.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --editable '.[dev]'
	.venv-newest/bin/pip list
	.venv-newest/bin/$(TEST)

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py runs/demo

# Keeps trained models.
clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist

# Only the run of the demo.
clean-runs:
	rm -rf runs/demo
