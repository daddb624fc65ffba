-- sagas_module.sql: the same as in sagas.sql and sagas_failures.sql, of a saga in C (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(111);
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
SELECT alike(letters('emitter'), '%VE009 saga "%" said what only an aggregate or a projection can say%', 'C, rule 17: a saga appends no events');
SELECT * FROM finish();
