# make demo    build, train a CNN on real digits, compare speeds        make test      everything that CI checks
# make bench   all benchmarks, against PyTorch (TORCH=... to choose it)  make sanitize  kernel tests under ASan, UBSan
# make format  ruff's formatting                                        make clean     remove what these made
# make docs    the documentation's site, in site/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc pycnn -name '*.[ch]' -o -name '*.def' -o -name '*.py' -o -path 'pycnn/data/*') \
           pyproject.toml setup.py MANIFEST.in README.md
C_FILES := csrc/dispatch.c csrc/plan.c $(wildcard csrc/isa/*.c)
C_CHECK := -std=gnu11 -O1 -fopenmp -Wall -Wextra -Werror -fsyntax-only
AARCH64_CC := aarch64-linux-gnu-gcc
TORCH ?= torch
# Tests of what is the same on all instruction sets: they run on the first one alone.
ANY_SET := benchmarks cli datasets docs examples image_folder notebook plot
OTHER_SETS := $(ANY_SET:%=--ignore=tests/test_%.py)

# Nothing may import the sources that lie in this folder instead of what is installed.
export PYTHONSAFEPATH := 1

.PHONY: demo test lint smoke bench sanitize format docs clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "pycnn needs Python 3.11 or later"'
	$(PYTHON) -m venv $(VENV)

# The source distribution, and a wheel built of it, so that what is tested is what users install.
$(VENV)/.wheel: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet build
	rm -rf dist && $(BIN)/python -m build --outdir dist . > $(VENV)/build.log || (cat $(VENV)/build.log; false)
	touch $@

$(VENV)/.installed: $(VENV)/.wheel
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	$(BIN)/pip install --quiet "$$(ls dist/*.whl)[progress]"
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(ls dist/*.whl)[test,dev,docs]"
	touch $@

# The first instruction set's tests are shown as they run; those of the others run meanwhile, and are shown after them.
test: $(VENV)/.tools lint smoke
	sets=$$($(BIN)/python -c "from pycnn import native; print(*native.usable_instruction_sets())") || exit 1; \
	set -- $$sets; first=$$1; shift; \
	(for isa; do echo "instruction set $$isa" && PYCNN_ISA=$$isa $(BIN)/pytest $(OTHER_SETS) || exit 1; done) \
		> $(VENV)/test.log 2>&1 & \
	others=$$!; echo "instruction set $$first"; PYCNN_ISA=$$first $(BIN)/pytest; status=$$?; \
	wait $$others && others=0 || others=1; cat $(VENV)/test.log; exit $$((status + others))

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	for compiler in $(CC) $$(command -v clang); do \
		for file in $(C_FILES); do $$compiler $(C_CHECK) $$file || exit 1; done; done
	if command -v $(AARCH64_CC) > /dev/null; then $(AARCH64_CC) $(C_CHECK) csrc/isa/neon.c; fi

# A user's first minute with the wheel, away from the sources, in an environment of its own.
smoke: $(VENV)/.wheel
	rm -rf $(VENV)/smoke && $(BIN)/python -m venv $(VENV)/smoke
	$(VENV)/smoke/bin/pip install --quiet dist/*.whl
	cd $(VENV) && smoke/bin/python ../tests/smoke.py ../dist

bench: $(VENV)/.installed
	$(BIN)/python -c 'import torch' 2> /dev/null || $(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pycnn bench
	for script in conv gemm elementwise networks; do $(BIN)/python benchmarks/$$script.py || exit 1; done

sanitize: | $(BIN)/python
	sh tools/sanitize.sh $(VENV)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# The documentation as a site, in site/.
docs: $(VENV)/.tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info pycnn/_kernels.c pycnn/*.so
