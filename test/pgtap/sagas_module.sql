-- sagas_module.sql: the same as in sagas.sql and sagas_failures.sql, of a saga in C (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(110);
SET test.kind = counter;
SET test.kind_of_saga = 'C';
\ir include/saga_script.sql
\ir include/saga_failure.sql
SELECT * FROM finish();
