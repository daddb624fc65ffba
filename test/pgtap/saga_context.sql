-- saga_context.sql: whose context the commands of sagas and timers have (A21, rule 16).

\ir include/setup.sql
-- stable positions and consumers need it
SET default_transaction_isolation = 'read committed';
\ir include/counter.sql
\ir include/saga_follow.sql

SELECT plan(2);

-- ------------------------------------------------------------------ whose context

BEGIN;
SELECT evpg_set_context('alice', 'of alice', '{"tenant": 1}') \g /dev/null
SELECT evpg_schedule_command(clock_timestamp(), 'counter', 'scheduled', 'Add', '{"n": 1}') \g /dev/null
COMMIT;
SELECT
  tell('told', '{"actions": [{"do": "send", "aggregate_type": "counter", "aggregate_id": "sent", "command_type": "Add", '
  '"data": {"n": 1}}]}') \g /dev/null
BEGIN;
SELECT evpg_set_context('mallory', 'of mallory', '{"tenant": 2}') \g /dev/null
SELECT evpg_run_sagas() \g /dev/null
COMMIT;
SELECT is((SELECT array_agg(concat_ws(' ', actor, correlation_id, metadata)) FROM evpg.event
  WHERE aggregate_id = 'scheduled'), E'{"alice of alice {\\"tenant\\": 1}"}',
  'a scheduled command has the context of who scheduled it [A21]');
SELECT is((SELECT array_agg(concat_ws(' ', actor,
  correlation_id = (SELECT correlation_id FROM evpg.event WHERE aggregate_id = 'told'), metadata)) FROM evpg.event
  WHERE aggregate_id = 'sent'),
  E'{"t {\\"evpg\\": {\\"key\\": \\"told\\", \\"saga\\": \\"follow\\", \\"depth\\": 1}}"}',
    'a send that of the event, not of who runs it [rule 16]');
SELECT * FROM finish();
