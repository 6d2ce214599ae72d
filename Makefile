# Two commands on a fresh machine: `make quickstart` runs the main job, `make test` the tests.
# Both set up .venv first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART ?= runs/quickstart

.PHONY: quickstart test slow lint format docs clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

quickstart: $(VENV)/installed
	$(RUN) -m weights_convert tests/goldens/backbones/dinov2_tiny_reg.pth --set num_heads=4 \
	  --output=$(QUICKSTART)/backbone --overwrite
	$(RUN) -m dinotxt_jax.precompute --config=configs/quickstart.py \
	  --config.backbone=$(QUICKSTART)/backbone --config.features=$(QUICKSTART)/features
	$(RUN) -m dinotxt_jax.train --config=configs/quickstart.py \
	  --config.backbone=$(QUICKSTART)/backbone --config.features=$(QUICKSTART)/features \
	  --workdir=$(QUICKSTART)/run
	$(RUN) -m dinotxt_jax.evaluate --config=configs/eval/quickstart.py \
	  --model=$(QUICKSTART)/run/model --output=$(QUICKSTART)/evaluation
	@echo
	@echo "training curves:               $(QUICKSTART)/run/curves.png"
	@echo "retrieval table:               $(QUICKSTART)/evaluation/report.md"
	@echo "ten images and their captions: $(QUICKSTART)/evaluation/scenes.png"
	@echo "the model (dt.load):           $(QUICKSTART)/run/model"

# A worker takes up to 3 GB of memory and, having eight pretend devices, more than one core.
test: lint
	$(RUN) -m pytest -n auto --maxprocesses=4 --dist worksteal

slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/installed
	$(RUN) -m dinotxt_jax.config > docs/configuration.md

clean:
	rm -rf $(VENV) runs
