# One transaction may create, or inject, as much as it likes: what it holds in the lock table of the server, which is small
# and shared by all, does not grow with it (rules 2 and 3).  While it is open others go on; who wants one of its streams
# waits for it.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use EvpgTest qw(:DEFAULT query);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $many = 20000;
my $node = evpg_node('many_streams', conf => "max_connections = 20\ndeadlock_timeout = 10ms\n");

sub ours
{
	return query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid BETWEEN 17750 AND 17759");
}

query(<<'SQL');
CREATE FUNCTION note_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE plpgsql AS $$
BEGIN
  RETURN CASE command.command_type WHEN 'Note' THEN evpg_event('Noted') END;
END $$;
CREATE FUNCTION note_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE RETURN state;
SELECT evpg_register_aggregate('note', 'note_handle', 'note_apply'), evpg_register_aggregate('stored');
SQL
is(query('SHOW max_locks_per_transaction'), '64', 'at the default settings');

my $bulk = $node->background_psql('postgres', on_error_stop => 0);
$bulk->query_safe('BEGIN');
foreach my $step (
	['evpg_execute', "evpg_execute('note', 'e' || n, 'Note')"],
	['evpg_try_execute', "evpg_try_execute('note', 't' || n, 'Note')"],
	['a command that does nothing', "evpg_try_execute('note', 'nothing' || n, 'Nothing')"],
	['evpg_append', "evpg_append('note', 'a' || n, ARRAY[evpg_event('Noted')], command_id => 'c' || n)"],
	['evpg_inject',
		"evpg_inject('stored', 'all', evpg_event('Noted', event_id => ('00000000-0000-7000-8000-' || lpad(n::text, "
		. "12, '0'))::uuid))"])
{
	my ($name, $call) = @$step;

	is($bulk->query("SELECT count(*) >= 0 FROM generate_series(1, $many) n, LATERAL (SELECT FROM $call) x"), 't',
		"$many times $name in one transaction");
	cmp_ok(ours(), '<', 64 + 10, '... leave few locks');
	is($node->psql('postgres', "SELECT evpg_execute('note', '$name ' || n, 'Note') FROM generate_series(1, 100) n"), 0,
		'... and others go on');
}
is($bulk->query("SELECT count(*) FROM generate_series(1, $many) n, evpg_create_stream('note', 's' || n) c WHERE c"), $many,
	'empty streams, too');
cmp_ok(ours(), '<', 64 + 10, '... leave few locks');

# beyond evpg.max_stream_locks the rows are guards, each of them
my @waiting = map { $node->background_psql('postgres') } 1 .. 4;
$waiting[0]->query_until(qr/asked/, "\\echo asked\nSELECT version FROM evpg_execute('note', 'e7', 'Note');\n");
$waiting[1]->query_until(qr/asked/,
	"\\echo asked\nSELECT version FROM evpg_append('note', 't$many', ARRAY[evpg_event('Noted')]);\n");
$waiting[2]->query_until(qr/asked/, "\\echo asked\nSELECT evpg_create_stream('note', 's1');\n");
$waiting[3]->query_until(qr/asked/,
	"\\echo asked\nSELECT count(*) FROM evpg_inject('stored', 'again', evpg_event('Noted', event_id => "
	. "'00000000-0000-7000-8000-000000000007'));\n");
ok($node->poll_query_until('postgres', "SELECT count(*) = 4 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
	'who wants what the transaction has created waits [rule 2]');
$bulk->query_safe('COMMIT');
is(join(' ', map { $_->query_safe('SELECT 1') =~ s/\n1$//r } @waiting), '2 2 f 0',
	'sessions that have waited find what the transaction has created [rule 2]');
$_->quit foreach $bulk, @waiting;

is(query("SELECT count(*), count(DISTINCT position) FROM evpg.event"), join('|', (4 * $many + 502) x 2),
	'all events are there, once [rule 3]');
# a reaction locks its instance to the end of the transaction: there it ends early, and in parts it is done
query(<<'SQL');
CREATE FUNCTION note_react(state jsonb, event evpg.event) RETURNS evpg.reaction
  LANGUAGE sql RETURN evpg_reaction('{"seen": true}');
SELECT evpg_register_saga('noted', 'note_react', event_types => '{Begun}');
SELECT count(*) FROM generate_series(1, 3000) n, LATERAL evpg_append('stored', 'i' || n, ARRAY[evpg_event('Begun')]);
SQL
is(sqlstate($node, 'SELECT evpg_run_sagas()'), '53400',
	'a transaction that would fill the lock table with instances is refused');
is(join(' ', map { query('SELECT dispatched + dead_lettered FROM evpg_run_sagas(1000)') } 1 .. 3), '0 0 0',
	'in parts [rule 16]');
is(query("SELECT count(*) FROM evpg.saga_instance"), '3000', 'all instances react [rule 16]');

# what is rolled back to a savepoint is not counted: its locks are given back
query("SELECT evpg_register_saga('told', 'note_react', event_types => '{Told}', mode => 'inline')");
is(sqlstate($node, <<'SQL'), '00000', 'events that are rolled back one by one lock no instance [rule 16]');
DO $$
BEGIN
  FOR n IN 1 .. 3000 LOOP
    BEGIN
      PERFORM evpg_append('stored', 'told', ARRAY[evpg_event('Told')]);
      RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
    END;
  END LOOP;
END $$
SQL
# inline they do so in the transaction of the client, who is told what to do
my $load = "FROM generate_series(1, 6000) n, LATERAL evpg_append('stored', 'i' || n, ARRAY[evpg_event('Told')])";
my (undef, undef, $refusal) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT count(*) $load");
like($refusal, qr/ERROR:  53400: .*^HINT:  Append fewer events in one transaction/ms,
	'a load into an inline saga that would fill the lock table is refused, with a hint for clients [rule 16]');
query(<<'SQL');
DO $$
BEGIN
  FOR part IN 0 .. 5 LOOP
    PERFORM evpg_append('stored', 'i' || n, ARRAY[evpg_event('Told')])
      FROM generate_series(part * 1000 + 1, part * 1000 + 1000) n;
    COMMIT;
  END LOOP;
END $$;
SQL
is(query("SELECT count(*) FROM evpg.saga_instance WHERE saga = 'told'"), '6000',
	'in parts all of it is reacted to [rule 16]');
$node->stop;
done_testing();
