# A dump, custom or plain, brings everything back: events, streams, snapshots, registrations, interceptors, command ids (rule
# 4: what was sent before the dump is a duplicate after it), and sequences that go on.  Also with evpg in a schema of its
# own.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('dump', bare => 1);
my $directory = PostgreSQL::Test::Utils::tempdir;

# Everything, as text that does not depend on the database.
my $contents = <<'SQL';
SELECT * FROM evpg.event_log ORDER BY position;
SELECT * FROM evpg.event ORDER BY position;
SELECT * FROM evpg.stream ORDER BY stream_id;
SELECT * FROM evpg.command_record ORDER BY stream_id, command_id;
SELECT * FROM evpg.snapshot ORDER BY stream_id, version;
SELECT * FROM evpg.aggregate_type ORDER BY aggregate_type;
SELECT * FROM evpg.interceptor ORDER BY name;
SELECT * FROM evpg.listener ORDER BY name;
SELECT * FROM evpg.upcaster ORDER BY event_type, from_version, aggregate_type;
SELECT * FROM SCHEMA.evpg_read_all(aggregate_types => '{account}', stable_only => false);
SELECT * FROM evpg.projection ORDER BY name;
SELECT * FROM evpg.projection_state ORDER BY build, key;
SELECT * FROM evpg.consumer ORDER BY name;
SELECT * FROM evpg.parked_event ORDER BY parked_event_id;
SELECT * FROM evpg.rebuild ORDER BY name;
SELECT * FROM evpg.rebuild_part ORDER BY build, part;
SELECT * FROM evpg.old_build ORDER BY build;
SELECT * FROM evpg.translator ORDER BY name;
SELECT * FROM evpg.inbox ORDER BY source, message_key;
SELECT * FROM bank.statement ORDER BY account, version;
SELECT * FROM evpg.optional_index ORDER BY index_name;
SELECT last_value, is_called FROM evpg.event_position;
SELECT last_value, is_called FROM evpg.stream_stream_id_seq;
SELECT last_value, is_called FROM evpg.projection_build;
SELECT last_value, is_called FROM evpg.parked_event_parked_event_id_seq;
SELECT extversion, extnamespace::regnamespace FROM pg_extension WHERE extname = 'evpg';
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'evpg.event_log'::regclass;
SELECT s.aggregate_type, s.aggregate_id, f.* FROM evpg.stream s
  CROSS JOIN LATERAL SCHEMA.evpg_state(s.aggregate_type, s.aggregate_id) f
 ORDER BY s.aggregate_type, s.aggregate_id;
SQL

# Optional indexes of the log: how they are defined, whether they are valid, and whether a search by tag uses one.
my $indexes = <<'SQL';
SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index
 WHERE indrelid = 'evpg.event_log'::regclass AND indexrelid::regclass::text ~ 'event_log_(tags|event_type)$' ORDER BY 1;
SET enable_seqscan = off;
EXPLAIN (COSTS off) SELECT position FROM evpg.event_log WHERE tags && '{x}';
SQL

foreach my $schema ('public', 'es')
{
	my $from = "from_$schema";
	my $path = "SET search_path = $schema;";
	(my $look = $contents) =~ s/SCHEMA/$schema/g;

	$node->safe_psql('postgres', "CREATE DATABASE $from");
	$node->safe_psql($from, $schema eq 'public' ? 'CREATE EXTENSION evpg'
		: "CREATE SCHEMA $schema; CREATE EXTENSION evpg SCHEMA $schema");
	$node->safe_psql($from, $path . slurp_file(tree() . '/examples/bank/bank.sql'));
	$node->safe_psql($from, $path . <<'SQL');
CREATE FUNCTION pass(command evpg.command) RETURNS evpg.command LANGUAGE sql AS 'SELECT command';
SELECT evpg_register_interceptor('pass', 'pass', aggregate_types => '{account}', priority => 3);
CREATE FUNCTION hear(event evpg.event) RETURNS void LANGUAGE sql AS 'SELECT';
SELECT evpg_register_listener('hear', 'hear', event_types => '{Opened}', priority => 4);
CREATE FUNCTION to_text(data jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('n', data->>'n') $$;
SELECT evpg_register_upcaster('Noted', 3, 'to_text'),
  evpg_register_upcaster('Written', 1, new_event_type => 'Noted', to_version => 4);
CREATE FUNCTION nothing(payload jsonb) RETURNS evpg.command LANGUAGE sql AS 'SELECT NULL::evpg.command';
SELECT evpg_register_translator('nothing', 'nothing');
SELECT count(*) FROM evpg_receive_message('shop', '1', 'nothing', '{}');
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t,
  LATERAL evpg_execute(t, 'a', 'Open', '{"owner": "Ælfgifu \\ \"x\""}', command_id => 'open') e;
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, LATERAL evpg_execute(t, 'a', 'Deposit', '{"amount": 100}',
  command_id => 'first', metadata => '{"n": 12345678901234567890.12}', actor => 'me', correlation_id => 'c',
    causation_id => 'd') e;
SELECT count(*) FROM evpg_append('account', 'b',
  ARRAY[evpg_event('Noted', '{"n": 1e400}', tags => '{x,"y z"}', schema_version => 3)]);
SELECT evpg_create_stream('account', 'empty');
SELECT evpg_take_snapshot('account', 'a');
CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Noted' THEN
    RAISE EXCEPTION 'noted';
  END IF;
  RETURN jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1);
END $$;
SELECT evpg_enable_index('tags'), evpg_enable_index('event_type');
SELECT evpg_register_projection('counts', 'count_apply', mode => 'async', on_error => 'park', max_attempts => 1);
SELECT evpg_register_projection('again', 'count_apply', event_types => '{AccountOpened,MoneyDeposited}');
CALL evpg_run();
SELECT evpg_rebuild_projection('again', background => true);
BEGIN;
SELECT count(*) FROM evpg_execute('account', 'a', 'Deposit', '{"amount": 7}');
ROLLBACK;
SQL
	my $before = $node->safe_psql($from, $look);
	my $indexes_before = $node->safe_psql($from, $indexes);
	like($indexes_before,
		qr/\(type, "?position"?\)\|t\n.*gin \(tags\) WITH \(fastupdate=off\) WHERE .*\|t\n(?:.*\n)*.*event_log_tags/,
		"$schema: indexes are enabled");
	cmp_ok(length $before, '>', 2000, "$schema: there is something to dump");

	$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/$schema.dump", '-d', $node->connstr($from) ],
		"$schema: pg_dump -Fc");
	$node->command_ok([ 'pg_dump', '-f', "$directory/$schema.sql", '-d', $node->connstr($from) ], "$schema: pg_dump");

	foreach my $format ('dump', 'sql')
	{
		my $what = "$schema, $format";
		my $to = "to_${schema}_$format";

		$node->safe_psql('postgres', "CREATE DATABASE $to");
		$node->command_ok(
			$format eq 'dump'
			? [ 'pg_restore', '--exit-on-error', '-d', $node->connstr($to), "$directory/$schema.dump" ]
			: [ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($to), '-f', "$directory/$schema.sql" ],
			"$what: restored without an error");
		is($node->safe_psql($to, $look), $before, "$what: all is there as it was");
		is(inspect_in($to, $schema), '', "$what: all that is stored agrees");

		is($node->safe_psql($to, "$path SELECT evpg_enable_index(index_name) FROM evpg.optional_index"), "t\nt",
			"$what: what indexes were enabled is known, and they are made again [B38]");
		is($node->safe_psql($to, $indexes), $indexes_before, "$what: they are valid and used as before [B38]");

		# rule 4: in a new session, with the right payload and with another
		is( $node->safe_psql($to, "$path SELECT status, version, events->0->>'event_id' =
			(SELECT event_id::text FROM evpg.event
				WHERE aggregate_type = t AND aggregate_id = 'a' AND version = 2)
			FROM unnest('{account,account_c}'::text[]) t, 
				LATERAL evpg_try_execute(t, 'a', 'Deposit', '{\"amount\": 100}', command_id => 'first') e"),
			"duplicate|2|t\nduplicate|2|t", "$what: a command sent before the dump is a duplicate [rule 4]");
		is(sqlstate($node,
			"$path SELECT evpg_execute('account', 'a', 'Deposit', '{\"amount\": 101}', command_id => 'first')", $to),
			'VE005', "$what: its id with another payload is an error [rule 4]");
		# sequences go on, also past what was rolled back
		is( $node->safe_psql($to, "$path SELECT e.position > q.last_value, e.version, e.event_id IS NOT NULL
				FROM (SELECT last_value FROM evpg.event_position) q,
				     unnest('{account,account_c}'::text[]) t,
				     LATERAL evpg_execute(t, 'a', 'Withdraw', '{\"amount\": 100}', 2) e"),
			"t|3|t\nt|3|t", "$what: positions and versions go on");
		is($node->safe_psql($to,
			"$path SELECT evpg_create_stream('account_c', 'new'); SELECT count(DISTINCT stream_id) = count(*) "
			. "FROM evpg.stream"),
			"t\nt", "$what: so do the numbers of streams");
		is($node->safe_psql($to, "$path SELECT evpg_stable_position() = max(position) FROM evpg.event_log"), 't',
			"$what: the mark covers it [rule 9]");
		is( $node->safe_psql($to, "SELECT name, key, version, state->>'balance' FROM evpg.projected_state WHERE key = 'a' "
			. "AND name NOT IN ('counts', 'again') ORDER BY name"),
			"balances|a|3|0\nbalances_c|a|3|0\nstatement|a|2|", "$what: projections go on [C23]");
		is($node->safe_psql($to, 'SELECT sum(amount), min(balance) FROM bank.statement'), '0|0',
			"$what: a table projection too [C23]");
		# a copy keeps its consumers paused until it is told that it is no copy (sections 4 and 10)
		is(sqlstate($node, "$path CALL evpg_run()", $to), '55000', "$what: consumers do not run in a copy");
		$node->safe_psql($to, "$path SELECT evpg_activate_consumers(); CALL evpg_run()");
		is( $node->safe_psql($to, "SELECT name, key, state->>'count', generation FROM evpg.projected_state "
			. "WHERE name IN ('counts', 'again') ORDER BY name DESC, key"),
			"counts|a|6|1\nagain|a|4|1", "$what: asynchronous projections and rebuilds go on [rules 10, 13]");
		is($node->safe_psql($to, "SELECT name, key, error FROM evpg.parked_event"), 'counts|b|noted',
			"$what: what was parked is parked [rule 10]");
		is(sqlstate($node, 'DELETE FROM evpg.event_log', $to), 'VE012', "$what: history is append-only again");
		is(inspect_in($to, $schema), '', "$what: and all agrees still");
	}
}

# A dump of data alone, into a database that has the extension.
$node->safe_psql('postgres', 'CREATE DATABASE to_data');
$node->safe_psql('to_data', 'CREATE EXTENSION evpg');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--data-only', '-n', 'evpg', '-d', $node->connstr('to_data'),
	"$directory/public.dump" ],
	'data alone is restored');
is( $node->safe_psql('to_data', 'SELECT count(*) FROM evpg.event'),
	$node->safe_psql('from_public', 'SELECT count(*) FROM evpg.event'),
	'its events are there');

# Sagas in the middle of what they do, timers and dead letters.
my $sagas = <<'SQL';
SELECT * FROM evpg.saga ORDER BY name, version;
SELECT * FROM evpg.saga_instance ORDER BY saga, key;
SELECT * FROM evpg.saga_event ORDER BY saga, key, position;
SELECT * FROM evpg.timer ORDER BY timer_id;
SELECT * FROM evpg.dead_letter ORDER BY dead_letter_id;
SELECT * FROM evpg.consumer ORDER BY name;
SELECT last_value, is_called FROM evpg.timer_timer_id_seq;
SELECT last_value, is_called FROM evpg.dead_letter_dead_letter_id_seq;
SQL
my $transfers = q(SELECT t, state->>'status' FROM unnest('{transfer,transfer_c}'::text[]) t, evpg_state(t, 'x') ORDER BY t);
my $balances = q(SELECT t, id, state->>'balance'
	FROM unnest('{account,account_c}'::text[]) t, unnest('{payer,payee}'::text[]) id, evpg_state(t, id)
	ORDER BY t, id DESC);

$node->safe_psql('postgres', 'CREATE DATABASE from_saga');
create_evpg($node, 'from_saga');
$node->safe_psql('from_saga', slurp_file(tree() . '/examples/bank/transfer.sql'));
$node->safe_psql('from_saga', $_) foreach (
	q(SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, unnest('{payer,payee}'::text[]) id,
		evpg_execute(t, id, 'Open', '{"owner": "Ann"}')),
	q(SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, evpg_execute(t, 'payer', 'Deposit', '{"amount": 100}')),
	q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Withdraw', '{"amount": 7}')),
	q(SELECT evpg_run_sagas()),
	q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
		evpg_execute(t, 'x', 'Request', '{"from": "payer", "to": "payee", "amount": 60}')),
	q(SELECT evpg_run_sagas()),
	q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
		evpg_execute(t, 'y', 'Request', '{"from": "payer", "to": "payee", "amount": 1}')),
	q(SELECT evpg_run_sagas(1)),
	q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Deposit', '{"amount": 5}')));
my $before = $node->safe_psql('from_saga', $sagas);
is($node->safe_psql('from_saga', $balances), "account|payer|40\naccount|payee|60\naccount_c|payer|40\naccount_c|payee|0",
	'sagas: money is on its way');
is($node->safe_psql('from_saga',
	'SELECT (SELECT count(*) FROM evpg.saga_event) > 0, (SELECT count(*) '
	. 'FROM evpg.timer), (SELECT count(*) FROM evpg.dead_letter)'), 't|4|1', 'sagas: there is something to dump');
$node->safe_psql('from_saga', "SELECT evpg_set_clock_offset('1 hour')");
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/saga.dump", '-d', $node->connstr('from_saga') ], 'sagas: pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE to_saga');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('to_saga'), "$directory/saga.dump" ],
	'sagas: restored without an error');
is($node->safe_psql('to_saga', $sagas), $before, 'sagas: all is there as it was');
is($node->safe_psql('to_saga',
	"SELECT abs(extract(epoch FROM evpg.clock_timestamp() - clock_timestamp())) < 60, count(*) FROM evpg.clock"), 't|0',
	'the clock of a restored database is the wall clock');
is(sqlstate($node, $_, 'to_saga'), '55000', "sagas: a copy does nothing: $_") foreach 'SELECT evpg_run_sagas()',
	'SELECT evpg_retry_dead_letters(NULL)', 'CALL evpg_run()';
$node->safe_psql('to_saga', 'SELECT evpg_activate_consumers(); CALL evpg_run()');
is($node->safe_psql('to_saga', $transfers), "transfer|completed\ntransfer_c|completed", 'sagas: activated, they go on');
is($node->safe_psql('to_saga', $balances), "account|payer|39\naccount|payee|66\naccount_c|payer|39\naccount_c|payee|61",
	'sagas: each transfer is made once, a scheduled command executed');
is($node->safe_psql('to_saga', 'SELECT retried, failed FROM evpg_retry_dead_letters(NULL)'), '1|0',
	'sagas: a dead letter is retried');
is($node->safe_psql('to_saga',
	q(SELECT evpg_schedule_command('2100-01-01', 'account', 'payee', 'Close') > max(timer_id) FROM evpg.dead_letter)), 't',
	'sagas: ids of timers go on');

# inspect() looks for functions in the search_path
sub inspect_in
{
	my ($database, $schema) = @_;

	$node->safe_psql('postgres', "ALTER DATABASE $database SET search_path = $schema");
	return inspect($node, $database);
}

$node->stop;
done_testing();
