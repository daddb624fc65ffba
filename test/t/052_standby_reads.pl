# Rule 9 on standbys: a reader there pages by evpg_read_all() up to the stable position that the primary has written into
# WAL, and sees every event once, in the order of positions: under writers that roll back, prepare, commit asynchronously
# and release early, when the primary is killed, on a standby of the standby, and over a promotion.  With a defect planted,
# a position that is written without looking at the appenders, it does not, in the schedule as well as under the load.
# evpg_wait_for_position() is how a client reads its own write there.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT run_writers set_mutation);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $max_rounds = 30;			# of the load, until the defect shows
my $primary = evpg_node('primary', allows_streaming => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_prepared_transactions = 40
evpg.workers = 0
evpg.stable_position_interval = 10ms
evpg.broadcast = off
max_wal_senders = 10
EOC

$primary->safe_psql('postgres', <<'SQL');
CREATE FUNCTION count_events(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1)
$$;
SELECT evpg_register_projection('counted', 'count_events', aggregate_types => '{account_c}');
SQL
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
my $second = PostgreSQL::Test::Cluster->new('second');
$standby->backup('cascade');
$second->init_from_backup($standby, 'cascade', has_streaming => 1);
$second->start;

my $append = "SELECT position FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')])";

sub append
{
	return $primary->safe_psql('postgres', $append);
}

# Writes the stable position, and waits until both standbys have replayed it; returns it.
sub write_position
{
	my $position = $primary->safe_psql('postgres', 'SELECT evpg_log_stable_position()');

	$primary->wait_for_catchup($standby);
	$standby->wait_for_catchup($second, 'replay', $standby->lsn('replay'));
	return $position;
}

# The positions that a standby returns above one, and its stable position.
sub read_above
{
	my ($node, $after) = @_;

	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(position::text, ' '), ''), evpg_stable_position() FROM evpg_read_all($after)");
}

# ------------------------------------------------------------------ what a standby knows

my $first = append();
$primary->wait_for_catchup($standby);
is(read_above($standby, 0), '|0', 'a standby returns nothing before a position is written [rule 9]');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM evpg_read_all(0, stable_only => false)'), 1,
	'although the event is there');
is(write_position(), $first, 'a session writes the stable position, without workers');
is(read_above($standby, 0), "$first|$first", 'the standby reads up to it [rule 9]');
is(read_above($second, 0), "$first|$first", 'so does a standby of the standby [rule 9]');
is($standby->safe_psql('postgres', 'SELECT stable_position, logged_position, last_position >= stable_position '
	. 'FROM evpg.stat_stable_position'), "$first|$first|t", 'and the view shows it');
is($standby->safe_psql('postgres', "SELECT state->'n', position FROM evpg_projection_changes('counted') LIMIT 1"),
	"1|$first",
	'changes of a projection are read up to it, too');
append();
is($primary->safe_psql('postgres',
	'CALL evpg_run(); SELECT logged_position = stable_position FROM evpg.stat_stable_position'), 't',
	'evpg_run() writes it as well');

# Nothing is written if nothing has changed; others may write meanwhile.
my $silent = grep {
	$primary->safe_psql('postgres', <<'SQL') eq 't'
SELECT pg_current_wal_insert_lsn() AS before \gset
SELECT evpg_log_stable_position() AS position \gset
SELECT pg_current_wal_insert_lsn() = :'before'
SQL
} 1 .. 5;
cmp_ok($silent, '>', 0, 'a position that has not moved is not written again');

is(sqlstate($standby, 'SELECT evpg_log_stable_position()'), '25006', 'a standby writes none');
is(sqlstate($primary, 'BEGIN READ ONLY; SELECT evpg_log_stable_position()'), '25006', 'nor does a read-only transaction');
is(sqlstate($standby, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT evpg_stable_position()'), '25000',
	'a snapshot may be older than the position [rule 9]');
is($primary->safe_psql('postgres', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT evpg_log_stable_position() > 0'),
	"1\nt", 'one that is written needs no snapshot');

# ------------------------------------------------------------------ a schedule

# One appends and stays open, or is prepared; another appends and commits; the position is written; the first commits, and it
# is written again.  Returns what the standbys have read, and what there is.
sub schedule
{
	my ($prepared) = @_;
	my $session = $primary->background_psql('postgres', on_error_stop => 1);
	my $start = $primary->safe_psql('postgres', 'SELECT last_position FROM evpg.stat_stable_position');
	my %seen = (standby => $start, second => $start);
	my %read = (standby => '', second => '');
	my $page = sub {
		write_position();
		foreach my $node ($standby, $second)
		{
			my $name = $node->name;
			my ($positions) = split /\|/, read_above($node, $seen{$name});

			$read{$name} .= "$positions ";
			$seen{$name} = $1 if $positions =~ /(\d+)$/;
		}
	};

	$session->query_safe("BEGIN; $append");
	$session->query_safe("PREPARE TRANSACTION 'open'") if $prepared;
	append();
	$page->();
	$session->query_safe($prepared ? "COMMIT PREPARED 'open'" : 'COMMIT');
	$page->();
	append();
	$page->();
	$session->quit;
	my @read = map { s/\s+/ /gr =~ s/^ | $//gr } @read{qw(standby second)};
	return (@read, $primary->safe_psql('postgres',
		"SELECT string_agg(position::text, ' ' ORDER BY position) FROM evpg.event_log WHERE position > $start"));
}

foreach my $prepared (0, 1)
{
	my $what = $prepared ? 'a prepared transaction' : 'an open transaction';
	my ($read, $cascaded, $written) = schedule($prepared);

	is($read, $written, "$what: a reader on a standby skips nothing [rule 9]");
	is($cascaded, $written, "$what: nor on a standby of it [rule 9]");
	set_mutation($primary, 'logged_unstable');
	($read, $cascaded, $written) = schedule($prepared);
	isnt($read, $written, "$what: with the defect it does [rule 9]");
	isnt($cascaded, $written, "$what: also behind a standby [rule 9]");
	set_mutation($primary, '');
}

# ------------------------------------------------------------------ reading one's own write

my $session = $standby->background_psql('postgres', on_error_stop => 1);

$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
my $mine = $primary->safe_psql('postgres',
	"SELECT position FROM evpg_append('account_c', 'mine', ARRAY[evpg_event('Noted')])");
is($session->query_safe("SELECT evpg_wait_for_position($mine, '0')"), 'f', 'what is not replayed cannot be read');
is($session->query_safe("SELECT evpg_wait_for_position($mine, '100 ms')"), 'f', 'a wait for it ends with its timeout');
is($session->query_safe("SELECT evpg_wait_for('counted', $mine, '0')"), 'f', 'nor has an inline projection got it');
$session->query_until(qr/waiting/, "\\echo waiting\nSELECT evpg_wait_for_position($mine, NULL);\n");
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
is($session->query_safe("SELECT count(*) FROM evpg_read_stream('account_c', 'mine')") =~ s/^t\n//r, '1',
	'a client that has waited for its position on a standby reads what it wrote');
is($session->query_safe("SELECT state->'n' FROM evpg_projection('counted', 'mine')"), '1',
	'so it does in an inline projection');
is($session->query_safe("SELECT evpg_wait_for('counted', $mine, '0')"), 't', 'which has got it');

my $lost = $primary->safe_psql('postgres', "BEGIN; $append; ROLLBACK");
is($session->query_safe("SELECT evpg_wait_for_position($lost, '100 ms')"), 'f',
	'a position that was rolled back is waited for');
write_position();
is($session->query_safe("SELECT evpg_wait_for_position($lost, '0')"), 't', 'until the stable position is above it [rule 9]');
is($session->query_safe("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT evpg_wait_for_position($lost, '0'); COMMIT"), 'f',
	'which counts under READ COMMITTED alone');
is($primary->safe_psql('postgres', "SELECT evpg_wait_for_position($lost), evpg_wait_for_position($mine)"), 't|t',
	'on the primary it holds at once');
is(sqlstate($primary, "BEGIN; $append; SELECT evpg_wait_for_position($lost + 1000)"), 'VE015',
	'a transaction that has appended must not wait');
is(sqlstate($standby, 'SELECT evpg_wait_for_position(NULL)'), '22004', 'a position is needed');
$session->quit;

# ------------------------------------------------------------------ a load

$primary->append_conf('postgresql.conf', "evpg.workers = 2\n");
$primary->reload;
$primary->poll_query_until('postgres', "SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'evpg worker'")
  or die 'there are no workers';

my $call = "SELECT count(*) FROM evpg_append('account_c', ";
my %scripts = (
	open => <<SQL,
\\set s random(1, 50)
\\set pause random(0, 4)
BEGIN;
$call 's' || :s, ARRAY[evpg_event('Noted'), evpg_event('Noted')]);
\\sleep :pause ms
$call 'own:client_id', ARRAY[evpg_event('Noted')]);
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
$call 's' || :s, ARRAY[evpg_event('Noted')]);
RESET evpg.early_release;
SQL
	aborted => <<SQL,
\\set s random(1, 50)
BEGIN;
SAVEPOINT a;
$call 'own:client_id', ARRAY[evpg_event('Lost')]);
ROLLBACK TO a;
$call 'own:client_id', ARRAY[evpg_event('Noted')]);
COMMIT;
BEGIN;
$call 's' || :s, ARRAY[evpg_event('Lost')]);
ROLLBACK;
SQL
	prepared => <<SQL,
-- each a stream of its own: what a crash leaves prepared must not keep the others waiting
\\set pause random(0, 5)
\\set n random(1, 1000000000)
BEGIN;
$call 'p:client_id-:n', ARRAY[evpg_event('Prepared')]);
PREPARE TRANSACTION 'p:client_id-:n';
\\sleep :pause ms
COMMIT PREPARED 'p:client_id-:n';
SQL
);
# A reader on a node: what it has seen, in the order in which it came.
sub begin_reading
{
	my ($node) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 1);
	my $start = $session->query_safe('SELECT evpg_stable_position()');

	return { session => $session, start => $start, last => $start, seen => [] };
}

# Reads one page; returns how many events it had.
sub read_page
{
	my ($reader) = @_;
	my @page = split /\n/, $reader->{session}->query_safe("SELECT position FROM evpg_read_all($reader->{last}, 100)");

	push @{ $reader->{seen} }, @page;
	$reader->{last} = $page[-1] if @page;
	return scalar @page;
}

# Writers for some seconds, or until the server is gone; all readers read meanwhile, each page by page.
sub load
{
	my ($node, $seconds, $at_half, @readers) = @_;

	return run_writers($node, $seconds, \%scripts, sub { read_page($_) foreach @readers }, $at_half);
}

# Reads until everything that a node has written is read; returns how many events the reader has not, or not in their place.
sub count_missed
{
	my ($node, $reader) = @_;
	my $position = $node->safe_psql('postgres', 'SELECT evpg_stable_position()');

	# the last ones are rolled back, maybe
	for (my $n = 0; $n < 10 * $PostgreSQL::Test::Utils::timeout_default; $n++)
	{
		my $stable = $reader->{session}->query_safe('SELECT evpg_stable_position()');

		1 while read_page($reader) > 0;
		last if $stable >= $position;
		usleep(100_000);
	}
	my @written = split /\n/, $node->safe_psql('postgres',
		"SELECT position FROM evpg.event_log WHERE position > $reader->{start} ORDER BY position");
	my @seen = @{ $reader->{seen} };
	my %is_seen = map { $_ => 1 } @seen;
	my $missed = grep { !$is_seen{$_} } @written;

	$missed++ if !$missed && "@seen" ne "@written";
	note scalar(@written), ' written, ', scalar(@seen), ' seen';
	return ($missed, scalar @written);
}

my @readers = map { begin_reading($_) } $standby, $second;
is(load($primary, 4, undef, @readers), '', 'eight writers write');
foreach my $n (0, 1)
{
	my ($missed, $written) = count_missed($primary, $readers[$n]);

	is($missed, 0, 'a reader on a standby ' . ($n ? 'of it ' : '') . 'has seen every event once, in order [rule 9]');
	cmp_ok($written, '>', 200, "there were events: $written");
}

# Workers write the position by themselves, and nothing when nothing happens.
ok( $primary->poll_query_until('postgres', 'SELECT logged_position = last_position FROM evpg.stat_stable_position'),
	'workers write the last position of a load [rule 9]');
my $quiet = grep {
	my $before = $primary->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');

	usleep(1_500_000);
	$before eq $primary->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
} 1 .. 4;
cmp_ok($quiet, '>', 0, 'an idle primary writes no WAL');

# With the defect
set_mutation($primary, 'logged_unstable');
my $missed = 0;
foreach my $round (1 .. $max_rounds)
{
	my $reader = begin_reading($standby);

	load($primary, 1, undef, $reader);
	($missed) = count_missed($primary, $reader);
	$reader->{session}->quit;
	note "missed $missed in round $round";
	last if $missed > 0;
}
cmp_ok($missed, '>', 0, 'with a position that is written too early the load shows it [rule 9]');
set_mutation($primary, '');
write_position();
$_->{session}->quit foreach @readers;

# ------------------------------------------------------------------ kill -9, promotion

@readers = map { begin_reading($_) } $standby, $second;
my $error = load($primary, 6, sub { $primary->kill9 }, @readers);
isnt($error, '', 'the primary is killed under the writers');
start_again($primary);
is(load($primary, 2, undef, @readers), '', 'it is written to again');
foreach my $gid (split /\n/, $primary->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
{
	$primary->safe_psql('postgres', "COMMIT PREPARED '$gid'");
}
foreach my $n (0, 1)
{
	($missed) = count_missed($primary, $readers[$n]);
	is($missed, 0, 'after a crash of the primary a standby ' . ($n ? 'of it ' : '') . 'has missed nothing [rule 9]');
}
$_->{session}->quit foreach @readers;

@readers = map { begin_reading($_) } $standby, $second;
$primary->safe_psql('postgres', "BEGIN; $append; PREPARE TRANSACTION 'kept'");
$error = load($primary, 6, sub { $primary->stop('immediate') }, @readers);
isnt($error, '', 'the primary is gone under the writers');
# as the primary had
$standby->append_conf('postgresql.conf', "evpg.workers = 2\n");
$standby->reload;
$standby->promote;
ok($standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'the standby is promoted');
is(load($standby, 3, undef, @readers), '', 'the promoted standby is written to');
cmp_ok($readers[0]{last}, '<', $standby->safe_psql('postgres', 'SELECT last_position FROM evpg.stat_stable_position'),
	'what was prepared on the primary holds its readers back [rule 9]');
foreach my $gid (split /\n/, $standby->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
{
	$standby->safe_psql('postgres', "COMMIT PREPARED '$gid'");
}
is(load($standby, 2, undef, @readers), '', 'and when it has committed');
foreach my $n (0, 1)
{
	($missed) = count_missed($standby, $readers[$n]);
	is($missed, 0,
		($n ? 'a standby of it that follows' : 'a reader over the promotion')
		. ' has seen every event once, in order [rule 9]');
}
$_->{session}->quit foreach @readers;
is(inspect($standby), '', 'all that is stored agrees');

$second->stop;
$standby->stop;
done_testing();
