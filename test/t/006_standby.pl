# A hot standby: everything can be read there, up to the stable position that the primary has written (rule 9; see also
# 052_standby_reads.pl), and nothing can be written.  After promotion commands work, in old sessions too, positions go on,
# and a transaction that was prepared on the primary still holds the mark.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = evpg_node('primary', allows_streaming => 1);

$primary->safe_psql('postgres', <<'SQL');
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, LATERAL evpg_execute(t, 'a', 'Open', '{"owner": "Alice"}') e;
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t,
  LATERAL evpg_execute(t, 'a', 'Deposit', '{"amount": 100}', command_id => 'first') e;
SQL
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# ------------------------------------------------------------------ reading

my $session = $standby->background_psql('postgres', on_error_stop => 1);

foreach my $type ('account', 'account_c')
{
	is($session->query_safe("SELECT version, state->'balance' FROM evpg_state('$type', 'a')"), '2|100', "$type: a state");
	$primary->safe_psql('postgres', "SELECT FROM evpg_execute('$type', 'a', 'Withdraw', '{\"amount\": 30}')");
	$primary->wait_for_catchup($standby);
	is($session->query_safe("SELECT version, state->'balance' FROM evpg_state('$type', 'a')"), '3|70',
		"$type: a cached state is caught up [rule 6]");
	is($session->query_safe("SELECT state->'balance' FROM evpg_state('$type', 'a', at_version => 2)"), '100',
		"$type: at a version");
	is($session->query_safe("SELECT state->'balance' FROM evpg_state('$type', 'a', at_time => 'infinity')"), '70',
		"$type: at a time");
	is($session->query_safe("SELECT string_agg(type, ' ') FROM evpg_read_stream('$type', 'a')"),
		'AccountOpened MoneyDeposited MoneyWithdrawn', "$type: a stream");
	is($session->query_safe("SELECT evpg_stream_version('$type', 'a')"), '3', "$type: its version");
}
is($session->query_safe('SELECT count(*) FROM evpg_streams()'), '2', 'streams are listed');
is($session->query_safe('SELECT count(*) FROM evpg_read_all(0, stable_only => false)'), '6',
	'all events, without the stable position');
is($standby->safe_psql('postgres', 'SELECT stable_position, last_position >= 6, blocker_pid FROM evpg.stat_stable_position'),
	'0|t|', 'the primary has written no stable position: the view shows that [rule 9]');
is($session->query_safe('SELECT count(*), evpg_stable_position() FROM evpg_read_all(0)'), '0|0',
	'and readers end there [rule 9]');
$primary->safe_psql('postgres', 'SELECT evpg_log_stable_position()');
$primary->wait_for_catchup($standby);
is($session->query_safe('SELECT count(*), evpg_stable_position() FROM evpg_read_all(0)'), '6|6',
	'when it has, a session from before reads them [rule 9]');

# ------------------------------------------------------------------ what is refused

foreach my $type ('account', 'account_c')
{
	foreach my $write (
		"evpg_execute('$type', 'a', 'Deposit', '{\"amount\": 1}')",
		"evpg_execute('$type', 'a', 'Deposit', '{\"amount\": 100}', command_id => 'first')",
		"evpg_try_execute('$type', 'a', 'Withdraw', '{\"amount\": 1000}')",
		"evpg_append('$type', 'a', ARRAY[evpg_event('Noted')])",
		"evpg_inject('$type', 'a', evpg_event('Noted'))",
		"evpg_create_stream('$type', 'b')",
		"evpg_take_snapshot('$type', 'a')")
	{
		is(sqlstate($standby, "SELECT $write"), '25006', "25006: $write");
		# and the same in a transaction that is read-only by its own will
		is(sqlstate($primary, "BEGIN READ ONLY; SELECT $write"), '25006', "25006 on the primary, read only: $write");
	}
}
is(sqlstate($standby, "SELECT evpg_register_aggregate('x', library => 'evpg_bank', symbol => 'bank_account')"), '25006',
	'25006: evpg_register_aggregate');
is(sqlstate($standby, "SELECT evpg_drop_aggregate('account')"), '25006', '25006: evpg_drop_aggregate');

# ------------------------------------------------------------------ promotion

$primary->safe_psql('postgres', <<'SQL');
BEGIN;
-- a transaction that has frames cannot be prepared
SET LOCAL evpg.broadcast = off;
SELECT FROM evpg_execute('account_c', 'p', 'Open', '{"owner": "Paul"}');
PREPARE TRANSACTION 'appender';
SQL
# the primary fails with this one open
my $lost = $primary->background_psql('postgres', on_error_stop => 1);
$lost->query_safe("BEGIN; SELECT FROM evpg_append('account_c', 'lost', ARRAY[evpg_event('Lost')])");
my $last = $primary->safe_psql('postgres',
	"SELECT position FROM evpg_execute('account', 'a', 'Deposit', '{\"amount\": 5}')");
$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$lost->{run}->finish;
$standby->promote;
ok($standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'the standby is promoted');

my $prepared = $last - 2;
is( $session->query_safe("SELECT count(*) = (SELECT count(*) FROM evpg.event "
	. "WHERE position < $prepared), max(position) < $prepared FROM evpg_read_all(0)"),
	't|t', 'what is prepared still holds the mark, of a session that is new to it as well [rule 9]');
is($session->query_safe("SELECT stable_position = $prepared - 1, last_position >= $last, blocker_gid, blocker_state "
	. "FROM evpg.stat_stable_position"),
	't|t|appender|prepared', 'the view shows who holds it [rule 9]');
is($session->query_safe("SELECT version FROM evpg_execute('account_c', 'a', 'Deposit', '{\"amount\": 1}')"), '4',
	'a session from before commands');
is( $standby->safe_psql('postgres', <<'SQL'), "ok|5\nduplicate|2",
SELECT status, version FROM evpg_try_execute('account_c', 'a', 'Deposit', '{"amount": 1}', 4);
SELECT status, version FROM evpg_try_execute('account_c', 'a', 'Deposit', '{"amount": 100}', command_id => 'first');
SQL
	'after a promotion a new session sees the same state; command ids are known (rule 4)');
is($standby->safe_psql('postgres',
	"SELECT count(*) FROM evpg.event WHERE position > $last AND aggregate_type = 'account_c'"), '2', 'positions go on');
$standby->safe_psql('postgres', "COMMIT PREPARED 'appender'");
is( $standby->safe_psql('postgres',
	"SELECT string_agg(position::text, ' ' ORDER BY position) FROM evpg_read_all($prepared - 1) WHERE position <= $last"),
	"$prepared $last", 'once it is committed, its event is seen in its place; what was open on the primary is not [rule 9]');
is($standby->safe_psql('postgres',
	'SELECT stable_position = last_position, blocker_pid, blocker_gid FROM evpg.stat_stable_position'),
	't||', 'after a promotion no transaction holds the stable position back [rule 9]');
is( $session->query_safe('SELECT count(*) = (SELECT count(*) FROM evpg.event) FROM evpg_read_all(0)'), 't',
	'after a promotion the stable position includes everything after it [rule 9]');
is(inspect($standby), '', 'all that is stored agrees');
$session->quit;

$standby->stop;
done_testing();
