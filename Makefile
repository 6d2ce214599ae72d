# Two commands on a fresh machine: `make quickstart` runs the main job, `make test` the tests.
# Both set up .venv first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART ?= runs/quickstart
# Of both cores of a small machine; pretend devices keep a worker's core busy.
PYTEST := -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder
# Byte code is compiled when a module is first imported: most modules never are. It must be kept then,
# or each command that a test starts compiles all of JAX again (container images often forbid it).
export PYTHONDONTWRITEBYTECODE :=
INSTALL := -m pip install --disable-pip-version-check --no-compile

.PHONY: quickstart test slow lowest beam lint format docs clean

$(RUN):
	$(PYTHON) -m venv $(VENV)

# What commands need, and what tests and linters need beyond that.
$(VENV)/installed-plots $(VENV)/installed-test: $(VENV)/installed-%: pyproject.toml | $(RUN)
	$(RUN) $(INSTALL) --editable '.[$*]'
	touch $@

quickstart: $(VENV)/installed-plots
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

test: lint
	$(RUN) $(PYTEST)

# Minutes-long cases and all others, compiled as in real runs, with more drawn examples.
slow: $(VENV)/installed-test
	XLA_FLAGS=--xla_backend_optimization_level=3 $(RUN) $(PYTEST) -m 'slow or not slow' --hypothesis-profile=thorough

# The tests with the lower bounds of pyproject.toml, all at once.
lowest: PYTHON_LOWEST := $(VENV)-lowest/bin/python
lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(PYTHON_LOWEST) .ci/lowest_bounds.py test > $(VENV)-lowest/constraints.txt
	$(PYTHON_LOWEST) $(INSTALL) --editable '.[test]' --constraint $(VENV)-lowest/constraints.txt
	$(PYTHON_LOWEST) $(PYTEST)

# Ingestion through Apache Beam, which excludes the newest versions of what the other tests use.
beam:
	$(PYTHON) -m venv --clear $(VENV)-beam
	$(VENV)-beam/bin/python $(INSTALL) --editable '.[test,beam]'
	$(VENV)-beam/bin/python -m pytest tests/ingestion tests/curation -m 'slow or not slow'

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/installed-test
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/installed-plots
	$(RUN) -m dinotxt_jax.config > docs/configuration.md

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-beam runs
