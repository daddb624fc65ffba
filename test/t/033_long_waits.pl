# What other sessions keep workers from doing for longer than a minute (a second here) is in the server log, once, with the
# lock that the worker waits for and the process that holds it; what is over sooner is not.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('long_waits', conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.test_mutation = 'impatient'
evpg.naptime = 100ms
evpg.workers = 1
EOC

sub query
{
	return $node->safe_psql('postgres', shift);
}

query(<<'SQL');
SELECT evpg_register_aggregate('thing');
CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$ SELECT evpg_reaction('{}') $$;
SELECT evpg_register_saga('reacts', 'react', event_types => '{Done}');
INSERT INTO evpg.inbox VALUES ('2001-01-01', 'one', 'one');
SQL

# A table is locked; what stands still; what starts it.
foreach my $case (
	[ 'evpg.inbox', 'inbox', q(SELECT evpg_set_retention('inbox', '1 day')) ],
	[ 'evpg.saga_event', 'all work', q(SELECT FROM evpg_append('thing', 'a', ARRAY[evpg_event('Done')])) ])
{
	my ($table, $name, $statement) = @$case;
	my $offset = -s $node->logfile;
	my $holder = $node->background_psql('postgres');
	my $pid = $holder->query_safe('SELECT pg_backend_pid()');

	$holder->query_safe('BEGIN');
	$holder->query_safe("LOCK TABLE $table");
	query($statement);
	$node->wait_for_log(qr/still waiting for \w+ on relation \d+ .*\n.*DETAIL:  Process holding the lock: $pid\. /, $offset);
	# until it would have been logged again
	$node->poll_query_until('postgres', <<"SQL") for 1 .. 3;
SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND wait_event_type = 'Lock'
SQL
	$holder->query_safe('COMMIT');
	$holder->quit;
	$node->wait_for_log(qr/LOG:  "$name" of database "?\w+"? runs again/, $offset);
	my $log = slurp_file($node->logfile, $offset);
	like($log, qr/LOG:  other sessions have kept "$name" of database "?\w+"? from being run for \d+ seconds/,
		"$table: the log names what stands still");
	like($log, qr/DETAIL:  The last error has SQLSTATE 55P03\.\n/, "$table: and why");
	is(scalar(() = $log =~ /have kept "/g), 1, "$table: once");
	is(scalar(() = $log =~ /still waiting for/g), 1, "$table: and the lock that it waits for, once");
}
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM evpg.saga_instance WHERE saga = 'reacts'"),
	'then all is done');

# Code of a user ends each attempt, with a SQLSTATE of such errors.
my $offset = -s $node->logfile;

query(<<'SQL');
CREATE FUNCTION refuse(event evpg.event) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RAISE 'secret of a person' USING ERRCODE = '40001';
END $$;
SELECT evpg_register_saga('refuses', 'react', key_function => 'refuse', event_types => '{Refused}');
SELECT FROM evpg_append('thing', 'a', ARRAY[evpg_event('Refused')]);
SQL
$node->wait_for_log(qr/have kept "refuses" of .*\n.*DETAIL:  The last error has SQLSTATE 40001\.\n/, $offset);
query("SELECT evpg_drop_saga('refuses')");
unlike(slurp_file($node->logfile, $offset), qr/LOG:.*secret|DETAIL:.*secret/, 'the log has no text of code of a user');

# The administrator wants to see all waits for locks, while the worker shows those of one attempt.
$offset = -s $node->logfile;
my $holder = $node->background_psql('postgres');

$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE evpg.saga_event');
query("SELECT FROM evpg_append('thing', 'a', ARRAY[evpg_event('Done')])");
$node->wait_for_log(qr/LOG:  other sessions have kept "all work"/, $offset);
query("ALTER SYSTEM SET evpg.test_mutation = ''");
query('ALTER SYSTEM SET log_lock_waits = on');
query('SELECT pg_reload_conf()');
$holder->query_safe('COMMIT');
$node->wait_for_log(qr/LOG:  "all work" of database "?\w+"? runs again/, $offset);
ok(worker_rounds($node, 'postgres', 1, "SELECT FROM evpg_append('thing', 'b', ARRAY[evpg_event('Done')])"),
	'the worker knows the settings');
$offset = -s $node->logfile;
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE evpg.saga_event');
query("SELECT FROM evpg_append('thing', 'a', ARRAY[evpg_event('Done')])");
$node->wait_for_log(qr/still waiting for \w+ on relation/, $offset);
unlike(slurp_file($node->logfile, $offset), qr/have kept/, 'log_lock_waits stays on if it was switched on meanwhile');
$holder->query_safe('COMMIT');
$holder->quit;

# A short wait.
query('ALTER SYSTEM RESET log_lock_waits');
query('SELECT pg_reload_conf()');
ok(worker_rounds($node, 'postgres', 1, "SELECT FROM evpg_append('thing', 'b', ARRAY[evpg_event('Done')])"),
	'the worker knows the setting');
$offset = -s $node->logfile;
$holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE evpg.saga_event');
query("SELECT FROM evpg_append('thing', 'c', ARRAY[evpg_event('Done')])");
ok($node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND wait_event_type = 'Lock'"),
	'a worker waits for a moment');
$holder->query_safe('COMMIT');
$holder->quit;
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM evpg.saga_instance WHERE saga = 'reacts' AND key = 'c'"),
	'then it goes on');
unlike(slurp_file($node->logfile, $offset), qr/have kept|runs again|still waiting/, 'of which the log tells nothing');

$node->stop;
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');
done_testing();
