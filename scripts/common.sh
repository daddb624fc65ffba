# scripts/common.sh: what the scripts share; sourced by each of them first.
#
# Sets a clean environment, goes to the top of the tree, and defines
#   as_ordinary_user   PostgreSQL does not run as root: start over as another user, in a copy of the tree
#   build              build evpg and all modules, install them into a private server tree
#   mirror             a build directory of links to sources

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
directory=${TMPDIR:-}
[ ${#directory} -le 40 ] || unset TMPDIR		# sockets lie there
: "${PG_CONFIG:=/usr/lib/postgresql/15/bin/pg_config}"
export PG_CONFIG
jobs=$(getconf _NPROCESSORS_ONLN)

say()
{
	echo "evpg: $*" >&2
}

die()
{
	say "$*"
	exit 1
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

# as_ordinary_user <script> <argument>...: returns if this process is fit to run PostgreSQL
as_ordinary_user()
{
	if [ "$(id -u)" != 0 ]; then
		mkdir -p build 2>/dev/null && [ -w build ] || die "$(id -un) cannot write to $top/build"
		[ "${EVPG_LOCKED:-}" = yes ] || lock build/lock
		return
	fi

	local own=(-o "$private_user" -g "$(id -g "$private_user")" -m 700)

	mkdir -m 711 "$private" 2>/dev/null || [ -O "$private" ] && [ ! -L "$private" ] || die "$private is not root's"
	lock "$private/lock"
	install -d "${own[@]}" "$private/tree" "$private/home" "$private/input"
	say "root becomes $private_user, in $private/tree"
	(run_private find . -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +)
	tar -c --exclude-vcs --exclude-from=.gitignore . | (run_private tar -x)
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

# use_build <plain | assert>: names a private server tree and puts its programs first
use_build()
{
	flavour=$1
	out=$top/build/$flavour
	root=$out/root
	export PATH=$root$("$PG_CONFIG" --bindir):$PATH
}

# A copy of the installed server, which finds its files relative to its programs; so nothing is installed in the system.
copy_server()
{
	local directory

	cmp -s "$("$PG_CONFIG" --bindir)/postgres" "$root$("$PG_CONFIG" --bindir)/postgres" && return
	rm -rf "$root"
	for directory in "$("$PG_CONFIG" --pkglibdir)" "$("$PG_CONFIG" --sharedir)" "$("$PG_CONFIG" --includedir-server)" \
		"$("$PG_CONFIG" --bindir)"; do
		mkdir -p "$root$directory"
		cp -a "$directory/." "$root$directory/"
	done
}

# build <plain | assert>: assert has the assertions of evpg on
build()
{
	local copt=${COPT:-} directory

	use_build "$1"
	mkdir -p "$out"
	copy_server
	[ "$flavour" = plain ] || copt="-DUSE_ASSERT_CHECKING $copt"
	if [ "$copt" != "$(cat "$out/copt" 2>/dev/null)" ]; then
		rm -rf "$out/evpg" "$out/modules" "$out/examples"
		echo "$copt" >"$out/copt"
	fi
	mirror . "$out/evpg" \( -path './src/*.[ch]' -o -path ./src/export.txt -o -path './sql/*.sql' -o -path ./Makefile \
		-o -path ./evpg.control \)
	install_from "$out/evpg" "$copt"
	mirror test/modules "$out/modules" \( -name '*.[ch]' -o -name Makefile \)
	install_from "$out/modules"
	for directory in examples/*/; do
		directory=${directory%/}
		mirror "$directory" "$out/$directory" \( -name '*.[ch]' -o -name Makefile \)
		install_from "$out/$directory"
	done
}

# install_from <directory> [options of the compiler]: makes and installs into the private server tree
install_from()
{
	make -s -j "$jobs" -C "$1" PG_CONFIG="$(command -v pg_config)" COPT="${2:-}" all >&2
	make -s -C "$1" PG_CONFIG="$(command -v pg_config)" COPT="${2:-}" install >"$out/install.log" 2>&1 ||
		die "make install failed in $1: $(cat "$out/install.log")"
}
