# bench/run, in short: its arguments, that each row has a figure, and that it fails if a contender does.  The figures
# themselves do not matter.  Parts that are left out: message-db and Emmett, which come from a network, and reactions,
# which need a server that keeps up with a given load.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('bench', bare => 1, conf => <<'CONF');
shared_preload_libraries = 'evpg'
evpg.workers = 0
max_connections = 100
wal_level = replica
max_wal_senders = 4
max_worker_processes = 20
CONF
my @short = ('--quick', '--rounds', 1, '--warm', 0);
my @one = (@short, '--only', 'append', '--commit', 'off');

# Runs bench/run; its exit code, and what it printed on both outputs.
sub bench
{
	my ($output, $errors) = ('', '');

	local @ENV{qw(PGHOST PGPORT PGUSER)} =
	  ($node->host, $node->port, $node->safe_psql('postgres', 'SELECT current_user'));
	IPC::Run::run([ tree() . '/bench/run', @_ ], '<', \undef, '>', \$output, '2>', \$errors);
	return ($? >> 8, $output, $errors);
}

# A directory that comes first in PATH, with a pgbench that does something else if it is to run the script.
sub replace_pgbench
{
	my ($script, $what) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir;
	my ($real) = grep { -x } map { "$_/pgbench" } split /:/, $ENV{PATH};

	append_to_file("$directory/pgbench",
		"#!/bin/bash\nif [[ \"\$*\" == */$script.sql* ]]; then\n$what\nfi\nexec $real \"\$@\"\n");
	chmod 0755, "$directory/pgbench" or die;
	return "$directory:$ENV{PATH}";
}

# No database of it is left, and no setting.
sub left
{
	return $node->safe_psql('postgres',
		q{SELECT count(*) FROM pg_database WHERE datname LIKE 'evpg_bench%'}) . ' databases, evpg.workers '
	  . $node->safe_psql('postgres', 'SHOW evpg.workers');
}

# ------------------------------------------------------------------ arguments

my ($code, $output, $errors) = bench('--help');
is($code, 0, '--help ends well');
like($output, qr/^Usage: bench\/run .*--growth N.*--before REV/s, 'and prints the options');
foreach my $case (
	[ ['--fast'], 2, qr/^Usage:/, 'an option that does not exist' ],
	[ [ '--only', 'everything' ], 1, qr/no part "everything"; there are: append /, 'a part that does not exist' ],
	[ ['--only'], 1, qr/no part ""/, '--only without a part' ],
	[ [ '--clients', 3 ], 1, qr/--clients is 1 or 8/, '3 clients' ],
	[ [ '--commit', 'local' ], 1, qr/--commit is off or on/, 'another mode of commits' ],
	[ [ '--rounds', 0 ], 1, qr/--rounds needs a positive number/, 'no rounds' ],
	[ [ '--seconds', '1.5' ], 1, qr/--seconds needs a positive number/, 'fractions of seconds' ],
	[ ['--growth'], 1, qr/--growth needs a positive number/, '--growth without a number' ],
	[ [ '--before', 'HEAD' ], 1, qr/--before needs a server with that revision/, '--before without the other server' ])
{
	my ($arguments, $expected, $message, $what) = @$case;

	($code, $output, $errors) = bench(@$arguments);
	is($code, $expected, "$what is refused");
	like($errors, $message, "$what: the message tells why");
	is($output, '', "$what: nothing was measured");
}

# ------------------------------------------------------------------ every row has its figure

my @left_out = map { ('--skip', $_) } qw(message-db emmett reaction);

($code, $output, $errors) = bench(@short, qw(--held 2 --growth 70000 --transfers 20 --keep), @left_out);
is($code, 0, 'all parts in short: ends well') or diag($errors, $output);
unlike($output, qr/NOT MEASURED|FAILED/, 'and nothing is missing');
foreach my $heading (
	'One event per transaction, ratio to the INSERT \(synchronous_commit off\)',
	'One event per transaction, ratio to the INSERT \(synchronous_commit on\)',
	'A command by an application in C over libpq',
	'Commands in C on hot streams, commit off',
	'The same, durable',
	'Flushes of 1,000 durable commits',
	'evpg_execute and a projection in C, ratio to broadcast off',
	'Frames to a listener',
	'evpg_execute in C, frames of events \(pointer\), ratio to broadcast off',
	'Reading the log outside, one consumer and four, ratio to SELECT',
	'The same, ratio to a queue by FOR UPDATE SKIP LOCKED',
	'From the answer to a durable command to its event at a consumer',
	'Fetch and ack of 10 events, a session idle in a transaction for \d+ s',
	'The same: dead rows, and bytes of the tables of subscriptions',
	'Asynchronous projections of \d+ events',
	'Rebuild from \d+ events',
	'Transfers, each four commands',
	'1,000 events per transaction',
	'Loading a stream of 10,000 events',
	'evpg_try_execute many times',
	'Growth of the log',
	'Tags and conditions, log of 10000 events',
	'Tags and conditions, log of 70000 events',
	'Decisions on the last event of ten tags',
	'Reading 1,000 of 70000 events by a tag',
	'evpg_execute in C while another session reads the log',
	'A session idle in a transaction for \d+ s',
	'The same: bytes per event',
	'Bytes of WAL per event',
	'Bytes of tables and indexes per event',
	'Three figures to look at first')
{
	like($output, qr/^$heading.*\n(?: .*\n)?\S.*\d/m, "there is a table $heading");
}
like($output, qr/^evpg_append +8 +off +\d+ +\d+ +\d+ +\d+\.\d\d +1\.00 (?:met|MISSED)$/m,
	'a row has clients, commit, rates, the ratio, the target and a verdict');
like($output, qr/^one stream +32 +off +\d+(?: +\d+\.\d\d){3} +\d+\.\d\d$/m, 'a row of a hot stream has the percentiles');

# The clients by hand have left a stream as evpg would have.
is( $node->safe_psql('evpg_bench', <<'SQL'),
SELECT sum(events) > count(*), count(*) FILTER (WHERE events <> last)
  FROM (SELECT count(*) AS events, max(version) AS last FROM bench.by_hand GROUP BY stream_id) AS s
SQL
	't|0', 'clients that decide by hand on the same streams: no version is missing');
like(left(), qr/^[5-9] databases, evpg.workers 0$/, '--keep: the databases are there, the setting is not');
$node->safe_psql('postgres', "DROP DATABASE $_ WITH (FORCE)")
  foreach split /\n/, $node->safe_psql('postgres', q{SELECT datname FROM pg_database WHERE datname LIKE 'evpg_bench%'});

# ------------------------------------------------------------------ a contender that fails

foreach my $case (
	[ 'echo "error: out of luck" >&2; exit 1', qr/pgbench failed with append\.sql: .*out of luck/, 'a contender fails' ],
	[ 'exit 0', qr/transactions of append\.sql failed|cannot read the report/, 'a contender reports nothing' ])
{
	my ($script, $message, $what) = @$case;

	local $ENV{PATH} = replace_pgbench('append', $script);
	($code, $output, $errors) = bench(@one);
	is($code, 1, "$what: so does the run");
	like($errors, $message, "$what: the message tells it");
	like($output, qr/^evpg_append +NOT MEASURED$/m, "$what: its row does");
	like($output, qr/^INSERT into a table like the log +8 +off +\d+/m, "$what: the others are measured");
	like($output, qr/^FAILED.*append 8 off/m, "$what: the last line names it");
	is(left(), '0 databases, evpg.workers 0', "$what: nothing is left");
}

$node->stop;
done_testing();
