# Dumps that are restored into another major version, newer and older, in one step, in parallel, and schema and data apart,
# by the programs of the newer version, into servers whose workers run meanwhile.  All is there as it was; nothing is done
# before activation, not even during the restore (rule 9); what comes of each copy in the end is the same.

use strict;
use warnings;
use FindBin;
use lib ($FindBin::RealBin, "$FindBin::RealBin/../t");
use EvpgTest qw(:DEFAULT processes);
use PostgreSQL::Test::Utils;
use Test::More;
use UpgradeTest;

my $directory = PostgreSQL::Test::Utils::tempdir;
my @elsewhere = ('evpg.activation', 'evpg.clock');		# what belongs to the database, not to its contents

my $oldest = server('oldest', $others[0]);
fill($oldest);
my $contents = contents($oldest, 'postgres', @elsewhere);
my $figures = figures($oldest);

my $newest_node = server('newest', $newest);
my $between = server('between', $others[-1]);
foreach my $node ($newest_node, $between)
{
	run_newest($oldest, "$directory/globals", 'pg_dumpall', '--globals-only');
	$node->psql('postgres', slurp_file("$directory/globals"), on_error_stop => 0);	# the superuser exists
	$node->safe_psql('postgres', $_) foreach 'ALTER SYSTEM SET evpg.workers = 1', 'SELECT pg_reload_conf()';
}

# ------------------------------------------------------------------ to newer versions

my $what = "$others[0] to $newest, in parallel";
new_database($newest_node, 'at_once');
run_newest($oldest, "$directory/parallel", 'pg_dump', '-Fd', '-j4');
restore($newest_node, 'at_once', "$directory/parallel", '-j4');
check_copy($newest_node, 'at_once', $what);

$what = "$others[0] to $others[-1], schema and data apart";
new_database($between, 'apart');
run_newest($oldest, "$directory/schema", 'pg_dump', '-Fc', '--schema-only');
run_newest($oldest, "$directory/data", 'pg_dump', '-Fd', '-j4', '--data-only');
restore($between, 'apart', "$directory/schema");
restore($between, 'apart', "$directory/data", '-j4', '--data-only');
check_copy($between, 'apart', $what);

$what = "$others[-1] to $newest";
new_database($newest_node, 'again');
run_newest($between, "$directory/again", 'pg_dump', '-Fc', 'apart');
restore($newest_node, 'again', "$directory/again");
check_copy($newest_node, 'again', $what);

# ------------------------------------------------------------------ back to the oldest one

$what = "$newest to $others[0]";
new_database($oldest, 'back');
run_newest($newest_node, "$directory/back", 'pg_dump', '-Fc', 'at_once');
my (undef, $errors) =
  run_command([ installation($newest) . '/bin/pg_restore', '-d', $oldest->connstr('back'), "$directory/back" ]);
# pg_restore sets what the older server does not know
is(join(' ', $errors =~ /ERROR:\s+(.*)/g), 'unrecognized configuration parameter "transaction_timeout"',
	"$what: the one error is of a setting");
check_copy($oldest, 'back', $what);

# ------------------------------------------------------------------ what comes of them

ok(finish($newest_node, 'at_once'), 'all work comes to its end');
my $outcome = outcome($newest_node, 'at_once');
is(left($newest_node, 'at_once'), '', 'each transfer is made once, nothing is left [rules 16, 18]');
foreach ([ $newest_node, 'again' ], [ $between, 'apart' ], [ $oldest, 'back' ])
{
	my ($node, $database) = @$_;

	ok(finish($node, $database), "$database: all work comes to its end");
	is(outcome($node, $database), $outcome, "$database: it is the same");
}
$_->stop foreach $oldest, $between, $newest_node;
done_testing();

# A dump by a program of the newest version.
sub run_newest
{
	my ($from, $file, $program, @arguments) = @_;
	my $database = @arguments && $arguments[-1] !~ /^-/ ? pop @arguments : 'postgres';

	if (!has_column_versions($newest_node))
	{
		forget_column_versions($from, $database);
		$from->restart;		# sessions remember them
	}
	PostgreSQL::Test::Utils::system_or_bail(installation($newest) . "/bin/$program", @arguments, '-f', $file, '-d',
		$from->connstr($database));
	return;
}

sub restore
{
	my ($to, $database, $file, @options) = @_;

	return command_ok(
		[ installation($newest) . '/bin/pg_restore', '--exit-on-error', @options, '-d', $to->connstr($database), $file ],
		"$what: pg_restore @options");
}

sub new_database
{
	my ($node, $name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	return;
}

# All is in a copy as it was, after its worker, if there is one, has had time to change something.
sub check_copy
{
	my ($node, $database, $what) = @_;

	if ($node != $oldest)
	{
		my $drawn = $node->safe_psql($database, 'SELECT last_value FROM evpg.event_position');

		ok($node->poll_query_until('postgres', processes(1, 'worker', $database)), "$what: there is a worker");
		ok(worker_rounds($node, $database, 3, 'BEGIN; '
			  . q(SELECT FROM evpg_append('note', 'many', ARRAY[evpg_event('Noted')]); ROLLBACK)),
			"$what: it has gone around");
		$node->safe_psql($database, "SELECT setval('evpg.event_position', $drawn)");
	}
	$node->safe_psql($database, 'SELECT evpg_enable_index(index_name) FROM evpg.optional_index');
	is(contents($node, $database, @elsewhere), $contents, "$what: all rows and sequences are as they were [rule 9]");
	is(figures($node, $database), $figures, "$what: so are events, states, projections, lag, stable position, privileges");
	is(inspect($node, $database), '', "$what: all that is stored agrees");
	$node->safe_psql('postgres', 'CREATE DATABASE fresh');
	$node->safe_psql('fresh', 'CREATE EXTENSION evpg');
	is(objects($node, $database), objects($node, 'fresh'),
		"$what: tables, views and functions are those of CREATE EXTENSION");
	$node->safe_psql('postgres', 'DROP DATABASE fresh');
	is(sqlstate($node, 'CALL evpg_run()', $database), '55000', "$what: nothing is done before activation [rule 9]");
	return;
}
