# Background processes: the launcher starts workers where the extension is, sees what comes and goes, keeps out of the way of
# commands on whole databases, and starts again what ended; none on a standby, none for pg_upgrade.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT processes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('workers', bare => 1, allows_streaming => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
max_worker_processes = 12
restart_after_crash = on
evpg.naptime = 100ms
evpg.max_databases = 3
allow_in_place_tablespaces = on
EOC

# The processes of a type, of a database if it is named, as a condition.
sub soon
{
	my ($condition, $name, $server) = @_;

	return ok(($server // $node)->poll_query_until('template1', $condition), $name);
}

sub worker
{
	my ($database) = @_;

	return $node->safe_psql('template1',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = '$database'");
}

sub set
{
	my ($name, $value) = @_;

	$node->safe_psql('template1', "ALTER SYSTEM SET $name = $value");
	$node->safe_psql('template1', 'SELECT pg_reload_conf()');
	return;
}

# ------------------------------------------------------------------ the extension comes and goes

soon(processes(1, 'launcher'), 'there is a launcher');
$node->safe_psql('postgres', 'CREATE DATABASE plain');
$node->safe_psql('postgres', 'CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'postgres'), 'CREATE EXTENSION starts a worker [B67]');
soon(processes(0, 'probe'), 'every database was looked at');
is($node->safe_psql('template1', processes(1, 'worker')), 't', 'a database without the extension has none');
soon(
	"SELECT a.state = 'idle' AND a.xact_start IS NULL AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid)
	   FROM pg_stat_activity a WHERE a.backend_type = 'evpg worker'",
	'between rounds a worker has no lock and no transaction');
is($node->safe_psql('postgres', "SELECT usename FROM pg_stat_activity WHERE backend_type = 'evpg worker'"),
	$node->safe_psql('postgres', 'SELECT rolname FROM pg_roles WHERE oid = 10'), 'it is the bootstrap superuser');

$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION evpg; ROLLBACK');
is($node->safe_psql('template1', processes(1, 'worker', 'postgres')), 't',
	'a DROP EXTENSION that is rolled back ends nothing');
$node->safe_psql('postgres', 'DROP EXTENSION evpg');
soon(processes(0, 'worker'), 'DROP EXTENSION ends it');
$node->safe_psql('postgres', 'CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'postgres'), 'the extension comes back, and so does the worker');
my $before = worker('postgres');
$node->safe_psql('postgres', 'DROP EXTENSION evpg; CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'postgres'), 'DROP EXTENSION and CREATE EXTENSION at once leave a worker');
$node->safe_psql('plain', 'BEGIN; CREATE EXTENSION evpg; ROLLBACK');
$node->restart;
soon(processes(1, 'worker', 'postgres'), 'a restart of the server starts it');
soon(processes(0, 'probe'), 'everything was looked at');
is($node->safe_psql('template1', processes(1, 'worker')), 't', 'databases without evpg have no worker');

# ------------------------------------------------------------------ how many

set('evpg.workers', 3);
soon(processes(3, 'worker', 'postgres'), 'evpg.workers can be raised');
set('evpg.workers', 0);
soon(processes(0, 'worker'), 'evpg.workers can be lowered to none');
set('evpg.workers', 1);
soon(processes(1, 'worker', 'postgres'), 'evpg.workers can be raised again');

# ------------------------------------------------------------------ commands on whole databases

# each of these fails after 5 s if somebody is connected
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
ok(1, 'a database with a worker can be a template');
soon(processes(1, 'worker', 'copy'), 'the copy has a worker');
soon(processes(1, 'worker', 'postgres'), 'the original has one again');

$node->safe_psql('template1', 'ALTER DATABASE copy RENAME TO other');
soon(processes(1, 'worker', 'other'), 'a database with a worker can be renamed');
my $session = $node->background_psql('template1', on_error_stop => 1);
$session->query_safe('BEGIN; ALTER DATABASE other RENAME TO third');
is($node->safe_psql('template1', "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('other', 'third')"), '0',
	'in a transaction it stays away');
$session->query_safe('ROLLBACK');
$session->quit;
soon(processes(1, 'worker', 'other'), 'to its end');

$node->safe_psql('template1', "CREATE TABLESPACE place LOCATION ''");
$node->safe_psql('template1', 'ALTER DATABASE other SET TABLESPACE place');
soon(processes(1, 'worker', 'other'), 'a database with a worker can be moved');

$node->safe_psql('template1', 'CREATE ROLE nobody LOGIN');
$before = worker('other');
my ($code, $stdout, $stderr) = $node->psql('template1', 'DROP DATABASE other', extra_params => [ '-U', 'nobody' ]);
like($stderr, qr/must be owner of database other/, 'who may not drop a database');
is(worker('other'), $before, 'does not disturb its worker');
isnt($node->psql('template1', 'BEGIN; DROP DATABASE other;'), 0, 'a DROP DATABASE that fails');
soon(processes(1, 'worker', 'other'), 'leaves it with a worker');

# ------------------------------------------------------------------ slots

$node->safe_psql('template1', "CREATE DATABASE db$_") foreach 1 .. 2;
$node->safe_psql("db$_", 'CREATE EXTENSION evpg') foreach 1 .. 2;
soon(processes(1, 'worker', 'db1'), 'the last slot is taken');
ok($node->wait_for_log(qr/WARNING: .*has no workers.*\n.*DETAIL: .*\n.*HINT: .*evpg\.max_databases/),
	'beyond evpg.max_databases there is a warning');
is($node->safe_psql('template1', processes(0, 'worker', 'db2')), 't', 'a database beyond evpg.max_databases has no worker');
is($node->safe_psql('db2', "SELECT mode FROM evpg.stat_broadcast"), 'commit',
	'frames are sent with the commit there [rule 15]');
$node->safe_psql('template1', 'DROP DATABASE other');
ok(1, 'a database with a worker can be dropped');
soon(processes(1, 'worker', 'db2'), 'a database that is dropped gives another database its slot');
$node->safe_psql('db1', 'DROP EXTENSION evpg');
soon(processes(0, 'worker', 'db1'), 'DROP EXTENSION gives one back');
$node->safe_psql('plain', 'CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'plain'), 'for another database');
$node->safe_psql('template1', "DROP DATABASE $_") foreach qw(db1 db2 plain);
soon(processes(1, 'worker'), 'one is left');

# ------------------------------------------------------------------ processes that end

$before = worker('postgres');
$node->safe_psql('template1', "SELECT pg_terminate_backend($before)");
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND pid <> $before",
	'a worker that is terminated is started again [A11, D94]');
foreach my $victim ('evpg worker', 'client backend', 'evpg launcher')
{
	my $sleeper = $node->background_psql('template1', on_error_stop => 0);
	my $pid = $node->safe_psql('template1',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = '$victim' AND pid <> pg_backend_pid() LIMIT 1");
	my $start = $node->safe_psql('template1', 'SELECT pg_postmaster_start_time()');

	is(kill('KILL', $pid), 1, "$victim is killed");
	soon(
		"SELECT count(*) = 1 AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)
		   FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND datname = 'postgres'",
		'after the crash there is a worker again [D94]');
	is($node->safe_psql('template1', 'SELECT pg_postmaster_start_time()'), $start, 'in the same server');
	$sleeper->{run}->kill_kill;
}
$before = $node->safe_psql('template1', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg launcher'");
my $worker = worker('postgres');
$node->safe_psql('template1', "SELECT pg_terminate_backend($before)");
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg launcher' AND pid <> $before",
	'a launcher that was killed is started again [D94]');
is(worker('postgres'), $worker, 'the worker went on without it');
$node->safe_psql('template1', "SELECT pg_terminate_backend($worker)");
soon("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'evpg worker' AND pid <> $worker",
	'the new launcher looks after the worker');

# ------------------------------------------------------------------ what user code leaves behind

$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION add(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql AS $$
  SELECT evpg_event('Added')
$$;
CREATE FUNCTION same(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS $$ SELECT state $$;
CREATE FUNCTION locks(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_lock(17);
  IF event.type = 'Bad' THEN RAISE 'bad'; END IF;
  RETURN state;
END $$;
SELECT evpg_register_aggregate('plain', 'add', 'same');
SELECT evpg_register_projection('locks', 'locks', mode => 'async', constant_key => 'all', on_error => 'skip',
  max_attempts => 1);
SQL
foreach my $type ('Good', 'Bad')
{
	$node->safe_psql('postgres', "SELECT FROM evpg_append('plain', 'a', ARRAY[evpg_event('$type')])");
	is($node->safe_psql('postgres', "SELECT evpg_wait_for('locks', evpg_stable_position())"), 't',
		"$type: the event is consumed");
	soon("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 17)",
		"$type: the worker keeps no advisory lock of user code");
}

# ------------------------------------------------------------------ a wait that looks often

$node->safe_psql('postgres', "SELECT evpg_register_projection('kept', 'same', constant_key => repeat('k', 1000))");
my $waiter = $node->background_psql('postgres', on_error_stop => 0);
my $waiting = $waiter->query('SELECT pg_backend_pid()');
$waiter->query_until(qr/waits/,
	"\\echo waits\nSELECT evpg_watch_projection('kept', repeat('k', 1000), 1000000, NULL, 1);\n");
soon("SELECT wait_event = 'Extension' FROM pg_stat_activity WHERE pid = $waiting", 'a session waits for a key');
$node->safe_psql('postgres',
	"DO \$\$ BEGIN FOR i IN 1 .. 2000 LOOP PERFORM evpg_append('plain', 'b', ARRAY[evpg_event('Good')]); "
	. "COMMIT; END LOOP; END \$\$");
$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($waiting)");
ok($node->wait_for_log(qr/\[$waiting\] .*Grand total:/), 'it says what memory it has');
my @used = slurp_file($node->logfile) =~ /\[$waiting\] .*(?:ExprContext|EvpgWait): (\d+) total/g;
is(scalar(grep { $_ > 100_000 } @used), 0, 'the memory of the launcher does not grow with each look');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($waiting)");
$waiter->quit;

# ------------------------------------------------------------------ standby

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evpg%'"), '0',
	'a standby has no processes');
$standby->promote;
soon(processes(1, 'worker', 'postgres'), 'promotion starts them', $standby);
$standby->stop;

# ------------------------------------------------------------------ no room for processes

# all but two of these are taken, by the launcher and the one of logical replication
$node->append_conf('postgresql.conf', "max_worker_processes = 4\nevpg.workers = 4");
$node->safe_psql('template1', 'ALTER SYSTEM RESET evpg.workers');
$node->restart;
ok($node->wait_for_log(qr/WARNING:  could not start evpg worker.*\n.*DETAIL: .*\n.*HINT:  Increase max_worker_processes\./),
	'too few max_worker_processes: a warning');
soon(processes(2, 'worker', 'postgres'), 'as many workers as there is room for');
$node->safe_psql('template1', "SELECT pg_terminate_backend($_)") foreach split /\n/, worker('postgres');
soon(processes(2, 'worker', 'postgres'), 'workers that have ended are started again');
is(scalar(() = slurp_file($node->logfile) =~ /WARNING:  could not start evpg/g), 1, 'one warning');
$node->safe_psql('postgres', "SELECT evpg_put_projection('kept', 'a', '{}')");
$node->safe_psql('template1', "SELECT pg_terminate_backend($_)") foreach split /\n/, worker('postgres');
soon(processes(2, 'worker', 'postgres'), 'places that become free are taken by workers');
is($node->safe_psql('template1', processes(0, 'broadcaster')), 't',
	'no broadcaster takes the last slot, since frames can go by NOTIFY [rule 15]');
is($node->safe_psql('postgres',
	"SELECT status, workers, workers_wanted, broadcaster_pid FROM evpg.stat_database WHERE datname = 'postgres'"),
	'served|2|4|', 'the database says what it has');
set('evpg.workers', 1);
soon(processes(1, 'broadcaster', 'postgres'), 'the broadcaster takes a slot that is left');
$node->stop;

# ------------------------------------------------------------------ pg_upgrade

command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start' ],
	'the server starts for a binary upgrade');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evpg%'"), '0',
	'without a launcher');
command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, 'stop' ], 'a server without a launcher stops');
is(join("\n", slurp_file($node->logfile) =~ /^.*(?:PANIC|TRAP).*$/mg), '', 'no PANIC and no failed assertion');

done_testing();
