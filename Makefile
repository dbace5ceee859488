# Each target makes its own virtual environment under .venv, once, and again when setup.cfg has changed.
# Nothing has to be there but make, a POSIX shell and Python >= 3.10. ARGS go to the program that is run:
#
#     make test ARGS="-k codec -x"        make bench ARGS="--quick"        make PYTHON=/opt/python/bin/python3 demo

VERSIONS = 3.10 3.11 3.12 3.13 3.14
ARGS =
# Most of the time of most tests is waiting, so there are more workers than cores. ARGS="-n0" runs them in turn.
PARALLEL = -n 6 --dist worksteal
# Besides tests/faults and the laws, the modules with more to do in `make soak`.
SOAK = descriptors examples launcher restart stop
LAWS = tests/laws tests/contract tests/codec tests/wire tests/cluster
export PYTHON
# Without bytecode each of the hundreds of interpreters that the tests start compiles the package (0.30 s of CPU time
# for a host instead of 0.13), and each worker of pytest compiles all tests (9 s instead of 4).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick test-all test-lowest test-values test-frameworks test-processes test-cluster test-web test-faults soak coverage lint release docs vendor pictures bench bench-peers soak-bench clean $(VERSIONS:%=test-%)
.DELETE_ON_ERROR:

help:
	@echo "make demo         agents index the standard library's documentation and answer questions"
	@echo "make test         the tests"
	@echo "make quick        those that start no program, in less than a minute"
	@echo "make test-all     the tests on Python $(VERSIONS), and with the oldest dependencies allowed"
	@echo "make test-3.12    the tests on one version"
	@echo "make test-values  that values of pandas, polars, pyarrow, Pillow, torch ... arrive as they were sent"
	@echo "make test-frameworks  agents of langgraph, pydantic-ai, openai-agents, google-adk and others on a host"
	@echo "make test-processes  waits, deadlocks, turns, deadlines, cancels, streams and stops, with every agent in a child"
	@echo "make test-faults  attacks, floods, cuts, kills, frozen hosts, launches; and that the benchmarks run"
	@echo "make test-cluster  leases, claims and saves of a cluster: walks over the scripts, writers that are killed"
	@echo "make test-web     as_server web: its page in a browser, its gateway: Chromium must be on the PATH"
	@echo "make pictures     pictures of the page for the documentation, in docs/pictures"
	@echo "make soak         hostile peers, floods, cuts and kills, for a quarter of an hour"
	@echo "make coverage     the tests, and which lines they reach; fails below the floor in setup.cfg"
	@echo "make lint         ruff and mypy, what mypy and pyright know of proxies, and that the archives are whole"
	@echo "make release      lint, test, test-faults, the archives in dist/, and a tag; all of it on this machine"
	@echo "make docs         the site in build/docs: its drawings and tables are made from the source"
	@echo "make vendor       fetch the libraries of the page of as_server web again, at their pinned versions; needs npm"
	@echo "make bench        the benchmarks: every budget, against bare pyzmq; ARGS=\"--quick\" for a first look"
	@echo "make bench-peers  set up the other systems for make bench ARGS=\"--peers all\""
	@echo "make soak-bench   ten minutes at half load"
	@echo "make clean        remove .venv and everything else that is not source"

demo: .venv/demo/.done
	.venv/demo/bin/python examples/index/demo.py $(ARGS)

# Real sockets and processes in trouble, many at once; hosts that are started again and again; and the benchmarks,
# which keep both cores busy.
FAULTS = tests/faults $(addprefix tests/system/test_,benchmarks.py launcher.py restart.py)

# What has a target of its own, see below, and would make this one longer than four minutes.
ELSEWHERE = $(CLUSTER) \
    $(FAULTS) \
    tests/system/test_bad_children.py tests/system/test_computing_children.py tests/system/test_many_children.py \
    tests/system/test_processes.py tests/typing $(wildcard tests/laws/test_*waits*.py) $(WEB)

test: .venv/test/.done
	.venv/test/bin/python -m pytest $(PARALLEL) $(ELSEWHERE:%=--ignore %) $(ARGS)

quick: .venv/test/.done
	.venv/test/bin/python -m pytest $(PARALLEL) -m "not program" --ignore tests/system --ignore tests/faults tests $(ARGS)

soak: .venv/test/.done
	ZMQAGENTS_SOAK=1 .venv/test/bin/python -m pytest tests/faults $(LAWS) $(SOAK:%=tests/system/test_%.py) $(ARGS)

test-values: .venv/test-values/.done
	.venv/test-values/bin/python -m pytest tests/codec tests/laws/test_value_laws.py tests/laws/test_package_laws.py tests/system/test_values.py \
	    tests/system/test_computing_children.py $(ARGS)

test-frameworks: .venv/test-frameworks/.done .venv/test-crewai/.done
	.venv/test-frameworks/bin/python -m pytest tests/frameworks $(ARGS)
	.venv/test-crewai/bin/python -m pytest tests/frameworks/test_crewai.py $(ARGS)

test-faults: .venv/test/.done
	.venv/test/bin/python -m pytest $(PARALLEL) $(FAULTS) $(ARGS)

# The same tests as in `make test`: a host of theirs runs its agents in children then.
PROCESSES = $(addprefix tests/system/test_,waiting.py calls.py streams.py lifecycle.py stream_graph.py call_contexts.py \
    cancel_alone.py methods.py kinds_of_agents.py values.py value_scopes.py files.py stop.py processes.py \
    bad_children.py computing_children.py many_children.py) tests/faults/test_stop_means_stop.py tests/laws/test_*waits*.py tests/members

test-processes: .venv/test/.done
	ZMQAGENTS_TEST_ISOLATION=pool .venv/test/bin/python -m pytest $(PARALLEL) $(PROCESSES) $(ARGS)

# Short here, long in `make soak`. They need a Redis.
CLUSTER = tests/cluster tests/store/test_cluster_records.py tests/store/test_record_forms.py $(wildcard tests/laws/test_*_model.py)

test-cluster: .venv/test/.done
	.venv/test/bin/python -m pytest $(PARALLEL) $(CLUSTER) $(ARGS)

# The page of as_server web, in the Chromium that this machine has; its process; and what its gateway says of itself.
WEB = tests/browser tests/system/test_web.py $(wildcard tests/web/test_gateway_*.py)

test-web: .venv/test-web/.done
	.venv/test-web/bin/python -m pytest $(WEB) $(ARGS)

# The pictures of the documentation.
pictures: .venv/test-web/.done
	ZMQAGENTS_PICTURES=docs/pictures .venv/test-web/bin/python -m pytest -q tests/browser -k every_page

coverage: .venv/test/.done
	.venv/test/bin/python -m coverage erase
	.venv/test/bin/python -m coverage run -m pytest $(PARALLEL) $(ARGS)
	.venv/test/bin/python -m coverage combine --quiet
	.venv/test/bin/python -m coverage report

lint: .venv/lint/.done
	.venv/lint/bin/python -m ruff check --no-cache .
	.venv/lint/bin/python -m ruff format --no-cache --check .
	.venv/lint/bin/python -m mypy
	.venv/lint/bin/python -m pytest -q -n 2 tests/typing
	.venv/lint/bin/python -m check_manifest --no-build-isolation
	$(call archives,.venv/lint/dist)

# A wheel and a source archive in a folder that is emptied first, and their metadata and README as an index would see them.
archives = rm -rf $(1) && .venv/lint/bin/python -m build --quiet --no-isolation --outdir $(1) && \
    .venv/lint/bin/python -m twine check --strict $(1)/*

VERSION = $(shell .venv/lint/bin/python -c "from zmqagents.version import __version__ as v; print(v)")

# Nothing leaves this machine: the tag is local, and what lies in dist/ is for somebody to upload.
release: lint test test-faults
	@git diff --quiet HEAD || { echo "make release: commit your changes first" >&2; exit 1; }
	@grep -q "^$(VERSION)" docs/changelog.rst || \
	    { echo "make release: docs/changelog.rst has no section $(VERSION)" >&2; exit 1; }
	$(call archives,dist)
	git tag --annotate "v$(VERSION)" --message "zmqagents $(VERSION)"
	@echo "tagged v$(VERSION); dist/ has the archives: twine upload dist/*, git push origin v$(VERSION)"

docs: .venv/docs/.done
	.venv/docs/bin/python docs/draw_architecture.py $(ARGS)
	.venv/docs/bin/python docs/write_wire.py $(ARGS)
	.venv/docs/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

vendor:
	python3 packaging/vendor.py

bench: .venv/bench/.done
	.venv/bench/bin/python -m benchmarks $(ARGS)

bench-peers: .venv/bench/.done
	.venv/bench/bin/python -m benchmarks.peers $(ARGS)

soak-bench: .venv/bench/.done
	.venv/bench/bin/python -m benchmarks.soak $(ARGS)

# A version that this machine lacks is named in the summary. It is no failure, unless there is none at all.
test-all:
	@status=0; tested=0; summary=; \
	for version in $(VERSIONS) lowest; do \
	    if ! sh .ci/venv --find $$(echo $$version | sed s/lowest/$(firstword $(VERSIONS))/) >/dev/null; then \
	        result="NOT TESTED, no such Python on this machine"; \
	    elif tested=1; $(MAKE) --no-print-directory test-$$version; then result=passed; \
	    else result=FAILED; status=1; fi; \
	    summary="$$summary  $$version: $$result\n"; \
	done; \
	printf "\nmake test-all:\n$$summary"; [ $$tested$$status = 10 ]

# As in .ci/run: what failed beside five others is run once more, one test at a time. What fails twice has failed.
ONCE_MORE = printf '\nThe tests above that failed, once more:\n' && $(1) -m pytest -n0 --last-failed --last-failed-no-failures=none

$(VERSIONS:%=test-%): test-%: .venv/test-%/.done
	.venv/test-$*/bin/python -m pytest $(PARALLEL) $(ARGS) || { $(call ONCE_MORE,.venv/test-$*/bin/python); }

test-lowest: .venv/test-lowest/.done
	.venv/test-lowest/bin/python -m pytest $(PARALLEL) $(ARGS) || { $(call ONCE_MORE,.venv/test-lowest/bin/python); }

.venv/test-lowest/.done: setup.cfg setup.py pyproject.toml .ci/venv .ci/lowest.py
	@mkdir -p .venv
	@"$$(sh .ci/venv --find $(firstword $(VERSIONS)))" .ci/lowest.py > .venv/lowest.txt
	@sh .ci/venv .venv/test-lowest test $(firstword $(VERSIONS)) .venv/lowest.txt

$(VERSIONS:%=.venv/test-%/.done): .venv/test-%/.done: setup.cfg setup.py pyproject.toml .ci/venv
	@sh .ci/venv .venv/test-$* test $*

.venv/demo/.done: setup.cfg setup.py pyproject.toml .ci/venv
	@sh .ci/venv .venv/demo rich

.venv/bench/.done: setup.cfg setup.py pyproject.toml .ci/venv
	@sh .ci/venv .venv/bench benchmarks

.venv/%/.done: setup.cfg setup.py pyproject.toml .ci/venv
	@sh .ci/venv .venv/$* $*

clean:
	rm -rf .venv .bench build dist .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
