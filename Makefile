# Two commands do everything on a fresh machine with Python 3.11 and a C++ compiler:
#   make demo    create .venv, install, run the main job on the data that is shipped
#   make test    create .venv, install, run the tests
PYTHON ?= python3
BIN = .venv/bin
comma = ,

.PHONY: demo test slow docs screenshots lint types check stub native neon sanitize sanitize-thread fuzz clean

# With byte code, as an environment may forbid that imports write it (PYTHONDONTWRITEBYTECODE): each of the processes
# that tests start would compile all it imports.
install = $(BIN)/pip install --quiet --constraint constraints.txt

# Installed again whenever a source is newer. -P keeps the sources from hiding the installed package.
SOURCES := pyproject.toml constraints.txt README.md $(shell find compressae_index connectors -name '*.py' -o -name '*.?pp' -o -name 'CMakeLists.txt' -o -name '*.pyi' -o -name '*.html')

# Only where the system has none. Ninja is not needed: without it, the engine is built by make.
CMAKE := $(if $(shell command -v cmake),,cmake)

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(install) pip scikit-build-core nanobind hatch-fancy-pypi-readme $(CMAKE)
	$(install) --no-build-isolation --config-settings=cmake.define.COMPRESSAE_WERROR=ON ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/compressae-index demo --output demo-output

# Two files at a time, in the order of their names: long ones of few tests would come last. PYTHONSAFEPATH is -P for the
# workers, too. Numpy multiplies by one thread, and threads of OpenMP that wait do not spin: they would take the processor
# from the other file.
tests = PYTHONSAFEPATH=1 OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 \
  --dist loadfile --no-loadscope-reorder
test: .venv/installed
	$(tests) -m "not slow"

# The rest of the tests: jobs on Ray, the site, memory of large builds, long trainings and plans, and some contracts in
# Milvus.
slow: .venv/installed
	$(tests) -m slow

# A warning is an error: a link that leads nowhere, a page that cannot be read.
docs: .venv/installed
	$(BIN)/python -P -m sphinx --builder html --quiet --fail-on-warning --keep-going --conf-dir docs . build/docs

# The pictures of pages in the docs; needs Chromium.
screenshots: .venv/installed
	$(BIN)/python -P docs/screenshots.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find compressae_index/csrc tests -name '*.?pp')

types: .venv/installed
	$(BIN)/mypy

check: test slow lint types

# The committed picture of the engine for type checkers; a test compares it with the built module.
# Made from a folder without sources, which stubgen would import instead of the built package.
stub: .venv/installed
	cd .venv && bin/python -P -m nanobind.stubgen -m compressae_index._engine -o ../compressae_index/_engine.pyi
	$(BIN)/ruff format --quiet compressae_index/_engine.pyi

# The kernels of every instruction set against the plain loops, without Python; NEON by Debian's cross compiler and
# emulator of aarch64 (g++-aarch64-linux-gnu, qemu-user).
native_tests = PATH="$$PATH:$(CURDIR)/$(BIN)" && cmake -S tests/native -B build/$(1) -DCOMPRESSAE_WERROR=ON $(2) && \
  cmake --build build/$(1) --parallel && cd build/$(1) && ctest --verbose

native: .venv/installed
	$(call native_tests,native)

neon: .venv/installed
	$(call native_tests,neon,-DCMAKE_TOOLCHAIN_FILE=aarch64.cmake)

# The engine's tests with its memory accesses and arithmetic, or its threads, checked by GCC's sanitizers. Built and
# installed aside, so that the installed package stays as it is. Python itself is not built with them, so their
# runtimes are preloaded; its leaks at the end of the process are its own affair. Extra arguments go to pytest: ARGS=-x
SANITIZED = build/sanitized
runtime = $(shell $(CXX) -print-file-name=$(1))
sanitized_build = rm -rf $(SANITIZED)-$(1) && $(BIN)/pip install --quiet --no-deps --no-build-isolation \
  --target $(SANITIZED)-$(1) --config-settings=build-dir=build/sanitized-objects-$(1) \
  --config-settings=cmake.define.COMPRESSAE_SANITIZE=$(2) .

sanitized_memory = PYTHONPATH=$(SANITIZED)-memory PYTHONMALLOC=malloc \
  LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libubsan.so) $(call runtime,libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

sanitize: .venv/installed
	$(call sanitized_build,memory,address$(comma)undefined)
	$(sanitized_memory) $(BIN)/python -P -m pytest tests/test_engine.py tests/test_packing.py tests/test_model.py \
	  tests/test_residuals.py tests/test_refine.py $(ARGS)

# Its shadow memory has fixed addresses, which a kernel that places libraries at random may have given away: setarch -R.
# One thread of OpenMP: torch's are not built with the sanitizer, so that it takes what they share for races.
sanitize-thread: .venv/installed
	$(call sanitized_build,thread,thread)
	setarch -R env OMP_NUM_THREADS=1 PYTHONPATH=$(SANITIZED)-thread PYTHONMALLOC=malloc \
	  LD_PRELOAD="$(call runtime,libtsan.so) $(call runtime,libstdc++.so.6)" \
	  TSAN_OPTIONS=halt_on_error=1:suppressions=tests/tsan.supp \
	  $(BIN)/python -P -m pytest -k thread tests/test_engine.py tests/test_changes.py $(ARGS)

# Saved things are changed at random, with checksums that fit, then loaded and used: make fuzz COUNT=20000 SEED=1.
COUNT ?= 2000
SEED ?= 0
fuzz: .venv/installed
	$(call sanitized_build,memory,address$(comma)undefined)
	$(sanitized_memory) $(BIN)/python -P tests/fuzzing.py --count $(COUNT) --seed $(SEED) $(ARGS)

clean:
	rm -rf .venv build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
