# Rules 10, 13 and 17: code of a projection or saga that crashes the server does not take it down for ever.  After a crash
# events are tried alone, and what crashes alone is given up after max_attempts, as on_error says: stopped, parked, skipped,
# a dead letter, a failed rebuild.  Only that counts: who is at work when others crash the server is not blamed.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = evpg_node('crashing_code', conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
restart_after_crash = on
evpg.test_mutation = 'hasty_launcher'
wal_writer_delay = 10s
evpg.broadcast = off
evpg.naptime = 100ms
evpg.workers = 2
EOC

# Over crashes: the connection can break at any time.
sub eventually
{
	my ($condition, $name) = @_;
	my $result = '';

	for (my $n = 0; $n < 1800 && $result ne 't'; $n++)
	{
		usleep(100_000) if $n > 0;
		$node->psql('postgres', $condition, stdout => \$result, stderr => \my $ignored);
	}
	return is($result, 't', $name);
}

# What is committed may crash the server before the answer comes.
sub poison
{
	my ($query) = @_;

	$node->psql('postgres', $query, stdout => \my $output, stderr => \my $error);
	return;
}

sub serve
{
	my ($id, $data) = @_;

	# a crash that takes the event back takes back all that followed from it
	return query("SET synchronous_commit = on;\n"
		. "SELECT FROM evpg_append('account', '$id', ARRAY[evpg_event('Served', '$data')]);");
}

sub crashes
{
	return scalar(() = slurp_file($node->logfile) =~ /evpg worker.*was terminated by signal 6/g);
}

serve('before', '{}') foreach 1 .. 3;

# ------------------------------------------------------------------ projections

foreach my $symbol ('poisonable_seen', 'poisonable_key_seen')
{
	my $poison = $symbol eq 'poisonable_seen' ? 'poison' : 'poison_key';

	# without frames, a module gets the events of a batch key by key
	my $broadcast = $symbol eq 'poisonable_seen' ? 'none' : 'pointer';

	foreach my $on_error ('stop', 'park', 'skip')
	{
		my $name = "$symbol $on_error";
		my $before = crashes();

		query("SELECT evpg_register_projection('$name', library => 'evpg_test', symbol => '$symbol', event_types => "
			. "'{Served}', mode => 'async', on_error => '$on_error', max_attempts => 2, broadcast => '$broadcast', "
			. "start_position => evpg_stable_position())");
		eventually("SELECT lag_events = 0 FROM evpg.stat_consumer WHERE name = '$name'", "$name: goes on");
		poison(<<"SQL");
SELECT count(*) FROM (VALUES (1, 'fine', '{}'), (2, 'ill', '{"$poison": true}'), (3, 'fine', '{}'), (4, 'ill', '{}')) x
  (n, id, data),
  evpg_append('account', '$name ' || id, ARRAY[evpg_event('Served', data::jsonb)])
SQL
		eventually("SELECT status = '" . ($on_error eq 'stop' ? 'stopped' : 'running')
			. "' AND last_sqlstate = '57P02' FROM evpg.stat_consumer WHERE name = '$name'",
			"$name: the event is given up [rule 10]");
		my $position = query("SELECT position FROM evpg.event WHERE data ? '$poison' ORDER BY 1 DESC LIMIT 1");
		if ($on_error eq 'stop')
		{
			is(query("SELECT checkpoint < $position, last_error_position = $position, last_error "
				. "FROM evpg.stat_consumer WHERE name = '$name'"), 't|t|2 attempts ended without a result',
				"$name: stopped before the event");
			query("SELECT evpg_skip_event('$name', $position, 'it crashes')");
		}
		eventually("SELECT lag_events = 0 FROM evpg.stat_consumer WHERE name = '$name'", "$name: then it goes on");
		my $parked = $on_error ne 'park' ? 'fine 2, ill 1' : $poison eq 'poison' ? 'fine 2' : 'fine 2, ill 1';
		is(query("SELECT string_agg(replace(key, '$name ', '') || ' ' || (state->>'seen'), ', ' ORDER BY key) "
			. "FROM evpg.projected_state WHERE name = '$name' AND key LIKE '$name %'"), $parked,
			"$name: the other events are applied once");
		is(query("SELECT count(*) FROM evpg.parked_event WHERE name = '$name' AND position = $position"), 1,
			"$name: the event is noted");
		is(query("SELECT key IS NULL FROM evpg.parked_event WHERE name = '$name' AND position = $position"),
			$on_error eq 'park' && $poison eq 'poison' ? 'f' : 't', "$name: with its key, if that can be found");
		cmp_ok(crashes() - $before, '>=', 2, "$name: the server has crashed");
		cmp_ok(crashes() - $before, '<=', 5, "$name: not often");
		like(
			slurp_file($node->logfile),
			qr/WARNING:  attempt 1 of "$name" of database "postgres" at the event at position $position, which was tried/,
			"$name: the log names it");
		query("SELECT evpg_drop_projection('$name')");
	}
}

# Consumers whose names come later, in the same passes as the one that crashes the server: each crash is one of the first
# alone.
query("ALTER SYSTEM SET evpg.workers = 1");
query('SELECT pg_reload_conf()');
eventually("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", 'there is one worker');
query(<<'SQL');
CREATE FUNCTION count_served(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE RETURN '{"seen": 1}'::jsonb;
SELECT evpg_register_projection('a bad one', library => 'evpg_test', symbol => 'poisonable_seen', event_types => '{Served}',
  mode => 'async', on_error => 'skip', max_attempts => 2, start_position => evpg_stable_position());
SELECT evpg_register_projection('good ' || n, 'count_served', event_types => '{Served}', mode => 'async', on_error => 'skip',
  max_attempts => 2, start_position => evpg_stable_position()) FROM generate_series(1, 3) n;
SQL
poison(q(SELECT FROM evpg_append('account', 'several', ARRAY[evpg_event('Served', '{"poison": true}')])));
eventually("SELECT count(*) = 4 FROM evpg.stat_consumer WHERE name ~ '^(a bad one|good .)\$' AND lag_events = 0",
	'several consumers: all go on [rule 10]');
is(query("SELECT string_agg(name, ', ') FROM evpg.parked_event WHERE name ~ '^(a bad one|good .)\$'"), 'a bad one',
	'several consumers: only the one that crashes the server gives its event up [rule 10]');
is(query("SELECT count(*) FROM generate_series(1, 3) n, evpg_projection('good ' || n, 'several')"), 3,
	'several consumers: the others have applied it [rule 10]');
unlike(slurp_file($node->logfile), qr/attempt [2-9] of "good/,
	'several consumers: they are not blamed for more than one crash [rule 10]');
query("SELECT evpg_drop_projection(name) FROM unnest('{a bad one,good 1,good 2,good 3}'::text[]) name");
query("ALTER SYSTEM RESET evpg.workers");
query('SELECT pg_reload_conf()');

# ------------------------------------------------------------------ a saga's key function

query("SELECT evpg_register_saga('keys', library => 'evpg_test', symbol => 'poisonable_key', max_attempts => 2, "
	. "backoff => '0')");
poison(q(SELECT count(*) FROM (VALUES ('{"poison_key": true}'), ('{}')) x (data),
	evpg_append('account', 'saga', ARRAY[evpg_event('Served', data::jsonb)])));
eventually("SELECT count(*) = 1 FROM evpg.dead_letter WHERE saga = 'keys' AND key IS NULL AND sqlstate = '57P02'",
	"an event whose key crashes the server ends as a dead letter [rule 17]");
eventually("SELECT count(*) = 1 FROM evpg.saga_instance WHERE saga = 'keys' AND key = 'saga'",
	'the saga goes on beside crashes of others');
query("SELECT evpg_drop_saga('keys')");

# ------------------------------------------------------------------ a rebuild

query("SELECT evpg_register_projection('rebuilt', library => 'evpg_test', symbol => 'poisonable_seen', "
	. "event_types => '{Served}', max_attempts => 2)");
poison("SELECT evpg_rebuild_projection('rebuilt', background => true)");
eventually("SELECT phase = 'failed' AND last_error LIKE '%without a result' FROM evpg.progress_rebuild "
	. "WHERE name = 'rebuilt'", 'a rebuild that crashes the server fails [rule 13]');
query("SELECT evpg_drop_projection('rebuilt')");

# One part gets on, slowly, while another one crashes the server, each time later than the first has ended a batch.  Events
# of another type keep both from the end.
query(<<'SQL');
SELECT evpg_register_aggregate('part');
SELECT evpg_append('part', 'ill', ARRAY[evpg_event('Served', '{"poison": true, "pause": 2000}')]);
SELECT count(*) FROM generate_series(1, 60) n,
  evpg_append('part', 'fine ' || n, ARRAY[evpg_event('Served', '{"pause": 300}')]);
SELECT FROM evpg_append('part', 'other', (SELECT array_agg(evpg_event('Other', '{}')) FROM generate_series(1, 2100)));
SELECT evpg_register_projection('parts', library => 'evpg_test', symbol => 'poisonable_seen', aggregate_types => '{part}',
  event_types => '{Served}', max_attempts => 2);
SQL
my $before = crashes();
poison("SELECT evpg_rebuild_projection('parts', background => true)");
eventually("SELECT phase = 'failed' AND last_error LIKE '%without a result' FROM evpg.progress_rebuild WHERE name = 'parts'",
	'a rebuild fails of which one part crashes the server [rule 13]');
cmp_ok(crashes() - $before, '<=', 3, 'whatever the others do [rule 13]');
is(query("SELECT count(*) FILTER (WHERE checkpoint > 0), count(*) FILTER (WHERE crashes = 2) FROM evpg.rebuild_part"), '1|1',
	'one part has got on [rule 13]');
query("SELECT evpg_drop_projection('parts')");

# ------------------------------------------------------------------ others crash the server

# What was done is lost with each crash, since nothing else is written to disk after it, and is done again until it is not.
sub crash_by_another
{
	my ($what, $done) = @_;

	foreach my $n (1 .. 6)
	{
		my $idle = $node->background_psql('postgres', on_error_stop => 1);
		my $pid = $idle->query_safe('SELECT pg_backend_pid()');

		eventually($done, "$what, crash $n: it is done");
		kill('KILL', $pid);
		$idle->{run}->kill_kill;
		eventually("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)", 'the server is there again');
	}
	eventually($done, "$what: it is done");
	return;
}

query(<<'SQL');
ALTER SYSTEM SET synchronous_commit = off;
SELECT pg_reload_conf();
CREATE FUNCTION mailer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{"mailed": true}',
    evpg_action_send('account', 'mail ' || event.aggregate_id, 'Open', '{"owner": "Ann"}'))
$$;
SELECT evpg_register_saga('mailer', 'mailer', event_types => '{Served}', max_attempts => 2);
SQL
serve('innocent', '{}');
crash_by_another('a saga',
	"SELECT state->>'mailed' = 'true' FROM evpg.saga_instance WHERE saga = 'mailer' AND key = 'innocent'");
query("SELECT evpg_schedule_command(clock_timestamp(), 'account', 'scheduled', 'Open', '{\"owner\": \"Ann\"}')");
crash_by_another('a scheduled command',
	"SELECT evpg_stream_version('account', 'scheduled') = 1 AND NOT EXISTS (SELECT FROM evpg.timer)");
is(query('SELECT count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL'), 0,
	'crashes of others make no dead letter [rule 17]');
query("SELECT evpg_register_projection('innocent', library => 'evpg_test', symbol => 'poisonable_seen', "
	. "event_types => '{Served}', mode => 'async', on_error => 'stop', max_attempts => 2, start_position => "
	. "evpg_stable_position())");
serve('innocent', '{}');
crash_by_another('a projection', "SELECT count(*) = 1 FROM evpg_projection('innocent', 'innocent')");
is(query("SELECT status, crashes FROM evpg.consumer WHERE name = 'innocent'"), 'running|0',
	'crashes of others do not stop a projection [rule 10]');

# ------------------------------------------------------------------ the server stops, or a worker, in good order

query(<<'SQL');
CREATE TABLE brake (seconds float8);
INSERT INTO brake VALUES (1000);
CREATE FUNCTION braked_seen(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT '{"seen": 1}'::jsonb FROM (SELECT pg_sleep(seconds), pg_advisory_unlock_all() FROM brake OFFSET 0) b
$$;
CREATE FUNCTION braked_saga(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{"seen": 1}') FROM (SELECT pg_sleep(seconds), pg_advisory_unlock_all() FROM brake OFFSET 0) b
$$;
SELECT evpg_register_projection('braked', 'braked_seen', event_types => '{Braked}', mode => 'async', on_error => 'stop',
  max_attempts => 1);
SELECT evpg_register_saga('braked saga', 'braked_saga', event_types => '{Braked}', max_attempts => 1);
SELECT FROM evpg_append('account', 'braked', ARRAY[evpg_event('Braked', '{}')]);
SQL
my $asleep = q(SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND wait_event = 'PgSleep');
eventually($asleep, 'a projection and a saga are at work');
foreach my $n (1 .. 3)
{
	$node->restart;
	eventually($asleep, "restart $n: they are again");
}
foreach my $n (1 .. 3)
{
	my $pids = query("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE backend_type = 'evpg worker'");

	query("SELECT pg_terminate_backend(pid) FROM unnest('{$pids}'::int[]) pid");
	eventually("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ANY ('{$pids}')", "workers $n: they are terminated");
	eventually($asleep, "workers $n: they are at work again");
}
query('UPDATE brake SET seconds = 0');
query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evpg worker'");
eventually("SELECT count(*) = 1 FROM evpg_projection('braked', 'braked')",
	'an event during which the server was stopped, or workers were, is not given up [rule 10]');
eventually("SELECT count(*) = 1 FROM evpg.saga_instance WHERE saga = 'braked saga' AND state->>'seen' = '1'",
	'an event during which the server was stopped is not given up by a saga [rule 17]');
is(query("SELECT status, crashes FROM evpg.consumer WHERE name = 'braked'"), 'running|0',
	'the projection goes on [rule 10]');
is(query('SELECT count(*) FROM evpg.dead_letter WHERE resolved_at IS NULL'), 0,
	'the saga goes on without dead letters [rule 17]');
is(join("\n", slurp_file($node->logfile) =~ /^.*WARNING.*"braked.*$/mg), '', 'no crash is reported');
unlike(slurp_file($node->logfile), qr/you don't own a lock/,
	'code that releases all advisory locks, as this does, takes nothing that is released again');

# ------------------------------------------------------------------ one crash may have been caused by another process

my $alone = q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND wait_event = 'PgSleep');
query("SELECT evpg_drop_saga('braked saga')");
query('UPDATE brake SET seconds = 1000');
query("SET synchronous_commit = on; SELECT FROM evpg_append('account', 'alone', ARRAY[evpg_event('Braked', '{}')])");
eventually($alone, 'a projection is at work, with max_attempts 1');
foreach my $n (1 .. 2)
{
	my $idle = $node->background_psql('postgres', on_error_stop => 1);
	my $pid = $idle->query_safe('SELECT pg_backend_pid()');

	kill('KILL', $pid);
	$idle->{run}->kill_kill;
	eventually("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)", 'the server is there again');
	eventually($alone, $n == 1 ? 'after a crash it is tried again' : 'after one in which it was alone as well [rule 10]');
}
is(query("SELECT status, crashes > 0 FROM evpg.consumer WHERE name = 'braked'"), 'running|t',
	'that counts, and is not enough [rule 10]');
query('UPDATE brake SET seconds = 0');
query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evpg worker'");
eventually("SELECT count(*) = 1 FROM evpg_projection('braked', 'alone')", 'it gets there [rule 10]');
is(query("SELECT status, crashes FROM evpg.consumer WHERE name = 'braked'"), 'running|0', 'and the count is gone [rule 10]');

# ------------------------------------------------------------------ nothing to catch up

$node->restart;
eventually("SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND state = 'idle'",
	'there is nothing to do');
my $tried = query("SELECT server_start FROM evpg.consumer WHERE name = 'braked'");
query("SELECT count(*) FROM generate_series(1, 20), evpg_append('account', 'braked', ARRAY[evpg_event('Braked', '{}')])");
eventually("SELECT lag_events = 0 FROM evpg.stat_consumer WHERE name = 'braked'", 'what comes is applied');
is(query("SELECT server_start FROM evpg.consumer WHERE name = 'braked'"), $tried,
	'who had nothing to catch up after a start tries no event alone [rule 10]');

# ------------------------------------------------------------------ the launcher pauses

$node->append_conf('postgresql.conf', "evpg.test_mutation = ''\n");
$node->restart;
foreach my $n (1 .. 4)
{
	my $pid;

	$node->psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg launcher'", stdout => \$pid,
		stderr => \my $ignored)
	  until ($pid // '') =~ /\d/;
	kill('KILL', $pid);
	eventually("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid", 'the server is there again');
}
# 250 ms, 500 ms, 1 s and 2 s; the last of them is not over when the first look is made
is(query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evpg worker'"), 0,
	'after several crashes workers do not come at once');
eventually("SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker'",
	'workers come back after several crashes');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
