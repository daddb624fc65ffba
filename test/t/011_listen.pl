# Rules 11 to 15 as a listener meets them: real second connections LISTEN while others execute commands.  Each frame is
# checked: its channels, order, the continuity of versions, its data, and silence about what was rolled back; and the odd
# cases: pointer frames, large deltas, long names, rebuilds, a client that catches up, listeners that never read, prepared
# transactions.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('listen');
my $directory = PostgreSQL::Test::Utils::tempdir;
my $json = JSON::PP->new->canonical;

$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION meter_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT evpg_event('Read', command.data)
$$;
CREATE FUNCTION meter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE FUNCTION usage_apply(state jsonb, event evpg.event) RETURNS evpg.projected LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN event.data ? 'delete' THEN evpg_projected(NULL, '{}') ELSE
    evpg_projected(jsonb_build_object('sum', coalesce((state->>'sum')::bigint, 0) + (event.data->>'n')::bigint), event.data)
      END
$$;
SELECT evpg_register_aggregate('meter', 'meter_handle', 'meter_apply');
-- by id: one stream for each key; by house: several
SELECT evpg_register_projection('usage', 'usage_apply', aggregate_types => '{meter}', broadcast => 'delta');
SELECT evpg_register_projection('house', 'usage_apply', aggregate_types => '{meter}', key_path => '$.data.house',
  broadcast => 'delta');
SQL

sub execute
{
	my ($id, $data) = @_;

	return "SELECT FROM evpg_execute('meter', '$id', 'Read', '$data');\n";
}

sub listener
{
	my @channels = @_;
	my $session = $node->background_psql('postgres');

	$session->query_safe("SELECT evpg_listen($_)") foreach @channels;
	return $session;
}

# The frames that a session has got, oldest first.  A frame that was sent before the statement comes before its end.
sub frames
{
	my ($session, $statement) = @_;
	my @frames;

	foreach my $line (split /\n/, $session->query_safe($statement // 'SELECT WHERE false'))
	{
		$line =~ /^Asynchronous notification "(.+)" with payload "(.+)" received from server process with PID \d+\.$/
		  or die "not a notification: $line";
		push @frames, { channel => $1, payload => $2, %{ $json->decode($2) } };
	}
	return @frames;
}

# "event key generation.version data" of each
sub brief
{
	return join ', ', map
	{
		"$_->{event} $_->{key} $_->{generation}.$_->{version}"
		  . (exists $_->{data} ? ' ' . $json->allow_nonref->encode($_->{data}) : '')
		  . ($_->{truncated} ? ' truncated' : '') . ($_->{deleted} ? ' deleted' : '')
	} @_;
}

# ------------------------------------------------------------------ one after the other

my $all = listener("'usage'");
my $one = listener("'usage', 'm1'");

$node->safe_psql('postgres', execute('m1', '{"n": 1}') . execute('m2', '{"n": 5}') . execute('m1', '{"n": 2}'));
my @frames = frames($all);
is(brief(@frames), 'delta m1 1.1 {"n":1}, delta m2 1.1 {"n":5}, delta m1 1.2 {"n":2}',
	'frames come in the order of the commits [rule 14, C09, B40]');
is(join(' ', map { $_->{channel} } @frames), 'projection.usage ' x 2 . 'projection.usage',
	'on the channel of all keys [rule 14]');
@frames = frames($one);
is(brief(@frames), 'delta m1 1.1 {"n":1}, delta m1 1.2 {"n":2}', 'who listens to a key hears of that key [rule 14]');
is(join(' ', map { $_->{channel} } @frames), 'projection.usage.m1 projection.usage.m1', 'on its channel [rule 14]');
is(join(',', sort keys %{ $json->decode($frames[0]{payload}) }), 'data,event,generation,key,position,projection,version',
	'what a frame says [C44]');
is($frames[0]{projection}, 'usage', 'the projection [C44]');
is( join(' ', map { $_->{position} } @frames),
	$node->safe_psql('postgres',
		"SELECT string_agg(position::text, ' ' ORDER BY position) FROM evpg.event WHERE aggregate_id = 'm1'"),
		'the position of the event [C44]');

my $writer = $node->background_psql('postgres', on_error_stop => 0);
$writer->query_safe('BEGIN;' . execute('m1', '{"n": 7}'));
is(brief(frames($one)), '', 'nothing before the commit [rule 14, D03]');
$writer->query_safe('COMMIT');
is(brief(frames($one)), 'delta m1 1.3 {"n":7}', 'a frame comes after the commit [rule 14, D03]');
$writer->query_safe('BEGIN;' . execute('m1', '{"n": 1}') . execute('m1', '{"n": 1}') . execute('m1', '{"n": 1}') . 'COMMIT');
is(brief(frames($one)), 'delta m1 1.4 {"n":1}, delta m1 1.5 {"n":1}, delta m1 1.6 {"n":1}',
	'equal deltas in one transaction are frames of their own [rule 14]');
$writer->query_safe('BEGIN;' . execute('m1', '{"n": 666}') . 'ROLLBACK');
is(brief(frames($one)), '', 'silence after ROLLBACK [rule 14]');
$writer->query_safe('BEGIN;' . execute('m1', '{"n": 2}') . 'SAVEPOINT a;' . execute('m1', '{"n": 666}') . 'SAVEPOINT b;'
	. execute('m1', '{"n": 666}')
	  . 'RELEASE b;' . execute('m1', '{"n": 666}') . 'ROLLBACK TO a;' . execute('m1', '{"n": 3}') . 'SAVEPOINT c;'
	  	. execute('m1', '{"n": 4}') . 'RELEASE c; COMMIT');
is(brief(frames($one)), 'delta m1 1.7 {"n":2}, delta m1 1.8 {"n":3}, delta m1 1.9 {"n":4}',
	'silence after ROLLBACK TO, and versions without a gap [rule 14]');
$writer->query("SELECT FROM evpg_execute('meter', 'm1', 'Read', '{\"n\": \"many\"}')");
like($writer->{stderr}, qr/invalid input syntax.*projection "usage", key "m1"/s, 'a projection raises [issue 3]');
$writer->{stderr} = '';
is(brief(frames($one)), '', 'a command whose projection raises is not heard [rule 14]');
$node->safe_psql('postgres', "SELECT evpg_rebuild_projection('usage', 'm1')");
is(brief(frames($one)), 'rebuild m1 2.9 {"sum":22}', 'one frame for a rebuild, with the whole state [rule 13, C12, C15]');
$node->safe_psql('postgres', execute('m1', '{"n": 1}') . execute('m1', '{"delete": true}') . execute('m1', '{"n": 1}'));
is(brief(frames($one)), 'delta m1 2.10 {"n":1}, delta m1 2.11 {} deleted, delta m1 3.1 {"n":1}',
	'a deletion, and a return in the next generation [rule 12]');
frames($all);
$one->query_safe("SELECT evpg_unlisten('usage', 'm1')");
$node->safe_psql('postgres', execute('m1', '{"n": 1}'));
is(brief(frames($one)), '', 'after evpg_unlisten, nothing [C44]');
is(brief(frames($all)), 'delta m1 3.2 {"n":1}', 'while others go on [C44]');
$one->query_safe("BEGIN; SELECT evpg_listen('usage', 'm1')");
$node->safe_psql('postgres', execute('m1', '{"n": 2}'));
$one->query_safe('COMMIT');
is(brief(frames($one)), '', 'a listener hears what is committed after it listens [C44]');
$node->safe_psql('postgres', execute('m1', '{"n": 3}'));
is(brief(frames($one)), 'delta m1 3.4 {"n":3}', 'so it listens first, then reads the row: no gap [C44]');
frames($all);

# ------------------------------------------------------------------ who writes hears too

$writer->query_safe("SELECT evpg_listen('usage')");
like($writer->query_safe(execute('own', '{"n": 1}')), qr/"projection.usage" with payload .*"key": "own"/,
	'a session hears its own frames, once [C48]');
$writer->query_safe('UNLISTEN *');
frames($all);

# ------------------------------------------------------------------ PREPARE TRANSACTION

$writer->query('BEGIN;' . execute('m1', '{"n": 666}') . "PREPARE TRANSACTION 'frames'");
like($writer->{stderr}, qr/ERROR:  cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY/,
	'a transaction with frames cannot be prepared [rule 15]');
$writer->{stderr} = '';
is($node->safe_psql('postgres',
	"SELECT (SELECT count(*) FROM pg_prepared_xacts) || ' ' || (SELECT count(*) FROM evpg.event WHERE data->>'n' = '666')"),
	'0 0', 'nothing of it is kept [rule 15]');
is(brief(frames($all)), '', 'a transaction that could not be prepared is not heard [rule 15]');
$writer->query_safe('BEGIN; SET LOCAL evpg.broadcast = off;' . execute('m1', '{"n": 1}')
	. "PREPARE TRANSACTION 'quiet'; COMMIT PREPARED 'quiet'");
is(brief(frames($all)), '', 'without frames it can, and is not heard [rule 15]');

# ------------------------------------------------------------------ large deltas, long names, pointers

my $long = 'n' x 100 . '.ä€';
my $key = 'k"\\' . 'ß' x 100;
$node->safe_psql('postgres', <<"SQL");
SELECT evpg_register_projection('$long', 'usage_apply', aggregate_types => '{meter}', event_types => '{Long}',
  broadcast => 'delta');
SELECT evpg_register_projection('pointer', 'usage_apply', aggregate_types => '{meter}', event_types => '{Point}',
  event_name => 'changed');
SQL
my $longs = listener("'$long'", "'$long', '$key'");
$node->safe_psql('postgres', "SELECT FROM evpg_append('meter', '$key', ARRAY[evpg_event('Long', '{\"n\": 1}')])");
@frames = frames($longs);
is(join(' ', sort map { $_->{channel} } @frames),
	$node->safe_psql('postgres',
	"SELECT string_agg(c, ' ' ORDER BY c) FROM (VALUES (evpg_channel('$long')), (evpg_channel('$long', '$key'))) v (c)"),
	'long names come on the channels that evpg_channel() says [rule 14]');
is(join(' ', map { length($_->{channel}) } @frames), '52 52', 'channels of long names are short [rule 14]');
utf8::decode(my $decoded = $key);
is(scalar(grep { $_->{key} eq $key || $_->{key} eq $decoded } @frames), 2, 'the frame says the whole key [rule 14]');

frames($all);
my $fits = $node->safe_psql('postgres', "SELECT jsonb_build_object('n', 1, 'text', repeat('x', 7800))");
my $large = $node->safe_psql('postgres', "SELECT jsonb_build_object('n', 1, 'text', repeat('x', 8000))");
$node->safe_psql('postgres', execute('big', $fits) . execute('big', $large) . execute('big', '{"n": 1}'));
@frames = frames($all);
is(join(' ', map { "$_->{version} " . ($_->{truncated} ? 'truncated' : exists $_->{data} ? 'data' : 'nothing') } @frames),
	'1 data 2 truncated 3 data', 'a delta that is too large is truncated [rule 14]');
is(length($frames[0]{data}{text}), 7800, 'one that fits is whole [rule 14]');
cmp_ok(length($frames[0]{payload}), '<', 8000, 'a frame never has over 7,999 bytes [rule 14]');
ok(!exists $frames[1]{data}, 'what is truncated has no data [rule 14]');

my $pointers = listener("'pointer'");
$node->safe_psql('postgres',
	"SELECT FROM evpg_append('meter', 'p', ARRAY[evpg_event('Point', '{\"n\": 40}'), evpg_event('Point', '{\"n\": 2}')])");
@frames = frames($pointers);
is(brief(@frames), 'changed p 1.1, changed p 1.2', 'pointer frames, the default, have no data [C40]');
unlike($frames[0]{payload}, qr/40|"data"/, 'nothing of it [C40]');
is($pointers->query_safe("SELECT state->>'sum' FROM evpg_projection('pointer', '$frames[-1]{key}', missing_ok => false) "
	. "WHERE (generation, version) >= ($frames[-1]{generation}, $frames[-1]{version})"), '42',
	'the row that a frame points to is there when it comes [C10]');

# ------------------------------------------------------------------ under load

# 6 writers over 4 meters in 2 houses; 666 is what must never be heard of
my $watch = listener("'usage'", "'house'", map({ "'usage', 'w$_'" } 1 .. 4), map({ "'house', 'h$_'" } 0 .. 1));
my @processes;
foreach my $client (1 .. 6)
{
	my $script = '';

	foreach my $n (1 .. 100)
	{
		my $meter = 1 + ($n + $client) % 4;
		my $house = $meter % 2;
		my $command = sub { execute("w$meter", "{\"n\": $_[0], \"house\": \"h$house\"}") };

		$script .= $n % 5 == 0 ? 'BEGIN;' . $command->($n) . $command->($n) . 'COMMIT;'
		  : $n % 7 == 0 ? 'BEGIN;' . $command->(666) . 'ROLLBACK;'
		  : $n % 11 == 0 ? 'BEGIN;' . $command->($n) . 'SAVEPOINT s;' . $command->(666) . 'ROLLBACK TO s;' . $command->(1)
		  	. 'COMMIT;'
		  : $n == 51 && $client <= 2 ? "SELECT evpg_rebuild_projection('house', 'h$house');"
		  : $command->($n);
	}
	PostgreSQL::Test::Utils::append_to_file("$directory/$client.$_", '') foreach qw(out err);
	PostgreSQL::Test::Utils::append_to_file("$directory/$client.sql", "$script\\echo end\n");
	push @processes, IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f',
		"$directory/$client.sql" ],
		'>', "$directory/$client.out", '2>', "$directory/$client.err");
}
@frames = ();
do
{
	push @frames, frames($watch);
} while (grep { slurp_file("$directory/$_.out") !~ /end/ && slurp_file("$directory/$_.err") eq '' } 1 .. 6);
foreach my $client (1 .. 6)
{
	$processes[ $client - 1 ]->finish;
	is($processes[ $client - 1 ]->result(0), 0, "load: client $client met no error")
		or diag(slurp_file("$directory/$client.err"));
}
push @frames, frames($watch);

my (%last, %sum, %of_channel, %gaps, %count);
foreach my $frame (@frames)
{
	push @{ $of_channel{ $frame->{channel} } }, $frame->{payload};
	next if $frame->{channel} ne "projection.$frame->{projection}";
	my $name = "$frame->{projection}.$frame->{key}";
	my ($generation, $version) = @{ $last{$name} // [ 1, 0 ] };

	$count{ $frame->{event} }++;
	if ($frame->{event} eq 'rebuild')
	{
		# the whole state takes the place of what was known
		$gaps{"$name: generation"}++ if $frame->{generation} != $generation + 1;
		$sum{$name} = $frame->{data}{sum};
	}
	else
	{
		$gaps{"$name: version"}++ if $frame->{generation} != $generation || $frame->{version} != $version + 1;
		$sum{$name} += $frame->{data}{n};
	}
	$last{$name} = [ $frame->{generation}, $frame->{version} ];
}
is(join(', ', sort keys %gaps), '', 'the frames of each key come in order, its versions without a gap [rules 11, 12]');
is( join("\n", map { "$_|$last{$_}[0]|$last{$_}[1]|$sum{$_}" } sort keys %last),
	$node->safe_psql('postgres', <<'SQL'), 'what a listener makes of them is what is stored [rule 14]');
SELECT name || '.' || key, generation, version, state->>'sum' FROM evpg.projected_state
 WHERE (name = 'usage' AND key LIKE 'w_') OR name = 'house' ORDER BY (name || '.' || key) COLLATE "C"
SQL
is($count{delta}, 2 * $node->safe_psql('postgres', "SELECT count(*) FROM evpg.event WHERE aggregate_id LIKE 'w_'"),
	'a frame for each event and projection [rule 14]');
is($count{rebuild}, 2, 'a frame for each rebuild [rule 13]');
is(scalar(grep { ($_->{data}{n} // 0) == 666 } @frames), 0, 'silence about what was rolled back [rule 14]');
foreach my $channel (sort grep { /^projection\.\w+$/ } keys %of_channel)
{
	foreach my $of_key (sort grep { /^\Q$channel\E\./ } keys %of_channel)
	{
		my ($key) = $of_key =~ /([^.]+)$/;

		is(join("\n", @{ $of_channel{$of_key} }),
			join("\n", grep { $json->decode($_)->{key} eq $key } @{ $of_channel{$channel} }),
			"$of_key has the frames of $channel for its key [rule 14]");
	}
}
is(scalar(keys %of_channel), 8, 'on eight channels [rule 14]');
is(inspect($node), '', 'all that is stored agrees');

# ------------------------------------------------------------------ a client that was away

my $mark = $node->safe_psql('postgres', 'SELECT evpg_stable_position()');
$node->safe_psql('postgres', execute('w1', '{"n": 10}') . execute('w9', '{"n": 9}') . execute('w2', '{"delete": 1}'));
is( $node->safe_psql('postgres',
	"SELECT key, coalesce(state->>'sum', 'gone') FROM evpg_projection_changes('usage', $mark) ORDER BY position"),
	'w1|' . ($sum{'usage.w1'} + 10) . "\nw9|9\nw2|gone", 'who was away catches up with evpg_projection_changes() [rule 15]');

# ------------------------------------------------------------------ listeners that never read

# psql without a query does not read: the server cannot send it more than its socket holds.  The other one is in a
# transaction, and keeps the queue of notifications from being emptied.
frames($all);
my $holder = listener("'usage'");
$holder->query_safe('BEGIN; SELECT 1');
my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM evpg.event');
my $data = $node->safe_psql('postgres', "SELECT jsonb_build_object('n', 1, 'text', repeat('x', 7000))");
$node->safe_psql('postgres', execute('flood', $data) x 300);
is($node->safe_psql('postgres', 'SELECT count(*) FROM evpg.event'), $before + 300,
	'listeners that never read do not fail commands [issue 3]');
cmp_ok($node->safe_psql('postgres', 'SELECT pg_notification_queue_usage()'), '>', 0,
	'the queue keeps what they have not read [issue 3]');
my $ours = $node->background_psql('postgres');
$ours->query_safe("SELECT evpg_listen('usage')");
$node->safe_psql('postgres', execute('flood', '{"n": 2}'));
is(brief(frames($ours)), 'delta flood 1.301 {"n":2}', 'listeners that do not read do not stop others [issue 3]');
my @flood = frames($all);
is(join(' ', map { $_->{version} } @flood), join(' ', 1 .. 301), 'when one reads at last, all is there, in order [rule 14]');
is(join(' ', map { $_->{version} } frames($holder, 'COMMIT')), join(' ', 1 .. 301), 'the other, too [rule 14]');
is(join(' ', map { $_->{version} } grep { $_->{channel} eq 'projection.usage' && $_->{key} eq 'flood' } frames($watch)),
	join(' ', 1 .. 301), 'a third listener that has not read meanwhile has all frames [rule 14]');
is($node->safe_psql('postgres', 'SELECT pg_notification_queue_usage()'), '0',
	'the queue of notifications is empty when all have read [issue 3]');

# where a frame comes from, as its session says
$writer->query_safe("SET evpg.origin = 'tab \"7\"'");
$writer->query_safe(execute('flood', '{"n": 5}'));
$writer->query_safe('RESET evpg.origin');
is(join(' ', map { $_->{origin} } frames($all)), 'tab "7"', 'a frame has the origin that its session set [rule 14, C45]');
$node->safe_psql('postgres', execute('flood', '{"n": 6}'));
is(join(' ', map { exists $_->{origin} ? 'some' : 'none' } frames($all)), 'none', 'none if none was set [rule 14]');

# a wait for what is not committed
$writer->query_safe('BEGIN;' . execute('open', '{"n": 1}'));
my $open = $node->safe_psql('postgres', 'SELECT last_value FROM evpg.event_position');
is($node->safe_psql('postgres', "SELECT evpg_wait_for('usage', $open, '0')"), 'f',
	'an inline projection does not have what is not committed [rule 9]');
is($node->safe_psql('postgres', "SELECT evpg_wait_for('usage', $open - 1, '0')"), 't',
	'an inline projection has what is before an open transaction [rule 9]');
$writer->query_safe('COMMIT');
is($node->safe_psql('postgres', "SELECT evpg_wait_for('usage', $open, '0')"), 't',
	'once it is committed it has it [rule 9]');
frames($_) foreach $all, $ours;

# a listener that dies
my $pid = $ours->query_safe('SELECT pg_backend_pid()');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
$node->safe_psql('postgres', execute('flood', '{"n": 3}'));
is(brief(frames($all)), 'delta flood 1.304 {"n":3}', 'a listener that dies leaves the others [issue 3]');
$ours->{run}->kill_kill;

$_->quit foreach $all, $one, $writer, $longs, $pointers, $watch, $holder;
$node->stop;
done_testing();
