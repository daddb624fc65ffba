# EvpgTest: what the TAP tests share: a server with evpg and the bank, starting it again after a crash, and the
# inspection of everything that evpg has stored.

package EvpgTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(evpg_node create_evpg start_again inspect tree sqlstate worker_rounds);
our @EXPORT_OK = qw(create_endless_function query soon processes crash set_mutation wait_until run_writers);

# The server that evpg_node() has made last, which query(), soon() and crash() ask.
my $last;

# A background psql tells each statement and its result: too much where comments are shown.
{
	no warnings 'redefine';
	*PostgreSQL::Test::BackgroundPsql::note = sub { };
}

# That of PostgreSQL 16 leaves its separator where a query returns nothing before it.
{
	no warnings 'redefine';

	my $query = \&PostgreSQL::Test::BackgroundPsql::query;

	*PostgreSQL::Test::BackgroundPsql::query = sub {
		my ($output, @error) = $query->(@_);

		$output =~ s/^background_psql: QUERY_SEPARATOR(?:\n|\z)//mg;
		return wantarray ? ($output, @error) : $output;
	};
}

# The top of the source tree.
sub tree
{
	return "$FindBin::RealBin/../..";
}

# A running server whose database postgres has evpg and the accounts of the bank example.
sub evpg_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		defined $options{install_path} ? (install_path => $options{install_path}) : ());

	$node->init(
		extra => [ '--encoding=UTF8', '--locale=C.UTF-8', @{ $options{initdb} // [] } ],
		allows_streaming => $options{allows_streaming});
	# log_statement: else most of a load test goes into the log
	$node->append_conf('postgresql.conf', "log_statement = none\n" . ($options{conf} // ''));
	$node->start;
	create_evpg($node, 'postgres') unless $options{bare};
	$last = $node;
	return $node;
}

# What a statement returns that must succeed.
sub query
{
	my ($statement) = @_;

	return $last->safe_psql('postgres', $statement);
}

# Polling goes on while the server crashes and restarts: its psql may end before it has read the query, and the pipe to it is
# broken then, which is an error of IPC::Run.
{
	no warnings 'redefine';

	my $poll = \&PostgreSQL::Test::Cluster::poll_query_until;

	*PostgreSQL::Test::Cluster::poll_query_until = sub {
		my @arguments = @_;

		foreach (1 .. 100)
		{
			my $found = eval { $poll->(@arguments) };

			return $found if $@ eq '';
			die $@ if $@ !~ /Broken pipe/;
			select undef, undef, undef, 0.1;
		}
		die 'the server does not accept connections';
	};
}

# The same for psql by itself: to a caller that expects errors it has not connected.
{
	no warnings 'redefine';

	my $psql = \&PostgreSQL::Test::Cluster::psql;

	*PostgreSQL::Test::Cluster::psql = sub {
		my ($self, $database, $sql, %options) = @_;
		my @result = eval { $psql->($self, $database, $sql, %options) };

		if ($@ ne '')
		{
			die $@ if $@ !~ /Broken pipe/ || $options{on_error_die};
			foreach my $output (grep { defined } @options{qw(stdout stderr)})
			{
				$$output = '';
			}
			@result = (2, '', 'psql has ended before it was asked');
		}
		return wantarray ? @result : $result[0];
	};
}

# A test: a query soon returns true.
sub soon
{
	my ($condition, $name) = @_;

	return ok($last->poll_query_until('postgres', $condition), $name);
}

# Makes a function that loops as long as there is a row for its name in table broken; with 'stubborn' it also survives a
# cancel.
sub create_endless_function
{
	query('CREATE TABLE broken (name text)');
	query(<<'SQL');
CREATE FUNCTION go(function_name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM broken WHERE name = function_name) THEN RETURN; END IF;
  LOOP
    BEGIN PERFORM pg_sleep(60);
    EXCEPTION WHEN query_canceled THEN IF function_name <> 'stubborn' THEN RAISE; END IF;
    END;
  END LOOP;
END $$
SQL
	return;
}

# A query: whether there are so many processes of a type of evpg, in one database if it is named.
sub processes
{
	my ($count, $type, $database) = @_;

	return "SELECT count(*) = $count FROM pg_stat_activity WHERE backend_type = 'evpg $type'"
	  . (defined $database ? " AND datname = '$database'" : '');
}

sub create_evpg
{
	my ($node, $database) = @_;

	$node->safe_psql($database, 'CREATE EXTENSION evpg');
	$node->safe_psql($database, slurp_file(tree() . '/examples/bank/bank.sql'));
	return;
}

# Starts a server that was killed: what is left of it may take a moment to go.
sub start_again
{
	my ($node) = @_;
	my $file = $node->data_dir . '/postmaster.pid';
	my $pid = -e $file && slurp_file($file) =~ /^(\d+)/ ? $1 : 0;

	# the next one takes a dead one that has not gone for a server
	for (my $n = 0; $pid && kill(0, $pid) && $n < 200; $n++)
	{
		usleep(10_000);
	}
	my $started = wait_until(
		sub {
			return 1 if $node->start(fail_ok => 1);
			# it has taken over the process id of the dead one
			$node->stop('fast', fail_ok => 1);
			return 0;
		});

	die 'the server does not start again' unless $started;
	return;
}

# Kills a process, or the whole server if that is "postmaster", and waits until the server is there again.
sub crash
{
	my ($victim, $pid) = @_;

	if ($victim eq 'postmaster')
	{
		$last->kill9;
		start_again($last);
	}
	else
	{
		kill('KILL', $pid) == 1 or die "there is no process $pid";
		$last->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
		  or die 'the server does not restart';
	}
	return;
}

# Waits until a condition holds; false if it never does.
sub wait_until
{
	my ($condition) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $condition->();
		usleep(100_000);
	}
	return 0;
}

# Gives a defect, or '', to all sessions that begin from now on, and to evpg's processes, and returns when these have it.
sub set_mutation
{
	my ($node, $mutation) = @_;

	$node->append_conf('postgresql.conf', "evpg.test_mutation = '$mutation'\n");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('evpg.test_mutation') = '$mutation' AND NOT EXISTS (SELECT "
		. "FROM pg_stat_activity WHERE backend_type IN ('evpg worker', 'evpg broadcaster') "
		. "AND application_name <> 'mutation $mutation')")
	  or die "not every process has read the mutation '$mutation'";
	return;
}

# Lets the worker of a database do so many rounds, each woken by a statement, and waits for their ends; false if it does not.
sub worker_rounds
{
	my ($node, $database, $count, $statement) = @_;

	foreach (1 .. $count)
	{
		my $now = $node->safe_psql('template1', 'SELECT clock_timestamp()');

		$node->safe_psql($database, $statement);
		return 0 unless $node->poll_query_until('template1', <<"SQL");
SELECT count(*) = 1 FROM pg_stat_activity
 WHERE backend_type = 'evpg worker' AND datname = '$database' AND state = 'idle' AND state_change > '$now'
SQL
	}
	return 1;
}

# Lets eight clients of pgbench run scripts on a node for some seconds, or until it is gone.  Meanwhile a function is called
# again and again, and another one, if there is one, at half of the time.  Returns what the clients complain of, or ''.
sub run_writers
{
	my ($node, $seconds, $scripts, $meanwhile, $at_half) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir;
	my @files;

	foreach my $name (sort keys %$scripts)
	{
		append_to_file("$directory/$name.sql", $scripts->{$name});
		push @files, '-f', "$directory/$name.sql";
	}
	my $writers = IPC::Run::start([ 'pgbench', '-n', '-c', 8, '-T', $seconds, @files, '-d', $node->connstr('postgres') ],
		'>', "$directory/out", '2>', "$directory/errors");
	my $half = time + $seconds / 2;

	# it dies when pgbench has ended
	while (eval { $writers->pump_nb; 1 } && $writers->pumpable)
	{
		$meanwhile->();
		if ($at_half && time >= $half)
		{
			$at_half->();
			$at_half = undef;
		}
	}
	$writers->finish;
	return $writers->result(0) == 0 ? '' : slurp_file("$directory/errors");
}

# The SQLSTATE with which a statement fails, '00000' if it does not.
sub sqlstate
{
	my ($node, $statement, $database) = @_;
	my ($code, $stdout, $stderr) = $node->psql($database // 'postgres', "\\set VERBOSITY sqlstate\n$statement");

	return $stderr =~ /^(?:psql:\S+ )?(?:ERROR|FATAL):\s+([0-9A-Z]{5})$/m ? $1 : $code == 0 ? '00000' : $stderr;
}

# Everything that contradicts itself in what is stored, one line each; empty if all is well.
sub inspect
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
BEGIN;
-- look at the tables, not at their unique indexes
SET LOCAL enable_indexscan = off;
SET LOCAL enable_indexonlyscan = off;
SET LOCAL enable_bitmapscan = off;

SELECT 'versions of a stream are contiguous, and it has a row [rule 3]', s.*, e.*
  FROM evpg.stream s
 RIGHT JOIN (SELECT stream_id, count(*), min(version) AS first, max(version) AS last
               FROM evpg.event_log GROUP BY stream_id) e USING (stream_id)
 WHERE s.stream_id IS NULL OR e.first <> 1 OR e.last <> e.count;

SELECT 'positions of a stream are in the order of versions [rule 3]', stream_id, version
  FROM (SELECT *, lag(position) OVER (PARTITION BY stream_id ORDER BY version) AS previous FROM evpg.event_log) e
 WHERE previous >= position;

SELECT 'a position is drawn once [rule 9]', position, count(*) FROM evpg.event_log GROUP BY position HAVING count(*) > 1;

SELECT 'no position is above the sequence [rule 9]', e.position, q.last_value
  FROM evpg.event_log e, evpg.event_position q WHERE e.position > q.last_value OR NOT q.is_called;

SELECT 'a command has its record, a record its events [rule 4]', stream_id, command_id, e.*, r.*
  FROM (SELECT stream_id, command_id, count(*), min(version) AS first_version, max(version) AS last_version
          FROM evpg.event_log WHERE command_id IS NOT NULL GROUP BY stream_id, command_id) e
  FULL JOIN evpg.command_record r USING (stream_id, command_id)
 WHERE e.first_version IS DISTINCT FROM r.first_version OR e.last_version IS DISTINCT FROM r.last_version
    OR e.count <> r.last_version - r.first_version + 1;

RESET enable_indexscan;
RESET enable_indexonlyscan;
RESET enable_bitmapscan;

-- states as they are loaded with the snapshots that there are, then without any
CREATE TEMPORARY TABLE loaded ON COMMIT DROP AS
  SELECT s.stream_id, s.aggregate_type, s.aggregate_id, s.version, f.version AS reached, f.state, f.last_position
    FROM evpg.stream_head s CROSS JOIN LATERAL evpg_state(s.aggregate_type, s.aggregate_id) f;
CREATE TEMPORARY TABLE stored ON COMMIT DROP AS SELECT * FROM evpg.snapshot;
DELETE FROM evpg.snapshot;
SELECT 'a state is what all events fold to [rule 7]', l.*, f.*
  FROM loaded l CROSS JOIN LATERAL evpg_state(l.aggregate_type, l.aggregate_id, at_version => l.version) f
 WHERE (l.reached, l.state, coalesce(l.last_position, 0)) IS DISTINCT FROM
   (f.version, f.state, coalesce(f.last_position, 0));
SELECT 'a snapshot is what its events fold to [rule 7]', n.*, f.state
  FROM stored n JOIN evpg.stream s USING (stream_id)
 CROSS JOIN LATERAL evpg_state(s.aggregate_type, s.aggregate_id, at_version => n.version) f
 WHERE n.state IS DISTINCT FROM f.state;
SELECT 'a snapshot has a stream that came so far [rule 7]', n.*
  FROM stored n LEFT JOIN evpg.stream_head s USING (stream_id) WHERE s.stream_id IS NULL OR s.version < n.version;
ROLLBACK;
SQL
}

1;
