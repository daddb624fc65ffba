-- sagas_module.sql: the same as in sagas.sql and sagas_failures.sql, of a saga in C (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(118);
SET test.kind = counter;
SET test.kind_of_saga = 'C';
\ir include/saga_script.sql
\ir include/saga_failure.sql
SELECT start('emitter', '{"emit": true}') \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT alike(letters('emitter'), '%VE009 a saga must not call evpg_emit()%', 'C, rule 17: a saga appends no events');
-- values that no tree of a bounded depth holds
SELECT start('misshaped ' || w || ' ' || how, jsonb_build_object('bad', jsonb_build_object('where', w, 'how', how)))
  FROM unnest('{shape of state,shape of action,actions}'::text[]) w, unnest('{cycle,deep,none}'::text[]) how
  WHERE how <> 'none' OR w = 'actions' \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT later(2000) \g /dev/null
SELECT run() \g /dev/null
SELECT alike(letters('misshaped ' || w || ' ' || how), '%' || error || '%', 'C, rule 17: ' || how || ' as ' || w)
  FROM (VALUES ('shape of state', 'cycle', 'VE014 saga state is nested too deeply'),
    ('shape of state', 'deep', 'VE014 saga state is nested too deeply'),
  ('shape of action', 'cycle', 'VE014 list of actions is nested too deeply'),
    ('shape of action', 'deep', 'VE014 list of actions is nested too deeply'),
  ('actions', 'cycle', 'VE014 list of actions is nested too deeply'),
    ('actions', 'deep', 'VE014 list of actions is nested too deeply'),
  ('actions', 'none', 'VE009 actions of saga "%" are not a JSON array')) x (w, how, error);
SELECT * FROM finish();
