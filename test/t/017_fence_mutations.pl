# Rule 9: a test of the fence must notice a fence that does not hold.  The same schedule and the same load run with the
# fence as it is, which must skip nothing, and with each of these defects, which must skip events.  In the schedule there is
# a reader, and a projection that follows by evpg_run(); in the load there are readers.
#
#   max       there is no mark: a reader goes to the end of what it sees (that is to read without stable_only), so does a
# consumer
#   ignored   the mark is the last position drawn, locks are ignored
#   late      an appender takes its locks after the draw
#
# The defects in C are there because the tests are built with the hooks of src/base/testing.h.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $key = 17700;				# evpg.test_wait waits for who has this advisory lock
my $max_rounds = 30;			# of a second each, until a defect shows; more than once it took none
my $node = evpg_node('mutations');
my $directory = PostgreSQL::Test::Utils::tempdir;
my %defects = (
	max => { stable_only => 'false', mutation => 'consumer_unstable' },
	ignored => { mutation => 'fence_ignored' },
	late => { mutation => 'fence_late' });

sub set_defect
{
	my ($defect) = @_;
	my $mutation = $defect->{mutation} // '';
	my $cache = $defect->{cache} // 1;

	$node->safe_psql('postgres',
		"ALTER DATABASE postgres SET evpg.test_mutation = '$mutation'; ALTER SEQUENCE evpg.event_position CACHE $cache");
	return $defect->{stable_only} // 'true';
}

sub drawn
{
	return $node->safe_psql('postgres', 'SELECT last_position FROM evpg.stat_stable_position');
}

# ------------------------------------------------------------------ a schedule

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE followed (position bigint);
CREATE FUNCTION write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO followed VALUES (event.position) RETURNING NULL::jsonb
$$;
SELECT evpg_register_projection('followed', handler => 'write', mode => 'async');
SQL

# One draws and waits, another appends and commits, a reader pages and a projection follows; the first commits, these go on;
# the first appends again, these go on.  Returns what the reader has seen, what the projection has, and what there is.
sub schedule
{
	my ($stable_only) = @_;
	my ($holder, $first, $reader) = map { $node->background_psql('postgres', on_error_stop => 1) } 1 .. 3;
	my $checkpoint = drawn();
	my $start = $checkpoint;
	my @seen;
	my $append = "SELECT FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')]);\n";
	my $page = sub {
		push @seen, split /\n/,
			$reader->query_safe("SELECT position FROM evpg_read_all($checkpoint, stable_only => $stable_only)");
		$checkpoint = $seen[-1] if @seen;
		$reader->query_safe('CALL evpg_run()');
	};
	my $positions = "SELECT string_agg(position::text, ' ' ORDER BY position)";

	# loads are none of its business
	$node->safe_psql('postgres', "UPDATE evpg.consumer SET checkpoint = $start");

	$holder->query_safe("SELECT pg_advisory_lock($key)");
	$first->query_until(qr/drawing/, "LOAD 'evpg'; SET evpg.test_wait = 'fence_drawn';\nBEGIN;\n\\echo drawing\n$append");
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = $key AND NOT granted")
	  or die 'the appender does not wait';
	$node->safe_psql('postgres', $append);
	$page->();
	$holder->query_safe("SELECT pg_advisory_unlock($key)");
	$first->query_safe('COMMIT');
	$page->();
	$first->query_safe($append);
	$page->();
	$_->quit foreach $holder, $first, $reader;
	return (join(' ', @seen), map { $node->safe_psql('postgres', "$positions FROM $_ WHERE position > $start") } 'followed',
		'evpg.event_log');
}

# ------------------------------------------------------------------ a load

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE seen (position bigint);
CREATE PROCEDURE follow(checkpoint bigint, stable_only boolean) LANGUAGE plpgsql AS $$
DECLARE
  last bigint;
  stopping boolean;
BEGIN
  LOOP
    stopping := EXISTS (SELECT FROM pg_tables WHERE tablename = 'stopped');
    WITH page AS (INSERT INTO seen SELECT e.position FROM evpg_read_all(checkpoint, 100, stable_only => follow.stable_only) e
      RETURNING position)
      SELECT max(position) INTO last FROM page;
    COMMIT;
    EXIT WHEN stopping AND last IS NULL;
    checkpoint := coalesce(last, checkpoint);
  END LOOP;
END $$;
SQL

my $append = "SELECT count(*) FROM evpg_append('account_c', ";
my %scripts = (
	# several draws in a transaction that stays open for a while
	open => <<SQL,
\\set s random(1, 50)
\\set pause random(0, 4)
BEGIN;
$append 's' || :s, ARRAY[evpg_event('Noted'), evpg_event('Noted')]);
\\sleep :pause ms
$append 'own:client_id', ARRAY[evpg_event('Noted')]);
COMMIT;
SQL
	alone => <<SQL,
\\set s random(1, 50)
$append 's' || :s, ARRAY[evpg_event('Noted')]);
SQL
	# waits after the draw, as long as the barrier is down
	waiting => <<SQL,
BEGIN;
SET LOCAL evpg.test_wait = 'fence_drawn';
$append 'waiting:client_id', ARRAY[evpg_event('Waited')]);
COMMIT;
SQL
	abort => <<SQL,
BEGIN;
SAVEPOINT a;
$append 'own:client_id', ARRAY[evpg_event('Lost')]);
ROLLBACK TO a;
$append 'own:client_id', ARRAY[evpg_event('Noted')]);
COMMIT;
SQL
);
my %weights = (open => 4, alone => 4, waiting => 2, abort => 2);
my $barrier = "$directory/barrier.sql";
my @files;

append_to_file($barrier, "SELECT pg_advisory_lock($key);\n\\sleep 3 ms\nSELECT pg_advisory_unlock($key);\n\\sleep 1 ms\n");
foreach my $name (sort keys %scripts)
{
	append_to_file("$directory/$name.sql", $scripts{$name});
	push @files, '-f', "$directory/$name.sql\@$weights{$name}";
}

# Appenders and a reader for a second.  Returns how many events the reader has skipped, of how many.
sub load
{
	my ($stable_only) = @_;
	my $start = drawn();
	my $to = $node->connstr('postgres');
	my $errors = "$directory/errors";

	$node->safe_psql('postgres', 'TRUNCATE seen; DROP TABLE IF EXISTS stopped');
	my $reader = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $to, '-c',
		"CALL follow($start, $stable_only)" ], '2>', "$errors.reader");
	my $holder = IPC::Run::start([ 'pgbench', '-n', '-T', 1, '-f', $barrier, '-d', $to ], '>', "$errors.out", '2>',
		"$errors.barrier");
	my $appenders = IPC::Run::start([ 'pgbench', '-n', '-c', 12, '-T', 1, @files, '-d', $to ], '>', "$errors.out", '2>',
		"$errors.appenders");

	foreach my $run ([ $holder, 'barrier' ], [ $appenders, 'appenders' ])
	{
		$run->[0]->finish;
		$run->[0]->result(0) == 0 or die slurp_file("$errors.$run->[1]");
	}
	$node->safe_psql('postgres', 'CREATE TABLE stopped ()');
	$reader->finish;
	$reader->result(0) == 0 or die slurp_file("$errors.reader");
	return split /\|/, $node->safe_psql('postgres', <<"SQL");
SELECT count(*) FILTER (WHERE NOT EXISTS (SELECT FROM seen s WHERE s.position = e.position)), count(*),
  count(*) FILTER (WHERE type = 'Waited')
  FROM evpg.event_log e WHERE position > $start
SQL
}

# ------------------------------------------------------------------ all

my $stable_only = set_defect({});
my ($seen, $followed, $written) = schedule($stable_only);
is($seen, $written, 'the fence as it is: in the schedule a reader skips nothing [rule 9]');
is($followed, $written, 'the fence as it is: nor does a projection [rule 9]');
foreach my $round (1 .. 5)
{
	my ($skipped, $events, $waited) = load($stable_only);

	is($skipped, 0, "the fence as it is: round $round of the load skips nothing [rule 9]");
	cmp_ok($events, '>', 200, "there were events: $events");
	cmp_ok($waited, '>', 5, "some waited between draw and insert: $waited");
}

foreach my $name (sort keys %defects)
{
	my ($skipped, $events) = (0, 0);
	my $round = 0;

	$stable_only = set_defect($defects{$name});
	($seen, $followed, $written) = schedule($stable_only);
	isnt($seen, $written, "defect \"$name\": the schedule shows it to a reader [rule 9]");
	isnt($followed, $written, "defect \"$name\": and to a projection [rule 9]");
	note "seen $seen, followed $followed of $written";
	($skipped, $events) = load($stable_only) while $skipped == 0 && $round++ < $max_rounds;
	cmp_ok($skipped, '>', 0, "defect \"$name\": the load shows it [rule 9]");
	note "skipped $skipped of $events events in round $round";
}

# nextval() would hand out positions by tens, the first of which would be used after those of others
set_defect({ cache => 10 });
($seen, $followed, $written) = schedule('true');
is("$seen, $followed", "$written, $written", 'a CACHE of the sequence has no effect [rule 9]');

set_defect({});
($seen, $followed, $written) = schedule('true');
is("$seen, $followed", "$written, $written", 'the fence as it is, again: the schedule skips nothing [rule 9]');

$node->stop;
done_testing();
