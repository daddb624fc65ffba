# Rule 13 on a hot standby: a transaction there with a snapshot that is older than the copy of a table never finds the table
# empty when a rebuild on the primary has exchanged it.  It is in conflict with the exchange, whatever hot_standby_feedback
# says, which keeps it from other conflicts.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = evpg_node('primary', allows_streaming => 1,
	conf => "max_standby_streaming_delay = 100ms\nhot_standby_feedback = on\nwal_receiver_status_interval = "
	. "1s\nautovacuum = off\n");

$primary->safe_psql('postgres', <<'SQL');
CREATE TABLE line (position bigint PRIMARY KEY, id text NOT NULL);
CREATE FUNCTION line_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO line VALUES (event.position, event.aggregate_id); SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('line', handler => 'line_write', tables => '{line}', broadcast => 'none');
SELECT count(*) FROM generate_series(1, 100) n, evpg_execute('account', 'a' || n, 'Open', '{"owner": "Alice"}');
SQL
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);
ok($primary->poll_query_until('postgres', 'SELECT count(backend_xmin) = 1 FROM pg_stat_replication'),
	'the standby tells what it sees');

# With a defect planted the table is empty, so that it is known that the conflict prevents that.
foreach my $mutation ('standby_unwarned', '')
{
	my $old = $standby->background_psql('postgres');
	my $before = $primary->safe_psql('postgres', q{SELECT pg_relation_filenode('line')});
	my $conflicts = q{SELECT confl_snapshot FROM pg_stat_database_conflicts WHERE datname = 'postgres'};
	my $conflicted = $standby->safe_psql('postgres', $conflicts);

	is($old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) > 0 FROM evpg.event'), 't',
		'a transaction has a snapshot, and has not used the table');
	$primary->safe_psql('postgres', q{SELECT evpg_rebuild_projection('line', background => true)});
	$primary->safe_psql('postgres', "SET evpg.test_mutation = '$mutation'; CALL evpg_run()");
	isnt($primary->safe_psql('postgres', q{SELECT pg_relation_filenode('line')}), $before, 'the table is exchanged');
	$primary->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM line'), 100, 'new snapshots see the rows [rule 13]');
	my $rows = eval { $old->query('SELECT count(*) FROM line') } // '';
	if ($mutation ne '')
	{
		is($rows, '0', 'with the defect the old one finds the table empty');
	}
	else
	{
		isnt($rows, '0', 'the old one does not find the table empty [rule 13]');
		ok($standby->poll_query_until('postgres', "SELECT ($conflicts) > $conflicted"), 'it was in conflict [rule 13]');
	}
	eval { $old->quit };
}
$standby->stop;
$primary->stop;
done_testing();
