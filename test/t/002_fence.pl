# Rule 9: a reader that pages by evpg_read_all(stable_only => true) sees every committed event once, skips none that commits
# late, and sees the events of a stream in order; while a dozen clients append with pauses before they commit, roll back,
# use savepoints and prepare, the log is maintained, and backends are killed.  And what happens without stable_only, so that
# it is known to matter.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 12;
my $node = evpg_node('fence', conf => "restart_after_crash = on\nmax_prepared_transactions = 40\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# ------------------------------------------------------------------ what skips without the fence

# s1 appends n and stays open, s2 appends n + 1 and commits, the reader pages, s1 commits, the reader pages again.
sub two_appenders
{
	my ($stable_only) = @_;
	my $reader = $node->background_psql('postgres', on_error_stop => 1);
	my $s1 = $node->background_psql('postgres', on_error_stop => 1);
	my $start = $node->safe_psql('postgres', 'SELECT coalesce(max(position), 0) FROM evpg.event_log');
	my $checkpoint = $start;
	my @seen;
	my $page = sub {
		my @positions = split /\n/,
			$reader->query_safe("SELECT position FROM evpg_read_all($checkpoint, 10, stable_only => $stable_only) AS e");

		push @seen, @positions;
		$checkpoint = $positions[-1] if @positions;
	};

	$s1->query_safe("BEGIN; SELECT FROM evpg_append('account_c', 'one', ARRAY[evpg_event('Noted')])");
	$node->safe_psql('postgres', "SELECT FROM evpg_append('account_c', 'two', ARRAY[evpg_event('Noted')])");
	$page->();
	$s1->query_safe('COMMIT');
	$page->();
	$s1->quit;
	$reader->quit;
	my $written = $node->safe_psql('postgres',
		"SELECT string_agg(position::text, ' ' ORDER BY position) FROM evpg.event_log WHERE position > $start");
	return (join(' ', @seen), $written);
}

my ($seen, $written) = two_appenders('true');
is($seen, $written, 'stable_only: both events are seen, in order [rule 9]');
($seen, $written) = two_appenders('false');
is($seen, (split / /, $written)[1], 'without stable_only the event that commits late is skipped [rule 9]');

# ------------------------------------------------------------------ readers

# What a reader has seen, with its checkpoint, in one transaction a page; so both survive a crash, or neither.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE reader (name text PRIMARY KEY, page int, checkpoint bigint NOT NULL DEFAULT 0);
INSERT INTO reader VALUES ('small', 30), ('big', 500);
CREATE TABLE seen (name text, number bigserial, position bigint, aggregate_id text, version bigint);

CREATE PROCEDURE follow(who text) LANGUAGE plpgsql AS $$
DECLARE
  r reader;
  rows bigint;
  last bigint;
  stopping boolean;
BEGIN
  LOOP
    stopping := EXISTS (SELECT FROM pg_tables WHERE tablename = 'stopped');
    SELECT * INTO r FROM reader WHERE name = who;
    WITH page AS (
      INSERT INTO seen (name, position, aggregate_id, version)
        SELECT who, position, aggregate_id, version FROM evpg_read_all(r.checkpoint, r.page)
        RETURNING position)
      SELECT count(*), max(position) INTO rows, last FROM page;
    UPDATE reader SET checkpoint = last WHERE name = who AND rows > 0;
    COMMIT;
    -- what is open or prepared now must not be waited for: the test says when all has ended
    EXIT WHEN stopping AND rows = 0;
  END LOOP;
END $$;
SQL

my %readers;

sub start_readers
{
	foreach my $name (qw(small big))
	{
		my $file = "$directory/$name.err";

		$readers{$name} = IPC::Run::start(
			[ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=reader', '-v', 'ON_ERROR_STOP=1', '-c',
				"CALL follow('$name')" ],
			'>', "$directory/$name.out", '2>', $file);
	}
	return;
}

# ------------------------------------------------------------------ appenders

my $append = "SELECT count(*) FROM evpg_append('account_c', ";
my %scripts = (
	# a stream of many clients, and one of its own
	commit => <<SQL,
\\set s random(1, 20)
\\set n random(1, 4)
\\set pause random(0, 15)
BEGIN;
$append 's' || :s, array_fill(evpg_event('Noted'), ARRAY[:n]));
\\sleep :pause ms
$append 'own:client_id', ARRAY[evpg_event('Noted')]);
\\sleep :pause ms
COMMIT;
SQL
	alone => <<SQL,
\\set s random(1, 20)
$append 's' || :s, ARRAY[evpg_event('Noted')]);
\\set pause random(0, 5)
\\sleep :pause ms
SQL
	abort => <<SQL,
\\set s random(1, 20)
\\set pause random(0, 15)
BEGIN;
$append 's' || :s, ARRAY[evpg_event('Lost'), evpg_event('Lost')]);
\\sleep :pause ms
ROLLBACK;
SQL
	savepoint => <<SQL,
\\set s random(1, 20)
\\set pause random(0, 10)
BEGIN;
SAVEPOINT a;
$append 's' || :s, ARRAY[evpg_event('Lost')]);
ROLLBACK TO a;
\\sleep :pause ms
$append 's' || :s, ARRAY[evpg_event('Noted')]);
SAVEPOINT b;
$append 'own:client_id', ARRAY[evpg_event('Noted')]);
\\sleep :pause ms
RELEASE b;
COMMIT;
SQL
	prepare => <<SQL,
\\set pause random(0, 15)
\\set end random(0, 2)
BEGIN;
$append 'prepared:client_id', ARRAY[evpg_event('Noted'), evpg_event('Noted')]);
\\sleep :pause ms
PREPARE TRANSACTION 'p:client_id';
\\sleep :pause ms
\\if :end
COMMIT PREPARED 'p:client_id';
\\else
ROLLBACK PREPARED 'p:client_id';
\\endif
SQL
);
my %weights = (commit => 6, alone => 6, abort => 2, savepoint => 3, prepare => 2);
my @files;

foreach my $name (sort keys %scripts)
{
	PostgreSQL::Test::Utils::append_to_file("$directory/$name.pgbench", $scripts{$name});
	push @files, '-f', "$directory/$name.pgbench\@$weights{$name}";
}

# The log is maintained meanwhile, again and again.  After a crash it goes on.
my $maintenance = "$directory/maintenance.sql";

PostgreSQL::Test::Utils::append_to_file($maintenance, <<'SQL');
DROP INDEX IF EXISTS evpg.maintained;
CREATE INDEX CONCURRENTLY maintained ON evpg.event_log (type);
VACUUM evpg.event_log;
REINDEX INDEX CONCURRENTLY evpg.maintained;
ANALYZE evpg.event_log;
SQL

# Clients append for some seconds; in the middle of it, one of their backends may be killed, which restarts the server.
sub load
{
	my ($what, $seconds, $kill) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM evpg.event_log');
	my $seen = $node->safe_psql('postgres', 'SELECT count(*) FROM seen');
	my $file = "$directory/pgbench.out";
	my $pgbench = IPC::Run::start(
		[ 'pgbench', '-n', '-c', $clients, '-j', 2, '-T', $seconds, @files, '-d',
			$node->connstr('postgres') . ' application_name=appender' ],
		'>', $file, '2>', "$file.err");

	my $maintainer = IPC::Run::start([ 'pgbench', '-n', '-T', $seconds, '-f', $maintenance, '-d',
		$node->connstr('postgres') ], '>', "$file.maintenance", '2>', "$file.maintenance.err");

	ok($node->poll_query_until('postgres', "SELECT count(*) > $before + 600 FROM evpg.event_log"), "$what: events come in");
	ok($node->poll_query_until('postgres', "SELECT count(*) > $seen + 400 FROM seen"),
		"$what: the readers follow meanwhile");
	if ($kill)
	{
		my $pid = $node->safe_psql('postgres',
			"SELECT pid FROM pg_stat_activity WHERE application_name = 'appender' ORDER BY state LIMIT 1");

		kill(9, $pid);
		$pgbench->finish;
		isnt($pgbench->result(0), 0, "$what: a backend was killed");
		$_->finish foreach values %readers;
		$maintainer->finish;
		ok($node->poll_query_until('postgres', 'SELECT true'), "$what: the server came back");
		start_readers();
		# of the prepared transactions, some are committed, some not, while readers read
		my $number = 0;
		foreach my $gid (split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
		{
			$node->safe_psql('postgres', ($number++ % 2 ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$gid'");
		}
		note "$number prepared transactions were left behind";
	}
	else
	{
		$pgbench->finish;
		is($pgbench->result(0), 0, "$what: the appenders met no error") or diag(slurp_file("$file.err"));
		$maintainer->finish;
		is($maintainer->result(0), 0, "$what: nor did maintenance") or diag(slurp_file("$file.maintenance.err"));
		unlike(slurp_file("$file.maintenance"), qr/actually processed: 0/, "$what: which came through");
	}
	return;
}

start_readers();
load('first load', 3, 0);
load('second load', 30, 1);
load('third load', 30, 1);
load('last load', 3, 0);

# ------------------------------------------------------------------ what they saw

$node->safe_psql('postgres', 'CREATE TABLE stopped ()');
foreach my $name (sort keys %readers)
{
	$readers{$name}->finish;
	is($readers{$name}->result(0), 0, "reader $name has come to the end") or diag(slurp_file("$directory/$name.err"));
	is( $node->safe_psql('postgres', <<"SQL"),
SELECT coalesce(s.position, e.position), count(s.position), count(e.position)
  FROM (SELECT * FROM seen WHERE name = '$name') s FULL JOIN evpg.event_log e USING (position)
 GROUP BY 1 HAVING count(s.position) <> 1 OR count(e.position) <> 1 ORDER BY 1 LIMIT 10
SQL
		'', "reader $name has seen each event once, and none that is not there [rule 9]");
	is( $node->safe_psql('postgres', <<"SQL"),
SELECT * FROM (SELECT *, lag(position) OVER (ORDER BY number) AS last_position,
                      lag(version, 1, 0::bigint) OVER (PARTITION BY aggregate_id ORDER BY number) AS last_version
                 FROM seen WHERE name = '$name') s
 WHERE position <= last_position OR version <> last_version + 1 LIMIT 10
SQL
		'', "reader $name has seen positions, and the versions of each stream, in order [rule 9]");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM evpg.event_log WHERE type = 'Lost'"), 0,
	'what was rolled back is not there');
is(inspect($node), '', 'all that is stored agrees');
note $node->safe_psql('postgres',
	"SELECT count(*) || ' events, ' || last_value || ' positions drawn' "
	. "FROM evpg.event_log, evpg.event_position GROUP BY last_value");

$node->stop;
done_testing();
