-- rebuild_tables.sql: a rebuild of a table projection fills copies of the tables that it has declared, and puts their
-- contents in place of those of the tables; or calls its reset function and does all in one transaction (rule 13).

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(157);
SET test.kind = counter;

-- Two tables, one with a foreign key to the other, generated and dropped columns, defaults, a name that needs quotes.
CREATE TABLE test.account (id text PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, gone int,
  double bigint GENERATED ALWAYS AS (balance * 2) STORED, CHECK (balance < 1000));
ALTER TABLE test.account DROP COLUMN gone;
CREATE TABLE test."Line ""1"""
  (account text NOT NULL REFERENCES test.account, "the position" bigint PRIMARY KEY, n bigint NOT NULL);
CREATE FUNCTION test.account_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.data->>'n' = current_setting('test.break', true) THEN
    RAISE EXCEPTION 'I break at %', event.data->>'n';
  END IF;
  IF event.type = 'Cleared' THEN
    DELETE FROM "Line ""1""" WHERE account = event.aggregate_id;
    DELETE FROM account WHERE id = event.aggregate_id;
    RETURN NULL;
  END IF;
  INSERT INTO account (id, balance) VALUES (event.aggregate_id, (event.data->>'n')::bigint) ON CONFLICT (id) DO UPDATE
    SET balance = account.balance + excluded.balance;
  INSERT INTO "Line ""1""" VALUES (event.aggregate_id, event.position, (event.data->>'n')::bigint);
  RETURN jsonb_build_object('balance', (SELECT balance FROM account WHERE id = event.aggregate_id));
END $$;
-- All that is in the tables.
CREATE FUNCTION test.contents() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT coalesce((SELECT string_agg(a::text, ' ' ORDER BY id) FROM account a), '') || ' | '
    || coalesce((SELECT string_agg(l::text, ' ' ORDER BY "the position") FROM "Line ""1""" l), '')
$$;
CREATE FUNCTION test.spoil() RETURNS void LANGUAGE sql AS $$
  DELETE FROM "Line ""1""" WHERE n % 2 = 0; UPDATE account SET balance = balance + 1; INSERT INTO account
    VALUES ('nobody', 5); INSERT INTO "Line ""1""" VALUES ('nobody', -1, 5);
$$;
CREATE FUNCTION test.schemas() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT count(*) FROM pg_namespace WHERE nspname LIKE E'evpg\\_%'
$$;

-- ------------------------------------------------------------------ declared tables

SELECT evpg_register_projection(name, handler => 'test.account_write', mode => mode, aggregate_types => '{counter}',
  tables => ARRAY['test.account', 'test."Line ""1"""'], max_attempts => 1)
  FROM (VALUES ('account', 'inline')) x (name, mode) \g /dev/null
SELECT is((SELECT tables FROM evpg.projection), ARRAY['test.account', 'test."Line ""1"""'],
  'tables are kept by their qualified names [rule 13]');
SELECT add('a', 1), add('b', 2), add('a', 3), add('c', 4), add('c', 0, 'Cleared'), add('d', 5) \g /dev/null
SELECT contents() AS contents, rows_of('account') AS rows \gset
SELECT alike(:'contents'::text, '(a,4,8) (b,2,4) (d,5,10) | %', 'the tables are written by who appends [issue 3]');
SELECT is(:'rows'::text, 'a: 1.2 -, b: 1.1 -, c: 1.2 -, d: 1.1 -', 'with a row for each key [rule 11]');
SELECT spoil() \g /dev/null
SELECT isnt(contents(), :'contents'::text, 'the tables are spoiled [rule 13]');
SELECT is(evpg_rebuild_projection('account'), 6::bigint, 'a rebuild [rule 13]');
SELECT is(contents(), :'contents'::text,
  'replaces their contents by what the events say, generated columns and foreign keys included [rule 13]');
SELECT is(rows_of('account'), 'a: 2.2 -, b: 2.1 -, c: 2.2 -, d: 2.1 -', 'in the next generation [rule 13]');
SELECT is(schemas(), 0::bigint, 'the copies are gone [rule 13]');
SELECT add('a', 10) \g /dev/null
SELECT alike(contents(), '(a,14,28) (b,2,4) (d,5,10) | %', 'who appends goes on [rule 13]');
SELECT contents() AS contents \gset
BEGIN;
SELECT spoil(), evpg_rebuild_projection('account') \g /dev/null
SELECT is(contents(), :'contents'::text, 'in a transaction [rule 13]');
SELECT isnt((SELECT c FROM dblink('listener', 'SELECT contents()') x (c text)), NULL,
  'readers are not kept waiting [rule 13]');
ROLLBACK;
SELECT is(contents() || schemas(), :'contents' || '0', 'a rebuild that is rolled back leaves the old contents [rule 13]');
-- in the background, asynchronous
SELECT evpg_register_projection('account', handler => 'test.account_write', mode => 'async', aggregate_types => '{counter}',
  tables => ARRAY['test.account', 'test."Line ""1"""'], max_attempts => 1) \g /dev/null
SELECT spoil() \g /dev/null
SELECT evpg_rebuild_projection('account', background => true) \g /dev/null
SELECT isnt(contents(), :'contents'::text, 'in the background, the old contents are read [rule 13]');
SELECT is(schemas(), 1::bigint, 'while copies are filled [rule 13]');
CALL evpg_run();
SELECT is(contents() || schemas(), :'contents' || '0',
  'after a rebuild in the background the new contents are read [rule 13]');
SELECT add('a', 20), add('e', 1) \g /dev/null
CALL evpg_run();
SELECT alike(contents(), '(a,34,68) (b,2,4) (d,5,10) (e,1,2) | %', 'the consumer goes on [rule 13]');
SELECT contents() AS contents \gset
SELECT spoil() \g /dev/null
SELECT evpg_rebuild_projection('account', background => true), add('e', 2) \g /dev/null
CALL evpg_run();
SELECT is(replace(contents(), '(e,3,6)', '(e,1,2)') LIKE split_part(:'contents', ' | ', 1) || '%', true,
  'with what is appended meanwhile, once [rule 13]');
SELECT contents() AS contents \gset
-- fails
SET test.break = 5;
SELECT fails($$SELECT evpg_rebuild_projection('account')$$, 'P0001 I break at 5', 'a rebuild that fails [rule 13]');
SELECT is(contents() || schemas(), :'contents' || '0', 'leaves the tables as they were [rule 13]');
SELECT evpg_rebuild_projection('account', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT phase || ' ' || last_error FROM evpg.progress_rebuild), 'failed I break at 5',
  'in the background [rule 13]');
SELECT is(contents(), :'contents'::text, 'leaves the tables as they were [rule 13]');
SELECT is(evpg_cancel_rebuild('account'), true, 'cancelled [rule 13]');
SELECT is(schemas(), 0::bigint, 'the copies are gone [rule 13]');
RESET test.break;
-- a row that violates the foreign key, which the copies do not have
CREATE TABLE test.child (account text REFERENCES test.account, "position" bigint);
ALTER TABLE test.child REPLICA IDENTITY FULL;
CREATE FUNCTION test.orphan_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO child VALUES ('orphan', event.position); SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('orphan', handler => 'test.orphan_write', mode => 'async', aggregate_types => '{counter}',
  tables => '{test.child}', max_attempts => 1) \g /dev/null
SELECT alike(error_of($$SELECT evpg_rebuild_projection('orphan')$$), '23503 %', 'contents that the table refuses [rule 13]');
SELECT is(contents() || schemas(), :'contents' || '0', 'leave it as it was [rule 13]');
SELECT evpg_drop_projection('orphan') \g /dev/null
DROP TABLE child;
-- rows of a table that is no projection's, which refer to the rows that are replaced
CREATE TABLE test.note (account text REFERENCES test.account);
ALTER TABLE test.note REPLICA IDENTITY FULL;
INSERT INTO note SELECT id FROM account;
SELECT is(evpg_rebuild_projection('account') > 0 AND contents() = :'contents', true,
  'rows that others refer to are replaced: their key holds again at the end of the statement [rule 13]');
INSERT INTO account (id) VALUES ('not of the log');
INSERT INTO note VALUES ('not of the log');
SELECT alike(error_of($$SELECT evpg_rebuild_projection('account')$$), '23503 %',
  'a row that would vanish, and that others refer to, fails the rebuild [rule 13]');
DELETE FROM note WHERE account = 'not of the log';
DELETE FROM account WHERE id = 'not of the log';
SELECT is(contents() || schemas(), :'contents' || '0', 'the rebuild that fails changes nothing [rule 13]');
DROP TABLE note;

-- a table belongs to one projection
SET search_path = public, test, evpg;
SELECT refused(format($$SELECT
  evpg_register_projection('thief', handler => 'test.account_write', mode => 'async', tables => %L)$$, tables), error,
  'a table has one projection: ' || tables || ' [rule 13]') FROM (VALUES
  ('{test.account}', '55006 table test.account belongs to projection "account"'),
    ('{account}', '55006 table test.account belongs to projection "account"'),
    (E'{elsewhere_1,"\\"Line \\"\\"1\\"\\"\\""}', '42P01 %'),
  (E'{"test.\\"Line \\"\\"1\\"\\"\\""}', '55006 table test."Line ""1""" belongs to projection "account"')) x (tables, error);
SET search_path = public, test;
SELECT is(evpg_register_projection('account', handler => 'test.account_write', mode => 'async',
  aggregate_types => '{counter}', tables => ARRAY['test.account', 'test."Line ""1"""'], max_attempts => 1), false,
  'registering the same projection again is no theft [rule 13]');
SELECT is(evpg_register_projection('account', handler => 'test.account_write', mode => 'async',
  aggregate_types => '{counter}', tables => ARRAY['test.account'], max_attempts => 1), true,
  'it may let a table go [rule 13]');
SELECT is(error_of($$SELECT evpg_register_projection('heir', handler => 'test.account_write', mode => 'async',
  tables => ARRAY['test."Line ""1"""'])$$), 'no error', 'another projection may have a table that was let go [rule 13]');
SELECT is(error_of($$SELECT evpg_register_projection('account', handler => 'test.account_write', mode => 'async',
  aggregate_types => '{counter}', tables => ARRAY['test.account', 'test."Line ""1"""'])$$),
  '55006 table test."Line ""1""" belongs to projection "heir"',
    'a projection cannot take back a table that another one has [rule 13]');
SELECT evpg_drop_projection('heir'),
  evpg_register_projection('account', handler => 'test.account_write', mode => 'async', aggregate_types => '{counter}',
  tables => ARRAY['test.account', 'test."Line ""1"""'], max_attempts => 1) \g /dev/null
CREATE TABLE test.parent (n bigint) PARTITION BY RANGE (n);
CREATE TABLE test.part PARTITION OF test.parent DEFAULT;
CREATE TABLE test.base (n bigint);
CREATE TABLE test.heir () INHERITS (test.base);
SELECT refused(format($$SELECT
  evpg_register_projection('thief', handler => 'test.account_write', mode => 'async', tables => %L)$$, tables), error,
  'nor is a part of a table one: ' || tables || ' [rule 13]') FROM (VALUES
  ('{test.part}', '0A000 table "test.part" is part of another one, so a projection cannot replace its rows'),
    ('{test.heir}', '0A000 table "test.heir" is part of another one, %'),
    ('{test.base}', '0A000 table "test.base" has children,%')) x (tables, error);
DROP TABLE parent, base CASCADE;

-- more than a part takes at once
SELECT count(*) FROM evpg_append('counter', 'many',
  (SELECT array_agg(evpg_event('Added', '{"n": 0}')) FROM generate_series(1, 2500) n)) \g /dev/null
CALL evpg_run();
SELECT md5(contents()) AS contents \gset
SELECT spoil() \g /dev/null
SELECT evpg_rebuild_projection('account', background => true) \g /dev/null
CALL evpg_run();
SELECT is(md5(contents()) || schemas(), :'contents' || '0', 'a rebuild of several transactions [rule 13]');
SELECT evpg_drop_projection('account') \g /dev/null
TRUNCATE account CASCADE;

-- ------------------------------------------------------------------ handlers that go elsewhere

CREATE TABLE test.elsewhere (n bigint);
CREATE SEQUENCE test.calls;
CREATE FUNCTION test.run_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(current_setting('test.run', true), '') <> '' THEN
    EXECUTE current_setting('test.run');
  END IF;
  INSERT INTO account (id, balance) VALUES ('run ' || event.position, 1);
  RETURN NULL;
END $$;
SELECT evpg_register_projection('account', handler => 'test.run_write', mode => 'async', aggregate_types => '{counter}',
  tables => '{test.account}', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)),
  add('a', 1), add('b', 2) \g /dev/null
INSERT INTO elsewhere VALUES (1), (2);
CALL evpg_run();
INSERT INTO "Line ""1""" SELECT id, 1, 1 FROM account LIMIT 1;
CREATE FUNCTION test.tables() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT contents() || (SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM elsewhere) || schemas()
$$;
CREATE FUNCTION test.runs(run text, error text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  before text := tables();
BEGIN
  PERFORM set_config('test.run', run, false);
  RETURN NEXT alike(error_of('SELECT evpg_rebuild_projection(''account'')'), error,
    'refused in a handler: ' || run || ' [rule 13]');
  RETURN NEXT is(tables(), before, 'and nothing is lost: ' || run || ' [rule 13]');
  PERFORM set_config('test.run', '', false);
END $$;
SELECT runs(run, error) FROM
  (VALUES ('INSERT INTO test.account (id) VALUES (''x'')', '55000 the handler works on table "account" itself%'),
  ('UPDATE test.account SET balance = 0', '55000 the handler works on table "account" itself%'),
    ('DELETE FROM test.account', '55000 the handler works on table "account" itself%'),
      ('SELECT count(*) FROM test.account', '55000 the handler works on table "account" itself%'),
    ('INSERT INTO test.elsewhere VALUES (3)', '55000 the handler works on table "elsewhere" itself%'),
      ('INSERT INTO elsewhere VALUES (3)', '55000 the handler works on table "elsewhere" itself%'),
    ('DELETE FROM elsewhere', '55000 %'),
      ('WITH d AS (DELETE FROM elsewhere RETURNING n) SELECT count(*) FROM d', '55000 %'),
      ('MERGE INTO elsewhere e USING (SELECT 1 AS n) s ON e.n = s.n WHEN MATCHED THEN DELETE', '55000 %'),
    ('DELETE FROM "Line ""1"""', '55000 %'),
      ('SELECT set_config(''search_path'', ''test, public'', true); DELETE FROM account', '55000 %'),
    ('TRUNCATE test.account CASCADE', '55000 %'), ('TRUNCATE test.elsewhere', '55000 %'),
      ('DROP TABLE test.elsewhere', '55000 the handler works on table "elsewhere" itself%'),
    ('DROP TABLE test.account CASCADE', '55000 the handler works on table "account%'),
      ('ALTER TABLE test.account RENAME COLUMN balance TO other', '55000 %'),
      ('ALTER TABLE test.account RENAME TO gone', '55000 %'),
      ('ALTER TABLE test.account ADD COLUMN more int', '55000 the handler works on table "account" itself%'),
    ('ALTER TABLE test.account ALTER COLUMN balance SET DEFAULT 7', '55000 the handler works on table "account" itself%'),
      ('ALTER TABLE test.account ADD CHECK (id <> balance::text)', '55000 the handler works on table "account" itself%'),
    ('ALTER TABLE test.account ADD UNIQUE (id, balance)', '55000 the handler works on table "account" itself%'),
    ('ALTER TABLE test.account ALTER COLUMN balance DROP DEFAULT',
      '55000 columns or defaults of table test.account have changed since its rebuild began'),
    ('ALTER TABLE test.elsewhere ADD COLUMN more int', '55000 the handler works on table "elsewhere" itself%')) x
      (run, error);
SELECT evpg_drop_projection('account') \g /dev/null
TRUNCATE account CASCADE;

-- a table that is changed while a rebuild is under way: 2,500 events more, so that it takes several transactions
SELECT evpg_register_projection('altered', handler => 'test.run_write', mode => 'async', aggregate_types => '{counter}',
  tables => '{test.account}', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT count(*) FROM evpg_append('counter', 'altered',
  (SELECT array_agg(evpg_event('Added', '{"n": 0}')) FROM generate_series(1, 2500) n)) \g /dev/null
CALL evpg_run();
SELECT md5(contents()) AS contents \gset
CREATE FUNCTION test.phase() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws(' ', (SELECT phase FROM evpg.progress_rebuild), (SELECT last_error FROM evpg.rebuild))
$$;
SELECT evpg_rebuild_projection('altered', background => true) \g /dev/null
ALTER TABLE account ALTER balance SET DEFAULT 5, ADD more int DEFAULT 3;
CALL evpg_run();
SELECT is(phase(), 'failed columns or defaults of table test.account have changed since its rebuild began',
  'a table that has got a column and a default meanwhile [rule 13]'),
  is((SELECT count(*) FILTER (WHERE more = 3) FROM account), 2500::bigint, 'keeps its rows [rule 13]');
SELECT evpg_rebuild_projection('altered', background => true) \g /dev/null
CALL evpg_run();
SELECT is(phase(), '', 'a rebuild that begins after that [rule 13]'),
  is((SELECT count(*) FILTER (WHERE more = 3) FROM account), 2500::bigint, 'succeeds [rule 13]');
ALTER TABLE account DROP more, ALTER balance SET DEFAULT 0;
SELECT evpg_rebuild_projection('altered', background => true) \g /dev/null
ALTER TABLE account ADD CONSTRAINT small CHECK (balance < 100), ADD UNIQUE (id, balance);
CALL evpg_run();
SELECT is(phase(), '', 'a constraint that was added meanwhile [rule 13]'),
  is(md5(contents()), :'contents', 'does no harm [rule 13]'),
  is(error_of($$INSERT INTO account (id, balance) VALUES ('big', 100)$$),
    '23514 new row for relation "account" violates check constraint "small"',
      'a constraint that was added meanwhile holds [rule 13]');
ALTER TABLE account DROP CONSTRAINT small, DROP CONSTRAINT account_id_balance_key;
SELECT evpg_drop_projection('altered') \g /dev/null
TRUNCATE account CASCADE;

-- its own search_path wins: it does not find the copies
CREATE FUNCTION test.pinned_write(event evpg.event) RETURNS jsonb LANGUAGE sql SET search_path = test, public AS $$
  INSERT INTO account VALUES ('pinned ' || event.position, 1); SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('pinned', handler => 'test.pinned_write', mode => 'async', aggregate_types => '{counter}',
  tables => '{account}', max_attempts => 1, start_position => (SELECT last_value FROM evpg.event_position)), add('p', 1),
  add('q', 1) \g /dev/null
SELECT is((SELECT tables FROM evpg.projection WHERE name = 'pinned'), '{test.account}',
  'a table is found by the search_path of the registration [rule 13]');
CALL evpg_run();
SELECT tables() AS tables \gset
SELECT alike(error_of($$SELECT evpg_rebuild_projection('pinned')$$), '55000 the handler works on table "account" itself%',
  'a handler with a search_path of its own is refused [rule 13]');
SELECT is(tables(), :'tables'::text, 'a refused handler loses nothing [rule 13]');
SELECT evpg_rebuild_projection('pinned', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild), 'failed',
  'a rebuild in the background by a handler with a search_path of its own fails [rule 13]');
SELECT evpg_drop_projection('pinned') \g /dev/null
SELECT is(tables(), :'tables'::text, 'where nothing is lost, not even when it is dropped [rule 13]');
SELECT is(error_of($$SELECT add('pinned', 1)$$), 'no error',
  'after a failed rebuild events are appended and applied [rule 13]');
TRUNCATE account CASCADE;

-- nested functions, temporary tables, tables that are only read
CREATE FUNCTION test.nested(text, bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO account VALUES ($1, $2 + (SELECT max(n) FROM elsewhere)) ON CONFLICT (id) DO UPDATE
    SET balance = excluded.balance;
END $$;
CREATE TEMP TABLE scratch (n bigint);
CREATE FUNCTION test.nested_write(event evpg.event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event.type = 'Emptied' THEN
    TRUNCATE account;
  ELSE
    INSERT INTO pg_temp.scratch VALUES (1);
    PERFORM nested(event.aggregate_id, (event.data->>'n')::bigint);
  END IF;
  RETURN NULL;
END $$;
ALTER TABLE "Line ""1""" DROP CONSTRAINT "Line ""1""_account_fkey";
INSERT INTO elsewhere VALUES (100);
SELECT evpg_register_projection('nested', handler => 'test.nested_write', aggregate_types => '{counter}',
  tables => '{test.account}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('x', 1), add('y', 0, 'Emptied'), add('z', 2) \g /dev/null
SELECT contents() AS contents \gset
SELECT is(:'contents'::text, '(z,102,204) | ', 'a handler that calls functions, and empties its table [issue 3]');
INSERT INTO account VALUES ('nobody', 1);
SELECT is(evpg_rebuild_projection('nested'), 3::bigint, 'is rebuilt [rule 13]');
SELECT is(contents(), :'contents'::text, 'to the same [rule 13]');
SELECT evpg_drop_projection('nested') \g /dev/null

-- somebody else's table, which refers to one of the projection, keeps its rows
CREATE TABLE test.note (account text REFERENCES test.account ON DELETE CASCADE, text text);
SELECT evpg_register_projection('noted', handler => 'test.nested_write', aggregate_types => '{counter}',
  tables => '{test.account}', start_position => (SELECT last_value FROM evpg.event_position)) \g /dev/null
SELECT add('x', 1) \g /dev/null
INSERT INTO note VALUES ('x', 'mine');
SELECT error_of($$SELECT evpg_rebuild_projection('noted')$$) \g /dev/null
SELECT is((SELECT count(*) FROM note), 1::bigint,
  'a table that is not declared loses nothing by a cascade, whether the rebuild succeeds or not [rule 13]');
SELECT evpg_drop_projection('noted') \g /dev/null
DROP TABLE note;

-- ------------------------------------------------------------------ a reset function

CREATE FUNCTION test.statement_reset() RETURNS void LANGUAGE sql AS $$ DELETE FROM statement $$;
SELECT last_value AS start FROM evpg.event_position \gset
SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => mode, aggregate_types => '{counter}',
  event_types => '{Added}', reset => 'test.statement_reset', start_position => :start)
  FROM unnest('{inline}'::text[]) mode \g /dev/null
SELECT add('r', 1), add('r', 2), add('s', 3) \g /dev/null
SELECT md5(string_agg(s::text, ',' ORDER BY position)) AS lines FROM statement s \gset
UPDATE statement SET n = n + 1;
INSERT INTO statement VALUES ('nobody', -1, 'Added', 1);
BEGIN;
SELECT evpg_rebuild_projection('lines') AS folded \gset
SELECT is((SELECT c FROM dblink('listener', 'SELECT count(*) FROM statement') x (c bigint)), 4::bigint,
  'with a reset function, readers see the old rows until the commit [rule 13]');
COMMIT;
SELECT is(:folded, 3,
  'with a reset function, readers see the old rows until the commit, and all events are applied again [rule 13]');
SELECT is((SELECT md5(string_agg(s::text, ',' ORDER BY position)) FROM statement s), :'lines'::text,
  'to what they say [rule 13]');
SELECT is(rows_of('lines'), 'r: 2.2 -, s: 2.1 -', 'in the next generation [rule 13]');
DELETE FROM statement WHERE id = 'r';
SELECT evpg_rebuild_projection('lines', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT md5(string_agg(s::text, ',' ORDER BY position)) FROM statement s), :'lines'::text,
  'in the background [rule 13]');
SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', reset => 'test.statement_reset', start_position => :start) \g /dev/null
SELECT add('r', 4) \g /dev/null
SELECT evpg_rebuild_projection('lines', background => true) \g /dev/null
CALL evpg_run();
SELECT same('SELECT id, n FROM statement ORDER BY position', $$VALUES ('r', 1), ('r', 2), ('s', 3), ('r', 4)$$,
  'an asynchronous one, with what it had not consumed yet, once [rule 13]');
SELECT add('r', 5) \g /dev/null
CALL evpg_run();
SELECT same('SELECT id, n FROM statement ORDER BY position', $$VALUES ('r', 1), ('r', 2), ('s', 3), ('r', 4), ('r', 5)$$,
  'an asynchronous projection goes on after its rebuild [rule 13]');
-- one that fails, one that does nothing
CREATE FUNCTION test.failing_reset() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM statement;
  RAISE EXCEPTION 'I do not reset';
END $$;
CREATE FUNCTION test.idle_reset() RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', reset => 'test.failing_reset', start_position => :start, max_attempts => 1) \g /dev/null
SELECT fails($$SELECT evpg_rebuild_projection('lines')$$, 'P0001 I do not reset', 'a reset function that fails [rule 13]');
SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', reset => 'test.idle_reset', start_position => :start, max_attempts => 1) \g /dev/null
SELECT fails($$SELECT evpg_rebuild_projection('lines')$$, '23505 %', 'one that does nothing [rule 13]');
SELECT evpg_rebuild_projection('lines', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT phase || ' ' || left(last_error, 13) FROM evpg.progress_rebuild), 'failed duplicate key',
  'in the background, it has failed [rule 13]');
SELECT is((SELECT count(*) FROM statement), 5::bigint, 'a rebuild that has failed leaves the rows [rule 13]');

-- ------------------------------------------------------------------ neither, and what cannot be declared

SELECT fails(format($$SELECT
  evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', start_position => %s)$$, :start),
  '0A000 cannot rebuild projection "lines"', 'another definition starts the rebuild anew, so it must be possible [rule 13]');
SELECT evpg_cancel_rebuild('lines'),
  evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async', aggregate_types => '{counter}',
  event_types => '{Added}', start_position => :start) \g /dev/null
SELECT refused(statement, error, 'without tables or a reset function: ' || statement || ' [rule 13]') FROM (VALUES
  ($$SELECT evpg_rebuild_projection('lines')$$, '0A000 cannot rebuild projection "lines"'),
    ($$SELECT evpg_rebuild_projection('lines', background => true)$$, '0A000 cannot rebuild projection "lines"'),
  ($$SELECT evpg_rebuild_projection('lines', 'r')$$, '0A000 cannot rebuild a key of projection "lines"'),
  ($$SELECT evpg_register_projection('lines', handler => 'test.statement_write', mode => 'async',
    aggregate_types => '{counter}', event_types => '{Added}', version => 2)$$, '0A000 cannot rebuild projection "lines"')) x
    (statement, error);
CREATE TABLE test.identity (id bigint GENERATED BY DEFAULT AS IDENTITY, n bigint);
CREATE TABLE test.partitioned (n bigint) PARTITION BY RANGE (n);
CREATE VIEW test.viewed AS SELECT 1 AS n;
CREATE ROLE evpg_table_owner;
CREATE TABLE test.foreign_one (n bigint);
ALTER TABLE test.foreign_one OWNER TO evpg_table_owner;
SELECT refused(format($$SELECT evpg_register_projection('new', handler => 'test.statement_write', tables => %L)$$, tables),
  error, 'tables ' || tables || ' [rule 13]') FROM (VALUES
  ('{test.identity}', '0A000 table "test.identity" has an identity column, so a projection cannot fill a copy of it'),
    ('{test.partitioned}', '42809 "test.partitioned" cannot be a table of a projection'),
  ('{test.viewed}', '42809 "test.viewed" cannot be a table of a projection'),
    ('{scratch}', '42809 "scratch" cannot be a table of a projection'),
    ('{test.foreign_one}', '42501 table "test.foreign_one" does not belong to the owner of the handler'),
  ('{test.nothing}', '42P01 relation "test.nothing" does not exist'),
    ('{test.calls}', '42809 "test.calls" cannot be a table of a projection'), ('{a.b.c.d}', '42601 %')) x (tables, error);
-- a table that changes after it was declared
SELECT evpg_register_projection('changes', handler => 'test.nested_write', mode => 'async', aggregate_types => '{counter}',
  tables => '{test.account}', start_position => :start, max_attempts => 1) \g /dev/null
ALTER TABLE account ADD COLUMN extra text DEFAULT 'extra';
CALL evpg_run();
SELECT evpg_rebuild_projection('changes') \g /dev/null
SELECT is((SELECT string_agg(DISTINCT extra, ' ') FROM account), 'extra', 'a column that was added later [rule 13]');
SELECT evpg_rebuild_projection('changes', background => true) \g /dev/null
ALTER TABLE account ADD COLUMN late text DEFAULT 'late';
CALL evpg_run();
SELECT is((SELECT phase FROM evpg.progress_rebuild WHERE name = 'changes') || ' '
  || (SELECT count(DISTINCT late) FROM account), 'failed 1',
  'one that is added while it is rebuilt fails the rebuild [rule 13]');
SELECT evpg_rebuild_projection('changes', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT count(*) FROM evpg.rebuild WHERE name = 'changes') || ' '
  || (SELECT string_agg(DISTINCT late, ' ') FROM account), '0 late', 'the next one succeeds [rule 13]');
DROP TABLE account CASCADE;
SELECT alike(error_of($$SELECT evpg_rebuild_projection('changes')$$), '42P01 %', 'a table that is gone [rule 13]');
SELECT is(schemas(), 0::bigint, 'leaves nothing [rule 13]');
DROP OWNED BY evpg_table_owner CASCADE;
DROP ROLE evpg_table_owner;
-- the copies go with the extension
CREATE TABLE test.short_lived (n bigint PRIMARY KEY, g bigint GENERATED ALWAYS AS (n + 1) STORED);
SELECT evpg_register_projection('short', handler => 'test.statement_write', tables => '{test.short_lived}'),
       evpg_rebuild_projection('short', background => true) \g /dev/null
SELECT is(schemas(), 1::bigint, 'a rebuild that is under way [rule 13]');
DROP EXTENSION evpg CASCADE;
SELECT is(schemas(), 0::bigint, 'DROP EXTENSION drops its copies [rule 13]');
SELECT * FROM finish();
