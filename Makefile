# Every task of the project; `make` or `make help` lists them. CI runs these targets and no others.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Variables, given as NAME=value after the target:
IMAGE ?= llm
VARIANT ?=
BASE ?=
CUDA_ARCHITECTURES ?=
KEEP ?=
COMPILED ?=
ARCHIVE ?=
CHECK ?=
A ?=
B ?=
FILE ?=
ADVISORIES ?=
RULES ?=
KEY ?=
SIGNER ?=
FROM ?=
OUTPUT ?=
PREFIX ?= /opt/llm
MODULEPATH ?=
SITE ?=
VERSION ?=
DEFAULT ?=
ARGS ?=
PROMPT ?= What is the capital of France?
NODES ?= 4
NODE ?= login
SUITE ?=

TOOL := sh bin/_llm/tool.sh
VENV := .tools/venv
STAMP := $(VENV)/.installed-$(firstword $(shell cksum requirements-dev.lock))
BOX := python3 tests/cluster/box
QUOTED_PROMPT = '$(subst ','\'',$(PROMPT))'
quoted = '$(subst ','\'',$($(1)))'
# Only what was typed behind the target: module systems export a MODULEPATH of their own.
typed = '$(if $(filter command,$(origin $(1))),$(subst ','\'',$($(1))))'

.PHONY: help setup image images demo test test-unit test-recipes check test-images test-gpu bench \
        install uninstall test-modules lock docs clean venv test-cluster cluster-up cluster-shell \
        cluster-down verify-image diff-image sbom sizes audit archive sign verify release import

help: ## this list
	@echo "make TARGET [NAME=value ...]"; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@printf '%s\n' "" "Variables:" \
	  "  IMAGE=llm         which image: a folder of containers/ ($$(ls -d containers/*/ | cut -d/ -f2 | tr '\n' ' '))" \
	  "  VARIANT=          cpu, cuda13, cuda12; empty: the site profile's, else by the GPU here" \
	  "  BASE=             build on docker://NAME:TAG, oci-archive:FILE or an image file" \
	  "  CUDA_ARCHITECTURES=  GPUs to compile for, such as '80 90'; empty: the profile's, else the GPU here" \
	  "  COMPILED=1        'make verify-image' takes the compiled llama.cpp from the cache, as it is" \
	  "  KEEP=1            'make lock' leaves versions that are locked already as they are" \
	  "  ARCHIVE= CHECK=1  folder that 'make archive' fills (empty: the user's own); CHECK=1 only checks it" \
	  "  PREFIX=/opt/llm   where 'make install' puts things; MODULEPATH= the modulefiles (PREFIX/modulefiles)" \
	  "  SITE=             site profile that the modules choose; empty: by the host's name" \
	  "  VERSION=          which version 'make uninstall' removes; empty: this checkout's. Of 'make release'" \
	  "  FROM=             the release that 'make import' checks and installs; PREFIX= its source too" \
	  "  OUTPUT=           where 'make sbom' and 'make release' write" \
	  "  FILE=             an image file for 'make sbom', 'sizes' and 'audit', in place of IMAGE and VARIANT" \
	  "  A= B=             what 'make diff-image' compares: image files, names or release folders" \
	  "  ADVISORIES= RULES=  of 'make audit': OSV's JSON or zip; licence rules, empty: the default ones" \
	  "  KEY= SIGNER=      who signs or signed: a PEM file, or a PGP key of Apptainer's keyring" \
	  "  DEFAULT=          what 'module load llm' means after 'make install'; empty: the newest version" \
	  "  PROMPT='...'      what 'make demo' asks the tiny model" \
	  "  NODES=4 NODE=login  nodes of the cluster in a box; the one for cluster-shell" \
	  "  SUITE=            that cluster's Slurm from another Debian, such as trixie; empty: this machine's" \
	  "  ARGS=             more options for pytest (test*), the benchmark (bench) or the box (cluster-*)" \
	  "Environment: LLM_IMAGE_DIR (images), LLM_CACHE_DIR (downloads, compiled parts), LLM_BUILD_DIR" \
	  "  (sandboxes), LLM_ARCHIVE_DIR (inputs), LLM_SITE (site profile), LLM_DEBIAN_MIRROR; docs/images.md explains them."

setup: ## find Apptainer and the build tools, install what is missing, say what an administrator must do
	@$(TOOL) setup

image: setup ## build IMAGE for this machine (nothing to do: under a second)
	@$(TOOL) image build --image $(call quoted,IMAGE) --variant '$(VARIANT)' \
	    --base $(call quoted,BASE) --cuda-architectures '$(CUDA_ARCHITECTURES)'

images: setup ## build every image in its cpu variant
	@for name in $$($(TOOL) image list | cut -d' ' -f1); do \
	    $(TOOL) image build --image "$$name" --variant cpu || exit; done

verify-image: setup ## build IMAGE twice from nothing and compare every byte; names what differs
	@$(TOOL) verify-image --image $(call quoted,IMAGE) --variant '$(VARIANT)' \
	    --base $(call quoted,BASE) --cuda-architectures '$(CUDA_ARCHITECTURES)' $(if $(COMPILED),--compiled)

# Its output may go to a file or another program: what setup says does not.
diff-image: ## what differs between two images: A= and B= (packages, sizes, files)
	@$(TOOL) setup >&2
	@$(TOOL) diff-image $(call quoted,A) $(call quoted,B) $(ARGS)

sbom: ## write IMAGE's list of software (CycloneDX) to OUTPUT, or print it
	@$(TOOL) sbom --image $(call quoted,IMAGE) --variant $(call quoted,VARIANT) \
	    --output $(call quoted,OUTPUT) $(call quoted,FILE)

sizes: ## how many bytes each package takes in IMAGE
	@$(TOOL) sizes --image $(call quoted,IMAGE) --variant $(call quoted,VARIANT) $(ARGS) $(call quoted,FILE)

audit: ## check IMAGE's software against an offline file of ADVISORIES and the licence RULES
	@$(TOOL) audit --image $(call quoted,IMAGE) --variant $(call quoted,VARIANT) \
	    --advisories $(call quoted,ADVISORIES) --rules $(call quoted,RULES) $(ARGS) \
	    $(call quoted,FILE)

archive: setup ## keep every input of IMAGE by its hash in ARCHIVE, to build it without a network
	@$(TOOL) archive --image $(call quoted,IMAGE) --variant '$(VARIANT)' \
	    --archive $(call quoted,ARCHIVE) --base $(call quoted,BASE) $(if $(CHECK),--check)

sign: setup ## sign IMAGE with KEY (a PEM file; empty: the PGP key SIGNER of Apptainer's keyring)
	@$(TOOL) sign --image $(call quoted,IMAGE) --variant '$(VARIANT)' --key $(call typed,KEY) \
	    --signer $(call typed,SIGNER)

verify: setup ## check IMAGE's signature with KEY (PEM, certificate or PGP public key; empty: the site's)
	@$(TOOL) verify --image $(call quoted,IMAGE) --variant '$(VARIANT)' --key $(call typed,KEY)

release: setup ## VERSION's images, SBOMs, signatures, locks, checksums and manifest in one folder, OUTPUT
	@$(TOOL) release --version $(call typed,VERSION) --variant '$(VARIANT)' --base '$(BASE)' \
	    --cuda-architectures '$(CUDA_ARCHITECTURES)' \
	    --key $(call typed,KEY) --signer $(call typed,SIGNER) --output $(call typed,OUTPUT) \
	    --archive $(call typed,ARCHIVE) $(ARGS)

import: ## check a release folder, FROM, with KEY and install its images; with PREFIX= also its source
	@$(TOOL) import --from $(call typed,FROM) --key $(call typed,KEY) --prefix $(call typed,PREFIX) \
	    --modulepath $(call typed,MODULEPATH) --site $(call typed,SITE) $(ARGS)

demo: setup ## set up, build the CPU image, then a tiny model's whole story: tune, quantize, evaluate, report
	@$(TOOL) image build --image llm --variant cpu
	@sh recipes/demo.sh $(QUOTED_PROMPT)

venv: $(STAMP)
$(STAMP): requirements-dev.lock
	@sh bin/_llm/venv.sh $(VENV) requirements-dev.lock
	@rm -f $(VENV)/.installed-*; touch $@

test: test-unit test-modules test-images test-recipes test-cluster ## set up what is missing, run every test that needs no GPU

test-unit: venv
	@$(VENV)/bin/pytest tests/unit $(ARGS)

test-images: setup venv ## build (or find) the CPU images and test them and llm-run through real Apptainer
	@sh tests/images/packages.sh
	@$(TOOL) image build --image base
	@$(TOOL) image build --image llm --variant cpu
	@$(TOOL) image build --image llama-recipes --variant cpu
	@$(VENV)/bin/pytest tests/images tests/docs $(ARGS)

test-recipes: setup venv
	@$(TOOL) image build --image llm --variant cpu
	@bin/llm-run --image llm-cpu sh tests/recipes/run.sh --numprocesses 2 --dist loadfile $(ARGS)

test-modules: venv ## the modules in real Environment Modules and Lmod, in bash, zsh and tcsh
	@$(VENV)/bin/pytest tests/modules $(ARGS)

test-gpu: setup venv ## tests on a machine with a GPU, in the image for it
	@$(TOOL) image build --image llm --variant '$(VARIANT)'
	@bin/llm-run --gpu sh tests/recipes/run.sh tests/gpu $(ARGS)

test-cluster: setup venv ## llm-run under a real Slurm: several nodes on this machine (root)
	@sh tests/cluster/packages.sh
	@$(TOOL) image build --image base
	@$(TOOL) image build --image llm --variant cpu
	@root=$$(sh tests/cluster/root.sh '$(SUITE)') && LLM_BOX_ROOT=$$root $(VENV)/bin/pytest tests/cluster --numprocesses 4 --dist loadgroup $(ARGS)

cluster-up: ## start a Slurm cluster of NODES nodes on this machine (root)
	@sh tests/cluster/packages.sh
	@root=$$(sh tests/cluster/root.sh '$(SUITE)') && $(BOX) up --nodes '$(NODES)' --root "$$root" $(ARGS)

cluster-shell: ## a shell on NODE of that cluster
	@$(BOX) shell '$(NODE)' $(ARGS)

cluster-down: ## stop that cluster; files in its home folder stay
	@$(BOX) down $(ARGS)

check: venv ## format, types, shell: everything that needs no image
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy --config-file recipes/mypy.ini $$(git ls-files 'recipes/*.py')
	@$(VENV)/bin/shellcheck -x $$(git grep -lE '^#!/(usr/)?bin/(env )?(ba)?sh$$' -- ':!*.md' ':!*.py')

bench: setup ## measure everything that docs/performance.md states (idle machine; about an hour)
	@$(TOOL) image build --image llm --variant cpu
	@sh benchmarks/run.sh $(ARGS)

install: ## install this version below PREFIX beside others, with modulefiles
	@$(TOOL) install --prefix '$(subst ','\'',$(PREFIX))' --modulepath $(call typed,MODULEPATH) \
	    --site $(call typed,SITE) --default $(call typed,DEFAULT)

uninstall: ## remove VERSION from PREFIX; images, site profiles and changed files stay
	@$(TOOL) uninstall --prefix '$(subst ','\'',$(PREFIX))' --modulepath $(call typed,MODULEPATH) \
	    --version $(call typed,VERSION)

lock: setup venv ## refresh the locks of IMAGE (Debian and Python packages, versions and hashes)
	@$(TOOL) image lock --image '$(IMAGE)' --variant '$(VARIANT)' $(if $(KEEP),--keep)

docs: venv ## build the manual into build/site (strict, no network)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir build/site && echo build/site/index.html

clean: ## remove what was built in this folder (images and caches of the user stay)
	@rm -rf build .tools/venv .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
