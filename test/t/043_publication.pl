# Under a publication of all tables, as Debezium makes one, PostgreSQL refuses UPDATE and DELETE of a table without a replica
# identity.
# The pgTAP files that write, each of evpg's tables in each way, therefore run once more in databases that have one, with
# wal_level = logical.  What they leave is asked for tables that such a statement would fail on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @files = qw(append execute snapshots relay inbox translators interceptors projections projection_rebuild async
  async_errors handlers rebuild_all rebuild_tables sagas sagas_failures sagas_module saga_ends saga_rebuild timers prune
  replica_identity);
my $node = evpg_node('publication', bare => 1, conf => "wal_level = logical\nmax_wal_senders = 4\n");

$node->safe_psql('postgres', 'CREATE DATABASE published');
$node->safe_psql('published', 'CREATE EXTENSION evpg; CREATE EXTENSION pgtap; CREATE PUBLICATION all_tables FOR ALL TABLES');
$node->safe_psql('published', 'CREATE TABLE without (n int)');
is(sqlstate($node, 'DELETE FROM without', 'published'), '55000', 'a table without a replica identity cannot be written');
$node->safe_psql('published', 'DROP TABLE without');

# Of evpg, and copies that rebuilds have left.
my $missing = <<'SQL';
SELECT c.oid::regclass FROM pg_class c
 WHERE relkind IN ('r', 'p') AND relnamespace::regnamespace::text ~ '^evpg' AND relreplident <> 'f'
   AND NOT EXISTS (SELECT FROM pg_index
     WHERE indrelid = c.oid AND (relreplident = 'd' AND indisprimary OR relreplident = 'i' AND indisreplident));
SQL

foreach my $file (@files)
{
	$node->safe_psql('postgres', "CREATE DATABASE $file TEMPLATE published");
	$node->safe_psql($file, 'SELECT evpg_activate_consumers()');

	my ($out, $err) = ('', '');
	my $status = $node->psql($file, undef, stdout => \$out, stderr => \$err, on_error_die => 0,
		extra_params => [ '-P', 'pager=off', '-v', 'ON_ERROR_STOP=1', '-f', tree() . "/test/pgtap/$file.sql" ]);
	my @bad = grep { /^not ok/ } split /\n/, $out;

	ok($status == 0 && !@bad && $out =~ /^ok /m, "$file.sql under a publication of all tables")
	  or diag(join("\n", @bad, grep { /ERROR/ } split /\n/, $err));
	is($node->safe_psql($file, $missing), '', "$file.sql: every table of evpg has a replica identity");
	is($node->safe_psql($file, 'SELECT count(*) FROM pg_publication WHERE puballtables'),
		$file eq 'replica_identity' ? 2 : 1, "$file.sql: the publication is there");
	$node->safe_psql('postgres', "DROP DATABASE $file");
}
done_testing();
