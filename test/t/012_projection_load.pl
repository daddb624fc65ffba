# Rules 11 and 12 with real connections: 20 sessions with 500 commands each over 5 keys; versions and totals are exact, and
# equal to a replay.  Then the postmaster is killed under such a load: after the restart, the rows of all projections are
# what the events say, no more and no less.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($clients, $commands, $keys) = (20, 500, 5);
my $node = evpg_node('projection_load', conf => "synchronous_commit = on\n");
my $directory = PostgreSQL::Test::Utils::tempdir;

# Projections of each kind: keys that are streams, keys over many streams, functions and modules, several keys for an event,
# a table.  The chain depends on the order of the events of a stream, the sums do not.
my $setup = <<'SQL';
CREATE FUNCTION meter_handle(state jsonb, command evpg.command) RETURNS SETOF evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT (evpg_event('Added', command.data)).* FROM generate_series(1, coalesce((command.data->>'times')::int, 1))
$$;
CREATE FUNCTION meter_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE FUNCTION chain_step(state text, n text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT md5(state || n) $$;
CREATE AGGREGATE chain(text) (sfunc = chain_step, stype = text, initcond = '');
CREATE FUNCTION chain_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('chain', chain_step(coalesce(state->>'chain', ''), event.data->>'n'))
$$;
CREATE FUNCTION sum_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
  SELECT jsonb_build_object('sum', coalesce((state->>'sum')::bigint, 0) + (event.data->>'n')::bigint)
$$;
CREATE TABLE line (position bigint PRIMARY KEY, key text, n bigint, version bigint);
CREATE FUNCTION line_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO line SELECT event.position, event.aggregate_id, (event.data->>'n')::bigint, event.version RETURNING NULL::jsonb
$$;
SELECT evpg_register_aggregate('meter', 'meter_handle', 'meter_apply'),
       evpg_register_projection('chain', 'chain_apply', aggregate_types => '{meter}'),
       evpg_register_projection('house', 'sum_apply', aggregate_types => '{meter}', key_path => '$.data.house',
         broadcast => 'delta'),
       evpg_register_projection('both', 'sum_apply', aggregate_types => '{meter}', key_path => '$.data.houses[*]',
         broadcast => 'none'),
       evpg_register_projection('module', library => 'evpg_test', symbol => 'totals', aggregate_types => '{meter}',
         key_path => '$.data.house', broadcast => 'delta'),
       evpg_register_projection('whole', 'sum_apply', aggregate_types => '{meter}', constant_key => 'all'),
       evpg_register_projection('line', handler => 'line_write', aggregate_types => '{meter}', broadcast => 'delta');

-- What the rows should be, from the events alone.
CREATE VIEW expected AS
  SELECT 'chain' AS name, aggregate_id AS key, jsonb_build_object('chain', chain(data->>'n' ORDER BY version)) AS state,
    count(*) AS version, max(position) AS position
    FROM evpg.event WHERE aggregate_type = 'meter' GROUP BY aggregate_id
  UNION ALL
  SELECT name, data->>'house',
    CASE name WHEN 'house' THEN jsonb_build_object('sum', sum((data->>'n')::bigint))
    ELSE jsonb_build_object('total', sum((data->>'n')::bigint), 'applied', count(*)) END, count(*), max(position)
    FROM evpg.event, (VALUES ('house'), ('module')) v (name) WHERE aggregate_type = 'meter' GROUP BY name, data->>'house'
  UNION ALL
  SELECT 'both', house, jsonb_build_object('sum', sum((data->>'n')::bigint)), count(*), max(position)
    FROM evpg.event, LATERAL (SELECT DISTINCT h FROM jsonb_array_elements_text(data->'houses') h) h (house)
      WHERE aggregate_type = 'meter' GROUP BY house
  UNION ALL
  SELECT 'whole', 'all', jsonb_build_object('sum', sum((data->>'n')::bigint)), count(*), max(position) FROM evpg.event
    WHERE aggregate_type = 'meter' HAVING count(*) > 0
  UNION ALL
  SELECT 'line', aggregate_id, NULL, count(*), max(position) FROM evpg.event WHERE aggregate_type = 'meter'
    GROUP BY aggregate_id;
-- All that is not so.
CREATE VIEW wrong AS
  SELECT name, key, s.state, s.version, s.position, e.state AS expected_state, e.version AS expected_version,
    e.position AS expected_position
    FROM (SELECT * FROM evpg.projected_state WHERE name IN ('chain', 'house', 'module', 'both', 'whole', 'line')) s
      FULL JOIN expected e USING (name, key)
   WHERE (s.state, s.version, s.position) IS DISTINCT FROM (e.state, e.version, e.position)
  UNION ALL
  SELECT 'table', coalesce(l.key, e.aggregate_id), to_jsonb(l), l.version, l.position, e.data, e.version, e.position
    FROM line l FULL JOIN (SELECT * FROM evpg.event WHERE aggregate_type = 'meter') e USING (position)
   WHERE (l.key, l.n, l.version) IS DISTINCT FROM (e.aggregate_id, (e.data->>'n')::bigint, e.version);
SQL

my $database = 'postgres';
sub sql
{
	my ($statements) = @_;

	return $node->safe_psql($database, $statements);
}
sql($setup);

# A command of a client: its key is one of five houses, its stream one of two of that house.
sub command
{
	my ($client, $n, $id) = @_;
	my $house = ($n * 3 + $client) % $keys;
	my $stream = "h$house-" . ($n + $client) % 2;
	my $amount = 1 + ($n * 7 + $client) % 50;
	my $other = ($n * 5 + $client * 3) % $keys;
	# each house once; as the keys of a command are locked in one order, these do not deadlock
	my $data = "{\"n\": $amount, \"house\": \"h$house\", \"houses\": [\"h$house\", \"h$other\"]"
		. ($n % 50 == 0 ? ', "times": 3' : '') . '}';

	return ($house, $n % 50 == 0 ? 3 : 1, $amount,
		"SELECT FROM evpg_execute('meter', '$stream', 'Add', '$data'" . (defined $id ? ", command_id => '$id'" : '')
		. ");\n");
}

sub start
{
	my ($name) = @_;

	return IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', "$name.sql" ],
		'>', "$name.out", '2>', "$name.err");
}

# ------------------------------------------------------------------ 20 sessions, 500 commands each, 5 keys

my (%version, %total, @processes);
foreach my $client (1 .. $clients)
{
	my $script = '';

	foreach my $n (1 .. $commands)
	{
		my ($house, $times, $amount, $statement) = command($client, $n);

		# a rollback now and then
		$script .= 'BEGIN;' . (command($client, $n + 1))[3] . "ROLLBACK;\n" if $n % 40 == 0;
		$script .= $statement;
		$version{"h$house"} += $times;
		$total{"h$house"} += $times * $amount;
	}
	PostgreSQL::Test::Utils::append_to_file("$directory/load-$client.sql", $script);
}
push @processes, start("$directory/load-$_") foreach 1 .. $clients;
foreach my $client (1 .. $clients)
{
	$processes[ $client - 1 ]->finish;
	is($processes[ $client - 1 ]->result(0), 0, "client $client met no error")
		or diag(slurp_file("$directory/load-$client.err"));
}
is( sql("SELECT key, version, state->>'sum' FROM evpg.projected_state WHERE name = 'house' ORDER BY key"),
	join("\n", map { "$_|$version{$_}|$total{$_}" } sort keys %version),
		'versions and totals of 5 keys are exact [rules 11, 12, C03, C18, 3.4 test 11]');
is( sql("SELECT key, version, state->>'total' FROM evpg.projected_state WHERE name = 'module' ORDER BY key"),
	join("\n", map { "$_|$version{$_}|$total{$_}" } sort keys %version), 'of a module too [rules 11, 12]');
is(sql('SELECT * FROM wrong'), '', 'each projection is what the events say, the table too [rule 11]');
is(sql("SELECT count(*) FROM line"), sql("SELECT count(*) FROM evpg.event WHERE aggregate_type = 'meter'"),
	'a line for each event [rule 11]');
is(inspect($node, $database), '', 'all that is stored agrees');
# and what says that they agree is not empty whatever happens
like(sql("BEGIN; UPDATE evpg.projection_state s SET version = s.version + 1 FROM evpg.projection p "
	. "WHERE s.build = p.build AND (name, key) = ('house', 'h1'); SELECT * FROM wrong; ROLLBACK"), qr/^house\|h1\|/,
	'a version too many is found');
like(sql("BEGIN; DELETE FROM line WHERE position = (SELECT max(position) FROM line); SELECT * FROM wrong; ROLLBACK"),
	qr/^table\|/, 'a lost line is found');
is( sql(<<'SQL'), '', 'a rebuild makes the same rows of the events [rule 13, 3.4 test 7]');
CREATE TABLE before AS SELECT * FROM evpg.projected_state WHERE name IN ('chain', 'house', 'module', 'both', 'whole');
CREATE TABLE folded AS SELECT name, key, evpg_rebuild_projection(name, key) AS events FROM before;
SELECT b.*, s.*, f.events FROM before b
  FULL JOIN (SELECT * FROM evpg.projected_state WHERE name IN ('chain', 'house', 'module', 'both', 'whole')) s USING
  (name, key) LEFT JOIN folded f USING (name, key)
 WHERE (b.state, b.version, b.generation + 1) IS DISTINCT FROM (s.state, s.version, s.generation) OR f.events <> b.version;
SQL

# ------------------------------------------------------------------ the postmaster is killed under load

$database = 'crash';
$node->safe_psql('postgres', 'CREATE DATABASE crash');
create_evpg($node, $database);
sql($setup);
my %done;
foreach my $round (1 .. 2)
{
	my $before = sql('SELECT count(*) FROM evpg.event_log');

	@processes = ();
	foreach my $client (1 .. 8)
	{
		my $name = "$directory/crash-$round-$client";
		my $script = '';

		foreach my $n (1 .. 5000)
		{
			my $id = "$round-$client-$n";

			$script .= $n % 9 == 0 ? 'BEGIN;' . (command($client, $n, "never-$id"))[3] . "ROLLBACK;\n"
				: (command($client, $n, $id))[3] . "\\echo $id\n";
		}
		PostgreSQL::Test::Utils::append_to_file("$name.sql", $script);
		push @processes, start($name);
	}
	ok($node->poll_query_until($database, "SELECT count(*) >= $before + 400 FROM evpg.event_log"),
		"round $round: there is load");
	$node->kill9;
	foreach my $client (1 .. 8)
	{
		my $name = "$directory/crash-$round-$client";

		$processes[ $client - 1 ]->finish;
		is($processes[ $client - 1 ]->result(0), 2, "round $round: client $client was at work and lost its connection")
			or diag(slurp_file("$name.err"));
		unlike(slurp_file("$name.err"), qr/ERROR/, "round $round: and met no other error");
		$done{$_} = 1 foreach split /\n/, slurp_file("$name.out");
	}
	start_again($node);
	cmp_ok(scalar(keys %done), '>', 0, "round $round: commands were reported committed");
	my $list = join ',', map { "('$_')" } sort keys %done;
	is(sql("SELECT id FROM (VALUES $list) d (id) WHERE NOT EXISTS (SELECT FROM evpg.event WHERE command_id = d.id)"), '',
		"round $round: they are there");
	is(sql("SELECT count(*) FROM evpg.event WHERE command_id LIKE 'never-%'"), '0',
		"round $round: and nothing that was rolled back");
	is(sql('SELECT * FROM wrong'), '', "round $round: rule 11, A27: each projection is what the events say");
	cmp_ok(sql("SELECT count(*) FROM expected"), '>', 20, "round $round: and these say something");
	is(inspect($node, $database), '', "round $round: all that is stored agrees");
	is(sql("SELECT count(*) FROM evpg_execute('meter', 'h1-0', 'Add', '{\"n\": 1, \"house\": \"h1\"}')"), '1',
		"round $round: commands go on");
	is(sql('SELECT * FROM wrong'), '', "round $round: and their projections");
}

$node->stop;
done_testing();
