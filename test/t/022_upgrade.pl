# pg_upgrade, to a server of the same version, keeps all of it: events, rows and checkpoints, a saga in the middle of a
# transfer, timers, an open dead letter, an optional index.  Consumers are paused in the new cluster (rule 9), workers leave
# it alone until evpg_activate_consumers(), and then all goes on where it was.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "shared_preload_libraries = 'evpg'\nevpg.naptime = 1h\nevpg.workers = 0\n";
my $old = evpg_node('old', conf => $conf);

$old->safe_psql('postgres', slurp_file(tree() . '/examples/bank/transfer.sql'));
$old->safe_psql('postgres', $_) foreach (
	q(CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE
		AS $$ SELECT jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1) $$),
	q(SELECT evpg_register_projection('counts', 'count_apply', mode => 'async',
		aggregate_types => '{account,account_c,transfer,transfer_c}')),
	q(SELECT evpg_enable_index('event_type')),
	q(SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, unnest('{payer,payee}'::text[]) id,
		evpg_execute(t, id, 'Open', '{"owner": "Ann"}')),
	q(SELECT count(*) FROM unnest('{account,account_c}'::text[]) t,
		evpg_execute(t, 'payer', 'Deposit', '{"amount": 100}', command_id => 'first')),
	q(SELECT evpg_take_snapshot('account', 'payer')),
	# a dead letter: there is no money to withdraw
	q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Withdraw', '{"amount": 7}')),
	q(CALL evpg_run()),
	# each form of the saga: one transfer in its middle, one that has not begun
	q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
		evpg_execute(t, 'x', 'Request', '{"from": "payer", "to": "payee", "amount": 60}')),
	q(SELECT evpg_run_sagas()),
	q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
		evpg_execute(t, 'y', 'Request', '{"from": "payer", "to": "payee", "amount": 1}')),
	q(SELECT evpg_run_sagas(1)),
	# a timer that is due, and one that is not
	q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Deposit', '{"amount": 5}')),
	q(SELECT evpg_schedule_command('2100-01-01', 'account', 'payee', 'Close')));

my @tables = split /\n/, $old->safe_psql('postgres', <<'SQL');
SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('evpg'::regnamespace, 'bank'::regnamespace) AND relkind = 'r'
  ORDER BY 1
SQL
my @sequences = split /\n/, $old->safe_psql('postgres',
	"SELECT oid::regclass FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'S' ORDER BY 1");

# All rows of all tables, the values of sequences, indexes; without the events that wake the worker.
sub contents
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		join('', map { "SELECT '$_', md5(string_agg(t::text, ',' ORDER BY t::text)) FROM $_ t;\n" } @tables)
		  . join('', map { "SELECT '$_', last_value, is_called FROM $_;\n" } @sequences)
		  . q(SELECT indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid FROM pg_index
		  	WHERE indrelid = 'evpg.event_log'::regclass ORDER BY 1;)
		  . q(SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'evpg.event_log'::regclass;));
}

my $before = contents($old);
cmp_ok(scalar(@tables), '>', 20, 'there are tables');
is( $old->safe_psql('postgres', 'SELECT (SELECT count(*) FROM evpg.saga_event) > 0, (SELECT count(*) FROM evpg.timer),
		(SELECT count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL),
		(SELECT lag_events > 0 AND checkpoint > 0 FROM evpg.stat_consumer WHERE name =
			\'counts\'), to_regclass(\'evpg.event_log_event_type\')'),
	't|5|1|t|evpg.event_log_event_type', 'something is under way');
is($old->safe_psql('postgres', 'BEGIN; SELECT evpg_activate_consumers(); ROLLBACK'), 'f',
	'the old cluster is the home of it [rule 9]');
$old->stop;

my $new = evpg_node('new', bare => 1, conf => $conf);
$new->stop;
my $bin = $new->config_data('--bindir');
chdir $PostgreSQL::Test::Utils::tmp_check or die;
command_ok([ 'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bin, '-B', $bin, '-s', $new->host,
	'-p', $old->port, '-P', $new->port ], 'pg_upgrade');

# ------------------------------------------------------------------ paused

$new->start;
is(contents($new), $before, 'all is there as it was, the optional index too');
is(inspect($new), '', 'all that is stored agrees');
is(sqlstate($new, 'CALL evpg_run()'), '55000', 'consumers are paused [rule 9]');
is(sqlstate($new, 'SELECT evpg_run_sagas()'), '55000', 'sagas, too [rule 9]');
is(sqlstate($new, 'SELECT evpg_retry_dead_letters(NULL)'), '55000',
	'dead letters are not retried after pg_upgrade [rule 9]');
is(contents($new), $before, 'nothing has been done [rule 9]');
$new->safe_psql('postgres', 'ALTER SYSTEM SET evpg.workers = 1');
$new->safe_psql('postgres', 'SELECT pg_reload_conf()');
ok($new->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'postgres'"),
	'there is a worker');
# what wakes it changes nothing
ok(worker_rounds($new, 'postgres', 5,
	q(BEGIN; SELECT FROM evpg_append('account', 'payer', ARRAY[evpg_event('Noted')]); ROLLBACK)),
	'the worker has gone around after pg_upgrade');
(my $expected = $before) =~ s/^evpg\.event_position\|.*$/evpg.event_position/m;
(my $found = contents($new)) =~ s/^evpg\.event_position\|.*$/evpg.event_position/m;
is($found, $expected, 'the worker has done nothing after pg_upgrade [rule 9]');
is( $new->safe_psql('postgres', q(SELECT status, version
		FROM evpg_try_execute('account_c', 'payer', 'Deposit', '{"amount": 100}', command_id => 'first'))),
	'duplicate|2', 'a command that was sent before is a duplicate [rule 4]');

# ------------------------------------------------------------------ activated

is($new->safe_psql('postgres', 'SELECT evpg_activate_consumers(), evpg_activate_consumers()'), 't|f',
	'evpg_activate_consumers() [rule 9]');
ok($new->poll_query_until('postgres', <<'SQL'), 'all goes on by itself');
SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND (SELECT count(*) = 1 FROM evpg.timer WHERE dead_letter_id IS NULL)
   AND (SELECT bool_and(checkpoint = evpg_stable_position()) FROM evpg.consumer)
   AND (SELECT count(*) = 4 FROM evpg.event WHERE type = 'TransferCompleted')
SQL
my $balances = q(SELECT string_agg(concat_ws(' ', t, id, state->>'balance'), ', ' ORDER BY t, id)
	FROM unnest('{account,account_c}'::text[]) t, unnest('{payee,payer}'::text[]) id, evpg_state(t, id));
is($new->safe_psql('postgres', $balances), 'account payee 66, account payer 39, account_c payee 61, account_c payer 39',
	'each transfer is made once, the command that was due is executed once [rule 16]');
is($new->safe_psql('postgres', 'SELECT retried, failed FROM evpg_retry_dead_letters(NULL)'), '1|0',
	'the dead letter can be retried [rule 17]');
is($new->safe_psql('postgres', $balances), 'account payee 59, account payer 39, account_c payee 61, account_c payer 39',
	'once [rule 17]');
is($new->safe_psql('postgres', 'SELECT count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL'), '0',
	'none is left [rule 17]');
is($new->safe_psql('postgres', "SELECT count(*) FROM evpg.saga_instance WHERE status <> 'completed'"), '0',
	'every instance has come to its end [rule 18]');
is($new->safe_psql('postgres', "SELECT count(*) FROM evpg.timer"), '1', 'the timer that is not due waits');
ok($new->poll_query_until('postgres', 'SELECT bool_and(checkpoint = evpg_stable_position()) FROM evpg.consumer'),
	'the worker has done it all');
is($new->safe_psql('postgres', <<'SQL'), '', 'the asynchronous projection has each event once [rule 10]');
SELECT key, c.state, c.version, e.count FROM (SELECT * FROM evpg.projected_state WHERE name = 'counts') c
  FULL JOIN (SELECT aggregate_id AS key, count(*) FROM evpg.event
    WHERE aggregate_type IN ('account', 'account_c', 'transfer', 'transfer_c') GROUP BY aggregate_id) e USING (key)
 WHERE (c.state, c.version) IS DISTINCT FROM (jsonb_build_object('count', e.count), e.count)
SQL
is($new->safe_psql('postgres',
	"SELECT name, key, state->>'balance' FROM evpg.projected_state WHERE name LIKE 'balances%' ORDER BY name, key"),
	"balances|payee|59\nbalances|payer|39\nbalances_c|payee|61\nbalances_c|payer|39",
		'inline projections have gone on [rule 11]');
is($new->safe_psql('postgres', "SELECT evpg_enable_index('event_type'), evpg_enable_index('event_type', enabled => false)"),
	'f|t', 'the optional index is enabled as it was');
is(sqlstate($new, 'DELETE FROM evpg.event_log'), 'VE012', 'history is append-only as it was');
is(inspect($new), '', 'all that is stored agrees');

$new->stop;
is(join("\n", slurp_file($new->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
