# Rules 10, 13 and 17: a worker that is cancelled again and again at the same code, by a monitor or by the code itself, tries
# that after longer pauses, counts no attempt, and tells what it does: in the row of what is tried, and once in the log.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('cancelled_workers', conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.naptime = 1h
evpg.workers = 1
EOC

$ENV{PGOPTIONS} = '-c statement_timeout=60s';

query($_) foreach (
	q(CREATE TABLE cancelled (name text)),
	q(CREATE FUNCTION go(function_name text) RETURNS void LANGUAGE plpgsql AS $$
	  BEGIN
	    IF EXISTS (SELECT FROM cancelled WHERE name = function_name || ' fails') THEN RAISE 'it fails'; END IF;
	    IF EXISTS (SELECT FROM cancelled WHERE name = function_name) AND
	       (SELECT backend_type = 'evpg worker' FROM pg_stat_activity WHERE pid = pg_backend_pid()) THEN
	      PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(60);
	    END IF;
	  END $$),
	q(CREATE FUNCTION handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('command'); RETURN evpg_event('Done'); END $$),
	q(CREATE FUNCTION apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$),
	q(SELECT evpg_register_aggregate('box', 'handle', 'apply')),
	q(SELECT evpg_register_aggregate('thing')),
	q(CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('projection'); RETURN jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1); END $$),
	q(CREATE FUNCTION keys(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('keys'); RETURN event.aggregate_id; END $$),
	q(CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('reaction');
	    RETURN evpg_reaction('{}', evpg_action_schedule('t', due_at => clock_timestamp() + interval '1 h')); END $$),
	q(CREATE FUNCTION ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('timer'); RETURN evpg_reaction('{"rung": true}'); END $$),
	q(SELECT evpg_register_projection('counts', 'count_apply', mode => 'async', event_types => '{Counted}')),
	q(SELECT evpg_register_projection('inline', 'count_apply', event_types => '{Counted}')),
	q(SELECT evpg_register_saga('reacts', handler => 'react', timer_handler => 'ring', key_function => 'keys',
		event_types => '{Asked}')));

sub append
{
	my ($type, $id) = @_;

	return query("SELECT FROM evpg_append('thing', '$id', ARRAY[evpg_event('$type')])");
}

# What the log tells of cancels since an offset, each line once.
sub told
{
	my ($offset) = @_;

	return join "\n", substr(slurp_file($node->logfile), $offset) =~ /WARNING:  (a worker was cancelled in .*)/mg;
}

sub repaired
{
	my ($condition, $name) = @_;

	query('DELETE FROM cancelled');
	# what waits need not wait any longer
	query("SELECT evpg_set_clock_offset(evpg.clock_timestamp() - now() + interval '1 minute')");
	return soon($condition, "$name: repaired, it is done");
}

my $offset = -s $node->logfile;

query(q(INSERT INTO cancelled VALUES ('projection')));
append('Counted', "a$_") foreach 1 .. 3;
soon("SELECT retry_at - last_error_at > interval '1 s' FROM evpg.consumer WHERE name = 'counts'",
	'a projection that cancels itself is tried after longer pauses [rule 10]');
is(query("SELECT status, attempts, errors_total, last_sqlstate, last_error FROM evpg.consumer WHERE name = 'counts'"),
	'running|0|0|57014|canceling statement due to user request', 'its row tells why, no attempt is counted [rule 10]');
repaired("SELECT count(*) = 3 FROM evpg.projected_state WHERE name = 'counts' AND state->>'n' = '1'", 'a projection');
is(query("SELECT retry_at IS NULL FROM evpg.consumer WHERE name = 'counts'"), 't', 'then nothing waits');
is(told($offset), 'a worker was cancelled in a batch of projection "counts" of database "postgres"', 'the log tells once');

$offset = -s $node->logfile;
query(q(INSERT INTO cancelled VALUES ('projection')));
query(q(SELECT evpg_rebuild_projection('inline', background => true)));
soon("SELECT retry_at - last_error_at > interval '3 s' FROM evpg.rebuild WHERE name = 'inline'",
	'a rebuild whose code cancels it is tried after longer pauses [rule 13]');
is(query("SELECT phase <> 'failed', attempts, last_error FROM evpg.progress_rebuild WHERE name = 'inline'"),
	't|0|canceling statement due to user request', 'its row tells why, no attempt is counted [rule 13]');
repaired("SELECT NOT EXISTS (SELECT FROM evpg.rebuild)", 'a rebuild');
is(told($offset), 'a worker was cancelled in the rebuild of projection "inline" of database "postgres"',
	'the log tells once');

$offset = -s $node->logfile;
query(q(INSERT INTO cancelled VALUES ('reaction')));
append('Asked', 'r1');
soon("SELECT cancels >= 5 AND retry_at - evpg.clock_timestamp() > interval '1 s' FROM evpg.saga_event",
	'a reaction that cancels itself is tried after longer pauses [rule 17]');
is(query('SELECT attempts, retry_at IS NOT NULL FROM evpg.saga_event'), '0|t', 'no attempt is counted [rule 17]');
is(query('SELECT count(*) FROM evpg.dead_letter'), '0', 'and there is no dead letter [rule 17]');
query(q(UPDATE cancelled SET name = 'reaction fails'));
soon('SELECT attempts = 1 AND cancels IS NULL AND retry_at IS NOT NULL FROM evpg.saga_event',
	'a failure ends the row of cancels [rule 17]');
repaired("SELECT count(*) = 1 FROM evpg.saga_instance WHERE key = 'r1'", 'a reaction');
is(told($offset), 'a worker was cancelled in a reaction of saga "reacts" of database "postgres"', 'the log tells once');

# the routing: instances go on meanwhile
$offset = -s $node->logfile;
query(q(INSERT INTO cancelled VALUES ('keys')));
append('Asked', 'r2');
soon("SELECT retry_at - last_error_at > interval '1 s' FROM evpg.consumer WHERE name = 'reacts'",
	'a key function that cancels itself is tried after longer pauses [rule 17]');
is(query("SELECT status, attempts, errors_total, last_sqlstate FROM evpg.consumer WHERE name = 'reacts'"),
	'running|0|0|57014', 'its row tells why, no attempt is counted [rule 17]');
query(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp() - interval '1 h') FROM evpg.timer WHERE key = 'r1'));
soon(q(SELECT state ? 'rung' FROM evpg.saga_instance WHERE key = 'r1'), 'instances of the saga go on meanwhile [rule 16]');
repaired("SELECT count(*) = 1 FROM evpg.saga_instance WHERE key = 'r2'", 'a key function');
is(told($offset), 'a worker was cancelled in a batch of saga "reacts" of database "postgres"', 'the log tells once');

$offset = -s $node->logfile;
query(q(INSERT INTO cancelled VALUES ('timer'), ('command')));
query(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp() - interval '1 h') FROM evpg.timer WHERE key = 'r2'));
query(q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'b', 'Do')));
soon("SELECT count(*) = 2 FROM evpg.timer WHERE cancels >= 5", 'so are timers and scheduled commands [rule 17]');
is(query('SELECT sum(attempts) FROM evpg.timer WHERE cancels > 0'), '0', 'no attempt is counted [rule 17]');
repaired(q(SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'b'), 'a command');
soon(q(SELECT state ? 'rung' FROM evpg.saga_instance WHERE key = 'r2'), 'the timer fires');
like(told($offset), qr/^(?=.*a reaction of saga "reacts")(?=.*scheduled command \d+ of)(?:[^\n]*\n[^\n]*)$/s,
	'the log tells of each once');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
