-- The baseline of batches: 1,000 rows from arrays, with rising versions of one stream, and the correlation id that the
-- events of one call share.
\set id random(1, :streams)
INSERT INTO bench.twin ("position", stream_id, version, occurred_at, recorded_at, event_id, schema_version, session_role,
                        type, data, correlation_id)
SELECT nextval('bench.twin_position'), :id, currval('bench.twin_position'), now(), now(),
       lpad(currval('bench.twin_position')::text, 32, '0')::uuid, 1, 'postgres', e.type, e.data,
       '01234567-89ab-7def-8123-456789abcdef'
  FROM bench.batch AS b, unnest(b.types, b.datas) AS e (type, data);
