# evpg: event sourcing inside PostgreSQL.  `make help` lists the targets.
#
# A PGXS makefile.  `make` and `make install` need PostgreSQL 15 to 18 with its
# server headers; the targets that call a script also work before anything is
# installed, and use a private copy of the server under build/.  Objects go to
# the current directory, which may be another one: make -f ../evpg/Makefile.

# where this file is, and names of files relative to it
here := $(or $(VPATH),$(patsubst %/,%,$(dir $(firstword $(MAKEFILE_LIST)))))
files = $(sort $(patsubst $(here)/%,%,$(wildcard $(addprefix $(here)/,$(1)))))

EXTENSION = evpg
MODULE_big = evpg
OBJS = $(patsubst %.c,%.o,$(call files,src/*.c src/*/*.c))
DATA = $(call files,sql/evpg--*.sql)
HEADERS_evpg = src/evpg.h
SHLIB_LINK = -ljson-c
SHLIB_EXPORTS = src/export.txt

# -isystem: the server's own headers are not ours to warn about
PG_CPPFLAGS = -I$(here)/src -isystem $(shell $(PG_CONFIG) --includedir-server)
# a function that the server does not declare, it may not export either: the library would not load
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Werror=implicit-function-declaration
# the same library from whatever directory
PG_CFLAGS += -ffile-prefix-map=$(abspath $(here))=. -ffile-prefix-map=$(CURDIR)=.

PG_CONFIG ?= pg_config

.PHONY: all install help setup test test-versions test-upgrade test-settings test-assert test-sanitizers attack accept lint format typedefs demo serve stop bench bench-instructions picture rules clean clean-build

all:

help:
	@echo 'make              build the extension (make install installs it into the server of $$PG_CONFIG)'
	@echo 'make setup        install what is missing of the Debian packages that the targets below need'
	@echo 'make demo         the examples on a private server; LOG=file.csv.gz imports that event log'
	@echo 'make serve        start that server again with what the demo left, and print the psql line'
	@echo 'make stop         stop it'
	@echo 'make test         all tests; TESTS="unit regress isolation pgtap tap" or names of files choose some'
	@echo 'make test-versions  a demo and all tests on PostgreSQL 15, 17 and 18, fetched once; VERSIONS and TESTS choose some'
	@echo 'make test-upgrade  pg_upgrade, dumps and replication between these versions; TESTS chooses files of test/upgrade'
	@echo 'make test-settings  the tests under other settings, each a file of test/settings; SETTINGS and TESTS choose some'
	@echo 'make test-assert  the isolation and pgTAP tests, or TESTS, on a PostgreSQL with assertions, which is built once'
	@echo 'make test-sanitizers  tests with AddressSanitizer in the server, and in valgrind; SANITIZERS and TESTS choose some'
	@echo 'make attack       hostile calls of every function on that server; see test/attack/README.md'
	@echo 'make accept       take the output of the last make test as the expected one (then read git diff)'
	@echo 'make lint         formatting, warnings, static analysis, exported symbols, the public header'
	@echo 'make format       reformat the C sources (make typedefs first, if there are new types)'
	@echo 'make bench        measure; BENCH="--quick" passes options to bench/run'
	@echo 'make bench-instructions  count the instructions of calls, and compare them with limits'
	@echo 'make picture      draw docs/overview.svg from docs/overview.dot (installs graphviz)'
	@echo 'make rules        list in docs/rules.md the tests that name each rule of docs/architecture.md'
	@echo 'make clean        remove what was built, and the private server'

setup:
	@$(here)/scripts/setup lint
test:
	@$(here)/scripts/test
test-versions:
	@$(here)/scripts/test-versions
test-upgrade:
	@$(here)/scripts/test-upgrade
test-settings:
	@$(here)/scripts/test-settings
test-assert:
	@pg_config=$$($(here)/scripts/assert-server) && PG_CONFIG=$$pg_config TESTS="$${TESTS:-isolation pgtap}" $(here)/scripts/test
test-sanitizers:
	@$(here)/scripts/test-sanitizers
attack:
	@pg_config=$$($(here)/scripts/assert-server) && PG_CONFIG=$$pg_config $(here)/scripts/attack $${ATTACK:-}
accept:
	@$(here)/scripts/accept
lint:
	@$(here)/scripts/lint
format:
	@$(here)/scripts/indent
typedefs:
	@$(here)/scripts/indent --typedefs
demo:
	@$(here)/scripts/demo
serve:
	@$(here)/scripts/demo serve
stop:
	@$(here)/scripts/demo stop
bench:
	@$(here)/scripts/bench $(BENCH)
bench-instructions:
	@$(here)/scripts/bench-instructions $(BENCH)
picture:
	@$(here)/scripts/setup picture && dot -Tsvg $(here)/docs/overview.dot -o $(here)/docs/overview.svg
rules:
	@$(here)/scripts/rules >$(here)/docs/rules.md.new && mv $(here)/docs/rules.md.new $(here)/docs/rules.md
clean: clean-build
clean-build:
	@$(here)/scripts/clean

# PGXS, if there is a server to build for
MAJOR := $(shell $(PG_CONFIG) --version 2>/dev/null | sed 's/[^0-9]*\([0-9]*\).*/\1/')
ifeq ($(shell test "$(MAJOR)" -ge 15 2>/dev/null && test -f "$$($(PG_CONFIG) --includedir-server)/postgres.h" && echo yes),yes)

# bitcode doubles the time of a build: make with_llvm=yes if you want it
ifneq ($(origin with_llvm),command line)
override with_llvm := no
endif
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
$(OBJS): $(here)/Makefile $(wildcard $(here)/src/*.h $(here)/src/*/*.h)

# in another directory: make would take objects that lie beside the sources for those it is to link
ifneq ($(abspath $(here)),$(CURDIR))
ifneq ($(wildcard $(here)/src/*.o $(here)/src/*/*.o),)
$(error $(here) has the objects of a build in it: run make clean there first)
endif
$(shell mkdir -p $(sort $(dir $(OBJS))))
endif

else

all install:
	@echo "evpg needs PostgreSQL 15 or newer and its server headers ($(PG_CONFIG) does not have them): run make setup" >&2
	@false

endif
