# Sagas without workers, run by sessions that CALL evpg_run(), rules 16 to 18:
#
# - A test of crashes and of concurrency must notice a saga that does not keep the rules.  The same schedules run with the
# code as it
#   is, where nothing may be wrong, and with each of these defects, where something must be:
#
#     early       an event is taken away when its attempt is counted, in a transaction before that of the reaction
#     kept        an event is not taken away by the reaction
#     new_ids     a command gets a new id each time, instead of one that is derived
#     unflushed   the attempt is counted, but not on disk before the work begins
#     unlocked    instances are not locked
#     unchecked   a timer that is not there any more, or was moved, fires all the same
#
# - Transfers whose other side never answers: the deadline.
# - A load that two sessions work on, which are killed.
#
# The defects are there because the tests are built with the hooks of src/base/testing.h.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);

# What is not flushed stays so: nobody else writes or flushes much.
my $node = evpg_node('mutations', conf => <<'EOC');
restart_after_crash = on
autovacuum = off
full_page_writes = off
wal_writer_delay = 10s
EOC
my $max_rounds = 10;			# until the defect "unflushed" shows, which takes one unless WAL happens to fill a page
my $databases = 0;
my $database;

create_transfers($node);
# An instance that counts its events and how often its timer has rung.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION told(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT CASE event.type WHEN 'Started' THEN
    evpg_reaction('{"told": 1, "rung": 0}', evpg_action_schedule('bell', '1 minute'))
                         ELSE evpg_reaction(state || jsonb_build_object('told', (state->>'told')::int + 1)) END
$$;
CREATE FUNCTION rung(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || jsonb_build_object('rung', (state->>'rung')::int + 1))
$$;
SELECT evpg_register_saga('bell', 'told', timer_handler => 'rung', event_types => '{Started,Told}');
SQL

sub query
{
	return $node->safe_psql($database, shift);
}

# A database of its own for a schedule, whose sessions have the defect.
sub begin
{
	my ($defect) = @_;
	my $mutation = $defect eq '' ? '' : "saga_$defect";

	$database = 'd' . ++$databases;
	$node->safe_psql('template1', "CREATE DATABASE $database TEMPLATE postgres");
	$node->safe_psql('template1', "ALTER DATABASE $database SET evpg.test_mutation = '$mutation'");
	# A crash must not take back what is drawn of a sequence that was copied: PostgreSQL writes that only after a checkpoint.
	query('CHECKPOINT; SELECT evpg_activate_consumers()');
	return;
}

# A session that runs what is due, after these settings, and waits at a point until release(): for a prepared transaction,
# since that does not let go of its lock when the server dies, as a session may before the one that waits has died, too.
sub run_to
{
	my ($point, $settings) = @_;
	my $runner = $node->background_psql($database, on_error_stop => 1);

	query("BEGIN; SELECT pg_advisory_xact_lock($wait_key); PREPARE TRANSACTION 'holder'");
	$runner->query_until(qr/running/,
		"LOAD 'evpg';\nSET evpg.test_wait = 'saga_$point';\n$settings\n\\echo running\nCALL evpg_run();\n");
	$node->poll_query_until($database, "SELECT EXISTS ($waiters)") or die "nobody comes to $point";
	return $runner;
}

sub release
{
	query("ROLLBACK PREPARED 'holder'");
	return;
}

sub crash
{
	my ($runner) = @_;

	$node->kill9;
	$runner->{run}->finish;
	start_again($node);
	release();
	return;
}

# ------------------------------------------------------------------ schedules: each returns what is wrong

# A transfer, with a crash at a point.
sub crash_at
{
	my ($point, $kind) = @_;

	request($node, $kind, 'crash', 'a2', $database);
	crash(run_to($point, ''));
	query('CALL evpg_run()');
	return wrong($node, $database);
}

# The attempt of who was at work when the server crashed must have been counted.
sub counted
{
	request($node, '', 'crash', 'a2', $database);
	query('SELECT evpg_run_sagas(0)');
	query('CHECKPOINT');
	crash(run_to('claimed', 'SET synchronous_commit = off;'));
	my $attempts = query(q(SELECT attempts FROM evpg.saga_event WHERE key = 'crash'));

	return $attempts eq '1' ? '' : "attempts: $attempts";
}

my $state = q(SELECT version, state->>'told', state->>'rung' FROM evpg_saga('bell', 'b'));
my $start = q(SELECT FROM evpg_append('account', 'b', ARRAY[evpg_event('Started')]));
my $tell = q(SELECT FROM evpg_append('account', 'b', ARRAY[evpg_event('Told')]));

# An event comes while the instance reacts to a timer, and another session looks for work.
sub together
{
	query($start);
	query('CALL evpg_run()');
	my $runner = run_to('handled', "SELECT evpg_set_clock_offset('2 min');");
	query($tell);
	# one thing: what the other session is at would wait for it
	query('SELECT evpg_run_sagas(1)');
	my $early = query($state);
	release();
	$runner->quit;
	query('CALL evpg_run()');
	my $end = query($state);

	return $early eq '1|1|0' && $end eq '3|2|1' ? '' : "then $early, at the end $end";
}

# A timer is moved while a session has begun with it; then it is its time.
sub moved
{
	query($start);
	query('CALL evpg_run()');
	my $runner = run_to('claimed', "SELECT evpg_set_clock_offset('2 min');");
	query(q(SELECT evpg_reschedule_timer(timer_id, now() + interval '1 hour') FROM evpg.timer));
	release();
	$runner->quit;
	my $early = query($state);
	query("SELECT evpg_set_clock_offset('2 h'); CALL evpg_run()");
	my $end = query($state);

	return $early eq '1|1|0' && $end eq '2|1|1' ? '' : "then $early, at the end $end";
}

my %crash = map { my $point = $_; ($point => sub { crash_at($point, $databases % 2 ? '' : '_c') }) } 'claimed:2',
	'reacted:2', 'committed:2';

foreach my $point (sort keys %crash)
{
	begin('');
	is($crash{$point}->(), '', "the code as it is: a crash at $point [rule 16]");
}
foreach my $schedule ([ \&counted, 'an attempt is on disk' ], [ \&together, 'an event beside a timer' ],
	[ \&moved, 'a timer that is moved' ])
{
	begin('');
	is($schedule->[0]->(), '', "the code as it is: $schedule->[1] [rule 17]");
}

sub notices
{
	my ($defect, $schedule, $how) = @_;

	begin($defect);
	my $wrong = $schedule->();
	like($wrong, $how, "the defect \"$defect\" is noticed [rule 16]");
	note $wrong;
	return;
}

notices('early', $crash{'claimed:2'}, qr/^a transfer did not end\|/m);
notices('kept', $crash{'committed:2'}, qr/^(?:an event is left|reactions of an instance|a dead letter)\|/m);
notices('kept', $crash{'reacted:2'}, qr/^(?:an event is left|reactions of an instance|a dead letter)\|/m);
notices('new_ids', $crash{'reacted:2'}, qr/^a command id\|/m);
notices('unlocked', \&together, qr/^then 2\|2\|0, at the end 2\|/);
notices('unchecked', \&moved, qr/^then 2\|1\|1, at the end 3\|1\|2$/);
my $wrong = '';
for (my $round = 0; $wrong eq '' && $round < $max_rounds; $round++)
{
	begin('unflushed');
	$wrong = counted();
}
like($wrong, qr/^attempts: 0?$/, 'the defect "unflushed" is noticed [rule 17]');

# ------------------------------------------------------------------ the deadline

$database = 'postgres';

# What has come of both kinds of a transfer.
sub outcome
{
	my ($id) = @_;

	return query(<<"SQL");
SELECT string_agg(concat_ws(' ', t.status, reason, s.status, state->>'state', s.version), ', ' ORDER BY kind)
  FROM transfer t, evpg_saga(kind, id) s WHERE id = '$id'
SQL
}

sub hold
{
	my $session = $node->background_psql('postgres', on_error_stop => 1);

	$session->query_safe("BEGIN; SELECT FROM evpg_append('account', 'mark', ARRAY[evpg_event('Noted')])");
	return $session;
}

# The money is withdrawn, but nobody hears of it before the deadline.
foreach my $end ('COMMIT', 'ROLLBACK')
{
	my $id = "no answer, $end";

	request($node, $_, $id, 'a2') foreach '', '_c';
	my $holder = hold();
	query('CALL evpg_run()');
	is(outcome($id), 'requested running withdrawn 1, requested running withdrawn 1', "$id: the money is withdrawn [B26]");
	is(query('SELECT count(*) FROM evpg.timer'), 2, "$id: a deadline for both kinds [B26]");
	query("SELECT evpg_set_clock_offset('9 min'); CALL evpg_run()");
	is(outcome($id), 'requested running withdrawn 1, requested running withdrawn 1',
		"$id: before the deadline nothing happens [B26]");
	query("SELECT evpg_set_clock_offset('11 min'); CALL evpg_run()");
	my $failed = 'failed deadline completed failed 2, failed deadline completed failed 2';
	is(outcome($id), $failed, "$id: after it the transfer has failed [B26, B53]");
	is(wrong($node), '', "$id: what was withdrawn is paid back, once [B53]");
	query('SELECT evpg_set_clock_offset()');
	$holder->query_safe($end);
	$holder->quit;
	query('CALL evpg_run()');
	is(outcome($id), $failed, "$id: the late event is ignored [rule 18]");
	is(wrong($node), '', "$id: nothing more is done [rule 18]");
	is(query("SELECT evpg_stable_position() = max(position) FROM evpg.event_log"), 't',
		"$id: it was to be seen [rule 18]") if $end eq 'COMMIT';
}

# The payee has the money, but nobody hears of that.
{
	my $id = 'late';

	request($node, $_, $id, 'a2') foreach '', '_c';
	query('SELECT evpg_run_sagas()');
	my $holder = hold();
	query('CALL evpg_run()');
	is(outcome($id), 'requested running deposited 2, requested running deposited 2', 'the money is deposited [B26]');
	query("SELECT evpg_set_clock_offset('11 min'); CALL evpg_run()");
	is(outcome($id), 'requested running deposited 3, requested running deposited 3',
		'the deadline is not for a transfer that is done [B26]');
	query('SELECT evpg_set_clock_offset()');
	$holder->query_safe('COMMIT');
	$holder->quit;
	query('CALL evpg_run()');
	is(outcome($id), 'completed completed done 4, completed completed done 4',
		'a transfer that is done is completed when its events are seen [B26]');
	is(wrong($node), '', 'once [B26]');
}

# ------------------------------------------------------------------ a load, two sessions that run sagas

my $script = transfers_script();
my $run = PostgreSQL::Test::Utils::tempdir . '/run.sql';

append_to_file($run, "CALL evpg_run();\n");

# pgbench; it ends before its time if the server crashes.
sub pgbench
{
	my ($name, @options) = @_;

	return IPC::Run::start([ 'pgbench', '-n', @options, '-d', $node->connstr('postgres') . " application_name=$name" ], '>',
		"$run.$name", '2>', "$run.$name");
}

sub left
{
	return query('SELECT (SELECT count(*) FROM evpg.saga_event) + (SELECT count(*) FROM evpg.timer) + (SELECT count(*) '
		. 'FROM transfer WHERE status = \'requested\')');
}

query("ALTER SYSTEM SET full_page_writes = on");
query("ALTER SYSTEM SET wal_writer_delay = '200ms'");
$node->restart;
foreach my $victim ('nobody', 'runner', 'postmaster', 'runner')
{
	my $load = pgbench('load', '-c', 3, '-T', 2, '-f', $script);
	my $runners = pgbench('runner', '-c', 2, '-T', 3, '-f', $run);

	usleep(500_000 + int(rand(1_000_000)));
	if ($victim eq 'postmaster')
	{
		$node->kill9;
	}
	elsif ($victim eq 'runner')
	{
		my $pid = query("SELECT pid FROM pg_stat_activity WHERE application_name = 'runner' ORDER BY random() LIMIT 1");

		is(kill('KILL', $pid), 1, 'a session that runs sagas is killed');
	}
	$load->finish;
	$runners->finish;
	if ($victim eq 'postmaster')
	{
		start_again($node);
	}
	else
	{
		$node->poll_query_until('postgres', 'SELECT true') or die 'the server does not restart';
	}
	if ($victim eq 'nobody')
	{
		is($load->result(0), 0, 'a load without a crash [rule 16]');
		is($runners->result(0), 0, 'sessions that run sagas side by side [rule 16]') or diag(slurp_file("$run.runner"));
	}
}
# some wait for their next attempt
for (my $n = 0; left() > 0 && $n < 10 * $PostgreSQL::Test::Utils::timeout_default; $n++)
{
	my $runners = pgbench('runner', '-c', 2, '-t', 1, '-f', $run);

	$runners->finish;
	usleep(50_000);
}
is(wrong($node), '', 'after a load that two sessions ran: all is done, once [rule 16]');
cmp_ok(query("SELECT count(*) FROM transfer WHERE status = '$_'"), '>', 5, "$_ transfers [rule 16]") foreach 'completed',
	'failed';
cmp_ok(query("SELECT count(*) FROM outcome WHERE status = 'failed' AND events LIKE '%MoneyWithdrawn%'"), '>', 3,
	'some were paid back [rule 16]');
is(inspect($node), '', 'all that is stored agrees');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
