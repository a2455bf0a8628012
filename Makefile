# The commands of this project; each makes .venv and installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
# Without cached bytecode, each of the hundreds of processes that tests start would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test unit lowest wheel fuzz prove check format lint types docs cli_page clean

demo: .venv/installed  ## from text to a tested GPT-2 that generates text, in a few minutes
	$(BIN)/python data/demo.py
	$(BIN)/python train_tokenizer.py --files data/demo/train --vocab_size 4096 --output_dir tokenizers/demo --reader.document file
	$(BIN)/python trainer.py --config configs/recipe/python.yaml
	$(BIN)/python test.py last
	$(BIN)/python generate.py last --prompt "def " --prompt "import " --prompt "class " --prompt "if __name__ ==" --max_new_tokens 100 --temperature 0.6

test: .venv/installed  ## the whole test suite, one process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 2

unit: .venv/installed  ## the unit tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 2 tests/unit

LOWEST := .cache/lowest
EXTRAS := comments,demo,gguf,hub,lora,parquet,plots,sentencepiece,stats,zstd

lowest:  ## the unit tests with the lowest versions of everything but torch
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt ".[$(EXTRAS)]" pytest hypothesis setuptools
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/unit

wheel:  ## build the wheel, and train and generate with it in an empty environment
	$(PYTHON) scripts/wheel_trial.py

MINUTES := 10

fuzz: .venv/installed  ## hostile files, options and requests; continues where it stopped: make fuzz MINUTES=60
	$(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES)

prove: .venv/installed  ## hundreds of kills compared bit by bit, up to 4 ranks, 4 GB of text, other programs, browsers; takes an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/proofs/prove_resume.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/proofs/prove_distributed.py
	GPT2KIT_BUILD_KILLS=100 $(BIN)/python -m pytest tests/system/test_build_kill.py
	$(BIN)/python tests/proofs/prove_data.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/proofs/prove_clients.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/proofs/prove_space.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/proofs/prove_html.py

check: format lint types test  ## everything that a commit must pass

format: .venv/installed
	$(BIN)/ruff format .

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/mypy

docs: cli_page  ## the documentation site in build/docs; a broken link or reference is an error
	$(BIN)/sphinx-build -W --keep-going --quiet docs build/docs

cli_page: .venv/installed  ## docs/cli.md from the parsers, the tables of docs/migration.md
	$(BIN)/python scripts/cli_page.py
	$(BIN)/python scripts/migration_page.py

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is older than 3.11; make PYTHON=python3.11")'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

clean:  ## delete the environment and tokenized text; keep runs and tokenizers
	rm -rf .venv .cache
