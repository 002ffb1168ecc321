# What a reader, a tester and an author need; `make` alone lists it.
#   PYTHON=python3.12   the interpreter to build the virtual environment with (3.11 or 3.12; found by itself otherwise)
#   DATA=folder         what `make demo` learns from (the drawn world otherwise); ARGS="..." goes to the command line as it stands
#   DEVICE=cuda:1       where `make gpu-check` runs

VENV  := .venv
BIN   := $(VENV)/bin
PY    := $(BIN)/python
READY := $(VENV)/.ready
DEVICE ?= cuda

# After installation nothing asks the network; one thread a worker, so that parallel notebooks do not fight for the cores.
CALM  := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
         HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1
LIMIT  = $(if $(shell command -v timeout),timeout -k 10 $(1))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow gpu-check benchmark export clean-nbs readme prepare

help:                   ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)         ## virtual environment with the tested versions

# torch comes first and by itself: what pip holds for this machine (a CPU wheel, say) is kept by everything after it.
$(READY): settings.ini setup.py constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then for p in python3.11 python3.12 python3 python; do \
	  if $$p -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then python=$$p; break; fi; done; fi; \
	if [ -z "$$python" ]; then \
	  echo "blip_nb needs Python 3.11 or 3.12 with its venv module, and none of python3.11, python3.12, python3, python is one." >&2; \
	  echo "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi; \
	if ! $(PY) -c 'import pip' 2>/dev/null; then echo "Creating $(VENV) with $$python"; "$$python" -m venv --clear $(VENV) || exit 1; fi; \
	quiet=-q; if [ -t 1 ]; then quiet=; fi; \
	echo "Installing the versions of constraints.txt into $(VENV): torch first, then the rest (some minutes the first time)"; \
	$(PY) -m pip install $$quiet -c constraints.txt setuptools wheel torch && \
	$(PY) -m pip install $$quiet -c constraints.txt --no-build-isolation -e '.[dev,search,video,lora]'
	@touch $(READY)

demo: $(READY)          ## train, evaluate and report: make demo [DATA=folder]
	$(BIN)/blip_nb demo $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(READY)          ## everything that is checked on each change; at most 8 minutes on 2 cores
	$(CALM) $(PY) -m pytest -q tests/test_tree.py
	$(CALM) $(call LIMIT,900) $(BIN)/nbdev_test --n_workers 2 --timing
	$(CALM) $(call LIMIT,600) $(PY) -m pytest -q tests --ignore=tests/test_tree.py

test-slow: $(READY)     ## what is flagged slow: notebooks first, then pytest
	$(CALM) $(call LIMIT,14400) $(BIN)/nbdev_test --n_workers 2 --timing --flags slow
	$(CALM) $(call LIMIT,7200) $(PY) -m pytest -q tests -m slow

gpu-check:              ## parity, laws and figures on DEVICE, with the python at hand: torch, transformers, matplotlib, pytest
	BLIP_NB_DEVICE=$(DEVICE) $(or $(PYTHON),python) -m pytest -q tests/gpu

benchmark: $(READY)     ## run nbs/benchmarks here and store what they measure
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=WARN nbs/benchmarks/*.ipynb
	$(BIN)/nbdev_clean --fname nbs/benchmarks

export: $(READY)        ## write the modules from the notebooks
	$(BIN)/nbdev_export

clean-nbs: $(READY)     ## strip the notebooks of what changes at every run
	$(BIN)/nbdev_clean

readme: $(READY)        ## README.md from nbs/index.ipynb, its table from the notebooks' first cells
	$(PY) tests/tree.py

prepare: export clean-nbs readme   ## before a commit: export, clean, readme
