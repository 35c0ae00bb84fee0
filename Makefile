# AgentCgroup. `make help` lists the targets.
#
# PACKAGE is the one path to the sources that exists both in a checkout (where it holds links) and in an unpacked
# sdist (where it holds folders).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PACKAGE := src/agentcgroup
VENV    ?= .venv
PYTHON  ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)
PROTOS  := $(wildcard $(PACKAGE)/proto/v1/*.proto)
STUBS   := $(PROTOS:.proto=_pb2.py)
LAUNCHER := $(PACKAGE)/client/launcher/agentcg

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z_-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## ---- generated code ------------------------------------------------------------------------------------------------

.PHONY: generate
generate: $(PACKAGE)/proto/v1/.generated ## Generate the gRPC code from proto/

$(PACKAGE)/proto/v1/.generated: $(PROTOS)
	PATH="$$(dirname "$$(command -v $(PYTHON))"):$$PATH" $(PYTHON) -m grpc_tools.protoc -I agentcgroup/proto=$(PACKAGE)/proto -I $$($(PYTHON) -c \
	    'import grpc_tools, os; print(os.path.join(os.path.dirname(grpc_tools.__file__), "_proto"))') \
	    --python_out=src --grpc_python_out=src --mypy_out=quiet:src --mypy_grpc_out=quiet:src \
	    $(patsubst $(PACKAGE)/%,agentcgroup/%,$(PROTOS))
	@touch $@

.PHONY: launcher
launcher: $(LAUNCHER) ## Build the native launcher, a static program
	@# An editable install links the Python code but holds a copy of the launcher.
	@if [ -x $(VENV)/bin/agentcg ] && ! cmp -s $(LAUNCHER) $(VENV)/bin/agentcg; then install -m 755 $(LAUNCHER) $(VENV)/bin/agentcg; fi

$(LAUNCHER): $(wildcard $(PACKAGE)/client/launcher/*.c $(PACKAGE)/client/launcher/*.h) $(PACKAGE)/client/launcher/Makefile $(PACKAGE)/__init__.py
	$(MAKE) --no-print-directory -C $(PACKAGE)/client/launcher VERSION=$$(sed -n 's/^__version__.*"\(.*\)"/\1/p' $(PACKAGE)/__init__.py)

## ---- set-up --------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.ready ## Make the virtual environment and build what is generated

$(VENV)/.ready: pyproject.toml setup.py
	@echo "setup: virtual environment in $(VENV)" >&2
	python3 -c 'import sys; sys.exit("setup: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@
