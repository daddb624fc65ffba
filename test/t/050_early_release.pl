# Early release (rule 19): with evpg.early_release a transaction that appends releases its locks before its commit is on
# disk, and its client is answered when it is.  A session is stopped between commit, release, flush and answer, and there its
# backend is killed, the postmaster is killed, or the server is stopped at once: nothing that a client was answered, and
# nothing that a stable reader, a listener, a waiter or the sender of a duplicate has seen, is lost.  With a defect planted
# it is, so that it is known that the crash would take it back.
#
# The processes that write WAL by themselves are stopped, so that nothing is on disk that no session has asked for.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon set_mutation);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = evpg_node('early_release', bare => 1, allows_streaming => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
synchronous_commit = on
autovacuum = off
checkpoint_timeout = 1h
wal_writer_delay = 10s
# no page is written to make room, which would write the WAL before it
shared_buffers = 64MB
evpg.early_release = on
evpg.workers = 0
evpg.naptime = 100ms
# a frame by NOTIFY is a durable commit
evpg.broadcast = off
EOC

query(<<'SQL');
CREATE EXTENSION evpg;
CREATE FUNCTION thing_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT CASE command.command_type WHEN 'Nothing' THEN NULL WHEN 'Refused' THEN evpg_reject('refused')
         ELSE evpg_event(command.command_type, command.data) END
$$;
CREATE FUNCTION thing_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1)
$$;
SELECT evpg_register_aggregate('thing', 'thing_handle', 'thing_apply');
SELECT evpg_register_aggregate('mail', 'thing_handle', 'thing_apply');
SELECT evpg_register_projection('inline', 'thing_apply', aggregate_types => '{thing}');
CREATE FUNCTION mailer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{}', evpg_action_send('mail', 'mail ' || event.aggregate_id, 'MailWanted', '{}'))
$$;
SELECT evpg_register_saga('mailer', 'mailer', event_types => '{Paid}');
-- the first frame asks for a broadcaster
SET evpg.broadcast = auto;
SELECT FROM evpg_execute('thing', 'first', 'Noted');
SQL
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'", 'there is a broadcaster');

# ------------------------------------------------------------------ sessions and crashes

my @sessions;
my @stopped;
my $blocker;

sub session
{
	my $session = $node->background_psql('postgres', on_error_stop => 1);

	push @sessions, $session;
	return $session;
}

my %heard;

# Starts statements in a session, without waiting for their end.
sub ask
{
	my ($session, $statements) = @_;

	$heard{$session} = $session->query_until(qr/started/, "\\echo started\n$statements;\n\\echo answered\n");
	return;
}

# Starts statements in a session of its own, which stops where it is told; returns it and the process id of its backend.
sub held
{
	my ($point, $statements) = @_;
	my $session = session();
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$blocker //= session();
	$blocker->query_safe('SELECT pg_advisory_lock(17700)');
	$session->query_safe("SET evpg.test_wait = '$point'");
	ask($session, $statements);
	soon("SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = $pid", "a session is held at $point");
	return ($session, $pid);
}

# Whether a session has got its answer by now.
sub is_answered
{
	my ($session) = @_;

	$session->{run}->pump_nb for 1 .. 3;
	return ($heard{$session} . $session->{stdout}) =~ /answered/;
}

# Waits for the answer to what was asked.
sub await_answer
{
	my ($session) = @_;

	$session->query_until(qr/answered/, '') if $heard{$session} !~ /answered/;
	return;
}

# Ends all sessions.
sub end_sessions
{
	$_->quit foreach @sessions;
	@sessions = ();
	$blocker = undef;
	return;
}

# Lets the sessions that are held go on.
sub let_go
{
	$blocker->query_safe('SELECT pg_advisory_unlock(17700)');
	return;
}

sub stop_writers
{
	query('CHECKPOINT');
	@stopped = split /\n/,
		query("SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer', 'checkpointer')");
	kill('STOP', @stopped);
	return;
}

# Ends the server by one of its processes, and starts it again.  Nothing works then, so what it has is what was left.
sub crash
{
	my ($signal, $pid) = @_;

	$signal //= 'KILL';
	$pid //= (slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/)[0];
	$node->append_conf('postgresql.conf', "evpg.workers = 0\n");
	kill($signal, $pid);
	usleep(200_000);
	kill('KILL', @stopped);
	$_->{run}->kill_kill foreach @sessions;
	@sessions = ();
	$blocker = undef;
	$node->{_pid} = undef;
	start_again($node);
	return;
}

sub set
{
	my ($name, $value) = @_;

	$node->append_conf('postgresql.conf', "$name = $value\n");
	$node->reload;
	return;
}

sub append
{
	my ($id, $type, $more) = @_;

	return "SELECT event_id FROM evpg_execute('thing', '$id', '" . ($type // 'Noted') . "'" . ($more // '') . ')';
}

# ------------------------------------------------------------------ every step, every end

foreach my $point ('early_visible', 'early_released', 'early_flushed', 'early_awaited')
{
	foreach my $end ('backend', 'postmaster', 'immediate stop')
	{
		my $id = "$point, $end";
		my @seen;

		stop_writers();
		my ($session, $pid) = held($point, append($id));
		if ($point ne 'early_visible')
		{
			is(query("SET evpg.early_release = off; SELECT version FROM evpg_execute('thing', '$id', 'Noted')"), 2,
				"$point: the stream is free, and the next command is answered [rule 2, D49]");
			push @seen, query("SELECT event_id FROM evpg_read_all(0) WHERE aggregate_id = '$id'");
		}
		ok(!is_answered($session), "$point: the session that is held is not answered [rule 19]");
		crash($end eq 'immediate stop' ? 'QUIT' : 'KILL', $end eq 'backend' ? $pid : undef);
		is(query("SELECT coalesce(string_agg(event_id::text, E'\\n' ORDER BY version), '') FROM evpg.event "
			. "WHERE aggregate_id = '$id'"),
			join("\n", @seen), "$point, $end: what was answered and what was read is there after it, no more [rule 19]");
		is(inspect($node), '', "$point, $end: all that is stored agrees");
	}
}

# ------------------------------------------------------------------ what others see before the flush

my $count = 0;

# Lets something be seen while a session is held before its flush, crashes, and looks whether it is still there: not so with
# the defect.
sub check
{
	my ($what, $defect, $see, $there) = @_;

	foreach my $mutation ('', $defect)
	{
		my $id = 'x' . ++$count;

		# what workers and the broadcaster do wrong they read from the file; new sessions have it from there, too
		set_mutation($node, $mutation);
		# consumers that are behind after a crash write what they do to disk at first
		query(append('warm', 'Paid') . '; CALL evpg_run()');
		stop_writers();
		$see->($id);
		crash();
		is(query($there->($id)), $mutation eq '' ? 't' : 'f',
			"$what: " . ($mutation eq '' ? 'is there after a crash' : "not if $mutation") . ' [rule 19]');
	}
	set_mutation($node, '');
	return;
}

sub is_logged
{
	my ($id) = @_;

	return "SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = '$id'";
}

check('an event of evpg_read_all', 'undurable', sub {
	my ($id) = @_;
	held('early_released', append($id));
	is(query("SELECT count(*) FROM evpg_read_all(0) WHERE aggregate_id = '$id'"), 1, 'it is read');
}, \&is_logged);

check('a row of evpg_projection_changes', 'undurable', sub {
	my ($id) = @_;
	held('early_released', append($id));
	is(query("SELECT count(*) FROM evpg_projection_changes('inline', 0, 1000) WHERE key = '$id'"), 1, 'it is read');
}, \&is_logged);

check('a row of evpg_watch_projection', 'undurable', sub {
	my ($id) = @_;
	my $watcher = session();
	$watcher->query_until(qr/started/,
		"\\echo started\nSELECT version FROM evpg_watch_projection('inline', '$id', 0, '1 minute');\n\\echo seen\n");
	soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%evpg_watch_projection%' "
		. "AND pid <> pg_backend_pid() AND state = 'active'", 'a session watches');
	held('early_released', append($id));
	like($watcher->query_until(qr/seen/, ''), qr/1/, 'it is seen');
}, \&is_logged);

check('a row that a frame announced', 'undurable', sub {
	my ($id) = @_;
	my $listener = session();
	$listener->query_safe("SELECT evpg_listen('inline', '$id')");
	held('early_released', 'SET evpg.broadcast = worker; ' . append($id));
	my $heard = '';
	for (my $n = 0; $n < 600 && $heard !~ /"key": "$id"/; $n++)
	{
		usleep(100_000) if $n > 0;
		$heard = $listener->query('SELECT');
	}
	like($heard, qr/"key": "$id"/, 'the frame is heard');
}, \&is_logged);

# PostgreSQL lets listeners read notifications once their transaction is visible: one is woken by another transaction.
check('what a transaction wrote that ran NOTIFY', 'early_notify', sub {
	my ($id) = @_;
	my $listener = session();
	my $writer = session();
	$listener->query_safe('LISTEN news');
	$blocker = session();
	$blocker->query_safe('SELECT pg_advisory_lock(17700)');
	$writer->query_safe("SET evpg.test_wait = 'early_released'");
	ask($writer, 'BEGIN; ' . append($id) . "; SELECT pg_notify('news', '$id'); COMMIT");
	soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = '$id'", 'it has committed');
	query("NOTIFY news, 'wake up'");
	my $heard = '';
	for (my $n = 0; $n < 600 && $heard !~ /$id/; $n++)
	{
		usleep(100_000) if $n > 0;
		$heard = $listener->query('SELECT');
	}
	like($heard, qr/"$id"/, 'its notification is heard');
}, \&is_logged);

# What a client is told by a command that appends nothing: by its row or its error, whatever becomes of its transaction.
my %answers = (
	'a duplicate, executed' => [ q{BEGIN; SELECT status FROM evpg_try_execute('thing', '%s', 'Noted', command_id => 'c');
		ROLLBACK}, 'duplicate' ],
	'a no-op' => [ q{BEGIN; SELECT status FROM evpg_try_execute('thing', '%s', 'Nothing'); ROLLBACK}, 'noop' ],
	'a refusal as a row' => [ q{BEGIN; SELECT status FROM evpg_try_execute('thing', '%s', 'Refused'); ROLLBACK},
		'rejected' ],
	'a duplicate, appended' => [ q{BEGIN; SELECT version FROM evpg_append('thing', '%s',
		ARRAY[evpg_event('E', '{}', event_id => current_setting('test.event_id')::uuid)], command_id => 'd');
		ROLLBACK}, '2' ],
	'an event that exists' => [ q{SELECT count(*) FROM evpg_inject('thing', '%s',
		evpg_event('E', '{}', event_id => current_setting('test.event_id')::uuid))}, '0' ],
	'a stream that exists' => [ q{BEGIN; SELECT evpg_create_stream('thing', '%s'); ROLLBACK}, 'f' ],
);
my %errors = (
	'a conflict' => [ q{SELECT FROM evpg_execute('thing', '%s', 'Noted', expected_version => 0)}, 'VE001' ],
	'a refusal as an error' => [ q{SELECT FROM evpg_execute('thing', '%s', 'Refused')}, 'VE002' ],
	'another command of the id' => [ q{SELECT FROM evpg_execute('thing', '%s', 'Other', command_id => 'c')}, 'VE005' ],
	'a conflict of an append' => [ q{SELECT FROM evpg_append('thing', '%s', '{}', expected_version => 0)}, 'VE001' ],
);

foreach my $what (sort keys %answers, sort keys %errors)
{
	check("what $what is about", 'undurable', sub {
		my ($id) = @_;
		my ($statement, $answer) = @{ $answers{$what} // $errors{$what} };
		my $asks = sprintf $statement, $id;
		my $event_id = sprintf '01890a5d-ac96-774b-bcce-%012d', $count;
		held('early_released', 'BEGIN; ' . append($id, 'Noted', ", command_id => 'c'") . '; '
			. "SELECT FROM evpg_append('thing', '$id', ARRAY[evpg_event('E', '{}', event_id => '$event_id')], "
			. "command_id => 'd'); COMMIT");
		is($answers{$what} ? query("SET test.event_id = '$event_id'; $asks") : sqlstate($node, $asks), $answer,
			'it is answered');
	}, sub { "SELECT count(*) = 2 FROM evpg.event WHERE aggregate_id = '$_[0]'" });
}

# Also before the session has noted how far the WAL must be flushed, when no lock keeps others away any more.
check('the effect of a message that was received before', 'early_uncounted', sub {
	my ($id) = @_;
	held('early_visible', "BEGIN; SELECT evpg_receive('broker', '$id'); " . append($id) . '; COMMIT');
	is(query("SELECT evpg_receive('broker', '$id')"), 'f', 'it was received before');
}, \&is_logged);

# ------------------------------------------------------------------ answers, by every kind of commit

query('CREATE TABLE plain (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); CREATE TABLE unmade ()');
query(<<'SQL');
CREATE PROCEDURE commits(id text) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_execute('thing', id, 'Noted');
  COMMIT;
  PERFORM evpg_execute('thing', id, 'Noted');
  COMMIT;
END $$
SQL
stop_writers();

my %commits = (
	'a statement' => '%s',
	'a block' => 'BEGIN; %s; COMMIT',
	'released savepoints' => 'BEGIN; SAVEPOINT a; %s; SAVEPOINT b; %s; RELEASE b; RELEASE a; COMMIT',
	'a savepoint that is rolled back to' => 'BEGIN; INSERT INTO plain VALUES (1); SAVEPOINT a; %s; ROLLBACK TO a; COMMIT',
	'COMMIT AND CHAIN' => 'BEGIN; %s; COMMIT AND CHAIN; COMMIT',
	'an open cursor' => 'BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 10); FETCH c; %s; COMMIT; CLOSE c',
	'a procedure' => "CALL commits('ways')",
	'a new table' => 'BEGIN; %s; CREATE TABLE made (); COMMIT',
	'a dropped table' => 'BEGIN; %s; DROP TABLE unmade; COMMIT',
	'a temporary table' => 'BEGIN; %s; CREATE TEMP TABLE t (n int) ON COMMIT DROP; INSERT INTO t VALUES (1); COMMIT',
	'NOTIFY' => 'BEGIN; %s; NOTIFY news; COMMIT',
	'LISTEN' => 'BEGIN; %s; LISTEN news; COMMIT',
	'SERIALIZABLE' => 'BEGIN ISOLATION LEVEL SERIALIZABLE; %s; COMMIT',
	'synchronous_commit local' => 'BEGIN; SET LOCAL synchronous_commit = local; %s; COMMIT',
	'synchronous_commit remote_write' => 'BEGIN; SET LOCAL synchronous_commit = remote_write; %s; COMMIT',
	'synchronous_commit remote_apply' => 'BEGIN; SET LOCAL synchronous_commit = remote_apply; %s; COMMIT',
	'synchronous_commit that is changed' => 'BEGIN; %s; SET synchronous_commit = on; COMMIT',
	'parallel workers' => 'BEGIN; SET LOCAL force_parallel_mode = on; SELECT count(*) FROM pg_class; %s; COMMIT',
	'COMMIT PREPARED' => "BEGIN; %s; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'",
);
my $forced = query("SELECT count(*) FROM pg_settings WHERE name = 'force_parallel_mode'") == 1
	? 'force_parallel_mode' : 'debug_parallel_query';

foreach my $way (sort keys %commits)
{
	my $session = session();
	my $statements = $commits{$way};

	$statements =~ s/force_parallel_mode/$forced/;
	$statements =~ s/%s/append('ways')/ge;
	my $before = query('SELECT pg_current_wal_insert_lsn()');
	$session->query_safe($statements);
	is($session->query_safe("SELECT pg_current_wal_flush_lsn() > '$before', current_setting('synchronous_commit')"), 't|on',
		"$way: its answer comes after the flush, and synchronous_commit is what it was [rule 19]");
	end_sessions();
}
{
	my $session = session();

	$session->query_safe("SET evpg.test_mutation = 'early_unflushed'");
	my $before = query('SELECT pg_current_wal_insert_lsn()');
	$session->query_safe(append('ways'));
	is($session->query_safe("SELECT pg_current_wal_flush_lsn() > '$before'"), 'f', 'not if early_unflushed');
}

# Commits that fail after early release was chosen.
foreach my $failing ('INSERT INTO plain VALUES (2), (2)', 'serialization')
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	push @sessions, $session;
	if ($failing eq 'serialization')
	{
		my $other = session();

		$session->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM plain');
		$other->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM plain; INSERT INTO plain VALUES (10)');
		$session->query_safe(append('failing') . '; INSERT INTO plain VALUES (11)');
		$other->query_safe('COMMIT');
		$session->query('COMMIT');
	}
	else
	{
		$session->query("BEGIN; $failing; " . append('failing') . '; COMMIT');
	}
	is(query("SELECT count(*) FROM evpg.event WHERE aggregate_id = 'failing'"), 0, "$failing: the commit fails");
	$session->{stderr} = '';
	is($session->query_safe('SHOW synchronous_commit'), 'on', "$failing: synchronous_commit is what it was");
	end_sessions();
}
kill('CONT', @stopped);
is(query('SELECT count(*) FROM plain'), 2, 'what was committed beside it is there');

# Off: nothing is released early, so the wait point is not met.
my $off = "SELECT version FROM evpg_execute('thing', 'off', 'Noted')";
is(query("SET evpg.early_release = off; SET evpg.test_wait = 'early_released'; $off"), 1,
	'with evpg.early_release off a commit is as ever');
is(query("SET synchronous_commit = off; SET evpg.test_wait = 'early_released'; $off"), 2,
	'with synchronous_commit off there is nothing to wait for');

# ------------------------------------------------------------------ sessions that are to end

{
	my ($session, $pid) = held('early_released', append('ending'));

	query("SELECT pg_terminate_backend($pid)");
	query("SELECT pg_cancel_backend($pid)");
	is(query("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid"), 1,
		'a session that is terminated before its flush does not end before it');
	let_go();
	soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid", 'it ends then');
	is(query("SELECT count(*) FROM evpg.event WHERE aggregate_id = 'ending'"), 1, 'its commit stands');
	$session->{run}->kill_kill;
	@sessions = ();
	$blocker->quit;
	$blocker = undef;
}

# ------------------------------------------------------------------ sagas

# A worker flushes what it has appended at the end of its pass.
query(append('order', 'Paid'));
set('evpg.workers', 1);
soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'mail order'", 'a worker reacts');
set('evpg.workers', 0);
soon("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg worker'", 'there is no worker any more');

check('an event that a saga has sent, read up to the stable position', 'undurable', sub {
	my ($id) = @_;
	query(append($id, 'Paid'));
	# stopped where it would flush, once it has reacted
	set('evpg.test_wait', "'early_own'");
	$blocker = session();
	$blocker->query_safe('SELECT pg_advisory_lock(17700)');
	set('evpg.workers', 1);
	soon("SELECT count(*) = 1 FROM evpg_read_all(0) WHERE aggregate_id = 'mail $id'", 'a stable reader sees it');
	set('evpg.test_wait', "''");
}, sub { "SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'mail $_[0]'" });
query('CALL evpg_run()');
is(query(<<'EOQ'), '', 'what was lost is done again, once [rule 16]');
SELECT aggregate_id FROM evpg.event p WHERE type = 'Paid'
 GROUP BY aggregate_id
HAVING count(*) <> (SELECT count(*) FROM evpg.event m WHERE m.aggregate_id = 'mail ' || p.aggregate_id)
EOQ
is(query('SELECT count(*) FROM evpg.dead_letter'), 0, 'nothing is a dead letter');

# ------------------------------------------------------------------ synchronous standbys

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
set('synchronous_standby_names', "'standby'");
soon("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'", 'there is a synchronous standby');

my $receiver;

sub stop_receiver
{
	# the connection that has just begun may lag
	query(append('known'));
	$receiver = $standby->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'");
	kill('STOP', $receiver);
	return;
}

foreach my $level ('local', 'remote_write', 'on', 'remote_apply')
{
	my $session = session();
	my $pid = $session->query_safe("SET synchronous_commit = $level; SELECT pg_backend_pid()");
	my $visible = $level eq 'remote_apply' ? 0 : 1;

	stop_receiver();
	ask($session, append("level $level"));
	if ($level eq 'local')
	{
		await_answer($session);
		pass('local: the answer does not wait for the standby');
		kill('CONT', $receiver);
		next;
	}
	soon("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid",
		"$level: the session waits for the standby");
	is(query("SELECT count(*) FROM evpg.event WHERE aggregate_id = 'level $level'"), $visible,
		"$level: its event is " . ($visible ? '' : 'not ') . 'visible meanwhile');
	is(query("SET synchronous_commit = local; SET statement_timeout = '60s'; SELECT version FROM evpg_execute('thing', "
		. "'level $level', 'Noted')"), 2, "$level: the stream is free [rule 2]") if $visible;
	is(sqlstate($node, "SET statement_timeout = '300ms'; SELECT FROM evpg_read_all(0)"), $visible ? '57014' : '00000',
		"$level: a stable reader waits for the standby, if it would see the event [rule 19]");
	ok(!is_answered($session), "$level: the session is not answered [rule 19]");
	kill('CONT', $receiver);
	await_answer($session);
	if ($level eq 'on')
	{
		my $flushed = query('SELECT pg_current_wal_flush_lsn()');

		is($standby->safe_psql('postgres', "SELECT pg_last_wal_receive_lsn() >= '$flushed'"), 't',
			"$level: the standby has it when the session is answered [rule 19]");
	}
	is($standby->safe_psql('postgres', "SELECT count(*) FROM evpg.event WHERE aggregate_id = 'level $level'"), 1,
		"$level: the standby has applied it when the session is answered") if $level eq 'remote_apply';
}

# As a commit that waits under its locks, it can be given up.
stop_receiver();
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	push @sessions, $session;
	ask($session, append('given up'));
	soon("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid", 'a session waits for the standby');
	query("SELECT pg_cancel_backend($pid)");
	await_answer($session);
	like($session->{stderr}, qr/WARNING:  canceling wait for synchronous replication due to user request/,
		'a wait that is cancelled is a warning');
}

# A worker waits at the end of its pass, and what it has appended is visible.
query('SET synchronous_commit = local; ' . append('lonely', 'Paid'));
set('evpg.workers', 1);
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'evpg worker'",
	'a worker waits for the standby [rule 19]');
is(query("SELECT count(*) FROM evpg.event WHERE aggregate_id = 'mail lonely'"), 1, 'its reaction is visible');
is(sqlstate($node, "SET statement_timeout = '300ms'; SELECT FROM evpg_read_all(0)"), '57014',
	'a stable reader waits for the standby [rule 19]');
kill('CONT', $receiver);
soon("SELECT count(*) = 1 FROM evpg_read_all(0) WHERE aggregate_id = 'mail lonely'", 'until it has it');

set('synchronous_standby_names', "''");
soon("SELECT current_setting('synchronous_standby_names') = ''", 'no standby is waited for any more');
$standby->stop;
is(inspect($node), '', 'all that is stored agrees');
$node->stop;
done_testing();
