-- modules.sql: shared objects that are not what they should be.

\ir include/setup.sql

-- libraries and symbols that disappear after registration, as after a restore on another machine
SELECT evpg_register_aggregate(t, library => 'evpg_test', symbol => 'counter') FROM unnest('{gone,lost,fine}'::text[]) t
  \g /dev/null
SELECT count(*) FROM unnest('{gone,lost,fine}'::text[]) t, evpg_execute(t, 'a', 'Add', '{"n": 1}') \g /dev/null
UPDATE evpg.aggregate_type SET library = '$libdir/evpg_gone' WHERE aggregate_type = 'gone';
UPDATE evpg.aggregate_type SET symbol = 'lost' WHERE aggregate_type = 'lost';
\connect -
SET search_path = public, test;
SELECT plan(135);
SELECT refused($$SELECT evpg_execute('gone', 'a', 'Add', '{"n": 1}')$$, '58P01 %', 'a library that is gone [rule 5]');
SELECT refused($$SELECT evpg_state('gone', 'a')$$, '58P01 %', 'has no states [A07]');
SELECT refused($$SELECT evpg_execute('lost', 'a', 'Add', '{"n": 1}')$$, 'VE009 %defines no symbol "lost"',
  'a symbol that is gone [rule 5]');
SELECT is((SELECT count(*) FROM evpg_read_stream('gone', 'a')), 1::bigint,
  'the events of a type whose library is gone can be read [A16]');
SELECT is((SELECT version FROM evpg_append('fine', 'a', evpg_events('{"type": "Odd"}'))), 2::bigint,
  'other types go on when a library or a symbol is gone [A17]');
SELECT is(evpg_register_aggregate('gone', library => 'evpg_test', symbol => 'counter'), true, 'registered again [B24]');
SELECT is((SELECT version || ' ' || (state->>'total') FROM evpg_state('gone', 'a')), '1 1', 'it has its state [B24]');

-- the good ones
SELECT is(evpg_register_aggregate('counter', library => 'evpg_test', symbol => 'counter'), true,
  'a symbol of a library [A01]');
SELECT is(evpg_register_aggregate('counter', library => 'evpg_test', symbol => 'counter'), false,
  'the same again changes nothing [B24]');
SELECT is(evpg_register_aggregate('libdir', library => '$libdir/evpg_test', symbol => 'counter'), true,
  '$libdir by name [A01]');
SELECT setting || '/evpg_test.so' AS file FROM pg_config WHERE name = 'PKGLIBDIR' \gset
SELECT is(evpg_register_aggregate('absolute', library => :'file', symbol => 'counter'), true, 'an absolute path [A01]');
SELECT is((SELECT array_agg(status) FROM unnest('{counter,libdir,absolute}'::text[]) t,
  evpg_try_execute(t, 'a', 'Add', '{"n": 1}')), '{ok,ok,ok}', 'each of them executes [A01]');
SELECT is((SELECT initial_state || jsonb_build_object('version', reducer_version, 'library', library)
  FROM evpg.aggregate_type WHERE aggregate_type = 'counter'),
  '{"total": 0, "applied": 0, "version": 1, "library": "$libdir/evpg_test"}',
  'the catalogue says what the module says [A12]');
SELECT is(evpg_register_aggregate('odd', library => 'evpg_test_broken', symbol => 'larger'), true,
  'ABI: a definition with members that this server does not know');
SELECT is((SELECT status FROM evpg_try_execute('odd', 'a', 'Nothing')), 'noop', 'ABI: works');
SELECT is(evpg_register_aggregate('odd', library => 'evpg_test_broken', symbol => 'older_fold'), true,
  'ABI: a reducer_version below 1');
SELECT is((SELECT reducer_version FROM evpg.aggregate_type WHERE aggregate_type = 'odd'), 1, 'ABI: counts as 1');

-- the bad ones: refused, and nothing is registered
SELECT refused(format('SELECT evpg_register_aggregate(%L, library => %L, symbol => %L)', 'bad', 'evpg_test_broken', symbol),
  error, 'ABI, B24: ' || symbol) FROM (VALUES
  ('wrong_magic', 'VE009 symbol "wrong_magic" of library "$libdir/evpg_test_broken" is not an evpg definition'),
  ('no_magic', 'VE009 %is not an evpg definition'),
  ('nowhere', 'VE009 %is not an evpg definition'), ('older_major', 'VE009 %has another module ABI'),
  ('newer_major', 'VE009 %has another module ABI'),
  ('newer_minor', 'VE009 %has another module ABI'), ('too_small', 'VE009 %is too small'),
  ('a_projection', 'VE009 %is not an aggregate'), ('a_saga', 'VE009 %is not an aggregate'),
  ('a_riddle', 'VE009 %is not an aggregate'), ('no_commands', 'VE009 %has no commands'),
  ('no_events', 'VE009 %has no events'),
  ('no_handler', 'VE009 %has no callback for command "Nothing"'), ('no_fold', 'VE009 %has no callback for event "Same"'),
  ('array_state', 'VE009 initial state %is not a JSON object'),
  ('null_state', 'VE009 initial state %is not a JSON object'),
  ('unfinished_state', 'VE009 initial state %is not a JSON object'),
  ('latin1_state', 'VE009 initial state of symbol "latin1_state" %'),
    ('zero_state', 'VE009 initial state of symbol "zero_state" %'),
  ('huge_number_state', 'VE009 initial state of symbol "huge_number_state" %'),
  ('empty_command', 'VE009 symbol "empty_command" %'), ('latin1_command', 'VE009 symbol "latin1_command" %'),
  ('latin1_event', 'VE009 symbol "latin1_event" %'),
  ('missing', 'VE009 library "$libdir/evpg_test_broken" defines no symbol "missing"'),
  ('plain_function', 'VE009 %defines no symbol "plain_function"'),
  ('Pg_magic_func', 'VE009 %defines no symbol%')) x (symbol, error);
SELECT refused(format('SELECT evpg_register_%s(%L, library => %L, symbol => %L)', split_part(symbol, '_', 1), 'bad',
  'evpg_test_broken', symbol), format('VE009 %%symbol "%s" %%', symbol), 'text that is no text: ' || symbol || ' [B24]')
  FROM unnest('{projection_latin1_state,projection_latin1_event,projection_latin1_type,saga_latin1_state,'
    'saga_latin1_event,saga_latin1_timer,saga_latin1_type}'::text[]) symbol;
SELECT is(error_fields($$SELECT
  evpg_register_aggregate('bad', library => 'evpg_test_broken', symbol => 'huge_number_state')$$),
  '|value overflows numeric format|', 'what is wrong with an initial state [B24]');
SELECT is(error_fields($$SELECT evpg_register_aggregate('bad', library => 'evpg_test_broken', symbol => 'newer_minor')$$),
  '|It was built for ABI 1.1; this server has 1.0.|Build the library again with this server''s evpg.h.',
  'ABI: both versions are said');
SELECT is(error_fields($$SELECT evpg_register_aggregate('bad', library => 'evpg_test_broken', symbol => 'a_saga')$$),
  '|It is a saga.|', 'ABI: what it is');
SELECT refused(format('SELECT evpg_register_aggregate(%L, library => %L, symbol => %L)', 'bad', library, 'counter'), error,
  'ABI, B24: library ' || left(to_json(library)::text, 60)) FROM (VALUES
  ('evpg_test_foreign', '% incompatible library %: missing magic block'),
  ('evpg_nowhere', '58P01 could not access file "%evpg_nowhere": %'),
  ('/nowhere/evpg_test', '58P01 could not access file "/nowhere/evpg_test": %'),
  ('/etc/passwd', '% could not load library "/etc/passwd": %'), ('/tmp', '% could not %'),
  ('lib/evpg_test', '22023 library "lib/evpg_test" is neither a name in $libdir nor an absolute path'),
  ('../evpg_test', '22023 %'), ('./evpg_test', '22023 %'),
  ('$libdir/../evpg_test', '22023 %'), ('$libdir/sub/evpg_test', '22023 %'), ('$libdir', '22023 %'),
  ('/tmp/../tmp/x', '22023 %'), ('', '22023 library must not be empty'),
  (E'evpg\ntest', '22023 library contains a control character'),
  (repeat('x', 1025), 'VE014 library is too long')) x (library, error);
SELECT refused(format('SELECT evpg_register_aggregate(%s)', args), error, 'register_aggregate(' || args || ') [B24]')
  FROM (VALUES
  ($$'bad', library => 'evpg_test'$$, '22004 symbol must not be null'),
  ($$'bad', symbol => 'counter'$$, '22004 library must not be null'),
  ($$'bad', library => 'evpg_test', symbol => ''$$, '22023 symbol must not be empty'),
  ($$'bad', library => 'evpg_test', symbol => 'no such; symbol'$$, 'VE009 %defines no symbol%'),
  ($$'bad', library => 'evpg_test', symbol => 'counter', initial_state => '{"a": 1}'$$,
  '22023 initial_state and reducer_version %'),
  ($$'bad', library => 'evpg_test', symbol => 'counter', reducer_version => 2$$,
  '22023 initial_state and reducer_version %'),
  ($$'bad', 'abs(int)'::regprocedure, 'abs(int)'::regprocedure, library => 'evpg_test', symbol => 'counter'$$,
    '22023 an aggregate is registered with either functions or a library')) x (args, error);
SELECT is((SELECT count(*) FROM evpg.aggregate_type WHERE aggregate_type = 'bad'), 0::bigint,
  'nothing was registered [B24]');
SELECT is((SELECT status FROM evpg_try_execute('counter', 'a', 'Add', '{"n": 1}')), 'ok',
  'nothing was registered, and the session goes on [B24]');

SELECT * FROM finish();
