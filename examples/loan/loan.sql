-- loan.sql: registers the loan application and defines the reports of the demo.
--
-- Needs a superuser, and "make install" in this directory.  Can be run again at any time.

SELECT evpg_register_aggregate('loan_application', library => 'evpg_loan', symbol => 'loan_application') AS loan_application_changed;

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

-- How far those came that nobody has decided, and what has become of their offers.
CREATE OR REPLACE VIEW loan.undecided AS
  SELECT stage, offer, count(*) AS applications
    FROM loan.application WHERE status = 'undecided' GROUP BY stage, offer ORDER BY stage, offer;

-- Work that is still to be done.
CREATE OR REPLACE VIEW loan.open_work AS
  SELECT w.item, sum((w.work->>'waiting')::int) AS waiting, coalesce(sum(jsonb_array_length(w.work->'started_by')), 0) AS started
    FROM loan.application a CROSS JOIN LATERAL jsonb_each(a.state->'open_work') AS w (item, work)
   GROUP BY w.item ORDER BY w.item;
