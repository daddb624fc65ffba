# Rule 15: with the library preloaded frames go through shared memory to a broadcaster.  Their order under concurrent
# commits, silence about what was rolled back, the modes of evpg.broadcast, and that nothing that happens to the broadcaster,
# to listeners or to PostgreSQL's queue fails a command: what is lost is announced.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('ring', bare => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.broadcast_buffer = 64kB
restart_after_crash = on
EOC
my $json = JSON::PP->new;

sub prepare
{
	my ($database) = @_;

	$node->safe_psql($database, <<'SQL');
CREATE EXTENSION evpg;
CREATE FUNCTION meter_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT evpg_event('Read', command.data)
$$;
CREATE FUNCTION meter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE FUNCTION usage_apply(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql IMMUTABLE AS $$
  SELECT evpg_projected(jsonb_build_object('sum', coalesce((state->>'sum')::bigint, 0) + (event.data->>'n')::bigint),
    event.data)
$$;
SELECT evpg_register_aggregate('meter', 'meter_handle', 'meter_apply');
SELECT evpg_register_projection('usage', 'usage_apply', aggregate_types => '{meter}', key_path => '$.data.key',
  broadcast => 'delta');
SQL
	return;
}

# A command on a stream and a key of the same name, unless the stream is named.
sub execute
{
	my ($key, $n, $stream) = @_;

	$stream //= $key;
	return "SELECT FROM evpg_execute('meter', '$stream', 'Read', '{\"key\": \"$key\", \"n\": $n}');\n";
}

sub listener
{
	my ($database, @channels) = @_;
	my $session = $node->background_psql($database, on_error_stop => 1);

	$session->query_safe("LISTEN \"$_\"") foreach @channels;
	return $session;
}

# What a session has heard by now: [channel, payload, process].
sub heard
{
	my ($session) = @_;
	my @heard;

	foreach my $line (split /\n/, $session->query_safe('SELECT WHERE false'))
	{
		$line =~ /^Asynchronous notification "(.+)" with payload "(.+)" received from server process with PID (\d+)\.$/
		  or die "not a notification: $line";
		push @heard, [ $1, $json->decode($2), $3 ];
	}
	return @heard;
}

# Waits until the broadcaster has nothing to do, then the same.
sub all_heard
{
	my ($session, $database) = @_;

	$node->poll_query_until($database // 'postgres', 'SELECT queued = 0 FROM evpg.stat_broadcast')
		or die 'frames are not sent';
	return heard($session);
}

# "key generation.version n" of each
sub brief
{
	return join ', ', map { my $frame = $_->[1];
		$frame->{event} eq 'resync' ? "resync $frame->{dropped}"
		: "$frame->{key} $frame->{generation}.$frame->{version} $frame->{data}{n}" } @_;
}

sub broadcaster
{
	my ($database) = @_;

	return $node->safe_psql('template1',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster' AND datname = '"
		. ($database // 'postgres') . "'");
}

sub counters
{
	return $node->safe_psql('postgres', "SELECT $_[0] FROM evpg.stat_broadcast");
}

prepare('postgres');
my $all = listener('postgres', 'projection.usage', 'evpg.resync');
my $writer = $node->background_psql('postgres', on_error_stop => 0);
my $writer_pid = $writer->query_safe('SELECT pg_backend_pid()');

# ------------------------------------------------------------------ modes

is($writer->query_safe('SELECT mode, queued, sent, dropped, resyncs, queue_usage FROM evpg.stat_broadcast'),
	'commit|0|0|0|0|0', 'auto: without a broadcaster with the commit');
$writer->query_safe(execute('a', 1));
my @frames = heard($all);
is(brief(@frames), 'a 1.1 1', 'auto: the first frame is not held back');
is($frames[0][2], $writer_pid, 'auto: it comes from the session');
ok($node->poll_query_until('postgres', "SELECT mode = 'worker' FROM evpg.stat_broadcast"), 'auto: but starts a broadcaster');
$writer->query_safe(execute('a', 2));
@frames = all_heard($all);
is(brief(@frames), 'a 1.2 2', 'auto: which sends the next one [B40]');
is($frames[0][2], broadcaster(), 'auto: it comes from there');
is(counters('queued, sent, dropped'), '0|1|0', 'it is counted');

$writer->query_safe("SET evpg.broadcast = 'commit'");
is($writer->query_safe('SELECT mode FROM evpg.stat_broadcast'), 'commit', 'commit');
$writer->query_safe(execute('a', 3));
@frames = heard($all);
is(brief(@frames) . ' ' . $frames[0][2], "a 1.3 3 $writer_pid", 'commit: from the session, though there is a broadcaster');
$writer->query_safe("SET evpg.broadcast = 'off'");
is($writer->query_safe('SELECT mode FROM evpg.stat_broadcast'), 'off', 'off');
$writer->query_safe(execute('a', 4));
is(brief(all_heard($all)), '', 'off: silence');

$node->safe_psql('postgres', 'CREATE DATABASE fresh');
prepare('fresh');
my $fresh = listener('fresh', 'projection.usage', 'projection.usage.a');
$node->safe_psql('fresh', "SET evpg.broadcast = 'worker';" . execute('a', 1) . execute('a', 2));
@frames = all_heard($fresh, 'fresh');
is(join(' ', map { $_->[0] } @frames), 'projection.usage.a projection.usage projection.usage.a projection.usage',
	'worker: frames wait for the broadcaster; on both channels');
is(brief(@frames[ 0, 2 ]), 'a 1.1 1, a 1.2 2', 'worker: in order');
is($frames[0][2], broadcaster('fresh'), 'worker: from the broadcaster of this database');
$fresh->quit;
$node->safe_psql('postgres', 'DROP DATABASE fresh');
is(broadcaster('fresh'), '', 'DROP DATABASE sends the broadcaster away');

$writer->query_safe('RESET evpg.broadcast');
is($writer->query_safe('SET evpg.broadcast = on; SHOW evpg.broadcast; '
	. 'SET evpg.broadcast = false; SHOW evpg.broadcast; RESET evpg.broadcast'), "auto\noff", 'on and off as before');

$writer->query_safe('BEGIN;' . execute('m', 1) . "SET LOCAL evpg.broadcast = 'commit';" . execute('m', 2)
	. "SET LOCAL evpg.broadcast = 'worker';" . execute('m', 3) . 'COMMIT');
is(brief(all_heard($all)), 'm 1.1 1, m 1.2 2, m 1.3 3',
	'a transaction that changes the mode sends the frames of a key in order [rule 14]');
$writer->query_safe('BEGIN; SAVEPOINT a;' . execute('m', 666) . "ROLLBACK TO a; SET LOCAL evpg.broadcast = 'commit';"
	. execute('m', 4) . 'COMMIT');
@frames = all_heard($all);
is(brief(@frames) . ' ' . $frames[0][2], "m 1.4 4 $writer_pid",
	'frames that were rolled back do not count for the order of a key');

# ------------------------------------------------------------------ what is rolled back

my $sent = counters('sent');

sub is_heard
{
	my ($statements, $expected, $name) = @_;

	$writer->query($statements);
	$writer->{stderr} = '';
	return is(brief(all_heard($all)), $expected, $name);
}

is_heard('BEGIN;' . execute('r', 666) . 'ROLLBACK', '', 'ROLLBACK: silence');
is_heard('BEGIN;' . execute('r', 1) . execute('r', 1) . 'COMMIT', 'r 1.1 1, r 1.2 1', 'COMMIT: equal frames are two');
is_heard('BEGIN;' . execute('r', 2) . 'SAVEPOINT a;' . execute('r', 666) . 'SAVEPOINT b;' . execute('r', 666) . 'RELEASE b;'
	. execute('r', 666)
	  . 'ROLLBACK TO a;' . execute('r', 3) . 'SAVEPOINT c;' . execute('r', 4) . 'RELEASE c;' . execute('r', 5)
	  	. 'SAVEPOINT d;' . execute('r', 666) . 'ROLLBACK TO d; COMMIT',
	'r 1.3 2, r 1.4 3, r 1.5 4, r 1.6 5',
		'ROLLBACK TO drops its frames and those of released savepoints in it, RELEASE none');
is_heard('BEGIN;' . join('', map { "SAVEPOINT s$_;" . execute('many', $_) } 1 .. 100) . 'ROLLBACK TO s51; COMMIT',
	join(', ', map { "many 1.$_ $_" } 1 .. 50), 'fifty savepoints in each other: each frame is there, in order');
is_heard('BEGIN; SAVEPOINT a;' . execute('r', 666) . 'ROLLBACK TO a;' . execute('r', 666) . 'ROLLBACK TO a; COMMIT', '',
	'ROLLBACK TO twice: nothing is left');
is_heard(<<"SQL", 'r 1.7 6, r 1.8 7, r 1.9 8', 'an EXCEPTION block drops its frames, one that ends well none');
DO \$\$ BEGIN
  PERFORM evpg_execute('meter', 'r', 'Read', '{"key": "r", "n": 6}');
  BEGIN
    PERFORM evpg_execute('meter', 'r', 'Read', '{"key": "r", "n": 666}');
    BEGIN PERFORM evpg_execute('meter', 'r', 'Read', '{"key": "r", "n": 666}'); EXCEPTION WHEN division_by_zero THEN NULL;
      END;
    PERFORM 1 / 0;
  EXCEPTION WHEN division_by_zero THEN
    PERFORM evpg_execute('meter', 'r', 'Read', '{"key": "r", "n": 7}');
  END;
  BEGIN PERFORM evpg_execute('meter', 'r', 'Read', '{"key": "r", "n": 8}'); EXCEPTION WHEN division_by_zero THEN NULL; END;
END \$\$
SQL
is_heard(execute('r', '"many"'), '', 'a command that fails: silence');
is(counters('sent') - $sent, 59, 'nothing else went through the ring');

# ------------------------------------------------------------------ PREPARE TRANSACTION

$writer->query('BEGIN;' . execute('r', 666) . "PREPARE TRANSACTION 'frames'");
like($writer->{stderr},
	qr/ERROR:  cannot PREPARE a transaction that has sent frames\n.*HINT:  Set evpg\.broadcast to off/,
	'a transaction with frames cannot be prepared');
$writer->{stderr} = '';
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'it is rolled back');
$writer->query_safe('BEGIN; SAVEPOINT a;' . execute('r', 666)
	. "ROLLBACK TO a; PREPARE TRANSACTION 'none'; COMMIT PREPARED 'none'");
$writer->query_safe('BEGIN; SET LOCAL evpg.broadcast = off;' . execute('r', 9)
	. "PREPARE TRANSACTION 'quiet'; COMMIT PREPARED 'quiet'");
is(brief(all_heard($all)), '', 'one without frames can');

# ------------------------------------------------------------------ concurrent commits

# keys over several streams: only the lock of the key orders them; no more frames at once than there is room for, however
# late the broadcaster comes
@frames = ();
foreach my $round (1 .. 10)
{
	$node->pgbench(
		'--no-vacuum --client=8 --jobs=2 --transactions=6', 0, [qr{processed: 48/48}], [qr{^$}], 'concurrent commits',
		{
			"014_ring_$round" => <<'SQL'
\set key random(1, 3)
\set undone random(0, 2)
BEGIN;
SELECT count(*) FROM evpg_execute('meter', 's' || :client_id, 'Read', jsonb_build_object('key', 'c' || :key, 'n', 1));
\if :undone = 0
SAVEPOINT a;
SELECT count(*) FROM evpg_execute('meter', 's' || :client_id, 'Read', jsonb_build_object('key', 'c' || :key, 'n', 666));
ROLLBACK TO a;
\endif
SELECT count(*) FROM evpg_execute('meter', 's' || :client_id, 'Read', jsonb_build_object('key', 'c' || :key, 'n', 1));
COMMIT;
SQL
		});
	push @frames, grep { $_->[1]{key} =~ /^c/ } all_heard($all);
}
is(scalar @frames, 960, 'every frame is heard once [D03]');
my %last;
is(scalar(grep { ($last{ $_->[1]{key} } // 0) + 1 != ($last{ $_->[1]{key} } = $_->[1]{version}) } @frames), 0,
	'of each key in the order of its versions');
is( join(' ', map { "$_ $last{$_}" } sort keys %last),
	$node->safe_psql('postgres',
	"SELECT string_agg(key || ' ' || version, ' ' ORDER BY key) FROM evpg.projected_state WHERE key LIKE 'c%'"),
	'up to the last one');
is(counters('dropped'), '0', 'none was dropped');

# ------------------------------------------------------------------ events

# a type that stores events, each of which is heard
$node->safe_psql('postgres', "SELECT evpg_register_aggregate('tap', broadcast => 'delta')");
my $events = listener('postgres', 'events', 'events.tap', 'events.tap.t1', 'evpg.resync');

sub append
{
	my ($stream, $n) = @_;

	return "SELECT FROM evpg_append('tap', '$stream', ARRAY[evpg_event('Drop', '{\"n\": $n}')]);\n";
}

# "channel stream version n" of each
sub brief_events
{
	return join ', ', map { "$_->[0] $_->[1]{aggregate_id} $_->[1]{version} $_->[1]{data}{n}" } @_;
}

$writer->query_safe('BEGIN;' . append('t1', 1) . 'SAVEPOINT a;' . append('t1', 666) . 'ROLLBACK TO a;' . append('t2', 2));
is(brief_events(all_heard($events)), '', 'nothing is heard of an event before the commit [rule 14, D03]');
$writer->query_safe('COMMIT');
@frames = all_heard($events);
is( brief_events(@frames),
	'events.tap.t1 t1 1 1, events.tap t1 1 1, events t1 1 1, events.tap t2 1 2, events t2 1 2',
	'events go to the channels of their stream, of their type and of all, but those that were rolled back [rule 14, D01]');
is($frames[0][2], broadcaster(), 'the broadcaster sends the frames of events [rule 15]');
$writer->query_safe('BEGIN;' . append('t1', 666) . 'ROLLBACK');
is(brief_events(all_heard($events)), '', 'nothing is heard of events that are rolled back [rule 14]');
$writer->query('BEGIN;' . append('t1', 666) . "PREPARE TRANSACTION 'frames'");
like($writer->{stderr}, qr/ERROR:  cannot PREPARE a transaction that has sent frames\n/,
	'a transaction with frames of events cannot be prepared [rule 15]');
$writer->{stderr} = '';
# no more at once than there is room for, however late the broadcaster comes.
@frames = ();
foreach my $round (1 .. 10)
{
	$node->pgbench(
		'--no-vacuum --client=8 --jobs=2 --transactions=6', 0, [qr{processed: 48/48}], [qr{^$}], 'concurrent appends',
		{
			"014_ring_events_$round" => <<'SQL'
\set stream random(1, 3)
\set undone random(0, 2)
BEGIN;
SELECT FROM evpg_append('tap', 'c' || :stream, ARRAY[evpg_event('Drop', '{"n": 1}'), evpg_event('Drop', '{"n": 1}')]);
\if :undone = 0
SAVEPOINT a;
SELECT FROM evpg_append('tap', 'c' || :stream, ARRAY[evpg_event('Drop', '{"n": 666}')]);
ROLLBACK TO a;
\endif
COMMIT;
SQL
		});
	push @frames, grep { $_->[0] eq 'events' } all_heard($events);
}
is(scalar @frames, 960, 'the frame of each event is heard once [rule 14, D01]');
my %seen;
is(scalar(grep { ($seen{ $_->[1]{aggregate_id} } // 0) + 1 != ($seen{ $_->[1]{aggregate_id} } = $_->[1]{version}) } @frames),
	0, 'frames of a stream come in the order of its versions [rule 14]');
is( join(' ', map { "$_ $seen{$_}" } sort keys %seen),
	$node->safe_psql('postgres', "SELECT string_agg(aggregate_id || ' ' || version, ' ' ORDER BY aggregate_id) "
		. "FROM evpg_streams('tap') WHERE aggregate_id LIKE 'c%'"),
	'the last frame of each stream is that of its newest event [rule 14]');
$node->safe_psql('postgres', 'BEGIN;' . join('', map { append("many$_", $_) } 1 .. 100) . 'COMMIT');
@frames = grep { $_->[0] eq 'events' } all_heard($events);
is(join(' ', map { $_->[1]{data}{n} } @frames), join(' ', 1 .. 100),
	'streams beyond evpg.max_stream_locks have frames, too [rule 14]');
$node->safe_psql('postgres', "SET evpg.broadcast = 'commit';" . append('t1', 3));
is(brief_events(grep { $_->[0] eq 'events' } all_heard($events)), 'events t1 2 3',
	'commit: frames of events are sent by NOTIFY [rule 14]');
$events->quit;

# ------------------------------------------------------------------ overflow

my $commands = join '', map { execute('o', $_) } 1 .. 1000;

$node->safe_psql('postgres', "BEGIN; $commands COMMIT");
is(brief(all_heard($all)), 'resync 1000',
	'a transaction with more frames than there is room for: all are dropped, and announced [D02]');
is(counters('dropped, resyncs'), '1000|1', 'dropped frames are counted');
is_heard(execute('o', 1001), 'o 1.1001 1001', 'frames go on after some were dropped');
is_heard('BEGIN; SAVEPOINT a;' . $commands . 'ROLLBACK TO a;' . execute('o', 1002) . 'COMMIT', 'o 1.1002 1002',
	'what was rolled back takes no room');

my $wide = "SELECT FROM evpg_execute('meter', 'big', 'Read', jsonb_build_object('key', 'big', 'n', 1, 'text', "
	. "repeat('x', 5000)));\n";
is_heard('BEGIN;' . $wide x 20 . 'SAVEPOINT a;' . execute('big', 2) . 'COMMIT', 'resync 21',
	'a frame after a savepoint is lost with those before it, though it has room, and announced [rule 15]');

# a broadcaster that stands still: as with a stopped disk
my $pid = broadcaster();
kill('STOP', $pid);
$node->safe_psql('postgres', $commands);
is($node->safe_psql('postgres', "SELECT version FROM evpg.projected_state WHERE key = 'o'"), '2002',
	'commands go on while the broadcaster stands still [D02]');
my ($queued, $dropped) = split /\|/, counters('queued, dropped - 1021');
is($queued + $dropped, 1000, 'frames wait, or are dropped');
cmp_ok($queued, '>', 100, 'as many as there is room for wait');
kill('CONT', $pid);
ok($node->poll_query_until('postgres', 'SELECT resyncs = 3 FROM evpg.stat_broadcast'), 'the rest is announced');
@frames = all_heard($all);
is(join(' ', map { $_->[1]{event} eq 'resync' ? $_->[1]{dropped} : () } @frames), $dropped, 'once, with its number');
my ($resync) = grep { $_->[1]{event} eq 'resync' } @frames;
is(join(' ', map { $_->[1]{data}{n} } grep { $_ != $resync } @frames), join(' ', 1 .. $queued),
	'those that waited are heard, in order');
is($json->canonical->encode($resync->[1]), qq({"dropped":$dropped,"event":"resync","reason":"overflow"}),
	'what an announcement says');

# a load that never leaves the broadcaster without frames: it takes the next batch for one that has some
$node->safe_psql('postgres', "ALTER SYSTEM SET evpg.test_mutation = 'frames_keep_coming'");
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
foreach my $round (1 .. 2)
{
	$node->safe_psql('postgres', "BEGIN; $commands COMMIT");
	ok($node->poll_query_until('postgres', "SELECT resyncs = 3 + $round FROM evpg.stat_broadcast"),
		"losses are announced while frames keep coming, $round [rule 15]");
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET evpg.test_mutation');
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
is(brief(all_heard($all)), 'resync 1000, resync 1000', 'each of them once [rule 15]');

# ------------------------------------------------------------------ a rebuild in the background

# Somebody who has appended keeps it from ending.  The log has thousands of events.
$node->safe_psql('postgres',
	"SELECT evpg_register_projection('twin', 'usage_apply', aggregate_types => '{meter}', key_path => "
	. "'\$.data.key', broadcast => 'delta')");
$node->safe_psql('postgres', execute('t', 1));
my $twin = listener('postgres', 'projection.twin', 'evpg.resync');
$writer->query_safe('BEGIN;' . execute('u', 1));
$node->safe_psql('postgres', "SELECT evpg_rebuild_projection('twin', background => true)");
ok($node->poll_query_until('postgres', "SELECT events_done > 1000 FROM evpg.progress_rebuild WHERE name = 'twin'"),
	'a rebuild of an inline projection is under way [rule 13]');
is(brief(all_heard($twin)), '', 'nothing is heard of it [rule 13]');
$node->safe_psql('postgres', execute('t', 2));
is(brief(all_heard($twin)), 't 1.2 2', 'only what others append meanwhile [rule 13]');
is($node->safe_psql('postgres', "SELECT count(*) FROM evpg.progress_rebuild WHERE name = 'twin'"), '1',
	'it goes on [rule 13]');
$writer->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM evpg.rebuild WHERE name = 'twin'"), 'it ends [rule 13]');
my @all = all_heard($twin);
my @rebuilt = grep { $_->[1]{event} eq 'rebuild' } @all;
is(brief(grep { $_->[1]{event} ne 'rebuild' } @all), 'u 1.1 1', 'what was appended before the end is heard [rule 13]');
is($all[0][1]{event}, 'delta', 'before the end [rule 14]');
is(join(' ', sort map { $_->[0] } @rebuilt), 'evpg.resync projection.twin',
	'one frame on each channel says that all rows are new [rule 13]');
is(join(' ', sort keys %{ $rebuilt[0][1] }) . " $rebuilt[0][1]{projection}", 'event position projection twin',
	'the frame of a rebuild has no key [rule 14]');
$node->safe_psql('postgres', execute('t', 3));
like(brief(all_heard($twin)), qr/^t [2-9]\.3 3$/, 'the next frame has a higher generation [rule 12]');
$twin->quit;
$node->safe_psql('postgres', "SELECT evpg_drop_projection('twin')");
all_heard($all);

# ------------------------------------------------------------------ NOTIFY fails

# A queue of 8 GB is not filled here: its files cannot be written, so that NOTIFY fails in the same place.  A listener in a
# transaction holds it all.
my $stuck = listener('postgres', 'projection.usage');
$stuck->query_safe('BEGIN');
my $queue = $node->data_dir . '/pg_notify';
$node->restart;
$_->{run}->kill_kill foreach $stuck, $all, $writer;
$all = listener('postgres', 'projection.usage', 'evpg.resync');
$stuck = listener('postgres', 'projection.usage');
$stuck->query_safe('BEGIN');
unlink glob "$queue/*";
chmod 0500, $queue;
my $large = "SELECT FROM evpg_execute('meter', 'l', 'Read', jsonb_build_object('key', 'l', 'n', 1, 'text', repeat('x', "
	. "5000)));\n";

isnt($node->psql('postgres', "SET evpg.broadcast = 'commit'; BEGIN; " . $large x 50 . 'COMMIT'), 0,
	'with the commit, commands fail');
my $version = $node->safe_psql('postgres', "SELECT coalesce(max(version), 0) FROM evpg.projected_state WHERE key = 'l'");
is($node->psql('postgres', "SET evpg.broadcast = 'worker'; " . $large x 10 . execute('l', 2)), 0,
	'with the broadcaster, none [D02]');
is($node->safe_psql('postgres', "SELECT version - $version FROM evpg.projected_state WHERE key = 'l'"), '11',
	'all are committed');
ok($node->wait_for_log(qr/ERROR:  could not access status of transaction.*\n.*DETAIL:  Could not open file "pg_notify/),
	'the broadcaster cannot send');
is(counters('queued'), '11', 'keeps the frames');
chmod 0700, $queue;
ok($node->poll_query_until('postgres', 'SELECT queued = 0 FROM evpg.stat_broadcast'),
	'the broadcaster sends kept frames when it can');
@frames = grep { $_->[1]{version} > $version } heard($all);
is(join(' ', map { $_->[1]{version} - $version } @frames), join(' ', 1 .. 11), 'in order, to those who listen');
$stuck->query_safe('COMMIT');
$_->quit foreach $stuck, $all;

# ------------------------------------------------------------------ the broadcaster ends

$writer = $node->background_psql('postgres', on_error_stop => 0);
$all = listener('postgres', 'projection.usage', 'evpg.resync');
$pid = broadcaster();
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
is($node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute('e', 1) . "SELECT mode FROM evpg.stat_broadcast"),
	'worker', 'without the broadcaster frames wait');
is(brief(all_heard($all)), 'e 1.1 1', 'for the next one');
isnt(broadcaster(), $pid, 'a broadcaster that has ended is started again');
$_->quit foreach $all, $writer;

# ------------------------------------------------------------------ frames that wait when the broadcaster ends

# Three commands on a key: one whose frame waits in the ring, one after the broadcaster has ended, one after the next has
# come.
# The launcher stands still meanwhile, so that the next one is surely not there yet.
sub overtaken
{
	my ($key, $mode, $mutation) = @_;
	my $launcher = $node->safe_psql('template1', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg launcher'");
	my $test = $mutation ? "SET evpg.test_mutation = '$mutation';" : '';

	$node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute($key, 1));
	all_heard($all);
	$node->poll_query_until('template1', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'")
		or die 'there is no broadcaster';
	kill('STOP', $launcher);
	my $standing = broadcaster();
	kill('STOP', $standing);
	$node->safe_psql('postgres', execute($key, 2));
	kill('TERM', $standing);
	kill('CONT', $standing);
	$node->poll_query_until('template1', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $standing)")
		or die 'the broadcaster does not end';
	$node->safe_psql('postgres', "SET evpg.broadcast = '$mode'; $test" . execute($key, 3));
	kill('CONT', $launcher);
	$node->poll_query_until('postgres', 'SELECT queued = 0 FROM evpg.stat_broadcast') or die 'frames are not sent';
	$node->safe_psql('postgres', "SET evpg.broadcast = '$mode';" . execute($key, 4));
	return brief(all_heard($all));
}

$writer = $node->background_psql('postgres', on_error_stop => 0);
$all = listener('postgres', 'projection.usage', 'evpg.resync');
foreach my $mode (qw(auto commit worker))
{
	is(overtaken("w$mode", $mode), "w$mode 1.2 2, w$mode 1.3 3, w$mode 1.4 4",
		"frames that wait in the ring are not overtaken, $mode [rule 14]");
}
isnt(overtaken('wrong', 'auto', 'frames_overtake'), 'wrong 1.2 2, wrong 1.3 3, wrong 1.4 4',
	'the test notices frames that overtake each other');

# No broadcaster can come: a worker sends what waits.
$node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute('s', 1));
all_heard($all);
$node->poll_query_until('template1', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'")
	or die 'there is no broadcaster';
my $launcher = $node->safe_psql('template1', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg launcher'");
kill('STOP', $launcher);
$node->safe_psql('postgres', "SELECT pg_terminate_backend(" . broadcaster() . ", 60000)");
$node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute('s', 2) . execute('s', 3));
@frames = all_heard($all);
is(brief(@frames), 's 1.2 2, s 1.3 3', 'without a broadcaster a worker sends what waits in the ring [rule 15]');
is($frames[0][2], $node->safe_psql('template1',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'postgres'"), 'from its process');
is($node->safe_psql('postgres', execute('s', 4) . 'SELECT mode FROM evpg.stat_broadcast'), 'commit',
	'auto: afterwards frames go with the commit again');
is(brief(heard($all)), 's 1.4 4', 'in order [rule 14]');
kill('CONT', $launcher);
ok($node->poll_query_until('postgres', "SELECT mode = 'worker' FROM evpg.stat_broadcast"),
	'a broadcaster comes as soon as it can');
$_->quit foreach $all, $writer;

# ------------------------------------------------------------------ the broadcaster crashes

$node->poll_query_until('template1', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'")
	or die 'there is no broadcaster';
kill('KILL', broadcaster());
ok($node->poll_query_until('postgres', 'SELECT sent = 0 FROM evpg.stat_broadcast'), 'after a crash the ring is empty');
$all = listener('postgres', 'projection.usage');
$node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute('e', 2));
is(brief(all_heard($all)), 'e 1.2 2', 'frames are sent again after the error');

$node->safe_psql('postgres', 'DROP EXTENSION evpg CASCADE');
ok($node->poll_query_until('template1', "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'"),
	'DROP EXTENSION ends the broadcaster');
prepare('postgres');
$node->safe_psql('postgres', "SET evpg.broadcast = 'worker';" . execute('e', 1));
is(brief(all_heard($all)), 'e 1.1 1', 'CREATE EXTENSION: from the beginning');
is(counters('sent'), '1', 'CREATE EXTENSION begins counting anew');
$all->quit;

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
