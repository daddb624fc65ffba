# Rule 19: what leaves the database is durable.  Everything that a reader of the stable position, a listener or a waiter has
# seen is there after a crash, whoever wrote it: clients that commit asynchronously, sagas, scheduled commands, batches of
# workers. And with a defect planted it is not, so that it is known that the crash would take it back.  With a synchronous
# standby nothing is told that it does not have.
#
# The processes that write WAL by themselves are stopped, so that nothing is on disk that nobody has asked for.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon set_mutation);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = evpg_node('durable', bare => 1, allows_streaming => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
synchronous_commit = on
autovacuum = off
checkpoint_timeout = 1h
wal_writer_delay = 10s
# no page is written to make room, which would write the WAL before it
shared_buffers = 64MB
evpg.workers = 0
evpg.naptime = 100ms
# a frame by NOTIFY is a durable commit
evpg.broadcast = off
EOC

query(<<'SQL');
CREATE EXTENSION evpg;
CREATE FUNCTION thing_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT evpg_event(command.command_type, command.data)
$$;
CREATE FUNCTION thing_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1)
$$;
SELECT evpg_register_aggregate('thing', 'thing_handle', 'thing_apply');
SELECT evpg_register_aggregate('mail', 'thing_handle', 'thing_apply');
SELECT evpg_register_projection('inline', 'thing_apply', aggregate_types => '{thing}');
SELECT evpg_register_projection('async', 'thing_apply', aggregate_types => '{thing}', mode => 'async');
CREATE FUNCTION mailer(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction('{}', evpg_action_send('mail', 'mail ' || event.aggregate_id, 'MailWanted', '{}'))
$$;
SELECT evpg_register_saga('mailer', 'mailer', event_types => '{Paid}');
-- the first frame asks for a broadcaster
SET evpg.broadcast = auto;
SELECT FROM evpg_execute('thing', 'first', 'Noted');
SQL
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'", 'there is a broadcaster');

# ------------------------------------------------------------------ crashes

my @stopped;

sub stop_writers
{
	query('CHECKPOINT');
	@stopped = split /\n/,
		query("SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer', 'checkpointer')");
	kill('STOP', @stopped);
	return;
}

# Nothing works when the server is there again, so what it has is what the crash has left.
sub crash
{
	$node->append_conf('postgresql.conf', "evpg.workers = 0\n");
	$node->kill9;
	kill('KILL', @stopped);
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

my $count = 0;

# Lets something be seen, crashes, and looks whether it is still there: not so with the defect.
sub check
{
	my ($what, $defect, $see, $there) = @_;

	foreach my $mutation ('', $defect)
	{
		my $id = 'x' . ++$count;

		# what workers and the broadcaster do wrong they read from the file; who connects has it from there, too
		set_mutation($node, $mutation);
		# consumers that are behind after a crash write what they do to disk at first
		query(append('warm', 'Paid') . '; CALL evpg_run()');
		stop_writers();
		my $seen = $see->($id);
		crash();
		my $left = query($there->($id, $seen));
		is($left, $mutation eq '' ? 't' : 'f',
			"$what: " . ($mutation eq '' ? 'is there after a crash' : "not if $mutation") . ' [rule 19]');
	}
	set_mutation($node, '');
	return;
}

sub append
{
	my ($id, $type) = @_;

	return "SELECT FROM evpg_execute('thing', '$id', '" . ($type // 'Noted') . "')";
}

sub is_logged
{
	my ($id, $event) = @_;

	return "SELECT count(*) = 1 FROM evpg.event WHERE event_id = '$event'";
}

# ------------------------------------------------------------------ what clients commit asynchronously

my $lazily = 'SET synchronous_commit = off;';

check('an event of evpg_read_all', 'undurable', sub {
	my ($id) = @_;
	query("$lazily " . append($id));
	return query("SELECT event_id FROM evpg_read_all(0, 1000) WHERE aggregate_id = '$id'");
}, \&is_logged);

check('an event of evpg_read_all, read with synchronous_commit off', 'undurable', sub {
	my ($id) = @_;
	query("$lazily " . append($id));
	return query("$lazily SELECT event_id FROM evpg_read_all(0, 1000) WHERE aggregate_id = '$id'");
}, \&is_logged);

check('the stable position', 'undurable', sub {
	my ($id) = @_;
	query("$lazily " . append($id));
	return query('SELECT evpg_stable_position()');
}, sub { "SELECT max(position) >= $_[1] FROM evpg.event" });

check('a row of evpg_projection_changes, inline', 'undurable', sub {
	my ($id) = @_;
	query("$lazily " . append($id));
	return query("SELECT key FROM evpg_projection_changes('inline', 0, 1000) WHERE key = '$id'");
}, sub { "SELECT count(*) = 1 FROM evpg_projection('inline', '$_[1]')" });

check('a row of evpg_watch_projection', 'undurable', sub {
	my ($id) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 1);
	$session->query_until(qr/started/,
		"\\echo started\nSELECT version FROM evpg_watch_projection('inline', '$id', 0, '1 minute');\n\\echo seen\n");
	soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%evpg_watch_projection%' "
		. "AND pid <> pg_backend_pid() AND state = 'active'", 'somebody watches');
	query("$lazily " . append($id));
	$session->query_until(qr/seen/, '');
	$session->{run}->kill_kill;
	return $id;
}, sub { "SELECT count(*) = 1 FROM evpg_projection('inline', '$_[1]')" });

foreach my $by ('worker', 'commit')
{
	check("a row that a frame told of, by $by", $by eq 'worker' ? 'undurable' : 'commit_undurable', sub {
		my ($id) = @_;
		my $session = $node->background_psql('postgres', on_error_stop => 1);
		$session->query_safe("SELECT evpg_listen('inline', '$id')");
		query("$lazily SET evpg.broadcast = $by; " . append($id));
		my $heard = '';
		for (my $n = 0; $n < 600 && $heard !~ /"key": "$id"/; $n++)
		{
			usleep(100_000) if $n > 0;
			$heard = $session->query('SELECT');
		}
		like($heard, qr/"key": "$id"/, 'the frame is heard');
		$session->{run}->kill_kill;
		return $id;
	}, sub { "SELECT count(*) = 1 FROM evpg_projection('inline', '$_[1]')" });
}

# ------------------------------------------------------------------ what workers do

# The one worker comes only now, so that nothing else is committed after what is looked for.
sub let_work
{
	my ($condition) = @_;

	set('evpg.workers', 1);
	soon($condition, 'a worker works');
	return;
}

check('what evpg_wait_for said', 'undurable', sub {
	my ($id) = @_;
	query(append($id));
	my $position = query('SELECT max(position) FROM evpg.event');
	set('evpg.workers', 1);
	is(query("SELECT evpg_wait_for('async', $position, '1 minute')"), 't', 'a worker works');
	return $id;
}, sub { "SELECT count(*) = 1 FROM evpg_projection('async', '$_[1]')" });

check('a row of evpg_projection_changes, asynchronous', 'undurable', sub {
	my ($id) = @_;
	query(append($id));
	let_work("SELECT count(*) = 1 FROM evpg_projection_changes('async', 0, 1000) WHERE key = '$id'");
	return $id;
}, sub { "SELECT count(*) = 1 FROM evpg_projection('async', '$_[1]')" });

# As what clients commit: whoever sees it need not ask whether it is on disk.
check('an event that a saga has sent', 'commit_undurable', sub {
	my ($id) = @_;
	query(append($id, 'Paid'));
	let_work("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'mail $id'");
	return query("SELECT event_id FROM evpg.event WHERE aggregate_id = 'mail $id'");
}, \&is_logged);

check('an event of a scheduled command', 'commit_undurable', sub {
	my ($id) = @_;
	query("SELECT evpg_schedule_command(clock_timestamp(), 'mail', 'mail $id', 'Reminded')");
	let_work("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'mail $id'");
	return query("SELECT event_id FROM evpg.event WHERE aggregate_id = 'mail $id'");
}, \&is_logged);

# Where the database commits asynchronously, workers do so too, and readers of the stable position wait for the disk.
query('ALTER DATABASE postgres SET synchronous_commit = off');
check('an event that a saga has sent, read up to the stable position', 'undurable', sub {
	my ($id) = @_;
	query(append($id, 'Paid'));
	set('evpg.workers', 1);
	my $seen = '';
	for (my $n = 0; $n < 1000 && $seen eq ''; $n++)
	{
		usleep(10_000) if $n > 0;
		$seen = query("SELECT event_id FROM evpg_read_all(0, 1000) WHERE aggregate_id = 'mail $id'");
	}
	return $seen;
}, \&is_logged);
query('ALTER DATABASE postgres RESET synchronous_commit');

# ------------------------------------------------------------------ any backend that is killed

# A saga's mail goes out, an idle client is killed; whatever is repeated has the event_id that was seen.
set('restart_after_crash', 'on');
$node->restart;
foreach my $n (1 .. 4)
{
	my $reader = $node->background_psql('postgres', on_error_stop => 1);
	my $idle = $node->background_psql('postgres', on_error_stop => 1);
	my $pid = $idle->query_safe('SELECT pg_backend_pid()');

	set('evpg.workers', 1);
	query(append("killed $n", 'Paid'));
	my $seen = $reader->query_safe(<<"SQL");
DO \$\$ BEGIN
  FOR n IN 1 .. 60000 LOOP
    EXIT WHEN EXISTS (SELECT FROM evpg_read_all(0, 1000) WHERE aggregate_id = 'mail killed $n');
    PERFORM pg_sleep(0.001);
  END LOOP;
END \$\$;
SELECT event_id FROM evpg.event WHERE aggregate_id = 'mail killed $n';
SQL
	kill('KILL', $pid);
	$_->{run}->kill_kill foreach $reader, $idle;
	$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
		or die 'the server does not restart';
	soon("SELECT count(*) = 0 FROM evpg.saga_event", 'all is done');
	is(query("SELECT string_agg(event_id::text, ' ') FROM evpg.event WHERE aggregate_id = 'mail killed $n'"), $seen,
		'mail is wanted once, under the id that was read [rule 19]');
}
is(query('SELECT count(*) FROM evpg.dead_letter'), 0, 'no mail is a dead letter');
set('evpg.workers', 0);

# ------------------------------------------------------------------ synchronous standbys

# There is none that answers: what nobody waits for is visible, but is not handed out.
my $waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' "
	. "AND backend_type = 'client backend' AND query LIKE '%seen%'";

foreach my $read ('evpg_stable_position()', 'count(*) FROM evpg_read_all(0)',
	"count(*) FROM evpg_projection_changes('inline', 0)", "count(*) FROM evpg_watch_projection('inline', 'lonely', 0)")
{
	set('synchronous_standby_names', "'nobody'");
	soon("SELECT current_setting('synchronous_standby_names') = 'nobody'", 'a standby is missing');
	query('SET synchronous_commit = local; ' . append('lonely'));
	is(query("SELECT count(*) > 0 FROM evpg_read_all(0, stable_only => false) WHERE aggregate_id = 'lonely'"), 't',
		'the event is visible');
	is(sqlstate($node, "SET statement_timeout = '100ms'; SELECT $read"), '57014',
		"$read waits for the standby, and can be cancelled [rule 19]");
	my $session = $node->background_psql('postgres', on_error_stop => 1);
	$session->query_until(qr/started/, "\\echo started\nSELECT $read AS seen;\n\\echo done\n");
	soon($waits, "$read waits [rule 19]");
	set('synchronous_standby_names', "''");
	like($session->query_until(qr/done/, ''), qr/\d/, 'until there is none');
	$session->quit;
}

# a worker's reaction waits as a client's commit does
query(append('lonely', 'Paid'));
set('synchronous_standby_names', "'nobody'");
soon("SELECT current_setting('synchronous_standby_names') = 'nobody'", 'a standby is missing');
set('evpg.workers', 1);
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'evpg worker'",
	'a reaction waits for the standby [rule 19]');
is(query("SELECT count(*) FROM evpg.event WHERE aggregate_id = 'mail lonely'"), 0,
	'a reaction that waits for the standby is not visible [rule 19]');
set('synchronous_standby_names', "''");
soon("SELECT count(*) = 1 FROM evpg.event WHERE aggregate_id = 'mail lonely'", 'until there is none');

# A standby that lags, and a transaction with events that was prepared, and is committed by a session that does not wait for
# it.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
set('synchronous_standby_names', "'standby'");
soon("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'", 'there is a synchronous standby');
foreach my $mutation ('prepared_unnoted', '')
{
	my $id = 'prepared ' . ($mutation eq '' ? 'noted' : 'not noted');

	query("BEGIN; SET LOCAL evpg.broadcast = off; " . append($id) . "; PREPARE TRANSACTION 'appender'");
	query(append('known'));
	my $receiver = $standby->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'");
	kill('STOP', $receiver);
	query("SET synchronous_commit = local; SET evpg.test_mutation = '$mutation'; COMMIT PREPARED 'appender'");
	is(sqlstate($node, "SET statement_timeout = '500ms'; SELECT FROM evpg_read_all(0)"), $mutation eq '' ? '57014' : '00000',
		'an event that was prepared is not read before the standby has it' . ($mutation eq '' ? '' : ', but with the defect')
			. ' [rule 19]');
	kill('CONT', $receiver);
	is(query("SELECT count(*) FROM evpg_read_all(0) WHERE aggregate_id = '$id'"), 1,
		'the event is read when a synchronous standby has it');
}
set('synchronous_standby_names', "''");
soon("SELECT current_setting('synchronous_standby_names') = ''", 'nobody is waited for any more');
$standby->stop;

is(inspect($node), '', 'all that is stored agrees');
$node->stop;
done_testing();
