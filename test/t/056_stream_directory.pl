# Rule 2: what the shared directory of streams says is right after prepared transactions, ends of sessions, crashes, logical
# replication into the log, and in a database that has the OID of another; and with any size.  Each command of the tests
# also searches the index, and fails if the directory has said something else.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(evpg_node create_evpg query soon crash tree);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('directory', conf => <<'CONF');
shared_preload_libraries = 'evpg'
evpg.workers = 0
evpg.broadcast = off
max_prepared_transactions = 10
wal_level = logical
max_wal_senders = 4
max_replication_slots = 4
autovacuum = off
CONF

# A statement that appends to a stream, and returns the version.
sub more
{
	my ($stream, $type) = @_;

	return sprintf "SELECT version FROM evpg_append_event('%s', '%s', 'MoneyDeposited', '{\"amount\": 1}');",
	  $type // 'account_c', $stream;
}

# ------------------------------------------------------------------ prepared transactions

my $session = $node->background_psql('postgres', on_error_stop => 1);
my $waits = "SET lock_timeout = '200ms'; " . more('p');

$session->query_safe(more('p'));
$session->query_safe('BEGIN');
is($session->query_safe(more('p')), 2, 'an event in a transaction');
$session->query_safe("PREPARE TRANSACTION 'first'");
my ($status, $output, $error) = $node->psql('postgres', $waits);
like($error, qr/canceling statement due to lock timeout/, 'while it is prepared, another session waits [rule 2]');
is($session->query_safe("SELECT set_config('lock_timeout', '200ms', false)"), '200ms', 'and a timeout for the session');
query("ROLLBACK PREPARED 'first'");
is($session->query_safe(more('p')), 2, 'after ROLLBACK PREPARED the version is free again [rule 2]');
$session->query_safe('BEGIN');
$session->query_safe(more('p'));
$session->query_safe("PREPARE TRANSACTION 'second'");
query("COMMIT PREPARED 'second'");
is(query(more('p')), 4, 'after COMMIT PREPARED it is not');
is($session->query_safe(more('p')), 5, 'in neither session [rule 2]');
$session->query_safe('SET evpg.max_stream_locks = 0');
$session->query_safe('BEGIN');
$session->query_safe(more('p'));
$session->query_safe("PREPARE TRANSACTION 'third'");
($status, $output, $error) = $node->psql('postgres', $waits);
like($error, qr/canceling statement due to lock timeout/, 'the same without a lock of the stream [rule 2]');
query("ROLLBACK PREPARED 'third'");
is(query(more('p')), 6, 'after ROLLBACK PREPARED [rule 2]');
$session->quit;

# ------------------------------------------------------------------ ends of sessions, crashes

$session = $node->background_psql('postgres');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe('BEGIN');
is($session->query_safe(more('p')), 7, 'an event in a transaction');
query("SELECT pg_terminate_backend($pid, 60000)");
is(query(more('p')), 7, 'that its session has not ended [rule 2]');
$session->{run}->kill_kill;

query(more('p'));
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
is($session->query_safe(more('p')), 9, 'an event in a transaction');
crash('postmaster');
is(query(more('p')), 9, 'that a crash has ended [rule 2]');
$session->{run}->kill_kill;

# ------------------------------------------------------------------ one session and another

# Runs the pgTAP file under a setting; the tests that fail, and its errors.
sub run_file
{
	my ($database, $options) = @_;
	my ($out, $err) = ('', '');

	query("CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION evpg; CREATE EXTENSION pgtap');
	# a database gets its slot with its first events
	$node->safe_psql($database, "SELECT evpg_register_aggregate('first')");
	$node->safe_psql($database, "SELECT FROM evpg_append('first', 'first', ARRAY[evpg_event('First')])");
	$node->safe_psql($database, "ALTER DATABASE $database SET evpg.test_mutation = '$options'") if $options ne '';
	$node->psql($database, undef, stdout => \$out, stderr => \$err, on_error_die => 0,
		extra_params => [ '-P', 'pager=off', '-v', 'ON_ERROR_STOP=1', '-f', tree() . '/test/pgtap/stream_directory.sql' ]);
	return join "\n", grep { /^not ok|^# Looks like|ERROR/ } split /\n/, "$out\n$err";
}

is(run_file('file', ''), '', 'stream_directory.sql with preloading');
foreach my $defect ('directory_trusts', 'directory_remembers')
{
	like(run_file($defect, $defect), qr/the directory has another event than the newest of a stream/,
		"a defect is noticed: $defect");
}

# ------------------------------------------------------------------ logical replication

foreach my $database ('publisher', 'subscriber')
{
	query("CREATE DATABASE $database");
	create_evpg($node, $database);
}
$node->safe_psql('publisher', 'CREATE PUBLICATION log FOR TABLE evpg.stream, evpg.event_log');
$node->safe_psql('publisher', "SELECT pg_create_logical_replication_slot('log', 'pgoutput')");
$node->safe_psql('subscriber', sprintf
	"CREATE SUBSCRIPTION log CONNECTION 'host=%s port=%s dbname=publisher' PUBLICATION log WITH (create_slot = false)",
	$node->host, $node->port);

# Appends on the publisher; returns the version there once the subscriber has it.
sub replicated
{
	my ($stream) = @_;
	my $version = $node->safe_psql('publisher', more($stream));

	ok($node->poll_query_until('subscriber',
			"SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = '$stream' AND version = $version"),
		"version $version is replicated");
	return $version;
}

# An expectation that fails makes the subscriber look; the versions that it tells.
sub looked_at
{
	my ($stream) = @_;
	my ($code, $out, $err) = $node->psql('subscriber',
		"SELECT evpg_append_event('account_c', '$stream', 'Noted', '{}', expected_version => 100)");

	return $err =~ /actual (\d+)/ ? $1 : $err;
}

replicated('r');
is(looked_at('r'), 1, 'a command finds what was replicated');
is(looked_at('r'), 1, 'and again');
replicated('r');
is(looked_at('r'), 2, 'and what is replicated after it has looked [rule 2]');
$node->safe_psql('subscriber', "ALTER DATABASE subscriber SET evpg.test_mutation = 'directory_remembers'");
$node->safe_psql('subscriber', 'ALTER SUBSCRIPTION log DISABLE');
soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%worker'",
	'no worker is left');
$node->safe_psql('subscriber', 'ALTER SUBSCRIPTION log ENABLE');
$node->safe_psql('subscriber', 'SET evpg.test_mutation = \'\'; ALTER TABLE evpg.stream SET (fillfactor = 90)');
looked_at('r');
replicated('r');
like(looked_at('r'), qr/the directory has another event than the newest/, 'a worker that does not say so is noticed');
$node->safe_psql('subscriber', 'ALTER DATABASE subscriber RESET evpg.test_mutation');
$node->safe_psql('subscriber', 'ALTER SUBSCRIPTION log DISABLE');
$node->safe_psql('subscriber', 'ALTER SUBSCRIPTION log SET (slot_name = NONE)');
$node->safe_psql('subscriber', 'DROP SUBSCRIPTION log');

# ------------------------------------------------------------------ a database with the OID of another

query("CREATE DATABASE pattern");
create_evpg($node, 'pattern');
$node->safe_psql('pattern', more('o'));
query('CREATE DATABASE first TEMPLATE pattern');
$node->safe_psql('first', more('o')) for 1 .. 3;
my $oid = query("SELECT oid FROM pg_database WHERE datname = 'first'");
query('DROP DATABASE first');
query("CREATE DATABASE first TEMPLATE pattern OID $oid");
is($node->safe_psql('first', more('o')), 2, 'a database with the OID of another has its own streams [rule 2]');

# ------------------------------------------------------------------ any size

my $script = "$PostgreSQL::Test::Utils::tmp_check/directory.pgbench";
append_to_file($script, <<'SQL');
\set stream random(1, 300)
\set fate random(1, 4)
BEGIN;
SELECT FROM evpg_append_event('account', :stream || '/:size', 'Noted', '{}');
SAVEPOINT here;
SELECT FROM evpg_append('account', :stream || '/:size', ARRAY[evpg_event('Noted'), evpg_event('Noted')]);
ROLLBACK TO here;
SELECT FROM evpg_append_event('account', :stream || '/:size', 'Noted', '{}');
\if :fate = 1
ROLLBACK;
\else
COMMIT;
\endif
SQL
foreach my $size (0, 8, 8192)
{
	$node->append_conf('postgresql.conf', "evpg.stream_directory_size = $size");
	$node->restart;
	$node->command_ok(
		[ 'pgbench', '-n', '-c', 4, '-j', 2, '-t', 300, '-D', "size=$size", '-f', $script, 'postgres' ],
		"appends of four clients with a directory of $size kB");
	is(query("SELECT count(*) > 100, bool_and(version = events) FROM
	  (SELECT max(version) AS version, count(*) AS events FROM evpg.event WHERE aggregate_id LIKE '%/$size'
	    GROUP BY aggregate_id) s"), 't|t', "each stream has all versions once, with a directory of $size kB [rule 2]");
}

$node->stop;
done_testing();
