# Rules 3 and 9: positions are drawn without nextval(), those of a call at once.  They follow each other whatever CACHE and
# INCREMENT of the sequence are, and none is drawn again after a crash: the first draw after a checkpoint writes to the WAL
# how far the positions are drawn, and so does each that uses up what was written ahead.  A defect in that must be noticed.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = evpg_node('positions', conf => "autovacuum = off\n");

# Appends so many events in one call; returns their first and last position, and how many positions they have.
sub append
{
	my ($count) = @_;

	return $node->safe_psql('postgres', <<"SQL");
SELECT min(position), max(position), count(DISTINCT position)
  FROM evpg_append('account_c', 's', (SELECT array_agg(evpg_event('Noted')) FROM generate_series(1, $count)))
SQL
}

sub crash
{
	$node->stop('immediate');
	$node->start;
	return;
}

# ------------------------------------------------------------------ what follows what

is(append(3), '1|3|3', 'the first positions are 1, 2 and 3 [rule 9]');
is(append(1), '4|4|1', 'the next is 4');
$node->safe_psql('postgres', 'ALTER SEQUENCE evpg.event_position CACHE 20 INCREMENT 7');
is(append(100), '5|104|100', 'CACHE and INCREMENT have no effect: those of a call follow each other [rule 3]');
is(append(1), '105|105|1', 'nor have they between sessions [rule 9]');
$node->safe_psql('postgres', 'ALTER SEQUENCE evpg.event_position CACHE 1 INCREMENT 1');

my $aborted = $node->safe_psql('postgres',
	"BEGIN; SELECT position FROM evpg_append('account_c', 'other', ARRAY[evpg_event('Noted')]); ROLLBACK");
is($aborted, 106, 'a transaction that is rolled back has drawn one');
is(append(1), '107|107|1', 'which is not drawn again [rule 9]');
my ($status, $output, $error) = $node->psql('postgres', <<'SQL');
ALTER SEQUENCE evpg.event_position MAXVALUE 9223372036854775807;
SELECT setval('evpg.event_position', 9223372036854775700);
SELECT FROM evpg_append('account_c', 's', (SELECT array_agg(evpg_event('Noted')) FROM generate_series(1, 100)));
SQL
like($error, qr/ERROR:  there are no more positions/, 'at the end there is an error, and no position that is too large');
$node->safe_psql('postgres', "SELECT setval('evpg.event_position', 107)");

# ------------------------------------------------------------------ crashes

# After a checkpoint: a call with so many events, one that is rolled back, and a commit that is flushed; then a crash.
# Returns the highest position that was drawn.
sub draw_and_crash
{
	my ($count) = @_;
	my $last;

	$node->safe_psql('postgres', 'CHECKPOINT');
	append($count);
	$last = $node->safe_psql('postgres',
		"BEGIN; SELECT position FROM evpg_append('account_c', 'other', ARRAY[evpg_event('Noted')]); ROLLBACK");
	$node->safe_psql('postgres', 'CREATE TABLE flushed (); DROP TABLE flushed');
	crash();
	return $last;
}

foreach my $count (1, 33, 100)
{
	my $last = draw_and_crash($count);
	my ($first) = split /\|/, append(1);

	cmp_ok($first, '>', $last, "$count events after a checkpoint, then a crash: no position is drawn again [rule 9]");
}
is($node->safe_psql('postgres', 'SELECT count(*) = count(DISTINCT position) FROM evpg.event_log'), 't',
	'each event has a position of its own');

# ------------------------------------------------------------------ a defect

$node->safe_psql('postgres', "ALTER DATABASE postgres SET evpg.test_mutation = 'position_unlogged'");
draw_and_crash(1);
($status, $output, $error) =
  $node->psql('postgres', "SELECT FROM evpg_append('account_c', 's', ARRAY[evpg_event('Noted')])");
like($error, qr/duplicate key value violates unique constraint "event_log_pkey"/,
	'a draw that is not logged after a checkpoint is made again, and noticed');

$node->stop;
done_testing();
