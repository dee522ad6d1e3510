# Everything runs from .venv, which `make` builds; nothing needs to be sourced.
PYTHON ?= python3
ARGS ?=

.PHONY: setup demo test lint clean help
.DEFAULT_GOAL := setup

setup:  ## build .venv (again, only what changed); PYTHON=... chooses the interpreter
	@$(PYTHON) bootstrap.py

demo: setup  ## show the simulated robot at work, results in out/demo
	@.venv/bin/sqap demo $(ARGS)

test: setup  ## run the tests; ARGS="-m slow" and the like go to pytest
	@.venv/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: setup  ## check style and types
	@.venv/bin/ruff check .
	@.venv/bin/mypy

clean:  ## remove .venv, build folders and caches; results in out/ stay
	@rm -rf .venv build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache sqap_vla_ros/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8
