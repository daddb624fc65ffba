# What a command costs: the statements that it runs, and that a warm one reads no event (rule 6: the state comes from the
# session's cache).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('statements',
	conf => "shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = "
		. "all\npg_stat_statements.track_utility = off\n");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements');
$node->safe_psql('postgres',
	"SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, LATERAL evpg_execute(t, 'a', 'Open', "
	. "'{\"owner\": \"Alice\"}') e");

# The statements that a call runs in a warm session, the call itself among them, most often run first: calls, then text.
sub statements
{
	my ($what, $call, $repeat) = @_;
	my $lines = $node->safe_psql('postgres', <<"SQL");
SET client_min_messages = error;
\\o /dev/null
$call;
$call;
SELECT pg_stat_statements_reset();
@{[ "$call;\n" x $repeat ]}
\\o
SELECT calls || ' ' || regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_statements
 WHERE query NOT LIKE '%pg_stat_statements%' ORDER BY calls DESC, toplevel DESC, query COLLATE "C";
SQL
	my @lines = split /\n/, $lines;

	diag("$what, $repeat times:");
	diag("    $_") foreach @lines;
	my $calls = 0;
	$calls += (split / /)[0] foreach @lines;
	return $calls / $repeat;
}

my $deposit = q{SELECT FROM evpg_execute('account_c', 'a', 'Deposit', '{"amount": 1}')};

cmp_ok(statements('warm execute of one event, in C', $deposit, 20), '<=', 3,
	'one event of a module, without command_id: at most 3 statements');
cmp_ok(statements('the same with expected_version',
	q{SELECT FROM evpg_try_execute('account_c', 'a', 'Deposit', '{"amount": 1}', -1)}, 20),
	'<=', 3, 'no more with an expected version');
cmp_ok(statements('warm rejection', q{SELECT FROM evpg_try_execute('account_c', 'a', 'Withdraw', '{"amount": 1000000}')},
	20),
	'<=', 2, 'a rejection: at most 2');
cmp_ok(statements('append of one event', q{SELECT FROM evpg_append('account_c', 'b', ARRAY[evpg_event('Noted')])}, 20), '<=',
	3, 'append: at most 3');
cmp_ok(statements('append of 1,000 events',
	q{SELECT FROM evpg_append('account_c', 'b', array_fill(evpg_event('Noted'), ARRAY[1000]))}, 5),
	'<=', 3, 'append of 1,000 events: no more');
cmp_ok(statements('warm state', q{SELECT FROM evpg_state('account_c', 'a')}, 20), '<=', 2, 'a warm state: at most 2');

# with an id: looked up, and recorded
my $number = 0;
my $sent = join ";\n", map { q{SELECT FROM evpg_execute('account_c', 'a', 'Deposit', '{"amount": 1}', command_id => 'id-}
	. $number++ . q{')} } 1 .. 20;
cmp_ok(statements('20 warm executes, with command ids that are new, then known', $sent, 1) / 20, '<=', 5,
	'with a command_id: at most 5');

# ------------------------------------------------------------------ what is read

# In one transaction: what the call did to the tables of evpg, by what the server has counted in it.
sub touched
{
	my ($call, $warm) = @_;

	return $node->safe_psql('postgres', <<"SQL");
\\o /dev/null
SELECT FROM evpg_state('account_c', 'other');
SELECT FROM evpg_state('account', 'other');
@{[ $warm ? "$call;\n$call;" : '' ]}
-- what was counted before goes to where this view does not look
SELECT pg_stat_force_next_flush();
BEGIN;
$call;
\\o
SELECT relname, seq_scan, idx_scan, n_tup_ins, n_tup_upd FROM pg_stat_xact_user_tables
 WHERE schemaname = 'evpg' AND coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins > 0 ORDER BY relname;
COMMIT;
SQL
}

my $log = qr/^event_log\|0\|1\|1\|0$/m;
like(touched($deposit, 1), $log, 'a warm command of a module reads the newest event alone, and writes one [rule 6]');
like(touched(q{SELECT FROM evpg_execute('account', 'a', 'Deposit', '{"amount": 1}')}, 1), $log,
	'a warm command of functions reads the newest event alone [rule 6]');
like(touched($deposit, 0), qr/^event_log\|0\|2\|1\|0$/m, 'a cold one reads the others, too, by one index scan');
like(touched(q{SELECT FROM evpg_state('account_c', 'a')}, 1), qr/^event_log\|0\|1\|0\|0$/m,
	'a warm state reads the newest event alone [rule 6]');
like(touched(q{SELECT FROM evpg_try_execute('account_c', 'a', 'Withdraw', '{"amount": 1000000}')}, 1),
	qr/^event_log\|0\|1\|0\|0$/m, 'a rejection reads the newest event alone, and writes none [rule 6]');
unlike(touched($deposit, 1), qr/^stream/m, 'a warm command does not look at evpg.stream');

# the session says the same of itself
is( $node->safe_psql('postgres', <<"SQL"), "3|3|2|4", 'evpg_session_stats: 3 commands and events, 2 cache hits');
\\o /dev/null
DELETE FROM evpg.snapshot;
$deposit;
SELECT folds FROM evpg_session_stats() WHERE aggregate_type = 'account_c' \\gset
$deposit;
$deposit;
\\o
SELECT commands, events, cache_hits, folds - :folds + 2 FROM evpg_session_stats() WHERE aggregate_type = 'account_c';
SQL

# a command leaves nothing for VACUUM, a refused one not even a transaction id
is( $node->safe_psql('postgres', <<"SQL"), "t", 'commands update no row of the log and of evpg.stream');
\\o /dev/null
SELECT pg_stat_force_next_flush();
SELECT pg_stat_reset_single_table_counters('evpg.stream'::regclass);
SELECT pg_stat_reset_single_table_counters('evpg.event_log'::regclass);
@{[ "$deposit;\n" x 50 ]}
SELECT pg_stat_force_next_flush();
\\o
SELECT bool_and(n_tup_upd + n_tup_del + n_dead_tup = 0) FROM pg_stat_user_tables
 WHERE relid = ANY ('{evpg.stream,evpg.event_log}'::regclass[]);
SQL
is( $node->safe_psql('postgres', <<'SQL'), "rejected|t", 'a rejection needs no transaction id');
BEGIN;
SELECT status, pg_current_xact_id_if_assigned() IS NULL
  FROM evpg_try_execute('account_c', 'a', 'Withdraw', '{"amount": 1000000}');
COMMIT;
SQL

$node->stop;
done_testing();
