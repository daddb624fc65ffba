-- The baseline: one row into the twin.  Its event_id rises with the position, as evpg's (version 7) do: random ones would
-- make the INSERT slower.
\set id random(1, :streams)
INSERT INTO bench.twin ("position", stream_id, version, occurred_at, recorded_at, event_id, schema_version, session_role,
                        type, data)
VALUES (nextval('bench.twin_position'), :id, currval('bench.twin_position'), now(), now(),
        lpad(currval('bench.twin_position')::text, 32, '0')::uuid, 1, 'postgres', 'MoneyDeposited', :data);
