# Procedures that end their transaction, called by each protocol: what a hook of evpg looks at must not have gone with the
# transaction.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('calls', bare => 1, conf => "shared_preload_libraries = 'evpg'\n");
query(<<'SQL');
CREATE EXTENSION evpg;
SELECT evpg_register_aggregate('thing');
CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$
BEGIN
  PERFORM evpg_append_event('thing', 'a', 'Told');
  COMMIT;
  PERFORM evpg_append_event('thing', 'a', 'Told');
  ROLLBACK;
END $$;
SQL

my $calls = 0;
foreach my $protocol (qw(simple extended prepared))
{
	foreach my $statement ('CALL commits();', 'DO $$ BEGIN CALL commits(); END $$;', 'CALL evpg_run();')
	{
		$calls += 40 if $statement =~ /commits/;
		$node->pgbench(
			"--no-vacuum --client=2 --transactions=20 --protocol=$protocol",
			0, [qr{actually processed: 40/40}], [qr/^/], "$statement runs by the $protocol protocol",
			{ "$protocol-" . length($statement) => $statement });
	}
}
is(query('SELECT count(*) FROM evpg.event'), $calls, 'what was committed is there, and nothing else');

$node->stop;
done_testing();
