# Which databases have workers: templates give way to CREATE DATABASE, a database that stops being a template gets its
# worker, and a slot is free when its last process has left (rule 9).

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT soon processes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('databases', bare => 1, conf => <<'EOC');
shared_preload_libraries = 'evpg'
evpg.max_databases = 1
EOC

# ------------------------------------------------------------------ a template with the extension

$node->safe_psql('postgres', 'CREATE ROLE maker LOGIN CREATEDB; CREATE ROLE nobody LOGIN');
$node->safe_psql('template1', 'CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'template1'), 'the extension is in template1, which has a worker');
is($node->psql('postgres', 'CREATE DATABASE made'), 0, 'a database can be created');
is($node->psql('postgres', 'DROP DATABASE made'), 0, 'a database can be dropped while workers run');
soon(processes(1, 'worker', 'template1'), 'the worker comes back');
is($node->psql('postgres', 'CREATE DATABASE made', extra_params => [ '-U', 'maker' ]), 0,
	'who may copy a template can create a database, too');
$node->safe_psql('postgres', 'DROP DATABASE made');
soon(processes(1, 'worker', 'template1'), 'the worker comes back');
my $before = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg worker'");
isnt($node->psql('postgres', 'CREATE DATABASE made', extra_params => [ '-U', 'nobody' ]), 0, 'who may not');
is($node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg worker'"), $before,
	'does not disturb it');

# ------------------------------------------------------------------ a template that stops being one

$node->safe_psql('postgres', 'CREATE DATABASE made');
$node->safe_psql('template1', 'DROP EXTENSION evpg');
ok( $node->wait_for_log(
		qr/WARNING:  consumers of database "made" are inactive\n.*DETAIL: .*\n.*HINT:  Run evpg_activate_consumers/),
	'the worker of a copy tells that its consumers are inactive [rule 9]');
is(scalar(() = slurp_file($node->logfile) =~ /consumers of database "made" are inactive/g), 1, 'once');
$node->safe_psql('postgres', 'ALTER DATABASE made IS_TEMPLATE true');
$node->restart;
soon(processes(0, 'probe', 'made') , 'all databases are looked at');
soon(processes(0, 'worker', 'made'), 'a template has no worker');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE made IS_TEMPLATE false; ROLLBACK');
$node->safe_psql('postgres', 'ALTER DATABASE made IS_TEMPLATE false');
soon(processes(1, 'worker', 'made'), 'when it stops being a template it gets its worker');
$node->safe_psql('postgres', 'ALTER DATABASE made ALLOW_CONNECTIONS false');
soon(processes(0, 'worker', 'made'), 'a database that takes no connections loses its worker');
$node->safe_psql('postgres', 'ALTER DATABASE made ALLOW_CONNECTIONS true');
soon(processes(1, 'worker', 'made'), 'a database gets a worker again when it accepts connections');
$node->safe_psql('postgres', 'DROP DATABASE made');
soon(processes(0, 'worker', 'template1'), 'without the extension it leaves');

# ------------------------------------------------------------------ a slot whose last process is slow to leave

$node->safe_psql('postgres', 'CREATE DATABASE first');
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('first', 'CREATE EXTENSION evpg');
soon(processes(1, 'worker', 'first'), 'a database takes the only slot');
$node->safe_psql('first', <<'SQL');
CREATE FUNCTION keep(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT event.data $$;
SELECT evpg_register_projection('kept', 'keep');
SELECT evpg_put_projection('kept', 'a', '{}');
SQL
soon(processes(1, 'broadcaster', 'first'), 'a database that has sent frames has a broadcaster');
my $broadcaster = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'evpg broadcaster'");
kill 'STOP', $broadcaster;
$node->safe_psql('first', 'DROP EXTENSION evpg CASCADE');
soon(processes(0, 'worker', 'first'), 'the extension is gone, and so is the worker');
my $log = -s $node->logfile;
$node->safe_psql('second', 'CREATE EXTENSION evpg');
ok($node->wait_for_log(qr/has no workers.*\n.*DETAIL: .*Only 1 databases can have workers/, $log),
	'a database that is refused');
is($node->safe_psql('postgres', processes(0, 'worker', 'second')), 't',
	'the slot is not free as long as the broadcaster is there');
kill 'CONT', $broadcaster;
soon(processes(0, 'broadcaster', 'first'), 'it leaves');
soon(processes(1, 'worker', 'second'), 'the slot of a dropped extension goes to the database that was refused');

$node->stop;
done_testing();
