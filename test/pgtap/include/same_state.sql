-- same_state.sql: a reducer for aggregates whose state does not matter.  Run after setup.sql.

CREATE FUNCTION test.same_state(state jsonb, event evpg.event) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$ SELECT state $$;
