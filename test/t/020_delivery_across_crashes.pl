# Rules 9 to 13 together: 16 clients append with pauses, roll back, use savepoints and prepare, while projections of all
# kinds follow, are rebuilt again and again, and backends, workers and the postmaster are killed.  Every event is delivered
# once and in order, and each projection is at all times what the events up to its checkpoint say.  With workers, then with
# CALL evpg_run().

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 16;
my $directory = PostgreSQL::Test::Utils::tempdir;

# ------------------------------------------------------------------ projections, and what they should be

# stepped and counted are given the events of a stream, and say themselves if these are not in order; listed those of many
# streams.  It is not rebuilt, so nothing heals what was lost there.
my @rebuilt = qw(counted line stepped);
my $setup = <<'SQL';
CREATE FUNCTION notes(n int, room int, type text DEFAULT 'Noted') RETURNS evpg.new_event[] LANGUAGE sql AS $$
  SELECT array_agg(evpg_event(type, jsonb_build_object('rooms', ARRAY['r' || (room + i) % 200, 'r' || room * i % 200])))
    FROM generate_series(1, n) i
$$;
CREATE FUNCTION step(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('version', event.version, 'position', event.position,
    'sum', coalesce((state->>'sum')::bigint, 0) + event.position,
    'wrong', coalesce((state->>'wrong')::int, 0)
      + (event.version <> coalesce((state->>'version')::bigint, 0) + 1
        OR event.position <= coalesce((state->>'position')::bigint, 0))::int)
$$;
CREATE FUNCTION list(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('positions', coalesce(state->'positions', '[]') || to_jsonb(event.position))
$$;
CREATE TABLE line (position bigint PRIMARY KEY, number bigserial, aggregate_id text, version bigint);
CREATE FUNCTION write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO line (position, aggregate_id, version) VALUES (event.position, event.aggregate_id, event.version)
    RETURNING NULL::jsonb
$$;
SELECT evpg_drop_projection(name) FROM evpg.projection;
SELECT evpg_register_projection('counted', 'step', broadcast => 'none'),
       evpg_register_projection('stepped', 'step', mode => 'async'),
       evpg_register_projection('listed', 'list', mode => 'async', key_path => '$.data.rooms[*]', broadcast => 'delta'),
       evpg_register_projection('line', handler => 'write', mode => :'mode', tables => '{line}', broadcast => 'none');

-- How far projections have come; inline ones have all that is committed.
CREATE VIEW reached AS
  SELECT name, coalesce(c.checkpoint, 9223372036854775807) AS position FROM evpg.projection
    LEFT JOIN evpg.consumer c USING (name);
-- What they should be, and all that is not so, in one snapshot.
CREATE VIEW expected AS
  SELECT r.name, e.aggregate_id AS key, count(*) AS version,
         CASE WHEN r.name <> 'line' THEN
           jsonb_build_object('version', max(e.version), 'position', max(e.position), 'sum', sum(e.position), 'wrong', 0) END
           AS state
    FROM reached r JOIN evpg.event e ON e.position <= r.position WHERE r.name <> 'listed' GROUP BY 1, 2
  UNION ALL
  SELECT r.name, room, count(*), jsonb_build_object('positions', jsonb_agg(e.position ORDER BY e.position))
    FROM reached r JOIN evpg.event e ON e.position <= r.position,
      LATERAL (SELECT DISTINCT x FROM jsonb_array_elements_text(e.data->'rooms') x) y (room)
   WHERE r.name = 'listed' GROUP BY 1, 2;
CREATE VIEW wrong AS
  SELECT name, key, left(s.state::text, 200) AS state, s.version,
    left(e.state::text, 200) AS expected_state, e.version AS expected_version
    FROM evpg.projected_state s FULL JOIN expected e USING (name, key)
   WHERE (s.state, s.version) IS DISTINCT FROM (e.state, e.version)
  UNION ALL
  SELECT 'table', coalesce(l.aggregate_id, e.aggregate_id), l.position::text, l.version, e.position::text, e.version
    FROM line l FULL JOIN (SELECT e.* FROM evpg.event e JOIN reached r ON r.name = 'line' AND e.position <= r.position) e
      USING (position)
   WHERE (l.aggregate_id, l.version) IS DISTINCT FROM (e.aggregate_id, e.version);

-- A reader: what it has seen, with its checkpoint, in one transaction a page.
CREATE TABLE reader (checkpoint bigint NOT NULL);
INSERT INTO reader VALUES (0);
CREATE TABLE seen (number bigserial, position bigint, aggregate_id text, version bigint);
CREATE PROCEDURE follow() LANGUAGE plpgsql AS $$
DECLARE
  start bigint;
  rows bigint;
  last bigint;
  stopping boolean;
BEGIN
  LOOP
    stopping := EXISTS (SELECT FROM pg_tables WHERE tablename = 'stopped');
    SELECT checkpoint INTO start FROM reader;
    WITH page AS (INSERT INTO seen (position, aggregate_id, version) SELECT position, aggregate_id, version
      FROM evpg_read_all(start, 300) RETURNING position)
      SELECT count(*), max(position) INTO rows, last FROM page;
    UPDATE reader SET checkpoint = last WHERE rows > 0;
    COMMIT;
    EXIT WHEN stopping AND rows = 0;
    PERFORM pg_sleep(0.01) WHERE rows = 0;
  END LOOP;
END $$;

-- Builds that were read; the first of a projection was not made by a rebuild.
CREATE TABLE build (name text, build bigint PRIMARY KEY);
INSERT INTO build SELECT name, build FROM evpg.projection;
SQL

# ------------------------------------------------------------------ appenders

my $append = "SELECT count(*) FROM evpg_append('account_c', ";
my $variables = join '', map { "\\set $_\n" } 'a random(1, 30)', 'b random(1, 30)', 's least(:a, :b)', 't greatest(:a, :b)',
	'n random(1, 5)',
  'room random(0, 199)', 'pause random(0, 15)', 'rest random(0, 30)';
# weight and script; streams of many clients in one order, then those of the client's own
my %scripts = (
	alone => [ 5, "$append 's:s', notes(:n, :room));\n" ],
	commit => [ 5, <<SQL],
BEGIN;
$append 's:s', notes(:n, :room));
\\sleep :pause ms
$append 's:t', notes(1, :room));
$append 'own:client_id', notes(2, :room));
\\sleep :pause ms
COMMIT;
SQL
	abort => [ 2, <<SQL],
BEGIN;
$append 's:s', notes(:n, :room, 'Lost'));
\\sleep :pause ms
ROLLBACK;
SQL
	savepoint => [ 3, <<SQL],
BEGIN;
SAVEPOINT a;
$append 's:s', notes(:n, :room, 'Lost'));
ROLLBACK TO a;
\\sleep :pause ms
$append 's:t', notes(:n, :room));
SAVEPOINT b;
$append 'own:client_id', notes(1, :room));
SAVEPOINT c;
$append 'own:client_id', notes(1, :room, 'Lost'));
ROLLBACK TO c;
\\sleep :pause ms
RELEASE b;
COMMIT;
SQL
	prepare => [ 2, <<SQL],
\\set end random(0, 2)
\\set hold random(0, 100)
BEGIN;
$append 'prepared:client_id', notes(:n, :room));
\\sleep :pause ms
PREPARE TRANSACTION 'p:client_id';
\\sleep :hold ms
\\if :end
COMMIT PREPARED 'p:client_id';
\\else
ROLLBACK PREPARED 'p:client_id';
\\endif
SQL
);
my @files;

foreach my $name (sort keys %scripts)
{
	my ($weight, $script) = @{ $scripts{$name} };

	PostgreSQL::Test::Utils::append_to_file("$directory/$name.pgbench", "$variables$script\\sleep :rest ms\n");
	push @files, '-f', "$directory/$name.pgbench\@$weight";
}
PostgreSQL::Test::Utils::append_to_file("$directory/run.pgbench", "CALL evpg_run();\n\\sleep 5 ms\n");

# ------------------------------------------------------------------ a part of the test

my ($node, $looks);

sub start
{
	my ($name, @command) = @_;

	return IPC::Run::start([ @command, '-d', $node->connstr('postgres') . " application_name=$name" ], '>',
		"$directory/$name.out", '2>', "$directory/$name.err");
}

# What goes on beside the appenders, and is started again after a crash.
sub start_others
{
	my ($runners) = @_;
	my %others = (reader => start('reader', 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-c', 'SET statement_timeout = 0',
		'-c', 'CALL follow()'));

	$others{runner} = start('runner', 'pgbench', '-n', '-c', $runners, '-T', 1000, '-f',
		"$directory/run.pgbench") if $runners;
	return \%others;
}

# One look: tells what is wrong, starts the rebuilds that are not under way, and tells how far things are.  A build that
# came after the look is looked at before the next rebuild starts, which might heal it.
sub look
{
	my $rebuild = join ";\n", map { "SELECT evpg_rebuild_projection('$_', background => true)
		WHERE NOT EXISTS (SELECT FROM evpg.rebuild WHERE name = '$_')
			AND EXISTS (SELECT FROM evpg.projection JOIN build USING (build) WHERE projection.name = '$_')" } @rebuilt;

	$looks++;
	my ($wrong, @figures) = split /\n/, query(<<"SQL");
INSERT INTO build SELECT name, build FROM evpg.projection ON CONFLICT DO NOTHING;
SELECT coalesce(string_agg(wrong::text, ' '), 'nothing') FROM (SELECT * FROM wrong LIMIT 5) wrong;
$rebuild;
SELECT count(*) FROM evpg.event_log;
SELECT count(*) FROM seen;
SELECT coalesce(sum(jsonb_array_length(state->'positions')), 0) FROM evpg.projected_state WHERE name = 'listed';
SELECT count(*) FROM build WHERE name = 'counted';
SELECT count(*) FROM build WHERE name = 'line';
SELECT count(*) FROM build WHERE name = 'stepped';
SQL
	return ($wrong, @figures[ -6 .. -1 ]);
}

# At a rate, and in bursts, so that a slow machine does not have ever more events to rebuild.
sub start_appenders
{
	return start('appender', 'pgbench', '-n', '-c', $clients, '-j', 2, '-R', 250, @_, @files);
}

# Whether all are so near to the last event that another burst would not be too much.
sub are_near
{
	return query(<<'SQL') eq 't';
SELECT last_value - least((SELECT checkpoint FROM reader), (SELECT min(checkpoint) FROM evpg.consumer),
  (SELECT min(checkpoint) FROM evpg.rebuild_part)) < 10000
  FROM evpg.event_position
SQL
}

sub appended
{
	my ($what, $pgbench) = @_;

	$pgbench->finish;
	return is($pgbench->result(0), 0, "$what: the appenders met no error") || diag(slurp_file("$directory/appender.err"));
}

# Appenders, until everything has moved on; then, in the middle of it, something ends, and all is brought back.  Where the
# server goes on, the appenders come to their end, without an error.
sub load
{
	my ($what, $runners, $others, $victim, $signal) = @_;
	my @burst = ('-t', 40);
	my ($wrong, @start) = look();
	my @goal = map { $start[$_] + (2400, 2000, 2000, 2, 2, 2)[$_] } 0 .. 5;
	my @now = @start;
	my $pgbench = start_appenders(@burst);

	foreach (1 .. 1000)
	{
		last if $wrong ne 'nothing' || !grep { $now[$_] < $goal[$_] } 0 .. 5;
		if (!$pgbench->pumpable && are_near())
		{
			last if !appended($what, $pgbench);
			$pgbench = start_appenders(@burst);
		}
		($wrong, @now) = look();
	}
	is($wrong, 'nothing', "$what: before, each projection is what the events say");
	is(scalar(grep { $now[$_] < $goal[$_] } 0 .. 5), 0, "$what: events come in, all follow, rebuilds come through")
		or diag("@start, @now");
	note "$what: @start, @now";

	# in the middle of a burst
	appended($what, $pgbench);
	my $events = query('SELECT count(*) FROM evpg.event_log');
	$pgbench = start_appenders($signal eq 'KILL' ? ('-T', 1000) : @burst);
	ok($node->poll_query_until('postgres', "SELECT count(*) > $events + 100 FROM evpg.event_log"),
		"$what: more events come in");

	# at least one prepared transaction is left behind
	query("BEGIN; $append 'orphan', notes(2, 1)); PREPARE TRANSACTION 'orphan'");
	if ($victim eq 'postmaster')
	{
		$node->kill9;
	}
	else
	{
		is(kill($signal, query("SELECT pid FROM pg_stat_activity WHERE $victim ORDER BY random() LIMIT 1")), 1,
			"$what: it is");
	}
	if ($signal eq 'KILL')
	{
		$pgbench->finish;
		isnt($pgbench->result(0), 0, "$what: the appenders were ended");
		$_->finish foreach values %$others;
		start_again($node) if $victim eq 'postmaster';
		ok($node->poll_query_until('postgres', 'SELECT true'), "$what: the server came back");
		$others = start_others($runners);
	}
	# somebody might pass by it
	query("$append 'after', notes(2, 2))");
	query("COMMIT PREPARED 'orphan'");
	appended($what, $pgbench) if $signal ne 'KILL';
	my @prepared = split /\n/, query('SELECT gid FROM pg_prepared_xacts');
	foreach my $number (0 .. $#prepared)
	{
		query(($number % 2 ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$prepared[$number]'");
	}
	note scalar(@prepared) . ' more prepared transactions were left behind';
	return $others;
}

# Everything that should hold when all have caught up.
sub finish
{
	my ($part, $others) = @_;
	my $events = query('SELECT count(*) FROM evpg.event_log');

	ok( $node->poll_query_until(
			'postgres', "SELECT (SELECT bool_and(mode = 'inline' OR status = 'stopped' OR lag_events = 0)
				FROM evpg.stat_consumer)
				AND NOT EXISTS (SELECT FROM evpg.rebuild WHERE status = 'running')
				AND NOT EXISTS (SELECT FROM evpg.old_build)"),
		"$part: all catch up");
	query('CREATE TABLE stopped ()');
	$others->{reader}->finish;
	is($others->{reader}->result(0), 0, "$part: the reader comes to its end") or diag(slurp_file("$directory/reader.err"));
	$others->{runner}->kill_kill if $others->{runner};
	note query("SELECT 'builds of ' || name || ': ' || count(*) FROM (SELECT name, build FROM build "
		. "UNION SELECT name, build FROM evpg.projection) b GROUP BY name ORDER BY 1");

	is(query("SELECT name, status, errors_total, parked FROM evpg.stat_consumer "
		. "WHERE status <> 'running' OR errors_total > 0 OR parked > 0"), '', "$part: no consumer met an error");
	is(query('SELECT * FROM evpg.parked_event'), '', "$part: nothing is parked");
	is(query('SELECT * FROM evpg.rebuild'), '', "$part: no rebuild is left");
	is(query('SELECT build FROM evpg.rebuild_part UNION SELECT build FROM evpg.old_build UNION SELECT build '
		. 'FROM evpg.projection_state EXCEPT SELECT build FROM evpg.projection'), '', "$part: nor one of its rows");
	is(query("SELECT count(*) FROM evpg.event_log WHERE type = 'Lost'"), '0', "$part: what was rolled back is not there");
	is( query(<<'SQL'), '', "$part: the reader has seen each event once [rule 9]");
SELECT coalesce(s.position, e.position), count(s.position), count(e.position) FROM seen s
  FULL JOIN evpg.event_log e USING (position)
 GROUP BY 1 HAVING count(s.position) <> 1 OR count(e.position) <> 1 ORDER BY 1 LIMIT 10
SQL
	is( query(<<'SQL'), '', "$part: in order [rule 9]");
SELECT * FROM (SELECT *, lag(position) OVER (ORDER BY number) AS last_position,
  lag(version, 1, 0::bigint) OVER (PARTITION BY aggregate_id ORDER BY number) AS last_version FROM seen) s
 WHERE position <= last_position OR version <> last_version + 1 LIMIT 10
SQL
	is( query(<<'SQL'), '', "$part: so has the asynchronous projection, in the order of positions [rule 10]");
SELECT * FROM (SELECT key, value::bigint, lag(value::bigint) OVER (PARTITION BY key ORDER BY number) AS last
                 FROM evpg.projected_state, jsonb_array_elements_text(state->'positions') WITH ORDINALITY p (value, number)
                   WHERE name = 'listed') s
 WHERE value <= last LIMIT 10
SQL
	is(query('SELECT * FROM wrong LIMIT 10'), '',
		"$part: each projection is what the events say, and counts them [rules 10, 11]");
	is( query(<<'SQL'), '', "$part: the handler was given the events of a stream in order [rule 11]");
SELECT * FROM (SELECT *, lag(version, 1, 0::bigint) OVER (PARTITION BY aggregate_id ORDER BY number) AS last FROM line) l
  WHERE version <> last + 1 LIMIT 10
SQL
	is( query("SELECT string_agg(DISTINCT evpg_rebuild_projection(name)::text, ' ') FROM evpg.projection"),
		$events, "$part: a rebuild folds them all [rule 13]");
	is(query('SELECT * FROM wrong LIMIT 10'), '', "$part: and changes nothing");
	# what says so is not empty whatever happens
	like(query('BEGIN; DELETE FROM line WHERE position = (SELECT max(position) FROM line); SELECT * FROM wrong; ROLLBACK'),
		qr/^table\|/, "$part: a lost line would be found");
	is(inspect($node), '', "$part: all that is stored agrees");
	note query("SELECT count(*) || ' events, ' || last_value || ' positions drawn' "
		. "FROM evpg.event_log, evpg.event_position GROUP BY last_value");
	$node->stop;
	is(join("\n", slurp_file($node->logfile) =~ /^.*(?:ERROR|PANIC|TRAP).*$/mg), '',
		"$part: no error in any session, no failed assertion");
	return;
}

# ------------------------------------------------------------------ with workers

my $common = "restart_after_crash = on\nmax_prepared_transactions = 40\n";

$node = evpg_node('workers',
	conf => "$common\nshared_preload_libraries = 'evpg'\nmax_worker_processes = 12\nevpg.workers = 2\nevpg.naptime = "
	. "100ms\n");
query("\\set mode inline\n$setup");
my $others = start_others(0);
$others = load('a backend is killed', 0, $others, "application_name = 'appender'", 'KILL');
$others = load('a worker is killed', 0, $others, "backend_type = 'evpg worker'", 'KILL');
$others = load('the postmaster is killed', 0, $others, 'postmaster', 'KILL');
$others = load('a worker is terminated', 0, $others, "backend_type = 'evpg worker'", 'TERM');
finish('workers', $others);

# ------------------------------------------------------------------ with CALL evpg_run() in two sessions, and nothing
# preloaded

$node = evpg_node('runners', conf => $common);
query("\\set mode async\n$setup");
$others = start_others(2);
$others = load('without workers a backend is killed', 2, $others, "application_name = 'appender'", 'KILL');
$others = load('a runner is killed', 2, $others, "application_name = 'runner'", 'KILL');
$others = load('without workers the postmaster is killed', 2, $others, 'postmaster', 'KILL');
$others = load('a runner is terminated', 2, $others, "application_name = 'runner'", 'TERM');
finish('runners', $others);
note "$looks looks in between";

done_testing();
