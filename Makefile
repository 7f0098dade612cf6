# Each target works as the first command in a fresh clone: Python 3.11 to 3.13, git and make are enough. `make` alone lists them.
# Plain sh, GNU make 3.81 or newer (macOS ships 3.81).

UV_VERSION = 0.13.9
UV  = $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
PY  = .venv/bin/python
ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help notebooks figures test lab site lint format bench orchestra tiny study clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | \
	awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  Options: MODEL=facebook/musicgen-small or a folder of Meta's format (notebooks), ONLY=\"01 03\" (notebooks, figures), ARGS=... (test), PYTHON=3.13"

notebooks: .venv/ready  ## run the numbered notebooks, in order, and write their outputs and figures
	$(PY) -m workshop.suite.notebooks $(if $(MODEL),--model "$(MODEL)") $(ONLY)

figures: .venv/ready  ## draw the stored figures again, and say which numbers are the same, changed (by how much), new
	$(PY) -m workshop.suite.redraw $(ONLY)

test: .venv/ready  ## run every test, the notebooks' too, on two cores (ARGS="-n 4" for four)
	$(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

lab: .venv/ready  ## open JupyterLab on this machine only, behind a token
	.venv/bin/jupyter lab --ip=127.0.0.1 $(ROOT)

site: .venv/ready  ## build the site into build/site/ from what is stored (SITE_REPOSITORY="owner/name" for badges)
	$(PY) -m workshop.site

lint: .venv/ready  ## check code and notebooks with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: .venv/ready  ## let ruff sort the imports and format code and notebooks
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: .venv/ready  ## time what we promise to be fast (workshop/benchmarks/)
	@for script in workshop/benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "workshop/benchmarks/ holds no script yet"; exit 1; }; \
	  echo "== $$script"; $(PY) "$$script" || exit 1; \
	done

orchestra: .venv/ready  ## compose and render the labelled music again (needs fluidsynth and a soundfont)
	$(PY) -m workshop.tiny.orchestra --out data/runs/orchestra --seed 0

tiny: .venv/ready  ## train the embedded model again from that music (hours on a CPU; resumes after a stop)
	$(PY) -m workshop.tiny.train

study: .venv/ready  ## run the full steering study again (hours on a CPU; resumes after a stop)
	$(PY) -m workshop.study.run

clean:  ## remove what make installed here (.venv, .uv) and caches; your data and figures stay
	rm -rf .venv .uv build .pytest_cache .ruff_cache

# The locked environment, installed again whenever the lock changes, or where a Python is named (PYTHON=3.13).
.PHONY: named
.venv/ready: pyproject.toml uv.lock $(if $(PYTHON),named) | $(UV)
	UV_PROJECT_ENVIRONMENT= $(UV) sync --frozen --all-extras $(if $(PYTHON),--python $(PYTHON))
	@-$(PY) -c "from mechsteer.measures._spectra import librosa_ready; librosa_ready()"  # compiles, once
	@touch $@

# uv itself, from the Python registry into this folder, where none is on PATH.
.uv/bin/uv:
	@for python in python3.11 python3 python; do \
	  $$python -c '' >/dev/null 2>&1 || continue; \
	  if $$python -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); then exit 0; fi; \
	  rm -rf .uv; break; \
	done; \
	echo "Could not install uv here. Install Python 3.11 to 3.13 with its venv module (Debian: apt install python3-venv)," \
	  "check the network, and try again; or install uv yourself (https://docs.astral.sh/uv)." >&2; exit 1
