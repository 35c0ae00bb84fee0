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
DOOR     := $(PACKAGE)/daemon/door/libdoor.so
PROGRAMS := $(patsubst %.c,%.o,$(wildcard $(PACKAGE)/bpf/*.bpf.c))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z_-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## ---- generated code ------------------------------------------------------------------------------------------------

.PHONY: generate
generate: $(PACKAGE)/proto/v1/.generated $(PROGRAMS) ## Generate the gRPC code from proto/, compile the BPF programs of bpf/

$(PACKAGE)/proto/v1/.generated: $(PROTOS)
	PATH="$$(dirname "$$(command -v $(PYTHON))"):$$PATH" $(PYTHON) -m grpc_tools.protoc -I agentcgroup/proto=$(PACKAGE)/proto -I $$($(PYTHON) -c \
	    'import grpc_tools, os; print(os.path.join(os.path.dirname(grpc_tools.__file__), "_proto"))') \
	    --python_out=src --grpc_python_out=src --mypy_out=quiet:src --mypy_grpc_out=quiet:src \
	    $(patsubst $(PACKAGE)/%,agentcgroup/%,$(PROTOS))
	@touch $@

$(PACKAGE)/bpf/%.bpf.o: $(PACKAGE)/bpf/%.bpf.c $(wildcard $(PACKAGE)/bpf/*.h) $(PACKAGE)/bpf/Makefile
	@$(MAKE) --no-print-directory -C $(PACKAGE)/bpf $(@F)

.PHONY: door
door: $(DOOR) ## Build the door's thread, a shared library of the daemon's

$(DOOR): $(wildcard $(PACKAGE)/daemon/door/*.c $(PACKAGE)/daemon/door/*.h) $(PACKAGE)/daemon/door/Makefile
	$(MAKE) --no-print-directory -C $(PACKAGE)/daemon/door

.PHONY: launcher
launcher: $(LAUNCHER) ## Build the native launcher, a static program
	@# An editable install links the Python code but holds a copy of the launcher.
	@if [ -x $(VENV)/bin/agentcg ] && ! cmp -s $(LAUNCHER) $(VENV)/bin/agentcg; then install -m 755 $(LAUNCHER) $(VENV)/bin/agentcg; fi

$(LAUNCHER): $(wildcard $(PACKAGE)/client/launcher/*.c $(PACKAGE)/client/launcher/*.h) $(PACKAGE)/client/launcher/Makefile $(PACKAGE)/__init__.py
	$(MAKE) --no-print-directory -C $(PACKAGE)/client/launcher VERSION=$$(sed -n 's/^__version__.*"\(.*\)"/\1/p' $(PACKAGE)/__init__.py)

## ---- set-up --------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.ready generate launcher door ## Make the virtual environment and build what is generated

# What Debian has to bring: musl for a launcher that runs in any image, a C compiler, node for the protobuf linter, clang
# and libbpf's headers for the BPF programs, libbpf to load them.
HOST_PACKAGES := musl-tools gcc git python3-venv nodejs npm clang-19 llvm-19 libbpf-dev libbpf1

build/.host-packages: Makefile
	@missing=""; for package in $(HOST_PACKAGES); do \
	    case $$package in \
	        musl-tools) command -v musl-gcc ;; gcc) command -v gcc ;; git) command -v git ;; \
	        nodejs) command -v node ;; npm) command -v npm ;; python3-venv) python3 -c 'import venv, ensurepip' ;; \
	        clang-19) command -v clang-19 || clang --version | grep -E 'version (1[5-9]|[2-9][0-9])' ;; llvm-19) command -v llvm-strip-19 || command -v llvm-strip ;; \
	        libbpf-dev) [ -e /usr/include/bpf/bpf_helpers.h ] ;; libbpf1) python3 -c 'import ctypes; ctypes.CDLL("libbpf.so.1")' ;; \
	    esac >/dev/null 2>&1 || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	    command -v apt-get >/dev/null || { echo "setup: please install:$$missing" >&2; exit 1; }; \
	    [ "$$(id -u)" = 0 ] || { echo "setup: to install$$missing run as root, or: sudo apt-get install$$missing" >&2; exit 1; }; \
	    echo "setup: apt-get install$$missing" >&2; \
	    for try in 1 2 3 4 5 6; do \
	        apt-get update -qq && break; \
	        [ $$try -lt 6 ] || { echo "setup: apt-get update failed six times" >&2; exit 1; }; \
	        echo "setup: another apt may be at work; trying again in 10 s" >&2; sleep 10; \
	    done; \
	    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
	@mkdir -p build && touch $@

$(VENV)/.ready: build/.host-packages pyproject.toml setup.py
	@echo "setup: virtual environment in $(VENV) (a minute the first time)" >&2
	@python3 -c 'import sys; sys.exit("setup: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@[ -x $(VENV)/bin/python ] || python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

## ---- the main job ----------------------------------------------------------------------------------------------------

.PHONY: run
run: setup ## Run three agents under one host budget and report on every call (ARGS="--serve" keeps it up)
	@$(VENV)/bin/python -m demo $(ARGS)

## ---- tests ---------------------------------------------------------------------------------------------------------

.PHONY: test
test: setup ## Run every test, here and in the guest on each kernel
	@$(VENV)/bin/python tests/run.py

.PHONY: test-here
test-here: setup ## Run the tests that need no guest (minutes)
	@$(VENV)/bin/python tests/run.py --here -- $(ARGS)

.PHONY: test-guest
test-guest: setup ## Run the guest's tests on one kernel: KERNEL=7.3
	@$(VENV)/bin/python tests/run.py --kernel $(or $(KERNEL),7.3) -- $(ARGS)

.PHONY: sequences
sequences: setup ## Play random sequences, here or in the guest with limits: KERNEL=7.3 ARGS="0-499 --players 8"
	@$(VENV)/bin/python -m tests.sequences $(if $(KERNEL),--kernel $(KERNEL)) $(or $(ARGS),0-499 --players 8)

.PHONY: check
check: setup ## Run the linters only, the protocol's included
	@$(VENV)/bin/python -m pytest -q tests/unit/test_linters.py tests/unit/proto/test_contract.py

.PHONY: format
format: setup ## Format the sources
	@$(VENV)/bin/ruff check --quiet --fix --select I . && $(VENV)/bin/ruff format .

## ---- measurements --------------------------------------------------------------------------------------------------

.PHONY: bench-launch
bench-launch: setup ## Measure what a call costs, against fork+exec and systemd-run: JSON under build/bench
	@$(VENV)/bin/python -m bench.launch $(ARGS)

.PHONY: bench-kernel
bench-kernel: setup ## Measure the kernel half in the guest (KERNEL=7.3, ARGS="--part cpu"): JSON under build/bench
	@$(VENV)/bin/python -m bench.kernel --kernel $(or $(KERNEL),7.3) $(ARGS)

.PHONY: bench-isolation
bench-isolation: setup ## Replay agents on too small a host, in every arm, in the guest: RECORDING=file ARGS="--limit 1100M"
	@$(VENV)/bin/python -m bench.isolation $(if $(RECORDING),--recording $(RECORDING)) $(ARGS)

.PHONY: bench-feedback
bench-feedback: setup ## Measure from the kernel's event to the agent's message (ARGS="--where guest": warnings): JSON under build/bench
	@$(VENV)/bin/python -m bench.feedback $(ARGS)

.PHONY: bpf-stats
bpf-stats: setup ## Print the verifier's figures of every BPF program, here or in the guest (KERNEL=7.3), JSON under build/bpf-stats
	@if [ -n "$(KERNEL)" ]; then \
	    vm/run --kernel $(KERNEL) --share bench --out build/bpf-stats/$(KERNEL) -- \
	        /opt/agentcgroup/bin/python /mnt/share/bench/bpf_stats.py --check --out /mnt/out/figures.json; \
	else $(VENV)/bin/python -m bench.bpf_stats --out build/bpf-stats/here/figures.json; fi

## ---- documentation and packages ------------------------------------------------------------------------------------

.PHONY: docs
docs: setup ## Generate docs/metrics.md from the catalogue
	@$(VENV)/bin/python -m agentcgroup.daemon.metrics > docs/metrics.md

.PHONY: dist
dist: setup ## Build sdist and wheel in dist/
	@$(VENV)/bin/python -m build --outdir dist .

PREFIX  ?= /opt/agentcgroup
BINDIR  ?= /usr/local/bin
UNITDIR ?= /etc/systemd/system
CONFDIR ?= /etc/agentcgroup

.PHONY: install
install: dist ## Install for this host, or upgrade: PREFIX=/opt/agentcgroup, commands in BINDIR, the systemd unit, a configuration
	@python3 -m venv $(PREFIX)
	@wheel=$$(ls -t dist/agentcgroup-*.whl | head -n 1); \
	$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check "$$wheel[daemon]"; \
	$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$$wheel"
	@install -d $(BINDIR)
	@ln -sf $(PREFIX)/bin/agentcg $(PREFIX)/bin/agentcgroupd $(BINDIR)/
	@install -D -m 644 $(PACKAGE)/daemon/agentcgroup.service $(UNITDIR)/agentcgroup.service
	@[ -e $(CONFDIR)/agentcgroup.toml ] || install -D -m 644 $(PACKAGE)/daemon/agentcgroup.toml $(CONFDIR)/agentcgroup.toml
	@echo "installed. What this host can enforce: agentcgroupd --check-host. To start: systemctl daemon-reload && systemctl enable --now agentcgroup; after an upgrade: systemctl restart agentcgroup"

.PHONY: clean
clean: ## Remove everything that is built here, the guest's cache excepted
	rm -rf build dist $(VENV) src/*.egg-info $(LAUNCHER) $(DOOR) $(PACKAGE)/proto/v1/.generated $(PACKAGE)/proto/v1/*_pb2* $(PACKAGE)/bpf/*.bpf.o

.PHONY: clean-vm
clean-vm: ## Remove the guest's images and kernels
	@vm/run --clean
