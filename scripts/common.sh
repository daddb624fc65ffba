# scripts/common.sh: what the scripts share; sourced by each of them first.
#
# Sets a clean environment, goes to the top of the tree, and defines
#   find_log           look for the log of a bank
#   as_ordinary_user   PostgreSQL does not run as root: start over as another user, in a copy of the tree
#   use_build, build, build_for_tests
#                      build evpg and all modules, and install them into a private server tree

set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."
top=$PWD

# nothing of the caller's make, locale or server
export LC_ALL=C.UTF-8 LANG=C.UTF-8
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL CDPATH LANGUAGE
for variable in "${!PG@}"; do
	[[ $variable == PG_* ]] || unset "$variable"
done

# The Debian release that has a major version of PostgreSQL.
declare -A releases=([15]=bookworm [17]=trixie [18]=forky)

# PG_CONFIG tells which server to work with; without it that is PostgreSQL 15, or the one that this Debian has.
if [ -z "${PG_CONFIG:-}" ]; then
	major=15
	for known in "${!releases[@]}"; do
		! grep -qsx "VERSION_CODENAME=${releases[$known]}" /etc/os-release || major=$known
	done
	PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config
fi
# by its path: the private copy of a server comes first in PATH
PG_CONFIG=$(command -v "$PG_CONFIG" || echo "$PG_CONFIG")
[[ $PG_CONFIG == /* ]] || PG_CONFIG=$PWD/$PG_CONFIG
export PG_CONFIG
jobs=$(getconf _NPROCESSORS_ONLN)

# What is made once and kept outside of the tree: servers to test on.
if [ -z "${EVPG_CACHE:-}" ]; then
	EVPG_CACHE=/var/cache
	[ "$(id -u)" = 0 ] || EVPG_CACHE=${XDG_CACHE_HOME:-${HOME:-}/.cache}
	EVPG_CACHE+=/evpg
fi
export EVPG_CACHE

say()
{
	echo "evpg: $*" >&2
}

die()
{
	say "$*"
	exit 1
}

# The log of a bank, for examples and tests: LOG=path, or found in data/ of this tree or of a directory beside it; or none.
find_log()
{
	local log

	if [ -z "${LOG:-}" ]; then
		for log in {.,..,../*}/data/loan-applications.csv{,.gz}; do
			[ ! -r "$log" ] || LOG=$log
		done
	fi
	if [ -n "${LOG:-}" ]; then
		[ -f "$LOG" ] && [ -r "$LOG" ] || die "there is no file $LOG, or it cannot be read"
		LOG=$(realpath "$LOG")
		export LOG
	fi
}

# ------------------------------------------------------------------ who and where

# Where root's copy of this tree lies, and whose it is.
private=${EVPG_TMP:-/var/tmp}/evpg-$(cksum <<<"$top" | cut -d ' ' -f 1)
private_user=postgres

# run_private <command>...: in root's copy, as its user
run_private()
{
	cd "$private/tree"
	exec setpriv --reuid="$private_user" --regid="$(id -g "$private_user")" --init-groups --inh-caps=-all \
		env -u TMPDIR -u SUDO_USER -u SUDO_UID -u SUDO_GID -u SUDO_COMMAND USER="$private_user" LOGNAME="$private_user" \
		HOME="$private/home" SHELL=/bin/bash PWD="$private/tree" EVPG_LOCKED=yes "$@"
}

# One command at a time in a directory: the lock is held until this process ends.
lock()
{
	exec 9>>"$1"
	flock -n 9 || {
		say "waits for another command in $(dirname "$1")"
		flock 9
	}
}

# as_ordinary_user <script> <argument>...: returns if this process is fit to run PostgreSQL; root's user gets $EVPG_CACHE
as_ordinary_user()
{
	if [ "$(id -u)" != 0 ]; then
		mkdir -p build 2>/dev/null && [ -w build ] || die "$(id -un) cannot write to $top/build"
		[[ $top != *[[:space:]]* ]] || die "make cannot work in a directory with a space in its name: $top"
		[ "${EVPG_LOCKED:-}" = yes ] || lock build/lock
		return
	fi

	local own=(-o "$private_user" -g "$(id -g "$private_user")" -m 700)

	mkdir -m 711 "$private" 2>/dev/null || [ -O "$private" ] && [ ! -L "$private" ] || die "$private is not root's"
	lock "$private/lock"
	install -d "${own[@]}" "$private/tree" "$private/home" "$private/input"
	[ -d "$EVPG_CACHE" ] || install -d "${own[@]:0:4}" "$EVPG_CACHE"
	say "root becomes $private_user, in $private/tree"
	(run_private find . -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +)
	tar -c --exclude=./.git --exclude-from=.gitignore . | (run_private tar -x)
	if [ -n "${LOG:-}" ] && ! (run_private test -r "$LOG"); then
		install "${own[@]}" "$LOG" "$private/input/"
		export LOG=$private/input/${LOG##*/}
	fi
	run_private "$@"
}

# ------------------------------------------------------------------ building

# mirror <directory> <directory in build> <find expression>...: links to the sources, beside what is built from them
mirror()
{
	local from=$1 to=$2 file

	shift 2
	mkdir -p "$to"
	find "$to" -type l -delete
	(cd "$from" && find . -type f "$@" -printf '%P\n') | while read -r file; do
		mkdir -p "$(dirname "$to/$file")"
		ln -s "$top/$from/$file" "$to/$file"
	done
}

# mirror_sources <directory>: what a build of evpg needs
mirror_sources()
{
	mirror . "$1" \( -path './src/*.[ch]' -o -path ./src/export.txt -o -path './sql/*.sql' -o -path ./Makefile \
		-o -path ./evpg.control \)
}

# use_build <name>: build/<name> is where to build, with a private server tree whose programs come first.  What is built
# for a server of scripts/assert-server has a place of its own, so that runs on different servers do not rebuild everything
# for each other.
use_build()
{
	local bin configured

	bin=$("$PG_CONFIG" --bindir)
	configured=$("$PG_CONFIG" --configure)
	out=$top/build/$1
	[[ $configured != *--enable-cassert* ]] || out=$out-server
	[[ ! $configured =~ --prefix=[^\ ]*-(asan|valgrind)- ]] || out=$out-${BASH_REMATCH[1]}
	root=$out/root
	export PATH=$root$bin:$PATH
}

# A copy of the installed server, which finds its files relative to its programs; so nothing is installed in the system.
copy_server()
{
	local bin directory

	bin=$("$PG_CONFIG" --bindir)
	cmp -s <(cat "$bin"/postgres*) <(cat "$root$bin"/postgres* 2>/dev/null) && return
	rm -rf "$root"
	for directory in --pkglibdir --sharedir --includedir-server --bindir; do
		directory=$("$PG_CONFIG" $directory)
		mkdir -p "$root$directory"
		cp -a "$directory/." "$root$directory/"
	done
}

# make_each <target>... -- <assignment>...: in a mirror of evpg, then of the modules of the tests and of each example that
# has a makefile
make_each()
{
	local targets=() directory target

	while [ "$1" != -- ]; do
		targets+=("$1")
		shift
	done
	shift
	if [ "$*" != "$(cat "$out/made-with" 2>/dev/null)" ]; then
		rm -rf "$out/evpg" "$out/test" "$out/examples"
		mkdir -p "$out"
		echo "$*" >"$out/made-with"
	fi
	mirror_sources "$out/evpg"
	for directory in test/modules examples/*/; do
		mirror "${directory%/}" "$out/${directory%/}" \( -name '*.[ch]' -o -name Makefile \)
	done
	for directory in evpg test/modules examples/*/; do
		[ -f "$out/$directory/Makefile" ] || continue		# nothing to build
		for target in "${targets[@]}"; do
			make -s -j "$jobs" -C "$out/$directory" with_llvm=no "$@" "$target" >"$out/make.log" 2>&1 || {
				cat "$out/make.log" >&2
				say "make $target failed in $directory"
				return 1
			}
			[ "$target" != all ] || cat "$out/make.log" >&2		# warnings
		done
	done
}

# build <assignment>...: all that is built with make, into the private server tree
build()
{
	copy_server
	# libpq is not in the copy
	make_each all install -- PG_CONFIG="$root$("$PG_CONFIG" --bindir)/pg_config" LIBPQ_CONFIG="$PG_CONFIG" "$@"
}

# build_for_tests: in build/assert, with assertions and the hooks of src/base/testing.h
build_for_tests()
{
	use_build assert
	build COPT="-DUSE_ASSERT_CHECKING -DEVPG_TEST ${COPT:-}"
}
