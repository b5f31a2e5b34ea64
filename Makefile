PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test test-slow demo clean

# The stamp is remade whenever the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

test: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py runs/demo

clean:
	rm -rf $(VENV) runs build dist
