# UpgradeTest: what the tests of upgrades share: servers of each version, a database in the middle of everything that evpg
# does, all that is to be seen of it, and what must come of it in the end.

package UpgradeTest;

use strict;
use warnings;

use Exporter 'import';
use EvpgTest qw(:DEFAULT processes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

our @EXPORT = qw($conf $newest @others server installation has_column_versions forget_column_versions
  fill under_way contents figures objects finish outcome left);

# Work begins when a test lets it.
our $conf = "shared_preload_libraries = 'evpg'\nevpg.naptime = 1s\nevpg.workers = 0\nwal_level = logical\n";

# The versions beside the one that runs the tests, which is the newest; oldest first.
our @others = split / /, $ENV{EVPG_WITH};
our $newest = `pg_config --version` =~ /(\d+)/ ? $1 : die 'there is no pg_config';

# Where the programs of a version are, in bin.
sub installation
{
	my ($version) = @_;
	return $version == $newest ? `pg_config --bindir` =~ s/\/bin\n//r : "$ENV{EVPG_SERVERS}/$version";
}

# A server of a version, with nothing in it.
sub server
{
	my ($name, $version, %options) = @_;

	return evpg_node($name, bare => 1, conf => $conf, install_path => installation($version), %options);
}

# Whether new columns have a version.
sub has_column_versions
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		"SELECT EXISTS (SELECT FROM pg_attribute WHERE attoptions::text LIKE '{pg_attver=%')") eq 't';
}

# Minor releases of November 2026 give columns a version, which pg_upgrade, and pg_dump of an older minor release, take
# along, and which older minor releases of newer major versions refuse: the newest server may be one of these.
sub forget_column_versions
{
	my ($node, @databases) = @_;

	$node->safe_psql($_, "UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{pg_attver=%'")
	  foreach @databases ? @databases : qw(postgres template1);
	return;
}

# Makes a database postgres with everything under way.
sub fill
{
	my ($node) = @_;
	my $query = sub { $node->safe_psql('postgres', $_) foreach @_; };

	create_evpg($node, 'postgres');
	create_transfers($node);
	$query->(<<'SQL');
CREATE ROLE reporting; CREATE ROLE shop; CREATE ROLE deployment; CREATE ROLE metrics; CREATE ROLE feed; CREATE ROLE clerk;
SELECT evpg_grant('reporting', 'reader'), evpg_grant('shop', 'executor'), evpg_grant('deployment', 'operator'),
  evpg_grant('metrics', 'monitor'), evpg_grant('feed', 'relay'), evpg_grant('clerk', 'writer'),
  evpg_grant('clerk', 'monitor');
GRANT SET ON PARAMETER evpg.max_events TO clerk;
ALTER ROLE shop SET evpg.origin = 'till';
ALTER DATABASE postgres SET evpg.max_saga_depth = 50;
-- what is in it fails
CREATE TABLE broken (what text PRIMARY KEY);
CREATE FUNCTION check_works(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM broken b WHERE b.what = check_works.what) THEN RAISE EXCEPTION '% is broken', what; END IF;
END $$;
CREATE FUNCTION count_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Noted' THEN PERFORM check_works(event.data->>'fails'); END IF;
  RETURN jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1);
END $$;
CREATE FUNCTION stop_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Noted' THEN PERFORM check_works('stopped'); END IF;
  RETURN jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1);
END $$;
CREATE FUNCTION rebuild_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  -- two keys of the last of three parts: the first ends a batch, the second fails
  IF event.aggregate_id = 'a7' AND event.type = 'AccountOpened' THEN
    PERFORM pg_sleep(0.6) FROM broken WHERE what = 'rebuild';
  ELSIF event.aggregate_id = 'a5' AND event.type = 'MoneyDeposited' THEN
    PERFORM check_works('rebuild');
  END IF;
  RETURN jsonb_build_object('count', coalesce((state->>'count')::int, 0) + 1, 'last', event.version);
END $$;
CREATE FUNCTION by_owner(event evpg.event) RETURNS text LANGUAGE sql IMMUTABLE AS
  $$ SELECT event.type || ' ' || event.aggregate_id $$;
-- a reducer whose body is parsed when it is created
CREATE FUNCTION parsed_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql STABLE
  RETURN jsonb_build_object('sum', coalesce((state->>'sum')::int, 0) + (event.data->>'by')::int);
CREATE FUNCTION parsed_handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE
  RETURN evpg_event('Added', command.data);
CREATE FUNCTION pass(command evpg.command) RETURNS evpg.command LANGUAGE sql AS 'SELECT command';
CREATE FUNCTION sum_command(payload jsonb) RETURNS evpg.command LANGUAGE sql AS
  $$ SELECT evpg_command('sum', payload->>'id', 'Add', payload) $$;
CREATE FUNCTION fragile_react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE plpgsql AS $$
BEGIN
  PERFORM check_works(event.aggregate_id);
  RETURN evpg_reaction(jsonb_build_object('seen', coalesce((state->>'seen')::int, 0) + 1),
    evpg_action_send('sum', 'reactions', 'Add', '{"by": 1}'),
    evpg_action_schedule('soon', '1 second'), evpg_action_schedule('late', due_at => '2100-01-01'));
END $$;
CREATE FUNCTION fragile_timer(state jsonb, timer evpg.fired_timer) RETURNS evpg.reaction LANGUAGE sql STABLE AS $$
  SELECT evpg_reaction(state || jsonb_build_object('fired', coalesce((state->>'fired')::int, 0) + 1),
    evpg_action_send('sum', 'timers', 'Add', '{"by": 1}'))
$$;
CREATE FUNCTION last_apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(event.type)';
SELECT evpg_register_aggregate(t, 'parsed_handle', CASE t WHEN 'sum' THEN 'parsed_apply' ELSE 'last_apply' END::regproc)
  FROM unnest('{sum,note,thing,job}'::text[]) t;
SELECT evpg_register_interceptor('pass', 'pass'),
  evpg_register_translator('translate', 'sum_command'),
  evpg_register_projection('counts', 'count_apply', mode => 'async', on_error => 'park', max_attempts => 1),
  evpg_register_projection('paused', 'count_apply', mode => 'async'),
  evpg_register_projection('stopped', 'stop_apply', mode => 'async', on_error => 'stop', max_attempts => 1),
  evpg_register_projection('rebuilt', 'rebuild_apply', key_function => 'by_owner'),
  evpg_register_projection('replaced', 'last_apply'),
  evpg_register_saga('fragile', handler => 'fragile_react', timer_handler => 'fragile_timer', aggregate_types => '{thing}',
    key_path => '$.aggregate_id', max_attempts => 1),
  evpg_register_saga('patient', handler => 'fragile_react', timer_handler => 'fragile_timer',
    aggregate_types => '{job}', key_path => '$.aggregate_id', max_attempts => 10, backoff => '1 day',
    max_backoff => '1 day');
SELECT evpg_enable_index('event_type'), evpg_set_retention('commands', '1000 days'),
  evpg_set_retention('inbox', '1000 days');
SQL

	# events of every form, command ids, messages, snapshots of each kind of reducer
	$query->(<<'SQL', 'CALL evpg_run()');
SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
  evpg_execute(t, 'x0', 'Request', '{"from": "a1", "to": "a2", "amount": 3}') e;
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, unnest('{y1,y2}'::text[]) id,
  evpg_execute(t, id, 'Open', '{"owner": "Ann"}') e;
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, evpg_execute(t, 'y1', 'Deposit', '{"amount": 10}') e;
SELECT count(*) FROM unnest('{account,account_c}'::text[]) t, evpg_execute(t, 'payee', 'Open',
  '{"owner": "Ælfgifu \\ \"x\""}', command_id => 'open', metadata => '{"n": 12345678901234567890.12}', actor => 'me',
  correlation_id => 'c', causation_id => 'd') e;
SELECT count(*) FROM evpg_append('note', 'b', ARRAY[evpg_event('Noted', '{"n": 1e400}', tags => '{x,"y z"}',
  schema_version => 3, occurred_at => '1999-12-31')]);
SELECT evpg_create_stream('note', 'empty');
-- with fewer of them a rebuild is done at once
SELECT count(*) FROM evpg_append('note', 'many', array_fill(evpg_event('Done'), ARRAY[3000]));
SELECT count(*) FROM generate_series(1, 3) n, evpg_execute('sum', 's', 'Add', jsonb_build_object('by', n)) e;
SELECT count(*) FROM evpg_receive_message('shop', '1', 'translate', '{"id": "m", "by": 4}');
SELECT evpg_take_snapshot('account', 'a1'), evpg_take_snapshot('account_c', 'a1'), evpg_take_snapshot('sum', 's');
SQL

	# what is under way, and what has failed: a transaction each
	$query->(
		"INSERT INTO broken VALUES ('counts'), ('stopped'), ('rebuild'), ('k'), ('j')",
		q(SELECT evpg_pause_consumer('paused')),
		q(SELECT count(*) FROM evpg_append('note', 'b', ARRAY[evpg_event('Noted', '{"fails": "counts"}'),
			evpg_event('Other')])),
		# as many parts as there would be workers, if consumers were active
		q(DELETE FROM evpg.activation),
		q(ALTER SYSTEM SET evpg.workers = 3), q(SELECT pg_reload_conf()));
	$node->poll_query_until('postgres', 'SHOW evpg.workers', '3') or die 'the setting does not change';
	$query->(
		q(SELECT evpg_rebuild_projection('rebuilt', background => true)),
		q(ALTER SYSTEM RESET evpg.workers), q(SELECT pg_reload_conf()));
	$node->poll_query_until('postgres', processes(0, 'worker')) or die 'there are workers';
	$query->(
		q(SELECT evpg_activate_consumers()),
		q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Withdraw', '{"amount": 7}')),
		q(SELECT count(*) FROM unnest('{thing,job}'::text[]) t, unnest('{i,k,j}'::text[]) k,
			evpg_append(t, k, ARRAY[evpg_event('Done'), evpg_event('Done')])),
		q(CALL evpg_run()),
		q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t, generate_series(1, 5) n, evpg_execute(t,
			'x' || n, 'Request', jsonb_build_object('from', 'a' || n, 'to', 'a' || (n + 5), 'amount', 10 * n))),
		q(SELECT evpg_run_sagas(7)),
		q(SELECT count(*) FROM unnest('{transfer,transfer_c}'::text[]) t,
			evpg_execute(t, 'y', 'Request', '{"from": "y1", "to": "y2", "amount": 1}')),
		q(SELECT evpg_run_sagas(1)),
		# one event is done, one is parked, two are in flight
		q(SELECT evpg_create_subscription('mail', aggregate_types => '{thing}', event_types => '{Done}', partitions => 2,
			lease_time => '1 day'), evpg_listen_subscription('mail')),
		q(WITH f AS MATERIALIZED (SELECT lease, "position" FROM evpg_fetch('mail', 'mailer', 4))
			SELECT evpg_nack('mail', max(lease), (array_agg("position" ORDER BY "position"))[2], 'park',
				reason => 'gone') FROM f),
		q(SELECT evpg_rebuild_projection('replaced', background => true)),
		q(SELECT evpg_cancel_rebuild('replaced')),
		q(SELECT evpg_schedule_command('2001-01-01', 'account', 'payee', 'Deposit', '{"amount": 9}', command_id => 'due')),
		q(SELECT evpg_schedule_command('2100-01-01', 'account', 'payee', 'Close')),
		q(SELECT count(*) FROM evpg_execute('sum', 's', 'Add', '{"by": 10}')),
		q(BEGIN; SELECT count(*) FROM evpg_execute('sum', 's', 'Add', '{"by": 100}'); ROLLBACK));
	return;
}

# A line that tells what is under way.
sub under_way
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
SELECT concat_ws(', ', (SELECT 'events for sagas' FROM evpg.saga_event HAVING count(*) > 0),
  (SELECT 'one waits for a dead letter' FROM evpg.saga_event WHERE dead_letter_id IS NOT NULL HAVING count(*) > 0),
  (SELECT 'one is retried' FROM evpg.saga_event WHERE retry_at > now() HAVING count(*) > 0),
  (SELECT 'timers' FROM evpg.timer WHERE saga IS NOT NULL HAVING count(*) > 0),
  (SELECT 'scheduled commands' FROM evpg.timer WHERE saga IS NULL HAVING count(*) > 0),
  (SELECT 'dead letters' FROM evpg.dead_letter WHERE resolved_at IS NULL HAVING count(*) > 0),
  (SELECT 'lag' FROM evpg.stat_consumer WHERE lag_events > 0 AND checkpoint > 0 HAVING count(*) > 0),
  (SELECT 'parked' FROM evpg.parked_event WHERE skip_reason IS NULL HAVING count(*) > 0),
  (SELECT string_agg(status, ', ' ORDER BY status) FROM (SELECT DISTINCT status FROM evpg.consumer) c),
  (SELECT 'a rebuild in ' || count(*) || ' parts' FROM evpg.rebuild_part HAVING sum(events) > 0),
  (SELECT 'an old build' FROM evpg.old_build), (SELECT count(*) || ' snapshots' FROM evpg.snapshot),
  (SELECT 'an inbox' FROM evpg.inbox),
  (SELECT 'a completed instance' FROM evpg.saga_instance WHERE status = 'completed' HAVING count(*) > 0),
  (SELECT sum(in_flight) || ' events in flight, ' || sum(parked) || ' parked' FROM evpg.stat_subscription))
SQL
}

# All rows of all tables, and the values of sequences.
sub contents
{
	my ($node, $database, @except) = @_;
	my $except = join ', ', map {"'$_'"} 'none', @except;

	$database //= 'postgres';

	my $tables = $node->safe_psql($database, <<"SQL");
SELECT format('SELECT %L, count(*), md5(string_agg(t::text, '','' ORDER BY t::text)) FROM %s t;',
    oid::regclass, oid::regclass)
  FROM pg_class WHERE relnamespace IN ('evpg'::regnamespace, 'bank'::regnamespace, 'public'::regnamespace) AND relkind = 'r'
   AND oid::regclass::text NOT IN ($except) ORDER BY oid::regclass::text
SQL
	my $sequences = $node->safe_psql($database, <<'SQL');
SELECT format('SELECT %L, last_value, is_called FROM %s;', oid::regclass, oid::regclass)
  FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relkind = 'S'
   AND relname <> 'logged_position' ORDER BY oid::regclass::text
SQL
	return $node->safe_psql($database, "$tables\n$sequences");
}

# What views and functions show of it, and privileges: the same wherever consumers are inactive.
sub figures
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
SELECT 'stable position', evpg_stable_position(), s.last_position FROM evpg.stat_stable_position s;
SELECT 'events', count(*), md5(string_agg(e::text, ',' ORDER BY position)) FROM evpg_read_all(max_count => 100000) e;
SELECT name, mode, version, checkpoint, lag_events, events_total, errors_total, parked, last_error, retry_at
  FROM evpg.stat_consumer ORDER BY name;
SELECT name, partition, consumer, lease, checkpoint, in_flight, attempts, parked, lag_events FROM evpg.stat_subscription
 ORDER BY name, partition;
SELECT name, build, phase, events_done, events_total, parts, attempts FROM evpg.progress_rebuild;
SELECT s.aggregate_type, s.aggregate_id, f.* FROM evpg.stream s
  CROSS JOIN LATERAL evpg_state(s.aggregate_type, s.aggregate_id) f WHERE s.aggregate_type IN (SELECT aggregate_type FROM
  evpg.aggregate_type) ORDER BY 1, 2;
SELECT * FROM evpg.projected_state ORDER BY name, key;
SELECT name, key, (evpg_saga(name, key)).* FROM (SELECT saga AS name, key FROM evpg.saga_instance) i ORDER BY name, key;
SELECT * FROM evpg.optional_index;
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid FROM pg_index
 WHERE indrelid = 'evpg.event_log'::regclass ORDER BY 1;
SELECT oid::regclass, acl.grantee::regrole::text, acl.privilege_type FROM pg_class, aclexplode(relacl) acl
 WHERE relnamespace = 'evpg'::regnamespace AND acl.grantee <> relowner ORDER BY oid::regclass::text, 2, 3;
SELECT oid::regprocedure, acl.grantee::regrole::text, acl.privilege_type FROM pg_proc, aclexplode(proacl) acl
 WHERE (proname LIKE 'evpg%' OR pronamespace = 'evpg'::regnamespace) AND acl.grantee <> proowner
 ORDER BY oid::regprocedure::text, 2, 3;
SELECT attrelid::regclass::text, attname, acl.grantee::regrole::text, acl.privilege_type
  FROM pg_attribute, aclexplode(attacl) acl
 WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'evpg'::regnamespace) ORDER BY 1, 2, 3, 4;
SELECT nspname, acl.grantee::regrole::text, acl.privilege_type FROM pg_namespace, aclexplode(nspacl) acl
 WHERE nspname = 'evpg' AND acl.grantee NOT IN (nspowner, 0) ORDER BY 1, 2, 3;
SQL
}

# The objects of evpg by their definitions, to compare with those that CREATE EXTENSION makes on the same server.
sub objects
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
SET search_path = pg_catalog;
SELECT oid::regprocedure, md5(pg_get_functiondef(oid)) FROM pg_proc WHERE oid IN (SELECT objid FROM pg_depend
  WHERE classid = 'pg_proc'::regclass AND deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'evpg'))
 ORDER BY oid::regprocedure::text;
-- views are stored as trees: older versions name columns that newer ones leave to be named by themselves
SELECT c.oid::regclass, relkind, relreplident, reloptions, relpersistence,
  regexp_replace(regexp_replace(pg_get_viewdef(c.oid), '\( VALUES', '(VALUES', 'g'), '::text AS text\M', '::text', 'g')
  FROM pg_class c WHERE
  c.relnamespace = 'evpg'::regnamespace AND relkind IN ('r', 'v', 'S', 'c') ORDER BY c.oid::regclass::text;
SELECT attrelid::regclass, attname, atttypid::regtype, attnotnull, attcollation, attidentity,
  row_number() OVER (PARTITION BY attrelid ORDER BY attnum), (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
  WHERE adrelid = attrelid AND adnum = attnum) FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped AND attrelid IN
  (SELECT oid FROM pg_class WHERE relnamespace = 'evpg'::regnamespace AND relname <> 'event_log_event_type')
 ORDER BY attrelid::regclass::text, attnum;
SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE connamespace = 'evpg'::regnamespace ORDER BY conrelid::regclass::text, conname;
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid), indisreplident FROM pg_index WHERE indrelid IN (SELECT oid FROM
  pg_class WHERE relnamespace = 'evpg'::regnamespace) AND indexrelid::regclass::text <> 'evpg.event_log_event_type'
 ORDER BY indexrelid::regclass::text;
SELECT tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM
  pg_class WHERE relnamespace = 'evpg'::regnamespace) ORDER BY tgrelid::regclass::text, tgname;
SELECT extversion, extnamespace::regnamespace, (SELECT array_agg(c::regclass::text ORDER BY c::regclass::text)
  FROM unnest(extconfig) c) FROM pg_extension WHERE extname = 'evpg';
SELECT md5(string_agg(pg_describe_object(classid, objid, 0), ',' ORDER BY pg_describe_object(classid, objid, 0)))
  FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'evpg')
   AND classid <> 'pg_type'::regclass;
SQL
}

# Repairs what is broken, activates consumers, lets workers do all that is left, and waits for it; false if they do not.
sub finish
{
	my ($node, $database) = @_;
	my $quiet = <<'SQL';
SELECT NOT EXISTS (SELECT FROM evpg.saga_event) AND NOT EXISTS (SELECT FROM evpg.rebuild)
   AND NOT EXISTS (SELECT FROM evpg.timer WHERE due_at < '2100-01-01')
   AND NOT EXISTS (SELECT FROM evpg.old_build)
   AND (SELECT bool_and(checkpoint = evpg_stable_position()) FROM evpg.consumer
       WHERE kind <> 'subscription')
SQL
	# the consumer comes back, and then the parked event is replayed
	my $hand_out = <<'SQL';
DO $$
DECLARE
  batch evpg.delivery[];
BEGIN
  FOR n IN 1 .. 20 LOOP
    batch := ARRAY(SELECT d FROM evpg_fetch('mail', 'mailer') d ORDER BY d."position");
    INSERT INTO handed_out SELECT d.aggregate_id, d.version, d.attempt FROM unnest(batch) d;
    PERFORM evpg_ack('mail', d.lease, d."position") FROM unnest(batch[cardinality(batch):]) d;
    IF n = 10 THEN PERFORM evpg_replay_parked('mail'); END IF;
  END LOOP;
END $$
SQL

	$database //= 'postgres';
	$node->safe_psql($database, $_)
	  foreach 'DELETE FROM broken', 'SELECT evpg_activate_consumers()', 'ALTER SYSTEM SET evpg.workers = 2',
	  'SELECT pg_reload_conf()', "SELECT evpg_resume_consumer(name) FROM evpg.consumer",
	  "SELECT evpg_replay_parked('counts')",
	  'CREATE TABLE IF NOT EXISTS handed_out (aggregate_id text, version bigint, attempt int)', $hand_out;
	$node->poll_query_until($database, 'SELECT NOT EXISTS (SELECT FROM evpg.timer WHERE saga IS NULL AND due_at < now()
		AND dead_letter_id IS NULL)')
	  or return 0;
	$node->safe_psql($database, 'SELECT evpg_retry_dead_letters(NULL)');
	$node->safe_psql($database, "SELECT evpg_retry_dead_letters('fragile')");
	return $node->poll_query_until($database, $quiet);
}

# What has come of it, without ids and times, which differ.
sub outcome
{
	my ($node, $database) = @_;

	return $node->safe_psql($database // 'postgres', <<'SQL');
SELECT aggregate_type, aggregate_id, version, type, data, tags, actor, session_role FROM evpg.event
 WHERE aggregate_id <> 'many' ORDER BY 1, 2, 3;
SELECT s.aggregate_type, s.aggregate_id, f.version, f.state FROM evpg.stream s
  CROSS JOIN LATERAL evpg_state(s.aggregate_type, s.aggregate_id) f WHERE s.aggregate_type IN (SELECT aggregate_type FROM
  evpg.aggregate_type) ORDER BY 1, 2;
SELECT name, key, state, generation, version FROM evpg.projected_state ORDER BY name, key;
SELECT saga, key, status, state, version FROM evpg.saga_instance ORDER BY 1, 2;
SELECT account, version, amount, balance FROM bank.statement ORDER BY 1, 2;
SELECT saga, key, name, command FROM evpg.timer ORDER BY 1, 2, 3;
SELECT saga, key, sqlstate, resolution FROM evpg.dead_letter ORDER BY 1, 2, 3;
SELECT name, kind, status, parked FROM evpg.stat_consumer ORDER BY 1;
SELECT name, events_total FROM evpg.consumer ORDER BY 1;
SELECT stream_id, command_id FROM evpg.command_record WHERE command_id !~ ':' ORDER BY 1, 2;
SELECT source, message_key FROM evpg.inbox;
SELECT aggregate_id, version, attempt FROM handed_out ORDER BY 1, 2, 3;
SELECT sum(in_flight), sum(parked) FROM evpg.stat_subscription;
SELECT saga, sum(dispatched), sum(dead_lettered) FROM evpg.saga_total GROUP BY saga ORDER BY saga;
SQL
}

# What is wrong with the transfers, but for the timers that are not due.
sub left
{
	my ($node, $database) = @_;

	return join "\n", grep { !/^a timer is left\|(?:\||fragile|patient)/ } split /\n/, wrong($node, $database);
}

1;
