-- sagas_inline_module.sql: the same as in sagas_inline.sql, of a saga in C (rules 16 to 18).

\ir include/setup.sql
\ir include/counter.sql
\ir include/sagas.sql

SELECT plan(31);
SET test.kind = counter;
SET test.saga_mode = inline;
SET test.kind_of_saga = 'C';
\ir include/saga_inline.sql
SELECT * FROM finish();
