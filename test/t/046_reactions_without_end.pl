# Rules 16 and 17: a reaction, a timer or a scheduled command that never returns holds up its own instance, and nothing else.
# What its worker has claimed and not begun is done by others, each thing once, also if that worker is cancelled, terminated
# or killed later.  Code that does not return, of whatever kind, does not get the last worker of a database.
#
# evpg.naptime is an hour: workers go around when they are woken, or have said when to.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT create_endless_function query soon);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('without_end', conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
restart_after_crash = on
evpg.test_mutation = 'hasty_launcher'
evpg.naptime = 1h
evpg.workers = 0
EOC

# a statement that hangs fails
$ENV{PGOPTIONS} = '-c statement_timeout=60s';

my $workers = q(FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'postgres');
my $hanging = "$workers AND wait_event = 'PgSleep'";

# Lets so many workers run; the first ones stay.
sub set_workers
{
	my ($count) = @_;

	query("ALTER SYSTEM SET evpg.workers = $count");
	query('SELECT pg_reload_conf()');
	return soon("SELECT count(*) = $count $workers", "there are $count workers");
}

create_endless_function();
query($_) foreach (
	q(CREATE FUNCTION handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go(command.command_type); RETURN evpg_event(command.command_type); END $$),
	q(CREATE FUNCTION apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$),
	q(SELECT evpg_register_aggregate('box', 'handle', 'apply')),
	q(SELECT evpg_register_aggregate('thing', 'handle', 'apply')),
	# all count what they have reacted to, and send one command for each
	q(CREATE FUNCTION counted(state jsonb, source text) RETURNS evpg.reaction LANGUAGE sql AS $$
	  SELECT evpg_reaction(jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1),
	    evpg_action_send('box', 'from ' || source, 'Take')) $$),
	q(CREATE FUNCTION hangs(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN
	    IF event.data ? 'hang' THEN PERFORM go(event.data->>'hang'); END IF;
	    RETURN counted(state, 'hangs ' || event.aggregate_id);
	  END $$),
	q(CREATE FUNCTION fine(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
	  SELECT counted(state, 'fine ' || event.aggregate_id) $$),
	q(CREATE FUNCTION sets(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
	  SELECT evpg_reaction('{}', evpg_action_schedule('t', due_at => '2020-01-01')) $$),
	q(CREATE FUNCTION rings(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
	  SELECT counted(state, 'timer ' || timer.key) $$),
	q(CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql
		AS $$ SELECT jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1) $$),
	q(SELECT evpg_register_projection('counts', 'count_apply', mode => 'async', aggregate_types => '{thing}')),
	q(SELECT evpg_register_saga('a hangs', handler => 'hangs', event_types => '{Asked}', max_attempts => 1)),
	q(SELECT evpg_register_saga('fine 1', handler => 'fine', event_types => '{Asked}', max_attempts => 1)),
	q(SELECT evpg_register_saga('fine 2', handler => 'fine', event_types => '{Asked}', max_attempts => 1)),
	q(SELECT evpg_register_saga('sets', handler => 'sets', timer_handler => 'rings', event_types => '{Set}',
		max_attempts => 1)));

# Appends an event for each of these streams; the instances of "a hangs" hang as long as code of that name is broken.
sub ask
{
	my ($hang, @ids) = @_;
	my $ids = join ',', @ids;

	return query("SELECT count(*) FROM unnest('{$ids}'::text[]) id,
		evpg_append('thing', id, ARRAY[evpg_event('Asked', '{$hang}')])");
}

# What must have come of an event of each of so many streams of a name: three reactions, each once, with a command each.
sub all_once
{
	my ($name, $count, $but, $label) = @_;

	is(query("SELECT saga, count(*), sum((state->>'seen')::int), max(version) FROM evpg.saga_instance
		WHERE key LIKE '$name%' AND saga <> 'sets' GROUP BY 1 ORDER BY 1"),
		join("\n", map({ $_->[1] ? "$_->[0]|$_->[1]|$_->[1]|1" : () } [ 'a hangs', $count - $but ], [ 'fine 1', $count ],
			[ 'fine 2', $count ])), "$label: each reacts once [rule 16]");
	return is(query("SELECT count(*) FROM evpg.event WHERE type = 'Take' AND (aggregate_id LIKE 'from fine $name%'
		OR aggregate_id LIKE 'from hangs $name%')"), 3 * $count - $but, "$label: each sends once [rule 16]");
}

sub nothing_counts
{
	my ($name) = @_;

	is(query('SELECT count(*) FROM evpg.dead_letter'), '0', "$name: there is no dead letter [rule 17]");
	return is(query('SELECT count(*) FROM evpg.saga_event WHERE attempts > 1')
		+ query('SELECT count(*) FROM evpg.timer WHERE attempts > 1'), 0, "$name: no attempt is counted [rule 17]");
}

# ------------------------------------------------------------------ what was claimed together with it

# One worker claims all that is due, and begins with what never returns; then there is another one.
my $count = 12;

foreach my $end ('cancelled', 'terminated', 'killed')
{
	my $name = "$end ";
	my $left = "SELECT count(*) FROM evpg.saga_event WHERE NOT (saga = 'a hangs' AND key = '${name}1')";

	set_workers(0);
	query(q(INSERT INTO broken VALUES ('once')));
	query("SELECT count(*) FROM generate_series(1, 3) n,
		evpg_append('thing', '${name}set ' || n, ARRAY[evpg_event('Set')])");
	query('SELECT evpg_run_sagas(3)');
	ask('"hang": "once"', "${name}1");
	ask('', map { "$name$_" } 2 .. $count);
	query("SELECT evpg_schedule_command(clock_timestamp(), 'box', '${name}timed ' || n, 'Ring')
		FROM generate_series(1, 3) n");
	is(query('SELECT dispatched FROM evpg_run_sagas(0)'), '0', "$end: all is routed");
	is(query('SELECT count(*) FROM evpg.saga_event'), 3 * $count, "$end: nothing is done");
	set_workers(1);
	soon("SELECT count(*) = 1 $hanging", "$end: a reaction never returns");
	is(query('SELECT count(*) > 10 FROM evpg.saga_event WHERE attempts = 1'), 't', "$end: its worker has claimed others");
	my $worker = query("SELECT pid $hanging");
	set_workers(2);
	soon("SELECT ($left) = 0", "$end: another worker does what was claimed with it [rule 16]");
	soon('SELECT NOT EXISTS (SELECT FROM evpg.timer)', "$end: timers and scheduled commands, too [rule 17]");
	is(query("SELECT pid $hanging"), $worker, "$end: while it hangs");
	all_once($name, $count, 1, "$end: while it hangs");
	nothing_counts("$end: while it hangs");
	query('DELETE FROM broken');
	query("SELECT pg_cancel_backend($worker)") if $end eq 'cancelled';
	query("SELECT pg_terminate_backend($worker)") if $end eq 'terminated';
	if ($end eq 'killed')
	{
		kill('KILL', $worker);
		$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $worker)")
		  or die 'the server does not restart';
	}
	soon('SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)',
		"$end: then all is done");
	all_once($name, $count, 0, "$end: at last");
	is(query("SELECT count(*) FROM evpg.event WHERE type = 'Ring' AND aggregate_id LIKE '${name}%'"), '3',
		"$end: each command is executed once [rule 17]");
	is(query("SELECT count(*) FROM evpg.event WHERE type = 'Take' AND aggregate_id LIKE 'from timer $name%'"), '3',
		"$end: each timer fires once [rule 17]");
	nothing_counts("$end: at last");
}

# ------------------------------------------------------------------ while the others sleep

set_workers(2);
foreach my $n (1 .. 3)
{
	soon("SELECT count(*) = 2 $workers AND state = 'idle'", "$n: both workers sleep");
	query(q(INSERT INTO broken VALUES ('once')));
	ask('"hang": "once"', "asleep $n");
	soon("SELECT count(*) = 1 $hanging", "$n: a reaction never returns");
	soon("SELECT count(*) = 2 FROM evpg.saga_instance WHERE key = 'asleep $n'",
		"$n: other sagas react to the same event, though the other worker slept [rule 16]");
	all_once("asleep $n", 1, 1, $n);
	# what comes for the instance waits, what comes for others does not, also when the reaction has occupied its worker
	soon("SELECT count(*) = 1 FROM evpg.stat_worker WHERE lasts > interval '2 s'", "$n: its worker is occupied") if $n > 1;
	ask('', "asleep $n", "awake $n");
	soon("SELECT count(*) = 3 FROM evpg.saga_instance WHERE key = 'awake $n'", "$n: other instances react [rule 16]");
	is(query("SELECT string_agg(attempts::text, ' ' ORDER BY position) FROM evpg.saga_event"), '1 0',
		"$n: what comes later for the same instance waits [rule 16]");
	query('DELETE FROM broken');
	query("SELECT pg_cancel_backend(pid) $hanging");
	soon("SELECT state->>'seen' = '2' FROM evpg.saga_instance WHERE saga = 'a hangs' AND key = 'asleep $n'",
		"$n: then it reacts to both");
}
nothing_counts('asleep');

# ------------------------------------------------------------------ the last worker

# So many things hang as there are workers; what others do goes on.
my $others = 0;

sub others_go_on
{
	my ($label) = @_;
	my $name = 'other ' . ++$others;

	ask('', $name);
	query("SELECT count(*) FROM evpg_append('thing', '$name', ARRAY[evpg_event('Set')])");
	soon("SELECT count(*) = 2 FROM evpg.saga_instance WHERE key = '$name' AND saga LIKE 'fine%'",
		"$label: other sagas react [rule 16]");
	soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'from timer $name'", "$label: timers fire [rule 17]");
	return soon("SELECT state->>'count' = '2' FROM evpg.projected_state WHERE name = 'counts' AND key = '$name'",
		"$label: projections go on [rule 10]");
}

foreach my $number (2, 3)
{
	foreach my $code ('once', 'stubborn')
	{
		my $label = "$number workers $code";
		my $offset = -s $node->logfile;

		set_workers($number);
		query("INSERT INTO broken VALUES ('$code')");
		ask(qq("hang": "$code"), map { "$label $_" } 1 .. $number + 1);
		soon("SELECT count(*) = $number - 1 $hanging", "$label: reactions of a saga occupy all workers but one");
		others_go_on("$label: while they do");
		soon("SELECT count(*) = $number - 1 $hanging", "$label: the last worker is left");
		others_go_on("$label: later");
		nothing_counts($label);
		query('DELETE FROM broken');
		# those that are stubborn are terminated
		query("SELECT pg_terminate_backend(pid) $hanging");
		soon('SELECT NOT EXISTS (SELECT FROM evpg.saga_event)', "$label: repaired, all react");
		all_once($label, $number + 1, 0, $label);
		nothing_counts("$label: repaired");
		my $log = substr(slurp_file($node->logfile), $offset);
		like($log, qr/WARNING:  a reaction of saga "a hangs" of database "postgres" was cancelled/,
			"$label: the log of the server names the saga") if $code eq 'once';
	}
}

# scheduled commands are together like a saga; what had all workers before is forgotten by a restart
$node->restart;
set_workers(2);
query(q(INSERT INTO broken VALUES ('Endless')));
query(q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'endless ' || n, 'Endless') FROM generate_series(1, 3) n));
soon("SELECT count(*) = 1 $hanging", 'scheduled commands that never return occupy all workers but one');
ask('', 'beside commands');
soon("SELECT count(*) = 3 FROM evpg.saga_instance WHERE key = 'beside commands'", 'sagas react [rule 16]');
query('DELETE FROM broken');
query("SELECT pg_cancel_backend(pid) $hanging");
soon('SELECT NOT EXISTS (SELECT FROM evpg.timer)', 'repaired, all commands are executed');
is(query(q(SELECT count(*), max(version) FROM evpg.event WHERE type = 'Endless')), '3|1', 'each once [rule 17]');

# ------------------------------------------------------------------ the last worker, and different code that hangs

# Each begins something that never returns.
query($_) foreach (
	q(CREATE FUNCTION hangs_too(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('reaction'); RETURN evpg_reaction('{}'); END $$),
	q(CREATE FUNCTION hang_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('projection'); RETURN '{}'; END $$),
	q(CREATE FUNCTION hang_keys(event evpg.event) RETURNS text LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('keys'); RETURN event.aggregate_id; END $$),
	q(SELECT evpg_register_aggregate('rebuilt')),
	q(SELECT evpg_register_projection('rebuilt', 'hang_apply', aggregate_types => '{rebuilt}')),
	q(SELECT FROM evpg_append('rebuilt', 'r', ARRAY[evpg_event('Made')])),
	q(SELECT evpg_register_projection('hangs 1', 'hang_apply', mode => 'async', event_types => '{HangBatch}')),
	q(SELECT evpg_register_projection('hangs 2', 'hang_apply', mode => 'async', event_types => '{HangBatch}')),
	q(SELECT evpg_register_saga('b hangs', handler => 'hangs_too', event_types => '{HangReaction}', max_attempts => 1)),
	q(SELECT evpg_register_saga('c hangs', handler => 'hangs_too', event_types => '{HangReaction}', max_attempts => 1)),
	q(SELECT evpg_register_saga('keys hang', handler => 'fine', event_types => '{HangKeys}', key_function => 'hang_keys',
		max_attempts => 1)));
my %begin = (
	reactions => q(SELECT FROM evpg_append('thing', 'hanging', ARRAY[evpg_event('HangReaction')])),
	projections => q(SELECT FROM evpg_append('thing', 'hanging', ARRAY[evpg_event('HangBatch')])),
	routing => q(SELECT FROM evpg_append('thing', 'hanging', ARRAY[evpg_event('HangKeys')])),
	rebuild => q(SELECT evpg_rebuild_projection('rebuilt', background => true)),
	commands => q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'hanging ' || n, 'Endless')
		FROM generate_series(1, 2) n));
my @codes = ('reaction', 'projection', 'keys', 'Endless');

foreach my $case ([ 2, 'reactions' ], [ 2, 'projections' ], [ 2, 'commands' ], [ 2, 'routing', 'rebuild' ],
	[ 2, 'projections', 'reactions' ], [ 3, 'reactions', 'commands' ], [ 3, sort keys %begin ])
{
	my ($number, @kinds) = @$case;
	my $label = "$number workers: " . join ' and ', @kinds;

	set_workers($number);
	query("INSERT INTO broken SELECT unnest('{" . join(',', @codes) . "}'::text[])");
	query($begin{$_}) foreach @kinds;
	soon("SELECT count(*) = $number - 1 FROM evpg.stat_worker WHERE lasts > interval '3 s'",
		"$label: evpg.stat_worker shows what occupies all workers but one");
	others_go_on("$label: beside code that hangs");
	others_go_on("$label: later");
	nothing_counts($label);
	is(query("SELECT count(*) FROM evpg.consumer WHERE attempts > 0 OR status = 'stopped'"), '0',
		"$label: nor of a projection [rule 10]");
	query('DELETE FROM broken');
	query("SELECT pg_cancel_backend(pid) $hanging");
	soon(q(SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)
		AND NOT EXISTS (SELECT FROM evpg.rebuild)
		AND NOT EXISTS (SELECT FROM evpg.consumer WHERE evpg_wait_for(name, evpg_stable_position(), '20 s') IS NOT TRUE)),
		"$label: repaired, all is done");
	soon("SELECT count(*) = $number $workers", "$label: all workers are there");
}
like(slurp_file($node->logfile), qr/WARNING:  \Q$_\E of database "postgres" was cancelled/, "the log tells of $_")
  foreach ('a batch of projection "hangs 2"', 'a scheduled command');

# What has been cancelled before takes turns: the mutation lets the pause between two of them not end.
my $offset = -s $node->logfile;

set_workers(2);
query(q(ALTER SYSTEM SET evpg.test_mutation = 'long_restrained'));
query('SELECT pg_reload_conf()');
query("INSERT INTO broken SELECT unnest('{" . join(',', @codes) . "}'::text[])");
query($begin{$_}) foreach 'reactions', 'projections', 'commands';
soon("SELECT count(*) = 1 FROM evpg.stat_worker WHERE lasts > interval '3 s'", 'turns: one of two workers hangs');
others_go_on("turns: $_") foreach 1 .. 3;
my @turns = substr(slurp_file($node->logfile), $offset) =~ /WARNING:  (.* was cancelled)$/mg;
cmp_ok(scalar(@turns), '<=', 1, 'of all that has kept the last worker before, one thing has it at a time [rule 16]')
  or diag(join "\n", @turns);
nothing_counts('turns');
query('DELETE FROM broken');
query("SELECT pg_cancel_backend(pid) $hanging");
soon(q(SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)
	AND NOT EXISTS (SELECT FROM evpg.consumer WHERE evpg_wait_for(name, evpg_stable_position(), '20 s') IS NOT TRUE)),
	'turns: repaired, all is done, the pause or not');
$node->restart;

# what is slow, and does not hang, comes to its end while others hang: it may have the last worker for longer each time
set_workers(2);
query(q(ALTER SYSTEM SET evpg.test_mutation = 'briefly_restrained'));
query('SELECT pg_reload_conf()');
query($_) foreach (
	q(CREATE FUNCTION slow(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM pg_sleep(5); RETURN evpg_reaction('{"slow": true}'); END $$),
	q(CREATE FUNCTION slow_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
	  BEGIN PERFORM pg_sleep(CASE WHEN event.data ? 'slow' THEN 5 ELSE 0 END); RETURN '{}'; END $$),
	q(SELECT evpg_register_saga('slow', handler => 'slow', event_types => '{Slowly}', max_attempts => 1)),
	q(SELECT evpg_register_projection('slow batch', 'slow_apply', mode => 'async', event_types => '{Slowly}',
		max_attempts => 1)),
	q(INSERT INTO broken VALUES ('reaction')),
	q(SELECT evpg_drop_saga('c hangs')),
	$begin{reactions});
soon("SELECT count(*) = 1 FROM evpg.stat_worker WHERE lasts > interval '3 s'", 'one of two workers hangs');
query(q(SELECT FROM generate_series(1, 3) n, evpg_append('thing', 'slow ' || n,
	ARRAY[evpg_event('Slowly', CASE WHEN n = 2 THEN '{"slow": 1}'::jsonb ELSE '{}' END)])));
soon("SELECT count(*) = 3 FROM evpg.saga_instance WHERE saga = 'slow'",
	'reactions of 5 seconds come to their end on the last worker [rule 16]');
soon("SELECT count(*) = 3 FROM evpg.projected_state WHERE name = 'slow batch'",
	'a projection that takes 5 seconds for an event comes to its end on the last worker [rule 10]');
soon("SELECT count(*) = 1 FROM evpg.stat_worker WHERE calls = 'a reaction of a saga' AND name = 'b hangs'",
	'the other one still hangs, evpg.stat_worker shows in what');
nothing_counts('slow');

# the mutation lets the times seem late that are stored in units that wrap around
query(q(ALTER SYSTEM SET evpg.test_mutation = 'years_later'));
query('SELECT pg_reload_conf()');
query(q(SELECT evpg_drop_saga('slow')));
query(q(SELECT FROM evpg_append('thing', 'slow 4', ARRAY[evpg_event('Slowly')])));
soon("SELECT count(*) = 1 FROM evpg.projected_state WHERE name = 'slow batch' AND key = 'slow 4'",
	'years later, a projection is not kept from the last worker again [rule 10]');
query('DELETE FROM broken');
query("SELECT pg_cancel_backend(pid) $hanging");
soon('SELECT NOT EXISTS (SELECT FROM evpg.saga_event)', 'repaired, all react');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
