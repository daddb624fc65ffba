-- rebuild_exchange.sql: the end of a rebuild in the background exchanges the tables of a projection with their copies: no
-- row is written then, however many there are (rule 13).  Where that cannot be, rows are replaced.  Foreign keys from and to
-- other tables are checked before.

\ir include/setup.sql
\ir include/counter.sql
\ir include/projections.sql
\ir include/listener.sql
\ir include/async.sql

SELECT plan(82);
SET test.kind = counter;
CREATE EXTENSION amcheck;

-- A table with all that an exchange must get right: TOAST, a primary key, unique, partial, expression and hash indexes,
-- checks.
CREATE TABLE test.item (id text PRIMARY KEY, n bigint NOT NULL DEFAULT 0 CHECK (n >= 0),
  twice bigint GENERATED ALWAYS AS (n * 2) STORED, note text, CONSTRAINT not_long CHECK (length(id) < 100));
ALTER TABLE item ALTER COLUMN note SET STORAGE EXTERNAL;
ALTER TABLE item SET (toast.autovacuum_enabled = false);
CREATE UNIQUE INDEX item_upper ON item (upper(id) DESC) INCLUDE (n);
CREATE INDEX item_some ON item (n NULLS FIRST) WHERE n > 1;
CREATE INDEX item_hash ON item USING hash (n);
CREATE INDEX item_note ON item USING gin (to_tsvector('simple', left(note, 20)));
CREATE FUNCTION test.item_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO item (id, n, note)
    VALUES (event.aggregate_id, (event.data->>'n')::bigint, repeat(event.aggregate_id || ' ', 2000))
    ON CONFLICT (id) DO UPDATE SET n = item.n + excluded.n;
  SELECT NULL::jsonb
$$;
CREATE VIEW test.items AS SELECT id, n FROM item;
CREATE ROLE evpg_reads_items;
GRANT SELECT ON item TO evpg_reads_items;
CREATE FUNCTION test.files() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(pg_relation_filenode(oid)::text, ' ' ORDER BY pg_relation_filenode(oid))
    FROM (SELECT 'item'::regclass::oid AS oid UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = 'item'::regclass
    UNION ALL SELECT reltoastrelid FROM pg_class WHERE oid = 'item'::regclass UNION ALL SELECT indexrelid FROM pg_index
      WHERE indrelid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'item'::regclass)) x
$$;
CREATE FUNCTION test.copied_files() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(pg_relation_filenode(oid)::text, ' ' ORDER BY pg_relation_filenode(oid))
    FROM (WITH c AS (SELECT oid, reltoastrelid FROM pg_class
    WHERE relname = 'item' AND relnamespace::regnamespace::text LIKE E'evpg\\_rebuild%')
    SELECT oid FROM c UNION ALL SELECT indexrelid FROM pg_index, c WHERE indrelid IN (c.oid, c.reltoastrelid)
      UNION ALL SELECT reltoastrelid FROM c) x
$$;
CREATE FUNCTION test.contents() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT count(*) || ' ' || md5(string_agg(i::text, ',' ORDER BY id)) FROM item i
$$;
CREATE FUNCTION test.sound() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT (SELECT string_agg(v::text, ',') FROM verify_heapam('item') v)
    || (SELECT string_agg(bt_index_check(i.indexrelid, true)::text, '') FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE i.indrelid = 'item'::regclass AND amname = 'btree')
$$;

SELECT evpg_register_projection('item', handler => 'test.item_write', aggregate_types => '{counter}', tables => '{item}',
  max_attempts => 1) \g /dev/null
SELECT count(add('i' || n % 300, n)) FROM generate_series(1, 1000) n \g /dev/null
SELECT contents() AS contents, files() AS files, 'item'::regclass::oid AS oid \gset
UPDATE item SET n = 7;
DELETE FROM item WHERE id < 'i2';
INSERT INTO item VALUES ('stranger');
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
SELECT copied_files() AS copied \gset
SELECT is(array_length(string_to_array(:'copied', ' '), 1), 8,
  'copies have the indexes and the TOAST table of their table [rule 13]');
CALL evpg_run();
SELECT is(files(), :'copied',
  'the end of a rebuild in the background exchanges the files of a table, its indexes and its TOAST table '
  'with those of the copy [rule 13]');
SELECT is(contents(), :'contents', 'the contents are what the events say [rule 13]');
SELECT is((SELECT count(*) FROM item i WHERE i.xmin = (SELECT p.xmin FROM evpg.projection p)), 0::bigint,
  'no row is written by the transaction that ends it [rule 13]');
SELECT is((SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text LIKE E'evpg\\_rebuild%') +
  (SELECT count(*) FROM pg_class WHERE relname LIKE E'pg\\_toast\\_%\\_old%'), 0::bigint,
  'nothing of the copy is left [rule 13]');
SELECT is('item'::regclass::oid = :oid, true, 'it is the same table [rule 13]');
SELECT is((SELECT sum(n) FROM items), (SELECT sum(n) FROM item), 'under its views [rule 13]');
SELECT is(has_table_privilege('evpg_reads_items', 'item', 'SELECT'), true, 'with its privileges [rule 13]');
SELECT is((SELECT t.relname = 'pg_toast_' || :oid AND i.indexrelid::regclass::text = 'pg_toast.pg_toast_' || :oid || '_index'
  FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid JOIN pg_index i ON i.indrelid = t.oid WHERE c.oid = :oid), true,
  'its TOAST table has its name [rule 13]');
SELECT is((SELECT t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = :oid),
  '{autovacuum_enabled=false}'::text[],
    'the TOAST table of a table that was exchanged has its storage parameters [rule 13]');
SELECT is(sound(), NULL, 'heap and indexes fit each other [rule 13]');
SET enable_seqscan = off;
SELECT is((SELECT count(*) FROM item WHERE upper(id) = upper('i7') AND n > 1), 1::bigint,
  'rows are found by their indexes [rule 13]');
SELECT is((SELECT count(*) FROM item WHERE to_tsvector('simple', left(note, 20)) @@ 'i7'), 1::bigint,
  'by a gin index [rule 13]');
RESET enable_seqscan;
SELECT add('i7', 1), add('new', 5) \g /dev/null
SELECT is((SELECT n FROM item WHERE id = 'new'), 5::bigint, 'who appends goes on [rule 11]');
SELECT contents() AS contents \gset
VACUUM FULL item;
REINDEX TABLE item;
VACUUM FREEZE item;
ANALYZE item;
SELECT is(contents() || coalesce(sound(), ''), :'contents', 'maintenance of the table works as before [rule 13]');
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
SELECT copied_files() AS copied \gset
SELECT add('during', 6) \g /dev/null
CALL evpg_run();
SELECT is(files() = :'copied' AND EXISTS (SELECT FROM item WHERE id = 'during' AND n = 6), true,
  'exchanged again, with what was appended meanwhile [rule 13]');
SELECT is((SELECT count(*) FROM item i WHERE i.xmin::text::bigint >= (SELECT p.xmin::text::bigint FROM evpg.projection p)),
  0::bigint, 'what was appended at the end was written to the copy before, so that no snapshot misses it [rule 13]');
SELECT contents() AS contents \gset
DROP INDEX item_note;
SELECT is(evpg_rebuild_projection('item') > 1000 AND contents() = :'contents' AND files() NOT LIKE '%' || :'copied' || '%',
  true, 'in the foreground, rows are replaced [rule 13]');

-- an index or a constraint that comes meanwhile, a trigger, a foreign key, a dropped column: rows are replaced
CREATE FUNCTION test.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION test.node() RETURNS oid LANGUAGE sql VOLATILE AS $$ SELECT pg_relation_filenode('item') $$;
SELECT node() AS node \gset
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CREATE INDEX item_late ON item (note text_pattern_ops) WHERE length(note) < 100;
UPDATE item SET n = 3;
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents',
  'an index that is made meanwhile stays right: rows are replaced [rule 13]');
SELECT is(sound(), NULL, 'after rows were replaced, the index that was made meanwhile fits [rule 13]');
DROP INDEX item_late;
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
ALTER TABLE item ADD CONSTRAINT late CHECK (n < 1000000);
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents',
  'with a CHECK constraint that was made meanwhile rows are replaced [rule 13]');
ALTER TABLE item DROP CONSTRAINT late;

-- an index that is made anew meanwhile, with one property that the copy's has not
SELECT statement FROM (VALUES
    (1, 'uniqueness', '(id, n)', 'CREATE UNIQUE INDEX item_x ON item (id, n)'),
    (2, 'columns', '(n, twice)', 'CREATE INDEX item_x ON item (twice, n)'),
    (3, 'number of columns', '(id)', 'CREATE INDEX item_x ON item (id) INCLUDE (n)'),
    (4, 'order', '(n)', 'CREATE INDEX item_x ON item (n DESC)'),
    (5, 'collation', '(id)', 'CREATE INDEX item_x ON item (id COLLATE "C")'),
    (6, 'operator class', '(id)', 'CREATE INDEX item_x ON item (id text_pattern_ops)'),
    (7, 'expression', '(upper(id))', 'CREATE INDEX item_x ON item (lower(id))'),
    (8, 'predicate', '(n) WHERE n > 1', 'CREATE INDEX item_x ON item (n) WHERE n > 2'),
    (9, 'existence', '(n, id)', 'SELECT WHERE false')) x (n, what, columns, change)
  CROSS JOIN LATERAL (VALUES (1, 'CREATE INDEX item_x ON item ' || columns),
    (2, $s$DO $$ BEGIN
      PERFORM evpg_rebuild_projection('item', background => true), set_config('test.node', node()::text, false);
    END $$$s$),
    (3, 'DROP INDEX item_x; ' || change), (4, 'CALL evpg_run()'),
    (5, format($$SELECT is((node() = current_setting('test.node')::oid) || ' ' || contents() || coalesce(sound(), ''),
      %L, %L)$$, 'true ' || :'contents', 'an index of another ' || what || ': rows are replaced [rule 13]')),
    (6, 'DROP INDEX IF EXISTS item_x')) s (step, statement) ORDER BY n, step \gexec
-- the same with an index of a constraint, or what a DROP INDEX does not tell
SELECT statement FROM (VALUES
    (1, 'exclusion operator',
      $$ALTER TABLE item ADD CONSTRAINT item_x EXCLUDE USING gist (int8range(n, n + 1) WITH =) WHERE (n < 0)$$,
      $$ALTER TABLE item DROP CONSTRAINT item_x, ADD CONSTRAINT item_x
        EXCLUDE USING gist (int8range(n, n + 1) WITH &&) WHERE (n < 0)$$,
      'ALTER TABLE item DROP CONSTRAINT item_x'),
    (2, 'primary key', 'CREATE UNIQUE INDEX item_x ON item (id)',
      'ALTER TABLE item DROP CONSTRAINT item_pkey; DROP INDEX item_x; CREATE UNIQUE INDEX item_y ON item (id);
        CREATE UNIQUE INDEX item_x ON item (id)',
      'DROP INDEX item_x, item_y; ALTER TABLE item ADD PRIMARY KEY (id)'),
    (3, 'parameter of its operator class',
      $$CREATE INDEX item_x ON item USING gist (to_tsvector('simple', left(note, 20)))$$,
      $$DROP INDEX item_x; CREATE INDEX item_x ON item USING gist (to_tsvector('simple', left(note, 20))
        tsvector_ops (siglen = 100))$$, 'DROP INDEX item_x'),
    (4, 'validity', 'CREATE INDEX item_x ON item USING hash (twice)',
      $$UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'item_x'::regclass$$, 'DROP INDEX item_x'))
    x (n, what, made, change, unmade)
  CROSS JOIN LATERAL (VALUES (1, made),
    (2, $s$DO $$ BEGIN
      PERFORM evpg_rebuild_projection('item', background => true), set_config('test.node', node()::text, false);
    END $$$s$),
    (3, change), (4, 'CALL evpg_run()'),
    (5, format($$SELECT is((node() = current_setting('test.node')::oid) || ' ' || contents() || coalesce(sound(), ''),
      %L, %L)$$, 'true ' || :'contents', 'an index of another ' || what || ': rows are replaced [rule 13]')),
    (6, unmade)) s (step, statement) ORDER BY n, step \gexec
-- the same with a column
ALTER TABLE item ALTER note DROP NOT NULL;
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
ALTER TABLE item ALTER note SET NOT NULL;
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents',
  'a column that becomes NOT NULL meanwhile: rows are replaced [rule 13]');
ALTER TABLE item ALTER note DROP NOT NULL;
CREATE TRIGGER touch BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION touch();
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents', 'a trigger acts, as rows are replaced [rule 13]');
ALTER TABLE item ENABLE REPLICA TRIGGER touch;
CREATE TRIGGER changed BEFORE UPDATE OR TRUNCATE ON item FOR EACH STATEMENT EXECUTE FUNCTION touch();
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'false ' || :'contents',
  'triggers that would not act, for UPDATE or for a replica, do not keep a table from being exchanged [rule 13]');
SELECT node() AS node \gset
DROP TRIGGER touch ON item;
DROP TRIGGER changed ON item;
CREATE RULE unseen AS ON DELETE TO item WHERE old.id = 'nobody' DO ALSO NOTHING;
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents', 'as with a rule [rule 13]');
DROP RULE unseen ON item;
CREATE RULE unseen AS ON UPDATE TO item WHERE old.id = 'nobody' DO ALSO NOTHING;
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'false ' || :'contents',
  'a rule for UPDATE does not keep a table from being exchanged [rule 13]');
DROP RULE unseen ON item;
SELECT node() AS node \gset
ALTER TABLE item ADD COLUMN gone int;
ALTER TABLE item DROP COLUMN gone;
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((node() = :node) || ' ' || contents(), 'true ' || :'contents', 'a table that has lost a column is not [rule 13]');
SELECT evpg_drop_projection('item') \g /dev/null
DROP TABLE item CASCADE;

-- ------------------------------------------------------------------ foreign keys from and to other tables

CREATE TABLE test.kind (id int PRIMARY KEY, part text NOT NULL DEFAULT 'x', UNIQUE (part, id));
CREATE TABLE test.entry (id text PRIMARY KEY, n bigint UNIQUE, kind int DEFAULT 1 REFERENCES kind ON UPDATE CASCADE,
  part text, sub int, FOREIGN KEY (part, sub) REFERENCES kind (part, id) MATCH FULL);
CREATE TABLE test.refers (id text REFERENCES entry, n bigint REFERENCES entry (n) DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE refers REPLICA IDENTITY FULL;
INSERT INTO kind VALUES (1);
CREATE FUNCTION test.entry_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO entry (id, part, sub) VALUES (event.aggregate_id, 'x', 1) ON CONFLICT DO NOTHING;
  UPDATE entry SET n = event.position WHERE id = event.aggregate_id;
  SELECT NULL::jsonb
$$;
CREATE FUNCTION test.entry_node() RETURNS oid LANGUAGE sql VOLATILE AS $$ SELECT pg_relation_filenode('entry') $$;
-- "exchanged|replaced rows status attempts error" of a rebuild of entry in the background
CREATE PROCEDURE test.rebuild_entry(INOUT result text) LANGUAGE plpgsql AS $$
DECLARE
  before oid := entry_node();
BEGIN
  PERFORM evpg_rebuild_projection('entry', background => true);
  COMMIT;
  CALL evpg_run();
  SELECT concat_ws(' ', CASE entry_node() WHEN before THEN 'replaced' ELSE 'exchanged' END, (SELECT count(*) FROM entry),
    (SELECT concat_ws(' ', status, attempts, last_error) FROM evpg.rebuild)) INTO result;
  PERFORM evpg_cancel_rebuild('entry');
END $$;
SELECT evpg_register_projection('entry', handler => 'test.entry_write', aggregate_types => '{counter}', tables => '{entry}',
  max_attempts => 1), evpg_rebuild_projection('entry') \g /dev/null
SELECT count(*) AS rows FROM entry \gset
INSERT INTO refers SELECT id, n FROM entry LIMIT 10;
CALL rebuild_entry(NULL) \gset
SELECT is(:'result', 'exchanged ' || :rows,
  'a table with foreign keys from and to other tables is exchanged if they hold for the new rows [rule 13]');
SELECT is((SELECT count(*) FROM entry WHERE xmin = (SELECT p.xmin FROM evpg.projection p)), 0::bigint,
  'no row is written by the transaction that ends it [rule 13]');
SELECT is((SELECT string_agg(error_of(statement), E'\n') FROM (VALUES ($$UPDATE entry SET kind = 2 WHERE id = 'i1'$$),
    ($$DELETE FROM kind$$), ($$UPDATE entry SET part = NULL$$), ($$DELETE FROM entry$$),
    ($$INSERT INTO refers VALUES ('none')$$)) v (statement)),
  '23503 insert or update on table "entry" violates foreign key constraint "entry_kind_fkey"' || E'\n' ||
  '23503 update or delete on table "kind" violates foreign key constraint "entry_kind_fkey" on table "entry"' || E'\n' ||
  '23503 insert or update on table "entry" violates foreign key constraint "entry_part_sub_fkey"' || E'\n' ||
  '23503 update or delete on table "entry" violates foreign key constraint "refers_id_fkey" on table "refers"' || E'\n' ||
  '23503 insert or update on table "refers" violates foreign key constraint "refers_id_fkey"',
  'foreign keys from and to other tables hold after an exchange [rule 13]');
-- when rows are replaced, a key that is deferred cannot be checked
ALTER TABLE refers DROP CONSTRAINT refers_n_fkey;
INSERT INTO entry VALUES ('stranger');
INSERT INTO refers VALUES ('stranger');
CALL rebuild_entry(NULL) \gset
SELECT is(:'result', 'replaced ' || :rows + 1 || ' failed 1 update or delete on table "entry" violates foreign key '
  'constraint "refers_id_fkey" on table "refers"', 'a row that another table references does not vanish [rule 13]');
DELETE FROM refers WHERE id = 'stranger';
ALTER TABLE entry DISABLE TRIGGER ALL;
UPDATE entry SET kind = NULL, sub = NULL, part = NULL;
ALTER TABLE entry ENABLE TRIGGER ALL;
INSERT INTO kind VALUES (2);
DELETE FROM kind WHERE id = 1;
CALL rebuild_entry(NULL) \gset
SELECT is(:'result' LIKE 'replaced ' || :rows + 1 || ' failed 1 % violates foreign key constraint %', true,
  'a row that references a row that does not exist is not put in place [rule 13]');
INSERT INTO kind VALUES (1);
CREATE ROLE evpg_owns_kinds;
GRANT USAGE ON SCHEMA test TO evpg_owns_kinds;
ALTER TABLE kind OWNER TO evpg_owns_kinds;
DELETE FROM refers;
CALL rebuild_entry(NULL) \gset
SELECT is(:'result', 'replaced ' || :rows, 'a table of another owner is not read: rows are replaced [rule 13]');
ALTER TABLE kind OWNER TO CURRENT_USER;
DROP OWNED BY evpg_owns_kinds;
DROP ROLE evpg_owns_kinds;
-- what was found is kept true up to the end, and appenders do not wait for it
INSERT INTO refers SELECT id, n FROM entry LIMIT 10;
SELECT entry_node() AS node \gset
SELECT dblink_exec('listener', $$SET evpg.test_wait = 'rebuild_checked'$$),
  evpg_rebuild_projection('entry', background => true) \g /dev/null
SELECT pg_advisory_lock(17700) \g /dev/null
SELECT dblink_send_query('listener', 'CALL evpg_run()') \g /dev/null
-- without a snapshot, for which an exchange would wait
CREATE PROCEDURE test.await_waiter() LANGUAGE plpgsql AS $$
BEGIN
  FOR look IN 1 .. 1000 LOOP
    EXIT WHEN EXISTS (SELECT FROM own_lock WHERE locktype = 'advisory' AND objid = 17700 AND NOT granted);
    PERFORM pg_sleep(0.01);
    COMMIT;
  END LOOP;
END $$;
CALL await_waiter();
SET lock_timeout = '10ms';
SELECT is((SELECT string_agg(error_of(statement), E'\n') FROM (VALUES ($$DELETE FROM kind WHERE id = 1$$),
    ($$INSERT INTO refers SELECT id FROM entry LIMIT 1$$), ($$UPDATE kind SET part = 'x' WHERE id = 1$$),
    ($$INSERT INTO kind VALUES (3)$$), ($$TABLE refers$$), ($$SELECT FROM add('late', 1)$$)) v (statement)),
  '55P03 canceling statement due to lock timeout' || E'\n' || '55P03 canceling statement due to lock timeout' || E'\n' ||
  'no error' || E'\n' || 'no error' || E'\n' || 'no error' || E'\n' || 'no error',
  'rows that are referenced stay, and rows that reference do not come, until the exchange; all else goes on [rule 13]');
RESET lock_timeout;
SELECT pg_advisory_unlock(17700) \g /dev/null
SELECT * FROM dblink_get_result('listener') AS x (result text) \g /dev/null
SELECT * FROM dblink_get_result('listener') AS x (result text) \g /dev/null
SELECT dblink_exec('listener', 'RESET evpg.test_wait'), now_due() \g /dev/null
-- autovacuum may hold a lock of a table for a moment, so it may take more than one attempt
CREATE PROCEDURE test.finish_rebuild() LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 100 LOOP
    CALL evpg_run();
    EXIT WHEN NOT EXISTS (SELECT FROM evpg.rebuild);
    PERFORM now_due();
    COMMIT;
  END LOOP;
END $$;
CALL finish_rebuild();
SELECT is((entry_node() <> :node) || ' ' || (SELECT count(*) FROM entry) || ' ' || (SELECT count(*) FROM evpg.rebuild),
  'true ' || :rows + 1 || ' 0', 'a table whose foreign keys were checked is exchanged [rule 13]');
-- what is found out in no time comes first: to check keys in vain would keep others from writing
SELECT evpg_register_aggregate('elsewhere'), dblink_exec('listener', 'BEGIN'),
  dblink_exec('listener', 'LOCK TABLE refers IN ROW EXCLUSIVE MODE') \g /dev/null
SELECT * FROM dblink('listener', $$SELECT '' FROM evpg_append('elsewhere', 'e', ARRAY[evpg_event('Done')])$$) x (c text)
  \g /dev/null
SELECT evpg_rebuild_projection('entry', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT last_error FROM evpg.rebuild),
  'the rebuild cannot end while a transaction that has appended stays open',
  'while a transaction that has appended stays open, no foreign key is checked [rule 13]');
SELECT dblink_exec('listener', 'ROLLBACK'), dblink_exec('listener', 'BEGIN'),
  dblink_exec('listener', 'LOCK TABLE refers IN ROW EXCLUSIVE MODE'), now_due() \g /dev/null
CALL evpg_run();
SELECT add('later', 1), now_due() \g /dev/null
CALL evpg_run();
SELECT is((SELECT (min(checkpoint) >= (SELECT max(position) FROM evpg.event WHERE aggregate_id = 'later')) || ' '
    || min(last_error) FROM evpg.rebuild JOIN evpg.rebuild_part USING (build)),
  'true canceling statement due to lock timeout',
  'events that are left are applied before foreign keys are checked [rule 13]');
SELECT dblink_exec('listener', 'ROLLBACK'), now_due(), entry_node() AS node \gset
CALL finish_rebuild();
SELECT is((entry_node() <> :node) || ' ' || (SELECT count(*) FROM entry WHERE id = 'later'), 'true 1',
  'then the table is exchanged [rule 13]');
SELECT evpg_drop_projection('entry') \g /dev/null
DROP TABLE refers, entry, kind;

-- ------------------------------------------------------------------ foreign keys and disabled triggers

CREATE TABLE test."Order" (id text PRIMARY KEY, parent text REFERENCES "Order");
CREATE TABLE test.line (id text, n bigint, PRIMARY KEY (id, n), FOREIGN KEY (id) REFERENCES "Order" ON DELETE CASCADE);
CREATE TABLE test.note (id text, n bigint, FOREIGN KEY (id, n) REFERENCES line MATCH FULL);
ALTER TABLE note REPLICA IDENTITY FULL;
CREATE FUNCTION test.order_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO "Order" VALUES (event.aggregate_id, event.aggregate_id) ON CONFLICT DO NOTHING;
  INSERT INTO line VALUES (event.aggregate_id, event.version);
  INSERT INTO note VALUES (event.aggregate_id, event.version);
  SELECT NULL::jsonb
$$;
CREATE FUNCTION test.nodes() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT pg_relation_filenode('"Order"') || ' ' || pg_relation_filenode('line') || ' ' || pg_relation_filenode('note')
$$;
CREATE FUNCTION test.copied_nodes() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(pg_relation_filenode(oid)::text, ' ' ORDER BY relname) FROM pg_class
    WHERE relkind = 'r' AND relnamespace::regnamespace::text LIKE E'evpg\\_rebuild%'
$$;
CREATE FUNCTION test.order_contents() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT (SELECT count(*) FROM "Order") || ' ' || (SELECT count(*) FROM line) || ' ' || (SELECT count(*) FROM note)
$$;
SELECT evpg_register_projection('order', handler => 'test.order_write', aggregate_types => '{counter}',
  tables => E'{"\\"Order\\"",line,note}'), evpg_rebuild_projection('order') \g /dev/null
SELECT order_contents() AS contents \gset
DELETE FROM note;
DELETE FROM line;
-- a temporary table of the same name is not meant
CREATE TEMPORARY TABLE "Order" (id text PRIMARY KEY);
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
DROP TABLE pg_temp."Order";
SELECT copied_nodes() AS copied \gset
SELECT add('i1', 1) \g /dev/null
CALL evpg_run();
SELECT is(nodes(), :'copied', 'tables with foreign keys between them are exchanged together [rule 13]');
SELECT is(order_contents(), (SELECT (split_part(c, ' ', 1)::int) || ' ' || (split_part(c, ' ', 2)::int + 1) || ' '
  || (split_part(c, ' ', 3)::int + 1) FROM (SELECT :'contents' AS c) x), 'with their contents [rule 13]');
SELECT is((SELECT count(*) FROM line WHERE xmin = (SELECT p.xmin FROM evpg.projection p)), 0::bigint,
  'no row is written by the transaction that ends it [rule 13]');
SELECT is(error_of($$INSERT INTO line VALUES ('missing', 1)$$),
  '23503 insert or update on table "line" violates foreign key constraint "line_id_fkey"',
  'foreign keys hold afterwards [rule 13]');
SELECT is((SELECT count(*) FROM pg_constraint
  WHERE contype = 'f' AND conrelid IN ('"Order"'::regclass, 'line'::regclass, 'note'::regclass)), 3::bigint,
  'they are those that there were [rule 13]');
-- a foreign key that the copy does not have
ALTER TABLE note DROP CONSTRAINT note_id_n_fkey;
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
ALTER TABLE note ADD FOREIGN KEY (id, n) REFERENCES line;
SELECT copied_nodes() AS copied, order_contents() AS contents \gset
CALL evpg_run();
SELECT is(nodes() || ' ' || order_contents(), :'copied' || ' ' || :'contents',
  'tables with a new foreign key between them, which is checked before, are exchanged [rule 13]');
CREATE FUNCTION test.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR DELETE ON note FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE note DISABLE TRIGGER refuse;
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
SELECT copied_nodes() AS copied \gset
CALL evpg_run();
SELECT is(nodes() || ' ' || order_contents(), :'copied' || ' ' || :'contents',
  'a trigger that is disabled does not keep a table from being exchanged [rule 13]');
ALTER TABLE line ALTER CONSTRAINT line_id_fkey DEFERRABLE;
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
SELECT copied_nodes() AS copied \gset
CALL evpg_run();
SELECT is(nodes() || ' ' || order_contents(), :'copied' || ' ' || :'contents',
  'a foreign key that can be deferred is checked before [rule 13]');
CREATE TRIGGER counted AFTER INSERT ON line EXECUTE FUNCTION touch();
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
SELECT nodes() AS nodes \gset
ALTER TABLE note DROP CONSTRAINT note_id_n_fkey;
CALL evpg_run();
SELECT is(nodes() LIKE (SELECT split_part(:'nodes', ' ', 1) || ' ' || split_part(:'nodes', ' ', 2) || ' %')
  AND nodes() <> :'nodes' AND order_contents() = :'contents', true,
  'tables are exchanged that do not hang together with those that are not [rule 13]');
DROP TRIGGER counted ON line;
ALTER TABLE line ALTER CONSTRAINT line_id_fkey NOT DEFERRABLE;
SELECT evpg_rebuild_projection('order', background => true) \g /dev/null
ALTER TABLE line DROP CONSTRAINT line_id_fkey, ADD FOREIGN KEY (id) REFERENCES "Order" ON DELETE SET NULL;
CALL evpg_run();
SELECT is((SELECT status || ' ' || last_error FROM evpg.rebuild),
  'running actions of foreign keys of table test.line have changed since its rebuild began',
  'what a foreign key has deleted in the copy while it was filled, another one would not have [rule 13]');
SELECT evpg_drop_projection('order') \g /dev/null
DROP TABLE note, line, "Order";

-- a foreign key between tables of a projection that is another one than that of the copies, whose rows do not satisfy it
CREATE TABLE test.stem (id text PRIMARY KEY);
CREATE TABLE test.head (id text PRIMARY KEY, other text UNIQUE, UNIQUE (id, other));
CREATE TABLE test.leaf (id text, other text, none text, CONSTRAINT key FOREIGN KEY (id) REFERENCES head);
ALTER TABLE leaf REPLICA IDENTITY FULL;
CREATE FUNCTION test.leaf_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  INSERT INTO head VALUES (event.aggregate_id, 'other') ON CONFLICT DO NOTHING;
  INSERT INTO leaf SELECT event.aggregate_id, 'other' WHERE EXISTS (SELECT FROM head WHERE id = event.aggregate_id);
  SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('leaf', handler => 'test.leaf_write', aggregate_types => '{counter}',
  tables => '{stem,head,leaf}', max_attempts => 1) \g /dev/null
SELECT statement FROM (VALUES (1, 'table', '(id) REFERENCES head', '(id) REFERENCES stem'),
    (2, 'referenced column', '(id) REFERENCES head', '(id) REFERENCES head (other)'),
    (3, 'column', '(id) REFERENCES head', '(other) REFERENCES head'),
    (4, 'number of columns', '(id) REFERENCES head', '(id, none) REFERENCES head (id, other) MATCH FULL'),
    (5, 'match type', '(none, other) REFERENCES head (id, other)',
      '(none, other) REFERENCES head (id, other) MATCH FULL')) x (n, what, old, new)
  CROSS JOIN LATERAL (VALUES (1, 'ALTER TABLE leaf DROP CONSTRAINT key, ADD CONSTRAINT key FOREIGN KEY ' || old),
    (2, $s$DO $$ BEGIN PERFORM evpg_rebuild_projection('leaf', background => true); END $$$s$),
    (3, 'DELETE FROM leaf'), (4, 'DELETE FROM head'),
    (5, 'ALTER TABLE leaf DROP CONSTRAINT key, ADD CONSTRAINT key FOREIGN KEY ' || new), (6, 'CALL evpg_run()'),
    (7, format($$SELECT is((SELECT status || ' ' || last_error FROM evpg.rebuild),
      'failed insert or update on table "leaf" violates foreign key constraint "key"', %L)$$,
      'a foreign key of another ' || what || ' than that of the copy is checked [rule 13]')),
    (8, $s$DO $$ BEGIN PERFORM evpg_cancel_rebuild('leaf'); END $$$s$)) s (step, statement) ORDER BY n, step \gexec
SELECT evpg_drop_projection('leaf') \g /dev/null
DROP TABLE leaf, head, stem;

-- ------------------------------------------------------------------ readers

CREATE UNLOGGED TABLE test.item (id text PRIMARY KEY, n bigint NOT NULL);
CREATE SEQUENCE test.calls;
CREATE OR REPLACE FUNCTION test.item_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  SELECT nextval('test.calls');
  INSERT INTO item (id, n) VALUES (event.aggregate_id, (event.data->>'n')::bigint) ON CONFLICT (id) DO UPDATE
    SET n = item.n + excluded.n;
  SELECT NULL::jsonb
$$;
CREATE FUNCTION test.there(statement text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT c FROM dblink('listener', statement) x (c text)
$$;
SELECT evpg_register_projection('item', handler => 'test.item_write', aggregate_types => '{counter}', tables => '{item}',
  max_attempts => 1), evpg_rebuild_projection('item') \g /dev/null
SELECT count(*)::text AS rows FROM item \gset
SELECT node() AS node \gset
-- a snapshot that is older than the copy, and reads the table late
SELECT dblink_exec('listener', 'BEGIN ISOLATION LEVEL REPEATABLE READ'), there('SELECT count(*)::text FROM pg_class')
  \g /dev/null
SELECT evpg_rebuild_projection('item', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT status || ' ' || last_error FROM evpg.rebuild), 'running canceling statement due to lock timeout',
  'an exchange waits for older snapshots, which would not see the rows [rule 13]');
SELECT is((SELECT attempts FROM evpg.rebuild), 0, 'that is no failure [rule 13]');
SELECT is(there('SELECT count(*)::text FROM item'), :'rows', 'these read the old rows [rule 13]');
SELECT dblink_exec('listener', 'COMMIT'), now_due() \g /dev/null
-- a transaction that has read the table
SELECT dblink_exec('listener', 'BEGIN'), there('SELECT count(*)::text FROM item') \g /dev/null
CALL evpg_run();
SELECT is((SELECT status || ' ' || last_error FROM evpg.rebuild), 'running canceling statement due to lock timeout',
  'it waits for transactions that have used the table [rule 13]');
SELECT is(error_of($$SELECT add('x', 1)$$), 'no error', 'while others append [rule 13]');
SELECT is(there('SELECT count(*)::text FROM item'), (:rows + 1)::text, 'others read while the exchange waits [rule 13]');
SELECT dblink_exec('listener', 'COMMIT'), now_due() \g /dev/null
-- a snapshot that misses what was appended last: it is written before the exchange, which waits for the snapshot.
-- Transactions of other databases that are older than the copy would make this snapshot old as well, so that nothing is
-- written.
CREATE PROCEDURE test.await_older_transactions() LANGUAGE plpgsql AS $$
DECLARE
  mark xid8 := pg_current_xact_id();
BEGIN
  COMMIT;
  WHILE pg_snapshot_xmin(pg_current_snapshot()) <= mark LOOP
    PERFORM pg_sleep(0.01);
    COMMIT;
  END LOOP;
END $$;
CALL await_older_transactions();
SELECT dblink_exec('listener', 'BEGIN ISOLATION LEVEL REPEATABLE READ'), there('SELECT count(*)::text FROM pg_class')
  \g /dev/null
SELECT setval('calls', 1) \g /dev/null
CALL evpg_run();
SELECT is((SELECT status || ' ' || last_error FROM evpg.rebuild), 'running canceling statement due to lock timeout',
  'an exchange waits for snapshots that do not see the last event in the copy [rule 13]');
SELECT is((SELECT last_value FROM calls), 2::bigint,
  'an event that is left is applied once: not by an end that is then postponed [rule 13]');
SELECT is(there('SELECT count(*)::text FROM item'), (:rows + 1)::text, 'these see it in the old rows [rule 13]');
SELECT dblink_exec('listener', 'COMMIT'), now_due() \g /dev/null
-- a snapshot that is newer than the copy: it reads the new rows
CALL await_older_transactions();
SELECT dblink_exec('listener', 'BEGIN ISOLATION LEVEL REPEATABLE READ'), there('SELECT count(*)::text FROM pg_class')
  \g /dev/null
CALL finish_rebuild();
SELECT is((SELECT count(*) FROM evpg.rebuild), 0::bigint, 'a snapshot that sees the copy is no hindrance [rule 13]');
SELECT is(node() <> :node, true, 'it is exchanged [rule 13]');
SELECT is(there('SELECT count(*)::text FROM item') , (:rows + 1)::text,
  'a snapshot from before the exchange, used late, sees all rows of the copy [rule 13]');
SELECT dblink_exec('listener', 'COMMIT') \g /dev/null
SELECT is((SELECT count(*)::text FROM item), (:rows + 1)::text, 'everybody else sees all [rule 13]');
SELECT is((SELECT relpersistence::text FROM pg_class WHERE oid = 'item'::regclass), 'u',
  'an unlogged table stays so [rule 13]');

-- a publication of all tables
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE TABLE test.flat (id text, n bigint);
ALTER TABLE flat REPLICA IDENTITY FULL;
CREATE FUNCTION test.flat_write(event evpg.event) RETURNS jsonb LANGUAGE sql AS $$
  UPDATE flat SET n = n + 1 WHERE id = event.aggregate_id;
  INSERT INTO flat SELECT event.aggregate_id, 1 WHERE NOT EXISTS (SELECT FROM flat WHERE id = event.aggregate_id);
  SELECT NULL::jsonb
$$;
SELECT evpg_register_projection('flat', handler => 'test.flat_write', aggregate_types => '{counter}', tables => '{flat}',
  max_attempts => 1), evpg_rebuild_projection('flat') AS events \gset
SELECT is((SELECT sum(n)::text FROM flat), :'events',
  'a table with REPLICA IDENTITY FULL is rebuilt under a publication of all tables [rule 13]');
SELECT evpg_rebuild_projection('flat', background => true) \g /dev/null
CALL evpg_run();
SELECT is((SELECT sum(n)::text FROM flat) || (SELECT count(*) FROM evpg.rebuild)
  || (SELECT relreplident::text FROM pg_class WHERE oid = 'flat'::regclass), :'events' || '0f',
  'a table with REPLICA IDENTITY FULL is rebuilt under a publication of all tables; in the background, too [rule 13]');
DROP OWNED BY evpg_reads_items;
DROP ROLE evpg_reads_items;
SELECT * FROM finish();
