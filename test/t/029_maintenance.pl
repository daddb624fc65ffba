# Maintenance commands of PostgreSQL on evpg's tables while commands, readers and workers are at work: none of either fails.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# deadlock_timeout: a deadlock is to be found, not waited for
my $node = evpg_node('maintenance', conf => <<'CONF');
shared_preload_libraries = 'evpg'
evpg.workers = 2
max_connections = 30
deadlock_timeout = 50ms
autovacuum = off
CONF

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE seen (id text PRIMARY KEY, n int NOT NULL);
CREATE FUNCTION see(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO seen VALUES (event.aggregate_id, 1) ON CONFLICT (id) DO UPDATE SET n = seen.n + 1; SELECT NULL::jsonb $$;
CREATE FUNCTION last_of(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT event.data';
SELECT evpg_register_projection('seen', handler => 'see', tables => '{seen}', event_types => '{Deposited}');
SELECT evpg_register_projection('last', reducer => 'last_of', constant_key => 'all', event_types => '{Deposited}',
  broadcast => 'pointer');
SELECT evpg_register_projection('later', reducer => 'last_of', mode => 'async');
CREATE FUNCTION remind(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS
  $$ SELECT evpg_reaction('{}', evpg_action_schedule('soon', interval '0')) $$;
CREATE FUNCTION ring(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql AS $$
  SELECT evpg_reaction('{}')
$$;
SELECT evpg_register_saga('remind', handler => 'remind', timer_handler => 'ring', event_types => '{Noted}');
SELECT evpg_execute('account' || c, k || '', 'Open', '{"owner": "Alice"}')
  FROM unnest('{"", _c}'::text[]) c, generate_series(1, 5) k;
SQL

my $directory = PostgreSQL::Test::Utils::tempdir;
my %scripts = (
	warm => q{\set k random(1, 5)
SELECT FROM evpg_execute('account_c', :k || '', 'Deposit', '{"amount": 1}');
},
	id => q{\set k random(1, 5)
SELECT FROM evpg_try_execute('account', :k || '', 'Deposit', '{"amount": 1}', command_id => gen_random_uuid()::text);
},
	new => q{SELECT FROM evpg_append('account_c', gen_random_uuid()::text, ARRAY[evpg_event('Noted')]);
},
	read => q{\set k random(1, 5)
SELECT count(*) FROM evpg_state('account', :k || '');
SELECT count(*) FROM evpg_read_stream('account_c', :k || '', 1, 10);
SELECT count(*) FROM evpg_read_all(0, 10);
SELECT count(*) FROM evpg_projection('last', 'all');
},
	# the cache is empty, so that snapshots are read
	cold => q{\set k random(1, 5)
SET evpg.state_cache_size = 0;
SELECT FROM evpg_execute('account', :k || '', 'Deposit', '{"amount": 1}');
});
my @scripts;
foreach my $name (sort keys %scripts)
{
	append_to_file("$directory/$name.sql", $scripts{$name});
	push @scripts, '-f', "$directory/$name.sql";
}

# What goes wrong is in the server's log: pgbench, the maintenance and the workers alike.
my @tables = qw(event_log stream command_record snapshot projection_state consumer saga_event saga_instance timer);
my @commands = map {
	("VACUUM FULL evpg.$_", "REINDEX TABLE evpg.$_", "REINDEX TABLE CONCURRENTLY evpg.$_", "VACUUM (ANALYZE) evpg.$_",
		"ALTER TABLE evpg.$_ SET (autovacuum_vacuum_scale_factor = 0.1)")
} @tables;
push @commands, map { "CLUSTER evpg.$_" } ('stream USING stream_pkey', 'projection_state USING projection_state_pkey',
	'command_record USING command_record_pkey');
push @commands, 'CREATE INDEX CONCURRENTLY by_actor ON evpg.event_log (actor)', 'DROP INDEX CONCURRENTLY evpg.by_actor',
	q{SELECT evpg_enable_index('event_type')}, q{SELECT evpg_enable_index('event_type', false)},
	'ALTER TABLE seen ADD COLUMN note text', 'ALTER TABLE seen DROP COLUMN note', 'REINDEX TABLE CONCURRENTLY seen',
		'VACUUM FULL seen';

my $offset = -s $node->logfile;
my $output = '';
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '8', '-j', '2', '-T', '900', '-h', $node->host, '-p', $node->port, @scripts, 'postgres' ],
	'<', \undef, '>', \$output, '2>', \$output);
$node->poll_query_until('postgres', 'SELECT count(*) > 200 FROM evpg.event_log') or die 'no load';
foreach my $round (1 .. 2)
{
	foreach my $command (@commands)
	{
		my ($rc, $out, $err) = $node->psql('postgres', $command);

		is($err =~ /ERROR/ ? $err : '', '', "$command, under load, round $round");
	}
}
my $before = $node->safe_psql('postgres', 'SELECT max(position) FROM evpg.event_log');
ok($node->poll_query_until('postgres', "SELECT max(position) > $before + 100 FROM evpg.event_log"), 'the load still runs');
$load->kill_kill(grace => 5);
unlike($output, qr/abort|error/i, 'no client has failed');
my @errors = grep { /ERROR:/ } split /\n/, slurp_file($node->logfile, $offset);
is(join("\n", @errors[ 0 .. ($#errors < 5 ? $#errors : 5) ]), '',
	'neither commands nor workers nor maintenance raised an error');
$node->poll_query_until('postgres', q{SELECT lag_events = 0 FROM evpg.stat_consumer WHERE name = 'later'});
is($node->safe_psql('postgres',
	'SELECT count(*) FROM evpg.stream_head s WHERE version <> (SELECT count(*) FROM evpg.event_log e '
	. 'WHERE e.stream_id = s.stream_id)'),
	'0', 'every stream has its events');
$node->stop;
done_testing();
