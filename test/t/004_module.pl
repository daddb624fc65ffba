# A module of a third party: made outside the source tree with PGXS against the installed header, its reducers tested by a
# program that knows no server, loaded by its absolute path.  Rule 7: when the file is replaced by one with another
# reducer_version, new sessions fold by it and ignore the snapshots of the old one; old sessions go on with what they have.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Cwd qw(getcwd);
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('module');
my $directory = PostgreSQL::Test::Utils::tempdir;
chomp(my $include = `pg_config --includedir-server`);
chomp(my $pg_config = `sh -c 'command -v pg_config'`);
my $library = "$directory/meter.so";

sub write_file
{
	my ($name, $text) = @_;

	unlink "$directory/$name";
	PostgreSQL::Test::Utils::append_to_file("$directory/$name", $text);
	return;
}

# ------------------------------------------------------------------ the module

write_file('reducers.c', <<'C');
/* A meter: Read {"value": n} rejects what runs backwards. */
#include "evpg.h"

#ifndef FACTOR
#define FACTOR 1
#endif

static void
read_meter(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	int64_t		value = evpg_int(command->data, "value");

	if (value < evpg_int(state, "value"))
		evpg_reject(out, "backwards", "meter \"%s\" cannot run backwards", command->aggregate_id);
	else
		evpg_emit(out, "MeterRead", evpg_object(EVPG_INT("value", value)));
}

static void
was_read(evpg_json *state, const evpg_event *event)
{
	evpg_set_int(state, "value", evpg_int(event->data, "value"));
	evpg_set_int(state, "readings", evpg_int(state, "readings") + FACTOR);
}

EVPG_AGGREGATE(meter,
			   .initial_state = "{\"value\": 0, \"readings\": 0}",
			   .reducer_version = FACTOR,
			   .commands = EVPG_COMMANDS(EVPG_ON("Read", read_meter)),
			   .events = EVPG_EVENTS(EVPG_ON("MeterRead", was_read)));
C
write_file('module.c', <<'C');
#include "postgres.h"
#include "fmgr.h"
#include "evpg.h"

EVPG_MODULE;
C
write_file('Makefile', <<'MAKE');
MODULE_big = meter
OBJS = reducers.o module.o
PG_CPPFLAGS = -I$(includedir_server)/extension/evpg -Werror $(FACTOR:%=-DFACTOR=%)
SHLIB_LINK = -ljson-c
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
MAKE
write_file('unit.c', <<'C');
#include "evpg.h"

extern const evpg_aggregate_definition *meter(void);

int
main(void)
{
	evpg_json  *state = evpg_initial_state(meter());
	evpg_json  *data = evpg_object(EVPG_INT("value", 5));
	evpg_result out = EVPG_RESULT_INIT;
	evpg_command command = {.aggregate_type = "meter", .aggregate_id = "m", .type = "Read", .data = data};
	bool		first = evpg_decide(meter(), state, &command, &out);
	int64_t		value = evpg_int(state, "value");
	bool		second;

	evpg_result_reset(&out);
	evpg_set_int(data, "value", 4);
	second = evpg_decide(meter(), state, &command, &out);
	printf("%d %d %d %s\n", first, (int) value, second, out.code);
	evpg_result_reset(&out);
	json_object_put(state);
	json_object_put(data);
	return 0;
}
C

sub build
{
	my ($factor) = @_;

	# not the variables of a make that runs this test
	delete local @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES)};
	command_ok([ 'make', '-s', '-B', '-C', $directory, "PG_CONFIG=$pg_config", 'with_llvm=no', "FACTOR=$factor" ],
		"a module is built with PGXS against the installed header (factor $factor)");
	return;
}

ok(-f "$include/extension/evpg/evpg.h", 'evpg.h is installed');
my $tree = Cwd::realpath(tree());
unlike($directory, qr/^\Q$tree\E\/(src|examples)/, 'the module lies elsewhere');

# ------------------------------------------------------------------ without a server

command_ok(
	[ 'cc', '-std=gnu99', '-Wall', '-Wextra', '-Werror', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all',
		"-I$include/extension/evpg", '-o', "$directory/unit", "$directory/unit.c", "$directory/reducers.c", '-ljson-c' ],
	'its reducers compile into a program, without a header of the server');
command_like(["$directory/unit"], qr/^1 5 0 backwards$/, 'the unit test of the module passes');

# ------------------------------------------------------------------ in the server

build(1);
is( $node->safe_psql('postgres',
	"SELECT evpg_register_aggregate('meter', library => '$library', symbol => 'meter', snapshot_every => 2)"),
	't', 'registered by its absolute path');
is(sqlstate($node, "SELECT evpg_register_aggregate('m', library => './meter.so', symbol => 'meter')"), '22023',
	'a relative path is refused');
is(sqlstate($node, "SELECT evpg_register_aggregate('m', library => '$library', symbol => 'nothing')"), 'VE009',
	'a symbol that is not there is refused');
is( $node->safe_psql('postgres', <<'SQL'),
SELECT version FROM evpg_execute('meter', 'm', 'Read', '{"value": 10}');
SELECT version FROM evpg_execute('meter', 'm', 'Read', '{"value": 20}');
SELECT version FROM evpg_execute('meter', 'm', 'Read', '{"value": 30}');
SELECT status, code FROM evpg_try_execute('meter', 'm', 'Read', '{"value": 29}');
SELECT version, state FROM evpg_state('meter', 'm');
SQL
	"1\n2\n3\nrejected|backwards\n3|{\"value\": 30, \"readings\": 3}", 'commands are decided by it');
is($node->safe_psql('postgres', 'SELECT version, reducer_version FROM evpg.snapshot'), '2|1',
	'a snapshot was written [rule 7]');
# a trace that shows whether a snapshot was used
$node->safe_psql('postgres', q{UPDATE evpg.snapshot SET state = state || '{"snapshot": 1}'});
is($node->safe_psql('postgres', "SELECT state->'snapshot' FROM evpg_state('meter', 'm')"), '1',
	'a new session loads it [rule 7]');

my $old = $node->background_psql('postgres', on_error_stop => 1);
is($old->query_safe("SELECT state->'readings' FROM evpg_state('meter', 'm')"), '3', 'an old session has a warm state');

# the file goes, another one comes: never written in place, for it is mapped by the old session
unlink $library;
build(10);

is( $node->safe_psql('postgres', "SELECT version, state FROM evpg_state('meter', 'm')"),
	'3|{"value": 30, "readings": 30}', 'a new session folds by the new library, from the first event [rule 7]');
is( $old->query_safe("SELECT version FROM evpg_execute('meter', 'm', 'Read', '{\"value\": 40}'); SELECT state "
	. "FROM evpg_state('meter', 'm')"),
	"4\n{\"value\": 40, \"readings\": 4, \"snapshot\": 1}", 'the old session goes on with the old one');
is($node->safe_psql('postgres', 'SELECT version, reducer_version FROM evpg.snapshot'), '4|1',
	'its snapshot says by which [rule 7]');
is( $node->safe_psql('postgres', <<'SQL'), "5\n6\n{\"value\": 60, \"readings\": 60}",
SELECT version FROM evpg_execute('meter', 'm', 'Read', '{"value": 50}');
SELECT version FROM evpg_execute('meter', 'm', 'Read', '{"value": 60}');
SELECT state FROM evpg_state('meter', 'm');
SQL
	'the new version ignores snapshots of the old one [rule 7]');
is($node->safe_psql('postgres', 'SELECT version, reducer_version, state FROM evpg.snapshot'),
	'6|10|{"value": 60, "readings": 60}', 'the new version writes its own snapshot [rule 7]');
is( $old->query_safe("SELECT state->'readings' FROM evpg_state('meter', 'm')"),
	'6', 'the old version ignores snapshots of the new one');
$old->quit;

# no file: an error that names it, and no loss
unlink $library;
my ($code, $stdout, $stderr) = $node->psql('postgres', "SELECT evpg_execute('meter', 'm', 'Read', '{\"value\": 70}')");
like($stderr, qr/could not access file "\Q$library\E"/, 'a file that is gone is named');
is($node->safe_psql('postgres', "SELECT evpg_stream_version('meter', 'm')"), '6', 'its events can be read');
build(10);
is($node->safe_psql('postgres', "SELECT version FROM evpg_execute('meter', 'm', 'Read', '{\"value\": 70}', 6)"), '7',
	'back again, all is well');
is(inspect($node), '', 'all that is stored agrees');

$node->stop;
done_testing();
