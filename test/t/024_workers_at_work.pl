# Workers do what is due where they should, and only there: nothing in a copy of a database before evpg_activate_consumers()
# (rule 9), for it would be done twice; all of it on a standby once it is promoted; and whatever a database has set for its
# sessions.
#
# evpg.naptime is an hour, so a worker goes around when it is woken.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('primary', bare => 1, allows_streaming => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
evpg.naptime = 1h
evpg.workers = 0
EOC

sub soon
{
	my ($where, $database, $condition, $name) = @_;

	return ok($where->poll_query_until($database, $condition), $name);
}

sub workers
{
	my ($count) = @_;

	$node->safe_psql('template1', "ALTER SYSTEM SET evpg.workers = $count");
	$node->safe_psql('template1', 'SELECT pg_reload_conf()');
	return;
}

# A database with all that a worker does: a projection, a saga in the middle of a transfer and another before its first step,
# and a command that is due.
sub prepare
{
	my ($database) = @_;

	$node->safe_psql('template1', "CREATE DATABASE $database");
	create_evpg($node, $database);
	$node->safe_psql($database, slurp_file(tree() . '/examples/bank/transfer.sql'));
	$node->safe_psql($database, $_) foreach (
		q(CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE
			AS $$ SELECT jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1) $$),
		q(SELECT evpg_register_projection('counts', 'count_apply', mode => 'async',
			aggregate_types => '{account,transfer}')),
		q(SELECT count(*) FROM unnest('{payer,payee}'::text[]) id, evpg_execute('account', id, 'Open', '{"owner": "Ann"}')),
		q(SELECT count(*) FROM evpg_execute('account', 'payer', 'Deposit', '{"amount": 100}')),
		q(CALL evpg_run()),
		q(SELECT count(*) FROM evpg_execute('transfer', 'x', 'Request', '{"from": "payer", "to": "payee", "amount": 60}')),
		q(SELECT evpg_run_sagas()),
		q(SELECT count(*) FROM evpg_execute('transfer', 'y', 'Request', '{"from": "payer", "to": "payee", "amount": 1}')),
		q(SELECT evpg_run_sagas(1)),
		q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Deposit', '{"amount": 5}')));
	return;
}

# What is there, and what has been done; the projection has what it had before the transfers.
my $contents = <<'SQL';
SELECT position, aggregate_type, aggregate_id, type FROM evpg.event WHERE type <> 'Noted' ORDER BY position;
SELECT * FROM evpg.saga_instance ORDER BY saga, key;
SELECT * FROM evpg.saga_event ORDER BY saga, key, position;
SELECT * FROM evpg.timer ORDER BY timer_id;
SELECT * FROM evpg.consumer ORDER BY name;
SELECT * FROM evpg.projected_state WHERE name = 'counts' ORDER BY key;
SQL

# All that was due is done, once.
my $done = <<'SQL';
SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)
   AND (SELECT bool_and(checkpoint = evpg_stable_position()) FROM evpg.consumer)
   AND (SELECT count(*) = 2 FROM evpg.event WHERE type = 'TransferCompleted')
SQL
my $balances = q(SELECT string_agg(state->>'balance', ' ' ORDER BY id)
	FROM unnest('{payee,payer}'::text[]) id, evpg_state('account', id));
my $wrong = <<'SQL';
SELECT key, c.state, c.version, e.count FROM (SELECT * FROM evpg.projected_state WHERE name = 'counts') c
  FULL JOIN (SELECT aggregate_id AS key, count(*) FROM evpg.event WHERE aggregate_type IN ('account', 'transfer')
    GROUP BY aggregate_id) e USING (key)
 WHERE (c.state, c.version) IS DISTINCT FROM (jsonb_build_object('count', e.count), e.count)
SQL

sub is_done
{
	my ($where, $database, $what) = @_;

	soon($where, $database, $done, "$what: all that was due is done");
	is($where->safe_psql($database, $balances), '66 39', "$what: each transfer is made once, the command executed once");
	is($where->safe_psql($database, $wrong), '', "$what: the projection has each event once [rule 10]");
	is($where->safe_psql($database, 'SELECT count(*) FROM evpg.dead_letter'), '0', "$what: nothing has failed");
	is(inspect($where, $database), '', "$what: all that is stored agrees");
	return;
}

# ------------------------------------------------------------------ a copy

prepare('original');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE original');
my $before = $node->safe_psql('copy', $contents);
is($before, $node->safe_psql('original', $contents), 'a copy has all that the original has');
is($node->safe_psql('copy', 'SELECT (SELECT count(*) FROM evpg.timer WHERE due_at < now()), (SELECT count(*) '
	. 'FROM evpg.saga_event), (SELECT lag_events > 0 FROM evpg.stat_consumer WHERE name = \'counts\')'), '1|1|t',
	'the copy has work to be done');
workers(1);
is_done($node, 'original', 'the original');
soon($node, 'template1', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'copy'",
	'the copy has a worker');
ok(worker_rounds($node, 'copy', 5, "SELECT FROM evpg_append('account', 'noted', ARRAY[evpg_event('Noted')])"),
	'commits make the worker of the copy go around');
is($node->safe_psql('copy', $contents), $before, 'the worker of the copy has done nothing [rule 9]');
is(sqlstate($node, 'CALL evpg_run()', 'copy'), '55000', 'evpg_run() is refused in a copy [rule 9]');
is($node->safe_psql('copy', $contents), $before, 'evpg_run() that was refused leaves all as it was [rule 9]');
is($node->safe_psql('copy', 'SELECT evpg_activate_consumers()'), 't', 'evpg_activate_consumers() [rule 9]');
is_done($node, 'copy', 'the copy, activated');
is($node->safe_psql('original', $balances), '66 39', 'the original is as it was');
workers(0);

# ------------------------------------------------------------------ the clock, and what an operator does

# Nobody commits an event, and the workers sleep for an hour: what an operator does wakes them.
{
	sub operator
	{
		my ($statement, $condition, $name) = @_;

		ok(worker_rounds($node, 'clock', 1, 'SELECT evpg_set_clock_offset()'), "a worker sleeps before: $name");
		isnt($node->safe_psql('clock', $condition), 't', "not yet: $name");
		$node->safe_psql('clock', $statement);
		return soon($node, 'clock', $condition, $name);
	}

	$node->safe_psql('template1', 'CREATE DATABASE clock');
	create_evpg($node, 'clock');
	$node->safe_psql('clock', $_) foreach (
		q(CREATE TABLE broken (why text)),
		q(CREATE FUNCTION any_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql
			AS $$ SELECT evpg_event(command.command_type, command.data) $$),
		q(CREATE FUNCTION any_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$),
		q(SELECT evpg_register_aggregate('a', 'any_handle', 'any_apply')),
		q(CREATE FUNCTION again(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql
			AS $$ SELECT evpg_reaction('{"rung": 0}', evpg_action_schedule('bell', interval '1 day')) $$),
		q(CREATE FUNCTION ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
		  SELECT evpg_reaction(jsonb_build_object('rung', (state->>'rung')::int + 1),
		  	evpg_action_schedule('bell', interval '1 day')) $$),
		q(SELECT evpg_register_saga('bells', handler => 'again', timer_handler => 'ring', event_types => '{Begun}')),
		q(CREATE FUNCTION breaking(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
		  BEGIN
		    IF EXISTS (SELECT FROM broken) THEN RAISE EXCEPTION 'SECRET-%', 4000 + 111; END IF;
		    RETURN evpg_reaction(state || jsonb_build_object(event.type, true));
		  END $$),
		q(SELECT evpg_register_saga('breaking', handler => 'breaking', event_types => '{Broke,Mended}', max_attempts => 1)));
	workers(1);
	$node->safe_psql('clock', q(SELECT count(*) FROM evpg_execute('a', 'x', 'Begun')));
	soon($node, 'clock', q(SELECT count(*) = 1 FROM evpg.timer), 'a saga has set a timer');
	operator(q(SELECT evpg_set_clock_offset('25 h')), q(SELECT state->>'rung' = '1' FROM evpg.saga_instance),
		'the clock is moved: a worker fires what is due by it [D99]');
	ok(worker_rounds($node, 'clock', 3, q(SELECT evpg_set_clock_offset('25 h'))),
		'the worker goes around again after the clock has moved');
	is($node->safe_psql('clock', q(SELECT state->>'rung' FROM evpg.saga_instance)), '1',
		'once: the next timer was set by the same clock [D99]');
	is($node->safe_psql('clock', q(SELECT count(*) FROM evpg.timer WHERE due_at > clock_timestamp() + interval '48 h')), '1',
		'a day after that [D99]');
	$node->safe_psql('clock', $_) foreach q(CALL evpg_run()), q(SELECT evpg_set_clock_offset());
	is($node->safe_psql('clock', q(SELECT state->>'rung' FROM evpg.saga_instance)), '1',
		'a session does not fire the timer a second time [D99]');

	operator(q(SELECT evpg_reschedule_timer(timer_id, now()) FROM evpg.timer),
		q(SELECT state->>'rung' = '2' FROM evpg.saga_instance), 'evpg_reschedule_timer wakes the workers');
	$node->safe_psql('clock', q(SELECT evpg_pause_consumer('bells')));
	$node->safe_psql('clock', q(SELECT evpg_reschedule_timer(timer_id, now()) FROM evpg.timer));
	operator(q(SELECT evpg_resume_consumer('bells')),
		q(SELECT state->>'rung' = '3' FROM evpg.saga_instance WHERE saga = 'bells'),
		'evpg_resume_consumer wakes the workers');

	my %ways = (evpg_retry_dead_letter => '', evpg_discard_dead_letter => q(, 'no'));
	foreach my $way (sort keys %ways)
	{
		$node->safe_psql('clock', q(INSERT INTO broken VALUES ('yes')));
		$node->safe_psql('clock',
			qq(SELECT count(*) FROM evpg_execute('a', '$way', 'Broke') b, evpg_execute('a', '$way', 'Mended') m));
		soon($node, 'clock', qq(SELECT count(*) = 1 FROM evpg.dead_letter WHERE key = '$way'),
			"$way: a dead letter, and an event behind it");
		$node->safe_psql('clock', q(DELETE FROM broken));
		operator(qq(SELECT FROM (SELECT dead_letter_id FROM evpg.dead_letter WHERE key = '$way') l,
				$way(dead_letter_id$ways{$way})),
			qq(SELECT state \? 'Mended' FROM evpg.saga_instance WHERE saga = 'breaking' AND key = '$way'),
				"$way wakes the workers");
	}
	$node->safe_psql('clock',
		q(INSERT INTO evpg.inbox SELECT '2001-01-01', 'many', n::text FROM generate_series(1, 10000) n));
	operator(q(SELECT evpg_set_retention('inbox', '1 day')), q(SELECT NOT EXISTS (SELECT FROM evpg.inbox)),
		'evpg_set_retention wakes the workers, which go on until all is pruned');
	soon($node, 'clock', q(SELECT next_block = 0 AND pruned_total = 10000 FROM evpg.retention), 'each row once');
	# a long table before a short one, in the order of their names
	$node->safe_psql('clock', <<'SQL');
INSERT INTO evpg.command_record SELECT 1, 1, 1, '2001-01-01', '', repeat('x', 500) || n FROM generate_series(1, 3000) n;
INSERT INTO evpg.inbox VALUES ('2001-01-01', 'one', 'one');
SELECT evpg_set_retention(what, '1 day') FROM unnest('{commands,inbox}'::text[]) what;
SQL
	soon($node, 'clock', q(SELECT NOT EXISTS (SELECT FROM evpg.inbox) AND NOT EXISTS (SELECT FROM evpg.command_record
		WHERE recorded_at = '2001-01-01')), 'tables are pruned in turns');
	is($node->safe_psql('clock', q(SELECT string_agg(what, ', ' ORDER BY looked_at) FROM evpg.retention)), 'inbox, commands',
		'the short one does not wait for the end of the long one');
	my $log = slurp_file($node->logfile);
	like($log,
		qr/WARNING:  saga "breaking" of database "clock" has dead letter \d+\n.*DETAIL:  The error has SQLSTATE P0001/,
		'the log says what somebody must look at, and where');
	unlike($log, qr/SECRET-4111/, 'the log has nothing of what user code has raised [A51]');
	is($node->safe_psql('clock', q(SELECT count(*) FROM evpg.dead_letter WHERE message = 'SECRET-4111')), '2',
		'evpg.dead_letter has what user code has raised [A51]');
	workers(0);
}

# ------------------------------------------------------------------ a standby that is promoted

prepare('replicated');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.auto.conf', 'evpg.workers = 1');
$standby->start;
$node->wait_for_catchup($standby);
$before = $node->safe_psql('replicated', $contents);
is($standby->safe_psql('replicated', $contents), $before, 'a standby has all that the primary has, and does nothing');
$node->stop('immediate');
$standby->promote;
is_done($standby, 'replicated', 'promoted');
$standby->safe_psql('replicated',
	"SELECT count(*) FROM evpg_execute('transfer', 'z', 'Request', '{\"from\": \"payer\", \"to\": \"payee\", "
	. "\"amount\": 9}')");
soon($standby, 'replicated', "SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'z' AND type = 'TransferCompleted'",
	'promoted: and what comes then');
soon($standby, 'replicated', "SELECT bool_and(checkpoint = evpg_stable_position()) FROM evpg.consumer",
	'promoted: all of it');
is($standby->safe_psql('replicated', $wrong), '', 'promoted: rule 10: the projection has each event once');
$standby->stop;

# ------------------------------------------------------------------ settings of a database

$node->start;
prepare('strict');
$node->safe_psql('strict', <<'SQL');
CREATE FUNCTION timeouts_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS
  $$ SELECT jsonb_object_agg(name, setting) FROM pg_settings
      WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
        'transaction_timeout') $$;
SELECT evpg_register_projection('timeouts', 'timeouts_apply', mode => 'async', aggregate_types => '{transfer}');
SQL
# of PostgreSQL 17
my $has = $node->safe_psql('strict', q(SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'));
$node->safe_psql('template1', q(ALTER DATABASE strict SET transaction_timeout = '1h')) if $has;
$node->safe_psql('template1', "ALTER DATABASE strict SET $_") foreach 'default_transaction_isolation = serializable',
	'default_transaction_read_only = on',
  'default_transaction_deferrable = on', 'statement_timeout = 1', 'lock_timeout = 1',
  	'idle_in_transaction_session_timeout = 1', 'idle_session_timeout = 1';
{
	# but for this test's own sessions
	local $ENV{PGOPTIONS} = '-c default_transaction_isolation=read\ committed -c default_transaction_read_only=off -c '
		. 'default_transaction_deferrable=off'
	  . ' -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0';
	workers(1);
	is_done($node, 'strict', 'a database with settings that are in the way');
	is($node->safe_psql('strict', q(SELECT count(*), string_agg(DISTINCT value, ' ') FROM evpg_projection('timeouts', 'x') p,
		jsonb_each_text(p.state))), (3 + $has) . '|0', 'a worker has no time limit but for locks');
}

$node->stop;
is(join("\n", slurp_file($_->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion') foreach $node,
	$standby;
done_testing();
