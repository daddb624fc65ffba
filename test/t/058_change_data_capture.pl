# Rule 9 for change data capture: docs/cdc.md, block by block.  A source is written to by eight clients that roll back,
# prepare and leave transactions open, and is killed meanwhile; one subscriber has evpg, another has not.  Readers there that
# follow the mark see every event once, in the order of positions, and each with its stream; one that does not misses some.
# A reader of a slot that follows the logical messages misses none either, and an outbox table is sent in that order, too.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT run_writers set_mutation);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $directory = PostgreSQL::Test::Utils::tempdir;
my $max_rounds = 20;			# of the load, until a reader without the mark has missed something
my $source = evpg_node('source', allows_streaming => 'logical', conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_connections = 40
max_prepared_transactions = 40
evpg.stable_position_interval = 10ms
evpg.workers = 1
EOC
my $target = evpg_node('target', bare => 1, allows_streaming => 'logical', conf => <<'EOC');
shared_preload_libraries = 'evpg'
wal_retrieve_retry_interval = 100ms
EOC
my @receivers = qw(plain evpg);

# ------------------------------------------------------------------ the page

# The blocks of the page, by their first lines.
my %blocks;
{
	my $text = slurp_file(tree() . '/docs/cdc.md');
	my @all = $text =~ /^```\n(-- .*?)^```$/msg;

	foreach my $block (@all)
	{
		my ($title) = $block =~ /^-- (.*)\n/;

		die "two blocks are named $title" if exists $blocks{$title};
		$blocks{$title} = $block;
	}
	is($text =~ s/^```$//mgr =~ tr/`//, $text =~ tr/`// - 3 * 2 * (@all + 1), 'one block of the page is for no database');
}

# A block, which must be taken once.
sub take_block
{
	my ($title) = @_;

	return delete $blocks{$title} // die "there is no block: $title";
}

my $mark = take_block('at the source, each second');
my $ready = take_block('at each receiver, until it is true') =~ s/^--.*\n//r =~ s/;\s*$//r;
my $page = take_block('at each receiver, reading');
my $page_evpg = take_block('at the receiver with evpg');
my $outbox_view = take_block('at the source, and at each receiver');
my $slot_page = take_block('at the source, then as a statement of its own, page by page');
my $slot_changes = take_block('at the source, again and again') =~ s/^--.*\n//r;

# ------------------------------------------------------------------ the source

my $append = "SELECT position FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')])";

$source->safe_psql('postgres', take_block('at the source'));
$source->safe_psql('postgres', $append) foreach 1 .. 3;

# As cdc, which subscribers connect as, too.
sub move_mark
{
	return $source->safe_psql('postgres', $mark, extra_params => [ '-U', 'cdc' ]);
}

move_mark();
is($source->safe_psql('postgres', 'SELECT position = evpg_stable_position() FROM event_mark'), 't', 'the mark moves');

# ------------------------------------------------------------------ receivers

$target->safe_psql('postgres', "CREATE DATABASE $_") foreach @receivers;
$target->safe_psql('plain', take_block('at the receiver without evpg'));
$target->safe_psql('evpg', 'CREATE EXTENSION evpg');
my $create = take_block('at each receiver');
my $connection = $source->connstr('postgres') . ' user=cdc';
foreach my $receiver (@receivers)
{
	$target->safe_psql($receiver, $create,
		extra_params => [ '-v', "source=$connection", '-v', "slot=$receiver" ]);
	ok($target->poll_query_until($receiver, $ready), "$receiver: the tables are ready");
	is($target->safe_psql($receiver, $page, extra_params => [ '-v', 'checkpoint=0' ]) =~ tr/\n// + 1,
		3, "$receiver: what there was has been copied [rule 9]");
	$target->safe_psql($receiver, $outbox_view);
}
$source->safe_psql('postgres', $outbox_view);
is($target->safe_psql('evpg', 'SELECT evpg_stable_position()'), 0, 'the stable position does not follow [rule 9]');

# Waits until receivers have what the source has committed.  Their subscriptions have the same name, their slots do not.
sub catch_up
{
	my $lsn = $source->safe_psql('postgres', 'SELECT pg_current_wal_flush_lsn()');

	foreach my $receiver (@receivers)
	{
		$source->poll_query_until('postgres', "SELECT confirmed_flush_lsn >= '$lsn' AND active FROM pg_replication_slots
		  WHERE slot_name = '$receiver'") or die "$receiver does not catch up";
	}
	return;
}

# ------------------------------------------------------------------ readers of the receivers

# Begins after what is there.
sub begin_reading
{
	my ($receiver, %options) = @_;
	my $start = $target->safe_psql($receiver, 'SELECT max(position) FROM evpg.event_log');

	return { receiver => $receiver, start => $start, last => $start, seen => [], %options };
}

# Reads one page, as it is documented or without the mark; returns how many events it had.
sub read_page
{
	my ($reader) = @_;
	my $query = $reader->{with_evpg} ? $page_evpg : $page;

	$query =~ s/ AND position <= \(.*?\)// or die if $reader->{hasty};
	my @page = map { (split /\|/)[0] } split /\n/,
	  $target->safe_psql($reader->{receiver}, $query, extra_params => [ '-v', "checkpoint=$reader->{last}" ]);

	push @{ $reader->{seen} }, @page;
	$reader->{last} = $page[-1] if @page;
	return scalar @page;
}

# How many events of a list that was read are missing, or not in their place.
sub count_wrong
{
	my ($start, @seen) = @_;
	my @written = split /\n/,
	  $source->safe_psql('postgres', "SELECT position FROM evpg.event_log WHERE position > $start ORDER BY position");
	my %is_seen = map { $_ => 1 } @seen;
	my $wrong = grep { !$is_seen{$_} } @written;

	$wrong++ if !$wrong && "@seen" ne "@written";
	note scalar(@written), ' written, ', scalar(@seen), ' seen';
	return $wrong;
}

# The same of a reader, after it has read what there is.
sub finish_reading
{
	my ($reader) = @_;

	1 while read_page($reader) > 0;
	return count_wrong($reader->{start}, @{ $reader->{seen} });
}

# ------------------------------------------------------------------ a reader of a slot

my %slot = (kept => {}, last => 0, marks => 0, seen => []);

# Hands on what is kept up to a stable position.
sub hand_on
{
	my ($stable) = @_;
	my @ready = sort { $a <=> $b } grep { $_ <= $stable } keys %{ $slot{kept} };

	push @{ $slot{seen} }, @ready;
	delete @{ $slot{kept} }{@ready};
	$slot{last} = $stable if $stable > $slot{last};
	return;
}

# Reads what the slot has: events are kept until a message hands them on.  Returns how many lines there were.
sub read_slot
{
	my $count = 0;

	foreach my $line (split /\n/, $source->safe_psql('postgres', $slot_changes))
	{
		$count++;
		if ($line =~ /^table evpg\.event_log: INSERT: "position"\[bigint\]:(\d+) /)
		{
			$slot{kept}{$1} = 1 if $1 > $slot{last};
		}
		elsif ($line =~ /^message: transactional: 0 prefix: evpg\.stable_position, sz: \d+ content:(\d+)$/)
		{
			hand_on($1);
			$slot{marks}++;
		}
		elsif ($line =~ /stable_position/)
		{
			die "unexpected: $line";
		}
	}
	return $count;
}

# Writes the position, and reads all.
sub drain_slot
{
	$source->safe_psql('postgres', 'SELECT evpg_log_stable_position()');
	1 while read_slot() > 0;
	return;
}

# One transaction is open, another commits above it, before the slot exists and after.
my $open = $source->background_psql('postgres', on_error_stop => 1);
$open->query_safe("BEGIN; $append");
my $above = $source->safe_psql('postgres', $append);
# a slot waits for transactions that have an id
my $slot = $source->background_psql('postgres', on_error_stop => 1);
$slot->query_until(qr/creating/, "\\echo creating\n" . take_block('at the source, for a slot'));
$source->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'reader')) or die;
my $beside = $source->safe_psql('postgres', $append);
$open->query_safe('COMMIT');
$slot->quit;
my $stable = $source->safe_psql('postgres', take_block('at the source, then'));
my @before = map { (split /\|/)[0] } split /\n/,
  $source->safe_psql('postgres', $slot_page, extra_params => [ '-v', 'checkpoint=0' ]);
is(scalar(grep { $_ == $above } @before), 1, 'what has committed before the slot is read from the log');
$slot{kept}{$_} = 1 foreach @before;
hand_on($stable);
drain_slot();
is(count_wrong(0, @{ $slot{seen} }), 0, 'a reader that creates a slot, then reads the log, has everything [rule 9]');

# A position that is written without regard to appenders: then the message comes before the event.
sub schedule
{
	my $start = $slot{last};

	@{ $slot{seen} } = ();
	$open->query_safe("BEGIN; $append");
	$source->safe_psql('postgres', $append);
	drain_slot();
	$open->query_safe('COMMIT');
	drain_slot();
	$source->safe_psql('postgres', $append);
	drain_slot();
	return count_wrong($start, @{ $slot{seen} });
}

is(schedule(), 0, 'a message comes after all events up to its position [rule 9]');
set_mutation($source, 'logged_unstable');
cmp_ok(schedule(), '>', 0, 'with a defect it does not [rule 9]');
set_mutation($source, '');
$open->quit;

# ------------------------------------------------------------------ the outbox table

# its slot is there before the first row
$source->safe_psql('postgres', q(SELECT pg_create_logical_replication_slot('outbox', 'test_decoding')));
$source->safe_psql('postgres', take_block('at the source, for Debezium'));

# What the slot has sent.
sub read_outbox
{
	return map { /^table public\.outbox: INSERT: "position"\[bigint\]:(\d+) / ? $1 : () } split /\n/,
	  $source->safe_psql('postgres',
		q(SELECT data FROM pg_logical_slot_get_changes('outbox', NULL, NULL, 'include-xids', 'off')));
}

# ------------------------------------------------------------------ a load

my $call = "SELECT count(*) FROM evpg_append('account_c', ";
my %scripts = (
	open => <<SQL,
\\set s random(1, 50)
\\set pause random(0, 20)
BEGIN;
$call 's' || :s, ARRAY[evpg_event('Noted'), evpg_event('Noted')]);
\\sleep :pause ms
$call gen_random_uuid()::text, ARRAY[evpg_event('Noted')]);
COMMIT;
SQL
	lazy => <<SQL,
\\set s random(1, 50)
SET synchronous_commit = off;
$call 's' || :s, ARRAY[evpg_event('Noted')]);
RESET synchronous_commit;
SQL
	early => <<SQL,
\\set s random(1, 50)
SET evpg.early_release = on;
$call 's' || :s, ARRAY[evpg_event('Noted', metadata => '{"by": "early"}')]);
RESET evpg.early_release;
SQL
	aborted => <<SQL,
BEGIN;
SAVEPOINT a;
$call 'own:client_id', ARRAY[evpg_event('Lost')]);
ROLLBACK TO a;
$call 'own:client_id', ARRAY[evpg_event('Noted')]);
COMMIT;
BEGIN;
$call gen_random_uuid()::text, ARRAY[evpg_event('Lost')]);
ROLLBACK;
SQL
	prepared => <<SQL,
\\set pause random(0, 10)
\\set n random(1, 1000000000)
BEGIN;
$call 'p:client_id-:n', ARRAY[evpg_event('Prepared')]);
PREPARE TRANSACTION 'p:client_id-:n';
\\sleep :pause ms
COMMIT PREPARED 'p:client_id-:n';
SQL
);
my $orphans = 0;				# events whose stream a receiver had not

# Writers for some seconds, or until the source is gone; the mark moves and readers read meanwhile.
sub load
{
	my ($seconds, $crashes, @readers) = @_;
	my $killed = 0;

	return run_writers(
		$source, $seconds,
		\%scripts,
		sub {
			move_mark() unless $killed;
			read_page($_) foreach @readers;
			$orphans += $target->safe_psql($_, 'SELECT count(*) FROM evpg.event_log e
			  WHERE NOT EXISTS (SELECT FROM evpg.stream s WHERE s.stream_id = e.stream_id)') foreach @receivers;
		},
		$crashes && sub { $source->kill9; $killed = 1 });
}

# Ends what a crash has left prepared, and brings everything to the receivers.
sub settle
{
	foreach my $gid (split /\n/, $source->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
	{
		$source->safe_psql('postgres', "COMMIT PREPARED '$gid'");
	}
	move_mark();
	is($source->safe_psql('postgres', 'SELECT m.position >= (SELECT max(position) FROM evpg.event_log) FROM event_mark m'),
		't', 'the mark has passed the last event [rule 9]');
	catch_up();
	return;
}

# Readers of all kinds before and after a crash.
foreach my $crash (0, 1)
{
	my $when = $crash ? 'the source was killed' : 'eight writers wrote';
	my $start = $slot{last};
	my @readers = (begin_reading('plain'), begin_reading('evpg'), begin_reading('evpg', with_evpg => 1));

	@{ $slot{seen} } = ();
	my $errors = load($crash ? 8 : 4, $crash, @readers);
	if ($crash)
	{
		isnt($errors, '', 'the source is killed under the writers');
		start_again($source);
		is(load(3, 0, @readers), '', 'it is written to again');
	}
	else
	{
		is($errors, '', 'eight writers write');
	}
	settle();
	foreach my $reader (@readers)
	{
		is(finish_reading($reader), 0, "$reader->{receiver}, " . ($reader->{with_evpg} ? 'by evpg_read_all' : 'by the view')
			. ": by the mark every event is read once, in order, when $when [rule 9]");
		cmp_ok(scalar @{ $reader->{seen} }, '>', 100, 'there were some');
	}
	drain_slot();
	is(count_wrong($start, @{ $slot{seen} }), 0, "a reader of a slot has got all in order, when $when [rules 9, 19]");
	cmp_ok($slot{marks}, '>', 3, "by $slot{marks} messages");
}
is($orphans, 0, 'no event was there without its stream');

# What all have: the rows, the fields of an outbox.
my $fields = "SELECT count(*), md5(string_agg(o::text, ',' ORDER BY position)) FROM event_outbox o";
my $expected = $source->safe_psql('postgres', $fields);
is($target->safe_psql($_, $fields), $expected, "$_: the fields of the outbox are those of the source [rule 19]")
  foreach @receivers;
ok( $source->poll_query_until('postgres', 'SELECT (SELECT count(*) FROM outbox) = (SELECT count(*) FROM evpg.event_log)'),
	'the outbox table has got everything');
is($source->safe_psql('postgres', 'SELECT count(*) FROM (TABLE outbox EXCEPT SELECT position, id, aggregatetype,
  aggregateid, type, payload, timestamp, headers FROM event_outbox) x'), 0, 'as the view shows it');
is(count_wrong(0, read_outbox()), 0, 'it is sent once, in the order of positions, without a mark [rule 9]');
is($source->safe_psql('postgres', "WITH gone AS (DELETE FROM outbox
  WHERE timestamp < now() AT TIME ZONE 'UTC' + interval '1 day' RETURNING 1) SELECT count(*) > 0 FROM gone"), 't',
	'its rows can be deleted');

# ------------------------------------------------------------------ a reader without the mark

my $wrong = 0;
foreach my $round (1 .. $max_rounds)
{
	my $reader = begin_reading('plain', hasty => 1);

	load(2, 0, $reader);
	settle();
	$wrong = finish_reading($reader);
	note "$wrong wrong in round $round";
	last if $wrong > 0;
}
cmp_ok($wrong, '>', 0, 'a reader that keeps the highest position it has seen misses events [rule 9]');

# ------------------------------------------------------------------ writing to a receiver

$target->safe_psql('evpg', q(SELECT evpg_register_aggregate('account_c')));
is(sqlstate($target, q(SELECT evpg_create_stream('account_c', 'here')), 'evpg'), '23505',
	'a stream that is made at a receiver is an error');
$target->safe_psql('evpg', $_) foreach 'DROP SUBSCRIPTION events', 'SELECT evpg_activate_consumers()';
is($target->safe_psql('evpg', 'SELECT max(position) = evpg_stable_position() FROM evpg.event_log'), 't',
	'without the subscription, once activated, it continues the log');
is($target->safe_psql('evpg', "SELECT max(position) AS last FROM evpg.event_log \\gset\n"
	. q(SELECT version, position > :last FROM evpg_append('account_c', 'here', ARRAY[evpg_event('Noted')]))), '1|t',
	'with streams and events of its own [rule 9]');

# ------------------------------------------------------------------ a dump

my $members = q(SELECT string_agg(pubname || ': ' || tablename, ', ' ORDER BY pubname, tablename) FROM pg_publication_tables
  WHERE pubname IN ('events', 'everything') AND tablename IN ('stream', 'event_log', 'event_mark'));
$source->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
my $published = $source->safe_psql('postgres', $members);
command_ok([ 'pg_dump', '-Fc', '-f', "$directory/dump", '-d', $source->connstr('postgres') ], 'the source is dumped');
$target->safe_psql('postgres', $_) foreach 'CREATE DATABASE restored', 'CREATE ROLE cdc LOGIN REPLICATION';
command_ok([ 'pg_restore', '-d', $target->connstr('restored'), "$directory/dump" ], 'and restored');
is($target->safe_psql('restored', $members),
	'events: event_mark, everything: event_log, everything: event_mark, everything: stream',
	'a dump forgets which tables of evpg are published by name');
$target->safe_psql('restored', take_block('at the source, after a restore'));
is($target->safe_psql('restored', $members), $published, 'one statement repairs that');
is(join(', ', sort keys %blocks), '', 'every block of the page was run');

$target->safe_psql('plain', 'DROP SUBSCRIPTION events');
foreach my $node ($source, $target)
{
	is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
	$node->stop;
}
done_testing();
