# Rule 9: the view evpg.stat_stable_position names who holds the stable position back, and nobody else: open appenders, and
# prepared ones, also after a restart.  At each step it says what evpg_stable_position() says.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('stable', conf => "autovacuum = off\n");
my $append = "SELECT FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')])";

# The view must have these rows "stable|last|pid|gid|state", oldest transaction first.
sub shows
{
	my ($what, @rows) = @_;

	is( $node->safe_psql('postgres', <<'SQL'), join("\n", @rows), "$what [rule 9]");
SELECT stable_position, last_position, blocker_pid, blocker_gid, blocker_state
  FROM evpg.stat_stable_position ORDER BY blocker_xact_start
SQL
	is($node->safe_psql('postgres',
		'SELECT DISTINCT evpg_stable_position() = stable_position FROM evpg.stat_stable_position'),
		't', "$what: evpg_stable_position() says the same [rule 9]");
	return;
}

shows('nothing is drawn: one row, nobody', '0|0|||');

# ------------------------------------------------------------------ sessions

my $s1 = $node->background_psql('postgres', on_error_stop => 1);
my $s2 = $node->background_psql('postgres', on_error_stop => 1);
my $pid1 = $s1->query_safe('SELECT pg_backend_pid()');
my $pid2 = $s2->query_safe('SELECT pg_backend_pid()');
my $open = 'idle in transaction';

$s1->query_safe("BEGIN; $append");
shows('an appender that is open', "0|1|$pid1||$open");
is( $node->safe_psql('postgres', <<"SQL"), 't|t', 'with its query, and since when');
SELECT blocker_query ~ 'evpg_append', blocker_xact_start = (SELECT xact_start FROM pg_stat_activity WHERE pid = $pid1)
  FROM evpg.stat_stable_position
SQL
$node->safe_psql('postgres', "CREATE ROLE onlooker; SELECT evpg_grant('onlooker', 'reader')");
is( $node->safe_psql('postgres', <<'SQL'),
SET ROLE onlooker;
SELECT stable_position, last_position, blocker_pid, blocker_query, blocker_state, blocker_xact_start
  FROM evpg.stat_stable_position
SQL
	"0|1|$pid1|<insufficient privilege>||", 'a reader sees the session, but not what it does');

$s2->query_safe("BEGIN; SAVEPOINT here; $append");
shows('two appenders', "0|2|$pid1||$open", "0|2|$pid2||$open");
$s1->query_safe('COMMIT');
shows('the first has ended', "1|2|$pid2||$open");
$s2->query_safe('ROLLBACK TO here');
shows('a rolled-back append holds nothing', '2|2|||');
$s2->query_safe("$append; $append");
shows('but the next one does, from where it began', "2|4|$pid2||$open");
$s2->query_safe('ROLLBACK');
shows('all have ended', '4|4|||');

# ------------------------------------------------------------------ who appends nothing, or elsewhere

$node->safe_psql('postgres', 'CREATE DATABASE other');
create_evpg($node, 'other');
my $other = $node->background_psql('other', on_error_stop => 1);

$other->query_safe("BEGIN; $append");
$s1->query_safe('BEGIN; SELECT pg_advisory_lock(0), pg_advisory_lock(0, 0), count(*) FROM evpg.event; CREATE TABLE mine ()');
shows('other databases, other locks, other writes hold nothing', '4|4|||');
is( $node->safe_psql('other', 'SELECT stable_position, last_position, blocker_state FROM evpg.stat_stable_position'),
	"0|1|$open", 'each database has its own mark');
$other->query_safe('COMMIT');
$other->quit;
$s1->query_safe('COMMIT');

# ------------------------------------------------------------------ maintenance in mid-flight

# On a log of some pages VACUUM sleeps after each; CREATE INDEX CONCURRENTLY waits for a snapshot of long ago.
$node->safe_psql('postgres', <<'SQL');
SELECT FROM evpg_append('account_c', 'many',
  array_fill(evpg_event('Noted', jsonb_build_object('x', repeat('x', 1000))), ARRAY[500]));
SQL
my %maintenance = (
	'VACUUM' => {
		statement => 'SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1; VACUUM evpg.event_log',
		running => "SELECT count(*) = 1 FROM pg_stat_progress_vacuum WHERE phase = 'scanning heap'"
	},
	'CREATE INDEX CONCURRENTLY' => {
		statement => 'CREATE INDEX CONCURRENTLY event_type ON evpg.event_log (type)',
		running => "SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots'"
	},
	'ANALYZE in a transaction' => {
		statement => 'BEGIN; ANALYZE evpg.event_log',
		running => "SELECT count(*) = 1 FROM pg_locks WHERE relation = 'evpg.event_log'::regclass "
			. "AND mode = 'ShareUpdateExclusiveLock' AND granted"
	});

$s2->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM evpg.event_log');
foreach my $what (sort keys %maintenance)
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	(my $statement = $maintenance{$what}{statement}) =~ s/; /;\n/g;
	$session->query_until(qr/started/, "\\echo started\n$statement;\n");
	ok($node->poll_query_until('postgres', $maintenance{$what}{running}), "$what is in mid-flight");
	$node->safe_psql('postgres', $append);
	my $last = $node->safe_psql('postgres', 'SELECT max(position) FROM evpg.event_log');
	shows("$what holds nothing, nor does an old snapshot", "$last|$last|||");
	is($node->safe_psql('postgres', $maintenance{$what}{running}), 't', "$what was in mid-flight all the time");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 10000)");
	$session->{run}->finish;
}
$s2->query_safe('COMMIT');
my $base = $node->safe_psql('postgres', 'SELECT evpg_stable_position()');

# ------------------------------------------------------------------ prepared

$s1->query_safe("BEGIN; $append; PREPARE TRANSACTION 'first'");
$s2->query_safe("BEGIN; $append; PREPARE TRANSACTION 'it''s the second'");
$s1->query_safe("BEGIN; $append");
my $last = $base + 3;
my @prepared = ("$base|$last||first|prepared", "$base|$last||it's the second|prepared");
shows('prepared transactions and a session', @prepared, "$base|$last|$pid1||$open");
$s1->query_safe('COMMIT');
$_->quit foreach $s1, $s2;
$node->restart;
is( $node->safe_psql('postgres', <<"SQL"),
SELECT stable_position, last_position >= $last, blocker_gid, blocker_state,
       blocker_xact_start = (SELECT prepared FROM pg_prepared_xacts WHERE gid = blocker_gid)
  FROM evpg.stat_stable_position ORDER BY blocker_xact_start
SQL
	"$base|t|first|prepared|t\n$base|t|it's the second|prepared|t",
	'prepared transactions hold the stable position back after a restart [rule 9]');
is( $node->safe_psql('postgres', "SELECT evpg_stable_position(), (SELECT count(*) FROM evpg_read_all($base))"),
	"$base|0", 'readers stop at prepared transactions [rule 9]');
$node->safe_psql('postgres', "COMMIT PREPARED 'first'");
is( $node->safe_psql('postgres', "SELECT stable_position - $base, blocker_gid FROM evpg.stat_stable_position"),
	"1|it's the second", 'one is committed [rule 9]');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'it''s the second'");
is( $node->safe_psql('postgres', <<'SQL'), 't|t|', 'the other is rolled back [rule 9]');
SELECT stable_position = last_position, stable_position = evpg_stable_position(), blocker_gid FROM evpg.stat_stable_position
SQL
is($node->safe_psql('postgres', "SELECT string_agg((position - $base)::text, ' ') FROM evpg_read_all($base)"), '1 3',
	'what was committed is read [rule 9]');

# ------------------------------------------------------------------ crash

# Positions drawn in vain count for the mark, and who was told it must not miss what is appended after a crash, though no
# commit and no background process has written the WAL; else they are drawn again.
foreach my $mutation ('', 'undurable')
{
	$node->safe_psql('postgres', "ALTER DATABASE postgres SET evpg.test_mutation = '$mutation'");
	my @writers = split /\n/, $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer')");

	kill('STOP', @writers);
	my $mark = $node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT FROM evpg_append('account_c', 'lost', array_fill(evpg_event('Lost'), ARRAY[200]));
ROLLBACK;
SELECT evpg_stable_position();
SQL
	$node->kill9;
	kill('KILL', @writers);
	start_again($node);
	is( $node->safe_psql('postgres',
		"SELECT position > $mark FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')])"),
		$mutation eq '' ? 't' : 'f',
			'a crash ' . ($mutation eq '' ? 'does not take back the mark'
			: 'would take back the mark if it were not written') . ' [rule 9]');
}
is(inspect($node), '', 'all that is stored agrees');

$node->stop;
done_testing();
