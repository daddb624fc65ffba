# With the library preloaded who waits is woken, and no wake-up is lost: rounds of evpg_watch_projection and evpg_wait_for
# against commits, rollbacks, the ends of rebuilds and of projections; workers against appenders that are slow to release
# their locks, and against prepared transactions.
#
# Who waits looks once a second, and a worker every evpg.naptime, which would hide a lost wake-up.  So evpg.naptime is an
# hour here, and sessions wait with the defect wait_for_ever of src/base/testing.h: what is not woken fails by its
# statement_timeout.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query soon);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = 200;
my $node = evpg_node('waits', bare => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.naptime = 1h
EOC
my $directory = PostgreSQL::Test::Utils::tempdir;

$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION evpg;
CREATE FUNCTION sum_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('sum', coalesce((state->>'sum')::bigint, 0) + (event.data->>'n')::bigint)
$$;
CREATE FUNCTION append(id text, type text DEFAULT 'Added') RETURNS bigint LANGUAGE sql AS $$
  SELECT max(position) FROM evpg_append('meter', id, ARRAY[evpg_event(type, '{"n": 1}')])
$$;
CREATE FUNCTION meter_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT NULL::evpg.new_event
$$;
CREATE FUNCTION meter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
SELECT evpg_register_aggregate('meter', 'meter_handle', 'meter_apply');
SELECT evpg_register_projection('now', 'sum_apply', aggregate_types => '{meter}', event_types => '{Added}'),
       evpg_register_projection('soon', 'sum_apply', aggregate_types => '{meter}', event_types => '{Added}',
         mode => 'async'),
       evpg_register_projection('rare', 'sum_apply', aggregate_types => '{meter}', event_types => '{Odd}', mode => 'async');

-- waits for the next version of a key again and again; the versions that it got must rise to the last one
CREATE FUNCTION watch(name text, key text, last bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  known bigint := 0;
  got bigint;
BEGIN
  WHILE known < last LOOP
    SELECT version INTO got FROM evpg_watch_projection(name, key, known, NULL);
    IF got IS NULL OR got <= known THEN
      RETURN format('%s after %s', got, known);
    END IF;
    known := got;
  END LOOP;
  RETURN known;
END $$;
SQL

# A session that waits until it is woken.
sub waiter
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe("LOAD 'evpg'; SET evpg.test_mutation = 'wait_for_ever'; SET statement_timeout = '60s'");
	return $session;
}

# psql with a script, which waits until it is woken.
sub start
{
	my ($name, $script) = @_;

	append_to_file("$directory/$name.sql",
		"LOAD 'evpg';\nSET evpg.test_mutation = 'wait_for_ever';\nSET statement_timeout = '60s';\n$script");
	return IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f',
		"$directory/$name.sql" ],
		'>', "$directory/$name.out", '2>', "$directory/$name.err");
}

sub ends
{
	my ($name, $process) = @_;

	$process->finish;
	is(slurp_file("$directory/$name.err"), '', "$name: no error");
	return split /\n/, slurp_file("$directory/$name.out");
}

# Waits until the worker has nothing to do, and nothing that it would look at later: from now on only a wake-up makes it go
# on.
sub settled
{
	$node->poll_query_until('postgres', <<'SQL') or die 'the worker does not come to an end';
SELECT bool_and(checkpoint = evpg_stable_position() AND state = 'idle') FROM evpg.consumer, pg_stat_activity
  WHERE backend_type = 'evpg worker'
SQL
	return;
}

# Lets a session wait, and waits until it does.
sub begin
{
	my ($session, $statement) = @_;
	my $waiting = "SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'Extension' "
		. "AND query = \$\$$statement;\$\$";

	$session->query_until(qr/begins/, "\\echo begins\n$statement;\n");
	$node->poll_query_until('postgres', $waiting) or die "does not wait: $statement";
	return;
}

# What it has got when its wait has ended: an answer, or an error.
sub answer
{
	my ($session) = @_;
	my $answer = $session->query('SELECT WHERE false');
	my $error = $session->{stderr};

	$session->{stderr} = '';
	return $error =~ /^(?:psql:\S+ )?(ERROR: .*)$/m ? $1 : $answer;
}

ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker'"),
	'there is a worker');

# ------------------------------------------------------------------ a load

# Each client appends to one key, and waits for what it has appended.  It rolls back in between, also in subtransactions,
# and now and then it is slow to release its locks.
my @clients = 1 .. 3;
my %processes;
foreach my $client (@clients)
{
	my $script = '';

	foreach my $n (1 .. $rounds)
	{
		$script .= "BEGIN;\nSELECT append('lost') \\gset lost_\nROLLBACK;\n" if $n % 5 == 0;
		$script .= "SET evpg.test_mutation = 'slow_end';\n" if $n % 20 == 0;
		$script .= "BEGIN;\nSAVEPOINT a;\nSELECT append('k$client') \\gset lost_\nROLLBACK TO a;\n" if $n % 7 == 0;
		$script .= "SELECT append('k$client') AS position \\gset\n";
		$script .= "COMMIT;\n" if $n % 7 == 0;
		$script .= "SET evpg.test_mutation = 'wait_for_ever';\n" if $n % 20 == 0;
		$script .= "SELECT evpg_wait_for('soon', :position, NULL);\n";
		$script .= "SELECT version FROM evpg.projected_state WHERE name = 'soon' AND key = 'k$client';\n";
	}
	$processes{"client $client"} = start("client $client", $script);
	$processes{"watcher $client of $_"} =
		start("watcher $client of $_", "SELECT watch('$_', 'k$client', $rounds);\n") foreach 'now', 'soon';
}
foreach my $client (@clients)
{
	my @expected = map { ('t', $_) } 1 .. $rounds;

	is(join(' ', ends("client $client", $processes{"client $client"})), "@expected",
		"client $client: each wait ends when the projection has what was appended [rule 10]");
	is(join(' ', ends("watcher $client of $_", $processes{"watcher $client of $_"})), $rounds,
		"who watches its key of \"$_\" comes to the last version [rule 12]") foreach 'now', 'soon';
}

# ------------------------------------------------------------------ events that a projection does not take

settled();
my $open = $node->background_psql('postgres', on_error_stop => 1);
$open->query_safe("BEGIN; SELECT append('open')");
my $position = query("SELECT append('other')");
my $rare = waiter();
begin($rare, "SELECT evpg_wait_for('rare', $position, NULL)");
$open->query_safe('ROLLBACK');
is(answer($rare), 't', 'a wait for an event of others ends when nobody holds the stable position any more [rule 10]');
begin($rare, "SELECT evpg_wait_for('rare', $position + 2, NULL)");
query("SELECT append('odd', 'Odd'), append('other')");
is(answer($rare), 't', 'a wait for an event of others ends when events have come [rule 10]');
$rare->quit;

# ------------------------------------------------------------------ slow appenders

foreach my $round (1 .. 5)
{
	settled();
	query("SET evpg.test_mutation = 'slow_end'; SELECT append('slow')");
	soon("SELECT version = $round FROM evpg.projected_state WHERE name = 'soon' AND key = 'slow'",
		"a worker applies what an appender has committed that is slow to release its locks: $round [rule 9]");
	settled();
	$open->query_safe("LOAD 'evpg'; SET evpg.test_mutation = 'slow_end'; BEGIN; SELECT append('open')");
	query("SELECT append('behind')");
	$open->query_safe($round % 2 == 0 ? 'ROLLBACK' : 'COMMIT');
	soon("SELECT version = $round FROM evpg.projected_state WHERE name = 'soon' AND key = 'behind'",
		"and what was behind it: $round [rule 9]");
}
$open->quit;

# ------------------------------------------------------------------ prepared transactions

my ($watcher, $waiter) = (waiter(), waiter());
my $prepare = "BEGIN; SET LOCAL evpg.broadcast = off; SELECT append('prepared'); PREPARE TRANSACTION 'appender'";

settled();
query($prepare);
begin($watcher, "SELECT key, version FROM (VALUES ('prepared')) k (key), evpg_watch_projection('now', key, 0, NULL)");
begin($waiter, "SELECT evpg_wait_for('soon', (SELECT last_position FROM evpg.stat_stable_position), NULL)");
is(query("SELECT count(*) FROM evpg.projected_state WHERE key = 'prepared'"), '0',
	'nothing of a prepared transaction is applied [rule 9]');
query("COMMIT PREPARED 'appender'");
soon("SELECT version = 1 FROM evpg.projected_state WHERE name = 'soon' AND key = 'prepared'",
	'COMMIT PREPARED wakes the worker [rule 9]');
is(answer($watcher), 'prepared|1', 'COMMIT PREPARED wakes a session that watches a key [rule 12]');
is(answer($waiter), 't', 'COMMIT PREPARED wakes a session that waits for a projection [rule 10]');

settled();
query($prepare);
query("SELECT append('held')");
query("ROLLBACK PREPARED 'appender'");
soon("SELECT version = 1 FROM evpg.projected_state WHERE name = 'soon' AND key = 'held'",
	'ROLLBACK PREPARED wakes the worker: nothing is held back any more [rule 9]');
is(query("SELECT version FROM evpg.projected_state WHERE name = 'soon' AND key = 'prepared'"), '1',
	'nothing is applied of a prepared transaction that was rolled back [rule 9]');
$node->safe_psql('template1', "BEGIN; CREATE TABLE plain (); PREPARE TRANSACTION 'plain'; COMMIT PREPARED 'plain'");
ok(1, 'a database without the extension has prepared transactions as ever');

# ------------------------------------------------------------------ the end of a rebuild

foreach my $round (1 .. 10)
{
	my $slow = $round % 2 == 0 ? "ALTER SYSTEM SET evpg.test_mutation = 'slow_end'"
		: 'ALTER SYSTEM RESET evpg.test_mutation';

	query($slow);
	query('SELECT pg_reload_conf()');
	foreach my $name ('now', 'soon')
	{
		my ($version, $generation) = split /\|/,
			query("SELECT version, generation FROM evpg.projected_state WHERE name = '$name' AND key = 'k1'");

		begin($watcher, "SELECT version, generation FROM evpg_watch_projection('$name', 'k1', $version, NULL, $generation)");
		query("SELECT evpg_rebuild_projection('$name', background => true)");
		is(answer($watcher), "$version|" . ($generation + 1),
			"who watches a key is woken by the end of a rebuild of \"$name\": $round [rule 13]");
	}
}
query('ALTER SYSTEM RESET evpg.test_mutation');
query('SELECT pg_reload_conf()');

# Makes a consumer one that runs, and does nothing before an hour is over.
sub put_off
{
	my ($name) = @_;

	query("SELECT evpg_pause_consumer('$name')");
	query("UPDATE evpg.consumer SET status = 'running', retry_at = clock_timestamp() + interval '1 hour' "
		. "WHERE name = '$name'");
	return;
}

# ------------------------------------------------------------------ sagas

query(<<'SQL');
CREATE FUNCTION slow_react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(0.5);
  RETURN evpg_reaction('{}', VARIADIC CASE event.aggregate_id WHEN 'bad' THEN ARRAY[evpg_action_fail('bad')] ELSE '{}' END);
END $$;
SELECT evpg_register_saga('slow', 'slow_react', event_types => '{Slow}')
SQL
foreach my $id ('good', 'bad')
{
	put_off('slow');
	my $position = query("SELECT append('$id', 'Slow')");
	begin($waiter, "SELECT evpg_wait_for('slow', $position, NULL)");
	query("SELECT evpg_resume_consumer('slow')");
	is(answer($waiter), 't', "who waits for a saga is woken by a reaction, and by a dead letter: $id [rule 17]");
}
query("SELECT evpg_drop_saga('slow')");

# ------------------------------------------------------------------ a projection that ends meanwhile

foreach my $round (1 .. 10)
{
	my $set = $round % 2 == 0 ? "SET evpg.test_mutation = 'slow_end'; " : '';

	query("SELECT evpg_register_projection('short', 'sum_apply', aggregate_types => '{meter}'), append('short')");
	begin($watcher, "SELECT evpg_watch_projection('short', 'short', 1, NULL)");
	query("${set}SELECT evpg_drop_projection('short')");
	is(answer($watcher), 'ERROR:  projection "short" is not registered',
		"who watches a key of a projection that is dropped: $round [C11]");

	query("SELECT evpg_register_projection('short', 'sum_apply', aggregate_types => '{meter}', mode => 'async')");
	put_off('short');
	my $position = query("SELECT append('short')");
	begin($waiter, "SELECT evpg_wait_for('short', $position, NULL)");
	begin($watcher, "SELECT evpg_watch_projection('short', 'nobody', 0, NULL)");
	query("${set}SELECT evpg_drop_projection('short')");
	is(answer($waiter), 'ERROR:  projection "short" is not registered', "who waits for an asynchronous one: $round [C11]");
	is(answer($watcher), 'ERROR:  projection "short" is not registered', "and who watches a key of it: $round [C11]");

	query("SELECT evpg_register_projection('short', 'sum_apply', aggregate_types => '{meter}', mode => 'async', "
		. "start_position => (SELECT last_position FROM evpg.stat_stable_position))");
	put_off('short');
	$position = query("SELECT append('short')");
	begin($waiter, "SELECT evpg_wait_for('short', $position, NULL)");
	query("${set}SELECT evpg_register_projection('short', 'sum_apply', aggregate_types => '{meter}')");
	is(answer($waiter), 't', "who waits for one that becomes inline: $round [rule 10]");
	query("SELECT evpg_drop_projection('short')");

	query("SELECT evpg_register_projection('short', 'sum_apply', aggregate_types => '{meter}', mode => 'async', "
		. "start_position => (SELECT last_position FROM evpg.stat_stable_position))");
	put_off('short');
	$position = query("SELECT append('short')");
	begin($waiter, "SELECT evpg_wait_for('short', $position, NULL)");
	query("${set}SELECT evpg_pause_consumer('short')");
	like(answer($waiter), qr/^ERROR:  cannot wait for "short", which is paused/,
		"who waits for one that is paused meanwhile: $round [rule 9]");
	query("SELECT evpg_drop_projection('short')");
}

$_->quit foreach $watcher, $waiter;
is(inspect($node), '', 'all that is stored agrees');
$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
