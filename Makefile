# evpg: event sourcing inside PostgreSQL.  `make help` lists the targets.
#
# A PGXS makefile.  `make` and `make install` need PostgreSQL 15 with its
# server headers; the targets that call a script also work before anything is
# installed, and use a private copy of the server under build/.

EXTENSION = evpg
MODULE_big = evpg
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
DATA = $(sort $(wildcard sql/evpg--*.sql))
HEADERS_evpg = src/evpg.h
SHLIB_LINK = -ljson-c
SHLIB_EXPORTS = src/export.txt

# -isystem: the server's own headers are not ours to warn about
PG_CPPFLAGS = -Isrc -isystem $(shell $(PG_CONFIG) --includedir-server)
# a function that the server does not declare, it may not export either: the library would not load
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Werror=implicit-function-declaration

ifeq ($(origin PG_CONFIG),undefined)
PG_CONFIG := $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
endif
export PG_CONFIG

.PHONY: all install help setup test test-assert attack accept lint format typedefs demo serve stop bench picture rules clean clean-build

all:

help:
	@echo 'make              build the extension (make install installs it into the server of $$PG_CONFIG)'
	@echo 'make setup        install what is missing of the Debian packages that the targets below need'
	@echo 'make demo         the examples on a private server; LOG=file.csv.gz imports that event log'
	@echo 'make serve        start that server again with what the demo left, and print the psql line'
	@echo 'make stop         stop it'
	@echo 'make test         all tests; TESTS="unit regress isolation pgtap tap" or names of files choose some'
	@echo 'make test-assert  the isolation and pgTAP tests, or TESTS, on a PostgreSQL with assertions, which is built once'
	@echo 'make attack       hostile calls of every function on that server; see test/attack/README.md'
	@echo 'make accept       take the output of the last make test as the expected one (then read git diff)'
	@echo 'make lint         formatting, warnings, static analysis, exported symbols, the public header'
	@echo 'make format       reformat the C sources (make typedefs first, if there are new types)'
	@echo 'make bench        measure; BENCH="--quick" passes options to bench/run'
	@echo 'make picture      draw docs/overview.svg from docs/overview.dot (installs graphviz)'
	@echo 'make rules        list in docs/rules.md the tests that name each rule of docs/architecture.md'
	@echo 'make clean        remove what was built, and the private server'

setup:
	@scripts/setup lint
test:
	@scripts/test
test-assert:
	@pg_config=$$(scripts/assert-server) && PG_CONFIG=$$pg_config TESTS="$${TESTS:-isolation pgtap}" scripts/test
attack:
	@pg_config=$$(scripts/assert-server) && PG_CONFIG=$$pg_config scripts/attack $${ATTACK:-}
accept:
	@scripts/accept
lint:
	@scripts/lint
format:
	@scripts/indent
typedefs:
	@scripts/indent --typedefs
demo:
	@scripts/demo
serve:
	@scripts/demo serve
stop:
	@scripts/demo stop
bench:
	@scripts/bench $(BENCH)
picture:
	@scripts/setup picture && dot -Tsvg docs/overview.dot -o docs/overview.svg
rules:
	@scripts/rules >docs/rules.md.new && mv docs/rules.md.new docs/rules.md
clean: clean-build
clean-build:
	@scripts/clean

# PGXS, if there is a server to build for
MAJOR := $(shell $(PG_CONFIG) --version 2>/dev/null | sed 's/[^0-9]*\([0-9]*\).*/\1/')
ifeq ($(shell test "$(MAJOR)" -ge 15 2>/dev/null && test -f "$$($(PG_CONFIG) --includedir-server)/postgres.h" && echo yes),yes)

# bitcode doubles the time of a build: make with_llvm=yes if you want it
ifneq ($(origin with_llvm),command line)
override with_llvm := no
endif
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
$(OBJS): Makefile $(wildcard src/*.h src/*/*.h)

else

all install:
	@echo "evpg needs PostgreSQL 15 or newer and its server headers ($(PG_CONFIG) does not have them): run make setup" >&2
	@false

endif
