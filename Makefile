# demo, test and check each set up .venv from requirements-dev.lock first. Needed: Python 3.11+ (on Debian with python3-venv, which
# root gets installed).
PYTHON ?= python3
STORE ?= runs/demo
# Half of a test is waiting, for processes that start and servers that answer: one more at a time than there are cores.
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
VENV := .venv
UV = $(shell command -v uv || echo $(VENV)/bin/uv)

.PHONY: demo test test-fast readme test-containers test-cluster test-chaos test-gpu gpu-site gpu-study check audit sbom lock env clean

demo: $(VENV)/ready
	@$(VENV)/bin/physion run --preset demo --store $(STORE)

test: $(VENV)/ready
	$(VENV)/bin/pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal

# One of each kind, on another Python too: make test-fast PYTHON=python3.13 VENV=.venv-3.13
FAST := config data models/test_goldens.py models/test_steve.py models/test_weights.py pipeline/test_graph.py pipeline/test_identity.py \
	report/test_metrics.py report/test_html.py stages/test_frames.py store/test_artifacts.py store/test_local.py kubernetes/test_manifest.py \
	end_to_end/test_smoke.py test_open.py
test-fast: $(VENV)/ready
	$(VENV)/bin/pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(FAST:%=tests/%)

# README's commands, run in a fresh clone: tests/readme.py says what is done otherwise than it says.
readme: $(VENV)/ready
	$(VENV)/bin/python tests/readme.py

# Needs a Docker daemon: builds the image, runs it hardened, and docker compose to its report. About 8 minutes.
test-containers: $(VENV)/ready
	$(VENV)/bin/pytest -m containers tests/containers

# Needs a Kubernetes cluster (KUBECONFIG) with Argo Workflows, Trainer or the training operator, and the image on its nodes, kubectl and argo:
# docs/kubernetes.md. About 15 minutes; test-chaos, where things are taken away while a training runs, Kueue's queues, if it is there, and a
# sweep: about an hour.
test-cluster: $(VENV)/ready
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "cluster and not chaos" tests/cluster tests/kubernetes
test-chaos: $(VENV)/ready
	$(VENV)/bin/pytest -m chaos tests/cluster

# Needs a CUDA GPU.
test-gpu: $(VENV)/ready
	$(VENV)/bin/pytest -m gpu

# Preset gpu in pieces of 9 minutes, on a machine with a GPU but no network (jobs/gpu_study.py), which has Python 3.12, PyTorch and all that
# requirements.lock names but SITE; gpu-site, on one with a network, packs that (30 MB): carry it there beside the sources. OUT: what
# comes out. IN: OUT of the piece before.
OUT ?= out
IN ?= in
SITE := annotated-types|av|boto3|botocore|jmespath|mujoco|pydantic|pydantic-core|s3transfer|simplejpeg|typing-inspection
gpu-site.tar.xz: requirements-dev.lock
	$(UV) pip install --quiet --target .site --python-version 3.12 --python-platform x86_64-manylinux_2_28 --only-binary :all: --no-deps \
		$$(grep -oE '^($(SITE))==[^ ;]+' requirements-dev.lock)
	find .site -name '*.dist-info' ! -name 'mujoco-*' -prune -exec rm -r {} +
	tar -cJf $@ -C .site . && rm -r .site
gpu-site: gpu-site.tar.xz
gpu-study:
	@test ! -f gpu-site.tar.xz || { mkdir -p .site && tar -xJf gpu-site.tar.xz -C .site; }
	PYTHONPATH=.site:. $(PYTHON) jobs/gpu_study.py --out $(OUT) --in $(IN)

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Known vulnerabilities of what is locked: asks PyPI for each version. And what the image is made from beside Debian's packages, with
# hashes, as CycloneDX JSON. Both run their tool in an environment of its own, which uv makes.
audit:
	$(UV) tool run --from pip-audit==2.10.1 pip-audit --strict --no-deps --disable-pip --requirement requirements-dev.lock
sbom:
	$(UV) tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-file sbom.json

# uv installs in seconds what takes pip minutes; it is fetched with pip where it is not there. Versions and hashes are the locks',
# and the package itself is built by the locked hatchling, so nothing that is not locked is downloaded.
$(VENV)/ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "physion needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || if test "$$(id -u)" = 0; then apt-get update -qq && apt-get install -y -qq python3-venv > /dev/null; \
		else echo "Python's venv module is missing: sudo apt-get install python3-venv, then make again"; exit 1; fi
	@echo "setting up $(VENV) (once; downloads about 3 GB)"
	@$(PYTHON) -m venv --clear $(VENV)
	@test -x "$(UV)" || $(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.lock
	@$(UV) pip install --quiet --python $(VENV)/bin/python --compile-bytecode --require-hashes -r requirements-dev.lock
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# Versions and hashes of everything, for every platform; names no registry. What the image runs, what builds it, and all of it
# with the tools of development: three files, one version of each package.
COMPILE = $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --quiet
lock:
	$(COMPILE) --upgrade --all-extras --group dev --output-file requirements-dev.lock
	$(COMPILE) --extra simulation --extra kubernetes --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE:pyproject.toml=) --group build --constraint requirements-dev.lock --output-file requirements-build.lock

# Settings and generated S3 credentials of docker compose, readable by you alone.
env: .env
.env:
	@umask 077; key() { head -c 64 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' | head -c $$1; }; printf '%s\n' \
		"# docker compose reads this file. docs/compose.md says how to use a bucket of AWS instead." \
		"COMPOSE_PROFILES=s3" "PHYSION_PRESET=gpu" "PHYSION_STORE=s3://physion/study" "AWS_ENDPOINT_URL=http://s3:8333" \
		"AWS_REGION=us-east-1" "AWS_ACCESS_KEY_ID=$$(key 20)" "AWS_SECRET_ACCESS_KEY=$$(key 40)" > $@
	@echo "wrote .env: now docker compose up"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
