-- loan.sql: registers the loan application and defines the reports of the demo.
--
-- Needs a superuser, and "make install" in this directory.  Can be run again at any time.

SELECT evpg_register_aggregate('loan_application', library => 'evpg_loan', symbol => 'loan_application')
  AS loan_application_changed;

CREATE SCHEMA IF NOT EXISTS loan;

-- Every application with its state, folded from its events.
CREATE OR REPLACE VIEW loan.application AS
  SELECT s.aggregate_id AS application, f.version, f.state->>'status' AS status, f.state->>'stage' AS stage,
         (f.state->>'amount')::bigint AS amount, f.state->>'offer' AS offer, f.state
    FROM evpg_streams('loan_application', max_count => NULL) s
   CROSS JOIN LATERAL evpg_state('loan_application', s.aggregate_id) f;

-- How they ended.
CREATE OR REPLACE VIEW loan.final_states AS
  SELECT status, count(*) AS applications, round(avg(amount)) AS average_amount, sum(version) AS events
    FROM loan.application GROUP BY status ORDER BY status;

-- The stage of applications that are not decided yet, and what has become of their offers.
CREATE OR REPLACE VIEW loan.undecided AS
  SELECT stage, offer, count(*) AS applications
    FROM loan.application WHERE status = 'undecided' GROUP BY stage, offer ORDER BY stage, offer;

-- Work that is still to be done.
CREATE OR REPLACE VIEW loan.open_work AS
  SELECT w.item, sum((w.work->>'waiting')::int) AS waiting,
         coalesce(sum(jsonb_array_length(w.work->'started_by')), 0) AS started
    FROM loan.application a CROSS JOIN LATERAL jsonb_each(a.state->'open_work') AS w (item, work)
   GROUP BY w.item ORDER BY w.item;

-- ------------------------------------------------------------------ read models, brought up to date after the commit

-- A row for each application, by the projection in C: {"outcome": "approved", "amount": 12000, "band": 10000}.
SELECT evpg_register_projection('outcomes', library => 'evpg_loan', symbol => 'loan_outcomes', mode => 'async',
  broadcast => 'delta') AS outcomes_changed;

-- Applications by outcome and amount band.
CREATE OR REPLACE VIEW loan.outcomes AS
  SELECT state->>'outcome' AS outcome, (state->>'band')::bigint AS amount_from, count(*) AS applications,
         sum((state->>'amount')::bigint) AS amount
    FROM evpg.projected_state WHERE name = 'outcomes' GROUP BY 1, 2 ORDER BY 1, 2;

-- The same from the log, to compare.
CREATE OR REPLACE VIEW loan.outcomes_of_log AS
  SELECT outcome, amount_from, count(*) AS applications, sum(amount) AS amount
    FROM (SELECT coalesce(max(CASE type WHEN 'A_APPROVED' THEN 'approved' WHEN 'A_DECLINED' THEN 'declined'
                                        WHEN 'A_CANCELLED' THEN 'cancelled' END), 'undecided') AS outcome,
                 max((data->>'amount')::bigint) FILTER (WHERE type = 'A_SUBMITTED') AS amount
            FROM evpg.event WHERE aggregate_type = 'loan_application' GROUP BY aggregate_id) AS application,
         LATERAL (SELECT (ARRAY[0, 5000, 10000, 20000, 50000])[
           1 + width_bucket(amount, '{5000,10000,20000,50000}'::bigint[])]::bigint) AS band (amount_from)
   GROUP BY outcome, amount_from ORDER BY outcome, amount_from;

-- Work items per employee and day of the bank: an ordinary table, which a table projection writes.
CREATE TABLE IF NOT EXISTS loan.work_day (
  employee  text COLLATE "C",
  day       date,
  started   int NOT NULL,
  completed int NOT NULL,
  PRIMARY KEY (employee, day)
);

-- The handler names its table without a schema, for a rebuild lets it fill a copy; so the schema is first in the
-- search_path, of the function's body now and of the registration.
SET search_path = loan, public;

CREATE OR REPLACE FUNCTION loan.work_day_write(event evpg.event) RETURNS jsonb
LANGUAGE sql AS $$
  INSERT INTO work_day AS w (employee, day, started, completed)
  VALUES (event.data->>'resource', (event.occurred_at AT TIME ZONE 'Europe/Amsterdam')::date,
          (event.type = 'WorkStarted')::int, (event.type = 'WorkCompleted')::int)
  ON CONFLICT (employee, day) DO UPDATE SET started = w.started + excluded.started,
    completed = w.completed + excluded.completed
  RETURNING jsonb_build_object('day', w.day, 'started', w.started, 'completed', w.completed)
$$;

-- Listeners of an employee hear what was done today.  Work without a known employee has no key, and is left out.
SELECT evpg_register_projection('work_days', handler => 'loan.work_day_write', mode => 'async', tables => '{work_day}',
  aggregate_types => '{loan_application}', event_types => '{WorkStarted,WorkCompleted}', key_path => '$.data.resource',
  broadcast => 'delta') AS work_days_changed;

RESET search_path;

-- The same from the log, to compare.
CREATE OR REPLACE VIEW loan.work_day_of_log AS
  SELECT data->>'resource' AS employee, (occurred_at AT TIME ZONE 'Europe/Amsterdam')::date AS day,
         count(*) FILTER (WHERE type = 'WorkStarted') AS started, count(*) FILTER (WHERE type = 'WorkCompleted') AS completed
    FROM evpg.event
   WHERE aggregate_type = 'loan_application' AND type IN ('WorkStarted', 'WorkCompleted') AND data ? 'resource'
   GROUP BY 1, 2;
