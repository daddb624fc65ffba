# Subscriptions in dumps, copies, on a standby that is promoted, and in prepared transactions: what is acknowledged, in
# flight, parked and skipped is the same there, and every place ends with the same events handed out (rules 9 and 20).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query crash);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('primary', allows_streaming => 1, conf => "max_prepared_transactions = 10\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# What is to be seen of subscriptions, but for whether they run here.
my $contents = <<'SQL';
SELECT * FROM evpg.subscription ORDER BY name;
SELECT * FROM evpg.subscription_lease ORDER BY subscription, slot;
SELECT * FROM evpg.subscription_partition ORDER BY subscription, partition;
SELECT * FROM evpg.parked_event ORDER BY name, "position";
SELECT name, partition, consumer, lease, checkpoint, in_flight, attempts, parked, lag_events FROM evpg.stat_subscription
 ORDER BY name, partition;
SELECT name, kind, checkpoint, lag_events, events_total, parked FROM evpg.stat_consumer ORDER BY name;
SQL

# Takes what a subscription has left, under the name of the consumer that had something in flight; as position:attempt.
my $drain = <<'SQL';
CREATE TEMP TABLE taken (number serial PRIMARY KEY, "position" bigint, attempt int);
DO $$
DECLARE
  batch evpg.delivery[];
BEGIN
  FOR round IN 1 .. 200 LOOP
    batch := ARRAY(SELECT d FROM evpg_fetch('mail', 'm1', 5) d ORDER BY d."position");
    EXIT WHEN cardinality(batch) = 0;
    INSERT INTO taken ("position", attempt) SELECT d."position", d.attempt FROM unnest(batch) d;
    PERFORM evpg_ack('mail', d.lease, d."position") FROM unnest(batch[cardinality(batch):]) d;
  END LOOP;
END $$;
SELECT string_agg("position" || ':' || attempt, ' ' ORDER BY number) FROM taken;
SQL

query(<<'SQL');
SELECT evpg_register_aggregate('thing');
SELECT count(evpg_append_event('thing', 's' || n % 7, 'Made', jsonb_build_object('n', n))) FROM generate_series(1, 40) n;
SELECT evpg_create_subscription('mail', event_types => '{Made}', partitions => 4, lease_time => '1 hour'),
  evpg_create_subscription('quiet', id_prefix => 's1'), evpg_pause_consumer('quiet');
-- 1 to 6 are done; 7 is parked, and 14 behind it; 8 is skipped; 9 is done, 10 to 20 are in flight
CREATE TABLE batch AS SELECT lease, "position" FROM evpg_fetch('mail', 'm1', 20);
SELECT evpg_nack('mail', max(lease), 7, 'park', reason => 'no address'),
  evpg_nack('mail', max(lease), 8, 'skip', reason => 'no such user'), evpg_ack('mail', max(lease), 9) FROM batch;
SELECT evpg_listen_subscription('mail');
SQL
is(query('SELECT min("position"), max("position") FROM batch'), '1|20', 'positions begin with 1');
my $lease = query('SELECT max(lease) FROM batch');
my $before = $node->safe_psql('postgres', $contents);
like($before, qr/no address/, 'there is a parked event');
is(query(q{SELECT string_agg(skip_reason IS NULL || ' ' || "position", ', ' ORDER BY "position") FROM evpg.parked_event}),
	'true 7, false 8, true 14', 'its follower waits behind it, another one is skipped');
is(query(q{SELECT sum(in_flight) FROM evpg.stat_subscription WHERE name = 'mail'}), '11', 'and others are in flight');

# ------------------------------------------------------------------ copies

sub check_copy
{
	my ($database, $what) = @_;

	is($node->safe_psql($database, $contents), $before, "$what: subscriptions are as they were [rule 20]");
	is($node->safe_psql($database, 'SELECT DISTINCT status FROM evpg.stat_subscription'), 'inactive',
		"$what: they are inactive [rule 9]");
	is(sqlstate($node, "SELECT count(*) FROM evpg_fetch('mail', 'm1')", $database), '55000',
		"$what: nothing is handed out before consumers are activated [rule 9]");
	is($node->safe_psql($database, 'SELECT evpg_activate_consumers()'), 't', "$what: activated");
	is($node->safe_psql($database, "SELECT count(*) FROM evpg_fetch('quiet', 'q')"), '0',
		"$what: what was paused is paused");
	return $node->safe_psql($database, $drain);
}

$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/dump", '-d', $node->connstr('postgres') ], 'pg_dump');
query('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), "$directory/dump" ], 'pg_restore');
$node->safe_psql('template1', 'CREATE DATABASE copied TEMPLATE postgres');
my $taken = join ' ', (map { "$_:2" } grep { $_ != 14 } 10 .. 20), (map { "$_:1" } grep { $_ % 7 } 21 .. 40);
foreach my $database ('restored', 'copied')
{
	is(check_copy($database, $database), $taken,
		"$database: what was in flight comes again one by one, and what follows, nothing else [rule 20]");
	is($node->safe_psql($database, "SELECT evpg_replay_parked('mail') > 0"), 't', "$database: what is parked is replayed");
	is($node->safe_psql($database, $drain =~ s/EXIT WHEN/CONTINUE WHEN/r), '7:1 14:1 21:1 28:1 35:1',
		"$database: in order [rule 20]");
}
is($node->safe_psql('postgres', $contents), $before, 'the original is not touched');

# ------------------------------------------------------------------ prepared transactions

query(<<'SQL');
SELECT evpg_create_subscription('kept', partitions => 2, lease_time => '100 ms'),
  evpg_create_subscription('given', partitions => 2, lease_time => '100 ms');
CREATE TABLE done (subscription text, "position" bigint, PRIMARY KEY (subscription, "position"));
SQL
foreach my $name ('kept', 'given')
{
	query(<<"SQL");
BEGIN;
WITH f AS (SELECT * FROM evpg_fetch('$name', 'first', 30)),
     i AS (INSERT INTO done SELECT '$name', "position" FROM f)
SELECT evpg_ack('$name', (SELECT max(lease) FROM f), (SELECT max("position") FROM f));
PREPARE TRANSACTION '$name';
SQL
}

sub check_held
{
	my ($server, $when) = @_;

	foreach my $name ('kept', 'given')
	{
		# longer than the lease: a fetch does not wait for the transaction
		is( $server->safe_psql('postgres',
				"SET statement_timeout = '60s'; SELECT count(*) FROM evpg_fetch('$name', 'second', wait => '300 ms')"),
			'0', "$when: what a prepared transaction has fetched is not handed out, nor waited for [rule 20]");
	}
	return;
}

check_held($node, 'prepared');
is(sqlstate($node, "SET lock_timeout = '100 ms'; SELECT evpg_seek('kept', 0)"), '55P03',
	'a subscription is not moved under a prepared transaction');
crash('postmaster');
check_held($node, 'after a crash');

# ------------------------------------------------------------------ a standby, promoted

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', "SELECT evpg_extend_lease('mail', $lease), evpg_log_stable_position()");
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $contents), $node->safe_psql('postgres', $contents),
	'a standby shows what the primary shows');
like($before, qr/\Q$lease\E/, 'with the lease');
is(sqlstate($standby, "SELECT count(*) FROM evpg_fetch('mail', 'm1')"), '25006', 'it hands out nothing');
is(sqlstate($standby, "SELECT evpg_ack('mail', $lease, 12)"), '25006', 'nor does it take an ack');
$node->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', 'SELECT DISTINCT status FROM evpg.stat_subscription ORDER BY 1'), "paused\nrunning",
	'after promotion no activation is needed [rule 9]');
check_held($standby, 'promoted');
is($standby->safe_psql('postgres', "SELECT evpg_ack('mail', $lease, 12)"), 't',
	'a consumer goes on under its lease after promotion [rule 20]');
is( $standby->safe_psql('postgres', $drain),
	join(' ', (map { "$_:2" } grep { $_ > 12 } map { /(\d+):2/ ? $1 : () } split / /, $taken),
		grep { /:1/ } split / /, $taken),
	'the rest comes, once [rule 20]');

$standby->safe_psql('postgres', "COMMIT PREPARED 'kept'");
$standby->safe_psql('postgres', "ROLLBACK PREPARED 'given'");
foreach my $name ('kept', 'given')
{
	$standby->poll_query_until('postgres', <<"SQL") or die;
WITH f AS (SELECT * FROM evpg_fetch('$name', 'second', 100)),
     i AS (INSERT INTO done SELECT '$name', "position" FROM f RETURNING 1)
SELECT count(*) > 0 AND bool_and(attempt = 1) AND evpg_ack('$name', max(lease), max("position")) FROM f
SQL
}
is($standby->safe_psql('postgres', 'SELECT subscription, count(*), max("position") FROM done GROUP BY 1 ORDER BY 1'),
	"given|40|40\nkept|40|40",
	'what was committed is done, what was rolled back comes again as if for the first time: each event once [rule 20]');
$standby->stop;
done_testing();
