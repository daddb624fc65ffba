# Rules 10, 16 and 17: a worker that waits keeps others from nothing.  What it cannot have within a moment it leaves for
# later, and counts no attempt: a stream that an open transaction holds, a table that somebody has locked.  User code that
# never returns is cancelled by evpg_pause_consumer() and whatever else needs what the worker holds.  Of a deadlock with a
# client the worker is the victim.
#
# There is one worker, and evpg.naptime is an hour: it goes around when it is woken, or has said when to.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT create_endless_function query soon);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = evpg_node('workers_wait', conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.naptime = 1h
evpg.workers = 1
EOC

# a statement that hangs fails
$ENV{PGOPTIONS} = '-c statement_timeout=60s';

my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'postgres');

sub setting
{
	my ($name, $value) = @_;

	query("ALTER SYSTEM SET $name = '$value'");
	query('SELECT pg_reload_conf()');
	soon("SELECT current_setting('$name') = '$value'", "$name = '$value'");
	# the worker reads it when it goes around
	return ok(worker_rounds($node, 'postgres', 1, 'SELECT evpg_set_clock_offset()'), 'a worker knows the setting');
}

# A session with an open transaction, which has executed that.
sub hold
{
	my ($statement) = @_;
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe($statement);
	return $session;
}

sub let_go
{
	my ($session) = @_;

	$session->query_safe('COMMIT');
	$session->quit;
	return;
}

sub append
{
	my ($type, $id, $data) = @_;

	return query(sprintf q(SELECT count(*) FROM evpg_append('thing', '%s', ARRAY[evpg_event('%s', '%s')])), $id, $type,
		$data // '{}');
}

create_endless_function();
query($_) foreach (
	q(CREATE FUNCTION handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE plpgsql AS $$
	  BEGIN
	    PERFORM go(command.command_type);
	    IF command.command_type <> 'Noop' THEN RETURN NEXT evpg_event(command.command_type, command.data); END IF;
	  END $$),
	q(CREATE FUNCTION apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$),
	q(SELECT evpg_register_aggregate('box', 'handle', 'apply')),
	q(SELECT evpg_register_aggregate('thing', 'handle', 'apply')),
	# a saga that sends where it is told to, and one that loops
	q(CREATE FUNCTION send(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$
	  SELECT evpg_reaction('{}', VARIADIC ARRAY(SELECT evpg_action_send('box', id,
	  	'Take') FROM jsonb_array_elements_text(event.data->'to') id)) $$),
	q(SELECT evpg_register_saga('sends', handler => 'send', event_types => '{Wanted}', max_attempts => 1)),
	q(CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
	  BEGIN PERFORM go('reaction'), go('stubborn'); RETURN evpg_reaction(state || jsonb_build_object(event.type, true));
	  	END $$),
	# projections: states, a table
	q(CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql
		AS $$ SELECT jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1) $$),
	q(SELECT evpg_register_projection('counts', 'count_apply', mode => 'async', aggregate_types => '{thing}')),
	q(CREATE TABLE listed (id text)),
	q(CREATE FUNCTION list(event evpg.event) RETURNS jsonb LANGUAGE sql
		AS $$ INSERT INTO listed VALUES (event.aggregate_id) RETURNING NULL::jsonb $$),
	q(SELECT evpg_register_projection('lists', handler => 'list', mode => 'async', aggregate_types => '{thing}',
		event_types => '{Listed}', tables => '{listed}')),
	q(CREATE FUNCTION loop_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql
		AS $$ BEGIN PERFORM go('projection'), go('stubborn'); RETURN coalesce(state, '{}'); END $$),
	q(CREATE FUNCTION loop_keys(event evpg.event) RETURNS text LANGUAGE plpgsql
		AS $$ BEGIN PERFORM go('keys'); RETURN event.aggregate_id; END $$));
soon("SELECT count(*) = 1 FROM ($worker) w", 'there is a worker');

# What others do goes on: another saga, a timer, projections.
my $others = 0;

sub others_go_on
{
	my ($name) = @_;

	$others++;
	append('Wanted', "other $others", qq({"to": ["for $others"]}));
	query("SELECT evpg_schedule_command(clock_timestamp(), 'box', 'timed $others', 'Ring')");
	soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'for $others'", "$name: another instance reacts");
	soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'timed $others'",
		"$name: a scheduled command is executed");
	return soon("SELECT count(*) = 1 FROM evpg.projected_state WHERE name = 'counts' AND key = 'other $others'",
		"$name: a projection goes on");
}

sub nothing_counts
{
	my ($name) = @_;

	# one may be under way
	is(query('SELECT count(*) FROM evpg.saga_event WHERE attempts > 1'), '0', "$name: no attempt of a saga is counted");
	is(query('SELECT count(*) FROM evpg.timer WHERE attempts > 1'), '0', "$name: nor of a timer");
	is(query('SELECT count(*) FROM evpg.dead_letter'), '0', "$name: there is no dead letter");
	return is(query("SELECT count(*) FROM evpg.consumer WHERE attempts > 0 OR status = 'stopped'"), '0',
		"$name: no failure of a consumer is counted");
}

# ------------------------------------------------------------------ locks

{
	query(q(SELECT count(*) FROM evpg_execute('box', 'L0', 'Made')));
	my $session = hold(q(SELECT count(*) FROM evpg_execute('box', 'L0', 'Noop')));

	query(q(SELECT count(*) FROM generate_series(1, 24) n, evpg_append('thing', 'sender ' || n,
	          ARRAY[evpg_event('Wanted', jsonb_build_object('to', ARRAY[CASE WHEN n <= 4 THEN 'L0' ELSE 'B' || n END]))])));
	soon(q(SELECT count(*) = 20 FROM evpg.event WHERE aggregate_id LIKE 'B%' AND type = 'Take'),
		'a stream is held: the other instances of the saga react [rule 16]');
	others_go_on('a stream is held [rule 16]');
	is(query(q(SELECT count(*) FROM evpg.saga_event)), '4', 'those that need it wait [rule 16]');
	nothing_counts('a stream is held [rule 16]');
	query(q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'L0', 'Ring')));
	others_go_on('a scheduled command needs it, too [rule 17]');
	nothing_counts('a scheduled command needs it, too [rule 17]');
	let_go($session);
	soon(q(SELECT count(*) FILTER (WHERE type = 'Take') = 4 AND count(*) FILTER (WHERE type = 'Ring') = 1 FROM evpg.event
		WHERE aggregate_id = 'L0'), 'when it is free all of them have it');
}

# What has failed before and has to wait does not come before what is new.  Several such reactions take turns: while one
# waits another becomes due, so with the defect the worker tries nothing else.  Nothing new is a timer: the worker begins
# with timers, and claims what is new along with them.
query($_) foreach q(CREATE FUNCTION send_later(state jsonb, event evpg.event) RETURNS evpg.reaction
	  LANGUAGE plpgsql AS $$
	  BEGIN IF EXISTS (SELECT FROM broken WHERE name = 'send') THEN RAISE 'broken'; END IF; RETURN send(state, event);
	  	END $$),
	  q(SELECT evpg_register_saga('sends later', handler => 'send_later', event_types => '{Later}', max_attempts => 1000,
	  	backoff => '100ms', max_backoff => '100ms'));
foreach my $mutation ('', 'failed_first')
{
	my $fresh = qq(FROM evpg.event WHERE aggregate_id LIKE 'fresh$mutation %' AND type = 'Take');

	setting('evpg.test_mutation', $mutation) if $mutation;
	my $session = hold(q(SELECT count(*) FROM evpg_execute('box', 'L0', 'Noop')));
	query(q(INSERT INTO broken VALUES ('send')));
	append('Later', "again$mutation $_", '{"to": ["L0"]}') foreach 1 .. 4;
	soon(q(SELECT count(*) = 4 FROM evpg.saga_event WHERE attempts > 1), 'reactions fail, and are tried again');
	query('DELETE FROM broken');
	soon("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = ($worker)",
		'repaired, one waits for a stream that is held');
	query(qq(SELECT count(*) FROM generate_series(1, 6) n, evpg_append('thing', 'wants$mutation ' || n,
		ARRAY[evpg_event('Wanted', jsonb_build_object('to', ARRAY['fresh$mutation ' || n]))])));
	if ($mutation)
	{
		foreach my $turn (1 .. 4)
		{
			my $before = query(q(SELECT max(retry_at) FROM evpg.saga_event));

			soon("SELECT max(retry_at) > '$before' FROM evpg.saga_event", "$mutation: one has waited in vain ($turn)");
		}
		is(query("SELECT count(*) $fresh"), '0', "$mutation: nothing new is done");
	}
	else
	{
		soon("SELECT count(*) = 6 $fresh", 'what has failed before waits for a stream: what is new is done [rule 16]');
		is(query(q(SELECT count(*) FROM evpg.saga_event)), '4', 'those that need it wait [rule 16]');
		others_go_on('what has failed before waits for a stream [rule 16]');
	}
	let_go($session);
	soon(q(SELECT NOT EXISTS (SELECT FROM evpg.saga_event)), 'when it is free all of them have it');
}
setting('evpg.test_mutation', '');
query(q(SELECT evpg_drop_saga('sends later')));

{
	my $session = hold('LOCK TABLE listed IN SHARE MODE');

	append('Listed', 'l1');
	soon(q(SELECT last_sqlstate = '55P03' AND status = 'running' AND attempts = 0 FROM evpg.consumer WHERE name = 'lists'),
		'a table of a projection is locked: it is put off [rule 10]');
	others_go_on('a table of a projection is locked [rule 10]');
	nothing_counts('a table of a projection is locked [rule 10]');
	let_go($session);
	soon(q(SELECT count(*) = 1 FROM listed), 'when it is free the projection goes on');
}

foreach my $table (qw(consumer dead_letter saga_event saga_instance timer rebuild old_build activation))
{
	my $session = hold("LOCK TABLE evpg.$table IN ACCESS EXCLUSIVE MODE");

	query(q(SELECT count(*) FROM evpg_append('thing', 'while', ARRAY[evpg_event('Wanted', '{"to": ["C"]}')])));
	soon("SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'evpg.$table'::regclass AND pid = ($worker)",
		"a worker waits for evpg.$table");
	# longer than one wait
	my $before = query("SELECT xact_start FROM pg_stat_activity WHERE pid = ($worker)");
	soon("SELECT xact_start > '$before' FROM pg_stat_activity WHERE pid = ($worker)", "which it does more than once");
	let_go($session);
	others_go_on("after evpg.$table was locked");
	soon("SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)", 'all is done');
	nothing_counts("after evpg.$table was locked");
}

# claimed, and counted, before somebody locks the table
foreach my $table (qw(saga_event timer))
{
	my $blocker = $node->background_psql('postgres');

	$blocker->query_safe("SELECT pg_advisory_lock($wait_key)");
	setting('evpg.test_wait', 'saga_claimed');
	query(q(SELECT count(*) FROM generate_series(1, 3) n,
		evpg_append('thing', 'claimed ' || n, ARRAY[evpg_event('Wanted', '{"to": ["C"]}')])));
	query(q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'claimed', 'Ring')));
	soon("SELECT count(*) = 1 FROM ($waiters) w", 'a worker has claimed');
	my $session = hold("LOCK TABLE evpg.$table IN EXCLUSIVE MODE");
	$blocker->quit;
	soon("SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'evpg.$table'::regclass AND pid = ($worker)",
		"evpg.$table is locked after that");
	my $before = query("SELECT xact_start FROM pg_stat_activity WHERE pid = ($worker)");
	soon("SELECT xact_start > '$before' FROM pg_stat_activity WHERE pid = ($worker)", "the worker waits more than once");
	let_go($session);
	soon("SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.timer)", 'all is done');
	nothing_counts("evpg.$table was locked after the claim");
	setting('evpg.test_wait', '');
}

# ------------------------------------------------------------------ code without end

# Waits until code of that name is at work, given how it is begun.
sub begin_loop
{
	my ($name, $what, @begin) = @_;

	query("INSERT INTO broken VALUES ('$name')");
	query($_) foreach @begin;
	return soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", "$what does not return");
}

sub repair
{
	return query('DELETE FROM broken');
}

# A statement ends that needs what the worker has; the worker is another one only if a cancel was not enough.
sub ends
{
	my ($statement, $name, $terminated) = @_;
	my $before = query($worker);

	query($statement);
	pass("$statement ends: $name");
	soon("SELECT count(*) = 1 FROM ($worker) w", 'there is a worker');
	return $terminated ? isnt(query($worker), $before, 'a worker that did not end is replaced by another one')
		: is(query($worker), $before, 'a worker that was cancelled is the same process');
}

# The errors of the projection "loops".
sub errors
{
	return query(q(SELECT concat_ws(' ', errors_total, last_error, last_sqlstate, last_error_at) FROM evpg.stat_consumer
		WHERE name = 'loops'));
}

my $loops = q(SELECT evpg_register_projection('loops', 'loop_apply', mode => 'async', key_function => 'loop_keys',
	aggregate_types => '{thing}', event_types => '{Looped}', on_error => 'skip', max_attempts => 1));
my $position = q((SELECT max(position) FROM evpg.event WHERE type = 'Looped'));

query($loops);
foreach my $code ('projection', 'keys')
{
	begin_loop($code, "$code of a projection", q(SELECT FROM evpg_append('thing', 'loop', ARRAY[evpg_event('Looped')])));
	is(query(q(SELECT worker_pid FROM evpg.stat_consumer WHERE name = 'loops')), query($worker),
		"$code: evpg.stat_consumer shows who works");
	ends(q(SELECT evpg_pause_consumer('loops')), $code);
	others_go_on("$code: paused");
	is(query(q(SELECT status || ' ' || attempts FROM evpg.consumer WHERE name = 'loops')), 'paused 0',
		"$code: nothing is counted");
	is(errors(), '0', "$code: a worker that was cancelled is no error of the consumer [rule 10]");
	query(q(SELECT evpg_resume_consumer('loops')));
	soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", "$code: resumed it is called again");
	ends(q(SELECT evpg_resume_consumer('loops')), $code);
	soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", "$code: and again");
	ends(qq(SELECT evpg_skip_event('loops', $position, 'loops')), $code);
	is(errors(), '0', "$code: nor one that was cancelled by evpg_resume_consumer or evpg_skip_event [rule 10]");
	soon(qq(SELECT checkpoint >= $position FROM evpg.consumer WHERE name = 'loops'), "$code: skipped, it goes on");
	is(query(q(SELECT count(*) FROM evpg.parked_event WHERE name = 'loops' AND skip_reason = 'loops')), '1', "$code: once");
	query(q(SELECT FROM evpg_append('thing', 'loop', ARRAY[evpg_event('Looped')])));
	soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", "$code: the next event loops");
	ends(q(SELECT evpg_drop_projection('loops')), $code);
	repair();
	query($loops);
	others_go_on("$code: dropped");
	begin_loop($code, "$code of a rebuild", q(SELECT evpg_rebuild_projection('loops', background => true)));
	query(qq(SELECT pg_cancel_backend(pid) FROM ($worker) w));
	soon(q(SELECT retry_at IS NOT NULL FROM evpg.rebuild WHERE name = 'loops'), "$code of a rebuild: it is put off");
	is(query(q(SELECT last_error, attempts FROM evpg.progress_rebuild WHERE name = 'loops')),
		'canceling statement due to user request|0', "$code of a rebuild: that is told, and no attempt [rule 13]");
	soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", "$code of a rebuild: it goes on");
	ends(q(SELECT evpg_cancel_rebuild('loops')), "$code of a rebuild");
	repair();
	soon(qq(SELECT checkpoint >= $position FROM evpg.consumer WHERE name = 'loops'), "$code: repaired, it goes on");
}

my $saga = q(SELECT evpg_register_saga('reacts', handler => 'react', event_types => '{Asked}', max_attempts => 1));

query($saga);
begin_loop('reaction', 'a reaction',
	q(SELECT FROM generate_series(1, 5) n, evpg_append('thing', 'asks ' || n, ARRAY[evpg_event('Asked')])));
is(query(q(SELECT worker_pid FROM evpg.stat_consumer WHERE name = 'reacts')), query($worker),
	'a reaction: evpg.stat_consumer shows who works');
ends(q(SELECT evpg_pause_consumer('reacts')), 'a reaction');
others_go_on('a reaction: paused');
nothing_counts('a reaction: paused');
repair();
query(q(SELECT evpg_resume_consumer('reacts')));
soon(q(SELECT count(*) = 5 FROM evpg.saga_instance WHERE saga = 'reacts'),
	'a reaction: repaired and resumed, all instances react');
begin_loop('reaction', 'a reaction', q(SELECT FROM evpg_append('thing', 'asks 6', ARRAY[evpg_event('Asked')])));
query(qq(SELECT pg_cancel_backend(pid) FROM ($worker) w));
others_go_on('an operator cancels the worker, whose reaction is repaired') if repair() eq '';
soon(q(SELECT count(*) = 6 FROM evpg.saga_instance WHERE saga = 'reacts'), 'a cancel is no failure: it is tried again');
nothing_counts('a cancel by an operator');
begin_loop('reaction', 'a reaction', q(SELECT FROM evpg_append('thing', 'asks 7', ARRAY[evpg_event('Asked')])));
ends(q(SELECT evpg_register_saga('reacts', handler => 'react', event_types => '{Asked}', max_attempts => 2)), 'a reaction');
soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", 'it is tried again');
ends(q(SELECT evpg_drop_saga('reacts')), 'a reaction');
others_go_on('a reaction: dropped');
repair();

query(q(SELECT evpg_register_saga('reacts', handler => 'react', event_types => '{Asked}', key_function => 'loop_keys')));
begin_loop('keys', 'keys of a saga', q(SELECT FROM evpg_append('thing', 'keyed', ARRAY[evpg_event('Asked')])));
ends(q(SELECT evpg_pause_consumer('reacts')), 'keys of a saga');
others_go_on('keys of a saga: paused');
repair();
query(q(SELECT evpg_resume_consumer('reacts')));
soon(q(SELECT count(*) = 1 FROM evpg.saga_instance WHERE key = 'keyed'), 'keys of a saga: repaired and resumed, it goes on');

begin_loop('Endless', 'a scheduled command',
	q(SELECT evpg_schedule_command(clock_timestamp(), 'box', 'endless', 'Endless')));
ends(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp() + interval '1 h') FROM evpg.timer), 'a scheduled command');
others_go_on('a scheduled command: moved');
nothing_counts('a scheduled command: moved');
query(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp()) FROM evpg.timer));
soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", 'it is tried again');
ends(q(SELECT evpg_cancel_timer(timer_id) FROM evpg.timer), 'a scheduled command');
others_go_on('a scheduled command: cancelled');
repair();

# a timer of a saga
query($_) foreach q(CREATE FUNCTION set_timer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql
	  AS $$ SELECT evpg_reaction('{}', evpg_action_schedule('t', due_at => '2020-01-01')) $$),
	q(CREATE FUNCTION ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE plpgsql
	  AS $$ BEGIN PERFORM go('timer'), go('stubborn'); RETURN evpg_reaction('{"rung": true}'); END $$),
	q(SELECT evpg_register_saga('rings', handler => 'set_timer', timer_handler => 'ring', event_types => '{Set}',
		max_attempts => 1));
begin_loop('timer', 'a timer', q(SELECT FROM evpg_append('thing', 'rings', ARRAY[evpg_event('Set')])));
ends(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp() + interval '1 h') FROM evpg.timer), 'a timer [rule 17]');
others_go_on('a timer: moved');
nothing_counts('a timer: moved');
is(query('SELECT count(*) FROM evpg.timer'), 1, 'a timer: it was moved [rule 17]');
query(q(SELECT evpg_reschedule_timer(timer_id, clock_timestamp()) FROM evpg.timer));
soon("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = ($worker)", 'a timer: it is tried again');
ends(q(SELECT evpg_cancel_timer(timer_id) FROM evpg.timer), 'a timer [rule 17]');
others_go_on('a timer: cancelled');
is(query(q(SELECT state ? 'rung' FROM evpg.saga_instance WHERE saga = 'rings')), 'f', 'a timer: it has not fired [rule 17]');
repair();
begin_loop('stubborn', 'a timer that catches a cancel',
	q(SELECT FROM evpg_append('thing', 'rings caught', ARRAY[evpg_event('Set')])));
ends(q(SELECT evpg_cancel_timer(timer_id) FROM evpg.timer), 'a timer that catches a cancel', 'terminated');
repair();
query(q(SELECT evpg_drop_saga('rings')));

# code that catches the cancel
begin_loop('stubborn', 'a projection that catches a cancel',
	q(SELECT FROM evpg_append('thing', 'loop', ARRAY[evpg_event('Looped')])));
ends(q(SELECT evpg_pause_consumer('loops')), 'a projection that catches a cancel', 'terminated');
others_go_on('a projection that catches a cancel: paused');
repair();
query(q(SELECT evpg_resume_consumer('loops')));
begin_loop('stubborn', 'a reaction that catches a cancel',
	q(SELECT FROM evpg_append('thing', 'caught', ARRAY[evpg_event('Asked')])));
ends(q(SELECT evpg_pause_consumer('reacts')), 'a reaction that catches a cancel', 'terminated');
others_go_on('a reaction that catches a cancel: paused');
repair();
query(q(SELECT evpg_resume_consumer('reacts')));
soon(q(SELECT count(*) = 1 FROM evpg.saga_instance WHERE key = 'caught'),
	'a reaction that catches a cancel: repaired and resumed, it goes on');

# a worker that does nothing
{
	my $before = query($worker);

	query(qq(SELECT pg_cancel_backend(pid) FROM ($worker) w));
	others_go_on('an idle worker was cancelled');
	is(query($worker), $before, 'the worker is the same process after a cancel');
}

# the caller's own timeout
begin_loop('projection', 'a projection', q(SELECT FROM evpg_append('thing', 'loop', ARRAY[evpg_event('Looped')])));
is(sqlstate($node, q(SET lock_timeout = '100ms'; SELECT evpg_pause_consumer('loops'))), '55P03',
	'lock_timeout of who pauses holds');
ends(q(SELECT evpg_drop_projection('loops')), 'then');
repair();

# ------------------------------------------------------------------ deadlocks

query(q(SELECT count(*) FROM unnest('{A,B}'::text[]) id, evpg_execute('box', id, 'Made')));

# The worker has A and wants B, the client has B and wants A; both orders.
foreach my $first ('the worker', 'the client')
{
	my $blocker = $node->background_psql('postgres');
	my $client = $node->background_psql('postgres', on_error_stop => 0);

	# after the first send
	$blocker->query_safe("SELECT pg_advisory_lock($wait_key)");
	setting('evpg.test_wait', 'saga_sent:1');
	append('Wanted', "locks after $first", '{"to": ["A", "B"]}');
	soon("SELECT count(*) = 1 FROM ($waiters) w", 'a worker has a stream');
	$client->query_safe('BEGIN');
	$client->query_safe(q(SELECT count(*) FROM evpg_execute('box', 'B', 'Noop')));
	if ($first eq 'the worker')
	{
		$blocker->quit;
		soon("SELECT wait_event_type = 'Lock' AND NOT EXISTS ($waiters) FROM pg_stat_activity WHERE pid = ($worker)",
			'the worker wants what the client has');
	}
	$client->query_until(qr/begun/,
		qq(\\echo begun\nSELECT count(*) FROM evpg_execute('box', 'A', 'Noop');\n\\echo '<' :SQLSTATE '>'\n));
	if ($first eq 'the client')
	{
		soon(q(SELECT count(*) = 1 FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND wait_event_type = 'Lock' AND query LIKE '%evpg_execute%'),
			'the client wants what the worker has');
		$blocker->quit;
	}
	like($client->query_until(qr/<[^>]*>/, ''), qr/< 00000 >/, "$first waits first: the client gets what it wants");
	let_go($client);
	soon(qq(SELECT NOT EXISTS (SELECT FROM evpg.saga_event)
		AND EXISTS (SELECT FROM evpg.saga_instance WHERE key = 'locks after $first')),
		'the worker does its work after the client');
	nothing_counts("a deadlock, $first waits first");
	setting('evpg.test_wait', '');
}
is(query(q(SELECT count(*) FROM evpg.event WHERE aggregate_id IN ('A', 'B') AND type = 'Take')), '4',
	'each send is made once');

# ------------------------------------------------------------------ woken while a pass ends

# Who commits between the last look of a pass and its end wakes the worker once; with the defect that is forgotten. Consumers
# that find nothing would have the worker go around again after a second, to write their checkpoints.
query($_) foreach q(SELECT evpg_drop_projection('lists')), q(SELECT evpg_drop_saga('sends')),
	q(SELECT evpg_drop_saga('reacts'));
foreach my $mutation ('', 'woken_late')
{
	my $blocker = $node->background_psql('postgres');
	my $key = "second$mutation";

	$blocker->query_safe("SELECT pg_advisory_lock($wait_key)");
	setting('evpg.test_mutation', $mutation) if $mutation;
	query(q(ALTER SYSTEM SET evpg.test_wait = 'pass_ended'));
	query('SELECT pg_reload_conf()');
	# one to read the setting, one to wait
	foreach (1 .. 50)
	{
		append('Noted', 'first');
		last if query("SELECT count(*) FROM ($waiters) w") > 0;
	}
	soon("SELECT count(*) = 1 FROM ($waiters) w", 'a pass is through but for its end');
	append('Noted', $key);
	query(q(ALTER SYSTEM SET evpg.test_wait = ''));
	$blocker->quit;
	if ($mutation)
	{
		soon("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = ($worker)", "$mutation: the worker sleeps");
		is(query(qq(SELECT count(*) FROM evpg.projected_state WHERE name = 'counts' AND key = '$key')), '0',
			"$mutation: and has forgotten what was committed meanwhile");
	}
	else
	{
		soon(qq(SELECT count(*) = 1 FROM evpg.projected_state WHERE name = 'counts' AND key = '$key'),
			'what is committed before a pass has ended is done, though nobody wakes the worker again');
	}
	query('SELECT pg_reload_conf()');
}

$node->stop;
my $log = slurp_file($node->logfile);
unlike($log, qr/\] (?:ERROR:  canceling statement|WARNING:  .*could not be run)/,
	'the log of workers says nothing of waits');
is(join("\n", $log =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
