# Rule 20: three consumers share eight partitions of a subscription while sessions append and roll back; one is killed,
# others come and go, and server processes and the postmaster are killed under fetches and acks.  No event is lost, each
# stream is in order, and what is acknowledged in the transaction of its work is done once.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon crash wait_until);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('subscriptions', conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
fsync = on
restart_after_crash = on
EOC

query(<<'SQL');
SELECT evpg_register_aggregate('thing');
CREATE TABLE got (number bigserial, consumer text, "position" bigint, aggregate_id text, version bigint, attempt int);
-- Appends events to streams at random, in one order, so that two do not deadlock; each third transaction rolls back.
CREATE PROCEDURE produce(transactions int) LANGUAGE plpgsql AS $$
BEGIN
  FOR n IN 1 .. transactions LOOP
    PERFORM evpg_append_event('thing', id, 'Made')
      FROM (SELECT 's' || (random() * 40)::int AS id FROM generate_series(1, 1 + (random() * 3)::int) ORDER BY id) streams;
    IF random() < 0.3 THEN ROLLBACK; ELSE COMMIT; END IF;
    -- where it notices that the postmaster has died
    PERFORM pg_sleep(0.001);
  END LOOP;
END $$;
-- Fetches, commits, then writes down what it has got, and acknowledges that, in a second transaction; until nothing has
-- come for a while.
CREATE PROCEDURE consume(subscription text, consumer text, batch int DEFAULT 7, idle interval DEFAULT '5 s')
LANGUAGE plpgsql AS $$
DECLARE
  last timestamptz := clock_timestamp();
  event record;
  acked boolean;
BEGIN
  WHILE clock_timestamp() < last + idle LOOP
    DROP TABLE IF EXISTS batch_of;
    CREATE TEMP TABLE batch_of AS SELECT * FROM evpg_fetch(subscription, consumer, batch, wait => '200 ms');
    COMMIT;
    IF EXISTS (SELECT FROM batch_of) THEN
      last := clock_timestamp();
      INSERT INTO got (consumer, "position", aggregate_id, version, attempt)
        SELECT consume.consumer, b."position", b.aggregate_id, b.version, b.attempt FROM batch_of b ORDER BY b."position";
      SELECT evpg_ack(consume.subscription, lease, max("position")) INTO acked FROM batch_of GROUP BY lease;
      IF acked THEN COMMIT; ELSE ROLLBACK; END IF;
    END IF;
  END LOOP;
END $$;
SQL

# Begins a statement in a session of its own, whose application_name is a name.
sub begin
{
	my ($name, $statement) = @_;
	my ($out, $error) = ('', '');
	my $run = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
			'-c', "SET application_name = '$name'", '-c', 'SET client_min_messages = warning', '-c', $statement ],
		'<', \undef, '>', \$out, '2>', \$error);

	return { run => $run, error => \$error };
}

sub finish
{
	my @sessions = @_;
	my $good = 1;

	foreach my $session (@sessions)
	{
		$good &= $session->{run}->finish;
		diag(${ $session->{error} }) if ${ $session->{error} } ne '';
	}
	return $good;
}

# What is wrong with what consumers have written down, of the events from a position on: events that none has, and versions
# that came before the one before them.
sub wrong
{
	my ($after) = @_;

	return query(<<"SQL");
SELECT 'lost ' || aggregate_id || ':' || version FROM evpg.event e
 WHERE "position" > $after AND NOT EXISTS (SELECT FROM got WHERE got."position" = e."position")
UNION ALL
SELECT 'out of order ' || aggregate_id || ':' || version
  FROM (SELECT aggregate_id, version, max(version) OVER (PARTITION BY aggregate_id ORDER BY number
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before,
               min(version) OVER (PARTITION BY aggregate_id) AS first FROM got WHERE "position" > $after) g
 WHERE version > coalesce(before, first - 1) + 1
UNION ALL
SELECT 'twice ' || aggregate_id || ':' || version FROM got WHERE "position" > $after
 GROUP BY aggregate_id, version HAVING count(*) > 1
SQL
}

# ------------------------------------------------------------------ three consumers, one is killed

query("SELECT evpg_create_subscription('shared', partitions => 8, lease_time => '2 s', max_attempts => 100)");
my @producers = map { begin("producer $_", 'CALL produce(300)') } 1 .. 3;
my @consumers = map { begin("consumer $_", "CALL consume('shared', 'c$_')") } 1 .. 3;
soon("SELECT count(DISTINCT consumer) = 3 AND min(n) >= 2 FROM (SELECT consumer, count(*) AS n FROM evpg.stat_subscription
  WHERE name = 'shared' AND consumer IS NOT NULL GROUP BY 1) s", 'three consumers share eight partitions [rule 20]');
soon('SELECT count(DISTINCT consumer) = 3 FROM got', 'and all of them work [rule 20]');
query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'consumer 2'");
soon("SELECT count(*) = 8 FROM evpg.stat_subscription WHERE name = 'shared' AND consumer IN ('c1', 'c3')",
	'when one is killed, the others get its partitions [rule 20]');
ok(finish(@producers), 'producers come to their end');
ok(finish(@consumers[ 0, 2 ]), 'so do consumers');
$consumers[1]{run}->finish;
is(wrong(0), '', 'no event is lost, out of order or done twice [rule 20]');
cmp_ok(query('SELECT count(*) FROM got'), '>', 500, 'there were events');
is(query("SELECT sum(in_flight) FROM evpg.stat_subscription WHERE name = 'shared'"), '0', 'nothing is in flight');

# ------------------------------------------------------------------ one that dies at the same event each time

query("SELECT evpg_create_subscription('poison', start_at => 'now', max_attempts => 3, lease_time => '100 ms')");
query("SELECT evpg_append_event('thing', 'p' || n % 3, CASE n WHEN 5 THEN 'Poison' ELSE 'Made' END)
  FROM generate_series(1, 12) n");
my $deaths = 0;
for my $n (1 .. 100)
{
	my ($result, $out, $error) = $node->psql('postgres', <<'SQL');
SELECT count(*) > 0 AS any, max(lease) AS lease, max("position") AS last, coalesce(bool_or(type = 'Poison'), false) AS poison
  FROM evpg_fetch('poison', 'd') \gset
\if :any
SELECT pg_terminate_backend(pg_backend_pid()) WHERE :'poison';
SELECT evpg_ack('poison', :lease, :last);
\else
SELECT 'idle';
\endif
SQL
	$deaths++ if $result != 0;
	last if $out =~ /idle/;
}
is($deaths, 3, 'a consumer dies as often as may be [rule 20]');
is(query(q{SELECT string_agg(e.aggregate_id || ':' || e.version || ' ' || coalesce(p.error, '-'), ', ' ORDER BY p."position")
  FROM evpg.parked_event p JOIN evpg.event e USING ("position") WHERE p.name = 'poison'}),
	'p2:2 it was not acknowledged in 3 attempts, p2:3 -, p2:4 -',
	'then the event is parked, and the later ones of its stream behind it [rule 20]');
is(query("SELECT lag_events FROM evpg.stat_subscription WHERE name = 'poison'"), '0', 'the others are done [rule 20]');

# ------------------------------------------------------------------ notifications

query("SELECT evpg_create_subscription('noted', event_types => '{Noted}', start_at => 'now')");
ok( wait_until(
		sub {
			my ($result, $out) = run_command(
				[ 'psql', '-XAtq', '-d', $node->connstr('postgres'),
					'-c', "SELECT evpg_listen_subscription('noted')",
					'-c', "SELECT 1 FROM evpg_append_event('thing', 'n', 'Noted')",
					'-c', 'SELECT pg_sleep(0.3)' ]);

			return $result =~ /Asynchronous notification "subscription\.noted"/;
		}),
	'a worker notifies consumers that listen [rule 20, D21]');

# ------------------------------------------------------------------ consumers come and go

my $position = query('SELECT evpg_stable_position()');
query("SELECT evpg_create_subscription('guests', start_at => 'now', partitions => 8,
  lease_time => '300 ms', max_attempts => 1000)");
my $producer = begin('producer', 'CALL produce(400)');
for my $round (1 .. 25)
{
	my @guests = map { begin("guest $_", "CALL consume('guests', 'g${round}_$_', idle => '100 ms')") } 1 .. 4;

	# some are killed, some leave
	query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('guest 1', 'guest 3')")
	  if $round % 2;
	$_->{run}->finish foreach @guests;
}
ok(finish($producer), 'a hundred consumers have come and gone while events were appended');
query("CALL consume('guests', 'last')");
is(wrong($position), '', 'no event is lost, out of order or done twice [rule 20]');
cmp_ok(query('SELECT count(*) FROM evpg.subscription_lease'), '<', 40, 'slots are used again');

# ------------------------------------------------------------------ a consumer's process, or the postmaster, is killed

$position = query('SELECT evpg_stable_position()');
query("SELECT evpg_create_subscription('crash', start_at => 'now', partitions => 8,
  lease_time => '1 s', max_attempts => 1000)");
foreach my $round (1 .. 4)
{
	my $before = query('SELECT count(*) FROM got');
	my @sessions = (
		(map { begin("producer $_", 'CALL produce(100000)') } 1 .. 2),
		(map { begin("consumer $_", "CALL consume('crash', 'k$_')") } 1 .. 3));

	soon("SELECT count(*) > $before + 100 FROM got", "events are consumed, round $round");
	# the server ends all sessions when one of them is killed
	crash($round % 2
		? 'postmaster'
		: ('consumer', query("SELECT pid FROM pg_stat_activity WHERE application_name = 'consumer 2'")));
	$_->{run}->finish foreach @sessions;
}
query("CALL consume('crash', 'last', 1000)");
is(wrong($position), '', 'after crashes, too, none is lost, out of order or done twice [rule 20]');

# ------------------------------------------------------------------ ten thousand subscriptions

# each takes a lock to the end of the transaction that creates it
query(<<'SQL');
DO $$
BEGIN
  FOR i IN 1 .. 10000 LOOP
    PERFORM evpg_create_subscription('many' || i, start_at => 'now');
    IF i % 500 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$;
SELECT evpg_append_event('thing', 'last', 'Made');
SQL
is(query(<<'SQL'), 'last true last true last true', 'of ten thousand subscriptions each hands out its events [rule 20]');
SELECT string_agg(f.aggregate_id || ' ' || evpg_ack('many' || n, f.lease, f."position"), ' ')
  FROM unnest('{1,5000,10000}'::int[]) AS n, evpg_fetch('many' || n, 'a') AS f
SQL
is(query("SELECT count(*), sum(lag_events) FROM evpg.stat_subscription WHERE name LIKE 'many%'"), '10000|9997',
	'and the view shows how far each of them is');

$node->stop;
done_testing();
