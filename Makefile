# Kuźnia's commands. Each works on a fresh machine with Python 3.11 and installs what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
include images/versions.env
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Modules are compiled once and not at each start, which would take longer than most of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup environments check test charts e2e demo generate lock images bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.complete ## Make .venv with everything to work on Kuźnia

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.complete: requirements-dev.lock .tools/bin/uv
	.tools/bin/uv venv --quiet --allow-existing --python $(PYTHON) .venv
	.tools/bin/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.lock
	.tools/bin/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	ln -sf $(CURDIR)/.tools/bin/uv $(BIN)/uv
	touch $@

environments: setup ## Install the environments of all images (5 GB, done on first use otherwise)
	python -m workflows.environments

check: setup ## Format, lint, types, layers, generated files, the registry in git
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m scripts.generate --check
	kuznia check

test: setup ## All tests that need no cluster, GPU or helm
	pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

charts: setup ## Tests of the charts; they need helm and no cluster
	pytest -n 2 -m chart tests/charts tests/unit/test_generated.py --durations=5

e2e: setup ## Tests on the cluster of KUBECONFIG (docs/howto/test-on-a-cluster.md)
	pytest -m "cluster$(if $(WITHOUT), and not $(WITHOUT))" tests/e2e --durations=10

demo: setup ## Fine-tune, register, document and serve a small model; DATA=file.csv for your own rows
	kuznia demo $(if $(DATA),--data $(DATA))

generate: setup ## Remake every generated file
	python -m scripts.generate

lock: .tools/bin/uv ## Lock the requirements of all images and of development
	PATH=$(CURDIR)/.tools/bin:$$PATH scripts/lock

images: setup ## Build the container images; NAMES="train serve" for some, VARIANT=cuda, PUSH=registry/path
	python -m scripts.images $(NAMES) $(if $(VARIANT),--variant $(VARIANT)) $(if $(PUSH),--push $(PUSH)) $(if $(ONCE_FOR),--once-for $(ONCE_FOR))

bench: setup ## Run all benchmarks that can run here; tables go to docs/reference/performance.md
	python -m bench
	$(MAKE) generate

clean: ## Remove what make made in this folder; runs and models in .kuznia stay
	rm -rf .venv .tools build *.egg-info
