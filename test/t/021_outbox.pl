# The recipe of docs/outbox.md (B61 to B64): publishers read the log while others write it, and hand events to a broker that
# loses messages and acknowledgements; publishers crash at every step, and the server, too.  Every event arrives at least
# once, the first copies of a stream in order, and a consumer with an inbox takes each once.  And what is lost if a
# publisher does it otherwise, so that it is known to matter.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

srand(20);
my $node = evpg_node('outbox', conf => "synchronous_commit = on\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# The table and the functions, as they are documented.
my $recipe = join "\n", slurp_file(tree()
	. '/docs/outbox.md') =~ /^(CREATE (?:TABLE|FUNCTION) outbox_(?:reader|read|published|failed)\b.*?^(?:\)|\$\$);)$/msg;
is(() = $recipe =~ /^CREATE/mg, 4, 'the recipe is a table and three functions');
$node->safe_psql('postgres', <<SQL);
$recipe
INSERT INTO outbox_reader (name, event_types)
  VALUES ('all', NULL), ('rare', '{Rare}'), ('half 0', NULL), ('half 1', NULL), ('hasty', NULL);
CREATE ROLE publisher LOGIN;
GRANT SELECT, UPDATE ON outbox_reader TO publisher;
SELECT evpg_grant('publisher', 'reader');
SQL

# ------------------------------------------------------------------ the broker

my %broker;					# messages that have arrived, by topic
my %happened;				# how often something went wrong
my $down = 0;				# so many messages find no broker

# Dies unless the message is acknowledged.
sub send_message
{
	my ($topic, $message) = @_;
	my $what = rand;

	die "the broker is down\n" if $down > 0 && $down--;
	if ($what < 0.03)
	{
		$happened{'a message is refused'}++;
		die "refused\n";
	}
	if ($what < 0.05)
	{
		$happened{'the broker goes down'}++;
		$down = int(rand(5));
		push @{ $broker{$topic} }, $message if rand() < 0.5;
		die "connection to the broker lost\n";
	}
	push @{ $broker{$topic} }, $message;
	if ($what < 0.10)
	{
		$happened{'an acknowledgement is lost'}++;
		die "no acknowledgement\n";
	}
	return;
}

# ------------------------------------------------------------------ publishers

# Two for one reader, as if one took over while the other still runs; one of a rare type; two that share the streams.
my @publishers = (
	{ reader => 'all', pages => 1 },
	{ reader => 'all' },
	{ reader => 'rare', pages => 1, rare => 1 },
	{ reader => 'half 0', half => 0 },
	{ reader => 'half 1', half => 1, pages => 1 });
my $page = 20;

# Nothing of a publisher is left then but what it has committed.
sub crash
{
	my ($what) = @_;

	$happened{$what}++;
	die "crash\n";
}

sub maybe_crash
{
	my ($what) = @_;

	crash($what) if rand() < 0.02;
	return;
}

sub published
{
	my ($publisher, $position) = @_;
	my $session = $publisher->{session};

	maybe_crash('a publisher crashes before it moves the checkpoint');
	if (rand() < 0.02)
	{
		$session->query_safe("BEGIN; SELECT outbox_published('$publisher->{reader}', $position)");
		crash('a publisher crashes while it moves the checkpoint');
	}
	$session->query_safe("SELECT outbox_published('$publisher->{reader}', $position)");
	maybe_crash('a publisher crashes after it has moved the checkpoint');
	return;
}

# The connection of a publisher, whose role may do no more than the recipe says.
sub session
{
	my ($publisher) = @_;

	return $publisher->{session} //= $node->background_psql('postgres', extra_params => [ '-U', 'publisher' ]);
}

# One page; returns how many events it had.
sub publish_page
{
	my ($publisher) = @_;
	my $session = session($publisher);
	my $reader = $publisher->{reader};
	my $stable = $publisher->{rare} ? $session->query_safe('SELECT evpg_stable_position()') : undef;
	my @rows = map { [ split /\|/ ] } split /\n/, $session->query_safe(<<SQL);
SELECT position, event_id, aggregate_id, version, type, hashtextextended(aggregate_id, 0) & 1
  FROM outbox_read('$reader', $page)
SQL
	my $done;

	foreach my $row (@rows)
	{
		my ($position, $id, $stream, $version, $type, $half) = @$row;

		if (!defined $publisher->{half} || $publisher->{half} == $half)
		{
			if (!eval { send_message($reader,
				{ id => $id, stream => $stream, version => $version, position => $position, type => $type }); 1 })
			{
				my $error = $@ =~ s/\n//r;

				published($publisher, $done) if defined $done;
				# NULL: another publisher has published it meanwhile
				my $attempts = $session->query_safe("SELECT outbox_failed('$reader', $position, '$error')");

				$happened{'attempts are counted'}++ if $attempts ne '' && $attempts > 1;
				return scalar @rows;
			}
			published($publisher, $position) if !$publisher->{pages};
		}
		$done = $position;
	}
	published($publisher, $done) if defined $done;
	published($publisher, $stable) if $publisher->{rare} && @rows < $page;
	return scalar @rows;
}

# What a publisher knows goes with its process.
sub forget
{
	my ($publisher) = @_;

	if ($publisher->{session})
	{
		$publisher->{session}->{run}->kill_kill;
		delete $publisher->{session};
	}
	return;
}

sub step
{
	my ($publisher) = @_;
	my $rows = eval { publish_page($publisher) };

	return $rows if defined $rows;
	die $@ if $@ ne "crash\n";
	forget($publisher);
	return 1;
}

# ------------------------------------------------------------------ those who write events

my %scripts = (
	commit => <<'SQL',
\set s random(1, 12)
\set pause random(0, 40)
BEGIN;
SELECT count(*) FROM evpg_append('account_c', 's' || :s, array_fill(evpg_event('Noted'), ARRAY[1 + :s % 3]));
\sleep :pause ms
SELECT count(*) FROM evpg_append('account_c', 'own:client_id', ARRAY[evpg_event('Noted')]);
COMMIT;
SQL
	rare => <<'SQL',
\set s random(1, 12)
\set pause random(0, 40)
BEGIN;
SELECT count(*) FROM evpg_append('account_c', 'own:client_id', ARRAY[evpg_event('Rare')]);
\sleep :pause ms
COMMIT;
SQL
	abort => <<'SQL',
\set s random(1, 12)
\set pause random(0, 40)
BEGIN;
SELECT count(*) FROM evpg_append('account_c', 's' || :s, ARRAY[evpg_event('Lost'), evpg_event('Rare')]);
\sleep :pause ms
ROLLBACK;
SQL
);
my %weights = (commit => 6, rare => 1, abort => 2);
my @files;

foreach my $name (sort keys %scripts)
{
	PostgreSQL::Test::Utils::append_to_file("$directory/$name.pgbench", $scripts{$name});
	push @files, '-f', "$directory/$name.pgbench\@$weights{$name}";
}

sub start_writers
{
	my ($transactions) = @_;

	return IPC::Run::start(
		[ 'pgbench', '-n', '-c', 5, '-t', $transactions, @files, '-d', $node->connstr('postgres') ],
		'>', "$directory/pgbench.out", '2>', "$directory/pgbench.err");
}

# ------------------------------------------------------------------ the load

# Until the writers have ended, or, if they do not, until the server crashes.
sub load
{
	my ($what, $transactions, $crash) = @_;
	my $writers = start_writers($transactions);
	my $passes = 0;

	while ($writers->pumpable)
	{
		step($_) foreach @publishers;
		last if $crash && ++$passes > 10 && $crash->();
	}
	$writers->finish;
	is($writers->result(0), $crash ? 2 : 0, "$what: the writers wrote") or diag(slurp_file("$directory/pgbench.err"));
	return;
}

# While one publisher is moving the checkpoint.  False: there is nothing to publish just now.
sub crash_server
{
	my $checkpoint = "SELECT checkpoint FROM outbox_reader WHERE name = 'all'";
	my $before = $node->safe_psql('postgres', $checkpoint);

	my $published = "BEGIN; SELECT outbox_published('all', position) FROM outbox_read('all', 1)";

	if (session($publishers[0])->query_safe($published) ne 't')
	{
		$publishers[0]->{session}->query_safe('ROLLBACK');
		return 0;
	}
	$node->kill9;
	forget($_) foreach @publishers;
	start_again($node);
	is($node->safe_psql('postgres', $checkpoint), $before,
		'a checkpoint that is not committed is not moved by a crash [B62]');
	return 1;
}

load('at first', 60);
load('the server crashes', 1_000_000, \&crash_server);
load('afterwards', 60);

# An event that is committed after a later one, in the eyes of publishers that have come to the end in between.
sub come_to_the_end
{
	foreach my $publisher (@publishers)
	{
		my $steps = 0;

		while (step($publisher) > 0)
		{
			die "$publisher->{reader} comes to no end" if ++$steps > 10_000;
		}
	}
	return;
}

my $late = $node->background_psql('postgres');
come_to_the_end();
$late->query_safe("BEGIN; SELECT FROM evpg_append('account_c', 'late', ARRAY[evpg_event('Rare')])");
$node->safe_psql('postgres', "SELECT FROM evpg_append('account_c', 'early', ARRAY[evpg_event('Rare')])");
come_to_the_end();
$late->query_safe('COMMIT');
come_to_the_end();
$late->quit;
forget($_) foreach @publishers;
note "$_: $happened{$_}" foreach sort keys %happened;
cmp_ok($happened{$_} // 0, '>', 0, "it happened: $_") foreach 'a message is refused', 'the broker goes down',
  'an acknowledgement is lost', 'attempts are counted', 'a publisher crashes before it moves the checkpoint',
  'a publisher crashes while it moves the checkpoint', 'a publisher crashes after it has moved the checkpoint';

# ------------------------------------------------------------------ what has arrived

# All events that a topic must have, as "position id stream version type".
sub events
{
	my ($condition) = @_;

	return split /\n/, $node->safe_psql('postgres',
		"SELECT concat_ws(' ', position, event_id, aggregate_id, version, type) FROM evpg.event "
		. "WHERE $condition ORDER BY position");
}

# What is wrong with the messages of a topic, one line each.
sub wrong
{
	my ($topic, $condition) = @_;
	my %wanted = map { $_ => 1 } events($condition);
	my %seen;
	my %last;
	my @wrong;

	foreach my $message (@{ $broker{$topic} })
	{
		my $text = join ' ', @$message{qw(position id stream version type)};

		push @wrong, "$text is not an event, or not as it is there" if !$wanted{$text};
		next if $seen{ $message->{id} }++;
		push @wrong, "$text comes after version $last{ $message->{stream} }"
		  if $message->{version} <= ($last{ $message->{stream} } // 0);
		$last{ $message->{stream} } = $message->{version};
	}
	push @wrong, map { "$_ has not arrived" } grep { !$seen{ (split / /)[1] } } sort keys %wanted;
	return join "\n", @wrong;
}

my %condition = (
	all => 'true',
	rare => "type = 'Rare'",
	'half 0' => 'hashtextextended(aggregate_id, 0) & 1 = 0',
	'half 1' => 'hashtextextended(aggregate_id, 0) & 1 = 1');

foreach my $topic (sort keys %condition)
{
	my @events = events($condition{$topic});
	my $messages = @{ $broker{$topic} };

	cmp_ok(scalar @events, '>', 10, "$topic: there were events");
	is(wrong($topic, $condition{$topic}), '',
		"$topic: every event arrived, in order, as it is in the log, and nothing else [B58, B63]");
	cmp_ok($messages, '>', @events, "$topic: some more than once");
	note "$topic: $messages messages of @{[scalar @events]} events";
}
is($node->safe_psql('postgres',
	"SELECT * FROM outbox_reader WHERE name <> 'hasty' AND (checkpoint < (SELECT max(position) "
	. "FROM evpg.event_log) OR attempts <> 0)"),
	'', 'all readers have come to the end');

# ------------------------------------------------------------------ a consumer that takes each once

$node->safe_psql('postgres', 'CREATE DATABASE consumer');
$node->safe_psql('consumer', <<'SQL');
CREATE EXTENSION evpg;
CREATE TABLE taken (n bigint GENERATED ALWAYS AS IDENTITY, id uuid, stream text, version bigint);
CREATE FUNCTION take(id uuid, stream text, version bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT evpg_receive('outbox', id::text) THEN
    RETURN false;
  END IF;
  INSERT INTO taken (id, stream, version) VALUES (id, stream, version);
  RETURN true;
END $$;
SQL

my $consumer;
my $repetitions = 0;

# It crashes before and after its commit; the message is then delivered again.
foreach my $message (@{ $broker{all} })
{
	my $take = "SELECT take('$message->{id}', '$message->{stream}', $message->{version})";

	$consumer //= $node->background_psql('consumer');
	if (rand() < 0.02)
	{
		$consumer->query_safe("BEGIN; $take");
		$consumer->{run}->kill_kill;
		$consumer = undef;
		redo;
	}
	$repetitions++ if $consumer->query_safe($take) eq 'f';
	redo if rand() < 0.02;
}
$consumer->quit if $consumer;
cmp_ok($repetitions, '>', 0, "$repetitions repetitions were recognised");
is( $node->safe_psql('consumer', "SELECT concat_ws(' ', id, stream, version) FROM taken ORDER BY stream, n"),
	$node->safe_psql('postgres',
		"SELECT concat_ws(' ', event_id, aggregate_id, version) FROM evpg.event ORDER BY aggregate_id, version"),
	'the consumer has taken each event once, those of a stream in order');

# ------------------------------------------------------------------ the same, done otherwise

# The checkpoint first: at most once.
my @three = map { "SELECT FROM evpg_append('account_c', 'hasty', ARRAY[evpg_event('Noted')])" } 1 .. 3;
$node->safe_psql('postgres', "UPDATE outbox_reader SET checkpoint = evpg_stable_position() WHERE name = 'hasty'");
$node->safe_psql('postgres', join ';', @three);
foreach my $row (map { [ split /\|/ ] } split /\n/,
	$node->safe_psql('postgres', "SELECT position, event_id, aggregate_id, version, type FROM outbox_read('hasty')"))
{
	my ($position, $id, $stream, $version, $type) = @$row;

	$node->safe_psql('postgres', "SELECT outbox_published('hasty', $position)");
	next if $version == 2;		# it crashes here, and goes on from its checkpoint
	push @{ $broker{hasty} }, { id => $id, stream => $stream, version => $version, position => $position, type => $type };
}
like(wrong('hasty', "aggregate_id = 'hasty'"), qr/^\S+ \S+ hasty 2 Noted has not arrived$/,
	'a checkpoint that moves first loses an event [B62]');

# Two that are sent together, the first of which is refused and comes again.
my @messages = @{ $broker{hasty} };
$broker{hasty} = [ $messages[1], $messages[0] ];
like(wrong('hasty', "aggregate_id = 'hasty' AND version <> 2"), qr/^\S+ \S+ hasty 1 Noted comes after version 3$/,
	'a message that is sent before the one before it is acknowledged comes too early');

# ------------------------------------------------------------------ a publisher that is stopped, and the server

$node->safe_psql('postgres', 'CREATE DATABASE restarted');
$node->safe_psql('restarted', "CREATE EXTENSION evpg; $recipe");
$node->safe_psql('restarted', slurp_file(tree() . '/examples/bank/bank.sql'));

sub append_to
{
	my ($stream, $count) = @_;

	$node->safe_psql('restarted',
		"SELECT FROM evpg_append('account_c', '$stream', array_fill(evpg_event('Noted'), ARRAY[$count]))");
	return;
}

# A new publisher: all that is there, in pages of three; it ends in good order.
sub publish_all
{
	my ($reader) = @_;
	my $session = $node->background_psql('restarted');

	while (my @rows = map { [ split /\|/ ] } split /\n/,
		$session->query_safe("SELECT position, aggregate_id, version FROM outbox_read('$reader', 3)"))
	{
		push @{ $broker{$reader} }, "$_->[1] $_->[2]" foreach @rows;
		$session->query_safe("SELECT outbox_published('$reader', $rows[-1][0])");
	}
	$session->quit;
	return join ', ', @{ $broker{$reader} };
}

sub offset
{
	my ($reader) = @_;

	return $node->safe_psql('restarted', "SELECT checkpoint FROM outbox_reader WHERE name = '$reader'");
}

# four events, two more after a restart
$node->safe_psql('restarted', "INSERT INTO outbox_reader (name) VALUES ('offsets')");
append_to('a', 4);
is(publish_all('offsets'), 'a 1, a 2, a 3, a 4', 'four events are published [B61, 2.4 test 9]');
is(offset('offsets'), 4, 'the stored offset is 4 [B62, 2.4 test 9]');
$node->restart;
is(offset('offsets'), 4, 'the stored offset is the same after a restart [B62, 2.4 test 9]');
append_to('a', 2);
is(publish_all('offsets'), 'a 1, a 2, a 3, a 4, a 5, a 6',
	'from the stored offset six messages are published, none twice [B62, 2.4 test 9]');
is(offset('offsets'), 6, 'the offset is 6 [B62, 2.4 test 9]');

# of two streams; those that come while nobody publishes
$node->safe_psql('restarted', "INSERT INTO outbox_reader (name, checkpoint) SELECT 'resumed', evpg_stable_position()");
append_to('b', 3);
append_to('c', 2);
is(publish_all('resumed'), 'b 1, b 2, b 3, c 1, c 2', 'five events are published [B61, 2.4 test 9]');
append_to('b', 1);
$node->restart;
append_to('c', 2);
is(publish_all('resumed'), 'b 1, b 2, b 3, c 1, c 2, b 4, c 3, c 4',
	'after a restart of publisher and server exactly eight messages [B61, 2.4 test 9]');
is(publish_all('resumed'), join(', ', @{ $broker{resumed} }), 'none is published again [B61, 2.4 test 9]');
is(scalar @{ $broker{resumed} }, 8, 'the next publisher publishes none again [B61, 2.4 test 9]');

$node->stop;
done_testing();
