# Rule 13 with workers and crashes: a worker exchanges a table with the copy that a rebuild has filled, while others append;
# then all processes are killed.  After the restart the table holds what the events say, its indexes fit, and nothing of the
# copy is left. With wal_level = minimal too, where files that are new in a transaction are not logged; and with logical
# replication slots: if a slot decodes the table, rows are replaced.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $replaced = ' the rows of table public.line are replaced while no session can append';

my $setup = <<'SQL';
CREATE EXTENSION amcheck;
CREATE FUNCTION note_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE AS $$
  SELECT evpg_event(command.command_type, command.data)
$$;
CREATE FUNCTION note_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE TABLE line (position bigint PRIMARY KEY, id text NOT NULL, note text);
ALTER TABLE line ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE INDEX ON line (id, position);
CREATE FUNCTION line_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO line VALUES (event.position, event.aggregate_id, repeat(event.data->>'n', 3000)); SELECT NULL::jsonb
$$;
SELECT evpg_register_aggregate('note', 'note_handle', 'note_apply'),
       evpg_register_projection('line', handler => 'line_write', aggregate_types => '{note}', tables => '{line}',
         broadcast => 'none');
SELECT count(*) FROM generate_series(1, 60) s,
  LATERAL evpg_append('note', 's' || s,
  (SELECT array_agg(evpg_event('Noted', jsonb_build_object('n', n))) FROM generate_series(1, 50) n));
SQL

# What differs between the table and the log, and what is unsound in it: nothing.
my $differs = <<'SQL';
SELECT count(*) FROM (SELECT position, aggregate_id, repeat(data->>'n', 3000) FROM evpg.event) e (position, id, note)
  FULL JOIN line l USING (position, id, note) WHERE l IS NULL OR e IS NULL;
SELECT v FROM verify_heapam('line', check_toast => true) v;
SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 'line'::regclass;
SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text LIKE 'evpg\_rebuild%';
SELECT count(*) FROM evpg.rebuild;
SQL

foreach my $conf ("wal_level = minimal\nmax_wal_senders = 0\n", "wal_level = logical\n")
{
	my ($level) = $conf =~ /wal_level = (\w+)/;
	my $node = evpg_node("exchange_$level", conf => "shared_preload_libraries = evpg\nsynchronous_commit = on\n$conf");

	$node->safe_psql('postgres', $setup);
	foreach my $slot ('', 'unpublished', 'being published', 'schema being published', 'published', 'all tables')
	{
		next if $slot && $level eq 'minimal';
		$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('published', 'pgoutput');
			CREATE TABLE other (); CREATE PUBLICATION others FOR TABLE other})
		  if $slot eq 'unpublished';
		$node->safe_psql('postgres', 'ALTER PUBLICATION others ADD TABLE line') if $slot eq 'published';
		$node->safe_psql('postgres', q{DROP PUBLICATION others; SELECT pg_drop_replication_slot('published'),
			pg_create_logical_replication_slot('slot', 'test_decoding')})
		  if $slot eq 'all tables';
		my $decoded = $slot ne '' && $slot ne 'unpublished';
		my $publisher = $slot =~ /being/ ? $node->background_psql('postgres') : undef;
		my $log = -s $node->logfile;
		$node->safe_psql('postgres', q{UPDATE line SET note = 'spoiled'; DELETE FROM line WHERE id < 's3'});

		my $before = $node->safe_psql('postgres', q{SELECT pg_relation_filenode('line')});

		# of which no other session sees anything yet
		$publisher->query_safe('BEGIN; CREATE PUBLICATION soon FOR '
			. ($slot =~ /schema/ ? 'TABLES IN SCHEMA public' : 'ALL TABLES'))
		  if $publisher;
		$node->safe_psql('postgres', q{SELECT evpg_rebuild_projection('line', background => true)});
		my $number = 0;
		ok( EvpgTest::wait_until(
				sub {
					$node->safe_psql('postgres',
						sprintf(q{SELECT FROM evpg_execute('note', 'live', 'Noted', '{"n": %d}')}, $number++));
					return $node->safe_psql('postgres', 'SELECT count(*) FROM evpg.rebuild') eq '0';
				}),
			"a worker ends the rebuild while others append ($level $slot) [rule 13]");
		is( scalar(slurp_file($node->logfile, $log) =~ /LOG: $replaced\n.*DETAIL:  A logical replication slot/),
			$decoded ? 1 : '', "the log tells when rows are replaced, and why ($level $slot) [rule 13]");
		is($node->safe_psql('postgres', q{SELECT pg_relation_filenode('line')}) ne $before ? 'exchanged' : 'replaced',
			$decoded ? 'replaced' : 'exchanged',
			"the table is exchanged, or its rows replaced if a slot decodes it ($level $slot) [rule 13]");
		if ($publisher)
		{
			$publisher->query_safe('ROLLBACK');
			$publisher->quit;
		}
		$node->safe_psql('postgres', q{SELECT FROM evpg_execute('note', 'after', 'Noted', '{"n": 1}')});
		is($node->safe_psql('postgres', $differs), "0\n\n\n0", "it holds what the events say ($level $slot) [rule 13]");
		cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM pg_logical_slot_get_changes('slot', NULL, NULL)
				WHERE data LIKE 'table public.line: INSERT%'}),
			'>=', 3000, 'the slot decodes the new rows [rule 13]')
		  if $slot eq 'all tables';
		$node->stop('immediate');
		start_again($node);
		is($node->safe_psql('postgres', $differs), "0\n\n\n0", "after a crash, too ($level $slot) [rule 13]");
		$node->safe_psql('postgres', q{SELECT FROM evpg_execute('note', 'again', 'Noted', '{"n": 2}')});
		is($node->safe_psql('postgres', $differs), "0\n\n\n0", "and who appends goes on ($level $slot) [rule 13]");
	}
	my ($code, $stdout, $stderr) = $node->psql('postgres', q{SELECT evpg_rebuild_projection('line')});
	like($stderr, qr/NOTICE: $replaced\n.*in the foreground.*\n.*in the background/,
		"so does a rebuild in the foreground ($level) [rule 13]");
	$node->stop;
}

done_testing();
