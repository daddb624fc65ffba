# Rule 20: PgBouncer in transaction mode between the consumers of a subscription and the server.  Each transaction may run in
# another session, and sessions end under the consumers: a lease belongs to a name, so what is fetched in one session is
# extended, given back and acknowledged in others; nothing is lost, out of order or done twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Debian has it where only root looks for programs
my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
defined $pgbouncer or die 'there is no pgbouncer; scripts/setup installs it';

my $node = evpg_node('pooler', conf => <<'CONF');
shared_preload_libraries = 'evpg'
evpg.workers = 1
CONF
my $directory = PostgreSQL::Test::Utils::tempdir_short;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = query('SELECT current_user');

query(<<'SQL');
SELECT evpg_register_aggregate('thing');
SELECT evpg_create_subscription('pooled', partitions => 8, lease_time => '2 s', max_attempts => 1000);
CREATE TABLE got (number bigserial PRIMARY KEY, consumer text, fetched_by int, acked_by int, "position" bigint,
  aggregate_id text, version bigint);
CREATE TABLE call (number bigserial PRIMARY KEY, function text, fetched_by int, called_by int);
SQL

append_to_file("$directory/pgbouncer.ini", <<"INI");
[databases]
postgres = host=${\$node->host} port=${\$node->port} dbname=postgres user=$user
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $directory
auth_type = any
admin_users = $user
pool_mode = transaction
default_pool_size = 4
server_round_robin = 1
logfile = $directory/pgbouncer.log
INI

append_to_file("$directory/client.py", <<'PYTHON');
"""client.py produce|consume NAME: a client of the pool."""
import logging
import random
import sys
import time
import psycopg

POOL = sys.argv[1]
ROLE, NAME = sys.argv[2:4]
logging.disable()  # psycopg warns of a session that ends in a rollback


def connect():
    # A statement that is prepared in one session is not known in the next.
    return psycopg.connect(POOL, autocommit=True, prepare_threshold=None)


def write(connection, events):
    for event in events:
        connection.execute(
            "INSERT INTO got (consumer, fetched_by, acked_by, position, aggregate_id, version)"
            " VALUES (%s, %s, pg_backend_pid(), %s, %s, %s)",
            (NAME, event[0], event[2], event[4], event[5]))


def call(connection, function, event, statement, arguments):
    """Calls a function of the lease, and writes down in which session."""
    if not connection.execute(statement, arguments).fetchone()[0]:
        return False
    connection.execute("INSERT INTO call (function, fetched_by, called_by) VALUES (%s, %s, pg_backend_pid())",
                       (function, event[0]))
    return True


def done(connection, events):
    """Writes down what was got, and acknowledges it, in one transaction."""
    with connection.transaction():
        write(connection, events)
        if not call(connection, "ack", events[-1], "SELECT evpg_ack('pooled', %s, %s)", (events[-1][1], events[-1][2])):
            raise psycopg.Rollback


def give_back(connection, events, victim):
    """Gives back an event; those of other partitions after it are still the consumer's."""
    given = False
    with connection.transaction():
        write(connection, events[:victim])
        given = call(connection, "nack", events[victim],
                     "SELECT evpg_nack('pooled', %s, %s, delay => '1 ms')", (events[victim][1], events[victim][2]))
        if not given:
            raise psycopg.Rollback
    rest = [event for event in events[victim + 1:] if event[3] != events[victim][3]]
    if given and rest:
        done(connection, rest)


def consume(connection):
    events = connection.execute(
        "SELECT pg_backend_pid(), lease, position, partition, aggregate_id, version"
        " FROM evpg_fetch('pooled', %s, 7, wait => '100 ms') ORDER BY position", (NAME,)).fetchall()
    if not events:
        return False
    chance = random.random()
    if chance < 0.2:
        with connection.transaction():
            call(connection, "extend", events[0], "SELECT evpg_extend_lease('pooled', %s)", (events[0][1],))
    if chance < 0.4 and len(events) > 1:
        give_back(connection, events, random.randrange(len(events)))
    else:
        done(connection, events)
    return True


def produce(connection):
    with connection.transaction():
        # in one order, so that two do not deadlock
        for number in sorted(random.choices(range(1, 41), k=random.randint(1, 4))):
            connection.execute("SELECT evpg_append_event('thing', %s, 'Made')", ("s%d" % number,))
        if random.random() < 0.3:
            raise psycopg.Rollback
    return True


turns = 250 if ROLE == "produce" else 1000000
last = time.monotonic()
connection = None
while turns > 0 and time.monotonic() < last + 4:
    try:
        connection = connection or connect()
        if (produce if ROLE == "produce" else consume)(connection):
            last = time.monotonic()
        turns -= 1
    except (psycopg.OperationalError, psycopg.Rollback):
        # The session has ended, or the pooler has, also in a rollback; another one goes on.
        connection = None
        time.sleep(0.02)
    except psycopg.InternalError as error:
        # So psycopg calls a session that ends between the result of a COMMIT and the end of the answer.
        if error.sqlstate or not connection.closed:
            raise
        connection = None
PYTHON

my $pool = "host=$directory port=$port dbname=postgres user=$user";

sub start_pooler
{
	my $run = IPC::Run::start([ $pgbouncer, "$directory/pgbouncer.ini" ],
		'<', \undef, '>>', "$directory/out", '2>>', "$directory/out");

	for (1 .. 100)
	{
		return $run if run_log([ 'psql', '-XAtq', '-d', $pool, '-c', 'SELECT 1' ], '>', \my $out, '2>', \my $error);
		select(undef, undef, undef, 0.1);
	}
	die 'pgbouncer does not start: ' . slurp_file("$directory/out");
}

sub client
{
	my ($role, $name) = @_;

	return IPC::Run::start([ '/usr/bin/python3', "$directory/client.py", $pool, $role, $name ],
		'<', \undef, '>>', "$directory/client.out", '2>>', "$directory/client.out");
}

my $pooler = start_pooler();
my @producers = map { client('produce', "p$_") } 1 .. 2;
my @consumers = map { client('consume', "c$_") } 1 .. 5;

soon('SELECT count(DISTINCT consumer) = 5 FROM got', 'five consumers work through a pool of four sessions [rule 20]');

# sessions of the pool end under the clients, and the pooler itself
foreach my $round (1 .. 3)
{
	my $before = query('SELECT count(*) FROM got');

	query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
	soon("SELECT count(*) > $before + 20 FROM got", "they go on when sessions are ended, round $round [rule 20]");
}
my $before = query('SELECT count(*) FROM got');
$pooler->signal('KILL');
$pooler->finish;
$pooler = start_pooler();
soon("SELECT count(*) > $before + 20 FROM got", 'and when the pooler is killed [rule 20]');

my $good = 1;
$good &= $_->finish foreach @producers, @consumers;
ok($good, 'all clients come to their end') or diag(slurp_file("$directory/client.out"));
is(slurp_file("$directory/client.out"), '', 'without complaints');

cmp_ok(query('SELECT count(*) FROM got'), '>', 400, 'there were events');
is(query(<<'SQL'), '', 'nothing is lost, out of order or done twice [rule 20]');
SELECT 'lost ' || aggregate_id || ':' || version FROM evpg.event e
 WHERE NOT EXISTS (SELECT FROM got WHERE got."position" = e."position")
UNION ALL
SELECT 'out of order ' || aggregate_id || ':' || version
  FROM (SELECT aggregate_id, version, max(version) OVER (PARTITION BY aggregate_id ORDER BY number
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM got) g
 WHERE version > coalesce(before, 0) + 1
UNION ALL
SELECT 'twice ' || aggregate_id || ':' || version FROM got GROUP BY aggregate_id, version HAVING count(*) > 1
SQL
is(query("SELECT string_agg(function, ' ' ORDER BY function) FROM (SELECT function FROM call GROUP BY function
  HAVING bool_or(fetched_by <> called_by)) f"),
	'ack extend nack', 'each function was called in another session than the fetch [rule 20]');
is(query("SELECT sum(in_flight), sum(lag_events), sum(parked) FROM evpg.stat_subscription"), '0|0|0', 'everything is done');
is(query("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
  WHERE locktype = 'advisory' AND backend_type = 'client backend'"),
	'0', 'no session of the pool keeps a lock [rule 20]');

# ------------------------------------------------------------------ the end of a consumer

is(query("SELECT count(DISTINCT evpg_release_lease('pooled', lease)) FROM
  (SELECT DISTINCT lease FROM evpg.stat_subscription WHERE consumer IS NOT NULL) l"),
	'1', 'another session releases the leases');
is(query("SELECT count(*) FROM evpg.stat_subscription WHERE consumer IS NOT NULL"), '0', 'so their partitions are free');

# ------------------------------------------------------------------ notifications

# LISTEN belongs to a session: a consumer has one of its own for that beside the pool
my ($out) = run_command([ 'psql', '-XAtq', '-d', $node->connstr('postgres'),
	'-c', "SELECT evpg_listen_subscription('pooled')",
	'-c', "\\! psql -XAtq -d '$pool' -c \"SELECT FROM evpg_append_event('thing', 'n', 'Made')\"",
	'-c', 'SELECT pg_sleep(2)' ]);
like($out, qr/Asynchronous notification "subscription\.pooled"/,
	'a session beside the pool is notified of what is appended through it [D21]');

$pooler->signal('TERM');
$pooler->finish;
$node->stop;
done_testing();
