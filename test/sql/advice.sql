-- advice.sql: what is valid but can hardly be meant gets a WARNING or a NOTICE, and is done.
\set VERBOSITY default
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA advice;
SET search_path = advice, public;
SET default_transaction_isolation = 'read committed'; -- registering a saga needs it
SET check_function_bodies = on;
CREATE FUNCTION handle(state jsonb, command evpg.command) RETURNS evpg.new_event LANGUAGE sql STABLE
  AS $$ SELECT evpg_event(command.command_type, command.data) $$;
CREATE FUNCTION apply(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
CREATE FUNCTION react(state jsonb, event evpg.event) RETURNS evpg.reaction LANGUAGE sql AS $$ SELECT evpg_reaction(state) $$;
CREATE FUNCTION intercept(command evpg.command) RETURNS evpg.command LANGUAGE sql AS $$ SELECT command $$;
SELECT evpg_register_aggregate('seat', 'handle', 'apply');

-- a path that starts at no member of an event
CREATE FUNCTION register_path(path jsonpath) RETURNS boolean LANGUAGE sql
  AS $$ SELECT evpg_register_projection('agenda', reducer => 'apply', key_path => path) $$;
SELECT register_path('$.attendee');
SELECT register_path('$.attendee'); -- again, though nothing changes
SELECT register_path('strict $.Data.attendee');
SELECT register_path('$.tags[*] ? ($.typ == "Booked")');
SELECT register_path('$ ? (@.type == "Booked" && exists (@.dat.attendee)).data.attendee');
SELECT register_path('$[*].attendees');
SELECT register_path('$.data.a + $.b');
SELECT register_path('$ ? (!(@.actr like_regex "^a")).actor');
SELECT register_path('$ ? (@.actr starts with "a").actor');
SELECT evpg_register_saga('offers', handler => 'react', key_path => '$.attendee', start_event_types => '{Booked}');
-- these are right
SELECT register_path('$.data.attendee');
SELECT register_path('$.data.items[*].sku');
SELECT register_path('$ ? (@.data.by >= 10).aggregate_id');
SELECT register_path('$.data.items[*] ? (@.sku != $.data.not).sku');
SELECT register_path('$.metadata."a b"');
SELECT register_path('$.**.sku');
SELECT register_path('$.*.sku');
SELECT register_path('"all"');
SELECT register_path(format('$.%I', attname)::jsonpath) FROM pg_attribute
  WHERE attrelid = 'evpg.event'::regclass AND attnum > 0;

-- types that nothing has been seen of; not while the log is empty, as above
SELECT count(*) FROM evpg_execute('seat', '1', 'SeatBooked') a, evpg_execute('seat', '2', 'SeatFreed') b;
SELECT evpg_register_projection('booked', reducer => 'apply', event_types => '{SeatBooked,SeatBokked,seatfreed,Other}',
  aggregate_types => '{seat,seats}');
SELECT evpg_register_projection('booked', reducer => 'apply', event_types => '{SeatBooked,SeatBokked,seatfreed,Other}',
  aggregate_types => '{seat,seats}');
SELECT evpg_register_projection('booked', reducer => 'apply', event_types => '{SeatBooked,SeatFreed}',
  aggregate_types => '{seat}');
SELECT evpg_register_saga('offers', handler => 'react', event_types => '{SeatBooked,SeatFreeed}',
  start_event_types => '{SeatBooked}',
  version => 2);
SELECT evpg_register_saga('offers', handler => 'react', start_event_types => '{SeatBooket}', version => 3);
SELECT evpg_register_interceptor('guard', 'intercept', aggregate_types => '{Seat}');

-- a path that finds a key in no event that there is, unless it is to select some
SELECT evpg_register_projection('by_seat', reducer => 'apply', key_path => '$.data.seatt', aggregate_types => '{seat}');
SELECT evpg_register_saga('by_seat_saga', handler => 'react', key_path => '$.data.seatt', event_types => '{SeatBooked}');
SELECT evpg_register_projection('by_seat', reducer => 'apply', key_path => '$.type', aggregate_types => '{seat}');
SELECT evpg_register_projection('by_seat', reducer => 'apply', key_path => '$ ? (@.data.n > 7).type');
SELECT evpg_register_projection('by_seat', reducer => 'apply', key_path => '$.data.seat', event_types => '{SeatFreed}',
  tags => '{none}');

-- transitions without a way out of the first state
SELECT evpg_register_saga('stuck', handler => 'react', transitions => '{"a": ["lent"], "lent": ["back"]}');
SELECT evpg_register_saga('stuck', handler => 'react', transitions => '{"": [], "lent": ["back"]}');
SELECT evpg_register_saga('stuck', handler => 'react', transitions => '{"": ["lent"]}');
SELECT evpg_drop_saga('stuck'), evpg_drop_saga('by_seat_saga'), evpg_drop_projection('by_seat');

-- a handler that names declared tables with their schema would fail in a rebuild
CREATE TABLE booked (id text PRIMARY KEY, n int NOT NULL DEFAULT 1);
CREATE TABLE "Booked" (id text PRIMARY KEY);
CREATE FUNCTION register_body(body text, language text DEFAULT 'sql', set text DEFAULT '') RETURNS boolean LANGUAGE plpgsql
  AS $f$
BEGIN
  EXECUTE format('CREATE OR REPLACE FUNCTION count_booked(event evpg.event) RETURNS jsonb LANGUAGE %s %s %s', language, set,
    CASE WHEN body LIKE 'BEGIN ATOMIC%' THEN body ELSE 'AS ' || quote_literal(body) END);
  RETURN evpg_register_projection('counts', handler => 'count_booked', tables => ARRAY['booked', '"Booked"']);
END $f$;
SELECT register_body('INSERT INTO advice.booked VALUES (event.aggregate_id); SELECT NULL::jsonb');
SELECT register_body('INSERT INTO Advice /* here */ . "booked" VALUES (event.aggregate_id); SELECT NULL::jsonb');
SELECT register_body('INSERT INTO advice."Booked" VALUES (event.aggregate_id); SELECT NULL::jsonb');
SELECT register_body($$BEGIN EXECUTE 'DELETE FROM advice.booked'; RETURN NULL; END$$, 'plpgsql');
SELECT register_body('BEGIN ATOMIC INSERT INTO booked VALUES (event.aggregate_id); SELECT NULL::jsonb; END');
SELECT register_body('INSERT INTO booked VALUES (event.aggregate_id); SELECT NULL::jsonb',
  set => 'SET search_path = advice');
-- these are right
SELECT register_body('INSERT INTO booked VALUES (event.aggregate_id); SELECT NULL::jsonb');
SELECT register_body(E'-- not advice.booked\nINSERT INTO booked '
  'VALUES (event.aggregate_id); /* nor advice.booked */ SELECT NULL::jsonb');
SELECT register_body('INSERT INTO booked SELECT advice.id FROM "Booked" advice; SELECT to_jsonb(''advice.bookeds''::text)');
SELECT
  register_body('DECLARE b advice.booked%ROWTYPE; BEGIN INSERT INTO booked VALUES (event.aggregate_id); RETURN NULL; END',
  'plpgsql');
SELECT register_body('INSERT INTO xadvice.booked VALUES (event.aggregate_id); SELECT ''"''::jsonb');

-- evpg_set_context outside of a transaction block
SELECT evpg_set_context(actor => 'ann');
SELECT * FROM evpg_set_context('ann');
SELECT evpg_set_context('ann') \gdesc
BEGIN;
SELECT evpg_set_context(actor => 'ann');
COMMIT;
SELECT evpg_set_context(actor => 'ann')\; SELECT actor FROM evpg_execute('seat', '1', 'SeatFreed');
DO $$ BEGIN PERFORM evpg_set_context('ann'); PERFORM evpg_execute('seat', '1', 'SeatFreed'); END $$;
DO $$ DECLARE r record; BEGIN FOR r IN SELECT evpg_set_context('ann') LOOP END LOOP; END $$;
CREATE FUNCTION in_sql() RETURNS text LANGUAGE sql AS $$
  SELECT evpg_set_context('ann'); SELECT actor FROM evpg_execute('seat', '1', 'SeatFreed')
$$;
SELECT in_sql();
CREATE FUNCTION in_cursor() RETURNS void LANGUAGE plpgsql AS $$
DECLARE c CURSOR FOR SELECT evpg_set_context('ann');
BEGIN OPEN c; MOVE c; CLOSE c; END $$;
SELECT in_cursor();
CREATE PROCEDURE in_procedure() LANGUAGE plpgsql AS $$ BEGIN PERFORM evpg_set_context('ann'); END $$;
CALL in_procedure();
WITH context AS MATERIALIZED (SELECT evpg_set_context('ann')) SELECT e.actor
  FROM context, evpg_execute('seat', '1', 'SeatFreed') e;

-- evpg_run_sagas in a transaction that has appended
BEGIN;
SELECT * FROM evpg_run_sagas();
SAVEPOINT s;
SELECT version FROM evpg_execute('seat', '1', 'SeatBooked');
SELECT * FROM evpg_run_sagas();
ROLLBACK TO s;
SELECT * FROM evpg_run_sagas();
ROLLBACK;

-- an upcaster lists the projections that may have rows of old events; another one does not
CREATE FUNCTION to_freed(data jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT data $$;
SELECT evpg_register_upcaster('SeatFreed', 1, 'to_freed'), evpg_register_upcaster('SeatFreed', 1, 'to_freed');
SELECT evpg_drop_upcaster('SeatFreed', 1);
SELECT evpg_register_upcaster('SeatFreed', 1, 'to_freed', aggregate_type => 'no seat');

SET client_min_messages = warning;
DROP SCHEMA advice CASCADE;
DROP EXTENSION evpg;
CREATE EXTENSION evpg;
