-- business.sql: what the demo needs besides the account: the bank's own book, and a comparison of the two accounts.

-- The bank's book of visits: an ordinary table, written in the same transaction as the commands.
CREATE TABLE IF NOT EXISTS bank.visit (
  visit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind     text NOT NULL,               -- aggregate type: account_c or account
  day      int NOT NULL,
  what     text NOT NULL,               -- deposit, withdrawal, transfer
  payer    text,
  payee    text,
  amount   bigint NOT NULL,
  status   text NOT NULL,               -- as evpg_try_execute returns it
  code     text
);

-- Balances of all accounts of a kind, folded from their events.
CREATE OR REPLACE FUNCTION bank.balances(kind text)
RETURNS TABLE (account text, version bigint, balance bigint) LANGUAGE sql STABLE AS $$
  SELECT s.aggregate_id, f.version, (f.state->>'balance')::bigint
    FROM evpg_streams(kind, max_count => NULL) s CROSS JOIN LATERAL evpg_state(kind, s.aggregate_id) f
$$;

-- Sends the same random commands, good and bad, to both kinds, and returns how many were compared and those that differ.
CREATE OR REPLACE FUNCTION bank.compare(prefix text, commands int)
RETURNS TABLE (compared bigint, accepted bigint, rejected bigint, noops bigint, different bigint)
LANGUAGE plpgsql AS $$
DECLARE
  types   CONSTANT text[] := '{Open,Open,Deposit,Deposit,Deposit,Deposit,Withdraw,Withdraw,Withdraw,Close}';
  -- not all of these are amounts
  amounts CONSTANT jsonb := '[1, 5, 5, 20, 20, 100, 250, 1e3, 1000000000000, 0, -5, 1.5, 7.0, "12", null,
    true, {}, 1000000000001, 99999999999999999999, 1e400]';
  account text;
  type    text;
  data    jsonb;
  c       evpg.outcome;
  s       evpg.outcome;
BEGIN
  PERFORM setseed(0.2012);
  compared := 0; accepted := 0; rejected := 0; noops := 0; different := 0;
  -- one account begins rich and gets deposits only, to come to the limit of a balance
  PERFORM evpg_append(kind, prefix || '0', ARRAY[evpg_event('AccountOpened', '{"owner": "Ann"}'),
                                                 evpg_event('MoneyDeposited', '{"amount": 999999999999950}')])
    FROM unnest('{account_c,account}'::text[]) kind;
  FOR i IN 1 .. commands LOOP
    account := prefix || floor(random() * 50)::int;
    type := CASE WHEN account = prefix || '0' THEN 'Deposit' ELSE types[1 + floor(random() * 10)::int] END;
    data := CASE
      WHEN type = 'Open' THEN
        (ARRAY['{"owner": "Ann"}', '{"owner": "Ben"}', '{"owner": ""}', '{"owner": 7}', '{}'])[
          1 + floor(random() * 5)::int]::jsonb
      WHEN type = 'Close' THEN '{}'
      ELSE jsonb_build_object('amount', amounts->(floor(random() * jsonb_array_length(amounts))::int)) END;
    SELECT * INTO c FROM evpg_try_execute('account_c', account, type, data);
    SELECT * INTO s FROM evpg_try_execute('account', account, type, data);
    compared := compared + 1;
    accepted := accepted + (c.status = 'ok')::int;
    rejected := rejected + (c.status = 'rejected')::int;
    noops := noops + (c.status = 'noop')::int;
    different := different + ((c.status, c.version, c.sqlstate, c.code, c.message, c.detail, c.hint)
      IS DISTINCT FROM (s.status, s.version, s.sqlstate, s.code, s.message, s.detail, s.hint))::int;
  END LOOP;
  -- and afterwards the streams, event by event, and the states, version by version
  different := different + (
    SELECT count(*)
      FROM (SELECT aggregate_id, version, e.type, e.data FROM evpg.event e
             WHERE aggregate_type = 'account_c' AND starts_with(aggregate_id, prefix)) x
      FULL JOIN (SELECT aggregate_id, version, e.type, e.data FROM evpg.event e
                  WHERE aggregate_type = 'account' AND starts_with(aggregate_id, prefix)) y
        USING (aggregate_id, version)
      CROSS JOIN LATERAL (SELECT (SELECT state FROM evpg_state('account_c', aggregate_id, at_version => version)) AS x_state,
                                 (SELECT state FROM evpg_state('account', aggregate_id, at_version => version)) AS y_state) f
     WHERE (x.type, x.data, x_state) IS DISTINCT FROM (y.type, y.data, y_state));
  RETURN NEXT;
END $$;
