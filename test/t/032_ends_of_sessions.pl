# Rules 10, 13 and 17: what the end of a session does to an attempt that was under way.  Code that ends its own session, by
# pg_terminate_backend(), a FATAL error or exit(), is given up after max_attempts, like code that crashes the server.  An end
# that comes from outside is no attempt, and takes back no failure that was recorded.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('ends_of_sessions', conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.test_mutation = 'hasty_launcher'
evpg.naptime = 100ms
evpg.workers = 0
EOC

sub query
{
	return $node->safe_psql('postgres', shift);
}

# Runs what is due in new sessions until one of them survives; returns how many did not.
sub ended_sessions
{
	for (my $ended = 0; $ended < 12; $ended++)
	{
		return $ended if $node->psql('postgres', 'CALL evpg_run()', stderr => \my $ignored) == 0;
	}
	return 'all';
}

sub append
{
	my ($id, $data) = @_;

	return query("SELECT FROM evpg_append('thing', '$id', ARRAY[evpg_event('Served', '$data')])");
}

query(<<'SQL');
SELECT evpg_register_aggregate('thing');
CREATE TABLE brake (seconds float8);
INSERT INTO brake VALUES (0);
CREATE FUNCTION act(data jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  IF data ? 'end' THEN
    PERFORM pg_terminate_backend(pg_backend_pid());
    PERFORM pg_sleep(100);
  ELSIF data ? 'brake' THEN
    PERFORM pg_sleep(seconds) FROM brake;
  ELSIF data ? 'raise' THEN
    RAISE 'no';
  END IF;
END $$;
CREATE FUNCTION see(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
  PERFORM act(event.data);
  RETURN jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1);
END $$;
CREATE FUNCTION find_key(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
  PERFORM act(event.data);
  RETURN event.aggregate_id;
END $$;
CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$ BEGIN
  PERFORM act(event.data);
  RETURN evpg_reaction('{"seen": true}');
END $$;
CREATE FUNCTION react_only(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{"seen": true}')
$$;
SQL

# ------------------------------------------------------------------ code that ends its session

foreach my $end ('"end": true', '"fatal": true', '"exit": true')
{
	my $register = $end =~ /fatal|exit/ ? "library => 'evpg_test', symbol => 'poisonable_seen', event_types => '{Served}'" :
		"reducer => 'see', aggregate_types => '{thing}'";

	# once with events that were there at a start of the server, once with events that come later
	foreach my $mode ('first', 'later')
	{
		my $name = "$mode $end" =~ s/\W+/ /gr;

		query("SELECT evpg_register_projection('$name', $register, mode => 'async', on_error => 'skip', max_attempts => 2, "
			. 'start_position => evpg_stable_position())');
		if ($mode eq 'later')
		{
			append('before', '{}');
			is(ended_sessions(), 0, "$name: what comes first is applied");
		}
		append("$name 1", '{}');
		append("$name 2", "{$end}");
		append("$name 3", '{}');
		$node->restart if $mode eq 'first';
		is(ended_sessions(), $mode eq 'first' ? 2 : 3, "$name: the event is given up [rule 10]");
		is(query("SELECT count(*), min(error), min(sqlstate) FROM evpg.parked_event WHERE name = '$name'"),
			'1|2 attempts ended without a result|57P02', "$name: it is noted [rule 10]");
		is(query("SELECT string_agg(key || ' ' || (state->>'seen'), ', ' ORDER BY key) FROM evpg.projected_state "
			. "WHERE name = '$name' AND key LIKE '$name%'"), "$name 1 1, $name 3 1",
			"$name: the others are applied, once [rule 10]");
		query("SELECT evpg_drop_projection('$name')");
	}
	query("SELECT evpg_register_projection('rebuilt', $register, max_attempts => 2)");
	query("SELECT evpg_rebuild_projection('rebuilt', background => true)");
	is(ended_sessions(), 3, "a rebuild fails whose code ends the session by $end [rule 13]");
	is(query("SELECT phase, last_error FROM evpg.progress_rebuild WHERE name = 'rebuilt'"),
		'failed|2 attempts ended without a result', 'and the reason is noted [rule 13]');
	query("SELECT evpg_drop_projection('rebuilt')");
}
like(slurp_file($node->logfile),
	qr/WARNING:  attempt 2 of "first end true" .* at the event at position \d+, which was tried alone, had no result/,
	'the server log names the event');

query("SELECT evpg_register_saga('keys', 'react_only', key_function => 'find_key', event_types => '{Served}', "
	. 'max_attempts => 2)');
append('key 1', '{"end": true}');
append('key 2', '{}');
is(ended_sessions(), 3, 'an event is given up whose key function ends the session [rule 17]');
is(query("SELECT count(*) FROM evpg.dead_letter WHERE saga = 'keys' AND key IS NULL AND sqlstate = '57P02'"), 1,
	'as a dead letter [rule 17]');
is(query("SELECT count(*) FROM evpg.saga_instance WHERE saga = 'keys' AND key = 'key 2'"), 1, 'the saga goes on');
query("SELECT evpg_drop_saga('keys')");

query("SELECT evpg_register_saga('reacts', 'react', event_types => '{Served}', max_attempts => 2, backoff => '0')");
append('reacts 1', '{"end": true}');
append('reacts 2', '{"raise": true}');
is($node->psql('postgres', 'CALL evpg_run()', stderr => \my $ignored), 2, 'the code of a reaction ends the session');
is(query("SELECT string_agg(key || ' ' || attempts, ', ' ORDER BY key) FROM evpg.saga_event WHERE saga = 'reacts'"),
	'reacts 1 1, reacts 2 0', 'that counts against it, not against what was claimed with it [rule 17]');
is(ended_sessions(), 2, 'it is given up [rule 17]');
is(query("SELECT string_agg(key || ' ' || attempts || ' ' || sqlstate, ', ' ORDER BY key) FROM evpg.dead_letter "
	. "WHERE saga = 'reacts'"), 'reacts 1 2 57P02, reacts 2 2 P0001', 'each after its own attempts [rule 17]');
query("SELECT evpg_drop_saga('reacts')");

foreach my $end ('fatal', 'exit')
{
	query("SELECT evpg_register_saga('module', library => 'evpg_test', symbol => 'poisonable', max_attempts => 2, "
		. "start_position => evpg_stable_position())");
	append("module $end", qq({"$end": true}));
	is(ended_sessions(), 3, "a module whose code ends the session by $end is given up [rule 17]");
	is(query("SELECT string_agg(key || ' ' || attempts || ' ' || sqlstate, ', ') FROM evpg.dead_letter "
		. "WHERE saga = 'module' AND key = 'module $end'"), "module $end 2 57P02", "$end: after its attempts [rule 17]");
	query("SELECT evpg_drop_saga('module')");
}

# What has ended a session comes last in the next pass: all else that is due is done before it ends that session, too.
query(<<'SQL');
SELECT evpg_register_aggregate('other');
SELECT evpg_register_projection('well', 'see', aggregate_types => '{other}', mode => 'async',
  start_position => evpg_stable_position());
SELECT evpg_register_saga('well too', 'react', event_types => '{Served}', aggregate_types => '{other}',
  start_position => evpg_stable_position());
SQL
foreach my $case (
	[ 'a reaction', q(SELECT evpg_register_saga('a bad one', 'react', event_types => '{Served}', max_attempts => 2,
		aggregate_types => '{thing}', start_position => evpg_stable_position())), q(SELECT evpg_drop_saga('a bad one')) ],
	[ 'a key function', q(SELECT evpg_register_saga('a bad one', 'react_only', key_function => 'find_key', max_attempts => 2,
		event_types => '{Served}', aggregate_types => '{thing}', start_position => evpg_stable_position())),
		q(SELECT evpg_drop_saga('a bad one')) ],
	[ 'a projection', q(SELECT evpg_register_projection('a bad one', 'see', mode => 'async', max_attempts => 2,
		on_error => 'skip', aggregate_types => '{thing}', start_position => evpg_stable_position())),
		q(SELECT evpg_drop_projection('a bad one')) ])
{
	my ($name, $register, $drop) = @$case;
	my $tries = 0;

	query($register);
	append("last $name", '{"end": true}');
	is($node->psql('postgres', 'CALL evpg_run()', stderr => \my $ignored), 2, "$name ends the session");
	do
	{
		$tries++;
		query("SELECT FROM evpg_append('other', '$name $tries', ARRAY[evpg_event('Served', '{}')])");
		is($node->psql('postgres', 'CALL evpg_run()', stderr => \my $ignored), $tries < 3 ? 2 : 0,
			$tries < 3 ? "$name ends the session again ($tries)" : "$name is given up");
		is(query("SELECT count(*) FROM evpg_projection('well', '$name $tries')"), 1,
			"$name: another projection has been run before ($tries) [rule 10]");
		is(query("SELECT count(*) FROM evpg.saga_instance WHERE saga = 'well too' AND key = '$name $tries'"), 1,
			"$name: other instances have reacted before ($tries) [rule 17]");
	} while ($tries < 3);
	query($drop);
}
query("SELECT evpg_drop_projection('well')");
query("SELECT evpg_drop_saga('well too')");

# ------------------------------------------------------------------ an end that comes from outside

# Starts a pass in a session, and returns the session and its process.
sub start_pass
{
	my ($wait_point) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$session->query_safe("SET evpg.test_wait = '$wait_point'") if defined($wait_point);
	$session->query_until(qr/begun/, "\\echo begun\nCALL evpg_run();\n");
	return ($session, $pid);
}

sub wait_for_end
{
	my ($session, $pid) = @_;

	$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
	  or die 'the session does not end';
	$session->{run}->finish;
	return;
}

sub in_brake
{
	my ($pid) = @_;

	return $node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid");
}

query(<<'SQL');
UPDATE brake SET seconds = 1000;
SELECT evpg_register_projection('braked', 'see', aggregate_types => '{thing}', mode => 'async', max_attempts => 2,
  start_position => evpg_stable_position());
SELECT FROM evpg_append('thing', 'braked', ARRAY[evpg_event('Served', '{"brake": true}')]);
SQL
$node->restart;
foreach my $n (1 .. 3)
{
	my ($session, $pid) = start_pass();

	ok(in_brake($pid), "the event is tried, $n");
	query("SELECT pg_terminate_backend($pid)");
	wait_for_end($session, $pid);
	is(query("SELECT crashes, status FROM evpg.consumer WHERE name = 'braked'"), '0|running',
		"a session that is terminated from outside has made no attempt, $n [rule 10]");
}

# What a session does after its attempt was cancelled, before it ends in good order.
foreach my $case (
	[ 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY', 'a session that is read-only by default' ],
	[ 'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE', 'a deferrable one' ])
{
	my ($statement, $name) = @$case;
	my ($session, $pid) = start_pass();

	ok(in_brake($pid), "$name: the event is tried");
	is(query("SELECT crashes FROM evpg.consumer WHERE name = 'braked'"), 1, "$name: the attempt is counted");
	query("SELECT pg_cancel_backend($pid)");
	$session->query($statement);
	$session->quit;
	$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
	is(query("SELECT crashes, status FROM evpg.consumer WHERE name = 'braked'"), '0|running',
		"$name: takes the attempt back at its end [rule 10]");
}
query('UPDATE brake SET seconds = 0; CALL evpg_run()');
is(query("SELECT state->>'seen' FROM evpg_projection('braked', 'braked')"), 1, 'then the event is applied');
query("SELECT evpg_drop_projection('braked')");

# What has been claimed by a session that hangs is done by others, and they count what ends them.
query(<<'SQL');
UPDATE brake SET seconds = 1000;
SELECT evpg_register_saga('hangs', 'react', event_types => '{Served}', max_attempts => 2,
  start_position => evpg_stable_position());
SQL
append('hangs', '{"brake": true}');
append('ends', '{"end": true}');
append('well', '{}');
{
	my ($session, $pid) = start_pass();

	ok(in_brake($pid), 'a reaction hangs');
	is(query("SELECT string_agg(key || ' ' || attempts, ', ' ORDER BY position) FROM evpg.saga_event"),
		'hangs 1, ends 1, well 1', 'its session has claimed others');
	is(ended_sessions(), 2, 'what ends the sessions that take it over is given up, while the first one hangs [rule 17]');
	is(query("SELECT string_agg(key || ' ' || attempts || ' ' || sqlstate, ', ') FROM evpg.dead_letter "
		. "WHERE saga = 'hangs'"), 'ends 2 57P02', 'after its attempts [rule 17]');
	is(query("SELECT string_agg(key, ', ') FROM evpg.saga_instance WHERE saga = 'hangs'"), 'well', 'the others go on');
	is(query("SELECT string_agg(key || ' ' || attempts, ', ' ORDER BY position) FROM evpg.saga_event "
		. 'WHERE dead_letter_id IS NULL'), 'hangs 1', 'the one that hangs is left to its session');
	query('UPDATE brake SET seconds = 0');
	query("SELECT pg_cancel_backend($pid)");
	$session->quit;
	is(ended_sessions(), 0, 'then it is done');
	is(query("SELECT string_agg(key, ', ' ORDER BY key) FROM evpg.saga_instance WHERE saga = 'hangs'"), 'hangs, well',
		'each has reacted');
}
query("SELECT evpg_drop_saga('hangs')");

# A failure that has been committed, just before the session ends.
query(<<'SQL');
SELECT evpg_register_saga('fails', 'react', event_types => '{Served}', max_attempts => 3, backoff => '1 hour');
SELECT FROM evpg_append('thing', 'fails', ARRAY[evpg_event('Served', '{"raise": true}')]);
SQL
{
	my $holder = $node->background_psql('postgres', on_error_stop => 1);

	$holder->query_safe('SELECT pg_advisory_lock(17700)');
	my ($session, $pid) = start_pass('saga_committed');
	ok($node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid"), 'a failure has been recorded');
	query("SELECT pg_terminate_backend($pid)");
	wait_for_end($session, $pid);
	$holder->quit;
	is(query("SELECT attempts, retry_at IS NOT NULL FROM evpg.saga_event WHERE saga = 'fails'"), '1|t',
		'the end of the session does not take it back [rule 17]');
}
query("SELECT evpg_drop_saga('fails')");

# ------------------------------------------------------------------ workers

query(<<'SQL');
ALTER SYSTEM SET evpg.workers = 1;
SELECT pg_reload_conf();
SELECT evpg_register_projection('a bad one', 'see', aggregate_types => '{thing}', mode => 'async', max_attempts => 2,
  start_position => evpg_stable_position());
SELECT evpg_register_projection('good', 'see', aggregate_types => '{other}', mode => 'async',
  start_position => evpg_stable_position());
SELECT FROM evpg_append('thing', 'worker', ARRAY[evpg_event('Served', '{"end": true}')]);
SELECT FROM evpg_append('other', 'worker', ARRAY[evpg_event('Served', '{}')]);
SQL
ok($node->poll_query_until('postgres',
	"SELECT status = 'stopped' AND last_sqlstate = '57P02' FROM evpg.stat_consumer WHERE name = 'a bad one'"),
	'a projection stops whose code terminates the worker [rule 10]');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM evpg_projection('good', 'worker')"),
	'and the others go on [rule 10]');
query("SELECT evpg_drop_projection('a bad one')");
query("SELECT evpg_drop_projection('good')");

# A worker that the code of an attempt has ended is started again at once, however often; with the "defect" any other is not.
query(<<'SQL');
ALTER SYSTEM SET evpg.test_mutation = 'patient_launcher';
ALTER SYSTEM SET evpg.workers = 2;
SELECT pg_reload_conf();
SELECT evpg_register_saga('reacts', 'react', event_types => '{Served}', max_attempts => 2, backoff => '0',
  start_position => evpg_stable_position());
SELECT FROM generate_series(1, 3) n, evpg_append('thing', 'ends ' || n, ARRAY[evpg_event('Served', '{"end": true}')]);
SELECT FROM generate_series(1, 10) n, evpg_append('other', 'innocent ' || n, ARRAY[evpg_event('Served', '{}')]);
SQL
ok($node->poll_query_until('postgres', "SELECT count(*) = 10 FROM evpg.saga_instance WHERE key LIKE 'innocent%'"),
	'innocent instances react, though the code of others has ended each worker several times [rule 17]');
ok($node->poll_query_until('postgres', "SELECT count(*) = 3 FROM evpg.dead_letter WHERE saga = 'reacts' "
	. "AND sqlstate = '57P02'"), 'which is given up [rule 17]');
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker'"),
	'then all workers are there');
query("SELECT evpg_drop_saga('reacts')");
query('ALTER SYSTEM RESET evpg.test_mutation');
query('ALTER SYSTEM RESET evpg.workers');
query('SELECT pg_reload_conf()');
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg worker'");

# ------------------------------------------------------------------ the extension is gone

query(<<'SQL');
UPDATE brake SET seconds = 1000;
SELECT evpg_register_projection('braked', 'see', aggregate_types => '{thing}', mode => 'async',
  start_position => evpg_stable_position());
SELECT FROM evpg_append('thing', 'gone', ARRAY[evpg_event('Served', '{"brake": true}')]);
SQL
$node->restart;
my ($session, $pid) = start_pass();
ok(in_brake($pid), 'an attempt is counted');
query("SELECT pg_cancel_backend($pid)");
$session->query("SET client_min_messages = warning; DROP EXTENSION evpg CASCADE");
my $log = -s $node->logfile;
$session->quit;
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
is(join("\n", slurp_file($node->logfile, $log) =~ /^.*(?:FATAL|ERROR).*$/mg), '',
	'a session that has dropped the extension after an attempt ends without an error');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP|terminated by signal).*$/mg), '', 'no process has crashed');
done_testing();
