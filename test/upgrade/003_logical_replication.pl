# A move from the oldest to the newest version by logical replication, with the commands of docs/operations.md, while
# commands go on, and a worker of the target runs all the time: nothing is done there before activation (rule 9), all is
# there after the switch, and what comes of it is what comes of it on the source.  And subscriptions to the log alone, by
# a database with evpg and by one without.

use strict;
use warnings;
use FindBin;
use lib ($FindBin::RealBin, "$FindBin::RealBin/../t");
use EvpgTest qw(:DEFAULT processes);
use IPC::Run;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use UpgradeTest;

my @elsewhere = ('evpg.activation', 'evpg.clock');		# what belongs to the database, not to its contents
my $note = q(SELECT FROM evpg_append('note', 'many', ARRAY[evpg_event('Noted')]));
my $directory = PostgreSQL::Test::Utils::tempdir_short;
my $variables = '';		# of the documented commands

my $source = server('source', $others[0], conf => "${conf}max_wal_senders = 10\n");
fill($source);
my $target = server('target', $newest, conf => "${conf}max_worker_processes = 32\n");
$target->safe_psql('postgres', $_)
  foreach 'ALTER SYSTEM SET evpg.workers = 1', 'SELECT pg_reload_conf()', 'CREATE DATABASE moved';
if (!has_column_versions($target))
{
	forget_column_versions($source);
	$source->restart;		# sessions remember them
}

# ------------------------------------------------------------------ the definitions, then the rows

my @documented = documented();
run_documented(shift @documented, 'the commands that copy definitions');
is(objects($target, 'moved'), objects_of_extension(), 'tables, views and functions are those of CREATE EXTENSION');
ok($target->poll_query_until('postgres', processes(1, 'worker', 'moved')), 'the target has a worker');

# clients go on while tables are copied
my $script = PostgreSQL::Test::Utils::tempdir . '/clients.sql';
append_to_file($script, <<'SQL');
\set id random(1, 20)
SELECT count(*) FROM evpg_execute('sum', 'client ' || :id, 'Add', '{"by": 1}');
SQL
my $clients = IPC::Run::start(
	[ $source->config_data('--bindir') . '/pgbench', '-n', '-c', 2, '-t', 400, '-f', $script, $source->connstr('postgres') ],
	'>', \my $output, '2>&1');
run_documented(shift @documented, 'the commands that copy rows');
$clients->finish;
is($? || ($output =~ /number of failed transactions: (\d+)/)[0], 0, 'commands succeed while tables are copied')
  or diag $output;

# ------------------------------------------------------------------ while changes follow

my $reader = $target->background_psql('moved');
is($reader->query_safe(q(SELECT state FROM evpg_state('thing', 'i'))), '"Done"', 'a state can be read');
# of all kinds: a saga's reaction, a registration that is new, one that changes, a timer, a pause
$source->safe_psql('postgres', $_) foreach 'SELECT evpg_run_sagas(2)', <<'SQL', q(SELECT evpg_pause_consumer('counts'));
CREATE FUNCTION other_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS
  $$ SELECT to_jsonb('other ' || event.type) $$;
SQL
$target->safe_psql('moved', $source->safe_psql('postgres', "SELECT pg_get_functiondef('other_apply'::regproc)"));
$source->safe_psql('postgres', $_)
  foreach q(SELECT evpg_register_aggregate('thing', 'parsed_handle', 'other_apply')),
  q(SELECT evpg_register_projection('later', 'last_apply', mode => 'async')),
  q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Deposit', '{"amount": 3}')),
  q(SELECT count(*) FROM evpg_execute('sum', 'm', 'Add', '{"by": 5}', command_id => 'meanwhile'));
$source->wait_for_catchup('evpg_move');
is($reader->query_safe(q(SELECT state FROM evpg_state('thing', 'i'))),
	'"other Done"', 'a session of the target notices that a registration has changed');
$reader->quit;
is( $target->safe_psql('moved',
		'SELECT count(*), max(position) FROM evpg_read_all(stable_only => false, max_count => 100000)'),
	$source->safe_psql('postgres', 'SELECT count(*), max(position) FROM evpg_read_all(max_count => 100000)'),
	'all events can be read');
is($target->safe_psql('moved', 'SELECT count(*), evpg_stable_position() FROM evpg_read_all()'),
	'0|0', 'a reader up to the stable position waits for the switch [rule 9]');
is(sqlstate($target, $_, 'moved'), '55000', "nothing is done before activation: $_ [rule 9]")
  foreach 'CALL evpg_run()', 'SELECT evpg_run_sagas()';
ok(worker_rounds($target, 'moved', 3, "BEGIN; SELECT setval('evpg.event_position', 1000000); $note; ROLLBACK"),
	'the worker of the target has gone around');
$target->safe_psql('moved', q(SELECT setval('evpg.event_position', 1, false)));

# ------------------------------------------------------------------ the switch

$source->safe_psql('postgres', $_) foreach 'ALTER SYSTEM SET evpg.workers = 1', 'SELECT pg_reload_conf()';
ok($source->poll_query_until('postgres', processes(1, 'worker')), 'the source has a worker');
run_documented(shift @documented, 'the commands that end writing');
is($source->safe_psql('postgres', processes(0, 'worker')), 't', 'the source has no worker');
like(under_way($source),
	qr/^events for sagas, one waits for a dead letter, one is retried, timers, scheduled commands, dead letters, .*parked/,
	'work is under way');
my $contents = contents($source, 'postgres', @elsewhere);
my $figures = figures($source);
run_documented(shift @documented, 'the commands that switch over');
is_deeply(\@documented, [], 'all commands of docs/operations.md have been run');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pg_subscription'), 0, 'there is no subscription');
is($source->safe_psql('postgres', 'SELECT count(*) FROM pg_publication, pg_replication_slots'), 0, 'and no slot');
is(slurp_file("$directory/figures.after"), slurp_file("$directory/figures.before"), 'the figures are the same');
is(slurp_file("$directory/contents"), $contents, 'all rows and sequences were as they are in the source [rule 9]');
is(slurp_file("$directory/seen"), $figures, 'so were events, states, projections, lag, stable position, privileges');
is(inspect($target, 'moved'), '', 'all that is stored agrees');

ok(finish($target, 'moved'), 'all work comes to its end');
is(left($target, 'moved'), '', 'each transfer is made once, nothing is left [rules 16, 18]');
is(inspect($target, 'moved'), '', 'all that is stored agrees in the end');
my $outcome = outcome($target, 'moved');
ok(finish($source), 'without a move: all work comes to its end');
is($outcome, outcome($source), 'it is what comes of it after the move: nothing is lost, nothing is done twice');

# ------------------------------------------------------------------ the log alone

$source->safe_psql('postgres', $_)
  foreach 'ALTER SYSTEM RESET evpg.workers', 'SELECT pg_reload_conf()',
  'CREATE PUBLICATION log FOR TABLE evpg.stream, evpg.event_log';
$target->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(reader plain);
$target->safe_psql('reader', 'CREATE EXTENSION evpg');
$target->safe_psql('plain', <<'SQL');
CREATE SCHEMA evpg;
CREATE TABLE evpg.stream (stream_id bigint PRIMARY KEY, aggregate_type text, aggregate_id text, created_at timestamptz);
CREATE TABLE evpg.event_log (event_id uuid, stream_id bigint, version bigint, position bigint PRIMARY KEY, type text,
  data jsonb, metadata jsonb, tags text[], schema_version int, command_id text, correlation_id text, causation_id text,
  actor text, session_role text, occurred_at timestamptz, recorded_at timestamptz);
SQL
my $log = <<'SQL';
SELECT count(*), md5(string_agg(concat_ws('|', position, aggregate_type, aggregate_id, version, event_id, type, data,
  metadata, tags, schema_version, command_id, correlation_id, causation_id, actor, session_role, occurred_at, recorded_at),
  ',' ORDER BY position)) FROM evpg.event_log JOIN evpg.stream USING (stream_id)
SQL
subscribe($_, 'log') foreach qw(reader plain);
$source->safe_psql('postgres', "$note; SELECT FROM evpg_append('note', 'new', ARRAY[evpg_event('Noted')])");
$source->wait_for_catchup($_) foreach qw(reader plain);
my $events = $source->safe_psql('postgres', $log);
is($target->safe_psql('reader', $log), $events, 'a database with evpg gets the log');
is($target->safe_psql('plain', $log), $events, 'so does one without');
is($target->safe_psql('reader', 'SELECT count(*) FROM evpg_read_all(stable_only => false, max_count => 100000)'),
	$events =~ s/\|.*//r, 'evpg reads it');
is($target->safe_psql('reader', q(SELECT data FROM evpg_read_stream('sum', 'm') ORDER BY version DESC LIMIT 1)),
	'{"by": 5}', 'and a stream of it');
is($target->safe_psql('reader', 'SELECT evpg_stable_position()'), 0, 'nothing is stable there before the switch [rule 9]');
$target->safe_psql('reader', q(SELECT evpg_register_aggregate('note')));
is(sqlstate($target, q(SELECT evpg_create_stream('note', 'here')), 'reader'),
	'23505', 'a stream that is made there before the switch is an error');
$target->safe_psql('reader', $_) foreach 'DROP SUBSCRIPTION reader', 'SELECT evpg_activate_consumers()';
is( $target->safe_psql('reader', q(SELECT version FROM evpg_append('note', 'new', ARRAY[evpg_event('Noted')]))),
	2, 'after the switch a stream goes on');
is($target->safe_psql('reader', 'SELECT max(position) = evpg_stable_position() FROM evpg.event_log'), 't', 'all is stable');
$target->safe_psql('plain', 'DROP SUBSCRIPTION plain');

# ------------------------------------------------------------------ from the beginning, without a copy

$source->safe_psql('postgres', 'CREATE DATABASE empty');
$source->safe_psql('empty', "CREATE EXTENSION evpg; CREATE PUBLICATION log FOR ALL TABLES");
$target->safe_psql('postgres', 'CREATE DATABASE empty');
my $react = q(CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS
  $$ SELECT evpg_reaction('{}') $$);
$target->safe_psql('empty', "CREATE EXTENSION evpg; $react");
ok($target->poll_query_until('postgres', processes(2, 'worker', 'empty')), 'there are workers');
is($target->safe_psql('empty', 'SELECT evpg.is_activated()'), 't', 'they could work');
subscribe('empty', 'log', 'WITH (copy_data = false)');
$source->safe_psql('empty', $react);
$source->safe_psql('empty',
	q(SELECT evpg_register_saga('s', 'react', aggregate_types => '{note}', key_path => '$.aggregate_id')));
$source->safe_psql('empty', "SELECT evpg_register_aggregate('note'); $note");
$source->wait_for_catchup('empty');
is($target->safe_psql('empty', 'SELECT evpg.is_activated(), count(*) FROM evpg.consumer'),
	'f|1', 'what comes by replication alone makes consumers inactive [rule 9]');
$target->safe_psql('empty', 'DROP SUBSCRIPTION empty');

foreach my $node ($source, $target)
{
	is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
	$node->stop;
}
done_testing();

# The blocks of commands of docs/operations.md, "Moving by logical replication".
sub documented
{
	my ($chapter) = slurp_file(tree() . '/docs/operations.md') =~ /^### Moving by logical replication\n(.*?)(?=^##|\z)/ms
	  or die 'the chapter is missing';

	return $chapter =~ /^```sh\n(.*?)^```$/msg;
}

# Runs such a block in $directory.  What the target has before activation is asked in the middle of the last one.
sub run_documented
{
	my ($commands, $what) = @_;
	my $asked = 0;

	if ($commands =~ /^(?=.*evpg_activate_consumers)/m)
	{
		my ($before, $after) = $commands =~ /^(.*?)^([^\n]*evpg_activate_consumers.*)/ms;

		run_shell($before, "$what, up to activation");
		append_to_file("$directory/seen", figures($target, 'moved'));
		append_to_file("$directory/contents", contents($target, 'moved', @elsewhere));
		$commands = $after;
	}
	return run_shell($commands, $what);
}

# Each block finds the figures that those before it have noted.
sub run_shell
{
	my ($commands, $what) = @_;
	my $given = $variables;

	$variables .= $1 while $commands =~ /^(figures=".*?"\n)/msg;
	$commands = "$given$commands";
	local %ENV = (%ENV, bin => installation($newest) . '/bin', source => $source->connstr('postgres'),
		target => $target->connstr('moved'));

	delete @ENV{qw(PGHOST PGPORT PGDATABASE PGUSER)};
	chdir $directory or die;
	return command_ok([ 'sh', '-eu', '-c', $commands ], $what);
}

# What CREATE EXTENSION makes in the target.
sub objects_of_extension
{
	$target->safe_psql('postgres', 'CREATE DATABASE fresh');
	$target->safe_psql('fresh', 'CREATE EXTENSION evpg');
	my $objects = objects($target, 'fresh');
	$target->safe_psql('postgres', 'DROP DATABASE fresh');
	return $objects;
}

# Lets a database of the target subscribe to what the one of the source publishes.
sub subscribe
{
	my ($database, $publication, $options) = @_;
	my $from = $source->connstr($database eq 'empty' ? 'empty' : 'postgres') =~ s/'/''/gr;

	$target->safe_psql($database,
		"CREATE SUBSCRIPTION $database CONNECTION '$from' PUBLICATION $publication " . ($options // ''));
	return $target->poll_query_until($database,
		"SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel
		  JOIN pg_subscription s ON s.oid = srsubid WHERE subname = '$database'");
}
